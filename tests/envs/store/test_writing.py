"""Two writers of one dataset, writers that were killed, and episodes that do not fit."""

from __future__ import annotations

import threading
import warnings

import gymnasium as gym
import numpy as np
import pytest
from factory import numbered_episodes, write_buffers
from filelock import FileLock
from gymnasium.envs.classic_control import PendulumEnv
from minari.data_collector import EpisodeBuffer

from qgpo import OfflineDataset, load_dataset
from qgpo.envs import write_minari
from qgpo.envs.store.local import datasets_root, folder_of, local_ids
from qgpo.envs.store.scratch import LOCKS
from qgpo.envs.store.writing import add_dataset, new_dataset, sole_writer
from qgpo.envs.tasks.reference import ReferenceScores

ID = "test/a-v0"


def pendulum(value=0.0, length=2, **changes):
    parts = {
        "observations": np.full((length + 1, 3), value),
        "actions": np.zeros((length, 1)),
        "rewards": [value] * length,
        "terminations": [False] * length,
        "truncations": [False] * (length - 1) + [True],
    }
    return EpisodeBuffer(**{**parts, **changes})


def write(value):
    write_minari(ID, [pendulum(value)], "Pendulum-v1", "none", str(value))


def test_the_second_of_two_writers_waits_and_does_not_touch_what_the_first_finished(
    monkeypatch, capfd
):
    waiting, acquire, errors = threading.Event(), FileLock.acquire, []

    def report(self, *args, **kwargs):
        if LOCKS in str(self.lock_file) and kwargs.get("blocking", True):
            waiting.set()
        return acquire(self, *args, **kwargs)

    def second():
        try:
            write(2.0)
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=second)
    with sole_writer(ID):
        monkeypatch.setattr(FileLock, "acquire", report)
        thread.start()
        assert waiting.wait(60)
        write(1.0)  # who has the lock may write
    thread.join(60)
    assert load_dataset(ID, download=False).rewards.tolist() == [1.0, 1.0]
    assert "already exists" in errors[0]
    assert f"another process is writing dataset '{ID}': waiting" in capfd.readouterr().err


def test_a_dataset_that_appears_without_the_lock_is_kept_and_said():
    root = folder_of("")

    def both():
        with new_dataset(ID):
            write_buffers(numbered_episodes((2,), (True,)), ID)
            with datasets_root(root):  # Minari itself, in another process
                write_buffers(numbered_episodes((3,), (True,)), ID)

    with pytest.raises(ValueError, match=r"'test/a-v0' was created in .* while it was written"):
        both()
    assert len(load_dataset(ID, download=False)) == 3


def test_what_a_killed_process_was_about_to_replace_comes_back():
    write(1.0)
    folder_of(ID).rename(folder_of(ID).with_name(".qgpo-previous-a-v0"))
    assert local_ids() == []
    assert load_dataset(ID, download=False).rewards.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("is_downloaded", [True, False])
def test_what_was_replaced_is_removed_only_where_it_was_downloaded(tmp_path, is_downloaded):
    write(1.0)
    if is_downloaded:
        (folder_of(ID) / "download.json").write_text("{}")
    made = folder_of("") / "made"
    made.mkdir()
    with sole_writer(ID):
        kept = add_dataset(made, ID, replace=True)
    assert folder_of(ID).exists()
    assert not made.exists()
    assert (kept is None) is is_downloaded
    if kept is not None:
        assert (kept / "data" / "metadata.json").exists()
    left = [path.name for path in folder_of(ID).parent.glob(".qgpo-*")]
    assert len(left) == (0 if is_downloaded else 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.zeros((3, 12))}, r"observations has shape \(3, 12\), expected \(3, 3"),
        ({"observations": np.zeros((3, 4, 3))}, r"observations has shape \(3, 4, 3\)"),
        ({"observations": np.zeros((2, 3))}, r"observations has shape \(2, 3\), expected \(3, 3\)"),
        ({"observations": {"a": np.zeros((3, 3))}}, "observations are not numbers"),
        ({"actions": np.zeros((2, 2))}, r"actions has shape \(2, 2\), expected \(2, 1\)"),
        ({"rewards": [np.zeros(1)] * 2}, r"rewards has shape \(2, 1\), expected \(2,\)"),
        ({"terminations": ["False", "True"]}, "terminations are not numbers"),
        ({"truncations": [0, 3]}, "truncations has value"),
    ],
)
def test_episodes_that_do_not_fit_their_environment_are_refused_before_they_are_written(
    changes, message
):
    with pytest.raises(ValueError, match=f"'{ID}', episode 1: {message}"):
        write_minari(ID, [pendulum(), pendulum(**changes)], "Pendulum-v1", "none", "none")
    assert local_ids() == []


def test_no_episodes_are_refused():
    with pytest.raises(ValueError, match="no episodes to write"):
        write_minari(ID, [], "Pendulum-v1", "none", "none")


def test_parts_of_dict_observations_are_checked_by_name():
    space = gym.spaces.Dict({"a": gym.spaces.Box(-1, 1, (2,)), "b": gym.spaces.Box(-1, 1, (1,))})
    env = gym.make("Pendulum-v1")
    env.observation_space = space
    from qgpo.envs.store.writing import check_episodes

    good = {"a": np.zeros((3, 2)), "b": np.zeros((3, 1))}
    check_episodes(ID, [pendulum(observations=good)], env)
    for bad, name in (({**good, "b": np.zeros((3, 2))}, "observations/b"), ({}, "other parts")):
        with pytest.raises(ValueError, match=name), warnings.catch_warnings():
            check_episodes(ID, [pendulum(observations=bad)], env)


SWING = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)


def own(action_space=SWING, **more):
    """Two episodes: one of three steps that is terminated, one of two that is cut."""
    rng = np.random.default_rng(0)
    return OfflineDataset.from_arrays(
        rng.uniform(-1, 1, size=(7, 3)),
        rng.uniform(-1, 1, size=(5, 1)),
        rng.normal(size=5),
        [False, False, True, False, False],
        action_space=action_space,
        **more,
    )


@pytest.mark.parametrize("env_id", [None, "Pendulum-v1"])
def test_a_dataset_is_stored_as_it_is(env_id):
    dataset = own(reference=ReferenceScores(-5.0, 5.0, "by hand"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_minari(ID, dataset, env_id)
    stored = load_dataset(ID, download=False)
    assert stored.fingerprint == dataset.fingerprint
    assert stored.action_space == SWING
    assert stored.n_episodes == 2
    assert (stored.env_spec.id if stored.env_spec else None) == env_id
    assert (stored.reference.minimum, stored.reference.maximum) == (-5.0, 5.0)


def test_a_dataset_names_its_environment_itself():
    write_minari(ID, own(env_spec=gym.spec("Pendulum-v1")))
    assert load_dataset(ID, download=False).env_spec.id == "Pendulum-v1"


@pytest.mark.parametrize(
    ("episodes", "env_id", "message"),
    [
        ([pendulum()], None, "env_id=None, expected the environment of the episodes"),
        (own(None), "Pendulum-v1", r"its actions are of Box\(-1.0.*Pendulum-v1 of Box\(-2.0"),
        (own(), "MountainCarContinuous-v0", "its actions are of"),
    ],
)
def test_what_does_not_fit_is_refused(episodes, env_id, message):
    with pytest.raises(ValueError, match=message):
        write_minari(ID, episodes, env_id)
    assert local_ids() == []


def test_vectors_of_parts_are_refused():
    import dataclasses

    from qgpo.envs.tasks.observations import ObservationAdapter

    adapter = object.__new__(ObservationAdapter)
    with pytest.raises(ValueError, match="vectors made of parts"):
        write_minari(ID, dataclasses.replace(own(), adapter=adapter), "Pendulum-v1")


def test_reference_returns_of_the_family_keep_their_source():
    write_minari(ID, own(), "Pendulum-v1")
    assert "SAC" in load_dataset(ID, download=False).reference.source


def test_several_steps_at_once_are_not_stored_as_one():
    write(0.5)
    with pytest.raises(ValueError, match="loaded with history 2, chunk 1; load them with history"):
        write_minari("test/b-v0", load_dataset(ID, history=2))


def test_an_environment_registered_by_its_class_is_refused_before_anything_is_written():
    gym.register("ByClass-v0", entry_point=PendulumEnv, max_episode_steps=3)
    try:
        message = 'cannot hold how its environment is made .*entry_point="module:Class"'
        with pytest.raises(ValueError, match=message):
            write_minari(ID, [pendulum(0.0)], "ByClass-v0", "none", "swings")
    finally:
        del gym.registry["ByClass-v0"]
    assert not folder_of(ID).exists()
