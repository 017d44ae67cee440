"""What conversions lose is refused or said, with the column; odd data are said."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from factory import mapped, numbered_episodes, write_buffers
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from qgpo import OfflineDataset, load_dataset
from qgpo.agents.core.batches import Batches, tuned_rewards
from qgpo.envs.data.columns import Rounding, Rows

N = 40
RNG = np.random.default_rng(0)


def arrays(n=N, **changes):
    states = RNG.normal(size=(n + 1, 2)).astype(np.float32)
    good = {
        "observations": states[:-1],
        "next_observations": states[1:],
        "actions": np.zeros((n, 1)),
        "rewards": RNG.normal(size=n),
        "terminations": np.zeros(n, np.bool_),
    }
    return OfflineDataset.from_arrays(**{**good, **changes})


def stored(observations=None, rewards=None, dtype=np.float64, **more):
    buffer = EpisodeBuffer(
        observations=RNG.normal(size=(N + 1, 1)) if observations is None else observations,
        actions=np.zeros((N, 1), np.float32),
        rewards=list(RNG.normal(size=N) if rewards is None else rewards),
        terminations=[False] * N,
        truncations=[False] * (N - 1) + [True],
    )
    space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    if dtype != np.float64:
        limits = np.iinfo(dtype)
        space = spaces.Box(limits.min, limits.max, (1,), dtype)
    source = write_buffers([buffer], "test/lost-v0", observation_space=space)
    return load_dataset(source, progress_bar=False, **more)


STEPS = np.cumsum(RNG.integers(-1, 2, N + 1))[:, None]
LOST = {
    "reals about 1e9": (1e9 + STEPS, np.float64),
    "a time in seconds": (1.7e9 + 0.05 * np.arange(N + 1.0)[:, None], np.float64),
    "integers above 2^24": (2**24 + 1 + 2 * np.arange(N + 1)[:, None], np.int64),
    "integers above 2^53": (2**60 + STEPS, np.int64),
    "reals about 1e-170": (1e-170 * STEPS, np.float64),
    "reals that grow from 1e-300 to 1e-48": (
        1e-300 * 10.0 ** (6.3 * STEPS.clip(0, 40)),
        np.float64,
    ),
    "unsigned integers": ((2**63 + STEPS.astype(np.uint64)).astype(np.uint64), np.uint64),
}


@pytest.mark.parametrize("kind", LOST)
def test_observations_that_lose_their_digits_are_said(kind):
    values, dtype = LOST[kind]
    with pytest.warns(UserWarning, match="'test/lost-v0': observations loses digits in float32"):
        stored(values, dtype=dtype)
    with pytest.warns(UserWarning, match="'arrays': observations loses digits in float32"):
        arrays(observations=values, next_observations=None)


def test_a_mapped_dataset_says_it_every_time():
    with pytest.warns(UserWarning, match="observations loses digits"):
        stored(LOST["reals about 1e9"][0], storage="memmap")
    with pytest.warns(UserWarning, match="observations loses digits"):
        assert load_dataset("test/lost-v0", False, "memmap", False).folder is not None


@pytest.mark.parametrize(
    "values",
    [
        RNG.normal(size=(N + 1, 1)) * 1e6,
        RNG.normal(size=(N + 1, 1)) * 1e-20,
        np.full((N + 1, 1), 0.1),
        0.7 + 1e-15 * RNG.normal(size=(N + 1, 1)),
        STEPS.astype(np.float64) + 2.0**20,
    ],
)
def test_what_float32_holds_is_not_complained_about(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arrays(observations=values, next_observations=None)


@pytest.mark.parametrize("scale", [1e-50, 1e-160, 1e-200, 1e-306, 1e9])
def test_rewards_that_all_become_the_same_are_refused(scale):
    rewards = scale * (1.0 + 1e-10 * np.arange(N)) if scale > 1 else scale * np.arange(N)
    for make in (arrays, stored):
        with pytest.raises(ValueError, match=r"rewards loses digits.*all rewards become"):
            make(rewards=rewards)


def test_rewards_of_float32_s_smallest_are_scaled_like_others():
    rewards, ends = np.linspace(-1.0, 2.0, N), np.arange(N) % 10 == 9
    usual = arrays(rewards=rewards, terminations=ends).tuned_rewards("locomotion")
    with pytest.warns(UserWarning, match="the largest reward is 2e-40"):
        tiny = arrays(rewards=1e-40 * rewards, terminations=ends)
    tuned = tiny.tuned_rewards("locomotion")
    assert tuned.dtype == np.float32
    np.testing.assert_allclose(tuned, usual, rtol=1e-3, atol=0.01)


def test_deviations_do_not_depend_on_the_unit():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3 * N, 2)) * 10.0 ** rng.uniform(-9, 9, (3 * N, 1))
    for power in (0, -900, 120):
        scaled = values * 2.0**power
        with np.errstate(over="ignore"):
            narrow = scaled.astype(np.float32)
        rounding = Rounding()
        for begin in range(0, len(values), N):  # the unit grows from part to part
            rounding.add("rewards", scaled[begin : begin + N], narrow[begin : begin + N])
        found = rounding.columns["rewards"]
        np.testing.assert_allclose(found.deviation, np.ldexp(values.std(axis=0), power), rtol=1e-9)


@pytest.mark.parametrize("rewards", [[1e39] * N, [1e300] + [0.0] * (N - 1)])
def test_numbers_that_float32_does_not_hold_are_refused(rewards):
    for make in (arrays, stored):
        with pytest.raises(ValueError, match=r"rewards has value 1e.*larger than float32 holds"):
            make(rewards=rewards)


@pytest.mark.parametrize("scale", [1e-12, 1e-30, 1e20])
def test_rewards_in_an_odd_unit_are_said_and_scaled_like_others(scale):
    ends = np.arange(N) % 10 == 9
    rewards = RNG.normal(size=N)
    usual = arrays(rewards=rewards, terminations=ends)
    with pytest.warns(UserWarning, match="the largest reward is"):
        odd = arrays(rewards=scale * rewards, terminations=ends)
    for rule in ("locomotion", "unit"):
        tuned = [
            tuned_rewards(d, Batches.of(d, torch.device("cpu")), rule, 0.99).numpy()
            for d in (usual, odd)
        ]
        np.testing.assert_allclose(tuned[1], tuned[0], rtol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rewards": np.ones(N, np.complex64)},
        {"rewards": ["1.0"] * N},
        {"observations": np.full((N, 2), b"1")},
        {"actions": np.zeros((N, 1), "M8[s]")},
        {"rewards": [None] * N},
        {"terminations": [b"False"] * N},
        {"terminations": np.full(N, np.nan)},
        {"truncations": np.full(N, 0.5)},
        {"rewards": np.ma.array(np.zeros(N), mask=[True] + [False] * (N - 1))},
    ],
)
def test_what_is_no_number_is_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"'arrays': {name} "):
        arrays(**wrong)


@pytest.mark.parametrize("number", [2, 3, 8])
def test_rows_of_environments_that_take_turns_are_said(number):
    length = 30
    states = np.cumsum(RNG.normal(size=(length + 1, number, 2)), axis=0)
    n = length * number
    with pytest.warns(UserWarning, match=f"rows of {number} environments take turns"):
        arrays(
            n,
            observations=states[:-1].reshape(n, 2),
            next_observations=states[1:].reshape(n, 2),
        )


def pendulums(number):
    """(200 x number, 3), the rows of several pendulums in turns."""
    rows = []
    for seed in range(number):
        env = gym.make("Pendulum-v1")
        env.action_space.seed(seed)
        rows.append([env.reset(seed=seed)[0]])
        rows[-1] += [env.step(env.action_space.sample())[0] for _ in range(199)]
    return np.stack(rows, axis=1).reshape(-1, 3)


def test_turns_within_an_episode_are_said():
    for number in (1, 2, 4):
        states = pendulums(number)
        n = len(states) - 1
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            arrays(n, observations=states, next_observations=None)
        expected = f"rows of {number} environments seem to take turns"
        assert [expected in str(w.message) for w in told] == ([True] if number > 1 else [])


def test_shuffled_rows_are_said():
    order = RNG.permutation(N)
    states = RNG.normal(size=(N + 1, 2)).astype(np.float32)
    with pytest.warns(UserWarning, match="rows are shuffled"):
        arrays(observations=states[:-1][order], next_observations=states[1:][order])


def test_ordinary_data_are_not_complained_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load_dataset(write_buffers(numbered_episodes((20, 30), (True, False))))
        mapped(dataset)


def test_rows_are_appended_to_one_array():
    parts = [np.full((n, 2), n, np.float32) for n in (3, 0, 4)]
    for expected in (7, 10, 1):
        rows = Rows(expected, parts[0])
        for part in parts:
            rows.append(part)
        assert np.array_equal(rows.whole, np.concatenate(parts))
        assert rows.whole.dtype == np.float32
        assert rows.whole.base is None or len(rows.whole.base) == 7
