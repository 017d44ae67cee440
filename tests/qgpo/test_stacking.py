"""Stacking against closed forms and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from qgpo.stacking import grouped_slope, of_the_mean, stacked_weights


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_slope_is_that_of_least_squares():
    a, y = noise(50), noise(50, seed=1)
    expected = np.polyfit(a.numpy(), y.numpy(), 1)[0]
    found = grouped_slope(a + 3.0, y - 2.0, torch.arange(50))
    assert found.slope == pytest.approx(expected)
    assert found.correlation == pytest.approx(np.corrcoef(a.numpy(), y.numpy())[0, 1])


def test_the_error_is_that_of_many_drawings():
    groups = torch.arange(200).repeat_interleave(5)
    shared = noise(300, 200, seed=2)[:, groups] + 0.5 * noise(300, 1000, seed=3)
    a = noise(200, seed=4)[groups] + 0.1 * noise(1000, seed=5)
    found = [grouped_slope(a, 0.7 * a + y, groups) for y in shared]
    slopes = np.array([f.slope for f in found])
    assert slopes.mean() == pytest.approx(0.7, abs=0.02)
    assert np.mean([f.error for f in found]) == pytest.approx(slopes.std(), rel=0.15)
    single = grouped_slope(a, 0.7 * a + shared[0], torch.arange(1000))
    assert single.error < 0.7 * found[0].error  # as if all were independent


def test_a_constant_regressor_has_no_slope():
    found = grouped_slope(torch.full((10,), 0.1), noise(10), torch.arange(10))
    assert (found.slope, found.t, found.correlation) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_weights_are_those_of_scipy(seed):
    x, y = noise(3, 40, seed=seed), noise(40, seed=100 + seed)
    centered = (x - x.mean(1, keepdim=True)).T.numpy(), (y - y.mean()).numpy()
    expected = nnls(*centered)[0]
    np.testing.assert_allclose(stacked_weights(x + 1.0, y + 5.0).numpy(), expected, atol=1e-9)


def test_copies_share_a_weight_and_opposites_have_none():
    a = noise(100)
    copies = stacked_weights(torch.stack([a, a]), 2.0 * a)
    assert float(copies.sum()) == pytest.approx(2.0)
    assert stacked_weights(-a[None], a).tolist() == [0.0]


@pytest.mark.parametrize(("heads", "error"), [(2, 0.5), (2, 2.0), (4, 1.0)])
def test_the_mean_of_heads_has_the_slope_of_spearman_and_brown(heads, error):
    truth = noise(20_000)
    every = truth + error * noise(heads, 20_000, seed=1)
    outcome = truth + 3.0 * noise(20_000, seed=2)
    groups = torch.arange(20_000)
    single = grouped_slope(every[0], outcome, groups)
    mean = grouped_slope(every.mean(0), outcome, groups)
    assert mean.slope == pytest.approx(
        single.slope * of_the_mean(single.slope, heads), abs=4.0 * mean.error
    )
