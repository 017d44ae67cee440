from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from factory import make_dataset, numbered_episodes, write_buffers
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from qgpo import QGPO, OfflineDataset, load_dataset
from qgpo.agents.core.batches import Batches, tuned_rewards
from qgpo.envs.data.dataset import REWARD_TUNINGS
from qgpo.envs.store import bundled

LENGTHS, TERMINATED = (3, 1, 4, 1, 2), (True, False, False, True, False)


@pytest.fixture
def numbered():
    return load_dataset(write_buffers(numbered_episodes(LENGTHS, TERMINATED)))


def test_every_transition_is_aligned(numbered):
    expected = [(e, t) for e, length in enumerate(LENGTHS) for t in range(length)]
    assert len(numbered) == len(expected) == 11
    for i, (e, t) in enumerate(expected):
        place = 100.0 * e + t
        assert numbered.observations[i].tolist() == [place, -place]
        assert numbered.next_observations[i].tolist() == [place + 1, -place - 1]
        assert numbered.actions[i, 0] == np.float32(place / 1000.0)
        assert numbered.rewards[i] == np.float32(place + 0.5)


def test_episodes_and_their_ends(numbered):
    assert numbered.n_episodes == 5
    assert numbered.episode_starts.tolist() == [0, 3, 4, 8, 9]
    assert np.flatnonzero(numbered.last_steps).tolist() == [2, 3, 7, 8, 10]
    assert np.flatnonzero(numbered.terminations).tolist() == [2, 8]
    assert np.flatnonzero(numbered.truncations).tolist() == [3, 7, 10]
    assert numbered.state_index.tolist() == [0, 1, 2, 4, 6, 7, 8, 9, 11, 13, 14]
    assert len(numbered.states) == 16


def test_episode_returns_by_hand(numbered):
    expected = [sum(100 * e + t + 0.5 for t in range(length)) for e, length in enumerate(LENGTHS)]
    assert numbered.episode_returns.tolist() == pytest.approx(expected)


def test_arrays_are_contiguous_single_precision(numbered):
    for array in (numbered.states, numbered.actions, numbered.rewards):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous


def test_id_and_opened_dataset_give_the_same(numbered):
    by_id = load_dataset("test/numbered-v0", download=False)
    assert by_id.fingerprint == numbered.fingerprint
    assert by_id.id == numbered.id == "test/numbered-v0"


@pytest.mark.parametrize("field", ["observations", "actions", "rewards"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_names_episode_and_step(field, value):
    buffers = numbered_episodes(LENGTHS, TERMINATED)
    array = np.array(getattr(buffers[2], field))
    array[1] = value
    buffers[2] = replace(buffers[2], **{field: array})
    wide = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    dataset = write_buffers(buffers, observation_space=wide)
    name = "states" if field == "observations" else field
    with pytest.raises(ValueError, match=f"{name} has NaN or infinite.*episode 2, step 1;"):
        load_dataset(dataset)


def test_not_finite_final_observation_is_found():
    buffers = numbered_episodes(LENGTHS, TERMINATED)
    buffers[1].observations[-1] = np.nan
    dataset = write_buffers(buffers)
    with pytest.raises(ValueError, match="episode 1, step 1;"):
        load_dataset(dataset)


def test_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="empty"):
        make_dataset(
            lengths=(),
            states=np.zeros((0, 3), np.float32),
            terminations=np.zeros(0, np.bool_),
            truncations=np.zeros(0, np.bool_),
            episode_starts=np.zeros(0, np.int64),
        )


def test_discrete_actions_are_refused():
    buffers = numbered_episodes((2,), (True,))
    buffers[0] = replace(buffers[0], actions=np.array([0, 1]))
    dataset = write_buffers(buffers, action_space=spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"Discrete\(2\).*continuous actions"):
        load_dataset(dataset)


def test_infinite_action_bounds_are_refused():
    unbounded = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    dataset = write_buffers(numbered_episodes((2,), (True,)), action_space=unbounded)
    with pytest.raises(ValueError, match="infinite bounds"):
        load_dataset(dataset)


def test_actions_outside_the_space_are_refused():
    buffers = numbered_episodes((2, 3), (True, True))
    buffers[1].actions[2] = 1.5
    dataset = write_buffers(buffers)
    with pytest.raises(ValueError, match=r"1 actions lie outside.*transition 4"):
        load_dataset(dataset)


def test_an_observation_too_few_is_refused():
    buffers = numbered_episodes((2, 3), (True, True))
    buffers[1] = replace(buffers[1], observations=buffers[1].observations[:-1])
    dataset = write_buffers(buffers)
    with pytest.raises(ValueError, match=r"episode 1: observations has shape \(3, 2\).*\(4, 2\)"):
        load_dataset(dataset)


@pytest.mark.parametrize(
    ("field", "array"),
    [
        ("states", np.zeros((19, 3), np.float32)),
        ("states", np.zeros((20, 2), np.float32)),
        ("actions", np.zeros((16, 2), np.float32)),
        ("terminations", np.zeros(15, np.bool_)),
        ("truncations", np.zeros((16, 1), np.bool_)),
        ("episode_starts", np.array([0, 5, 5, 10])),
        ("episode_starts", np.array([1, 5, 6, 10])),
        ("episode_starts", np.array([0, 5, 6, 16])),
    ],
)
def test_wrong_shapes_are_refused(field, array):
    with pytest.raises(ValueError, match=field):
        make_dataset(**{field: array})


@pytest.mark.parametrize(
    ("dataset_id", "near", "fetches"),
    [
        ("test/her-v0", "test/here-v3", True),
        ("qgpo/halfcheeta/mixed-v0", "qgpo/halfcheetah/mixed-v0", False),
        ("hopper-medium-v2", "qgpo/hopper/medium-v0", False),
        ("test/a b/here-v3", "test/here-v3", False),
    ],
)
def test_unknown_id_lists_the_nearest_ids(dataset_id, near, fetches):
    write_buffers(numbered_episodes((2,), (True,)), dataset_id="test/here-v3")
    with pytest.raises(ValueError, match="Nearest ids here: ") as caught:
        load_dataset(dataset_id, download=False)
    listed = str(caught.value).split("Nearest ids here: ")[1].split(". All: ")[0].split(", ")
    assert near in listed
    assert len(listed) == 3
    assert set(listed) <= {"test/here-v3", *bundled.RECIPES}
    assert ("To fetch it" in str(caught.value)) is fetches


def test_a_file_of_recorded_data_is_no_id(tmp_path):
    (tmp_path / "log").write_text("1, 2")
    for name in ("log.npz", str(tmp_path / "LOG.CSV"), str(tmp_path / "log")):
        with pytest.raises(ValueError, match=r"is a file, .*from_arrays.* import") as caught:
            load_dataset(name)
        assert "malformed" not in str(caught.value)


@pytest.mark.parametrize("dataset_id", ["a b/c-v0", "", "mujoco/hopper/medium-v0/"])
def test_malformed_id_shows_the_form(dataset_id):
    with pytest.raises(ValueError, match=r"malformed.*namespace/name-vN"):
        load_dataset(dataset_id)


def test_without_version_the_newest_local_one_is_read():
    for version, length in ((2, 3), (10, 5)):
        write_buffers(numbered_episodes((length,), (True,)), f"test/here-v{version}")
    write_buffers(numbered_episodes((1,), (True,)), "test/here-other-v11")
    dataset = load_dataset("test/here", download=False)
    assert (dataset.id, len(dataset)) == ("test/here-v10", 5)


@pytest.mark.parametrize("dataset_id", ["hopper", "mujoco/hopper/medium"])
def test_no_version_at_all_shows_the_form(dataset_id):
    with pytest.raises(ValueError, match=r"no version of.*namespace/name-vN"):
        load_dataset(dataset_id, download=False)


def test_unknown_bundled_id_lists_the_bundled_ones():
    with pytest.raises(ValueError, match="qgpo/halfcheetah/mixed-v0"):
        load_dataset("qgpo/halfcheetah/expert-v0")


def test_a_path_is_no_dataset():
    with pytest.raises(TypeError, match="PosixPath"):
        load_dataset(Path("somewhere"))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("none", [1.0, 2.0, 3.0]),
        ("antmaze", [0.0, 1.0, 2.0]),
        ("locomotion", [500.0, 1000.0, 1500.0]),  # episode returns 3 and 3 + 2: spread 2
    ],
)
def test_reward_tunings_by_hand(rule, expected):
    rewards = np.array([1, 2, 3, 2], np.float32)
    dataset = make_dataset(lengths=(2, 2), rewards=rewards)
    assert dataset.tuned_rewards(rule)[:3].tolist() == pytest.approx(expected)
    assert dataset.rewards.tolist() == [1, 2, 3, 2]


def test_locomotion_tuning_of_equal_returns_changes_nothing():
    dataset = make_dataset(lengths=(1, 1), rewards=np.ones(2, np.float32))
    assert dataset.tuned_rewards("locomotion").tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("lengths", "rewards"), [((1,) * 4, [1.0] * 4), ((1,), [3.0])])
def test_rewards_whose_returns_do_not_differ_stay_as_they_are(lengths, rewards):
    dataset = make_dataset(lengths, rewards=np.array(rewards, np.float32))
    tuned = tuned_rewards(dataset, Batches.of(dataset, torch.device("cpu")), "unit", 0.99)
    assert tuned.tolist() == rewards


def test_unknown_tuning_lists_the_choices():
    with pytest.raises(ValueError, match="'iql'") as caught:
        make_dataset().tuned_rewards("iql")
    assert all(rule in str(caught.value) for rule in REWARD_TUNINGS)


def with_references(dataset_id, env_id, low=None, high=None):
    env = gym.make(env_id)
    rng = np.random.default_rng(0)
    buffer = EpisodeBuffer(
        observations=rng.normal(size=(4, env.observation_space.shape[0])),
        actions=rng.uniform(-1, 1, (3, env.action_space.shape[0])).astype(np.float32),
        rewards=[1.0, 2.0, 3.0],
        terminations=[False] * 3,
        truncations=[False, False, True],
    )
    spec = env.spec
    env.close()
    return write_buffers([buffer], dataset_id, env=spec, ref_min_score=low, ref_max_score=high)


def test_normalised_score_from_the_dataset_itself():
    dataset = load_dataset(with_references("test/own-v0", "Hopper-v5", -10.0, 30.0))
    assert dataset.reference.source == "dataset metadata"
    assert float(dataset.normalized_score(0.0)) == pytest.approx(25.0)
    assert dataset.normalized_score(np.array([-10.0, 30.0])).tolist() == [0.0, 100.0]


@pytest.mark.parametrize(
    ("env_id", "maximum"), [("Hopper-v5", 3234.3), ("Walker2d-v5", 4592.3), ("Ant-v5", 3879.7)]
)
def test_normalised_score_from_the_published_table(env_id, maximum):
    dataset = load_dataset(with_references("test/table-v0", env_id))
    assert "D4RL" in dataset.reference.source
    assert float(dataset.normalized_score(maximum)) == pytest.approx(100.0)
    assert dataset.env_spec.id == env_id


def test_no_reference_no_score(numbered):
    assert numbered.reference is None
    assert numbered.normalized_score(1.0) is None


@pytest.mark.parametrize(
    ("changes", "kept"),
    [({}, True), ({"id": "Hopper-v5"}, False), ({"kwargs": {"g": 1.0}}, False), (None, False)],
)
def test_concatenation_keeps_the_environment_of_one_task_only(changes, kept):
    spec = gym.spec("Pendulum-v1")
    other = None if changes is None else replace(spec, **changes)
    both = OfflineDataset.concatenate([make_dataset(env_spec=spec), make_dataset(env_spec=other)])
    assert (both.env_spec == spec) is kept


@pytest.mark.parametrize(
    "changes",
    [
        {"id": 5},
        {"id": Path("mine")},
        {"id": None},
        {"id": b"a"},
        {"reference": (0.0, 1.0)},
        {"reference": {"minimum": 0.0}},
        {"env_spec": "Pendulum-v1"},
        {"env_spec": 3},
        {"details": []},
        {"adapter": "flat"},
    ],
)
def test_fields_that_no_agent_can_save_are_refused(changes):
    (name,) = changes
    with pytest.raises(TypeError, match=rf"{name}=.* is a \w+, expected "):
        replace(make_dataset(), **changes)


@pytest.mark.parametrize("given", [["a/b-v0"], "a/b-v0", [make_dataset(), None], 3, None])
def test_what_is_no_list_of_datasets_is_not_concatenated(given):
    with pytest.raises(TypeError, match=r"given .*, expected a list of OfflineDatasets"):
        OfflineDataset.concatenate(given)


def test_one_dataset_is_no_list_of_them():
    with pytest.raises(TypeError, match="expected a list of OfflineDatasets"):
        OfflineDataset.concatenate(make_dataset())
    assert len(OfflineDataset.concatenate(d for d in [make_dataset()])) == len(make_dataset())


@pytest.mark.parametrize("name", ["terminations", "truncations"])
def test_ends_inside_an_episode_are_said(name):
    buffers = numbered_episodes((3, 4), [True, False])
    getattr(buffers[1], name)[1] = True
    source = write_buffers(buffers, "test/inside-v0")
    for storage in ("memory", "memmap"):
        with pytest.warns(UserWarning, match=f"1 {name} are inside .* in episode 1, step 1"):
            load_dataset(source, storage=storage)


def test_bounds_of_another_type_are_the_same_action_space():
    double = spaces.Box(-1.0, 1.0, (1,), np.float64)
    agent = QGPO("laptop", device="cpu")
    for box in (spaces.Box(-1.0, 1.0, (1,), np.float32), double):
        agent.set_spaces(spaces.Box(-np.inf, np.inf, (3,)), box, "the data")
    datasets = [make_dataset(), make_dataset(action_space=double)]
    assert len(OfflineDataset.concatenate(datasets)) == 32


def test_fingerprint_depends_on_every_array():
    base = make_dataset()
    assert base.fingerprint == make_dataset().fingerprint
    ends = np.flatnonzero(base.last_steps)
    seen = {base.fingerprint}
    for name in ("states", "actions", "rewards"):
        array = getattr(base, name).copy()
        array[-1] += 0.01 if name != "actions" else -0.01
        seen.add(make_dataset(**{name: array}).fingerprint)
    for name in ("terminations", "truncations"):
        array = getattr(base, name).copy()
        array[ends[0]] = ~array[ends[0]]
        seen.add(make_dataset(**{name: array}).fingerprint)
    seen.add(make_dataset(episode_starts=np.array([0, 4, 6, 10])).fingerprint)
    assert len(seen) == 7


def test_local_folder_follows_the_environment_variable(numbered, tmp_path):
    assert (tmp_path / "minari" / "test" / "numbered-v0").is_dir()
    shutil.rmtree(tmp_path / "minari")
    with pytest.raises(ValueError, match="not in"):
        load_dataset("test/numbered-v0", download=False)
