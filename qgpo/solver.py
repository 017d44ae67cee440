"""Time grids and samplers of the reverse process, as pure functions.

A solver sees one callable, `denoise(x_t, t) -> x_0` (an estimate of the clean sample, guided or
not), and never a network. With lambda = log(alpha / sigma) and h = lambda_t - lambda_s > 0, the
exact solution of the probability-flow ODE from s to t is

    x_t = (sigma_t / sigma_s) x_s + sigma_t int_{lambda_s}^{lambda_t} e^lambda x_0(x_lambda) dlambda

(DPM-Solver++, arXiv 2211.01095, Eq. 8). Most solvers here differ in how they approximate x_0 in
the integral.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qgpo.fields import check_count
from qgpo.schedule import OTPath, Schedule

Denoise = Callable[[Tensor, Tensor], Tensor]
"""x_t of shape (B, D) and a scalar time to an estimate of x_0 of shape (B, D)"""


@dataclass(frozen=True)
class Solver:
    """A sampler and its properties."""

    name: str
    run: Callable[..., Tensor]
    """(denoise, x, times, schedule) to x at times[-1]; a stochastic one also takes a generator"""
    order: int
    """order of convergence, measured by tests on a Gaussian (the SDE's: of the final variance)"""
    evaluations: int
    """calls of the denoiser per step"""
    stochastic: bool = False
    """whether it draws noise"""
    straight_only: bool = False
    """whether it fits the straight path alone, schedule 'ot'"""

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        times: Tensor,
        schedule: Schedule,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Take x (B, D) at times[0] to x at times[-1]; `generator` draws a stochastic one's noise.

        Raise ValueError where the solver does not fit the schedule or misses its generator.
        """
        self.check(schedule)
        if not self.stochastic:
            return self.run(denoise, x, times, schedule)
        if generator is None:
            raise ValueError(f"solver={self.name!r} draws noise: give it a torch.Generator")
        return self.run(denoise, x, times, schedule, generator)

    def check(self, schedule: Schedule) -> None:
        """Raise ValueError where the solver does not fit the schedule."""
        if self.straight_only and not isinstance(schedule, OTPath):
            fitting = sorted(name for name, solver in SOLVERS.items() if not solver.straight_only)
            raise ValueError(
                f"solver={self.name!r} follows the straight flow of schedule 'ot', not of "
                f"{schedule}; expected one of {fitting}"
            )


def _numbers(times: Tensor, schedule: Schedule) -> tuple[list[float], list[float], list[float]]:
    """Alpha, sigma and lambda of every time: arithmetic of numbers is faster than of tensors."""
    functions = schedule.alpha, schedule.sigma, schedule.half_log_snr
    alpha, sigma, lam = (function(times).tolist() for function in functions)
    return alpha, sigma, lam


def ddim(denoise: Denoise, x: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
    """DDIM, which is DPM-Solver++(1): x_0 constant over each step, first order.

    Song et al. 2021 (arXiv 2010.02502); on the straight path it is Euler's method.
    """
    alpha, sigma, _ = _numbers(times, schedule)
    for i in range(len(times) - 1):
        x_0 = denoise(x, times[i])
        ratio = sigma[i + 1] / sigma[i]
        x = ratio * x + (alpha[i + 1] - ratio * alpha[i]) * x_0
    return x


def euler(denoise: Denoise, x: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
    """Euler's method on the flow dx/dt = eps - x_0 of the straight path, first order.

    Lipman et al. 2023 (arXiv 2210.02747). Only for `ot`: on other schedules dx/dt is not eps - x_0.
    """
    for i in range(len(times) - 1):
        flow = (x - denoise(x, times[i])) / times[i]
        x = x + (times[i + 1] - times[i]) * flow
    return x


def dpm_solver_2m(denoise: Denoise, x: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
    """DPM-Solver++(2M): second order, one evaluation a step (arXiv 2211.01095, Algorithm 2).

    x_0 is extrapolated linearly in lambda from the last two evaluations. The first step is of
    first order. So is the last of fewer than ten steps, where extrapolation towards t = 0 adds
    more error than it removes.
    """
    alpha, sigma, lam = _numbers(times, schedule)
    n_steps = len(times) - 1
    previous: Tensor | None = None
    for i in range(n_steps):
        x_0 = denoise(x, times[i])
        estimate = x_0
        if previous is not None and not (i == n_steps - 1 and n_steps < 10):
            r = (lam[i] - lam[i - 1]) / (lam[i + 1] - lam[i])
            estimate = x_0 + (x_0 - previous) / (2.0 * r)
        ratio = sigma[i + 1] / sigma[i]
        x = ratio * x + (alpha[i + 1] - ratio * alpha[i]) * estimate
        previous = x_0
    return x


def dpm_solver_2s(denoise: Denoise, x: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
    """DPM-Solver++(2S): second order, two evaluations a step (arXiv 2211.01095, Algorithm 1).

    x_0 over the whole step is its value at the step's middle in lambda, reached by DDIM.
    """
    alpha, sigma, lam = schedule.alpha(times), schedule.sigma(times), schedule.half_log_snr(times)
    for i in range(len(times) - 1):
        middle = schedule.inverse_half_log_snr(0.5 * (lam[i] + lam[i + 1]))
        halfway = ddim(denoise, x, torch.stack([times[i], middle]), schedule)
        x_0 = denoise(halfway, middle)
        ratio = sigma[i + 1] / sigma[i]
        x = ratio * x + (alpha[i + 1] - ratio * alpha[i]) * x_0
    return x


def heun(denoise: Denoise, x: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
    """Heun's method in the noise-to-signal ratio s = sigma / alpha, as in EDM: second order.

    y = x / alpha follows dy/ds = (y - x_0) / s (Karras et al. 2022, arXiv 2206.00364, Algorithm
    1); two evaluations in every step, because the last one does not reach s = 0 here.
    """
    alpha = schedule.alpha(times)
    s = torch.exp(-schedule.half_log_snr(times))
    for i in range(len(times) - 1):
        y, step = x / alpha[i], s[i + 1] - s[i]
        slope = (y - denoise(x, times[i])) / s[i]
        ahead = y + step * slope
        slope_ahead = (ahead - denoise(alpha[i + 1] * ahead, times[i + 1])) / s[i + 1]
        x = alpha[i + 1] * (y + 0.5 * step * (slope + slope_ahead))
    return x


def sde_dpm_solver_2m(
    denoise: Denoise, x: Tensor, times: Tensor, schedule: Schedule, generator: torch.Generator
) -> Tensor:
    """SDE-DPM-Solver++(2M): the reverse SDE, one evaluation a step (arXiv 2211.01095, Eq. 19).

    x_t = (sigma_t / sigma_s) e^-h x_s + alpha_t (1 - e^-2h) x_0 + sigma_t sqrt(1 - e^-2h) noise,
    with x_0 extrapolated linearly in lambda to the middle of the step. Fresh noise damps earlier
    errors, but the solver needs more steps. Second order in distribution.
    """
    alpha, sigma, lam = schedule.alpha(times), schedule.sigma(times), schedule.half_log_snr(times)
    previous: Tensor | None = None
    for i in range(len(times) - 1):
        h = lam[i + 1] - lam[i]
        x_0 = denoise(x, times[i])
        estimate = x_0
        if previous is not None:
            estimate = x_0 + (x_0 - previous) * (0.5 * h / (lam[i] - lam[i - 1]))
        fresh = -torch.expm1(-2.0 * h)
        x = sigma[i + 1] / sigma[i] * torch.exp(-h) * x + alpha[i + 1] * fresh * estimate
        x = x + sigma[i + 1] * torch.sqrt(fresh) * _standard_normal(x, generator)
        previous = x_0
    return x


def _standard_normal(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


SOLVERS = {
    solver.name: solver
    for solver in (
        Solver("dpm_solver_2m", dpm_solver_2m, order=2, evaluations=1),
        Solver("dpm_solver_2s", dpm_solver_2s, order=2, evaluations=2),
        Solver("ddim", ddim, order=1, evaluations=1),
        Solver("heun", heun, order=2, evaluations=2),
        Solver("euler", euler, order=1, evaluations=1, straight_only=True),
        Solver("sde_dpm_solver_2m", sde_dpm_solver_2m, order=2, evaluations=1, stochastic=True),
    )
}
STOCHASTIC = {name for name, solver in SOLVERS.items() if solver.stochastic}
SPACINGS = ("time", "log_snr", "karras")


def get_solver(name: str, schedule: Schedule | None = None, stochastic: bool = True) -> Solver:
    """The solver of that name, one of `SOLVERS`.

    Raise ValueError where it does not fit the schedule, or where it draws noise although
    `stochastic` is False.
    """
    if not isinstance(name, str) or name not in SOLVERS:
        raise ValueError(f"solver={name!r}, expected one of {sorted(SOLVERS)}")
    solver = SOLVERS[name]
    if schedule is not None:
        solver.check(schedule)
    if solver.stochastic and not stochastic:
        raise ValueError(
            f"solver={name!r} draws noise at every step, but samples must be a function of the "
            f"initial noise; expected one of {sorted(set(SOLVERS) - STOCHASTIC)}"
        )
    return solver


def time_grid(schedule: Schedule, steps: int, spacing: str = "time") -> Tensor:
    """Decreasing times from t_max to t_min, shape (steps + 1,): `steps` solver steps.

    `time` is uniform in t, `log_snr` uniform in lambda, `karras` uniform in s^(1/7) with
    s = sigma / alpha (arXiv 2206.00364, Eq. 5).
    """
    steps = check_count("solver steps", steps)
    if spacing not in SPACINGS:
        raise ValueError(f"spacing={spacing!r}, expected one of {list(SPACINGS)}")
    if spacing == "time":
        return torch.linspace(schedule.t_max, schedule.t_min, steps + 1)
    ends = schedule.half_log_snr(torch.tensor([schedule.t_max, schedule.t_min]).double())
    if spacing == "log_snr":
        lam = torch.linspace(float(ends[0]), float(ends[1]), steps + 1, dtype=torch.float64)
    else:
        roots = torch.exp(-ends / 7.0)
        lam = -7.0 * torch.log(torch.linspace(float(roots[0]), float(roots[1]), steps + 1).double())
    return schedule.inverse_half_log_snr(lam).float()
