"""Discrete actions are refused with the way out, and the way out leads somewhere."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from factory import WHITENED, make_dataset
from gymnasium import spaces

from qgpo import IQL, QGPO, OfflineDataset, evaluate
from qgpo.envs import OneHotActions, one_hot


def test_choices_become_vectors():
    assert one_hot([0, 2, 1]).tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert one_hot(np.array([[1.0], [0.0]]), 4).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    for actions, choices in [([0.5], None), ([-1, 1], None), ([3], 3), ([0], None), ([["a"]], 2)]:
        with pytest.raises(ValueError, match="expected"):
            one_hot(actions, choices)


def test_discrete_actions_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"one_hot\(actions, n\).*OneHotActions\(env\)"):
        QGPO(WHITENED, env="CartPole-v1")
    with pytest.raises(ValueError, match=r"actions has shape \(3,\).*one_hot\(actions, n\)"):
        OfflineDataset.from_arrays(np.zeros((4, 2)), np.array([0, 1, 0]), np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="expected Discrete"):
        OneHotActions(gym.make("Pendulum-v1"))


def three_arms(n=600):
    """One state, three choices with the rewards 0, 1 and 0.5, each taken as often."""
    choices = np.arange(n) % 3
    return make_dataset(
        (1,) * n,
        observation_dim=4,
        action_space=spaces.Box(0.0, 1.0, (3,), np.float32),
        terminated=[True] * n,
        states=np.zeros((2 * n, 4), np.float32),
        actions=one_hot(choices),
        rewards=np.array([0.0, 1.0, 0.5], np.float32)[choices],
    )


def test_an_agent_learns_which_choice_is_best():
    config = replace(
        IQL.presets["laptop"], steps=150, hidden=(32, 32), batch_size=64, learning_rate=3e-3
    )
    agent = IQL(config, device="cpu").learn(three_arms())
    action, _ = agent.predict(np.zeros(4), deterministic=True)
    assert int(np.argmax(action)) == 1
    guided = replace(
        WHITENED,
        **{"whitening_steps": 0, "behavior_hidden": (32, 32), "critic_hidden": (32, 32)},
        **{"behavior_steps": 300, "critic_steps": 300, "energy_steps": 300},
        **{"energy_hidden": (32, 32), "support_actions": 8, "tilt_limit": None, "beta": 20.0},
        **{"energy_batch_size": 64, "behavior_batch_size": 64, "critic_batch_size": 64},
        **{"deterministic_action": "ode", "support_solver_steps": 6, "solver_steps": 8},
    )
    agent = QGPO(guided, device="cpu").learn(three_arms())
    agent.seed_predictions(0)
    actions, _ = agent.predict(np.zeros((200, 4)))
    assert (actions.argmax(axis=1) == 1).mean() > 0.9


def test_an_environment_of_choices_is_played_by_the_largest_number():
    env = OneHotActions(gym.make("CartPole-v1"))
    assert env.action_space == spaces.Box(0.0, 1.0, (2,), np.float32)
    assert [env.action(np.array(a)) for a in ([0.2, 0.1], [0.2, 0.9])] == [0, 1]
    agent = QGPO(WHITENED, env=env, device="cpu")
    assert len(evaluate(agent, env, 2).returns) == 2
