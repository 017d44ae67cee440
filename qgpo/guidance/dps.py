"""DPS: no training; the clean energy at the posterior mean, f_t(x_t) = beta e(E[x_0 | x_t]).

Diffusion posterior sampling (Chung et al. 2023, arXiv 2209.14687). It exchanges expectation and
energy: log E[e^{beta e(x_0)} | x_t] becomes beta e(E[x_0 | x_t]). Right where the posterior is
narrow (small t); wrong where it is wide, and for several modes the mean lies where no data are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from qgpo.fields import check_fields
from qgpo.guidance.base import Denoiser, Guidance, GuidanceParts, ScaledEnergy


@dataclass(frozen=True)
class DPSOptions:
    """What the energy is evaluated at."""

    clamp: float | None = None
    """bound on the denoised sample's coordinates before the energy sees it"""

    def __post_init__(self) -> None:
        check_fields(self)


class DPS(Guidance):
    """f_0 at the denoised sample, clamped to the data's bounds if `clamp` is given."""

    Options: ClassVar[type[DPSOptions]] = DPSOptions
    needs_energy: ClassVar[bool] = True

    def __init__(self, denoise: Denoiser, energy: ScaledEnergy, clamp: float | None = None) -> None:
        super().__init__()
        self.denoise = denoise
        self.energy = energy
        self.clamp = clamp

    @classmethod
    def from_parts(cls, parts: GuidanceParts) -> Self:
        """The energy and the trained denoiser."""
        if parts.energy is None:
            raise ValueError("guidance='dps' differentiates the energy: a callable is needed")
        return cls(parts.denoise, parts.energy, parts.read(cls.Options).clamp)

    def f(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The value beta e(E[x_0 | x_t]): (B, D), (B,), (B, C) to (B,)."""
        x_0 = self.denoise(x_t, t, condition)
        if self.clamp is not None:
            x_0 = x_0.clamp(-self.clamp, self.clamp)
        return self.energy(x_0, condition)
