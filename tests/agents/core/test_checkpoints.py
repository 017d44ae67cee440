from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from checkpoint_files import change_header, rewrite
from factory import PAPER_LIKE, WHITENED, make_dataset, same_parameters
from gymnasium import spaces
from safetensors.torch import load, save
from stable_baselines3 import TD3

from qgpo import QGPO, load_agent
from qgpo.agents.core.checkpoint import FORMAT_VERSION, CheckpointError, read_checkpoint

OBSERVATIONS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def trained():
    return QGPO(PAPER_LIKE, seed=1, device="cpu").learn(make_dataset())


@pytest.fixture(scope="module")
def content(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "agent.zip"
    trained.save(path)
    return path.read_bytes()


@pytest.fixture
def saved(content, tmp_path):
    path = tmp_path / "agent.zip"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["agent", "agent.zip"])
def test_predictions_survive_the_file(trained, saved, name):
    loaded = QGPO.load(saved.with_name(name), device="cpu")
    for deterministic in (True, False):
        for agent in (trained, loaded):
            agent.seed_predictions(7)
        np.testing.assert_array_equal(
            loaded.predict(OBSERVATIONS, deterministic=deterministic)[0],
            trained.predict(OBSERVATIONS, deterministic=deterministic)[0],
        )
    assert same_parameters(trained.get_parameters(), loaded.get_parameters())
    assert loaded.config == trained.config
    assert loaded.observation_space == trained.observation_space
    assert loaded.action_space == trained.action_space
    assert loaded.dataset_id == trained.dataset_id


@pytest.mark.parametrize("read", [QGPO.load, load_agent])
def test_a_run_folder_is_read_unless_a_file_has_its_name(
    trained, saved, tmp_path, read, monkeypatch
):
    folder = tmp_path / "run"
    folder.mkdir()
    saved.rename(folder / "checkpoint.zip")
    (tmp_path / "dotted.zip").symlink_to(folder)
    (tmp_path / "linked").symlink_to(folder)
    (tmp_path / "linked.zip").mkdir()
    monkeypatch.chdir(folder)
    here = (".", "./", Path(), "../run", "../dotted.zip", "../linked")
    for name in (folder, str(folder), f"{folder}/", *here):
        assert same_parameters(read(name).get_parameters(), trained.get_parameters())
    QGPO(PAPER_LIKE, seed=2, device="cpu").learn(make_dataset()).save(folder)
    assert read(folder).seed == 2
    assert read(f"{folder}/").seed == trained.seed
    trained.save(folder / "other")
    (folder / "checkpoint.zip").unlink()
    folder.with_suffix(".zip").unlink()
    with pytest.raises(CheckpointError, match=r"'.*run/checkpoint\.zip' does not exist"):
        read(folder)


def test_saving_is_atomic(trained, saved, monkeypatch):
    before = saved.read_bytes()

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("qgpo.files.os.fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        trained.save(saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir() if "tmp" in p.name] == []


def test_folders_are_made(trained, tmp_path):
    trained.save(tmp_path / "a" / "b" / "agent")
    assert (tmp_path / "a" / "b" / "agent.zip").is_file()


@pytest.mark.parametrize("how", ["load", "set_env"])
def test_another_environment_is_refused(saved, how):
    env = gym.make("Pendulum-v1")  # three observations too, but actions in [-2, 2]
    accept = {
        "load": lambda: QGPO.load(saved, env=env, device="cpu"),
        "set_env": lambda: QGPO.load(saved, device="cpu").set_env(env),
    }[how]
    with pytest.raises(ValueError, match="this agent was made for"):
        accept()


@pytest.mark.filterwarnings("ignore:.*precision lowered:UserWarning")
def test_the_right_environment_is_accepted(saved):
    env = gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), -1.0, 1.0)
    agent = QGPO.load(saved, env=env, device="cpu")
    assert agent.get_env().num_envs == 1


def test_other_data_are_refused_on_resume(saved):
    agent = QGPO.load(saved, device="cpu")
    with pytest.raises(ValueError, match="holds other data"):
        agent.learn(make_dataset(seed=5), reset_num_timesteps=False)
    agent.learn(make_dataset(seed=5))


@pytest.mark.usefixtures("true_widths")
def test_spaces_survive_exactly(tmp_path):
    box = spaces.Box(
        np.array([-2.0, 0.1], np.float32), np.array([0.5, 3.3], np.float32), dtype=np.float32
    )
    agent = QGPO(PAPER_LIKE, device="cpu").learn(make_dataset(action_space=box))
    agent.save("agent")
    assert QGPO.load("agent", device="cpu").action_space == box


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_truncated_file_is_refused(saved, part):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CheckpointError, match=r"agent\.zip"):
        QGPO.load(saved, device="cpu")


def test_flipped_bits_are_refused(saved):
    content = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        spans = [(i.header_offset + 30 + len(i.filename), i.file_size) for i in archive.infolist()]
    for start, size in spans:
        for place in {start + 10, start + size // 2, start + size - 1}:
            damaged = bytearray(content)
            damaged[place] ^= 0x10
            saved.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"agent\.zip"):
                QGPO.load(saved, device="cpu")


def test_flipped_bits_in_the_zip_s_own_records_load_the_same_or_are_refused(tmp_path):
    agent = QGPO(WHITENED, seed=1, device="cpu").learn(make_dataset())
    agent.save("agent")
    path = tmp_path / "agent.zip"
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        heads = [i.header_offset + k for i in archive.infolist() for k in range(0, 30, 2)]
        places = [*heads, *range(archive.start_dir, len(content), 3)]
    expected, refused = read_checkpoint(path), 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 0x04
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path)
        except CheckpointError:
            refused += 1
        else:
            assert found.header == expected.header
            assert same_parameters(found.modules, expected.modules)
    assert refused > len(places) / 4


def test_randomness_of_another_kind_of_device_is_replaced(saved, trained):
    def of_a_gpu(members):
        tables = load(members["tables.safetensors"])
        tables["generator/training"] = tables["generator/training"][:16].clone()
        tables["generator/prediction"] = tables["generator/prediction"][:16].clone()
        members["tables.safetensors"] = save(tables)

    rewrite(saved, of_a_gpu)
    loaded = QGPO.load(saved, device="cpu")
    assert same_parameters(trained.get_parameters(), loaded.get_parameters())
    assert loaded.predict(OBSERVATIONS)[0].shape == (6, 1)


def without_header(key):
    def change(members):
        header = json.loads(members["checkpoint.json"])
        del header[key]
        members["checkpoint.json"] = json.dumps(header).encode()

    return change


def without_tensor(file, position):
    def change(members):
        tensors = load(members[f"{file}.safetensors"])
        del tensors[sorted(tensors)[position]]
        members[f"{file}.safetensors"] = save(tensors)

    return change


def with_shape(members):
    tensors = load(members["modules.safetensors"])
    name = sorted(tensors)[0]
    tensors[name] = torch.zeros(7, 7)
    members["modules.safetensors"] = save(tensors)


def with_pickle(members):
    members["extra.pkl"] = pickle.dumps([1, 2, 3])


def with_replaced_pickle(members):
    members["modules.safetensors"] = pickle.dumps([1, 2, 3])


@pytest.mark.parametrize(
    "change",
    [
        change_header(format_version=FORMAT_VERSION + 1),
        change_header(format_version=None),
        change_header(agent="Other"),
        change_header(config={"beta": 1.0}),
        change_header(progress={"behavior": 1}),
        change_header(optimizers={}),
        without_header("config"),
        without_header("agent"),
        without_header("action_space"),
        without_header("optimizers"),
        without_header("seed"),
        without_tensor("modules", 0),
        without_tensor("modules", -1),
        without_tensor("optimizers", 0),
        without_tensor("optimizers", -1),
        without_tensor("tables", 0),
        without_tensor("tables", -1),
        with_shape,
        with_pickle,
        with_replaced_pickle,
        lambda members: members.pop("tables.safetensors"),
        lambda members: members.update({"checkpoint.json": b"[1]"}),
        lambda members: members.update({"checkpoint.json": b"{"}),
        lambda members: members.update({"checkpoint.json": b"\xff\xfe"}),
    ],
    ids=[
        "newer",
        "no-version",
        "other-agent",
        "other-config",
        "other-progress",
        "no-groups",
        "no-config",
        "no-agent",
        "no-space",
        "no-optimizers",
        "no-seed",
        "first-tensor",
        "last-tensor",
        "first-optimizer-tensor",
        "last-optimizer-tensor",
        "first-table",
        "last-table",
        "other-shape",
        "extra-pickle",
        "pickle-instead",
        "no-tables",
        "list-header",
        "half-header",
        "no-text",
    ],
)
def test_every_defect_is_a_checkpoint_error(saved, change):
    rewrite(saved, change)
    with pytest.raises(CheckpointError, match=r"agent\.zip"):
        QGPO.load(saved, device="cpu")


def test_newer_version_says_upgrade(saved):
    rewrite(saved, change_header(format_version=FORMAT_VERSION + 1))
    with pytest.raises(CheckpointError, match="upgrade"):
        QGPO.load(saved, device="cpu")


def test_a_file_that_is_no_zip_and_no_file(tmp_path):
    (tmp_path / "agent.zip").write_text("hello")
    with pytest.raises(CheckpointError, match="damaged"):
        QGPO.load(tmp_path / "agent", device="cpu")
    with pytest.raises(CheckpointError, match="does not exist"):
        QGPO.load(tmp_path / "nowhere", device="cpu")


def test_loading_unpickles_nothing(saved, monkeypatch):
    def forbidden(*_args, **_kwargs):
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(pickle, "Unpickler", forbidden)
    monkeypatch.setattr(pickle, "load", forbidden)
    monkeypatch.setattr(pickle, "loads", forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    assert QGPO.load(saved, device="cpu").name == "QGPO"


@pytest.mark.parametrize("other", [{"of_another": False}, {"of_another": None}, {}])
def test_settings_of_an_optimizer_of_another_torch_are_left_out(other, saved, trained):
    rewrite(saved, change_optimizers(other))
    loaded = QGPO.load(saved, device="cpu")
    assert same_parameters(loaded.get_parameters(), trained.get_parameters())


def test_a_setting_that_changes_an_optimizer_is_refused(saved):
    rewrite(saved, change_optimizers({"of_another": True}))
    with pytest.raises(CheckpointError, match="has settings"):
        QGPO.load(saved, device="cpu")


def change_optimizers(other):
    def change(members):
        header = json.loads(members["checkpoint.json"])
        for groups in header["optimizers"].values():
            groups[0].pop("decoupled_weight_decay", None)
            groups[0].update(other)
        members["checkpoint.json"] = json.dumps(header).encode()

    return change


def test_a_file_of_stable_baselines3_is_named_as_such(tmp_path):
    TD3("MlpPolicy", "Pendulum-v1", buffer_size=1, policy_kwargs={"net_arch": [2]}).save(
        tmp_path / "td3.zip"
    )
    content = (tmp_path / "td3.zip").read_bytes()
    for source in (tmp_path / "td3.zip", io.BytesIO(content)):
        with pytest.raises(CheckpointError, match="is a file of Stable-Baselines3, not a qgpo"):
            QGPO.load(source)
