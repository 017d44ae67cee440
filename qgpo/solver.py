"""Time grids and samplers of the probability-flow ODE, as pure functions.

A solver sees one callable, `denoise(x_t, t) -> x_0` (an estimate of the clean sample, guided or
not), and never a network. With lambda = log(alpha / sigma) and h = lambda_t - lambda_s > 0, the
exact solution from s to t is

    x_t = (sigma_t / sigma_s) x_s + sigma_t int_{lambda_s}^{lambda_t} e^lambda x_0(x_lambda) dlambda

(DPM-Solver++, arXiv 2211.01095, Eq. 8); the solvers differ in how they treat x_0 inside.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from qgpo.schedule import Schedule


class Denoise(Protocol):
    """x_t of shape (B, D) and a scalar time to an estimate of x_0 of shape (B, D)."""

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """Estimate the clean sample."""
        ...


class Solver(Protocol):
    """Takes x at times[0] to x at times[-1]."""

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, schedule: Schedule, /) -> Tensor:
        """Solve the reverse ODE."""
        ...


def ddim(denoise: Denoise, x: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
    """DDIM, the first-order member of the family: x_0 constant over each step.

    Song et al. 2021 (arXiv 2010.02502); on the straight path it is Euler's method.
    """
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    for i in range(len(times) - 1):
        x_0 = denoise(x, times[i])
        ratio = sigma[i + 1] / sigma[i]
        x = ratio * x + (alpha[i + 1] - ratio * alpha[i]) * x_0
    return x


def dpm_solver_2m(denoise: Denoise, x: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
    """DPM-Solver++(2M): second order, one evaluation a step (arXiv 2211.01095, Algorithm 2).

    x_0 is extrapolated linearly in lambda from the last two evaluations. The first step is of
    first order; so is the last when there are fewer than ten, where extrapolating towards t = 0
    costs more than it gains.
    """
    alpha, sigma, lam = (
        schedule.alpha(times),
        schedule.sigma(times),
        schedule.half_log_snr(times),
    )
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


SOLVERS: dict[str, Solver] = {"dpm_solver_2m": dpm_solver_2m, "ddim": ddim}
SPACINGS = ("time", "log_snr")


def get_solver(name: str) -> Solver:
    """The solver of that name, one of `SOLVERS`."""
    if name not in SOLVERS:
        raise ValueError(f"solver={name!r}, expected one of {sorted(SOLVERS)}")
    return SOLVERS[name]


def time_grid(schedule: Schedule, steps: int, spacing: str = "time") -> Tensor:
    """Decreasing times from t_max to t_min, shape (steps + 1,): `steps` evaluations.

    `time` is uniform in t, `log_snr` uniform in lambda.
    """
    if steps < 1:
        raise ValueError(f"solver steps={steps}, expected at least 1")
    if spacing == "time":
        return torch.linspace(schedule.t_max, schedule.t_min, steps + 1)
    if spacing == "log_snr":
        ends = schedule.half_log_snr(torch.tensor([schedule.t_max, schedule.t_min]).double())
        lam = torch.linspace(float(ends[0]), float(ends[1]), steps + 1, dtype=torch.float64)
        return schedule.inverse_half_log_snr(lam).float()
    raise ValueError(f"spacing={spacing!r}, expected one of {list(SPACINGS)}")
