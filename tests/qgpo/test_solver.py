"""Solvers and time grids; on Gaussians the solution is known, and with it the order."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from qgpo import solver as solvers
from qgpo.diffusion import Diffusion
from qgpo.exact import MixtureNetwork, draw_problem
from qgpo.schedule import SCHEDULES, make_schedule
from qgpo.solver import SOLVERS, SPACINGS, STOCHASTIC, get_solver, time_grid

MEAN, STD = 0.7, 0.4
DETERMINISTIC = sorted(set(SOLVERS) - STOCHASTIC)


def spread(schedule, t):
    return torch.sqrt((schedule.alpha(t) * STD) ** 2 + schedule.sigma(t) ** 2)


def gaussian_denoiser(schedule, mean=MEAN):
    """E[x_0 | x_t] for data N(mean, STD^2)."""

    def denoise(x, t):
        gain = schedule.alpha(t) * STD**2 / spread(schedule, t) ** 2
        return mean + gain * (x - schedule.alpha(t) * mean)

    return denoise


def exact_solution(schedule, x, start, end):
    """The ODE conserves (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2)."""
    standardised = (x - schedule.alpha(start) * MEAN) / spread(schedule, start)
    return schedule.alpha(end) * MEAN + spread(schedule, end) * standardised


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


def fitting_schedule(solver):
    return make_schedule("ot" if solver == "euler" else "linear")


@pytest.mark.parametrize("name", sorted(SOLVERS))
@pytest.mark.parametrize("steps", [1, 2, 15])
def test_evaluations_are_counted_and_the_shape_is_kept(name, steps):
    schedule = fitting_schedule(name)
    seen = []

    def denoise(x, t):
        seen.append(float(t))
        return torch.zeros_like(x)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3)
    out = get_solver(name)(denoise, x, time_grid(schedule, steps), schedule, generator)
    assert out.shape == (4, 3)
    assert len(seen) == SOLVERS[name].evaluations * steps
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("name", sorted(set(DETERMINISTIC) - {"heun"}))
def test_one_step_towards_a_known_sample_lands_on_it(name):
    schedule = fitting_schedule(name)
    target, x = torch.full((3, 2), 0.8), torch.zeros(3, 2)
    out = get_solver(name)(lambda x, t: target, x, time_grid(schedule, 1), schedule)
    start, end = torch.tensor(schedule.t_max), torch.tensor(schedule.t_min)
    ratio = schedule.sigma(end) / schedule.sigma(start)
    expected = (schedule.alpha(end) - ratio * schedule.alpha(start)) * target
    torch.testing.assert_close(out, expected)


def test_euler_on_the_straight_path_is_ddim():
    schedule = make_schedule("ot")
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    times = time_grid(schedule, 9).double()
    found = [
        get_solver(name)(gaussian_denoiser(schedule), x, times, schedule)
        for name in ("euler", "ddim")
    ]
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_euler_is_refused_off_the_straight_path(schedule):
    schedule = make_schedule(schedule)
    with pytest.raises(ValueError, match=r"'euler'.*'ot'.*ddim"):
        get_solver("euler", schedule)
    with pytest.raises(ValueError, match=r"'euler'.*'ot'.*ddim"):
        get_solver("euler")(lambda x, t: x, torch.zeros(1, 1), time_grid(schedule, 2), schedule)


def test_the_sde_sampler_wants_a_generator_and_repeats_with_it():
    schedule = make_schedule("cosine")
    times, x = time_grid(schedule, 5, "log_snr"), torch.zeros(3, 1)
    solve = get_solver("sde_dpm_solver_2m")
    with pytest.raises(ValueError, match=r"Generator"):
        solve(gaussian_denoiser(schedule), x, times, schedule)
    with pytest.raises(ValueError, match=r"draws noise.*ddim"):
        get_solver("sde_dpm_solver_2m", schedule, stochastic=False)
    runs = [
        solve(gaussian_denoiser(schedule), x, times, schedule, torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("spacing", SPACINGS)
def test_grid_goes_down_from_t_max_to_t_min(spacing, schedule):
    schedule = make_schedule(schedule)
    times = time_grid(schedule, 7, spacing)
    assert times.shape == (8,)
    assert float(times[0]) == pytest.approx(schedule.t_max, rel=1e-5)
    assert float(times[-1]) == pytest.approx(schedule.t_min, rel=1e-4)
    assert (times.diff() < 0).all()
    lam = schedule.half_log_snr(times.double())
    uniform = {"time": times, "log_snr": lam, "karras": torch.exp(-lam / 7.0)}[spacing]
    torch.testing.assert_close(uniform.diff(), uniform.diff().mean().expand(7), rtol=1e-3, atol=0.0)


def test_unknown_solver_lists_the_choices():
    with pytest.raises(ValueError, match=r"'euler2'.*ddim.*dpm_solver_2m"):
        get_solver("euler2")


def test_unknown_spacing_lists_the_choices():
    with pytest.raises(ValueError, match=r"'quadratic'.*time.*log_snr"):
        time_grid(make_schedule("linear"), 5, "quadratic")


@pytest.mark.parametrize("steps", [0, -3])
def test_fewer_than_one_step_is_refused(steps):
    with pytest.raises(ValueError, match=f"steps={steps}"):
        time_grid(make_schedule("linear"), steps)


def grid(schedule, steps, start, end):
    """Uniform in lambda between two times."""
    lam = schedule.half_log_snr(torch.tensor([start, end], dtype=torch.float64))
    lam = torch.linspace(float(lam[0]), float(lam[1]), steps + 1, dtype=torch.float64)
    return schedule.inverse_half_log_snr(lam)


def ode_error(name, schedule, steps):
    """Largest distance to the exact solution."""
    times = grid(schedule, steps, 0.9, 0.1)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    found = get_solver(name)(gaussian_denoiser(schedule), x, times, schedule)
    exact = exact_solution(schedule, x, times[0], times[-1])
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
    steps = (80, 160, 320)
    errors = [ode_error(name, make_schedule(schedule), n) for n in steps]
    assert slope(errors, steps) == pytest.approx(SOLVERS[name].order, abs=0.15)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_measured_order_of_the_sde_sampler_in_distribution(schedule, monkeypatch):
    # For a Gaussian the sampler is linear in (x_T, noise_1, ..., noise_N): run one row for each
    # of them being one and the rest zero, and the final variance is the sum of squares, exactly.
    schedule, steps = make_schedule(schedule), (200, 400, 800)
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


@pytest.mark.parametrize("name", ["ddim", "dpm_solver_2m", "dpm_solver_2s", "heun"])
def test_measured_order_on_a_drawn_problem(name):
    # exact score and exact guidance; the reference is a second-order solution in many steps
    schedule = make_schedule("cosine")
    exact = draw_problem(3, 2, "quadratic").tilted(3.0, schedule)
    model = Diffusion(MixtureNetwork(exact.q, schedule), schedule, "noise")
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def solve(solver, steps):
        denoise = partial(model.guided_denoise, condition=None, guidance=exact.gradient, scale=1.0)
        return get_solver(solver)(denoise, x, grid(schedule, steps, 0.9, 0.3), schedule)

    steps, reference = (40, 80, 160), solve("dpm_solver_2s", 640)
    errors = [float((solve(name, n) - reference).abs().max()) for n in steps]
    assert slope(errors, steps) == pytest.approx(SOLVERS[name].order, abs=0.25)
