"""Analytic guidance: the posterior q(x_0 | x_t) as a Gaussian, the energy as a Taylor series.

AEPO (arXiv 2505.01822). With m = E[x_0 | x_t], S its covariance, g and H gradient and Hessian of
f_0 = beta e at m, the moment generating function of a Gaussian gives

    order 1   f = f_0(m) + g^T S g / 2
    order 2   f = f_0(m) - log det(I - S H) / 2 + g^T (I - S H)^-1 S g / 2,   valid while S H < 1

exact for Gaussian q with linear, respectively quadratic, energy (derivation and checks: ours).
Everything else is an approximation: a posterior with two modes is no Gaussian, and a curved
energy no line. Covariance options (Bao et al. 2022, arXiv 2206.07309, have the first two):
`moment` (sigma^2 / alpha^2)(1 - E|eps|^2 / D), `residual` E|x_0 - m|^2 / D, which is never
negative, `per_dimension`, both tabulated over t; `jacobian` sigma^2 / alpha dm/dx_t, which is the
exact covariance at every x_t and costs D backward passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from qgpo.diffusion import Metrics, diffuse
from qgpo.fields import OneOf
from qgpo.guidance.base import (
    ClampOptions,
    Denoiser,
    Guidance,
    GuidanceParts,
    Samples,
    flat_condition,
    noisy_groups,
)
from qgpo.schedule import Schedule

COVARIANCES = ("moment", "residual", "per_dimension", "jacobian")
GRADIENTS = ("autograd", "shift")

_N_TIMES = 64
_LARGEST_CURVATURE = 0.9


@dataclass(frozen=True)
class AnalyticOptions(ClampOptions):
    """How the closed form is made."""

    order: Annotated[int, OneOf((1, 2))] = 1
    """1 (linear expansion of the energy around the posterior mean) or 2 (quadratic; needs a smooth
    energy)"""
    covariance: Annotated[str, OneOf(COVARIANCES)] = "residual"
    """posterior covariance: moment (C1), residual (C2), per_dimension or jacobian (exact)"""
    gradient: Annotated[str, OneOf(GRADIENTS)] = "autograd"
    """autograd differentiates f through the denoiser; shift uses the closed-form shift of the
    posterior mean, which needs no derivative of the denoiser"""
    damped: bool = True
    """limit the variance term to the range in which one posterior standard deviation changes f by
    at most 1"""


def variance_table(
    denoise: Denoiser,
    x_0: Tensor,
    condition: Tensor | None,
    schedule: Schedule,
    kind: str,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Averaged posterior variances on a grid of times: (T,) and (T, D), from data (N, D)."""
    times = torch.linspace(schedule.t_min, schedule.t_max, _N_TIMES, device=x_0.device)
    rows = []
    for t in times:
        expanded = t.expand(len(x_0))
        noise = torch.randn(x_0.shape, generator=generator, device=x_0.device, dtype=x_0.dtype)
        x_t = diffuse(x_0, expanded, noise, schedule)
        with torch.no_grad():
            m = denoise(x_t, expanded, condition)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        if kind == "moment":
            eps = (x_t - alpha * m) / sigma
            variance = (sigma / alpha) ** 2 * (1.0 - torch.mean(eps**2)).clamp(min=0.0)
        else:
            variance = torch.mean((x_0 - m) ** 2, dim=0 if kind == "per_dimension" else None)
        rows.append(variance.expand(x_0.shape[1]))
    return times, torch.stack(rows)


class Expansion(NamedTuple):
    """The closed form at noisy samples (B, D)."""

    f: Tensor
    """(B,)"""
    shift: Tensor
    """(B, D) by which the energy moves the posterior mean"""
    slope: Tensor
    """(B,) change of f_0 over one posterior standard deviation, beta sqrt(v) |grad Q|"""
    damping: Tensor
    """(B,) factor on the variance term, below 1 where it was limited"""

    def metrics(self, t: Tensor) -> Metrics:
        """Slopes per third of the noise levels t (B,), and the share that was damped."""
        slope, found = self.slope.detach(), {}
        edges = torch.linspace(0.0, 1.0, 4, device=t.device)
        for name, low, high in zip(("low", "middle", "high"), edges[:-1], edges[1:], strict=True):
            inside = ((t >= low) & (t < high)).to(slope)
            found[f"slope_{name}_noise"] = (inside * slope).sum() / inside.sum().clamp(min=1.0)
        return {**found, "damped": (self.damping < 1.0).float().mean()}


class Analytic(Guidance):
    """f in closed form from the denoiser and the energy's derivatives; nothing is trained."""

    Options = AnalyticOptions
    needs_energy = True
    options: AnalyticOptions

    times: Tensor
    variances: Tensor

    def __init__(self, parts: GuidanceParts) -> None:
        super().__init__(parts)
        self.energy = parts.energy_for("analytic")
        self.register_buffer("times", torch.zeros(_N_TIMES))
        self.register_buffer("variances", torch.zeros(_N_TIMES, parts.dim))

    def prepare(self, samples: Samples, generator: torch.Generator) -> None:
        """Tabulate the posterior variance on (N, D) data; not needed for `jacobian`."""
        if self.options.covariance != "jacobian":
            kind = self.options.covariance
            self.times, self.variances = variance_table(
                self.denoise, samples.x_0, samples.condition, self.schedule, kind, generator
            )

    def f(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The closed form of the chosen order: (B, D), (B,), (B, C) to (B,)."""
        return self.expand(x_t, t, condition).f

    def metrics(self, groups: Samples, generator: torch.Generator) -> Metrics:
        """Slopes and damping at noisy versions of the groups."""
        noisy = noisy_groups(groups.x_0, self.schedule, "sample", generator)
        condition, t = flat_condition(groups.condition, groups.x_0.shape[1]), noisy.t.flatten()
        return self.expand(noisy.x_t.flatten(0, 1), t, condition).metrics(t)

    def gradient(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Gradient of f, (B, D), by autograd or as alpha / sigma^2 times the shift of the mean."""
        if self.options.gradient == "autograd":
            return super().gradient(x_t, t, condition)
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        shift = self.expand(x_t, t, condition).shift
        return (alpha / sigma**2 * shift).detach()

    @torch.enable_grad()
    def expand(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Expansion:
        """The closed form at x_t (B, D), differentiable in it."""
        x_t = x_t if x_t.requires_grad else x_t.detach().requires_grad_()
        m = self.denoise(x_t, t, condition)
        covariance = self._covariance(x_t, t, m)
        m = self.options.clamped(m)
        if not m.requires_grad:
            m = m.requires_grad_()
        f_0 = self.energy(m, condition)
        g = torch.autograd.grad(f_0.sum(), m, create_graph=True)[0]
        shift = torch.einsum("bij,bj->bi", covariance, g)
        curvature = torch.zeros_like(f_0)
        if self.options.order == 2:
            identity = torch.eye(m.shape[1], dtype=m.dtype, device=m.device)
            system = identity - self._limited(covariance @ _jacobian(g, m))
            shift = torch.linalg.solve(system, shift)
            curvature = -0.5 * torch.logdet(system)
        gain = torch.sum(g * shift, dim=-1)
        slope = gain.clamp(min=1e-12) ** 0.5
        damping = torch.ones_like(gain)
        if self.options.damped:
            damping = torch.clamp(1.0 / slope, max=1.0)
            gain, shift = damping * gain, damping[:, None] * shift
        return Expansion(f_0 + curvature + 0.5 * gain, shift, slope, damping)

    def _limited(self, product: Tensor) -> Tensor:
        """S H shrunk where its largest eigenvalue would leave the domain of order 2."""
        if not self.options.damped:
            return product
        largest = torch.linalg.eigvals(product.detach()).real.amax(dim=-1)
        factor = torch.clamp(_LARGEST_CURVATURE / largest.clamp(min=1e-12), max=1.0)
        return factor[:, None, None] * product

    def _covariance(self, x_t: Tensor, t: Tensor, m: Tensor) -> Tensor:
        """Posterior covariance, (B, D, D)."""
        if self.options.covariance == "jacobian":
            jacobian = _jacobian(m, x_t)
            factor = self.schedule.sigma(t) ** 2 / self.schedule.alpha(t)
            return factor[:, None, None] * 0.5 * (jacobian + jacobian.mT)
        times = self.times.to(t)
        position = torch.searchsorted(times, t.contiguous()).clamp(1, len(times) - 1)
        low, high = times[position - 1], times[position]
        share = ((t - low) / (high - low)).clamp(0.0, 1.0)[:, None]
        table = self.variances.to(m)
        variance = table[position - 1].lerp(table[position], share.to(m))
        return variance[..., None] * torch.eye(variance.shape[-1]).to(variance)


def _jacobian(y: Tensor, x: Tensor) -> Tensor:
    """Derivative of y (B, D) in x (B, D), (B, D, D); zero where y does not depend on x."""
    if not y.requires_grad:
        return y.new_zeros(*y.shape, y.shape[-1])
    rows = [
        torch.autograd.grad(total, x, create_graph=True, materialize_grads=True)[0]
        for total in y.sum(dim=0)
    ]
    return torch.stack(rows, dim=1)
