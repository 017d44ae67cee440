from __future__ import annotations

import math

import pytest
import torch

from qgpo.schedule import SCHEDULES, make_schedule
from qgpo.solver import SOLVERS, SPACINGS, get_solver, time_grid

MEAN, STD = 0.7, 0.4


def spread(schedule, t):
    return torch.sqrt((schedule.alpha(t) * STD) ** 2 + schedule.sigma(t) ** 2)


def gaussian_denoiser(schedule):
    """E[x_0 | x_t] for data N(MEAN, STD^2)."""

    def denoise(x, t):
        gain = schedule.alpha(t) * STD**2 / spread(schedule, t) ** 2
        return MEAN + gain * (x - schedule.alpha(t) * MEAN)

    return denoise


def exact_solution(schedule, x, start, end):
    """The ODE keeps (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2)."""
    standardised = (x - schedule.alpha(start) * MEAN) / spread(schedule, start)
    return schedule.alpha(end) * MEAN + spread(schedule, end) * standardised


def error(name, schedule, steps):
    ends = torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64)
    lam = schedule.half_log_snr(ends)
    grid = torch.linspace(float(lam[0]), float(lam[1]), steps + 1, dtype=torch.float64)
    times = schedule.inverse_half_log_snr(grid)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    found = get_solver(name)(gaussian_denoiser(schedule), x, times, schedule)
    return float((found - exact_solution(schedule, x, times[0], times[-1])).abs().max())


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize(("name", "order"), [("ddim", 1.0), ("dpm_solver_2m", 2.0)])
def test_measured_order_of_convergence(name, order, schedule):
    errors = [error(name, make_schedule(schedule), steps) for steps in (80, 160, 320)]
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize(("spacing", "steps"), [("log_snr", 20), ("time", 200)])
def test_enough_steps_are_close_to_the_closed_form(spacing, steps, schedule):
    schedule = make_schedule(schedule)
    times = time_grid(schedule, steps, spacing).double()
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    found = get_solver("dpm_solver_2m")(gaussian_denoiser(schedule), x, times, schedule)
    torch.testing.assert_close(
        found, exact_solution(schedule, x, times[0], times[-1]), rtol=0.0, atol=0.02
    )


@pytest.mark.parametrize("name", sorted(SOLVERS))
@pytest.mark.parametrize("steps", [1, 2, 15])
def test_one_evaluation_a_step_and_the_shape_is_kept(name, steps):
    schedule = make_schedule("linear")
    seen = []

    def denoise(x, t):
        seen.append(float(t))
        return torch.zeros_like(x)

    out = get_solver(name)(denoise, torch.randn(4, 3), time_grid(schedule, steps), schedule)
    assert out.shape == (4, 3)
    assert len(seen) == steps
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_one_step_towards_a_known_sample_lands_on_it(name):
    schedule = make_schedule("cosine")
    target, x = torch.full((3, 2), 0.8), torch.zeros(3, 2)
    out = get_solver(name)(lambda x, t: target, x, time_grid(schedule, 1), schedule)
    start, end = torch.tensor(schedule.t_max), torch.tensor(schedule.t_min)
    ratio = schedule.sigma(end) / schedule.sigma(start)
    expected = (schedule.alpha(end) - ratio * schedule.alpha(start)) * target
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("spacing", SPACINGS)
def test_grid_goes_down_from_t_max_to_t_min(spacing, schedule):
    schedule = make_schedule(schedule)
    times = time_grid(schedule, 7, spacing)
    assert times.shape == (8,)
    assert float(times[0]) == pytest.approx(schedule.t_max, rel=1e-5)
    assert float(times[-1]) == pytest.approx(schedule.t_min, rel=1e-4)
    assert (times.diff() < 0).all()
    uniform = schedule.half_log_snr(times.double()) if spacing == "log_snr" else times
    torch.testing.assert_close(uniform.diff(), uniform.diff().mean().expand(7), rtol=1e-3, atol=0.0)


def test_unknown_solver_lists_the_choices():
    with pytest.raises(ValueError, match=r"'euler'.*ddim.*dpm_solver_2m"):
        get_solver("euler")


def test_unknown_spacing_lists_the_choices():
    with pytest.raises(ValueError, match=r"'quadratic'.*time.*log_snr"):
        time_grid(make_schedule("linear"), 5, "quadratic")


@pytest.mark.parametrize("steps", [0, -3])
def test_fewer_than_one_step_is_refused(steps):
    with pytest.raises(ValueError, match=f"steps={steps}"):
        time_grid(make_schedule("linear"), steps)
