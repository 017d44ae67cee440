from __future__ import annotations

import pytest
import torch
from guidance_parts import guidance_parts
from torch import nn

from qgpo.diffusion import PREDICTIONS, Diffusion, batch_posterior, diffuse, uniform_times
from qgpo.guidance import CEP, Samples
from qgpo.networks import EnergyNetwork
from qgpo.schedule import SCHEDULES, make_schedule

MEAN, STD, BETA = 0.3, 0.5, 2.0


class ExactGaussian(nn.Module):
    """The perfect network for data N(mean, std^2), in either prediction."""

    def __init__(self, schedule, prediction, mean=MEAN, std=STD):
        super().__init__()
        self.schedule, self.prediction, self.mean, self.std = schedule, prediction, mean, std

    def forward(self, x_t, t, condition):
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        total = (alpha * self.std) ** 2 + sigma**2
        x_0 = self.mean + alpha * self.std**2 / total * (x_t - alpha * self.mean)
        noise = sigma / total * (x_t - alpha * self.mean)
        if self.prediction == "flow":
            return noise - x_0
        return noise if self.prediction == "noise" else alpha * noise - sigma * x_0


def normal_quantiles():
    """200 quantiles of N(0, 1), shape (200, 1)."""
    u = torch.linspace(0, 1, 401)[1::2]
    return torch.distributions.Normal(0.0, 1.0).icdf(u)[:, None]


class FixedOutput(nn.Module):
    def forward(self, x_t, t, condition):
        return self.output


def exact_gradient(schedule):
    """Of f*_t = beta E[x_0 | x_t] + constant, for the energy beta x."""

    def gradient(x_t, t, condition):
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        gain = alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2)
        return (BETA * gain).expand_as(x_t)

    return gradient


every_combination = pytest.mark.parametrize(
    ("schedule", "prediction"),
    [
        (make_schedule(s), p)
        for s in sorted(SCHEDULES)
        for p in PREDICTIONS
        if p != "flow" or s == "ot"
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)


@every_combination
def test_denoise_and_noise_recover_what_was_mixed(schedule, prediction):
    x_0, noise = torch.randn(6, 2).double(), torch.randn(6, 2).double()
    t = torch.linspace(0.05, 0.9, 6).double()
    x_t = diffuse(x_0, t, noise, schedule)
    model = Diffusion(FixedOutput(), schedule, prediction)
    model.network.output = model.target(x_0, t, noise)
    torch.testing.assert_close(model.denoise(x_t, t, None), x_0)
    torch.testing.assert_close(model.noise(x_t, t, None), noise)


def test_diffuse_by_hand():
    x_t = diffuse(
        torch.tensor([[2.0]]), torch.tensor([0.25]), torch.tensor([[8.0]]), make_schedule("ot")
    )
    assert x_t.item() == pytest.approx(0.75 * 2 + 0.25 * 8)


def test_velocity_target_by_hand():
    model = Diffusion(nn.Identity(), make_schedule("ot"), "velocity")
    target = model.target(torch.tensor([[2.0]]), torch.tensor([0.25]), torch.tensor([[8.0]]))
    assert target.item() == pytest.approx(0.75 * 8 - 0.25 * 2)


@every_combination
def test_loss_of_the_perfect_model_of_one_point_is_zero(schedule, prediction):
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.full((256, 1), 0.6)
    perfect = Diffusion(ExactGaussian(schedule, prediction, 0.6, 0.0), schedule, prediction)
    wrong = Diffusion(ExactGaussian(schedule, prediction, 0.1, 0.0), schedule, prediction)
    assert float(perfect.loss(x_0, None, generator)[0]) < 1e-4
    assert float(wrong.loss(x_0, None, generator)[0]) > 0.05


def test_loss_of_the_perfect_model_of_a_gaussian_is_the_posterior_variance():
    schedule = make_schedule("linear")
    generator = torch.Generator().manual_seed(0)
    x_0 = MEAN + STD * torch.randn(200_000, 1, generator=generator)
    model = Diffusion(ExactGaussian(schedule, "noise"), schedule, "noise")
    t = torch.linspace(schedule.t_min, schedule.t_max, 10_001)
    signal = (schedule.alpha(t) * STD) ** 2
    expected = torch.mean(signal / (signal + schedule.sigma(t) ** 2))
    loss, metrics = model.loss(x_0, None, generator)
    assert float(loss) == pytest.approx(float(expected), rel=0.02)
    assert metrics["loss"] is loss


def test_times_are_uniform_between_the_ends():
    schedule = make_schedule("cosine")
    t = uniform_times(10_000, schedule, torch.Generator().manual_seed(0))
    assert schedule.t_min <= float(t.min()) < 0.01
    assert 0.99 < float(t.max()) <= schedule.t_max
    assert float(t.mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("guidance_scale", [0, 0.0])
def test_no_gradient_is_taken_at_scale_zero(guidance_scale):
    def forbidden(x_t, t, condition):
        raise AssertionError("guidance was called at scale 0")

    schedule = make_schedule("linear")
    model = Diffusion(ExactGaussian(schedule, "noise"), schedule, "noise")
    x = torch.randn(3, 1)
    guided = model.sample(x, None, guidance=forbidden, guidance_scale=guidance_scale)
    assert torch.equal(guided, model.sample(x, None))
    with pytest.raises(AssertionError, match="scale 0"):
        model.sample(x, None, guidance=forbidden, guidance_scale=1.0)


@every_combination
def test_guided_denoiser_is_the_denoiser_of_the_tilted_gaussian(schedule, prediction):
    t = torch.linspace(schedule.t_min, schedule.t_max, 9).double()
    x = torch.linspace(-2, 2, 9).double()[:, None]
    model = Diffusion(ExactGaussian(schedule, prediction), schedule, prediction)
    tilted = ExactGaussian(schedule, prediction, mean=MEAN + BETA * STD**2)
    expected = Diffusion(tilted, schedule, prediction).denoise(x, t, None)
    found = model.guided_denoise(x, t, None, exact_gradient(schedule), 1.0)
    torch.testing.assert_close(found, expected)


@every_combination
def test_the_bound_shortens_the_guidance_and_keeps_its_direction(schedule, prediction):
    t = torch.linspace(0.1, 0.9, 9).double()
    x = torch.linspace(-2, 2, 9).double()[:, None]
    model = Diffusion(ExactGaussian(schedule, prediction), schedule, prediction)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    plain = model.denoise(x, t, None)
    eps = (x - alpha * plain) / sigma
    free, bounded = (
        (model.guided_denoise(x, t, None, exact_gradient(schedule), 5.0, b) - plain) * alpha / sigma
        for b in (None, 0.3)
    )
    assert float((free.abs() / eps.abs()).max()) > 0.3
    torch.testing.assert_close(
        bounded, torch.sign(free) * torch.minimum(free.abs(), 0.3 * eps.abs())
    )


@every_combination
@pytest.mark.parametrize("solver", ["ddim", "dpm_solver_2m"])
def test_guided_samples_shift_by_beta_times_variance(schedule, prediction, solver):
    noise = normal_quantiles().double()
    model = Diffusion(ExactGaussian(schedule, prediction), schedule, prediction)
    samples = model.sample(
        noise,
        None,
        guidance=exact_gradient(schedule),
        guidance_scale=1.0,
        solver=solver,
        steps=200,
        spacing="log_snr",
    )
    assert float(samples.mean()) == pytest.approx(MEAN + BETA * STD**2, abs=0.02)
    assert float(samples.std()) == pytest.approx(STD, abs=0.02)
    plain = model.sample(noise, None, solver=solver, steps=200, spacing="log_snr")
    assert float(plain.mean()) == pytest.approx(MEAN, abs=0.02)


def test_trained_energy_reaches_the_closed_form():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    schedule = make_schedule("cosine")
    energy = CEP(guidance_parts(schedule, EnergyNetwork(1, 0, (32, 32), 1.0), dim=1))
    optimizer = torch.optim.Adam(energy.parameters(), lr=5e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 500)
    for _ in range(500):
        x_0 = MEAN + STD * torch.randn(32, 64, 1, generator=generator)
        loss, _ = energy.loss(Samples(x_0, BETA * x_0.squeeze(-1)), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    model = Diffusion(ExactGaussian(schedule, "velocity"), schedule, "velocity")
    samples = model.sample(
        normal_quantiles(),
        None,
        guidance=energy.gradient,
        guidance_scale=1.0,
        steps=40,
        spacing="log_snr",
    )
    assert float(samples.mean()) == pytest.approx(MEAN + BETA * STD**2, abs=0.06)
    assert float(samples.std()) == pytest.approx(STD, abs=0.06)


def test_flow_target_by_hand():
    model = Diffusion(nn.Identity(), make_schedule("ot"), "flow")
    target = model.target(torch.tensor([[2.0]]), torch.tensor([0.25]), torch.tensor([[8.0]]))
    assert target.item() == pytest.approx(8 - 2)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_flow_is_refused_off_the_straight_path(schedule):
    with pytest.raises(ValueError, match=r"'flow'.*'ot'.*velocity"):
        Diffusion(nn.Identity(), make_schedule(schedule), "flow")


def test_posterior_over_a_batch_by_hand():
    # alpha = sigma = 1/2: log-weights -(x_t - x_0/2)^2 / (2/4) for x_0 in {0, 2}, x_t = 1/2
    log_posterior = batch_posterior(
        torch.tensor([[0.5]]),
        torch.tensor([0.5]),
        torch.tensor([[0.0], [2.0]]),
        make_schedule("ot"),
    )
    assert log_posterior.exp().tolist()[0] == pytest.approx([0.5, 0.5])
    moved = batch_posterior(
        torch.tensor([[0.75]]),
        torch.tensor([0.5]),
        torch.tensor([[0.0], [2.0]]),
        make_schedule("ot"),
    )
    assert float(moved[0, 1] - moved[0, 0]) == pytest.approx(2 * 0.75**2 - 2 * 0.25**2)


def test_batch_posterior_normalises():
    x, t = torch.randn(6, 2).double(), torch.linspace(0.01, 0.99, 6).double()
    posterior = batch_posterior(x, t, torch.randn(9, 2).double(), make_schedule("cosine"))
    torch.testing.assert_close(posterior.exp().sum(-1), torch.ones(6).double())


def test_unknown_prediction_lists_the_choices():
    with pytest.raises(ValueError, match=r"'score'.*noise.*velocity"):
        Diffusion(nn.Identity(), make_schedule("linear"), "score")


@pytest.mark.parametrize("schedule", ["linear", "cosine", "ot"])
def test_the_mean_is_the_guided_distribution_s(schedule):
    # x_0 ~ N(m, v) with the energy b x_0, for which f_t = b E[x_0|x_t] + c(t)
    m, v, b = 0.7, 0.25, 1.5
    schedule = make_schedule(schedule)

    def gradient(x_t, t, condition):
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        return b * v * alpha / (alpha**2 * v + sigma**2) + 0.0 * x_t

    model = Diffusion(ExactGaussian(schedule, "noise", m, v**0.5), schedule, "noise")
    condition = torch.zeros(2, 1)
    mean = model.mean(condition, 1)
    torch.testing.assert_close(mean, torch.full((2, 1), m), atol=0.01, rtol=0.0)
    # tilting N(m, v) by exp(w b x) moves its mean by w b v
    tilted = model.mean(condition, 1, guidance=gradient, guidance_scale=2.0)
    torch.testing.assert_close(tilted, torch.full((2, 1), m + 2.0 * b * v), atol=0.01, rtol=0.0)
