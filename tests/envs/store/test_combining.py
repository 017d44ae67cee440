from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from factory import numbered_episodes, write_buffers
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari.dataset.minari_storage import MinariStorage

from qgpo import OfflineDataset, load_dataset
from qgpo.envs.store.checking import check_dataset
from qgpo.envs.store.combining import combine
from qgpo.envs.store.local import folder_of, local_ids, open_local
from qgpo.envs.store.metadata import NO_REWARDS
from qgpo.envs.store.scratch import LOCKS


def write(dataset_id, lengths=(2, 3), **more):
    terminated = [i % 2 == 0 for i in range(len(lengths))]
    return write_buffers(numbered_episodes(lengths, terminated), dataset_id, **more)


@pytest.fixture
def two():
    write("test/medium-v0", (2, 3))
    write("test/expert-v0", (1, 4, 2))
    return ("test/medium-v0", "test/expert-v0")


def metadata(dataset_id):
    return json.loads((folder_of(dataset_id) / "data" / "metadata.json").read_text())


def test_all_episodes_in_their_order(two):
    combined = combine(two, "test/both-v0", progress_bar=False)
    assert (combined.total_episodes, combined.total_steps) == (5, 12)
    loaded = load_dataset("test/both-v0", download=False)
    in_memory = OfflineDataset.concatenate([load_dataset(name) for name in two])
    assert loaded.fingerprint == in_memory.fingerprint
    assert check_dataset("test/both-v0").ok


def test_provenance_is_kept(two):
    combine(two, "test/both-v0", progress_bar=False)
    about = metadata("test/both-v0")
    assert about["combined_datasets"] == list(two)
    assert about["algorithm_name"] == "by hand"
    assert about["author"] == ["tests"]
    assert about["description"] == (
        "All episodes of test/medium-v0 (2 episodes), then test/expert-v0 (3 episodes)."
    )
    medium, expert = about["sources"]
    assert (medium["first_episode"], medium["episodes"], medium["steps"]) == (0, 2, 5)
    assert (expert["first_episode"], expert["episodes"], expert["steps"]) == (2, 3, 7)
    content = (folder_of(two[0]) / "data" / "main_data.hdf5").read_bytes()
    assert medium["sha256"]["main_data.hdf5"] == hashlib.sha256(content).hexdigest()


def spec(**more):
    return EnvSpec("Pendulum-v1", "gymnasium.envs.classic_control.pendulum:PendulumEnv", **more)


@pytest.mark.parametrize(("second", "kept"), [(100.0, 100.0), (90.0, None)])
def test_what_the_sources_agree_on_is_kept(second, kept):
    box = {"observation_space": spaces.Box(-np.inf, np.inf, (2,), np.float64)}
    for name, maximum in (("a", 100.0), ("b", second)):
        one = write(f"test/{name}-v0", env=spec(max_episode_steps=200), **box)
        one.storage.update_metadata({"ref_min_score": 0.0, "ref_max_score": maximum})
    combine(("test/a-v0", "test/b-v0"), "test/both-v0", progress_bar=False)
    about = metadata("test/both-v0")
    assert about.get("ref_max_score") == kept
    assert about["ref_min_score"] == 0.0
    assert json.loads(about["env_spec"])["id"] == "Pendulum-v1"


def test_other_environments_are_refused():
    box = {"observation_space": spaces.Box(-np.inf, np.inf, (2,), np.float64)}
    write("test/a-v0", env=spec(), **box)
    write("test/b-v0", env=replace(spec(), kwargs={"g": 5.0}), **box)
    with pytest.raises(ValueError, match="their environments differ"):
        combine(("test/a-v0", "test/b-v0"), "test/both-v0")


def test_other_spaces_are_refused(two):
    write("test/wide-v0", action_space=spaces.Box(-2.0, 2.0, (1,), np.float32))
    with pytest.raises(ValueError, match=r"'test/wide-v0' cannot be combined: action_space"):
        combine((two[0], "test/wide-v0"), "test/both-v0")


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"observation_names": ["a", "b"]}, {"observation_names": ["b", "a"]}, "observation_names"),
        ({"action_names": ["a"]}, {"action_names": ["b"]}, "action_names"),
        ({}, {NO_REWARDS: True}, f"{NO_REWARDS} False and True"),
        ({NO_REWARDS: False}, {NO_REWARDS: True}, f"{NO_REWARDS} False and True"),
    ],
)
def test_other_columns_and_unknown_rewards_are_refused(two, ours, theirs, message):
    for name, about in zip(two, (ours, theirs), strict=True):
        open_local(name).storage.update_metadata(about)
    with pytest.raises(ValueError, match=f"cannot be combined: {message}"):
        combine(two, "test/both-v0", progress_bar=False)


def test_the_columns_of_both_are_kept(two):
    about = {"observation_names": ["a"], "action_names": ["b"], NO_REWARDS: True}
    for name in two:
        open_local(name).storage.update_metadata(about)
    combine(two, "test/both-v0", progress_bar=False)
    assert {name: metadata("test/both-v0")[name] for name in about} == about


def test_a_folder_that_was_copied_is_named(two):
    shutil.copytree(folder_of(two[0]), folder_of("test/copied-v0"))
    with pytest.raises(ValueError, match=r"'test/copied-v0': its folder was copied .* 'test/med"):
        load_dataset("test/copied-v0")


def test_taken_and_malformed_ids_and_too_few_are_refused(two):
    with pytest.raises(ValueError, match="already exists"):
        combine(two, "test/medium-v0")
    with pytest.raises(ValueError, match="malformed"):
        combine(two, "test/both")
    with pytest.raises(ValueError, match="at least two"):
        combine(two[:1], "test/both-v0")
    with pytest.raises(ValueError, match="'test/none-v0' is not in"):
        combine(("test/none-v0", two[0]), "test/both-v0", download=False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_combination_leaves_nothing(two, monkeypatch, error):
    update = MinariStorage.update_metadata

    def interrupted(storage, data):
        update(storage, data)
        if data.get("total_episodes") == 5:
            raise error("stop")

    monkeypatch.setattr(MinariStorage, "update_metadata", interrupted)
    with pytest.raises(error):
        combine(two, "test/both-v0", progress_bar=False)
    assert local_ids() == sorted(two)
    assert not [
        path
        for path in folder_of("").iterdir()
        if path.name.startswith(".qgpo-") and path.name != LOCKS
    ]
    monkeypatch.undo()


def test_a_full_disk_is_noticed_before_anything_is_written(two, monkeypatch):
    free = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    with pytest.raises(OSError, match="MB free: free some space"):
        combine(two, "test/both-v0")
    assert local_ids() == sorted(two)
