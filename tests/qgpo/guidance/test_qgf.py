"""QGF's units: what its gradient does to the flow, and how far it moves a Gaussian.

For q = N(0, s^2) and f_0 = g x the straight path's flow is linear. What is added to its velocity
at t (1: data) ends s / S(t) times as large, S(t)^2 = t^2 s^2 + (1 - t)^2, so that the velocity w g
moves every sample by w g s times the integral of 1 / S, (asinh(s) + asinh(1/s)) / sqrt(1 + s^2).
"""

from __future__ import annotations

import math

import pytest
import torch
from guidance_parts import guidance_parts

from qgpo.diffusion import Diffusion
from qgpo.exact import GaussianMixture, MixtureNetwork, ring_of_gaussians, tilt_quadratic
from qgpo.guidance import DPS, QGF
from qgpo.schedule import make_schedule

SCHEDULES = ("ot", "cosine", "linear")
SLOPE = torch.tensor([1.5, -0.7]).double()


def linear(x, condition):
    return x @ SLOPE.to(x)


def gaussian(spread):
    return GaussianMixture(torch.ones(1), torch.zeros(1, 2), spread**2 * torch.eye(2)[None])


def model_of(mixture, schedule):
    return Diffusion(MixtureNetwork(mixture, schedule), schedule, "noise")


def qgf(model, energy=linear, **more):
    return QGF(guidance_parts(model.schedule, denoise=model.denoise, energy=energy, **more))


def points(schedule, n=40):
    t = torch.linspace(schedule.t_min, schedule.t_max, n + 2)[1:-1].double()
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0)).double(), t


def test_by_hand_neither_the_denoiser_nor_the_bounds_are_differentiated():
    schedule = make_schedule("cosine")
    functions = {"denoise": lambda x, t, c: 3.0 * x, "energy": lambda x, c: (x**2).sum(-1)}
    guidance = QGF(guidance_parts(schedule, **functions, options={"clamp": 2.0}))
    x, t = torch.tensor([[0.5, 1.0]]), torch.full((1,), 0.5)
    alpha = sigma = math.sqrt(0.5)  # of the cosine schedule at its middle
    expected = [alpha / (sigma * (alpha + sigma)) * 2.0 * a for a in (1.5, 2.0)]
    assert guidance.gradient(x, t, None)[0].tolist() == pytest.approx(expected)
    with pytest.raises(NotImplementedError, match="no scalar f"):
        guidance.f(x, t, None)


def test_bounds_move_the_action_and_not_the_gradient():
    schedule = make_schedule("ot")
    given = {
        "denoise": lambda x, t, c: x,
        "energy": lambda x, c: (x**2).sum(-1),
        "nearest": lambda x, c: x.clamp(-1.0, 1.0),
    }
    x, t = torch.tensor([[0.5, 4.0]]), torch.full((1,), 0.5)
    parts = guidance_parts(schedule, **given)
    assert QGF(parts).gradient(x, t, None)[0].tolist() == pytest.approx([1.0, 2.0])
    assert DPS(parts).gradient(x, t, None)[0].tolist() == pytest.approx([1.0, 0.0])


def test_on_the_straight_path_the_velocity_gains_the_slope_at_the_denoised_sample():
    schedule = make_schedule("ot")
    model = model_of(ring_of_gaussians(), schedule)
    guidance = qgf(model, lambda x, c: torch.sin(x).sum(-1))
    x, t = points(schedule)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    x_0 = model.guided_denoise(x, t, None, None, 0.0)
    guided = model.guided_denoise(x, t, None, guidance.gradient, 0.3)
    velocities = [clean - (x - alpha * clean) / sigma for clean in (x_0, guided)]
    torch.testing.assert_close(velocities[1] - velocities[0], 0.3 * torch.cos(x_0))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_relation_to_the_exact_gradient_and_to_dps(schedule, spread):
    schedule = make_schedule(schedule)
    q = gaussian(spread)
    model = model_of(q, schedule)
    x, t = points(schedule)
    exact = tilt_quadratic(q, SLOPE, torch.zeros(2, 2), schedule).gradient(x, t)
    dps = DPS(guidance_parts(schedule, denoise=model.denoise, energy=linear))
    torch.testing.assert_close(dps.gradient(x, t, None), exact, atol=1e-6, rtol=1e-6)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    ratio = (alpha**2 * spread**2 + sigma**2) / (sigma * (alpha + sigma) * spread**2)
    torch.testing.assert_close(qgf(model).gradient(x, t, None), ratio * exact, atol=0, rtol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_samples_move_by_the_closed_form_on_every_schedule(schedule, spread):
    schedule = make_schedule(schedule)
    model = model_of(gaussian(spread), schedule)
    noise = torch.randn(50, 2, generator=torch.Generator().manual_seed(1)).double()
    sampled = {
        w: model.sample(
            noise,
            None,
            guidance=qgf(model).gradient,
            guidance_scale=w,
            solver="heun",
            steps=100,
            spacing="log_snr",
        )
        for w in (0.0, 0.5)
    }
    factor = spread * (math.asinh(spread) + math.asinh(1.0 / spread)) / math.hypot(1.0, spread)
    moved = (0.5 * factor * SLOPE).expand(50, 2)
    torch.testing.assert_close(sampled[0.5] - sampled[0.0], moved, atol=0.0, rtol=0.02)
    assert factor == pytest.approx({0.3: 0.636, 1.0: 1.246}[spread], abs=1e-3)  # exact: 0.09, 1
