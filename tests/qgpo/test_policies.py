"""Losses of the policies without guidance, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qgpo.networks import GaussianPolicy, MLPNoiseNetwork, TwinQ, deterministic_policy
from qgpo.policies import (
    DenoisingChain,
    advantage_weights,
    diffusion_ql_loss,
    imitation_loss,
    normalized_q_loss,
    perturbed,
    td3_bc_loss,
    weighted_likelihood_loss,
)

NO_STATE = torch.zeros(2, 1)


def gaussian(mean: float, std: float, state_dependent_std: bool = False) -> GaussianPolicy:
    """N(mean, std^2) in one dimension, whatever the state."""
    policy = GaussianPolicy(1, 1, (4,), state_dependent_std)
    nn.init.zeros_(policy.mean.weight)
    nn.init.constant_(policy.mean.bias, math.atanh(mean))
    if state_dependent_std:
        nn.init.zeros_(policy.log_std.weight)
        nn.init.constant_(policy.log_std.bias, math.log(std))
    else:
        nn.init.constant_(policy.log_std, math.log(std))
    return policy


def linear_critic(first: float, second: float) -> TwinQ:
    """Q_i(s, a) = c_i a."""
    critic = TwinQ(1, 1, ())
    for head, weight in zip(critic.heads, (first, second), strict=True):
        head[0].weight.data = torch.tensor([[0.0, weight]])
        nn.init.zeros_(head[0].bias)
    return critic


def test_advantage_weights_are_clipped():
    # exp(3 * 1) = 20.09, exp(3 * 2) = 403 > 100
    weights = advantage_weights(torch.tensor([0.0, 1.0, -1.0, 2.0]), 3.0, 100.0)
    assert weights.tolist() == pytest.approx([1.0, math.exp(3.0), math.exp(-3.0), 100.0])
    assert advantage_weights(torch.tensor([5.0]), 0.0, 100.0).tolist() == [1.0]


def test_target_noise_is_clipped_and_the_action_stays_inside():
    actions, noise = torch.tensor([0.0, 0.9, -0.2]), torch.tensor([2.0, 0.3, -0.1])
    assert perturbed(actions, noise, 0.5).tolist() == pytest.approx([0.5, 1.0, -0.3])


def test_weighted_likelihood_by_hand():
    # actions 0 and 1/2 under N(0, 1/4): z = 0 and 1, weights 1 and 3
    policy = gaussian(0.0, 0.5)
    actions, weights = torch.tensor([[0.0], [0.5]]), torch.tensor([1.0, 3.0])
    loss, metrics = weighted_likelihood_loss(policy, NO_STATE, actions, weights)
    constant = math.log(0.5) + 0.5 * math.log(2 * math.pi)
    assert loss.item() == pytest.approx((1 * constant + 3 * (0.5 + constant)) / 2, rel=1e-5)
    assert metrics["weight"].item() == pytest.approx(2.0)
    assert metrics["mse"].item() == pytest.approx(0.125)


@pytest.mark.parametrize("state_dependent_std", [True, False])
def test_imitation_by_hand(state_dependent_std):
    # errors 0 and 1/2 with std 1/2: z^2 / 2 is 0 and 1/2
    policy = gaussian(0.0, 0.5, state_dependent_std)
    loss, metrics = imitation_loss(policy, NO_STATE, torch.tensor([[0.0], [0.5]]))
    assert metrics["mse"].item() == pytest.approx(0.125)
    nll = 0.25 + math.log(0.5) + 0.5 * math.log(2 * math.pi)
    assert metrics["nll"].item() == pytest.approx(nll, rel=1e-5)
    assert loss.item() == pytest.approx(0.125 + nll, rel=1e-5)


def test_the_likelihood_has_no_gradient_in_the_mean():
    policy = GaussianPolicy(1, 1, (4,), state_dependent_std=True)
    observations, actions = torch.randn(8, 1), torch.rand(8, 1)
    _, metrics = imitation_loss(policy, observations, actions)
    shared = [*policy.features.parameters(), *policy.mean.parameters()]
    assert torch.autograd.grad(metrics["nll"], shared, allow_unused=True) == (None,) * len(shared)


def test_td3_bc_loss_by_hand():
    # pi = 1/2, Q_1 = 4 pi = 2, lambda = 2.5 / 2; errors 1/2 and 0
    policy = deterministic_policy(1, 1, (4,))
    nn.init.zeros_(policy[0][-1].weight)
    nn.init.constant_(policy[0][-1].bias, math.atanh(0.5))
    actions = torch.tensor([[0.0], [0.5]])
    loss, metrics = td3_bc_loss(policy, linear_critic(4.0, -9.0), NO_STATE, actions, 2.5)
    assert metrics["lambda"].item() == pytest.approx(1.25)
    assert metrics["mse"].item() == pytest.approx(0.125)
    assert loss.item() == pytest.approx(-2.5 + 0.125, rel=1e-5)
    # the gradient in pi: -lambda 4 + 2 (1/2 - mean a); d tanh = 1 - 1/4
    (gradient,) = torch.autograd.grad(loss, [policy[0][-1].bias])
    assert gradient.item() == pytest.approx((-1.25 * 4 + 0.5) * 0.75, rel=1e-5)
    imitation, _ = td3_bc_loss(policy, linear_critic(4.0, -9.0), NO_STATE, actions, 0.0)
    assert imitation.item() == pytest.approx(0.125)


def test_normalized_q_loss_by_hand():
    q = torch.tensor([1.0, 3.0], requires_grad=True)
    scale = torch.tensor([-2.0, 6.0], requires_grad=True)
    loss = normalized_q_loss(q, scale)
    assert loss.item() == pytest.approx(-2.0 / 4.0)
    loss.backward()
    assert q.grad.tolist() == pytest.approx([-0.125, -0.125])
    assert scale.grad is None


def chain(steps: int, dim: int = 1) -> DenoisingChain:
    return DenoisingChain(MLPNoiseNetwork(dim, 1, (4,)), steps)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_chain_s_noise_levels_are_diffusion_ql_s(steps):
    # alpha_k^2 is the product of 1 - beta_i = exp(-0.1 / N - 9.9 (2 i - 1) / (2 N^2))
    product = 1.0
    for k in range(1, steps + 1):
        product *= math.exp(-0.1 / steps - 9.9 * (2 * k - 1) / (2 * steps**2))
        assert chain(steps).alphas[k] ** 2 == pytest.approx(product)
        assert chain(steps).variances[k] == pytest.approx(1.0 - product)
    assert chain(steps).variances[0] == 0.0


def test_chain_of_two_steps_by_hand():
    # a network of zero output estimates a_0 = a / alpha, clamped
    model = chain(2)
    noise = torch.tensor([[[0.01]], [[2.0]]])
    alpha_1, alpha_2 = model.alphas[1:]
    var_1, var_2 = model.variances[1:]
    a_0 = 0.01 / alpha_2
    added = 1.0 - (alpha_2 / alpha_1) ** 2
    mean = (alpha_1 * added * a_0 + alpha_2 / alpha_1 * var_1 * 0.01) / var_2
    a_1 = mean + math.sqrt(added * var_1 / var_2) * 2.0
    expected = min(1.0, a_1 / alpha_1)
    assert model.sample(noise, torch.zeros(1, 1)).item() == pytest.approx(expected, rel=1e-4)
    assert model.sample(50.0 * noise, torch.zeros(1, 1)).item() == 1.0
    assert model.sample(-50.0 * noise, torch.zeros(1, 1)).item() == -1.0


class TrueNoise(nn.Module):
    """E[eps | a_t] for actions that are equally often N(m, std^2) for each of the means."""

    def __init__(self, model: DenoisingChain, means: list[float], std: float) -> None:
        super().__init__()
        self.schedule, self.means, self.std = model.schedule, torch.tensor(means), std

    def forward(self, a_t, t, condition):
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        distance, variance = a_t - alpha * self.means, (alpha * self.std) ** 2 + sigma**2
        weights = torch.softmax(-0.5 * distance**2 / variance, dim=-1)
        return torch.sum(weights * sigma * distance / variance, dim=-1, keepdim=True)


def samples_of(steps: int, means: list[float], std: float) -> torch.Tensor:
    model = chain(steps)
    model.network = TrueNoise(model, means, std)
    noise = torch.randn(steps, 4000, 1, generator=torch.Generator().manual_seed(0))
    return model.sample(noise, torch.zeros(4000, 1))


def test_chain_samples_a_known_gaussian():
    samples = samples_of(500, [0.2], 0.1)
    assert samples.mean().item() == pytest.approx(0.2, abs=0.005)
    assert samples.std().item() == pytest.approx(0.1, rel=0.06)


def test_a_chain_of_many_steps_keeps_two_modes_apart_and_one_of_five_fills_the_gap():
    # the variance of a step is the smallest it may be: right for small steps only
    for steps, spread, between in ((50, 0.5, 0.0), (5, 0.31, 0.28)):
        samples = samples_of(steps, [-0.5, 0.5], 0.05)
        assert samples.mean().item() == pytest.approx(0.0, abs=0.03)
        assert samples.abs().mean().item() == pytest.approx(spread, abs=0.02)
        assert (samples.abs() < 0.2).float().mean().item() == pytest.approx(between, abs=0.03)


def test_chain_loss_of_a_zero_network_is_the_variance_of_the_noise():
    actions = torch.zeros(20_000, 2)
    loss, _ = chain(5, 2).loss(actions, torch.zeros(20_000, 1), torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(1.0, abs=0.03)


def test_diffusion_ql_loss_sums_its_parts_and_q_reaches_the_first_step():
    torch.manual_seed(0)
    model, critic = chain(3), linear_critic(2.0, 4.0)
    nn.init.normal_(model.network.net[-1].weight, std=0.01)
    actions = torch.tensor([[0.1], [0.3]])
    parts = [
        diffusion_ql_loss(model, critic, NO_STATE, actions, eta, torch.Generator().manual_seed(1))
        for eta in (0.0, 2.0)
    ]
    metrics = parts[1][1]
    assert parts[0][0].item() == pytest.approx(metrics["denoising_loss"].item())
    total = metrics["denoising_loss"] + 2.0 * metrics["q_loss"]
    assert parts[1][0].item() == pytest.approx(total.item())
    noise = torch.full((3, 2, 1), 0.01, requires_grad=True)
    model.sample(noise, NO_STATE).sum().backward()
    assert (noise.grad.abs() > 0.0).all()
