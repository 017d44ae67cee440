from __future__ import annotations

import json

import numpy as np
import pytest
from factory import numbered_episodes, write_buffers
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari.serialization import serialize_space

from qgpo.envs.store import bundled
from qgpo.envs.store.catalogue import catalogue, describe, like_d4rl
from qgpo.envs.store.local import folder_of

POINT_MAZE = "gymnasium_robotics.envs.maze.point_maze:PointMazeEnv"
MISSING = "package gymnasium_robotics, for its environment (pip install gymnasium-robotics)"


def write(dataset_id, **more):
    return write_buffers(numbered_episodes((2, 3), (True, False)), dataset_id, **more)


def metadata(**changes):
    box = spaces.Box(-1.0, 1.0, (2,), np.float32)
    about = {
        "total_steps": 5,
        "total_episodes": 2,
        "dataset_size": 1.5,
        "minari_version": "0.5.4",
        "algorithm_name": "SAC",
        "author": ["B", "A"],
        "observation_space": serialize_space(box),
        "action_space": serialize_space(box),
        "env_spec": EnvSpec(
            "Hopper-v5", "gymnasium.envs.mujoco.hopper_v5:HopperEnv", max_episode_steps=1000
        ).to_json(),
    }
    return {**about, **changes}


def test_local_datasets_are_described():
    write("test/b-v1")
    write("test/a-v0")
    entries = catalogue("local")
    assert [entry.id for entry in entries] == ["test/a-v0", "test/b-v1"]
    entry = entries[0]
    assert (entry.steps, entry.episodes, entry.behavior) == (5, 2, "by hand")
    assert (entry.author, entry.missing, entry.reference) == ("tests", (), None)
    assert [entry.id for entry in catalogue("local", "test/b")] == ["test/b-v1"]


def test_damaged_local_datasets_are_listed_as_such():
    write("test/a-v0")
    (folder_of("test/half-v0") / "data").mkdir(parents=True)
    write("test/wrong-v0")
    folder_of("test/wrong-v0").rename(folder_of("test/moved-v0"))
    (folder_of("test/.hidden-v0") / "data").mkdir(parents=True)
    half, moved = catalogue("local")[1:]
    assert (half.id, half.missing[0].split(":")[0]) == ("test/half-v0", "damaged")
    assert moved.missing == ("damaged: its metadata say 'test/wrong-v0'",)


def test_bundled_datasets_say_whether_they_are_made():
    entries = catalogue("bundled", "qgpo/hopper/")
    assert [entry.id for entry in entries] == [i for i in sorted(bundled.RECIPES) if "hopper" in i]
    assert entries[0].notes == ("made on first use, half a minute",)
    folder_of(entries[0].id).mkdir(parents=True)
    assert catalogue("bundled", "qgpo/hopper/")[0].notes == ()
    assert entries[0].reference.maximum == pytest.approx(3234.3)


def test_metadata_become_an_entry():
    entry = describe("mujoco/hopper/medium-v0", "remote", metadata())
    assert (entry.author, entry.megabytes, entry.env_id) == ("A, B", 1.5, "Hopper-v5")
    assert entry.reference.minimum == pytest.approx(-20.272305)
    assert (entry.d4rl, entry.comparable, entry.missing) == ("hopper-medium", "no", ())


def test_the_environment_to_play_in_counts():
    played = EnvSpec("Walker2d-v5", "gymnasium.envs.mujoco.walker2d_v5:Walker2dEnv").to_json()
    assert describe("a/b-v0", "remote", metadata(eval_env_spec=played)).env_id == "Walker2d-v5"


@pytest.mark.parametrize(
    ("requirements", "named"),
    [
        (["mujoco>=3", "no-such-package>=1.2"], "package no-such-package>=1.2, for"),
        ([], "package no_such_package, for"),
    ],
)
def test_a_missing_package_is_named_as_it_is_installed(requirements, named):
    spec = EnvSpec("Nowhere-v1", "no_such_package.envs.nowhere:NowhereEnv").to_json()
    about = metadata(env_spec=spec, requirements=requirements)
    assert describe("a/b-v0", "remote", about).missing[0].startswith(named)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"minari_version": "99.0"}, "made with Minari 99.0, which"),
        ({"action_space": serialize_space(spaces.Discrete(3))}, "action space Discrete(3)"),
        ({"observation_space": '{"type": '}, "JSONDecodeError"),
    ],
)
def test_what_cannot_be_read_is_said(changes, expected):
    (missing,) = describe("a/b-v0", "remote", metadata(**changes)).missing
    assert missing.startswith(expected)


def test_other_versions_than_recorded_with_are_noted():
    about = metadata(requirements=["numpy==1.2.3", "torch>=1", "no-such-package", "not ! valid"])
    (note,) = describe("a/b-v0", "remote", about).notes
    assert note == f"recorded with numpy==1.2.3, {np.__version__} is installed"


@pytest.mark.parametrize(
    ("dataset_id", "expected"),
    [
        ("mujoco/walker2d/expert-v3", ("walker2d-expert", "no")),
        ("mujoco/hopper/simple-v0", (None, "no")),
        ("D4RL/pen/human-v2", ("pen-human", "not shown")),
        ("D4RL/antmaze/large-diverse-v1", ("antmaze-large-diverse", "not shown")),
        ("D4RL/antmaze/large-v1", (None, "no")),
        ("D4RL/kitchen/mixed-v2", ("kitchen-mixed", "not shown")),
        ("D4RL/pointmaze/umaze-dense-v2", ("maze2d-umaze-dense", "not shown")),
        ("zoo/hopper/medium-v0", (None, "no")),
        ("qgpo/hopper/medium-v0", (None, "no")),
    ],
)
def test_which_d4rl_dataset_is_alike(dataset_id, expected):
    assert like_d4rl(dataset_id) == expected


def test_unknown_places_list_the_choices():
    with pytest.raises(ValueError, match=r"where='cloud', expected one of \['local', 'bundled'"):
        catalogue("cloud")


def test_metadata_of_a_written_dataset_are_read_as_they_are_on_disk():
    write("test/a-v0")
    raw = json.loads((folder_of("test/a-v0") / "data" / "metadata.json").read_text())
    assert describe("test/a-v0", "local", raw) == catalogue("local")[0]


@pytest.mark.parametrize("installed", [True, False])
def test_families_name_packages_and_vectors(installed, monkeypatch):
    """Dict observations are no obstacle; the package that registers the environment is one."""
    found = object() if installed else None
    monkeypatch.setattr("importlib.util.find_spec", lambda module: found)
    box = spaces.Box(-np.inf, np.inf, (4,), np.float64)
    goal = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    parts = {"observation": box, "achieved_goal": goal, "desired_goal": goal}
    spec = EnvSpec("PointMaze_UMaze-v3", POINT_MAZE, max_episode_steps=300)
    about = metadata(env_spec=spec.to_json(), observation_space=serialize_space(spaces.Dict(parts)))
    entry = describe("D4RL/pointmaze/umaze-v2", "remote", about)
    assert entry.reference is not None
    assert entry.reference.maximum == 1.0
    assert entry.missing == (() if installed else (MISSING,))
