"""Policies with a memory, and environments and policies that use their arrays again.

The same in `evaluate`, `collect` and `collect_vec_env`: what is played is what SB3's
evaluate_policy plays, and what is recorded is what was played.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from qgpo.envs import collect, collect_vec_env, evaluate

MEMORY, REUSING = "qgpo-tests/Memory-v0", "qgpo-tests/Reusing-v0"
LIMIT = 6


class Memory(gym.Env):
    """Episodes of 2, 3, 4, … steps by the seed; the return is the sum of the actions."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-100, 100, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length = 2 + int(self.np_random.integers(4))
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), float(action[0]), self.t == self.length, False, {}


class Counts:
    """Acts with the number of its steps in the episode, which it knows by its state only."""

    def __init__(self, kind):
        self.kind = kind

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        n = len(observation)
        count = np.zeros(n) if state is None else self.unpack(state).reshape(n)
        count = np.where(episode_start, 0, count) + 1
        return count[:, None].astype(np.float32), self.pack(count)

    def pack(self, count):
        return {
            "tuple": (count[None], count[None]),  # (layers, n, …), as RecurrentPPO's
            "dict": {"hidden": {"count": count}},
            "array": count,
        }[self.kind]

    def unpack(self, state):
        if self.kind == "dict":
            return state["hidden"]["count"]
        return state[0] if self.kind == "tuple" else state


BUFFERS = {"steps": np.zeros(1, np.float32), "deep": {"steps": np.zeros(1, np.float32)}}
REWARD, OVER = np.zeros(()), np.zeros((), bool)


class Reusing(gym.Env):
    """All copies write into the same arrays, and change the action that they are given.

    The observation is the number of steps; the reward is the action.
    """

    observation_space = spaces.Dict(
        {
            "steps": spaces.Box(-9, 99, (1,), np.float32),
            "deep": spaces.Dict({"steps": spaces.Box(-9, 99, (1,), np.float32)}),
        }
    )
    action_space = spaces.Box(-100, 100, (1,), np.float32)

    def observe(self):
        BUFFERS["steps"][:] = BUFFERS["deep"]["steps"][:] = self.t
        return BUFFERS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.length = 0, 3 + (seed or 0) % 2
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        REWARD[...] = action[0]
        OVER[...] = self.t == self.length
        action *= 0.0
        return self.observe(), REWARD, OVER, False, {}


class Flat(gym.ObservationWrapper):
    """The reused array itself."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = env.observation_space["steps"]

    def observation(self, observation):
        return observation["steps"]


class Echoes:
    """Acts with the observation from arrays of its own, and changes what it is given."""

    def __init__(self):
        self.arrays = {}

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        steps = observation["deep"]["steps"] if isinstance(observation, dict) else observation
        own = self.arrays.setdefault(len(steps), np.zeros((len(steps), 1), np.float32))
        own[:] = steps
        steps[:] = -7.0
        return own, None


@pytest.fixture(autouse=True, scope="module")
def _registered():
    gym.register(MEMORY, entry_point=Memory, max_episode_steps=LIMIT)
    quiet = {"disable_env_checker": True}
    gym.register(REUSING, entry_point=Reusing, max_episode_steps=LIMIT, **quiet)
    yield
    for name in (MEMORY, REUSING):
        gym.registry.pop(name)


def counted(lengths):
    return [n * (n + 1) / 2 for n in lengths]


@pytest.mark.parametrize("kind", ["tuple", "dict", "array"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_memory_in_evaluate(kind, n_envs):
    played = evaluate(Counts(kind), MEMORY, 7, n_envs=n_envs)
    assert len(set(played.lengths)) > 1
    assert played.returns == counted(played.lengths)


def test_a_memory_is_as_in_sb3_s_evaluation():
    env = DummyVecEnv([lambda: gym.make(MEMORY)])
    returns, lengths = evaluate_policy(
        Counts("tuple"), env, 5, return_episode_rewards=True, warn=False
    )
    assert returns == counted(lengths)
    played = evaluate(Counts("tuple"), gym.make(MEMORY), 5)
    assert played.returns == counted(played.lengths)


@pytest.mark.parametrize("kind", ["tuple", "dict"])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_memory_in_a_vector_environment(kind, mode):
    envs = SyncVectorEnv([Memory] * 3, autoreset_mode=mode)
    played = evaluate(Counts(kind), envs, 8)
    assert played.returns == counted(played.lengths)


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_a_memory_in_collected_data(kind):
    env = DummyVecEnv([lambda: gym.make(MEMORY)] * 3)
    one = collect_vec_env(Counts(kind), env, 30, 0, progress_bar=False)
    two = collect(MEMORY, lambda _: [Counts(kind), Counts("array")], 80, 0, progress_bar=False)
    for episodes in (one, two):
        assert len(episodes) > 5
        for episode in episodes:
            assert episode.actions[:, 0].tolist() == list(range(1, len(episode.rewards) + 1))


def test_a_predict_without_state_has_no_memory():
    class Bare:
        def predict(self, observation, *, deterministic=False):
            return np.ones((len(observation), 1), np.float32), None

    assert evaluate(Bare(), MEMORY, 2).lengths == evaluate(Bare(), MEMORY, 2).returns


def returns(lengths):
    return [sum(range(n)) for n in lengths]


@pytest.mark.parametrize("n_envs", [1, 4])
def test_reused_arrays_in_evaluate(n_envs):
    played = evaluate(Echoes(), REUSING, 6, n_envs=n_envs)
    assert played.lengths == [3, 4, 3, 4, 3, 4]
    assert played.returns == returns(played.lengths)


def check_recorded(episodes):
    assert episodes
    for episode in episodes:
        observations = episode.observations
        steps = observations["deep"]["steps"] if isinstance(observations, dict) else observations
        n = len(episode.rewards)
        assert n in (3, 4)
        assert steps[:, 0].tolist() == list(range(n + 1))
        assert episode.actions[:, 0].tolist() == list(range(n))
        assert episode.rewards == list(range(n))
        assert list(episode.terminations) == [False] * (n - 1) + [True]


def test_reused_arrays_in_collected_data():
    check_recorded(collect(REUSING, lambda _: [Echoes(), Echoes()], 60, 0, progress_bar=False))
    env = DummyVecEnv([lambda: Flat(gym.make(REUSING))] * 2)
    check_recorded(collect_vec_env(Echoes(), env, 20, 0, progress_bar=False))


def test_reused_arrays_of_a_policy_in_collected_data():
    class Policy:
        own = np.zeros((20, 1), np.float32)

        def act(self, observations, generator, deterministic=False):
            steps = observations["steps"]
            actions = self.own[: len(steps)]
            actions[:] = steps
            steps[:] = -7.0
            return actions

    check_recorded(collect(REUSING, lambda _: [Policy(), Policy()], 60, 0, progress_bar=False))
