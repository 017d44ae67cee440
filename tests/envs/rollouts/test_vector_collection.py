from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from factory import make_dataset
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from qgpo import BC, BCConfig, load_dataset
from qgpo.envs import collect_vec_env, write_minari
from qgpo.envs.rollouts import collecting

LIMIT = 4


class Counting(gym.Env):
    """Observation (episode, step); reward 10 episode + step; odd episodes terminate at step 3."""

    observation_space = spaces.Box(-1.0, 1000.0, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self):
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return np.array([self.episode, 0], np.float32), {}

    def step(self, action):
        self.t += 1
        observation = np.array([self.episode, self.t], np.float32)
        done = self.episode % 2 == 1 and self.t == 3
        return observation, 10.0 * self.episode + self.t, done, False, {}


class Echo:
    """Acts by what it sees: its mean, squashed."""

    def __init__(self):
        self.seen = []

    def predict(self, observation, *, deterministic=False):
        self.seen.append(np.array(observation))
        return np.tanh(np.mean(observation, axis=1, keepdims=True)).astype(np.float32), None


def counting(n=2):
    return DummyVecEnv([lambda: gym.wrappers.TimeLimit(Counting(), LIMIT) for _ in range(n)])


def check_numbers(episodes):
    for episode in episodes:
        e = int(episode.observations[0, 0])
        length = 3 if e % 2 == 1 else LIMIT
        assert episode.observations.tolist() == [[e, t] for t in range(length + 1)]
        assert episode.rewards == [10.0 * e + t for t in range(1, length + 1)]
        last = [False] * (length - 1) + [True]
        never = [False] * length
        ends = (episode.terminations, episode.truncations)
        assert ends == ((last, never) if e % 2 == 1 else (never, last))


def test_every_number_is_where_it_belongs():
    episodes = collect_vec_env(Echo(), counting(), 20, 0, progress_bar=False)
    check_numbers(episodes)
    # both environments play 4, 3 and 4 steps: 22 at the end of the third episodes
    assert sorted(int(e.observations[0, 0]) for e in episodes) == [0, 0, 1, 1, 2, 2]
    for episode in episodes:
        expected = np.tanh(episode.observations[:-1].mean(axis=1, keepdims=True))
        np.testing.assert_allclose(episode.actions, expected, rtol=1e-6)


def test_the_seed_decides_what_our_agents_do():
    agent = BC(BCConfig(hidden=(8,), steps=2), device="cpu").learn(make_dataset(observation_dim=2))
    actions = [
        np.concatenate([e.actions for e in collect_vec_env(agent, counting(), 20, seed)])
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0], actions[2])


def test_open_episodes_are_played_to_their_end():
    episodes = collect_vec_env(Echo(), counting(3), 1, 0, progress_bar=False)
    assert [len(e.rewards) for e in episodes] == [LIMIT] * 3
    check_numbers(episodes)


def test_under_a_normaliser_raw_numbers_are_recorded():
    vec_env = VecNormalize(counting())
    vec_env.obs_rms.mean[:] = (3.0, 1.0)
    vec_env.obs_rms.var[:] = 4.0
    agent = Echo()
    episodes = collect_vec_env(agent, vec_env, 20, 0, progress_bar=False)
    check_numbers(episodes)
    np.testing.assert_allclose(agent.seen[1], [[-1.5, 0.0]] * 2, atol=1e-6)  # ((0, 1) - mean) / 2
    assert vec_env.obs_rms.mean.tolist() == [3.0, 1.0]


def test_a_normaliser_inside_another_wrapper_is_refused():
    with pytest.raises(ValueError, match="VecNormalize is inside VecMonitor"):
        collect_vec_env(Echo(), VecMonitor(VecNormalize(counting())), 1, 0)


def test_environments_without_limit_are_refused():
    vec_env = DummyVecEnv([lambda: gym.make("Pendulum-v1", max_episode_steps=-1)])
    with pytest.raises(ValueError, match="'Pendulum-v1' has no step limit"):
        collect_vec_env(Echo(), vec_env, 1, 0)


def test_discrete_actions_are_refused():
    vec_env = DummyVecEnv([lambda: gym.make("CartPole-v1")])
    with pytest.raises(ValueError, match="vector environment has action space Discrete"):
        collect_vec_env(Echo(), vec_env, 1, 0)


def pendulum():
    return gym.make("Pendulum-v1", max_episode_steps=8)


def forked(makers):
    return SubprocVecEnv(makers, start_method="fork")


@pytest.mark.parametrize("vector", [DummyVecEnv, forked])
def test_agents_of_sb3_into_a_dataset(vector):
    vec_env = VecNormalize(vector([pendulum, pendulum]))
    agent = PPO("MlpPolicy", vec_env, n_steps=8, batch_size=16, seed=0, device="cpu")
    agent.learn(16)
    episodes = collect_vec_env(agent, vec_env, 30, 3, progress_bar=False)
    write_minari("mine/pendulum/ppo-v0", episodes, "Pendulum-v1", "PPO", "two environments")
    dataset = load_dataset("mine/pendulum/ppo-v0")
    assert len(dataset) == 32
    np.testing.assert_allclose(np.hypot(*dataset.states[:, :2].T), 1.0, rtol=1e-5)  # raw
    assert dataset.truncations.sum() == dataset.n_episodes == 4
    again = collect_vec_env(agent, vec_env, 30, 3, progress_bar=False)
    for one, two in zip(episodes, again, strict=True):
        np.testing.assert_array_equal(one.observations, two.observations)
    vec_env.close()


def test_recorded_steps_are_the_environments_own():
    vec_env = DummyVecEnv([pendulum])
    agent = SAC("MlpPolicy", vec_env, seed=0, device="cpu")
    episode = collect_vec_env(agent, vec_env, 8, 5, progress_bar=False)[0]
    env = pendulum()
    observation, _ = env.reset(seed=5)
    np.testing.assert_array_equal(observation, episode.observations[0])
    for t, action in enumerate(episode.actions):
        observation, reward, *_ = env.step(action)
        np.testing.assert_array_equal(observation, episode.observations[t + 1])
        assert np.float32(reward) == np.float32(episode.rewards[t])


class Reusing(gym.Wrapper):
    """Shows all observations in one array."""

    def reset(self, **settings):
        observation, info = self.env.reset(**settings)
        self.array = getattr(self, "array", observation)
        self.array[:] = observation
        return self.array, info

    def step(self, action):
        self.array[:], *more = self.env.step(action)
        return self.array, *more


class Still(Counting):
    """Shows the same at every step, as an environment of one decision does."""

    def step(self, action):
        _, *more = super().step(action)
        return np.zeros(2, np.float32), *more

    def reset(self, **settings):
        return np.zeros(2, np.float32), super().reset(**settings)[1]


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda: Reusing(Counting()), True),
        (Counting, False),
        (Still, False),
        (lambda: Reusing(Still()), False),
    ],
)
def test_a_last_observation_that_is_lost_in_another_process_is_said(
    make, wrong, stacked, monkeypatch, recwarn
):
    vec_env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(make(), LIMIT) for _ in range(2)])
    vec_env = VecFrameStack(vec_env, 2) if stacked else vec_env
    collect_vec_env(Echo(), vec_env, 12, 0, progress_bar=False)  # makes copies
    assert not recwarn.list
    monkeypatch.setattr(collecting, "DummyVecEnv", SubprocVecEnv)  # which it cannot reach into
    collect_vec_env(Echo(), vec_env, 12, 0, progress_bar=False)
    said = [str(one.message) for one in recwarn]
    assert ["the recorded one is wrong" in text for text in said] == [True] * wrong
