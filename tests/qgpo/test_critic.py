from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qgpo.critic import (
    critic_loss,
    expectile_loss,
    in_support_expectile,
    in_support_value,
    lambda_returns,
    polyak_update,
    td_target,
)
from qgpo.networks import TwinQ


def test_in_support_value_by_hand():
    # weights (1/4, 3/4) of the values (0, 1)
    value = in_support_value(torch.tensor([[0.0, 1.0]]), math.log(3.0))
    assert value.tolist() == pytest.approx([0.75])


@pytest.mark.parametrize(("beta_q", "expected"), [(0.0, 2.0), (1e4, 4.0), (-1e4, 0.0)])
def test_in_support_value_limits(beta_q, expected):
    q = torch.tensor([[[0.0, 2.0, 4.0]] * 2] * 3)
    value = in_support_value(q, beta_q)
    assert value.shape == (3, 2)
    torch.testing.assert_close(value, torch.full((3, 2), expected))


def test_target_is_cut_on_termination_only():
    rewards, values = torch.tensor([1.0, 1.0]), torch.tensor([10.0, 10.0])
    terminations = torch.tensor([1.0, 0.0])  # the second transition may well be truncated
    assert td_target(rewards, terminations, values, 0.9).tolist() == pytest.approx([1.0, 10.0])


# Two episodes: three steps that terminate, two steps that are truncated.
REWARDS = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
TERMINATIONS = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
LAST_STEPS = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0])
NEXT_VALUES = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])


@pytest.mark.parametrize(
    ("lambda_", "expected"),
    [
        (0.0, [1 + 5, 2 + 10, 3, 4 + 20, 5 + 25]),
        # backwards: 3; 2 + .5 (10 + 1.5); 1 + .5 (5 + 3.875); 5 + .5 * 50; 4 + .5 (20 + 15)
        (0.5, [5.4375, 7.75, 3.0, 21.5, 30.0]),
        # backwards: 3; 2 + 1.5; 1 + 1.75; 5 + 25 (bootstrap at the truncation); 4 + 15
        (1.0, [2.75, 3.5, 3.0, 19.0, 30.0]),
    ],
)
def test_lambda_returns_by_hand(lambda_, expected):
    returns = lambda_returns(REWARDS, TERMINATIONS, LAST_STEPS, NEXT_VALUES, 0.5, lambda_)
    assert returns.dtype == torch.float32
    assert returns.tolist() == pytest.approx(expected)


def test_lambda_zero_is_the_one_step_target():
    torch.testing.assert_close(
        lambda_returns(REWARDS, TERMINATIONS, LAST_STEPS, NEXT_VALUES, 0.9, 0.0),
        td_target(REWARDS, TERMINATIONS, NEXT_VALUES, 0.9),
    )


@pytest.mark.parametrize("tau", [0.0, 0.25, 1.0])
def test_polyak_update_by_hand(tau):
    source, target = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    for value in (*source.parameters(), *source.buffers()):
        value.data.fill_(4)
    for value in (*target.parameters(), *target.buffers()):
        value.data.fill_(0)
    polyak_update(source, target, tau)
    assert target.weight.item() == pytest.approx(4 * tau)
    assert target.running_mean.item() == pytest.approx(4 * tau)
    assert source.weight.item() == 4
    assert target.num_batches_tracked.item() == 0


def test_critic_loss_regresses_both_heads():
    critic = TwinQ(1, 1, ())
    for head, weight in zip(critic.heads, (1.0, 2.0), strict=True):
        nn.init.constant_(head[0].weight, weight)
        nn.init.zeros_(head[0].bias)
    observations, actions = torch.tensor([[1.0]]), torch.tensor([[2.0]])
    # heads give 3 and 6, the target is 4: (1 + 4) / 2
    loss, metrics = critic_loss(critic, observations, actions, torch.tensor([4.0]))
    assert loss.item() == pytest.approx(2.5)
    assert metrics["q"].item() == pytest.approx(4.5)
    assert critic(observations, actions).item() == pytest.approx(3.0)


def test_a_baseline_learns_alone_and_leaves_the_heads_the_rest():
    critic = TwinQ(1, 1, (), baseline=True)
    for layer, weight in ((critic.value[0], 1.0), (critic.heads[0][0], 2.0)):
        nn.init.constant_(layer.weight, weight)
        nn.init.zeros_(layer.bias)
    critic.heads[1].load_state_dict(critic.heads[0].state_dict())
    observations, actions = torch.tensor([[1.0]]), torch.tensor([[2.0]])
    # V = 1, A = 2 (1 + 2) = 6, Q = 7; the target is 4
    loss, metrics = critic_loss(critic, observations, actions, torch.tensor([4.0]))
    assert critic.both(observations, actions).tolist() == [[7.0], [7.0]]
    assert critic.first(observations, actions).item() == 7.0
    assert metrics["loss"].item() == 9.0  # (7 - 4)^2
    assert metrics["value_loss"].item() == 9.0  # (1 - 4)^2
    loss.backward()
    # V moves by its own error alone, d/db (b + 1 - 4)^2 = -6: the heads' would add + 6
    assert critic.value[0].bias.grad.item() == -6.0
    assert critic.heads[0][0].bias.grad.item() == 3.0  # half of 2 (7 - 4): two heads are averaged


def test_expectile_value_by_hand():
    # uniform on [-1, 1]: 0.9 (1 - v)^2 = 0.1 (1 + v)^2, so v = (3 - 1) / (3 + 1)
    q = torch.linspace(-1.0, 1.0, 2001)[None].repeat(2, 1)
    torch.testing.assert_close(
        in_support_expectile(q, 0.9), torch.full((2,), 0.5), atol=1e-3, rtol=0
    )
    few = torch.tensor([[0.0, 1.0, 5.0]])
    assert float(in_support_expectile(few, 0.5)) == pytest.approx(2.0)
    assert float(in_support_expectile(few, 1.0)) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("expectile", "expected"),
    [(0.7, (0.7 * 4 + 0.3 * 1) / 2), (0.5, 0.5 * 2.5), (0.9, (0.9 * 4 + 0.1 * 1) / 2)],
)
def test_expectile_loss_by_hand(expectile, expected):
    differences = torch.tensor([2.0, -1.0])
    assert expectile_loss(differences, expectile).item() == pytest.approx(expected)


def test_the_expectile_of_a_fair_coin_is_the_expectile():
    # d/dv [tau (1 - v)^2 + (1 - tau) v^2] = 0 at v = tau
    value = torch.tensor(0.7, requires_grad=True)
    expectile_loss(torch.tensor([0.0, 1.0]) - value, 0.7).backward()
    assert value.grad.item() == pytest.approx(0.0, abs=1e-7)
