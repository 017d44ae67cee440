from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qgpo.dynamics import DynamicsEnsemble
from qgpo.normalization import Identity, ObservationNormalizer, Whitening


def test_observations_are_standardised_by_hand():
    normalizer = ObservationNormalizer(2)
    normalizer.fit(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
    assert normalizer.mean.tolist() == [2.0, 7.0]
    assert normalizer.std.tolist() == [1.0, 1.0]  # a constant dimension keeps 1
    assert normalizer(torch.tensor([5.0, 7.5])).tolist() == [3.0, 0.5]


def test_fitted_observations_have_mean_zero_and_unit_variance():
    normalizer = ObservationNormalizer(3)
    data = torch.randn(1000, 3) * torch.tensor([0.1, 1.0, 50.0]) + 100.0
    normalizer.fit(data)
    out = normalizer(data)
    torch.testing.assert_close(out.mean(dim=0), torch.zeros(3), rtol=0.0, atol=1e-3)
    torch.testing.assert_close(out.std(dim=0), torch.ones(3), rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("unit", [1e-30, 1e-10, 1e-6, 1e-3, 1e20, 1e37])
def test_data_in_any_unit_are_standardised(unit):
    data = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * unit
    data[:, 1] = unit / 3.0
    normalizer = ObservationNormalizer(3)
    normalizer.fit(data)
    out = normalizer(data)
    torch.testing.assert_close(out[:, ::2].std(dim=0, correction=0), torch.ones(2))
    assert normalizer.std[1] == 1.0


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([[0.0, 0.0], [2.0, 1e-7]], [1.0, 1.0]),  # rounding, beside a column of usual size
        ([[0.0, 0.0], [2e-3, 1e-7]], [1e-3, 5e-8]),  # in proportion
        ([[0.3, 0.3], [0.3 + 3e-8, 0.3]], [1.0, 1.0]),  # jitter of float32 alone
        ([[1e-9, 1e-9], [1e-9, 1e-9]], [1.0, 1.0]),
    ],
)
def test_constant_is_relative_to_the_other_columns_and_to_rounding(columns, expected):
    normalizer = ObservationNormalizer(2)
    normalizer.fit(torch.tensor(columns))
    assert normalizer.std.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("unit", [1e-30, 1e-9, 1.0, 1e25])
def test_dynamics_are_learned_in_the_unit_of_the_data(unit):
    states, rewards = torch.tensor([[0.0, 5.0], [2.0, 5.0], [3.0, 5.0]]) * unit, torch.arange(3.0)
    model = DynamicsEnsemble(2, 1)
    model.fit_scales(states[:-1], states[1:], rewards[:-1] * unit)
    assert model.change.tolist() == pytest.approx([unit * 0.5, 1e-6])
    assert model.reward_std.item() == pytest.approx(unit * 0.5)
    model.fit_scales(states[:1], states[1:2], rewards[:1] * unit)  # one row
    assert torch.isfinite(model.reward_std)
    assert bool(torch.isfinite(model.change).all())


def test_identity_until_fitted():
    x = torch.randn(4, 3)
    assert torch.equal(ObservationNormalizer(3)(x), x)


@pytest.mark.parametrize("whitening", [Whitening(3, 2, (8,)), Identity()])
def test_decode_inverts_encode(whitening):
    observations, actions = torch.randn(6, 5, 3), torch.rand(6, 5, 2) * 2 - 1
    z = whitening.encode(observations, actions)
    assert z.shape == actions.shape
    torch.testing.assert_close(whitening.decode(observations, z), actions)
    if isinstance(whitening, Whitening):
        assert not torch.allclose(z, actions)


def test_encode_by_hand():
    whitening = Whitening(1, 1, ())
    for layer in (whitening.policy.mean, whitening.policy.log_std):
        nn.init.zeros_(layer.weight)
    whitening.policy.mean.bias.data = torch.tensor([math.atanh(0.5)])
    whitening.policy.log_std.bias.data = torch.tensor([math.log(0.25)])
    z = whitening.encode(torch.zeros(1, 1), torch.tensor([[1.0]]))
    assert z.item() == pytest.approx(2.0)


def test_spread_is_bounded_from_below():
    whitening = Whitening(1, 1, ())
    nn.init.zeros_(whitening.policy.log_std.weight)
    whitening.policy.log_std.bias.data = torch.tensor([-100.0])
    _, std = whitening.moments(torch.zeros(1, 1))
    assert std.item() == pytest.approx(whitening.min_std)


def test_fit_finds_the_moments_of_a_gaussian_policy():
    torch.manual_seed(0)
    whitening = Whitening(1, 1, (16,))
    optimizer = torch.optim.Adam(whitening.parameters(), lr=1e-2)
    for _ in range(400):
        observations = torch.rand(256, 1) * 2 - 1
        actions = 0.5 * observations + 0.1 * torch.randn(256, 1)
        loss, _ = whitening.loss(observations, actions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mean, std = whitening.moments(torch.tensor([[-0.8], [0.0], [0.8]]))
    torch.testing.assert_close(mean, torch.tensor([[-0.4], [0.0], [0.4]]), rtol=0.0, atol=0.05)
    torch.testing.assert_close(std, torch.full((3, 1), 0.1), rtol=0.0, atol=0.03)
