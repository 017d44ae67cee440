"""A restored state goes on as the saved one did, in every kind of environment."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import StickyAction, TimeLimit

from qgpo.envs.play.snapshots import check_restorable, restore, take_snapshot
from qgpo.envs.tasks.making import as_played, make_env

GYMNASIUM = ("Pendulum-v1", "MountainCarContinuous-v0", "Hopper-v5", "Ant-v5", "Reacher-v5")


def sampled(env, seed, n):
    rng = np.random.default_rng(seed)
    space = env.action_space
    return [rng.uniform(space.low, space.high).astype(space.dtype) for _ in range(n)]


def trace(env, actions):
    """Observations, rewards and ends as one list of arrays."""
    found = []
    for action in actions:
        observation, *rest = env.step(action)
        parts = observation if isinstance(observation, dict) else {"": observation}
        found += [np.array(parts[key]) for key in sorted(parts)] + [np.array(rest[:3], float)]
    return found


def assert_repeats(env, other, n=8):
    """From one state: in the environment itself, again, and in another one."""
    env.reset(seed=3)
    trace(env, sampled(env, 0, 5))
    snapshot = take_snapshot(env)
    actions = sampled(env, 1, n)
    expected = trace(env, actions)
    other.reset(seed=4)
    for one in (env, env, other):
        restore(one, snapshot)
        for a, b in zip(expected, trace(one, actions), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", GYMNASIUM)
def test_gymnasium_s_environments_repeat_exactly(name):
    env, other = make_env(name), make_env(name)
    check_restorable(env, other)
    assert_repeats(env, other)


def test_actions_that_are_numbers():
    env, other = gym.make("Acrobot-v1"), gym.make("Acrobot-v1")
    env.reset(seed=0)
    snapshot = take_snapshot(env)
    expected = trace(env, [0, 2, 1])
    other.reset(seed=1)
    restore(other, snapshot)
    for a, b in zip(expected, trace(other, [0, 2, 1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_maze_and_its_goal():
    pytest.importorskip("gymnasium_robotics")
    env, other = (make_env(as_played("PointMaze_UMaze-v3")) for _ in range(2))
    check_restorable(env, other)
    assert_repeats(env, other)
    np.testing.assert_array_equal(env.unwrapped.goal, other.unwrapped.goal)
    assert env.unwrapped.goal is not other.unwrapped.goal


@pytest.mark.parametrize("task", ["scene-singletask-v0", "pointmaze-teleport-singletask-v0"])
def test_ogbench_s_tasks(task):
    pytest.importorskip("ogbench")
    env, other = make_env(task), make_env(task)
    check_restorable(env, other)
    assert_repeats(env, other, n=4)


def test_a_lock_that_is_in_the_model():
    pytest.importorskip("ogbench")
    env = make_env("scene-singletask-v0")
    env.reset(seed=0)
    inner = env.unwrapped
    snapshot = take_snapshot(env)
    before = inner._cur_button_states.copy(), inner._model.joint("drawer_slide").damping[0]
    inner._cur_button_states[:] = 1 - inner._cur_button_states
    inner._apply_button_states()
    assert inner._model.joint("drawer_slide").damping[0] != before[1]
    restore(env, snapshot)
    np.testing.assert_array_equal(inner._cur_button_states, before[0])
    assert inner._model.joint("drawer_slide").damping[0] == before[1]


class Walk(gym.Env):
    """A random walk that may keep its place where nobody finds it."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    class Place:
        def __init__(self):
            self.x = 0.0

    def __init__(self, hidden=False):
        self.hidden = Walk.Place() if hidden else None
        self.x = 0.0
        self.visited = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.move(self.np_random.normal())
        return np.array([self.x], np.float32), {}

    def move(self, x):
        if self.hidden is None:
            self.x = x
        else:
            self.hidden.x = x

    def step(self, action):
        old = self.x if self.hidden is None else self.hidden.x
        x = old + float(action[0]) + self.np_random.normal()
        self.move(x)
        self.visited.append(x)
        return np.array([x], np.float32), x, False, False, {}


def test_counters_generators_and_lists_are_restored():
    env = TimeLimit(Walk(), max_episode_steps=4)
    env.reset(seed=0)
    env.step([0.0])
    snapshot = take_snapshot(env)
    first = [env.step([0.0]) for _ in range(3)]
    assert [step[3] for step in first] == [False, False, True]
    restore(env, snapshot)
    assert len(env.unwrapped.visited) == 1
    second = [env.step([0.0]) for _ in range(3)]
    assert [step[1] for step in second] == [step[1] for step in first]
    assert [step[3] for step in second] == [False, False, True]


def test_a_seed_makes_other_futures_and_the_same_again():
    env = Walk()
    env.reset(seed=0)
    snapshot = take_snapshot(env)
    rewards = []
    for seed in (None, 1, 2, 1):
        restore(env, snapshot, seed)
        rewards.append(env.step([0.0])[1])
    assert rewards[1] == rewards[3]
    assert len(set(rewards)) == 3


def test_a_snapshot_is_not_changed_by_playing_on():
    env = Walk()
    env.reset(seed=0)
    snapshot = take_snapshot(env)
    for _ in range(2):
        restore(env, snapshot)
        env.step([0.0])
    assert snapshot.attributes[0]["visited"] == []


def test_a_generator_of_a_wrapper():
    envs = [StickyAction(gym.make("Pendulum-v1"), 0.5) for _ in range(2)]
    check_restorable(*envs)


@pytest.mark.parametrize("low", [0.0, -np.inf])
def test_actions_without_bounds_are_tried_too(low):
    walks = [Walk(), Walk()]
    for walk in walks:
        walk.action_space = spaces.Box(low, np.inf, (1,))
    check_restorable(*walks)


def test_what_keeps_its_state_elsewhere_is_refused_by_name():
    with pytest.raises(ValueError, match="environment 'Walk' cannot be set to a state: step 1 "):
        check_restorable(Walk(hidden=True), Walk(hidden=True))
    check_restorable(Walk(), Walk())


def test_other_layers_are_refused():
    snapshot = take_snapshot(TimeLimit(Walk(), 4))
    with pytest.raises(ValueError, match="a state of TimeLimit of Walk cannot be restored in Walk"):
        restore(Walk(), snapshot)
