"""An agent as a folder, and in a repository of a hub that runs here."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from agent_tester import Walk
from factory import WHITENED, make_dataset, same_parameters
from model_hub import TOKEN, ModelHub

from qgpo import (
    BC,
    QGPO,
    BCConfig,
    Ensemble,
    load_from_folder,
    load_from_hub,
    push_to_hub,
    save_to_folder,
)
from qgpo.agents import HubError, sharing
from qgpo.agents.core import parsing, pretrained
from qgpo.agents.core.checkpoint import CheckpointError, read_header
from qgpo.agents.hub import OURS
from qgpo.envs.play.scores import summarize
from qgpo.envs.play.video import RenderError
from qgpo.envs.tasks.reference import ReferenceScores

REPO = "me/agent"


def trained(seed: int = 0) -> BC:
    config = BCConfig(steps=3, batch_size=4, hidden=(8,))
    return BC(config, seed=seed).learn(make_dataset())


def played(mean: float = 5.0):
    returns = [mean - 1.0, mean, mean + 1.0]
    reference = ReferenceScores(0.0, 10.0, "a test")
    return summarize("Pendulum-v1", returns, [5] * 3, [0, 1, 2], 0, reference)


@pytest.fixture
def agent() -> BC:
    return trained()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = ModelHub()
    constants = {
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }
    for name, value in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


def asked(hub: ModelHub) -> list[str]:
    """The requests for our repository since the last time, without the client's own."""
    found = [r for r in hub.requests if REPO in r or "repos/create" in r or "/lfs/" in r]
    hub.requests.clear()
    return found


# A folder ---------------------------------------------------------------------------------


def test_a_folder_gives_the_same_agent_bit_for_bit(tmp_path, agent):
    folder = save_to_folder(agent, tmp_path / "shared", clip=False)
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "checkpoint.zip",
        "config.json",
    ]
    read = load_from_folder(folder, device="cpu")
    assert isinstance(read, BC)
    assert same_parameters(read.get_parameters(), agent.get_parameters())
    observations = make_dataset().observations
    assert np.array_equal(
        read.predict(observations, deterministic=True)[0],
        agent.predict(observations, deterministic=True)[0],
    )


def test_an_ensemble_is_read_as_one(tmp_path):
    together = Ensemble([trained(0), trained(1)])
    read = load_from_folder(save_to_folder(together, tmp_path / "two", clip=False), device="cpu")
    assert isinstance(read, Ensemble)
    for ours, theirs in zip(together.members, read.members, strict=True):
        assert same_parameters(ours.get_parameters(), theirs.get_parameters())


def test_the_card_says_data_scores_use_and_licence(tmp_path, agent):
    folder = save_to_folder(
        agent,
        tmp_path / "card",
        evaluations=[(0.0, played(5.0)), (1.0, played(7.0))],
        data_returns=[1.0, 2.0, 3.0],
        clip=False,
        license="mit",
    )
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["license"] == "mit"
    assert metadata["library_name"] == "qgpo"
    values = [r["metrics"][0]["value"] for r in metadata["model-index"][0]["results"]]
    assert values[1].startswith("7.00 [6")
    assert "| the data | 2.00 | [1" in body
    assert "| w = 1 (guided) | 7.00 | [6" in body
    assert "| 70.0 |" in body
    assert agent.dataset_fingerprint in body
    assert 'load_from_folder("card")' in body
    assert "`mit`" in body
    document = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert [e["guidance_scale"] for e in document["evaluations"]] == [0.0, 1.0]
    assert document["evaluations"][1]["returns"] == [6.0, 7.0, 8.0]


def test_the_card_says_whether_it_learned_online_and_what_its_scale_is(tmp_path):
    data = make_dataset()
    agent = QGPO(WHITENED, device="cpu").learn(data)
    first = (save_to_folder(agent, tmp_path / "first", clip=False) / "README.md").read_text()
    assert "from recorded data alone, without interaction" in first
    assert "`agent.guidance_scale` is 1. It may be changed" in first
    agent.learn_online(Walk(), 7, data)
    online = (save_to_folder(agent, tmp_path / "online", clip=False) / "README.md").read_text()
    assert "learned from 7 steps in its environment, after recorded data, with" in online
    student = agent.distill(data, steps=1)
    fixed = (save_to_folder(student, tmp_path / "fixed", clip=False) / "README.md").read_text()
    assert "The student was trained at it, and it cannot be changed." in fixed
    other = QGPO(replace(WHITENED, guidance_scale=2.0), seed=1, device="cpu").learn(data)
    both = save_to_folder(Ensemble([agent, other]), tmp_path / "both", clip=False) / "README.md"
    assert "`agent.guidance_scale` is 1, 2 (of each member)." in both.read_text()


def test_text_of_others_stays_text_in_the_card(tmp_path):
    odd = 'x"\n---\nlicense: evil'
    agent = BC(BCConfig(steps=1, batch_size=4, hidden=(4,))).learn(make_dataset(id=odd))
    folder = save_to_folder(agent, tmp_path / "odd", evaluations=played(), clip=False)
    front = (folder / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    assert yaml.safe_load(front)["license"] == "unknown"
    assert yaml.safe_load(front)["model-index"][0]["name"] == f"BC on {odd}"


def test_a_clip_that_cannot_be_is_left_out_by_its_name(tmp_path, agent, monkeypatch):
    with pytest.warns(UserWarning, match=r"replay.mp4 is left out: .*names no environment"):
        folder = save_to_folder(agent, tmp_path / "a")
    assert not (folder / "replay.mp4").exists()

    def refuse(*_, **__):
        raise RenderError("no OpenGL")

    agent.env_spec = gym.spec("Pendulum-v1")
    monkeypatch.setattr(sharing, "check_clip_path", lambda path: None)
    monkeypatch.setattr(sharing, "record", refuse)
    with pytest.warns(UserWarning, match=r"replay.mp4 is left out: no OpenGL"):
        save_to_folder(agent, tmp_path / "b")
    monkeypatch.setattr(sharing, "record", lambda *_, **__: ([np.zeros((2, 2, 3), np.uint8)], 10.0))
    monkeypatch.setattr(sharing, "write_clip", lambda path, *_: path.write_bytes(b"clip"))
    folder = save_to_folder(agent, tmp_path / "c")
    assert (folder / "replay.mp4").read_bytes() == b"clip"
    assert "`replay.mp4`" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, agent, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        save_to_folder(agent, tmp_path / "full", clip=False)
    with pytest.raises(ValueError, match="license='GPL 3', expected"):
        save_to_folder(agent, tmp_path / "new", license="GPL 3")
    with pytest.raises(TypeError, match="evaluations has 3"):
        save_to_folder(agent, tmp_path / "new", evaluations=[3])
    monkeypatch.setattr(sharing, "model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_to_folder(agent, tmp_path / "new", clip=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]


def test_a_scale_that_files_do_not_keep_is_said(tmp_path):
    agent = QGPO(WHITENED).learn(make_dataset())
    agent.guidance_scale = 2.0
    with pytest.warns(UserWarning, match="guidance_scale is 2, and files keep .* 1"):
        save_to_folder(agent, tmp_path / "a", clip=False)


def spoil(folder, name, content):
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("policy.pkl", pickle.dumps(1), r"holds \['policy.pkl'\].* never read"),
        ("model.pt", b"PK", r"holds \['model.pt'\]"),
        ("code.py", b"1 / 0", r"holds \['code.py'\]"),
        ("checkpoint.zip", pickle.dumps({}), "has other bytes than config.json states"),
        ("config.json", b"[]", "is no config.json of qgpo"),
        ("config.json", b'{"a": "' + b"x" * 2**20 + b'"}', "has more than 1048576 bytes"),
        ("config.json", b'{"library": "other", "format_version": 1, "checkpoints": {}}', "other"),
        (
            "config.json",
            b'{"library": "qgpo", "format_version": 9, "checkpoints": {}}',
            "this qgpo reads 1 to 1",
        ),
        (
            "config.json",
            b'{"library": "qgpo", "format_version": 1, "checkpoints": {"../a.zip": "00"}}',
            "checkpoints has '../a.zip'",
        ),
    ],
)
def test_what_is_not_ours_is_refused(tmp_path, agent, name, content, said):
    folder = save_to_folder(agent, tmp_path / "shared", clip=False)
    spoil(folder, name, content)
    with pytest.raises(CheckpointError, match=said):
        load_from_folder(folder)


def test_hidden_files_of_tools_are_passed_over(tmp_path, agent):
    folder = save_to_folder(agent, tmp_path / "shared", clip=False)
    for name in (".DS_Store", ".cache/huggingface/CACHEDIR.TAG", ".git/hooks/update.sample"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of a tool", encoding="utf-8")
    again = load_from_folder(folder, device="cpu")
    assert same_parameters(again.get_parameters(), agent.get_parameters())


@pytest.mark.parametrize(
    ("name", "value"),
    [("agent", "AEPO"), ("guidance_scale", 99.0), ("observations", 55), ("config", None)],
)
def test_a_description_of_another_agent_is_refused(tmp_path, agent, name, value):
    folder = save_to_folder(agent, tmp_path / "shared", clip=False)
    about = json.loads((folder / "config.json").read_text())
    about[name] = dict.fromkeys(about[name], 77) if name == "config" else value
    spoil(folder, "config.json", json.dumps(about).encode())
    with pytest.raises(CheckpointError, match=r"says (config\.)?\w+=.*, and the checkpoint has"):
        load_from_folder(folder)


def test_a_description_by_a_version_with_other_fields_is_read(tmp_path, agent):
    folder = save_to_folder(agent, tmp_path / "shared", clip=False)
    about = json.loads((folder / "config.json").read_text())
    about["config"] = {"gone": 1.0, **dict(list(about["config"].items())[1:])}
    spoil(folder, "config.json", json.dumps(about).encode())
    assert load_from_folder(folder).name == agent.name


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_from_folder(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no agent of qgpo is there"):
        load_from_folder(tmp_path)


# A repository -----------------------------------------------------------------------------


def test_a_repository_gives_the_same_agent_bit_for_bit(hub, agent):
    commit = push_to_hub(agent, REPO, evaluations=played(), clip=False, license="mit")
    assert [r.split("?")[0] for r in asked(hub)] == [
        "POST /api/repos/create",
        f"GET /api/models/{REPO}/tree/main",
        f"POST /api/models/{REPO}/preupload/main",
        f"POST /{REPO}.git/info/lfs/objects/batch",
        f"PUT /lfs/{next(iter(hub.stored))}",
        f"POST /api/models/{REPO}/commit/main",
    ]
    assert commit == hub.branches[REPO]["main"]
    assert b'load_from_hub("me/agent")' in hub.files(REPO)["README.md"]
    read = load_from_hub(REPO, device="cpu")
    assert same_parameters(read.get_parameters(), agent.get_parameters())
    assert asked(hub) == [
        f"GET /api/models/{REPO}",
        f"HEAD /{REPO}/resolve/main/config.json",
        f"GET /{REPO}/resolve/main/config.json",
        f"HEAD /{REPO}/resolve/{commit}/checkpoint.zip",
        f"GET /{REPO}/resolve/{commit}/checkpoint.zip",
    ]


def test_what_cannot_be_shared_makes_no_repository(hub, agent):
    with pytest.raises(ValueError, match="license"):
        push_to_hub(agent, REPO, clip=False, license="My License")
    with pytest.raises(RuntimeError, match="cannot be saved"):
        push_to_hub(QGPO.pretrained("halfcheetah/mixed", device="cpu"), REPO, clip=False)
    assert asked(hub) == []


def test_a_revision_pins_the_files(hub):
    first = push_to_hub(trained(0), REPO, evaluations=played(), clip=False)
    second = push_to_hub(Ensemble([trained(1), trained(2)]), REPO, clip=False)
    names = set(hub.files(REPO))  # of the first push nothing is left that the second lacks
    assert names == {
        *(".gitattributes", "README.md", "config.json"),
        *("checkpoint-0.zip", "checkpoint-1.zip"),
    }
    assert load_from_hub(REPO, revision=first, device="cpu").seed == 0
    assert len(load_from_hub(REPO, revision=second, device="cpu").members) == 2
    push_to_hub(trained(3), REPO, clip=False, revision="try")
    assert load_from_hub(REPO, revision="try", device="cpu").seed == 3
    assert isinstance(load_from_hub(REPO, device="cpu"), Ensemble)
    with pytest.raises(HubError, match="has no such revision"):
        load_from_hub(REPO, revision="gone")


def test_files_of_others_in_a_repository_stay(hub, agent):
    push_to_hub(agent, REPO, clip=False)
    hub.commit(REPO, "main", {**hub.files(REPO), "notes.txt": b"mine"})
    push_to_hub(trained(1), REPO, clip=False)
    assert hub.files(REPO)["notes.txt"] == b"mine"
    assert "notes.txt" not in OURS


def test_what_was_loaded_once_is_read_without_a_network(hub, agent, monkeypatch):
    commit = push_to_hub(agent, REPO, clip=False)
    with pytest.raises(HubError, match="is not in the hub's cache"):
        load_from_hub(REPO, local_files_only=True)
    load_from_hub(REPO, device="cpu")
    hub.close()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for revision in (None, commit):
        read = load_from_hub(REPO, revision=revision, device="cpu")
        assert same_parameters(read.get_parameters(), agent.get_parameters())
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        push_to_hub(agent, REPO, clip=False)


def test_the_token_is_that_of_the_hub_s_own_login(hub, agent, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "nowhere")
    with pytest.raises(HubError, match="log in with `hf auth login`"):
        push_to_hub(agent, REPO, clip=False)
    assert push_to_hub(agent, REPO, clip=False, token=TOKEN)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"weights.pkl": pickle.dumps(1)}, r"repository 'me/agent' holds \['weights.pkl'\]"),
        ({"sub/model.bin": b""}, r"holds \['sub/model.bin'\]"),
        ({"config.json": b" " * (2**20 + 1)}, "a config.json of 1048577 bytes, expected at most"),
    ],
)
def test_a_repository_with_a_pickle_or_a_huge_header_is_refused_unread(hub, agent, files, said):
    push_to_hub(agent, REPO, clip=False)
    hub.commit(REPO, "main", {**hub.files(REPO), **files})
    asked(hub)
    with pytest.raises(CheckpointError, match=said):
        load_from_hub(REPO)
    assert asked(hub) == [f"GET /api/models/{REPO}"]  # nothing was fetched


def test_a_checkpoint_with_a_huge_header_is_refused(hub, agent, monkeypatch):
    push_to_hub(agent, REPO, clip=False)
    monkeypatch.setattr(parsing, "MOST_JSON", 1000)
    with pytest.raises(CheckpointError, match=r"its JSON has \d+ bytes, expected at most 1000"):
        load_from_hub(REPO)


def test_a_repository_that_is_none_of_ours_is_named(hub, agent):
    with pytest.raises(HubError, match="repository 'me/agent' is not on http"):
        load_from_hub(REPO)
    hub.commit(REPO, "main", {"README.md": b"hello"})
    with pytest.raises(CheckpointError, match=r"has no config.json: no agent of qgpo is there"):
        load_from_hub(REPO)
    with pytest.raises(ValueError, match="repo_id='a/b/c', expected 'name' or 'owner/name'"):
        load_from_hub("a/b/c")


def test_a_hub_out_of_reach_is_named(hub, monkeypatch):
    hub.close()
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(HubError, match="cannot be reached"):
        load_from_hub(REPO)


# Agents in the package ----------------------------------------------------------------------


@pytest.fixture(params=[16, 8])
def packed(tmp_path, monkeypatch, request) -> QGPO:
    """A tiny QGPO, and the same packed as the package's `walk/tiny`, in as many bits."""
    config = replace(WHITENED, energy_hidden=(64, 64), trust_power=2.0)
    agent = QGPO(config, seed=3).learn(make_dataset())
    agent.save(tmp_path / "a.zip")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    critics = ("critic", "critic_target")
    content = pretrained.pack(
        read_header(tmp_path / "a.zip"),
        agent.networks.state_dict(),
        [name for name in critics if name in agent.networks],
        {"behavior": "behavior_ema"},
        request.param,
    )
    (tmp_path / "QGPO-walk-tiny.safetensors").write_bytes(content)
    return agent


def test_a_packed_agent_is_the_agent_rounded(packed, request):
    bits = request.node.callspec.params["packed"]
    read = QGPO.pretrained("walk/tiny", device="cpu")
    assert read.is_trained
    assert read.dataset_fingerprint == packed.dataset_fingerprint
    assert read.num_timesteps == packed.num_timesteps
    stored = packed.networks.state_dict()
    for name, tensor in read.networks.state_dict().items():
        network = name.partition(".")[0]
        if network.startswith("critic"):
            assert not tensor.any()
            continue
        ours = stored[name.replace("behavior.", "behavior_ema.", 1)]
        if ours.numel() < pretrained.LARGE:
            assert torch.equal(tensor, ours), name
        elif bits == 16:
            assert torch.equal(tensor, ours.half().float()), name
        else:
            largest = ours.abs().amax(dim=-1, keepdim=True)
            assert ((tensor - ours).abs() <= 0.005 * largest).all(), name
    observations = make_dataset().observations
    one, other = (a.predict(observations, deterministic=True)[0] for a in (packed, read))
    assert 0.0 < np.abs(one - other).max() < (0.01 if bits == 16 else 0.1)


def test_a_packed_agent_is_not_taken_for_a_whole_one(packed, tmp_path):
    read = QGPO.pretrained("walk/tiny", device="cpu")
    with pytest.raises(RuntimeError, match="cannot be saved: it came with the package"):
        read.save(tmp_path / "b.zip")
    with pytest.raises(RuntimeError, match="cannot be adopted from"):
        QGPO(read.config, seed=3).adopt(read, make_dataset())
    again = read.learn(make_dataset())
    assert same_parameters(again.networks.state_dict(), packed.networks.state_dict())
    again.save(tmp_path / "b.zip")


def test_other_names_and_files_are_refused(packed, tmp_path):
    with pytest.raises(ValueError, match=r"name='hopper/none', expected one of \['walk/tiny'\]"):
        QGPO.pretrained("hopper/none")
    with pytest.raises(ValueError, match="the package holds no trained BC agents"):
        BC.pretrained("walk/tiny")
    path = tmp_path / "QGPO-walk-tiny.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="is no trained agent of qgpo"):
        QGPO.pretrained("walk/tiny")


def test_numbers_that_half_precision_lacks_are_refused():
    header = {"format_version": 3}
    with pytest.raises(ValueError, match=r"w has values up to 1e\+06, which float16 does not hold"):
        pretrained.pack(header, {"w": torch.full((pretrained.LARGE,), 1e6)})
    with pytest.raises(ValueError, match="bits=4, expected 8 or 16"):
        pretrained.pack(header, {}, bits=4)


def test_the_package_s_own_agents_act():
    names = pretrained.choices("QGPO")
    for name in names:
        agent = QGPO.pretrained(name, device="cpu")
        assert agent.observation_space is not None
        action, _ = agent.predict(np.zeros(agent.observation_space.shape), deterministic=True)
        assert np.isfinite(action).all()
