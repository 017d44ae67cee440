"""Small data with known answers, and short trainings on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from factory import make_dataset

FAST = {
    "hidden": (32, 32),
    "batch_size": 64,
    "learning_rate": 5e-3,
    "learning_rate_decay": True,
    "normalize_observations": False,
}
CRITIC = {"reward_tuning": "none", "tau": 0.05, "gamma": 0.5}


def train(agent_class, dataset, steps, **changes):
    config = replace(agent_class.presets["paper"], **{**FAST, "steps": steps, **changes})
    return agent_class(config, seed=0, device="cpu").learn(dataset)


def bandit(actions, rewards):
    """One state; every episode is one step that terminates."""
    n = len(actions)
    return make_dataset(
        (1,) * n,
        observation_dim=1,
        terminated=[True] * n,
        states=np.zeros((2 * n, 1), np.float32),
        actions=np.asarray(actions, np.float32)[:, None],
        rewards=np.asarray(rewards, np.float32),
    )


def coin():
    """Actions -1/2 and 1/2 equally often, the right one rewarded with 1."""
    actions = np.tile([-0.5, 0.5], 200)
    return bandit(actions, actions > 0)


def two_modes(n=2000):
    """Actions around -1/2 and 1/2, reward 1 - (a - 1/2)^2."""
    rng = np.random.default_rng(0)
    actions = np.tile([-0.5, 0.5], n // 2) + rng.normal(0.0, 0.15, n)
    actions = actions.clip(-1.0, 1.0)
    return bandit(actions, 1.0 - (actions - 0.5) ** 2)


def loop(terminated, n=300):
    """A state that returns to itself with reward 1: worth 1 if that ends it, else 1 / (1 - g)."""
    return make_dataset(
        (1,) * n,
        observation_dim=1,
        terminated=[terminated] * n,
        states=np.zeros((2 * n, 1), np.float32),
        rewards=np.ones(n, np.float32),
    )


def act(agent):
    return agent.predict(np.zeros(1), deterministic=True)[0].item()


def sampled(agent, n=2000):
    agent.seed_predictions(0)
    return agent.predict(np.zeros((n, 1)))[0][:, 0]
