from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qgpo import PRESETS
from qgpo.networks import (
    BatchedMLP,
    EnergyNetwork,
    FlowNetwork,
    FourierFeatures,
    GaussianPolicy,
    MLPNoiseNetwork,
    TwinQ,
    UNetMLP,
    gaussian_log_prob,
    gelu_mlp,
    gelu_twin_q,
    mlp,
    xavier_start,
)


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.usefixtures("true_widths")
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


def test_gelu_mlp_layout():
    kinds = [type(layer) for layer in gelu_mlp([3, 4, 4, 1], layer_norm=True)]
    hidden = [nn.Linear, nn.GELU, nn.LayerNorm]
    assert kinds == [*hidden, *hidden, nn.Linear]
    assert [type(layer) for layer in gelu_mlp([3, 4, 1])] == [nn.Linear, nn.GELU, nn.Linear]


def test_gelu_mlp_by_hand():
    # GELU by tanh, then standardised with 1e-6 added to the variance, then summed with weights
    net = gelu_mlp([1, 2, 1], layer_norm=True)
    net[0].weight.data = torch.tensor([[1.0], [-2.0]])
    net[-1].weight.data = torch.tensor([[3.0, 1.0]])
    x = 0.003  # so small that the epsilon shows
    gelu = [
        0.5 * v * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (v + 0.044715 * v**3)))
        for v in (x, -2.0 * x)
    ]
    half = (gelu[0] - gelu[1]) / 2.0
    normal = half / math.sqrt(half**2 + 1e-6)
    assert net(torch.tensor([[x]])).item() == pytest.approx(3.0 * normal - normal, rel=1e-4)


def test_xavier_start_has_the_bounds_of_glorot_and_bengio():
    torch.manual_seed(0)
    net = xavier_start(mlp([40, 60, 20]))
    assert not net[0].bias.any()
    for layer, bound in ((net[0], math.sqrt(6 / 100)), (net[2], math.sqrt(6 / 80))):
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    small = gelu_mlp([40, 60, 20], last_gain=0.1)
    assert 0.099 * bound < small[2].weight.abs().max() <= 0.1 * bound
    assert small[0].weight.abs().max() > 0.2


def test_gelu_twin_q_has_two_heads_of_such_layers():
    torch.manual_seed(0)
    critic = gelu_twin_q(3, 2, (4,))
    kinds = [nn.Linear, nn.GELU, nn.LayerNorm, nn.Linear]
    assert [[type(layer) for layer in head] for head in critic.heads] == [kinds, kinds]
    assert not torch.equal(critic.heads[0][0].weight, critic.heads[1][0].weight)
    plain = gelu_twin_q(3, 2, (4,), layer_norm=False)
    assert [type(layer) for layer in plain.heads[0]] == [nn.Linear, nn.GELU, nn.Linear]


@pytest.mark.parametrize("timed", [True, False])
def test_flow_network_is_an_mlp_of_state_action_and_time(timed):
    network = FlowNetwork(2, 3, (8,), timed=timed)
    x, t, condition = torch.randn(5, 2), torch.rand(5), torch.randn(5, 3)
    parts = [condition, x, t[:, None]] if timed else [condition, x]
    out = network(x, t if timed else None, condition)
    assert torch.equal(out, network.net(torch.cat(parts, dim=-1)))
    assert out.shape == (5, 2)


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


def test_one_layer_by_hand():
    network = BatchedMLP(1, [2, 2, 1])
    values = [[[1.0, -1.0], [0.0, 2.0]]], [[[0.5, 0.5]]], [[[1.0], [3.0]]], [[[0.25]]]
    hidden, bias, last, last_bias = map(torch.tensor, values)
    for parameter, value in zip(network.parameters(), (hidden, last, bias, last_bias), strict=True):
        parameter.data.copy_(value)
    outputs = network(torch.tensor([[[1.0, 1.0], [2.0, 0.0]]]))
    # hidden (1.5, 1.5) and (2.5, -1.5)
    assert outputs.tolist() == [[[1.5 + 4.5 + 0.25], [2.5 + 0.25]]]
    outputs.sum().backward()
    assert network.weights[0].grad.tolist() == [[[3.0, 3.0], [1.0, 3.0]]]
    assert network.weights[1].grad.tolist() == [[[4.0], [1.5]]]
    assert network.biases[0].grad.tolist() == [[[2.0, 3.0]]]
