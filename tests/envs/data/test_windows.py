"""Histories and chunks: what the data become, and how an agent acts that learned from them."""

from __future__ import annotations

import dataclasses
import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from checkpoint_files import change_header, rewrite
from factory import make_dataset, mapped, numbered_episodes, same_parameters, write_buffers
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy

from qgpo import BC, QGPO, BCConfig, Ensemble, OfflineDataset, evaluate, load_agent, load_dataset
from qgpo.agents.core.checkpoint import CheckpointError
from qgpo.envs.data.windows import windowed
from qgpo.envs.tasks.window import Window

TINY = BCConfig(steps=3, batch_size=4, hidden=(8,))


def numbered(lengths=(7, 4), terminated=(True, False)) -> OfflineDataset:
    source = write_buffers(numbered_episodes(lengths, terminated))
    return load_dataset(source, progress_bar=False)


def test_by_hand():
    """Episode 0: 7 steps, terminated. Episode 1: 4 steps, cut. Two observations, three actions."""
    data = windowed(numbered(), history=2, chunk=3)
    first = data.states[:, 0::2]  # the first number of each observation: oldest, newest
    # from step 0: decisions at 0, 3, 6; the last one ends after its first action
    assert first[:4].tolist() == [[0, 0], [2, 3], [5, 6], [6, 7]]
    assert np.allclose(
        data.actions[:3], [[0, 0.001, 0.002], [0.003, 0.004, 0.005], [0.006] * 3], atol=1e-7
    )
    assert data.rewards[:3].tolist() == [0.5 + 1.5 + 2.5, 3.5 + 4.5 + 5.5, 6.5]
    assert data.terminations[:3].tolist() == [False, False, True]
    # from step 1: decisions at 1, 4, which ends with the episode; from step 2: at 2, 5
    assert data.episode_lengths.tolist() == [3, 2, 2, 1, 1]
    assert data.rewards[3:7].tolist() == [1.5 + 2.5 + 3.5, 4.5 + 5.5 + 6.5, 10.5, 5.5 + 6.5]
    # episode 1 is cut: its decisions at 3 (from 0) and from step 2 on would be cut short
    assert data.rewards[7:].tolist() == [100.5 + 101.5 + 102.5, 101.5 + 102.5 + 103.5]
    assert data.truncations[7:].tolist() == [True, True]
    assert first[-2:].tolist() == [[100, 101], [103, 104]]
    assert data.details["episode"].tolist() == [0, 0, 0, 1, 1]
    assert data.details["first_step"].tolist() == [0, 1, 2, 0, 1]
    assert data.first_readings.tolist() == [0, 3]
    assert data.observation_space.shape == (4,)
    assert data.action_space.shape == (3,)


def test_returns_are_those_of_the_recordings_once_each():
    """Whole ones: the second, which is cut, has a step more than its decisions."""
    recorded = numbered()
    data = windowed(recorded, history=2, chunk=3)
    assert data.recorded_returns.tolist() == recorded.episode_returns.tolist()
    assert len(data.episode_returns) == 5
    assert recorded.recorded_returns.tolist() == recorded.episode_returns.tolist()
    assert data.first(2).recorded_returns.tolist() == recorded.episode_returns[:1].tolist()
    twice = OfflineDataset.concatenate([data, data])
    assert twice.recorded_returns.tolist() == 2 * recorded.episode_returns.tolist()
    assert f"(mean {recorded.episode_returns.mean():.4g})" in repr(data)


def test_rewards_are_scaled_by_the_returns_of_whole_episodes_however_many_are_decided():
    recorded = numbered((7, 7), (False, False))
    expected = 1000.0 / np.ptp(recorded.episode_returns)
    seen = windowed(recorded, chunk=3)
    assert np.allclose(seen.tuned_rewards("locomotion"), expected * seen.rewards)
    same = make_dataset(lengths=(6, 6), rewards=np.ones(12, np.float32))
    assert windowed(same, chunk=3).tuned_rewards("locomotion").max() == 3.0


def test_a_recorded_episode_is_counted_once():
    data = windowed(numbered(), chunk=3)
    assert data.n_episodes == 5
    assert "in 2 episodes (1 terminated, 1 truncated)" in repr(data)


def test_one_of_each_is_the_dataset_itself():
    data = make_dataset()
    assert windowed(data, 1, 1) is data
    assert data.window is None
    assert data.first_readings.tolist() == list(range(data.n_episodes))


def test_a_chunk_ends_where_the_task_does_though_the_recording_goes_on():
    data = make_dataset((6,), terminated=[False])
    terminations = np.array([False, True, False, False, False, False])
    data = dataclasses.replace(data, terminations=terminations)
    seen = windowed(data, chunk=3)
    assert seen.terminations[:2].tolist() == [True, False]
    assert seen.rewards[0] == pytest.approx(data.rewards[:2].sum())
    assert seen.rewards[1] == pytest.approx(data.rewards[3:].sum())


class Chunks(gym.Wrapper):
    """An environment whose step executes a chunk."""

    def step(self, chunk):
        total = 0.0
        for action in np.split(chunk, 3):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += reward
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


def test_the_data_are_those_of_an_environment_whose_step_is_a_chunk():
    plain, chunked = (gym.make("Pendulum-v1", max_episode_steps=12) for _ in range(2))
    chunked = Chunks(chunked)
    actions = np.random.default_rng(0).uniform(-2, 2, (12, 1)).astype(np.float32)
    rows, rewards = [plain.reset(seed=3)[0]], []
    for action in actions:
        observation, reward, *_ = plain.step(action)
        rows.append(observation)
        rewards.append(reward)
    data = OfflineDataset.from_arrays(
        np.array(rows),
        actions,
        rewards,
        np.zeros(12),
        action_space=spaces.Box(-2.0, 2.0, (1,), np.float32),
    )
    data = windowed(data, chunk=3)
    observation, _ = chunked.reset(seed=3)
    for k, chunk in enumerate(np.split(actions[:, 0], 4)):
        assert np.allclose(data.observations[k], observation)
        assert np.allclose(data.actions[k], chunk)
        observation, reward, *_ = chunked.step(chunk)
        assert data.rewards[k] == pytest.approx(reward, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"history": 0}, "history=0, expected an integer from 1 to 1000"),
        ({"chunk": 1.5}, "chunk=1.5, expected an integer"),
        ({"chunk": 9}, "chunk=9, and no episode has so many steps"),
        ({"history": 2, "storage": "memmap"}, "held in memory; leave storage away"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    source = write_buffers(numbered_episodes((4,), (False,)))
    with pytest.raises(ValueError, match=said):
        load_dataset(source, progress_bar=False, **options)


def test_windows_are_not_opened_twice_nor_joined_with_others():
    data = make_dataset()
    seen = windowed(data, history=2)
    with pytest.raises(ValueError, match="has history 2, chunk 1 already"):
        windowed(seen, chunk=2)
    assert OfflineDataset.concatenate([seen, seen]).window == Window(2, 1)
    assert windowed(mapped(data), history=2).fingerprint == seen.fingerprint


# Acting -----------------------------------------------------------------------------------


class Told:
    """What an agent was asked, and answers that say when: observation's newest number + place."""

    def __init__(self, agent: BC, window: Window, size: int) -> None:
        self.asked: list[np.ndarray] = []
        self.window, self.size = window, size
        agent.act = self.act

    def act(self, observations: torch.Tensor, deterministic: bool) -> torch.Tensor:
        rows = observations.numpy().reshape(len(observations), self.window.history, self.size)
        self.asked.append(rows[:, :, 0])
        newest = rows[:, -1, :1] / 1000.0
        return torch.tensor(newest + np.arange(self.window.chunk) / 100.0, dtype=torch.float32)


@pytest.fixture
def told():
    """An agent of two observations and three actions, whose answers are known."""
    agent = BC(TINY, device="cpu").learn(windowed(make_dataset(), history=2, chunk=3))
    return agent, Told(agent, Window(2, 3), 3)


def observation(*numbers):
    return np.array([[n, 0.0, 0.0] for n in numbers], np.float32)


def test_a_chunk_is_handed_out_before_the_next_is_decided(told):
    agent, said = told
    state, actions = None, []
    for step in range(1, 6):
        action, state = agent.predict(observation(step)[0], state, deterministic=True)
        assert action.shape == (1,)
        actions.append(round(float(action[0]), 4))
    assert [rows.tolist() for rows in said.asked] == [[[1, 1]], [[3, 4]]]
    assert actions == [0.001, 0.011, 0.021, 0.004, 0.014]


def test_episodes_side_by_side_begin_by_themselves(told):
    agent, said = told
    _, state = agent.predict(observation(1, 10))
    before = [part.copy() for part in state]
    starts = np.array([False, True])
    actions, after = agent.predict(observation(2, 20), state, starts)
    assert [rows.tolist() for rows in said.asked] == [[[1, 1], [10, 10]], [[20, 20]]]
    assert np.allclose(actions[:, 0], [0.011, 0.020])
    assert all(np.array_equal(a, b) for a, b in zip(before, state, strict=True))
    assert after[2].tolist() == [1, 2]


def test_actions_of_chunks_are_inside_the_bounds():
    """0.1 is a little more than 0.1 in float32, in which the memory is."""
    space = spaces.Box(-0.1, 0.1, (1,), np.float64)
    recorded = make_dataset(actions=np.zeros((16, 1), np.float32))
    data = windowed(dataclasses.replace(recorded, action_space=space), chunk=2)
    agent = BC(TINY, device="cpu").learn(data)
    agent.act = lambda observations, deterministic: torch.ones(len(observations), 2)
    action, _ = agent.predict(data.observations[0], deterministic=True)
    assert action.dtype == np.float64
    assert space.contains(action)
    assert action == pytest.approx(0.1)


def test_a_state_of_something_else_is_refused(told):
    agent, _ = told
    _, state = agent.predict(observation(1, 2))
    for other in ((state[0],), "text"):
        with pytest.raises(ValueError, match=r"state is .*at the start of an episode None"):
            agent.predict(observation(1, 2), other)
    with pytest.raises(ValueError, match="state is"):
        agent.predict(observation(1), state)
    with pytest.raises(ValueError, match=r"observation has shape \(1, 6\), expected \(3,\)"):
        agent.predict(np.zeros((1, 6)))


@pytest.fixture
def agent(short_pendulum):
    data = make_dataset((9, 8, 7), action_space=spaces.Box(-2.0, 2.0, (1,), np.float32))
    data = dataclasses.replace(data, env_spec=gym.spec("Pendulum-v1"))
    return BC(TINY, device="cpu").learn(windowed(data, history=2, chunk=3))


def test_it_plays_in_the_environment_as_any_other_agent(agent):
    """Five steps, so that the second chunk is cut; alone, side by side and by SB3's function."""
    alone = [evaluate(agent, "Pendulum-v1", 1, seed=s).returns[0] for s in range(3)]
    together = evaluate(agent, "Pendulum-v1", 3, seed=0)
    assert together.lengths == [5, 5, 5]
    assert np.allclose(together.returns, alone)
    vector = evaluate(agent, gym.make_vec("Pendulum-v1", 2), 2, seed=0)
    assert np.allclose(vector.returns, alone[:2])
    agent.set_env("Pendulum-v1")
    returns, lengths = evaluate_policy(
        agent, agent.get_env(), n_eval_episodes=2, return_episode_rewards=True
    )
    assert lengths == [5, 5]
    assert np.isfinite(returns).all()
    with pytest.raises(ValueError, match="this agent was made for"):
        agent.set_env("MountainCarContinuous-v0")


def test_the_file_keeps_the_window(agent, tmp_path):
    agent.save(tmp_path / "a.zip")
    read = load_agent(tmp_path / "a.zip", env="Pendulum-v1", device="cpu")
    assert read.window == Window(2, 3)
    assert same_parameters(read.get_parameters(), agent.get_parameters())
    assert evaluate(read, "Pendulum-v1", 2).returns == evaluate(agent, "Pendulum-v1", 2).returns
    assert Ensemble([agent, read]).predict(observation(1)[0])[0].shape == (1,)
    for odd in ({"history": 2}, {"history": 2, "chunk": 0}, 3):
        agent.save(tmp_path / "b.zip")
        rewrite(tmp_path / "b.zip", change_header(window=odd))
        with pytest.raises(CheckpointError, match="cannot be used"):
            load_agent(tmp_path / "b.zip")


def test_training_goes_on_with_the_same_window_alone(agent):
    other = windowed(make_dataset((9, 8), 6), chunk=3)
    with pytest.raises(ValueError, match="has history 1, chunk 3, this agent was made for hist"):
        agent.learn(other, reset_num_timesteps=False, allow_other_dataset=True)
    agent.learn(other)
    assert agent.window == Window(1, 3)


def test_an_environment_that_was_given_before_the_data_is_seen_through_the_window(short_pendulum):
    data = make_dataset((9, 8, 7), action_space=spaces.Box(-2.0, 2.0, (1,), np.float32))
    agent = BC(TINY, env="Pendulum-v1", device="cpu").learn(windowed(data, history=2, chunk=3))
    assert agent.observation_space.shape == (6,)


def test_guidance_and_its_tuning_work_on_windows():
    from factory import WHITENED

    data = windowed(make_dataset((9, 8, 7, 9, 8, 7)), history=2, chunk=2)
    agent = QGPO(WHITENED, device="cpu").learn(data)
    tuning = agent.tune_guidance(data, (0.0, 1.0), rollouts=2, steps=3, progress_bar=False)
    assert tuning.returns.shape == (2, 2)
    action, _ = agent.predict(observation(1)[0], deterministic=True)
    assert action.shape == (1,)
    assert json.dumps(agent.window.to_json()) == '{"history": 2, "chunk": 2}'
