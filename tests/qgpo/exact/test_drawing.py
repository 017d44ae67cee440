"""Drawn problems against Monte Carlo, and what a seed decides."""

from __future__ import annotations

import pytest
import torch

from qgpo.diffusion import diffuse
from qgpo.exact import draw_problem
from qgpo.exact.drawing import AXES, ENERGIES, SPREAD
from qgpo.schedule import make_schedule

COSINE = make_schedule("cosine")
every_energy = pytest.mark.parametrize("energy", ENERGIES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def points_and_noise(problem, t, n=4):
    """Noisy points x_t (n, D) of q at one time, and that time (n,)."""
    x_0, _ = problem.draw(n, generator(5))
    times = torch.full((n,), t).double()
    noise = torch.randn(x_0.shape, generator=generator(6)).double()
    return diffuse(x_0, times, noise, COSINE), times


@every_energy
@pytest.mark.parametrize(("dim", "t"), [(2, 0.4), (2, 0.8), (8, 0.8), (16, 0.9)])
def test_f_and_its_gradient_by_monte_carlo(energy, dim, t):
    problem = draw_problem(3, dim, energy)
    exact = problem.tilted(3.0, COSINE)
    x_t, times = points_and_noise(problem, t)
    x_0, preference = problem.draw(150_000, generator())
    alpha, sigma = COSINE.alpha(times[0]), COSINE.sigma(times[0])
    log_kernel = -(torch.cdist(x_t, alpha * x_0) ** 2) / (2.0 * sigma**2)
    posterior = torch.softmax(log_kernel, dim=-1)
    label = torch.logsumexp(torch.log_softmax(log_kernel, dim=-1) + 3.0 * preference, dim=-1)
    tilted = torch.softmax(log_kernel + 3.0 * preference, dim=-1)
    effective = (1.0 / torch.sum(tilted**2, dim=-1)).min()
    assert effective > 60.0  # else this checks nothing
    error = 6.0 / float(effective) ** 0.5
    torch.testing.assert_close(exact.f(x_t, times), label, atol=error, rtol=0.0)
    gradient = alpha / sigma**2 * ((tilted - posterior) @ x_0)
    spread = float(alpha / sigma**2 * x_0.std())
    torch.testing.assert_close(exact.gradient(x_t, times), gradient, atol=error * spread, rtol=0.0)


@every_energy
def test_standardising_keeps_the_target(energy):
    problem = draw_problem(8, 4, energy)
    shift, scale = torch.tensor([1.0, -2.0, 0.5, 0.0]), torch.tensor([2.0, 0.5, 1.0, 3.0])
    expected = problem.tilted(10.0, COSINE).p.affine(shift, scale)
    found = problem.standardised(shift, scale).tilted(10.0, COSINE).p
    torch.testing.assert_close(found.weights, expected.weights)
    torch.testing.assert_close(found.means, expected.means)
    torch.testing.assert_close(found.covariances, expected.covariances)


@every_energy
def test_the_seed_decides_everything(energy):
    first, again, other = (draw_problem(seed, 2, energy) for seed in (4, 4, 5))
    drawn = [p.draw(9, generator())[1] for p in (first, again)]
    assert torch.equal(*drawn)
    assert first.q.means.shape != other.q.means.shape or not torch.equal(
        first.q.means, other.q.means
    )


def test_what_is_drawn_covers_what_it_says():
    problems = [draw_problem(seed, 2, "quadratic") for seed in range(40)]
    axes = [p.q.covariances.double().logdet().exp().sqrt() for p in problems]
    assert {len(p.q.weights) for p in problems} == set(range(3, 9))
    values = [torch.linalg.eigvalsh(p.q.covariances).sqrt() for p in problems]
    assert min(float(v.min()) for v in values) > AXES[0] - 1e-6
    assert max(float(v.max()) for v in values) < AXES[1] + 1e-6
    ratios = torch.tensor([float((v[:, 1] / v[:, 0]).max()) for v in values])
    assert ratios.min() < 1.5
    assert ratios.max() > 3.0
    assert all(bool((a > 0).all()) for a in axes)
    weights = torch.tensor([float(p.q.weights.max() / p.q.weights.min()) for p in problems])
    assert weights.min() < 2.0
    assert weights.max() > 10.0
    spreads = torch.tensor([float(p.draw(20_000, generator(1))[1].std()) for p in problems])
    assert spreads.max() < 1.1 * SPREAD
    assert spreads.median() > 0.9 * SPREAD
    signs = torch.stack([torch.linalg.eigvalsh(p.quadratic) for p in problems])
    assert (signs[:, 0] < 0).any()
    assert (signs[:, 1] > 0).any()


def test_unknown_energies_are_refused():
    with pytest.raises(ValueError, match="energy='cubic', expected one of"):
        draw_problem(0, 2, "cubic")
