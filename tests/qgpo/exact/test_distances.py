from __future__ import annotations

import math

import pytest
import torch

from qgpo.exact import (
    component_shares,
    guidance_error,
    ring_of_gaussians,
    sliced_wasserstein,
    tilt_components,
)
from qgpo.schedule import make_schedule


def test_distance_of_a_shift_is_its_length_over_the_root_of_the_dimension():
    # E over directions of (u . d)^2 is |d|^2 / D
    x = torch.randn(500, 2)
    shift = torch.tensor([3.0, 4.0])
    found = sliced_wasserstein(x, x + shift, n_directions=4000)
    assert found == pytest.approx(5.0 / math.sqrt(2.0), rel=0.03)
    assert sliced_wasserstein(x, x) == 0.0
    assert sliced_wasserstein(x, x.flip(0)) == 0.0


def test_samples_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(4, 2\)"):
        sliced_wasserstein(torch.zeros(3, 2), torch.zeros(4, 2))


def test_shares_are_the_weights():
    p = tilt_components(ring_of_gaussians(), torch.arange(8) / 2.0, make_schedule("cosine")).p
    x, _ = p.sample(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(component_shares(x, p), p.weights, atol=0.01, rtol=0.0)


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0.0), (0.0, 1.0), (1.3, 0.3)])
def test_guidance_error_of_a_multiple_of_the_exact_guidance(factor, expected):
    exact = tilt_components(ring_of_gaussians(), torch.arange(8) / 2.0, make_schedule("linear"))
    error = guidance_error(lambda x, t: factor * exact.gradient(x, t), exact, 5, 200)
    assert error.relative == pytest.approx(expected, abs=1e-3)
    assert len(error.times) == len(error.errors) == len(error.sizes) == 5
    assert error.times[0] == pytest.approx(0.02)
    assert error.times[-1] == pytest.approx(1.0)
