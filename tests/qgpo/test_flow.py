"""Losses of flow policies, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qgpo.flow import (
    ACTION_BOUND,
    distillation_loss,
    flow_actions,
    flow_matching_loss,
    inside,
    one_step_loss,
)
from qgpo.networks import FlowNetwork, TwinQ

NO_STATE = torch.zeros(2, 1)


def linear_flow(x: float, t: float = 0.0, bias: float = 0.0, timed: bool = True) -> FlowNetwork:
    """Output x * input + t * time + bias in one dimension, whatever the state."""
    network = FlowNetwork(1, 1, (), timed=timed)
    weights = [0.0, x, t] if timed else [0.0, x]
    network.net[0].weight.data = torch.tensor([weights])
    network.net[0].bias.data = torch.tensor([bias])
    return network


def linear_critic(first: float, second: float) -> TwinQ:
    """Q_i(s, a) = c_i a."""
    critic = TwinQ(1, 1, ())
    for head, weight in zip(critic.heads, (first, second), strict=True):
        head[0].weight.data = torch.tensor([[0.0, weight]])
        nn.init.zeros_(head[0].bias)
    return critic


class Straight(nn.Module):
    """The true velocity where all data are one action: (a - x_t) / (1 - t)."""

    def __init__(self, action: float) -> None:
        super().__init__()
        self.action = action

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return (self.action - x_t) / (1.0 - t[..., None])


def test_flow_matching_by_hand():
    # first row: x_t = (3/4) 2 + (1/4) (-1/2) = 11/8, velocity -1/2 - 2 = -5/2
    # second row: x_t = 1/2 (0) + 1/2 (1/2) = 1/4, velocity 1/2
    actions, noise = torch.tensor([[-0.5], [0.5]]), torch.tensor([[2.0], [0.0]])
    t = torch.tensor([0.25, 0.5])
    network = linear_flow(x=1.0, t=2.0)  # predicts 11/8 + 1/2 and 1/4 + 1
    loss, metrics = flow_matching_loss(network, NO_STATE, actions, noise, t)
    errors = (1.875 + 2.5, 1.25 - 0.5)
    assert loss.item() == pytest.approx((errors[0] ** 2 + errors[1] ** 2) / 2)
    assert metrics["flow_loss"] is loss
    # d/d bias = 2 mean error
    (gradient,) = torch.autograd.grad(loss, [network.net[0].bias])
    assert gradient.item() == pytest.approx(sum(errors))


def test_the_true_velocity_of_one_action_has_no_loss_and_leads_there():
    velocity, noise = Straight(0.3), torch.tensor([[1.7], [-0.4]])
    actions, t = torch.full((2, 1), 0.3), torch.tensor([0.0, 0.9])
    loss, _ = flow_matching_loss(velocity, NO_STATE, actions, noise, t)
    assert loss.item() == pytest.approx(0.0, abs=1e-10)
    for steps in (1, 2, 10):
        found = flow_actions(velocity, NO_STATE, noise, steps)
        assert found.flatten().tolist() == pytest.approx([0.3, 0.3], abs=1e-6)


class TwoModes(nn.Module):
    """The true velocity E[a - z | x_t] of actions that are equally often N(+-1/2, std^2)."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.means, self.variance = torch.tensor([-0.5, 0.5]), std**2

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        t = t[..., None]
        error, variance = x_t - t * self.means, t**2 * self.variance + (1.0 - t) ** 2
        action = self.means + t * self.variance / variance * error
        noise = (1.0 - t) / variance * error
        weights = torch.softmax(-0.5 * error**2 / variance, dim=-1)
        return torch.sum(weights * (action - noise), dim=-1, keepdim=True)


def test_ten_steps_keep_two_modes_apart_and_two_do_not():
    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    for steps, spread, between in ((2, 0.18, 0.6), (5, 0.43, 0.08), (10, 0.49, 0.007)):
        found = flow_actions(TwoModes(0.05), torch.zeros(20_000, 1), noise, steps)
        assert found.mean().item() == pytest.approx(0.0, abs=0.02)
        assert found.abs().mean().item() == pytest.approx(spread, abs=0.01)
        assert (found.abs() < 0.2).float().mean().item() == pytest.approx(between, abs=0.01)


def test_euler_by_hand():
    # dx/dt = x + 2 t + 1/10: from 1/5 by two steps of 1/2
    # t = 0: v = 0.3, x = 0.35; t = 1/2: v = 0.35 + 1 + 0.1 = 1.45, x = 1.075
    network = linear_flow(x=1.0, t=2.0, bias=0.1)
    noise = torch.tensor([[0.2], [-0.6]])
    # the second: v = -0.5, x = -0.85; v = -0.85 + 1.1 = 0.25, x = -0.725
    found = flow_actions(network, NO_STATE, noise, 2)
    assert found.flatten().tolist() == pytest.approx([1.0, -0.725])  # 1.075 is clipped


def test_euler_clips_at_the_end_alone():
    # from 1/2 to 3/2 and back to 3/4: clipping between the steps would end at 1/4
    network = linear_flow(x=0.0, t=-7.0, bias=2.0)
    found = flow_actions(network, NO_STATE, torch.full((2, 1), 0.5), 2)
    assert found.flatten().tolist() == pytest.approx([0.75, 0.75])


def test_flow_actions_keep_leading_dimensions():
    torch.manual_seed(0)
    network = FlowNetwork(2, 3, (8,))
    observations, noise = torch.randn(4, 5, 3), torch.randn(4, 5, 2)
    found = flow_actions(network, observations, noise, 3)
    rows = flow_actions(network, observations.flatten(0, 1), noise.flatten(0, 1), 3)
    assert torch.allclose(found.flatten(0, 1), rows, atol=1e-6)


def test_distillation_by_hand_and_the_flow_gets_no_gradient():
    proposed = torch.tensor([[0.5], [-1.5]], requires_grad=True)
    targets = torch.tensor([[0.0], [-1.0]], requires_grad=True)
    loss = distillation_loss(proposed, targets)
    assert loss.item() == pytest.approx(0.25)
    loss.backward()
    assert proposed.grad.flatten().tolist() == pytest.approx([0.5, -0.5])
    assert targets.grad is None


@pytest.mark.parametrize("normalize_q_loss", [False, True])
def test_one_step_loss_by_hand(normalize_q_loss):
    # mu = z / 2 + 1/4 at z = 1/2 and 3: 1/2, and 7/4 which Q sees as 1
    policy, critic = linear_flow(0.5, bias=0.25, timed=False), linear_critic(4.0, 8.0)
    noise, targets = torch.tensor([[0.5], [3.0]]), torch.tensor([[0.25], [1.0]])
    loss, metrics = one_step_loss(policy, critic, NO_STATE, noise, targets, 10.0, normalize_q_loss)
    distillation = (0.25**2 + 0.75**2) / 2
    assert metrics["distillation_loss"].item() == pytest.approx(distillation)
    # mean of both heads: 6 a = 3 and 6, of mean 9/2
    scale = 4.5 if normalize_q_loss else 1.0
    assert metrics["q_loss"].item() == pytest.approx(-4.5 / scale)
    assert loss.item() == pytest.approx(10.0 * distillation - 4.5 / scale)
    # d/d bias: 10 (1/4 + 3/4) - 6 / 2, since the clipped action has no gradient in Q
    (gradient,) = torch.autograd.grad(loss, [policy.net[0].bias])
    assert gradient.item() == pytest.approx(10.0 * 1.0 - 3.0 / scale)


def test_without_alpha_only_q_remains():
    policy, critic = linear_flow(0.5, timed=False), linear_critic(1.0, 3.0)
    noise, targets = torch.tensor([[0.5], [1.0]]), torch.tensor([[0.9], [-0.9]])
    loss, metrics = one_step_loss(policy, critic, NO_STATE, noise, targets, 0.0, False)
    assert loss.item() == pytest.approx(-2.0 * 0.375)
    assert loss.item() == metrics["q_loss"].item()


def test_actions_are_clipped_just_inside():
    actions = torch.tensor([-1.0, -0.5, 1.0])
    assert inside(actions).tolist() == pytest.approx([-ACTION_BOUND, -0.5, ACTION_BOUND])
    assert ACTION_BOUND == 1.0 - 1e-5
