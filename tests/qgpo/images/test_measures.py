"""Measures of samples against closed forms."""

from __future__ import annotations

import pytest
import torch

from qgpo.images.measures import (
    diversity,
    frechet_distance,
    frechet_per_class,
    mean_pair_distance,
)


def with_moments(mean, std, n=40, seed=0):
    """Features whose mean and (diagonal) covariance are exactly these."""
    dim = len(mean)
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(dim=0)
    root = torch.linalg.cholesky(x.T @ x / (n - 1))
    white = torch.linalg.solve_triangular(root, x.T, upper=False).T
    return torch.tensor(mean) + white * torch.tensor(std)


def test_frechet_distance_of_gaussians():
    # |m1 - m2|^2 + sum (s1 - s2)^2 where the covariances commute
    a = with_moments([0.0, 1.0, 2.0], [1.0, 2.0, 0.5])
    b = with_moments([3.0, 1.0, 2.0], [1.0, 1.0, 1.5], seed=1)
    assert frechet_distance(a, b) == pytest.approx(9.0 + 1.0 + 1.0, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_of_covariances_that_do_not_commute():
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    a, b = with_moments([0.0, 0.0], [2.0, 1.0]), with_moments([0.0, 0.0], [3.0, 0.5], seed=1)
    c_a, c_b = (
        torch.diag(torch.tensor([4.0, 1.0])),
        turn @ torch.diag(torch.tensor([9.0, 0.25]).double()) @ turn.T,
    )
    product = c_a.double() @ c_b
    # the root of a 2 x 2 matrix has the trace sqrt(tr + 2 sqrt(det))
    root = torch.sqrt(product.trace() + 2.0 * torch.sqrt(torch.det(product)))
    expected = 5.0 + 9.25 - 2.0 * float(root)
    assert frechet_distance(a, b @ turn.T) == pytest.approx(expected, rel=1e-9)


def test_a_class_is_compared_with_its_own_data():
    a, b = with_moments([0.0], [1.0]), with_moments([5.0], [1.0], seed=1)
    features, labels = torch.cat([a, b]), torch.tensor([0] * 40 + [1] * 40)
    swapped = torch.cat([b, a])
    same = frechet_per_class(features, labels, features, labels)
    assert list(same) == [0, 1]
    assert max(same.values()) < 1e-9
    crossed = frechet_per_class(features, labels, swapped, labels)
    assert crossed == pytest.approx({0: 25.0, 1: 25.0})


def test_diversity_by_hand():
    # three points, pairs at squared distances 4, 4 and 16
    points = torch.tensor([[0.0], [2.0], [4.0]])
    assert mean_pair_distance(points) == pytest.approx(8.0**0.5)
    features, groups = torch.cat([points, 10.0 + 0.5 * points]), torch.tensor([0, 0, 0, 1, 1, 1])
    assert diversity(features, groups, points) == pytest.approx(0.75)
    assert diversity(torch.ones(4, 1), torch.zeros(4), points) == 0.0


@pytest.mark.parametrize("features", [torch.zeros(1, 2), torch.zeros(3)])
def test_too_little_is_refused(features):
    with pytest.raises(ValueError, match="expected"):
        frechet_distance(features, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="at least 2"):
        mean_pair_distance(torch.zeros(1, 2))
