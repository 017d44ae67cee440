"""Every solver converges with the order it claims, on Gaussians, whose solution is known."""

from __future__ import annotations

import math

import pytest
import torch

from qgpo import solver as solvers
from qgpo.schedule import SCHEDULES, make_schedule
from qgpo.solver import SOLVERS, STOCHASTIC, get_solver

MEAN, STD = 0.7, 0.4
DETERMINISTIC = sorted(set(SOLVERS) - STOCHASTIC)


def spread(schedule, t):
    return torch.sqrt((schedule.alpha(t) * STD) ** 2 + schedule.sigma(t) ** 2)


def gaussian_denoiser(schedule, mean):
    """E[x_0 | x_t] for data N(mean, STD^2)."""

    def denoise(x, t):
        gain = schedule.alpha(t) * STD**2 / spread(schedule, t) ** 2
        return mean + gain * (x - schedule.alpha(t) * mean)

    return denoise


def grid(schedule, steps, start, end):
    """Uniform in lambda between two times."""
    lam = schedule.half_log_snr(torch.tensor([start, end], dtype=torch.float64))
    lam = torch.linspace(float(lam[0]), float(lam[1]), steps + 1, dtype=torch.float64)
    return schedule.inverse_half_log_snr(lam)


def ode_error(name, schedule, steps):
    """Distance to the exact solution: (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2) is kept."""
    times = grid(schedule, steps, 0.9, 0.1)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    found = get_solver(name)(gaussian_denoiser(schedule, MEAN), x, times, schedule)
    standardised = (x - schedule.alpha(times[0]) * MEAN) / spread(schedule, times[0])
    exact = schedule.alpha(times[-1]) * MEAN + spread(schedule, times[-1]) * standardised
    return float((found - exact).abs().max())


def slope(errors, steps):
    """Least squares slope of log error against log step size."""
    x = torch.tensor([-math.log(n) for n in steps])
    y = torch.tensor([math.log(e) for e in errors])
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


@pytest.mark.parametrize(
    ("name", "schedule"),
    [(n, s) for n in DETERMINISTIC for s in sorted(SCHEDULES) if n != "euler" or s == "ot"],
)
def test_measured_order(name, schedule):
    steps = (160, 320, 640)
    errors = [ode_error(name, make_schedule(schedule), n) for n in steps]
    assert slope(errors, steps) == pytest.approx(SOLVERS[name].order, abs=0.15)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_measured_order_of_the_sde_sampler_in_distribution(schedule, monkeypatch):
    # For a Gaussian the sampler is linear in (x_T, noise_1, ..., noise_N): run one row for each
    # of them being one and the rest zero, and the final variance is the sum of squares, exactly.
    schedule, steps = make_schedule(schedule), (400, 800, 1600)
    errors = []
    for n in steps:
        times = grid(schedule, n, 0.9, 0.1)
        x = torch.zeros(n + 1, 1, dtype=torch.float64)
        x[0] = spread(schedule, times[0])
        rows = iter(range(1, n + 1))

        def unit_noise(like, generator, rows=rows):
            noise = torch.zeros_like(like)
            noise[next(rows)] = 1.0
            return noise

        monkeypatch.setattr(solvers, "_standard_normal", unit_noise)
        final = get_solver("sde_dpm_solver_2m")(
            gaussian_denoiser(schedule, 0.0), x, times, schedule, torch.Generator()
        )
        errors.append(abs(float((final**2).sum() - spread(schedule, times[-1]) ** 2)))
    assert slope(errors, steps) == pytest.approx(SOLVERS["sde_dpm_solver_2m"].order, abs=0.15)
