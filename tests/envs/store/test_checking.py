from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from factory import numbered_episodes, write_buffers
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from robotics_data import needs_robotics, write_pointmaze

from qgpo import load_dataset
from qgpo.envs.store.bundled import RECIPES, Recipe
from qgpo.envs.store.checking import check_dataset
from qgpo.envs.store.local import folder_of

ID = "test/numbered-v0"


def finding(report, what):
    return next(f for f in report.findings if f.what == what)


def buffers(lengths=(2, 3), terminated=(True, False)):
    return numbered_episodes(lengths, terminated)


def test_a_good_dataset_has_no_bad_finding():
    write_buffers(buffers())
    report = check_dataset(ID)
    assert report.ok
    assert [f.what for f in report.findings] == [
        "files",
        "episodes",
        "values",
        "ends",
        "environment",
        "scores",
        "family",
    ]
    assert finding(report, "episodes").text == "all 2 are there, 5 steps"
    assert finding(report, "ends").text == "1 terminated, 1 truncated"
    assert [finding(report, f).ok for f in ("files", "environment", "scores")] == [None] * 3


@pytest.mark.parametrize("same", [True, False])
def test_other_data_under_a_bundled_id_are_a_finding(same, monkeypatch):
    write_buffers(buffers(), "qgpo/numbered-v0")
    fingerprint = load_dataset("qgpo/numbered-v0").fingerprint if same else "0" * 64
    recipe = Recipe("Pendulum-v1", (), fingerprint=fingerprint)
    monkeypatch.setitem(RECIPES, "qgpo/numbered-v0", recipe)
    report = check_dataset("qgpo/numbered-v0")
    assert finding(report, "published").ok is same
    assert report.ok is same


def test_without_version_the_newest_is_checked():
    write_buffers(buffers(), "test/numbered-v3")
    assert check_dataset("test/numbered").id == "test/numbered-v3"


def test_an_unknown_dataset_is_an_error_not_a_finding():
    with pytest.raises(ValueError, match="is not in"):
        check_dataset("test/none-v0")


def test_a_damaged_folder_is_a_finding():
    (folder_of(ID) / "data").mkdir(parents=True)
    report = check_dataset(ID)
    assert not report.ok
    assert "incomplete or damaged" in finding(report, "episodes").text


def test_a_bad_value_is_a_finding():
    bad = buffers()
    bad[1].actions[2] = 1.5
    write_buffers(bad)
    report = check_dataset(ID)
    assert not report.ok
    assert "1 actions lie outside the action space" in finding(report, "values").text


def test_flags_inside_an_episode_and_missing_ones_are_found():
    odd = buffers((3, 2), (False, True))
    odd[0].truncations[:] = [True, False, False]
    write_buffers(odd)
    ends = finding(check_dataset(ID), "ends")
    assert ends.ok is False
    assert ends.text == (
        "1 terminated, 0 truncated, 1 with neither flag (their bootstrap is kept); 1 steps are "
        "flagged as an end and followed by others"
    )


def with_environment():
    return write_buffers(
        buffers(),
        env=EnvSpec("Pendulum-v1", "gymnasium.envs.classic_control:PendulumEnv"),
        observation_space=spaces.Box(-np.inf, np.inf, (2,), np.float64),
        action_space=spaces.Box(-1.0, 1.0, (1,), np.float32),
    )


def test_an_environment_of_other_spaces_is_found():
    with_environment()
    environment = finding(check_dataset(ID), "environment")
    assert environment.ok is False
    assert environment.text == (
        "Pendulum-v1 has observations (3,) and actions (1,), the data (2,) and (1,)"
    )


def test_an_environment_of_other_bounds_is_found():
    half = spaces.Box(-1.0, 1.0, (1,), np.float32)
    observed = spaces.Box(-8.0, 8.0, (3,), np.float32)
    episodes = [
        replace(episode, observations=np.zeros((len(episode.observations), 3), np.float32))
        for episode in buffers()
    ]
    env = EnvSpec("Pendulum-v1", "gymnasium.envs.classic_control:PendulumEnv")
    write_buffers(episodes, env=env, observation_space=observed, action_space=half)
    environment = finding(check_dataset(ID), "environment")
    assert environment.ok is False
    assert "actions (1,): Box(-2.0, 2.0, (1,), float32), the data Box(-1.0" in environment.text


def test_observations_in_parts_are_seen_as_agents_see_them():
    needs_robotics()
    write_pointmaze("test/pointmaze/umaze-v0")
    environment = finding(check_dataset("test/pointmaze/umaze-v0"), "environment")
    assert environment.ok is True
    assert environment.text.endswith("has observations (6,) and actions (2,)")


def test_an_environment_that_cannot_be_made_is_found():
    with_environment()
    metadata = folder_of(ID) / "data" / "metadata.json"
    text = metadata.read_text().replace("Pendulum-v1", "Nowhere-v1")
    metadata.write_text(text.replace("classic_control", "no_such_control"))
    environment = finding(check_dataset(ID), "environment")
    assert environment.ok is False
    assert "'Nowhere-v1' cannot be made" in environment.text


def test_scores_are_those_of_the_mean_return():
    dataset = write_buffers(buffers())  # returns 0.5 + 1.5 and 100.5 + 101.5 + 102.5
    dataset.storage.update_metadata({"ref_min_score": -2.0, "ref_max_score": 610.5})
    assert finding(check_dataset(ID), "scores").text == (
        "0 is a return of -2, 100 one of 610.5 (dataset metadata); the data's mean is 25.3"
    )
