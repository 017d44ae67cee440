"""Actions between [-1, 1] and their space: dtypes, rounding, narrow, wide and odd bounds."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from factory import CONFIGS, PAPER_LIKE
from gymnasium import spaces

from qgpo import QGPO, OfflineDataset
from qgpo.agents.ensemble import Ensemble
from qgpo.agents.sb3_baselines import OfflineSAC, SB3Config
from qgpo.envs.tasks.actions import ActionScale
from qgpo.envs.tasks.spaces import check_action_space, same_box
from qgpo.normalization import scaled

MAX = float(np.finfo(np.float32).max)
LARGEST = float(np.finfo(np.float64).max)


def box(low, high, dtype=np.float32):
    return spaces.Box(
        np.atleast_1d(low).astype(dtype), np.atleast_1d(high).astype(dtype), dtype=dtype
    )


def data(actions, space):
    """One episode with those actions (N,) or (N, A)."""
    actions = np.reshape(actions, (len(actions), -1))
    observations = np.random.default_rng(0).normal(size=(len(actions) + 1, 2))
    ends = np.arange(len(actions)) == len(actions) - 1
    return OfflineDataset.from_arrays(
        observations, actions, np.ones(len(actions)), ends, action_space=space
    )


UNIT = np.concatenate([[-1.0, 1.0, 0.0], np.linspace(-1.5, 1.5, 64)]).astype(np.float32)[:, None]


@pytest.mark.parametrize(
    "space",
    [
        box(-0.4, 0.4, np.float64),
        box(-0.4, 0.4, np.float16),
        box(-0.1, 0.7, np.float64),
        box(1.0 / 3.0, 2.0 / 3.0, np.float64),
        box(-1e-3, 1e6, np.float32),
        box(0.1, 65504.0, np.float16),
        box(-65504.0, 65504.0, np.float16),
        box(-MAX, MAX, np.float32),
        box(-1e300, 3e300, np.float64),
        box(-LARGEST, LARGEST, np.float64),
        box(1e-30, 3e-30, np.float32),
        box([-0.1, 5.0], [0.3, 5.3], np.float64),
    ],
    ids=str,
)
def test_actions_are_in_the_space_and_of_its_dtype(space):
    check_action_space(space, "the test")
    actions = ActionScale.of(space).to_space(np.repeat(UNIT, space.shape[0], axis=1))
    assert actions.dtype == space.dtype
    assert all(space.contains(action) for action in actions)
    np.testing.assert_array_equal(actions[0], space.low)
    np.testing.assert_array_equal(actions[1], space.high)


def test_scaling_and_back():
    space = box([-0.1, 5.0, -2.0], [0.3, 5.3, 2.0])
    scale = ActionScale.of(space)
    actions = np.random.default_rng(0).uniform(space.low, space.high, (50, 3)).astype(np.float32)
    back = scale.to_space(scaled(actions, scale.low, scale.high))
    np.testing.assert_allclose(back, actions, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (box(0, 5, np.int64), "of int64; only continuous actions"),
        (box(0, 255, np.uint8), "of uint8; only continuous actions"),
        (box(0, 1, np.bool_), "of bool; only continuous actions"),
        (box(1e6, 1e6 + 0.01, np.float64), "column 0 between 1000000.0 and 1000000.01"),
        (box([-1, 1.0], [1, 1.0 + 1e-5], np.float64), "column 1 between 1.0"),
        (box(0.0, 1e-40), "float32 can hardly distinguish"),
        (box(-1e-300, 1e-300, np.float64), "float32 can hardly distinguish"),
        (box(0.0, np.inf), r"gymnasium.spaces.Box\(actions.min"),
        (box(-np.inf, 1.0, np.float64), "TransformAction"),
    ],
    ids=str,
)
def test_spaces_that_cannot_be_scaled_are_refused(space, message):
    with pytest.raises(ValueError, match=message):
        check_action_space(space, "the test")


def test_boxes_are_compared_by_their_widths():
    assert same_box(box(-1, 1), box(-1, 1, np.float64))
    assert same_box(box(-0.1, 0.1), box(-0.1, 0.1, np.float64))
    assert not same_box(box(-1e-9, 1e-9, np.float64), box(-2e-9, 2e-9, np.float64))
    assert not same_box(box(1e6, 1e6 + 1, np.float64), box(1e6, 1e6 + 2, np.float64))
    assert not same_box(box(-LARGEST, LARGEST, np.float64), box(-1, 1, np.float64))


def test_the_advice_for_infinite_bounds_works():
    import gymnasium as gym

    actions = np.array([[0.5], [2.5], [1.0]], np.float32)
    bounds = spaces.Box(actions.min(axis=0), actions.max(axis=0))
    agent = QGPO(PAPER_LIKE, device="cpu").learn(data(actions, bounds), lambda *_: False)
    env = gym.make("Pendulum-v1").unwrapped
    env.observation_space = box([-1, -1], [1, 1])
    env.action_space = box(0.0, np.inf)
    agent.set_env(gym.wrappers.TransformAction(env, lambda action: action, bounds))


@pytest.mark.parametrize("bound", [1e3, 1e6, 1e10, MAX])
@pytest.mark.parametrize("values", [(-2.0, 2.0), (0.5, 0.6), (0.0, 0.0), (3.0, 3.0)])
def test_bounds_far_wider_than_the_data(bound, values):
    space = box([-1, -bound], [1, bound])
    actions = np.stack([np.linspace(-1, 1, 20), np.linspace(*values, 20)], axis=1)
    with pytest.warns(UserWarning, match=r"bounds of action columns \[1\].*far|times wider"):
        scale = data(actions, space).action_scale
    low, high = values if values[0] < values[1] else (values[0] - 1, values[1] + 1)
    if values == (3.0, 3.0):
        low, high = 0.0, 6.0
    np.testing.assert_allclose(scale.low, [-1, low], rtol=1e-6)
    np.testing.assert_allclose(scale.high, [1, high], rtol=1e-6)


def test_bounds_of_one_side_and_of_doubles_far_wider_than_the_data():
    with pytest.warns(UserWarning, match="column 0"):
        scale = data(np.linspace(0, 1, 9), box(0.0, 1e6)).action_scale
    assert (scale.low.item(), scale.high.item()) == (0.0, 1.0)
    with pytest.warns(UserWarning, match="column 0"):
        scale = data(np.linspace(-1, 1, 9), box(-LARGEST, LARGEST, np.float64)).action_scale
    assert (scale.low.item(), scale.high.item()) == (-1.0, 1.0)


@pytest.mark.parametrize("bound", [0.4, 1.0, 3.0, 10.0, 150.0])
def test_ordinary_bounds_are_taken_as_they_are(bound):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        end = min(bound, 2)
        for actions in (np.full(9, 0.4), np.zeros(9), np.linspace(-end, end, 9)):
            if bound > 100 and np.ptp(actions) == 0:
                continue  # nothing says how large actions are
            assert data(actions, box(-bound, bound)).action_scale.is_declared


def test_actions_that_are_too_large_for_float32():
    with pytest.raises(ValueError, match="too large for float32"):
        _ = data(np.linspace(-MAX, MAX, 9), box(-MAX, MAX)).action_scale


def test_an_agent_keeps_the_scale_of_its_data(tmp_path):
    dataset = data(np.linspace(-2, 2, 20), box(-1e6, 1e6))
    with pytest.warns(UserWarning, match="times wider"):
        agent = QGPO(CONFIGS["whitened"], device="cpu").learn(dataset)
    observations = np.random.default_rng(1).normal(size=(50, 2))
    actions = agent.predict(observations, deterministic=True)[0]
    assert np.abs(actions).max() <= 2.0
    agent.save(tmp_path / "agent.zip")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = QGPO.load(tmp_path / "agent.zip", device="cpu")
        np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], actions)
        batches = loaded.prepare(dataset)
    assert (batches.low.item(), batches.high.item()) == (-2.0, 2.0)
    assert Ensemble([agent, loaded]).predict(observations)[0].max() <= 2.0
    with pytest.raises(ValueError, match="acts between -2 and 2"):
        loaded.learn(
            data(np.linspace(-9, 9, 20), box(-1e6, 1e6)),
            reset_num_timesteps=False,
            allow_other_dataset=True,
        )


def test_members_of_an_ensemble_scale_alike():
    narrow, wide = data([-2, 2, 0], box(-1e6, 1e6)), data([-3, 3, 0], box(-1e6, 1e6))
    with pytest.warns(UserWarning, match="times wider"):
        agents = [QGPO(PAPER_LIKE, device="cpu").learn(d, lambda *_: False) for d in (narrow, wide)]
    with pytest.raises(ValueError, match="scales actions by another range"):
        Ensemble(agents)


def test_a_file_without_a_scale_means_the_bounds():
    space = box(-1e6, 1e6)
    assert ActionScale.from_json(space, None).is_declared
    for low, high in ([-2e6], [1.0]), ([1.0], [1.0]), ([0.0, 0.0], [1.0, 1.0]), ([np.nan], [1.0]):
        with pytest.raises(ValueError, match="expected intervals within"):
            ActionScale.from_json(space, {"low": low, "high": high})


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("make", [QGPO, OfflineSAC])
def test_agents_act_in_the_dtype_of_the_space(make, dtype):
    config = PAPER_LIKE if make is QGPO else SB3Config(steps=2, hidden=(8, 8), batch_size=4)
    space = box(-0.4, 0.4, dtype)
    agent = make(config, device="cpu").learn(
        data(np.full(20, space.high[0]), space), lambda *_: False
    )
    actions = agent.predict(np.random.default_rng(0).normal(size=(50, 2)))[0]
    assert actions.dtype == dtype
    assert agent.predict(np.zeros((0, 2)))[0].dtype == dtype
    assert all(space.contains(action) for action in actions)
