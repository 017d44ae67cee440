"""DPS: no training; the clean energy at the posterior mean, f_t(x_t) = beta e(E[x_0 | x_t]).

Diffusion posterior sampling (Chung et al. 2023, arXiv 2209.14687). It exchanges expectation and
energy: log E[e^{beta e(x_0)} | x_t] becomes beta e(E[x_0 | x_t]). Right where the posterior is
narrow (small t); wrong where it is wide, and for several modes the mean lies where no data are.
"""

from __future__ import annotations

from torch import Tensor

from qgpo.guidance.base import ClampOptions, Guidance, GuidanceParts


class DPS(Guidance):
    """f_0 at the denoised sample, clamped to the data's bounds if `clamp` is given."""

    Options = ClampOptions
    needs_energy = True
    several = True
    options: ClampOptions

    def __init__(self, parts: GuidanceParts) -> None:
        super().__init__(parts)
        self.energy = parts.energy_for("dps")

    def f(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The value beta e(E[x_0 | x_t]): (B, D), (B,), (B, C) to (B,) or (B, E)."""
        x_0 = self.options.clamped(self.denoise(x_t, t, condition))
        return self.energy(x_0, condition)
