from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qgpo import PRESETS
from qgpo.networks import (
    EnergyNetwork,
    FourierFeatures,
    GaussianPolicy,
    MLPNoiseNetwork,
    TwinQ,
    UNetMLP,
    gaussian_log_prob,
    mlp,
)


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_behavior_network_of_the_paper_has_the_papers_size():
    network = UNetMLP(dim=6, condition_dim=17)
    assert n_parameters(network) == 1_634_278
    assert "time.0.frequencies" in dict(network.named_buffers())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schedule", "linear"),
        ("prediction", "noise"),
        ("behavior_hidden", ()),
        ("behavior_steps", 600_000),
        ("behavior_batch_size", 4096),
        ("behavior_learning_rate", 1e-4),
        ("ema_decay", 0.0),
        ("whitening_steps", 0),
        ("normalize_observations", False),
        ("support_actions", 16),
        ("support_solver_steps", 15),
        ("critic_hidden", (256, 256, 256)),
        ("critic_layer_norm", False),
        ("critic_steps", 500_000),
        ("critic_batch_size", 256),
        ("critic_learning_rate", 3e-4),
        ("gamma", 0.99),
        ("tau", 0.005),
        ("beta_q", 1.0),
        ("critic_lambda", 0.0),
        ("reward_tuning", "locomotion"),
        ("energy_hidden", (256, 256, 256, 256)),
        ("energy_time_scale", 30.0),
        ("energy_steps", 1_000_000),
        ("energy_batch_size", 256),
        ("energy_learning_rate", 3e-4),
        ("beta", 3.0),
        ("q_unit", "reward"),
        ("learning_rate_decay", False),
        ("solver", "dpm_solver_2m"),
        ("solver_steps", 15),
        ("spacing", "time"),
    ],
)
def test_paper_preset_is_the_authors_setting(field, value):
    assert getattr(PRESETS["paper"], field) == value


@pytest.mark.parametrize("condition_dim", [0, 3])
@pytest.mark.parametrize(
    "make",
    [
        lambda c: UNetMLP(2, c),
        lambda c: MLPNoiseNetwork(2, c, (8,)),
        lambda c: EnergyNetwork(2, c, (8,), 1.0),
    ],
    ids=["unet", "mlp", "energy"],
)
def test_shapes_with_and_without_condition(make, condition_dim):
    network = make(condition_dim)
    condition = torch.randn(5, condition_dim) if condition_dim else None
    out = network(torch.randn(5, 2), torch.rand(5), condition)
    assert out.shape == ((5,) if isinstance(network, EnergyNetwork) else (5, 2))


@pytest.mark.parametrize(
    "network", [UNetMLP(2, 3), EnergyNetwork(2, 3, (8,), 30.0)], ids=["unet", "energy"]
)
def test_output_depends_on_every_input(network):
    x, t, condition = torch.randn(1, 2), torch.rand(1), torch.randn(1, 3)
    out = network(x, t, condition)
    assert not torch.equal(out, network(x + 1, t, condition))
    assert not torch.equal(out, network(x, t * 0.5, condition))
    assert not torch.equal(out, network(x, t, condition + 1))


def test_plain_network_starts_at_zero():
    network = MLPNoiseNetwork(2, 3, (8, 8))
    assert not network(torch.randn(5, 2), torch.rand(5), torch.randn(5, 3)).any()


def test_fourier_features_by_hand():
    features = FourierFeatures(4, 1.0)
    features.frequencies.copy_(torch.tensor([1.0, 0.5]))
    out = features(torch.tensor([0.25]))
    # angles pi/2 and pi/4
    assert out[0].tolist() == pytest.approx([1.0, 0.5**0.5, 0.0, 0.5**0.5], abs=1e-6)


def test_twin_q_is_the_smaller_head_and_broadcasts():
    critic = TwinQ(3, 2, (8,))
    observations, actions = torch.randn(4, 5, 3), torch.randn(4, 5, 2)
    both = critic.both(observations, actions)
    assert both.shape == (2, 4, 5)
    assert not torch.equal(both[0], both[1])
    assert torch.equal(critic(observations, actions), both.min(dim=0).values)


def test_mlp_layout():
    kinds = [type(layer) for layer in mlp([3, 4, 4, 1], "silu", layer_norm=True)]
    hidden = [nn.Linear, nn.LayerNorm, nn.SiLU]
    assert kinds == [*hidden, *hidden, nn.Linear]


def test_gaussian_log_prob_by_hand():
    # two dimensions at distance 1 and 0 standard deviations, of std 2 and 1/2: their logs cancel
    mean, std = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 0.5])
    found = gaussian_log_prob(mean, std, torch.tensor([2.0, 1.0]))
    assert found.item() == pytest.approx(-0.5 - math.log(2 * math.pi))


def test_gaussian_policy_keeps_shapes_and_bounds():
    policy = GaussianPolicy(3, 2, (8,), state_dependent_std=True)
    mean, std = policy.moments(100.0 * torch.randn(4, 5, 3))
    assert mean.shape == std.shape == (4, 5, 2)
    assert mean.abs().max() <= 1.0
    assert std.min() >= math.exp(-5.0)
    assert std.max() <= math.exp(2.0) * 1.0001
    assert GaussianPolicy(3, 2, (), True).moments(torch.zeros(1, 3))[0].shape == (1, 2)
