"""The critics beside the paper's, on bandits whose values are known in closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from bandits import bandit
from factory import AGREEMENT, WHITENED, make_dataset
from torch import nn

from qgpo import QGPO
from qgpo.agents.guided.config import CRITICS
from qgpo.agents.guided.critics import BY_NAME

LEARNING = replace(
    WHITENED,
    critic="implicit",
    critic_hidden=(32, 32),
    critic_steps=500,
    critic_batch_size=128,
    critic_learning_rate=3e-3,
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


class Known(nn.Module):
    """A Q of the coordinate z."""

    def __init__(self, q):
        super().__init__()
        self.q = q

    def forward(self, condition, z):
        return self.q(z).squeeze(-1)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        pytest.param(lambda z: 10.0 * z + 3.0, lambda z: z, id="a multiple"),
        pytest.param(lambda z: -z, lambda z: 0.0 * z, id="the opposite"),
        pytest.param(lambda z: z.abs(), None, id="another"),
    ],
)
def test_the_agreement_has_the_units_of_both(second, expected):
    data = make_dataset()
    agent = with_critic(AGREEMENT, data)
    agent.critic.first._target = Known(lambda z: 5.0 * z)
    agent.critic.second._target = Known(second)
    support = agent.tables["support"]
    support.copy_(torch.randn(support.shape, generator=torch.Generator().manual_seed(0)))
    z = support.squeeze(-1)
    table = agent.critic.table_of_q(agent.prepare(data))
    advantages = (z - z.mean(-1, keepdim=True)) / z.std(-1).mean()
    assert float(agent.critic.scale(table)) == 1.0
    if expected is not None:
        torch.testing.assert_close(table, expected(advantages))
        return
    absolute = z.abs()
    other = (absolute - absolute.mean(-1, keepdim=True)) / absolute.std(-1).mean()
    same = advantages * other > 0.0
    assert 0 < int(same.sum()) < same.numel()
    assert torch.equal(table != 0.0, same)
    smaller = torch.minimum(advantages.abs(), other.abs()) * advantages.sign()
    torch.testing.assert_close(table[same], smaller[same])


def test_an_agreement_is_no_network():
    agent = with_critic(AGREEMENT, make_dataset())
    with pytest.raises(RuntimeError, match="no common Q"):
        _ = agent.critic.target


def test_both_critics_learn_and_say_so():
    agent = QGPO(AGREEMENT, device="cpu")
    agent.training.history = {stage: [] for stage in agent.stages}
    agent.learn(make_dataset(), log_interval=1)
    row = agent.training.history["critic"][-1]
    assert {"loss", "grad_norm", "implicit_loss", "implicit_expectile_loss"} <= set(row)
    assert all(math.isfinite(number) for number in row.values())
