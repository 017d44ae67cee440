"""Fitted mixtures against closed forms, and against the problems that they are fitted to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qgpo.diffusion import PREDICTIONS, Diffusion
from qgpo.exact import GaussianMixture, draw_problem, guidance_error
from qgpo.gaussians import KINDS, CorrectedNetwork, FittedMixture, FittedTilt
from qgpo.guidance import CEP
from qgpo.guidance.base import GuidanceParts, Samples
from qgpo.guidance.cep import fit_tilt
from qgpo.schedule import make_schedule

COSINE = make_schedule("cosine")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fitted_by_hand(dim=3, components=4):
    """A mixture with given moments, and the same one in float64."""
    root = torch.randn(components, dim, dim, generator=generator(1))
    covariances = 0.2 * root @ root.mT + 0.05 * torch.eye(dim)
    mixture = FittedMixture(dim, components)
    values, axes = torch.linalg.eigh(covariances)
    weights = torch.rand(components, generator=generator(2)) + 0.1
    mixture.means.copy_(torch.randn(components, dim, generator=generator(3)))
    mixture.log_weights.copy_(torch.log(weights / weights.sum()))
    mixture.variances.copy_(values)
    mixture.axes.copy_(axes)
    return mixture, GaussianMixture(weights, mixture.means, covariances)


def noisy(dim, n=9):
    x, t = torch.randn(n, dim, generator=generator(4)), torch.linspace(0.02, 0.98, n)
    return x, t, COSINE.alpha(t), COSINE.sigma(t)


def test_densities_and_posterior_means_are_those_of_the_mixture():
    mixture, expected = fitted_by_hand()
    x, _, alpha, sigma = noisy(3)
    exact = expected.log_density(x, alpha.double(), sigma.double())
    difference = mixture.log_density(x, alpha, sigma).double() - exact
    torch.testing.assert_close(difference, difference[:1].expand(9), atol=1e-4, rtol=0.0)
    score = expected.score(x, alpha.double(), sigma.double())
    mean = (x + sigma[:, None] ** 2 * score) / alpha[:, None]  # Tweedie's formula
    torch.testing.assert_close(
        mixture.denoise(x, alpha, sigma).double(), mean, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_correction_of_zero_leaves_the_mixture_s_denoiser(prediction):
    schedule = make_schedule("ot" if prediction == "flow" else "cosine")

    class Zero(nn.Module):
        def forward(self, x_t, t, condition):
            return torch.zeros_like(x_t)

    mixture, _ = fitted_by_hand()
    network = CorrectedNetwork(Zero(), mixture, schedule, prediction)
    x, t, *_ = noisy(3)
    expected = mixture.denoise(x, schedule.alpha(t), schedule.sigma(t))
    found = Diffusion(network, schedule, prediction).denoise(x, t, None)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_one_component_has_the_moments_of_the_points():
    x = torch.randn(2_000, 2, generator=generator()) @ torch.tensor([[1.0, 0.4], [0.0, 0.5]])
    mixture = FittedMixture(2, 1)
    mixture.fit(x, generator())
    covariance = mixture.axes[0] @ mixture.variances[0].diag() @ mixture.axes[0].mT
    torch.testing.assert_close(mixture.means[0], x.mean(dim=0), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(covariance, torch.cov(x.mT, correction=0), atol=5e-3, rtol=0.0)


@pytest.mark.parametrize("n", [2, 5, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_few_and_equal_points_give_a_mixture(n, kind):
    for x in (torch.randn(n, 2, generator=generator()), torch.ones(n, 2)):
        tilt = FittedTilt(2, 8)
        tilt.fit(x, torch.linspace(0.0, 30.0, n), generator(), kind)
        y, _, alpha, sigma = noisy(2)
        assert torch.isfinite(tilt.f(y, alpha, sigma)).all()
        assert torch.isfinite(tilt.q.denoise(y, alpha, sigma)).all()
        assert tilt.p.log_weights.exp().sum() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_energies_give_no_guidance(kind):
    tilt = FittedTilt(2, 8)
    tilt.fit(torch.randn(500, 2, generator=generator()), torch.ones(500), generator(), kind)
    x, _, alpha, sigma = noisy(2)
    torch.testing.assert_close(tilt.f(x, alpha, sigma), torch.zeros(9), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize(("dim", "energy"), [(2, "constant"), (2, "quadratic"), (4, "linear")])
def test_a_drawn_problem_s_guidance_is_found(dim, energy):
    problem = draw_problem(50, dim, energy)
    x, preference = problem.draw(8_000, generator())
    mean, std = x.mean(dim=0), x.std(dim=0)
    tilt = FittedTilt(dim, 12)
    fit_tilt(tilt, Samples(((x - mean) / std).float(), (3.0 * preference).float()), COSINE)

    def gradient(x_t, t):
        x_t = x_t.detach().requires_grad_()
        f = tilt.f(x_t, COSINE.alpha(t), COSINE.sigma(t))
        return torch.autograd.grad(f.sum(), x_t)[0]

    exact = problem.standardised(mean, std).tilted(3.0, COSINE)
    assert guidance_error(gradient, exact, n_times=7, n_samples=300).relative < 0.06


def test_overlapping_components_of_different_energy_are_told_apart():
    # two equal components at the same place: f* is constant, whatever the points' energies
    x = torch.randn(4_000, 2, generator=generator())
    f_0 = 3.0 * (torch.arange(4_000) % 2).float()
    tilt = FittedTilt(2, 8)
    fit_tilt(tilt, Samples(x, f_0), COSINE)
    y, _, alpha, sigma = noisy(2, 30)
    assert tilt.f(y, alpha, sigma).std() < 0.25


def test_fewer_components_are_found_and_the_others_weigh_nothing():
    x = torch.randn(3_000, 2, generator=generator())
    tilt = FittedTilt(2, 8)
    tilt.fit(x, x[:, 0], generator(), "curved", components=1)
    # N(0, I) and e^x: p = N((1, 0), I), so that f_t has the gradient (alpha, 0)
    y, _, alpha, sigma = noisy(2)
    y.requires_grad_()
    found = torch.autograd.grad(tilt.f(y, alpha, sigma).sum(), y)[0]
    expected = torch.stack([alpha, torch.zeros(9)], dim=-1)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.0)
    assert int((tilt.q.log_weights > -50.0).sum()) == 1


@pytest.mark.parametrize(("slope", "share"), [(0.0, 1.0), (1.0, 0.0)])
def test_as_much_of_a_network_s_correction_is_kept_as_pays(slope, share):
    # the network adds alpha x_0 to the mixtures' f, which lacks it, or has it already
    class Slope(nn.Module):
        def forward(self, x_t, t, condition):
            return x_t[:, 0]

    x = torch.randn(1_000, 2, generator=generator())
    parts = GuidanceParts(2, COSINE, None, Slope, None, components=2)
    guidance = CEP(parts)
    guidance.tilt.fit(x, slope * x[:, 0], generator(), "curved")
    guidance.finish(Samples(x, x[:, 0]))
    assert float(guidance.share) == share
