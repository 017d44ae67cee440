"""The picture of a trained agent shows what its critic says, in the environment's units."""

from __future__ import annotations

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from factory import WHITENED, make_dataset
from gymnasium import spaces
from matplotlib.figure import Figure

from qgpo import BC, QGPO
from qgpo.envs.play.scores import summarize
from qgpo.experiments import agent_figure

SHORT = replace(gymnasium.spec("Pendulum-v1"), max_episode_steps=6)
TORQUE = spaces.Box(-2.0, 2.0, (1,), np.float32)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(lengths=(9, 8, 7), action_space=TORQUE)


@pytest.fixture(scope="module")
def agent(dataset):
    torch.set_num_threads(1)
    config = replace(WHITENED, trust_power=4.0, reward_tuning="unit")
    return QGPO(config, seed=0).learn(dataset)


def test_q_is_read_in_the_units_of_the_environment(agent, dataset):
    critic = agent_figure.Critic(agent, dataset)
    raw = torch.tensor(dataset.rewards)
    tuned = critic.scale * raw + critic.shift
    torch.testing.assert_close(tuned, critic.data.rewards, atol=1e-5, rtol=1e-5)
    observations = agent_figure.some_states(critic.data, 4)
    actions = torch.zeros(4, 1, 1)
    before = critic.q(observations, actions)
    critic.scale *= 2.0
    np.testing.assert_allclose(critic.q(observations, actions), before / 2.0)


def test_where_episodes_end_a_shifted_reward_is_the_unit(agent):
    """Nothing converts Q: the shift of an episode depends on its length."""
    data = make_dataset(lengths=(9, 8, 7), terminated=(True,) * 3, action_space=TORQUE)
    tuned = replace(WHITENED, reward_tuning="antmaze")
    ending = agent_figure.Critic(QGPO(tuned, device="cpu").learn(data), data)
    assert ending.own_unit
    assert ending.reward(3.0) == pytest.approx(3.0 - 1.0, abs=1e-5)
    observations, actions = agent_figure.some_states(ending.data, 4), torch.zeros(4, 1, 1)
    before = ending.q(observations, actions)
    ending.shift = 5.0
    np.testing.assert_array_equal(ending.q(observations, actions), before)
    plain = agent_figure.Critic(QGPO(WHITENED, device="cpu").learn(data), data)
    assert (plain.own_unit, plain.reward(3.0)) == (False, 3.0)


def test_one_episode_has_no_error_bar():
    axis = Figure().subplots()
    agent = QGPO(WHITENED, device="cpu")
    one = summarize("Pendulum-v1", [-10.0], [6], [0], 0, None)
    three = summarize("Pendulum-v1", [-10.0, -20.0, -60.0], [6] * 3, [0, 1, 2], 0, None)
    agent_figure._draw_returns(axis, agent, make_dataset(), [(0.0, one), (1.0, three)], None)
    (bars,) = axis.containers[0].lines[2]
    (low, high), interval = (segment[:, 1] for segment in bars.get_segments()), three.interval
    assert low.tolist() == [-10.0, -10.0]
    assert high.tolist() == pytest.approx(interval)


def test_an_episode_has_its_discounted_returns(agent, dataset, monkeypatch):
    course = agent_figure.follow(agent_figure.Critic(agent, dataset), SHORT, seed=3)
    rewards = []
    env = gymnasium.make(SHORT)
    observation, _ = env.reset(seed=3)
    for _ in range(6):
        action, _ = agent.predict(observation, deterministic=True)
        observation, reward, *_ = env.step(action)
        rewards.append(reward)
    expected = [sum(agent.gamma**k * r for k, r in enumerate(rewards[t:])) for t in range(6)]
    np.testing.assert_allclose(course.followed, expected, rtol=1e-6)
    assert course.expected.shape == course.distances.shape == (6,)


def test_a_picture_is_drawn_and_leaves_the_agent_as_it_was(agent, dataset, tmp_path):
    state = agent.prediction_generator.get_state()
    played = summarize("Pendulum-v1", [-10.0, -20.0], [6, 6], [0, 1], 0, None)
    path = tmp_path / "agent.png"
    agent_figure.draw_agent(path, agent, dataset, SHORT, 0, [(None, played), (0.0, played)])
    assert path.read_bytes().startswith(b"\x89PNG")
    assert torch.equal(agent.prediction_generator.get_state(), state)


def test_agents_without_guidance_are_refused():
    with pytest.raises(ValueError, match="expected one run of QGPO"):
        agent_figure.check_drawable(BC("laptop"))
