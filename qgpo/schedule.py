"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps, and lambda(t) = log(alpha / sigma).

All functions are elementwise on tensors of any shape, with t in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """A diffusion path between data (t = 0) and noise (t = 1)."""

    @property
    def t_min(self) -> float:
        """Earliest time used in training and sampling, where sigma is still positive."""

    @property
    def t_max(self) -> float:
        """Latest time used in training and sampling."""

    def alpha(self, t: Tensor) -> Tensor:
        """Signal coefficient."""

    def sigma(self, t: Tensor) -> Tensor:
        """Noise coefficient."""

    def half_log_snr(self, t: Tensor) -> Tensor:
        """lambda(t) = log(alpha / sigma), strictly decreasing."""

    def inverse_half_log_snr(self, half_log_snr: Tensor) -> Tensor:
        """The time t at which lambda(t) has the given value."""


@dataclass(frozen=True)
class LinearVP:
    """Variance preserving with a linear beta(t): log alpha = -t^2 (b1 - b0) / 4 - t b0 / 2.

    The schedule of the CEP paper (Song et al. 2021, arXiv 2011.13456, appendix C).
    """

    beta_0: float = 0.1
    beta_1: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0

    def alpha(self, t: Tensor) -> Tensor:
        """Signal coefficient."""
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Noise coefficient, sqrt(1 - alpha^2)."""
        return torch.sqrt(-torch.expm1(2.0 * self._log_alpha(t)))

    def half_log_snr(self, t: Tensor) -> Tensor:
        """lambda(t)."""
        log_alpha = self._log_alpha(t)
        return log_alpha - 0.5 * torch.log(-torch.expm1(2.0 * log_alpha))

    def inverse_half_log_snr(self, half_log_snr: Tensor) -> Tensor:
        """t(lambda), the positive root of the quadratic in t (DPM-Solver, arXiv 2206.00927)."""
        zero = torch.zeros((), dtype=half_log_snr.dtype, device=half_log_snr.device)
        minus_2_log_alpha = torch.logaddexp(-2.0 * half_log_snr, zero)
        slope = self.beta_1 - self.beta_0
        root = torch.sqrt(self.beta_0**2 + 2.0 * slope * minus_2_log_alpha)
        return 2.0 * minus_2_log_alpha / (root + self.beta_0)


@dataclass(frozen=True)
class CosineVP:
    """Variance preserving along a quarter circle: alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    Nichol & Dhariwal 2021 (arXiv 2102.09672) without their offset, which t_min makes needless.
    """

    t_min: float = 5e-3
    t_max: float = 0.995

    def alpha(self, t: Tensor) -> Tensor:
        """Signal coefficient."""
        return torch.cos(0.5 * math.pi * t)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise coefficient."""
        return torch.sin(0.5 * math.pi * t)

    def half_log_snr(self, t: Tensor) -> Tensor:
        """lambda(t) = -log tan(pi t / 2)."""
        return -torch.log(torch.tan(0.5 * math.pi * t))

    def inverse_half_log_snr(self, half_log_snr: Tensor) -> Tensor:
        """t(lambda)."""
        return torch.atan(torch.exp(-half_log_snr)) * (2.0 / math.pi)


@dataclass(frozen=True)
class OTPath:
    """The straight path of flow matching: alpha = 1 - t, sigma = t (arXiv 2210.02747)."""

    t_min: float = 1e-3
    t_max: float = 1.0 - 1e-3

    def alpha(self, t: Tensor) -> Tensor:
        """Signal coefficient."""
        return 1.0 - t

    def sigma(self, t: Tensor) -> Tensor:
        """Noise coefficient."""
        return t

    def half_log_snr(self, t: Tensor) -> Tensor:
        """lambda(t) = log((1 - t) / t)."""
        return torch.log1p(-t) - torch.log(t)

    def inverse_half_log_snr(self, half_log_snr: Tensor) -> Tensor:
        """t(lambda)."""
        return torch.sigmoid(-half_log_snr)


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "linear": LinearVP,
    "cosine": CosineVP,
    "ot": OTPath,
}


def make_schedule(name: str) -> Schedule:
    """The schedule of that name, one of `SCHEDULES`."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule={name!r}, expected one of {sorted(SCHEDULES)}")
    return SCHEDULES[name]()
