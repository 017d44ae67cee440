from __future__ import annotations

import math

import pytest
import torch

from qgpo.diffusion import Diffusion, diffuse
from qgpo.exact import (
    GaussianMixture,
    MixtureNetwork,
    ring_of_gaussians,
    tilt_components,
    tilt_quadratic,
)
from qgpo.schedule import make_schedule

COSINE = make_schedule("cosine")


def random_mixture(dim, k=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(k, dim, dim, generator=generator).double()
    return GaussianMixture(
        torch.rand(k, generator=generator) + 0.2,
        torch.randn(k, dim, generator=generator),
        0.3 * root @ root.mT + 0.1 * torch.eye(dim).double(),
    )


def tilted(dim, kind):
    q = random_mixture(dim)
    if kind == "components":
        return tilt_components(q, torch.tensor([0.0, 2.0, -1.0]), COSINE)
    return tilt_quadratic(q, torch.linspace(-1, 1, dim), -0.4 * torch.eye(dim), COSINE)


every_tilt = pytest.mark.parametrize(
    ("dim", "kind"), [(d, k) for d in (1, 2, 5) for k in ("components", "quadratic")]
)


def test_density_by_hand():
    q = GaussianMixture(
        torch.tensor([1.0, 3.0]), torch.tensor([[0.0], [2.0]]), torch.tensor([[[1.0]], [[4.0]]])
    )
    one, zero = torch.ones(1).double(), torch.zeros(1).double()
    expected = 0.25 * math.exp(-0.5) / math.sqrt(2 * math.pi) + 0.75 * math.exp(-1 / 8) / math.sqrt(
        8 * math.pi
    )
    found = q.log_density(torch.tensor([[1.0]]), one, zero).exp()
    assert found.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_score_is_the_gradient_of_the_log_density(dim):
    q = random_mixture(dim)
    x = torch.randn(7, dim).double().requires_grad_()
    alpha, sigma = torch.linspace(0.1, 1, 7).double(), torch.linspace(0.9, 0.05, 7).double()
    gradient = torch.autograd.grad(q.log_density(x, alpha, sigma).sum(), x)[0]
    torch.testing.assert_close(q.score(x.detach(), alpha, sigma), gradient)


@every_tilt
def test_guidance_is_the_gradient_of_f(dim, kind):
    exact = tilted(dim, kind)
    x = torch.randn(9, dim).double().requires_grad_()
    t = torch.linspace(0.01, 0.99, 9).double()
    gradient = torch.autograd.grad(exact.f(x, t).sum(), x)[0]
    torch.testing.assert_close(exact.gradient(x.detach(), t), gradient)


@every_tilt
def test_f_is_the_log_posterior_mean_by_monte_carlo(dim, kind):
    exact = tilted(dim, kind)
    generator = torch.Generator().manual_seed(1)
    x_0, component = exact.q.sample(400_000, generator)
    if kind == "components":
        f_0 = torch.tensor([0.0, 2.0, -1.0]).double()[component]
    else:
        f_0 = x_0 @ torch.linspace(-1, 1, dim).double() - 0.2 * (x_0**2).sum(-1)
    for time in (0.5, 0.7, 0.9):
        t = torch.tensor([time]).double()
        x_t = diffuse(x_0[:1], t, torch.full((1, dim), 0.3).double(), COSINE)
        distance = (x_t - COSINE.alpha(t) * x_0).square().sum(-1)
        log_posterior = torch.log_softmax(-0.5 * distance / COSINE.sigma(t) ** 2, dim=0)
        found = torch.logsumexp(log_posterior + f_0, dim=0)
        assert float(found) == pytest.approx(float(exact.f(x_t, t)), abs=0.03)


@pytest.mark.parametrize("dim", [1, 3])
def test_f_at_time_zero_is_the_energy(dim):
    exact = tilted(dim, "quadratic")
    x = torch.randn(6, dim).double()
    f_0 = x @ torch.linspace(-1, 1, dim).double() - 0.2 * (x**2).sum(-1)
    torch.testing.assert_close(exact.f(x, torch.zeros(6)), f_0)


@every_tilt
def test_samples_have_the_moments_of_the_mixture(dim, kind):
    p = tilted(dim, kind).p
    x, component = p.sample(200_000, torch.Generator().manual_seed(0))
    share = torch.bincount(component, minlength=3) / len(x)
    torch.testing.assert_close(share.double(), p.weights, atol=0.01, rtol=0.0)
    for k in range(3):
        chosen = x[component == k]
        if len(chosen) > 5000:
            torch.testing.assert_close(chosen.mean(0), p.means[k], atol=0.1, rtol=0.0)
            torch.testing.assert_close(chosen.T.cov().view(dim, dim), p.covariances[k], **LOOSE)


LOOSE = {"atol": 0.3, "rtol": 0.1}


@every_tilt
def test_reweighted_samples_of_q_have_the_mean_of_p(dim, kind):
    exact = tilted(dim, kind)
    x, component = exact.q.sample(300_000, torch.Generator().manual_seed(0))
    if kind == "components":
        f_0 = torch.tensor([0.0, 2.0, -1.0]).double()[component]
    else:
        f_0 = x @ torch.linspace(-1, 1, dim).double() - 0.2 * (x**2).sum(-1)
    assert float(f_0.exp().mean().log()) == pytest.approx(exact.log_normalizer, abs=0.02)
    mean = (torch.softmax(f_0, 0)[:, None] * x).sum(0)
    expected = (exact.p.weights[:, None] * exact.p.means).sum(0)
    torch.testing.assert_close(mean, expected, atol=0.03, rtol=0.0)


def test_the_perfect_network_denoises_to_the_posterior_mean():
    q = random_mixture(2)
    model = Diffusion(MixtureNetwork(q, COSINE), COSINE, "noise")
    t = torch.tensor([0.6]).double()
    x_t = torch.tensor([[0.4, -0.2]]).double()
    x_0, _ = q.sample(400_000, torch.Generator().manual_seed(0))
    distance = (x_t - COSINE.alpha(t) * x_0).square().sum(-1)
    posterior = torch.softmax(-0.5 * distance / COSINE.sigma(t) ** 2, dim=0)
    mean = (posterior[:, None] * x_0).sum(0, keepdim=True)
    torch.testing.assert_close(model.denoise(x_t, t, None), mean, atol=0.01, rtol=0.0)


def test_affine_maps_densities():
    q, shift, scale = random_mixture(2), torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5])
    x = torch.randn(5, 2).double()
    one, zero = torch.ones(5).double(), torch.zeros(5).double()
    mapped = q.affine(shift, scale).log_density((x - shift) / scale, one, zero)
    torch.testing.assert_close(mapped - scale.double().log().sum(), q.log_density(x, one, zero))


def test_points_are_components_too():
    q = GaussianMixture(torch.ones(2), torch.tensor([[0.0], [1.0]]), torch.zeros(2, 1, 1))
    x, component = q.sample(10, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x[:, 0], component.double())


@pytest.mark.parametrize("dim", [2, 8])
def test_the_ring_has_eight_components_of_equal_weight(dim):
    q = ring_of_gaussians(dim)
    assert q.means.shape == (8, dim)
    torch.testing.assert_close(q.weights, torch.full((8,), 0.125).double())
    torch.testing.assert_close(q.means.norm(dim=-1), torch.full((8,), 4 / math.sqrt(2)).double())


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "message"),
    [
        (torch.ones(2), torch.zeros(3, 1), torch.ones(3, 1, 1), "weights"),
        (torch.tensor([1.0, -1.0]), torch.zeros(2, 1), torch.ones(2, 1, 1), "positive"),
        (torch.ones(1), torch.zeros(1, 1), -torch.ones(1, 1, 1), "semidefinite"),
    ],
)
def test_malformed_mixtures_are_refused(weights, means, covariances, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(weights, means, covariances)


def test_an_energy_that_outgrows_q_is_refused():
    with pytest.raises(ValueError, match="no finite mean"):
        tilt_quadratic(random_mixture(2), torch.zeros(2), 100.0 * torch.eye(2), COSINE)
    with pytest.raises(ValueError, match="f_0 has shape"):
        tilt_components(random_mixture(2), torch.zeros(2), COSINE)
