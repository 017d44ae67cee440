"""DPS: no training; the clean energy at the posterior mean, f_t(x_t) = beta e(E[x_0 | x_t]).

Diffusion posterior sampling (Chung et al. 2023, arXiv 2209.14687). It exchanges expectation and
energy: log E[e^{beta e(x_0)} | x_t] becomes beta e(E[x_0 | x_t]). Right where the posterior is
narrow (small t); wrong where it is wide, and for several modes the mean lies where no data are.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qgpo.guidance.base import Guidance, GuidanceOptions, GuidanceParts


@dataclass(frozen=True)
class DPSOptions(GuidanceOptions):
    """What the energy is evaluated at."""

    clamp: float | None = None
    """bound on the denoised sample's coordinates before the energy sees it"""


class DPS(Guidance):
    """f_0 at the denoised sample, clamped to the data's bounds if `clamp` is given."""

    Options = DPSOptions
    needs_energy = True
    options: DPSOptions

    def __init__(self, parts: GuidanceParts) -> None:
        super().__init__(parts)
        self.energy = parts.energy_for("dps")

    def f(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The value beta e(E[x_0 | x_t]): (B, D), (B,), (B, C) to (B,)."""
        x_0 = self.denoise(x_t, t, condition)
        if self.options.clamp is not None:
            x_0 = x_0.clamp(-self.options.clamp, self.options.clamp)
        return self.energy(x_0, condition)
