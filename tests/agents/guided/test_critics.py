"""The critics beside the paper's, on bandits whose values are known in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bandits import bandit
from factory import WHITENED

from qgpo import QGPO
from qgpo.agents.guided.config import CRITICS
from qgpo.agents.guided.critics import BY_NAME

LEARNING = replace(
    WHITENED,
    critic="implicit",
    critic_hidden=(32, 32),
    critic_steps=300,
    critic_batch_size=128,
    critic_learning_rate=5e-3,
    expectile=0.9,
    tau=0.05,
    reward_tuning="none",
    support_actions=16,
)


def with_critic(config, data, support=None):
    """An agent that has been trained up to its critic, over a support that may be given."""
    agent = QGPO(config, device="cpu")
    agent.train_whitening(data)
    agent.train_behavior(data)
    agent.generate_support(data)
    if support is not None:
        agent.tables["support"][:] = support
    agent.train_critic(data)
    return agent


def value(agent):
    with torch.no_grad():
        return float(agent.critic.value(torch.zeros(1, 1)))


UNIFORM = np.random.default_rng(0).permutation(np.linspace(-1.0, 1.0, 400))


def test_every_critic_has_a_name():
    assert tuple(BY_NAME) == CRITICS


def test_v_is_the_expectile_over_the_datasets_actions():
    # 0.9 (1 - v)^2 = 0.1 (1 + v)^2 on [-1, 1]: v = 1/2
    agent = with_critic(LEARNING, bandit(UNIFORM, UNIFORM))
    assert value(agent) == pytest.approx(0.5, abs=0.06)


def test_v_is_the_expectile_over_support_actions_where_they_are_asked_for():
    # of -1/2 (three times in four) and 1/2: 0.9 (1/2 - v) = 3 * 0.1 (1/2 + v), v = 1/4
    data = bandit(UNIFORM, UNIFORM)
    config = replace(LEARNING, implicit_actions=8)
    probe = QGPO(config, device="cpu")
    probe.train_whitening(data)
    condition = torch.zeros(16, 1)
    actions = torch.tensor([-0.5, -0.5, -0.5, 0.5] * 4)[:, None]
    support = probe.behavior.whitening.encode(condition, actions).detach()
    agent = with_critic(config, data, support)
    assert value(agent) == pytest.approx(0.25, abs=0.06)
