"""Arrays of one's own: what they must be, what is said of odd ones, next ones not recorded."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from qgpo import OfflineDataset

LENGTHS = (12, 9, 14, 11, 10, 13)
N = sum(LENGTHS)
LAST = np.cumsum(LENGTHS) - 1
ENDS = np.isin(np.arange(N), LAST)


def recording(lengths=LENGTHS):
    """Smooth episodes, each from a start of its own."""
    rng = np.random.default_rng(0)
    walks = [rng.normal(size=3) + 0.1 * rng.normal(size=(n + 1, 3)).cumsum(0) for n in lengths]
    walks = [walk.astype(np.float32) for walk in walks]
    ends = np.isin(np.arange(sum(lengths)), np.cumsum(lengths) - 1)
    return {
        "observations": np.concatenate([walk[:-1] for walk in walks]),
        "next_observations": np.concatenate([walk[1:] for walk in walks]),
        "actions": rng.uniform(-1, 1, size=(sum(lengths), 2)),
        "rewards": rng.normal(size=sum(lengths)),
        "terminations": np.zeros(sum(lengths), np.bool_),
        "truncations": ends,
    }


def said(arrays):
    """The warnings about a dataset, and the dataset."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = OfflineDataset.from_arrays(**arrays)
    return [str(warning.message).removeprefix("dataset 'arrays': ") for warning in caught], dataset


GOOD = recording()
OBSERVATIONS = GOOD["observations"]


def test_an_environment_with_other_spaces_is_refused_before_anybody_trains():
    pendulum = {**GOOD, "actions": GOOD["actions"][:, :1]}
    box = spaces.Box(-2.0, 2.0, (1,))
    for env_id, wrong in (("Hopper-v5", r"observations \(11,\)"), ("Pendulum-v1", r"2\.0, \(1,\)")):
        with pytest.raises(ValueError, match=rf"env_spec={env_id} has .*{wrong}.*, the data "):
            OfflineDataset.from_arrays(**pendulum, env_spec=gym.spec(env_id))
    fitting = {"action_space": box, "env_spec": gym.spec("Pendulum-v1")}
    assert OfflineDataset.from_arrays(**pendulum, **fitting).env_spec.id == "Pendulum-v1"


def test_environments_of_others_are_not_made_for_arrays(monkeypatch):
    monkeypatch.setattr("qgpo.envs.tasks.making._make", None)  # whoever calls it fails
    monkeypatch.setitem(gym.registry, "test/Robot-v0", EnvSpec("test/Robot-v0", "robot:Robot"))
    for spec in (gym.spec("test/Robot-v0"), EnvSpec("test/Unknown-v0")):
        assert OfflineDataset.from_arrays(**GOOD, env_spec=spec).env_spec is spec


def test_good_arrays_are_not_doubted():
    texts, dataset = said(GOOD)
    assert texts == []
    np.testing.assert_array_equal(dataset.episode_lengths, LENGTHS)
    assert said({**GOOD, "truncations": None})[0] == []  # the chain shows its ends
    terminated = {**GOOD, "terminations": ENDS, "truncations": np.arange(N) == LAST[0]}
    assert said(terminated)[0] == []  # one end may be both, by chance


def test_tensors_that_require_a_gradient_are_arrays_too():
    tensors = {name: torch.as_tensor(values) for name, values in GOOD.items()}
    for name in ("observations", "next_observations", "actions", "rewards"):
        tensors[name].requires_grad_()
    texts, dataset = said(tensors)
    assert texts == []
    assert dataset.fingerprint == said(GOOD)[1].fingerprint
    rewards = tensors["rewards"][:, None]
    with pytest.raises(ValueError, match=r"rewards has shape .* pass rewards\[:, 0\]"):
        said({**tensors, "rewards": rewards})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"next_observations": np.roll(OBSERVATIONS, -1, axis=0)},
            "the next observation of 6 of 6 steps that end an episode is the first one of the next",
        ),
        ({"truncations": np.roll(ENDS, 1)}, "5 of 6 steps that are flagged as an end lead to the"),
        ({"truncations": np.roll(ENDS, -1)}, "5 of 6 steps that are flagged as an end lead to the"),
        ({"terminations": ENDS}, "6 of 6 flagged steps are terminated and truncated"),
        ({"next_observations": OBSERVATIONS}, "next_observations are the observations themselves"),
    ],
    ids=["rolled", "late", "early", "both", "same"],
)
def test_what_cannot_be_meant_is_said(changes, text):
    texts, _ = said({**GOOD, **changes})
    assert len(texts) == 1
    assert text in texts[0]


def test_the_direction_of_shifted_flags_is_named():
    late, early = (said({**GOOD, "truncations": np.roll(ENDS, k)})[0][0] for k in (1, -1))
    assert "one row late" in late
    assert "one row early" in early


def test_the_row_before_is_told_from_shuffled_rows():
    before = np.roll(OBSERVATIONS, 1, axis=0)
    assert "those of the row before" in said({**GOOD, "next_observations": before})[0][0]
    order = np.random.default_rng(1).permutation(N)
    shuffled = {name: array[order] for name, array in GOOD.items()}
    assert "rows are shuffled" in said(shuffled)[0][0]


@pytest.mark.parametrize(
    ("lengths", "doubted"),
    [((8,) * 6, True), ((8,) * 4, False), ((8,) * 5 + (7,), False), ((1,) * 6, False)],
)
def test_terminations_of_one_length_look_like_a_time_limit(lengths, doubted):
    arrays = recording(lengths)
    arrays |= {"terminations": arrays["truncations"], "truncations": None}
    texts, _ = said(arrays)
    assert [text.startswith("all 6 terminated episodes have 8 steps") for text in texts] == (
        [True] if doubted else []
    )


def test_shift_takes_the_next_row_and_leaves_out_cut_ends():
    terminations = np.isin(np.arange(N), LAST[[1, 5]])
    truncations = ENDS & ~terminations
    truncations[LAST[2]] = True
    arrays = {**GOOD, "terminations": terminations, "truncations": truncations}
    texts, dataset = said({**arrays, "next_observations": "shift"})
    kept = terminations | ~ENDS
    assert texts == []
    np.testing.assert_array_equal(dataset.episode_lengths, np.subtract(LENGTHS, [1, 0, 1, 1, 1, 0]))
    np.testing.assert_array_equal(dataset.observations, OBSERVATIONS[kept])
    np.testing.assert_array_equal(dataset.actions, GOOD["actions"][kept].astype(np.float32))
    np.testing.assert_array_equal(dataset.rewards, GOOD["rewards"][kept].astype(np.float32))
    np.testing.assert_array_equal(dataset.terminations, terminations[kept])
    np.testing.assert_array_equal(dataset.truncations, dataset.last_steps & ~dataset.terminations)
    inner = ~dataset.terminations
    expected = GOOD["next_observations"][kept]
    np.testing.assert_array_equal(dataset.next_observations[inner], expected[inner])
    own = dataset.next_observations[~inner] == dataset.observations[~inner]
    assert own.all()


def test_shift_of_episodes_of_one_step():
    arrays = {**recording((1, 1, 3)), "next_observations": "shift"}
    dataset = said(arrays)[1]
    np.testing.assert_array_equal(dataset.episode_lengths, [2])
    with pytest.raises(ValueError, match="no step leads to another row"):
        OfflineDataset.from_arrays(**{**recording((1, 1)), "next_observations": "shift"})


def test_flagged_twice_is_said_of_shifted_rows_too():
    arrays = {**GOOD, "terminations": ENDS, "next_observations": "shift"}
    assert said(arrays)[0][0].startswith("6 of 6 flagged steps are terminated and truncated")


def damaged(name, *at):
    array = np.array(GOOD[name], np.float64)
    array[at] = np.nan
    return {**GOOD, name: array}


@pytest.mark.parametrize(
    ("name", "at", "where"),
    [
        ("observations", (29, 1), "observations has .* 1 of 69 rows, first in row 29, column 1"),
        ("next_observations", (29, 0), "next_observations has .* first in row 29, column 0"),
        ("actions", (7,), "actions has .* 1 of 69 rows, first in row 7, column 0"),
        ("rewards", (8,), "rewards has .* 1 of 69 rows, first in row 8. Leave"),
    ],
)
def test_nan_is_found_in_the_array_that_was_given(name, at, where):
    with pytest.raises(ValueError, match=where):
        OfflineDataset.from_arrays(**damaged(name, *at))


def test_the_advice_about_nan_works():
    arrays = damaged("observations", 29, 1)
    good = np.isfinite(arrays["observations"]).all(axis=1)
    texts, dataset = said({name: array[good] for name, array in arrays.items()})
    assert texts == []
    assert len(dataset) == N - 1
    assert dataset.truncations.sum() == len(LENGTHS) + 1


@pytest.mark.parametrize("name", ["observations", "actions", "next_observations"])
def test_exchanged_rows_and_columns_are_named(name):
    with pytest.raises(ValueError, match=rf"expected \(69, dimensions\): .*{name}\.T"):
        OfflineDataset.from_arrays(**{**GOOD, name: GOOD[name].T})


def test_ways_out_stand_in_the_messages():
    rows = {**GOOD, "next_observations": None}
    with pytest.raises(ValueError, match="or next_observations='shift'"):
        OfflineDataset.from_arrays(**rows)
    with pytest.raises(ValueError, match="next_observations='shft', expected an array, 'shift'"):
        OfflineDataset.from_arrays(**{**GOOD, "next_observations": "shft"})
    wide = {**GOOD, "actions": 2.0 * GOOD["actions"]}
    with pytest.raises(ValueError, match=r"action_space=gymnasium.spaces.Box\(low, high, \(2,\)\)"):
        OfflineDataset.from_arrays(**wide)
    assert len(said({**wide, "action_space": spaces.Box(-2.0, 2.0, (2,))})[1]) == N
