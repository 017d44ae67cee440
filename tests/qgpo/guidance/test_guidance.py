from __future__ import annotations

import math

import pytest
import torch
from guidance_parts import guidance_parts
from torch import nn

from qgpo.diffusion import Diffusion
from qgpo.exact import (
    GaussianMixture,
    MixtureNetwork,
    ring_of_gaussians,
    tilt_components,
    tilt_quadratic,
)
from qgpo.guidance import (
    CEP,
    DPS,
    EMSE,
    GUIDANCES,
    MSE,
    Analytic,
    AnalyticOptions,
    Samples,
    Weighted,
    cep_loss,
    check_guidance,
    make_guidance,
    weighted_loss,
)
from qgpo.guidance.emse import bounded_exp, emse_loss
from qgpo.networks import EnergyNetwork, NaturalNetwork
from qgpo.schedule import make_schedule

COSINE = make_schedule("cosine")
LINEAR_TERM = torch.tensor([1.5, -0.7]).double()
QUADRATIC_TERM = torch.tensor([[-0.8, 0.3], [0.3, 0.5]]).double()


def gaussian(isotropic):
    covariance = torch.eye(2) * 0.3 if isotropic else torch.tensor([[0.5, 0.2], [0.2, 0.3]])
    return GaussianMixture(torch.ones(1), torch.tensor([[0.4, -1.0]]), covariance[None])


def denoiser(mixture, schedule=COSINE):
    return Diffusion(MixtureNetwork(mixture, schedule), schedule, "noise").denoise


def f_0(x, condition, quadratic=True):
    value = x @ LINEAR_TERM.to(x)
    return value + 0.5 * torch.einsum("bi,ij,bj->b", x, QUADRATIC_TERM.to(x), x) * quadratic


def linear_f_0(x, condition):
    return f_0(x, condition, quadratic=False)


def points(n=40):
    t = torch.linspace(0.01, 0.99, n).double()
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0)).double()
    return x, t


def analytic(q, energy, order, covariance, gradient):
    options = {"order": order, "covariance": covariance, "gradient": gradient, "damped": False}
    return Analytic(guidance_parts(COSINE, denoise=denoiser(q), energy=energy, options=options))


@pytest.mark.parametrize("gradient", ["autograd", "shift"])
@pytest.mark.parametrize("order", [1, 2])
def test_analytic_is_exact_for_a_gaussian_with_linear_energy(order, gradient):
    q = gaussian(isotropic=False)
    exact = tilt_quadratic(q, LINEAR_TERM, torch.zeros(2, 2), COSINE)
    x, t = points()
    guidance = analytic(q, linear_f_0, order, "jacobian", gradient)
    found = guidance.gradient(x, t, None)
    assert float((found - exact.gradient(x, t)).abs().max()) < 1e-5
    torch.testing.assert_close(guidance.f(x, t, None).detach(), exact.f(x, t), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("gradient", ["autograd", "shift"])
def test_analytic_of_second_order_is_exact_for_a_gaussian_with_quadratic_energy(gradient):
    q = gaussian(isotropic=False)
    exact = tilt_quadratic(q, LINEAR_TERM, QUADRATIC_TERM, COSINE)
    x, t = points()
    second = analytic(q, f_0, 2, "jacobian", gradient)
    assert float((second.gradient(x, t, None) - exact.gradient(x, t)).abs().max()) < 1e-5
    torch.testing.assert_close(second.f(x, t, None).detach(), exact.f(x, t), atol=1e-5, rtol=0.0)
    first = analytic(q, f_0, 1, "jacobian", gradient)
    assert float((first.gradient(x, t, None) - exact.gradient(x, t)).abs().max()) > 0.01


@pytest.mark.parametrize("covariance", ["moment", "residual", "per_dimension"])
def test_tabulated_covariances_of_a_gaussian(covariance):
    isotropic = covariance != "per_dimension"
    diagonal = torch.tensor([0.3, 0.3]) if isotropic else torch.tensor([0.5, 0.2])
    q = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.diag(diagonal)[None])
    exact = tilt_quadratic(q, LINEAR_TERM, QUADRATIC_TERM, COSINE)
    guidance = analytic(q, f_0, 2, covariance, "autograd")
    generator = torch.Generator().manual_seed(0)
    x_0, _ = q.sample(40_000, generator)
    guidance.prepare(Samples(x_0, torch.zeros(len(x_0))), generator)
    for time in (0.2, 0.5, 0.8):
        t = torch.full((5,), time).double()
        x, _ = points(5)
        true = exact.gradient(x, t)
        error = (guidance.gradient(x, t, None) - true).norm() / true.norm()
        assert float(error) < 0.06


def test_analytic_damping_limits_what_it_says():
    q = gaussian(isotropic=True)
    x, t = points()
    given = {"denoise": denoiser(q), "options": {"covariance": "jacobian"}}
    undamped = analytic(q, lambda x, c: 100.0 * linear_f_0(x, c), 1, "jacobian", "shift")
    damped = Analytic(guidance_parts(COSINE, energy=undamped.energy, **given))
    assert (damped.f(x, t, None) < undamped.f(x, t, None) + 1e-9).all()
    given["options"] |= {"order": 2, "gradient": "shift"}
    convex = guidance_parts(COSINE, energy=lambda x, c: 50.0 * (x**2).sum(-1), **given)
    explosive = Analytic(convex)
    assert torch.isfinite(explosive.gradient(x, t, None)).all()


@pytest.mark.parametrize("options", [{"order": 3}, {"covariance": "c3"}, {"gradient": "x"}])
def test_unknown_analytic_options_list_the_choices(options):
    with pytest.raises(ValueError, match="expected one of"):
        AnalyticOptions(**options)


def test_an_option_that_a_guidance_does_not_have_is_refused():
    check_guidance("analytic", {"order": 2})
    with pytest.raises(ValueError, match=r"guidance_options has 'order', expected some of \[\]"):
        check_guidance("mse", {"order": 2})


def test_dps_by_hand():
    functions = {"denoise": lambda x, t, c: 3.0 * x, "energy": lambda x, c: (x**2).sum(-1)}
    guidance = DPS(guidance_parts(COSINE, **functions, options={"clamp": 2.0}))
    x, t = torch.tensor([[0.5, 1.0]]), torch.ones(1)
    assert guidance.f(x, t, None).item() == pytest.approx(1.5**2 + 2.0**2)
    assert guidance.gradient(x, t, None).tolist() == [[2 * 9 * 0.5, 0.0]]


def test_dps_is_the_limit_of_narrow_posteriors():
    q = ring_of_gaussians()
    guidance = DPS(guidance_parts(COSINE, denoise=denoiser(q), energy=linear_f_0))
    exact = tilt_quadratic(q, LINEAR_TERM, torch.zeros(2, 2), COSINE)
    x, _ = q.sample(20, torch.Generator().manual_seed(0))
    t = torch.full((20,), 0.01).double()
    torch.testing.assert_close(
        guidance.gradient(x, t, None), exact.gradient(x, t), atol=0.02, rtol=0.05
    )


def test_emse_by_hand_and_finite_for_any_energy():
    loss, metrics = emse_loss(torch.tensor([[0.0, -math.log(2.0)]]), torch.tensor([[0.0, -100.0]]))
    assert float(loss) == pytest.approx(0.5 * (0.5**2))
    assert float(metrics["beyond_maximum"]) == 0.0
    u = torch.tensor([-1e4, 0.0, 1e4], requires_grad=True)
    bounded_exp(u).sum().backward()
    assert torch.isfinite(u.grad).all()
    assert u.grad.tolist() == [0.0, 1.0, 1.0]


def test_exponential_labels_are_the_softmax_labels_when_the_constant_is_the_group_s_own():
    f, energy = torch.randn(1, 6), torch.randn(1, 6)
    constant = float(torch.logsumexp(energy, -1) - math.log(6))
    torch.testing.assert_close(cep_loss(f, energy)[0], cep_loss(f, energy, constant)[0])


class Constant(nn.Module):
    def forward(self, x_t, t, condition):
        return x_t.new_zeros(len(x_t)) if condition is None else condition[:, 0]


@pytest.mark.parametrize("method", [CEP, MSE, EMSE])
def test_posterior_targets_keep_the_loss_s_expectation(method):
    # a network that answers the same everywhere: the loss is a function of the labels alone
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randn(400, 16, 2, generator=generator)
    energy = x_0.sum(dim=-1)
    losses = {}
    for targets in ("sample", "posterior"):
        guidance = method(guidance_parts(COSINE, Constant(), targets=targets))
        guidance.prepare(Samples(x_0.flatten(0, 1), energy.flatten()), generator)
        losses[targets] = guidance.loss(Samples(x_0, energy), generator)[0]
    if method is CEP:  # log K whatever the labels
        assert float(losses["posterior"]) == pytest.approx(math.log(16), abs=1e-4)
    else:  # regression loses the labels' variance and nothing else
        assert float(losses["posterior"]) < float(losses["sample"])


@pytest.mark.parametrize("method", [CEP, MSE, EMSE, Weighted])
def test_posterior_targets_are_refused_with_conditions(method):
    generator = torch.Generator().manual_seed(0)
    model = Diffusion(NaturalNetwork(2, 1, 2, (8,), COSINE, 1.0), COSINE, "velocity")
    network = EnergyNetwork(2, 1, (8,), 1.0)
    guidance = method(guidance_parts(COSINE, network, model, targets="posterior"))
    groups = Samples(torch.randn(3, 4, 2), torch.randn(3, 4), torch.randn(3, 1))
    with pytest.raises(ValueError, match="targets='sample'"):
        guidance.loss(groups, generator)


def test_conditions_may_belong_to_groups_or_to_samples():
    generator = torch.Generator()
    x_0, energy = torch.randn(3, 4, 2), torch.randn(3, 4)
    condition = torch.randn(3, 1)
    guidance = CEP(guidance_parts(COSINE, EnergyNetwork(2, 1, (8,), 1.0)))
    expanded = condition[:, None].expand(3, 4, 1)
    losses = [
        guidance.loss(Samples(x_0, energy, c), generator.manual_seed(0))[0]
        for c in (condition, expanded)
    ]
    torch.testing.assert_close(losses[0], losses[1])


def test_weighted_loss_of_the_perfect_model_of_p_is_least():
    q = ring_of_gaussians()
    levels = 2.0 * torch.arange(8) / 7.0
    exact = tilt_components(q, levels, COSINE)
    generator = torch.Generator().manual_seed(0)
    x_0, component = q.sample(64 * 256, generator)
    groups, energy = x_0.view(64, 256, 2), levels[component].view(64, 256)
    losses = []
    for mixture in (exact.p, exact.q):
        model = Diffusion(MixtureNetwork(mixture, COSINE), COSINE, "noise")
        loss, metrics = weighted_loss(
            model, groups, energy, None, "sample", generator.manual_seed(1)
        )
        losses.append(float(loss))
    assert losses[0] < losses[1]
    assert 1.0 < float(metrics["effective_samples"]) < 256.0


@pytest.mark.parametrize("targets", ["sample", "posterior"])
def test_weighted_losses_have_the_same_minimiser(targets):
    # one step of the gradient at the perfect model is noise around zero
    q = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1, 1) * 0.25)
    p = tilt_quadratic(q, torch.tensor([2.0]), torch.zeros(1, 1), COSINE).p

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.shift = MixtureNetwork(p, COSINE), nn.Parameter(torch.zeros(1))

        def forward(self, x_t, t, condition):
            return self.network(x_t, t, condition) + self.shift

    model = Diffusion(Shifted(), COSINE, "noise")
    generator = torch.Generator().manual_seed(0)
    x_0, _ = q.sample(100 * 512, generator)
    energy = 2.0 * x_0.squeeze(-1).view(100, 512)
    loss, _ = weighted_loss(model, x_0.view(100, 512, 1), energy, None, targets, generator)
    loss.backward()
    assert abs(float(model.network.shift.grad)) < 0.03


def test_weighted_guidance_is_the_difference_of_the_scores():
    q = ring_of_gaussians()
    exact = tilt_components(q, torch.arange(8) / 7.0, COSINE)
    p_model = Diffusion(MixtureNetwork(exact.p, COSINE), COSINE, "noise")
    guidance = Weighted(guidance_parts(COSINE, model=p_model, denoise=denoiser(q)))
    x, t = points()
    torch.testing.assert_close(guidance.gradient(x, t, None), exact.gradient(x, t))
    with pytest.raises(NotImplementedError, match="no scalar f"):
        guidance.f(x, t, None)


def parts(**changes):
    given = {"denoise": denoiser(gaussian(True)), "energy": f_0, "preconditioned": True}
    return guidance_parts(COSINE, **{**given, **changes})


@pytest.mark.parametrize("name", sorted(n for n, kind in GUIDANCES.items() if kind.single))
def test_every_guidance_is_made_by_name_and_has_a_gradient(name):
    guidance = make_guidance(name, parts())
    x, t = points(5)
    guidance.prepare(Samples(x.float(), torch.zeros(5)), torch.Generator().manual_seed(0))
    gradient = guidance.gradient(x.float(), t.float(), None)
    assert gradient.shape == (5, 2)
    assert torch.isfinite(gradient).all()
    assert not gradient.requires_grad
    assert guidance.trainable == (len(list(guidance.parameters())) > 0)
    if guidance.trainable:
        groups = Samples(torch.randn(3, 4, 2), torch.randn(3, 4))
        loss, _ = guidance.loss(groups, torch.Generator().manual_seed(0))
        loss.backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in guidance.parameters())
    else:
        with pytest.raises(NotImplementedError, match="nothing to train"):
            guidance.loss(Samples(x, t), torch.Generator())


@pytest.mark.parametrize("name", ["dps", "qgf", "analytic"])
def test_guidances_that_differentiate_the_energy_want_one(name):
    with pytest.raises(ValueError, match="callable"):
        make_guidance(name, parts(energy=None))


def test_unknown_names_list_the_choices():
    with pytest.raises(ValueError, match=r"'cpe'.*cep"):
        make_guidance("cpe", parts())
    with pytest.raises(ValueError, match=r"'mean'.*posterior"):
        make_guidance("cep", parts(targets="mean"))
    with pytest.raises(ValueError, match=r"'eq14'.*exponential"):
        make_guidance("cep", parts(options={"labels": "eq14"}))
