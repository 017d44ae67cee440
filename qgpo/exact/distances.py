"""Distances between samples and distributions, and between a guidance and the exact one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qgpo.diffusion import diffuse
from qgpo.exact.mixture import GaussianMixture, TiltedMixture

GradientField = Callable[[Tensor, Tensor], Tensor]
"""noisy samples (B, D) and times (B,) to the gradient of f, (B, D)"""


def sliced_wasserstein(a: Tensor, b: Tensor, n_directions: int = 128, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance of two samples of equal size (N, D).

    The root mean square over random directions of the one-dimensional distances, computed by
    sorting (Bonneel et al. 2015, J. Math. Imaging Vis. 51). Directions depend on the seed alone.
    """
    if a.shape != b.shape:
        raise ValueError(f"samples of shapes {tuple(a.shape)} and {tuple(b.shape)}, expected equal")
    generator = torch.Generator().manual_seed(seed)
    shape = (a.shape[1], n_directions)
    directions = torch.randn(shape, generator=generator, dtype=torch.float64)
    directions = directions / torch.linalg.vector_norm(directions, dim=0)
    first = torch.sort(a.double().cpu() @ directions, dim=0).values
    second = torch.sort(b.double().cpu() @ directions, dim=0).values
    return float(torch.mean((first - second) ** 2).sqrt())


def component_shares(samples: Tensor, mixture: GaussianMixture) -> Tensor:
    """Average responsibility of each component for the samples (N, D), (K,)."""
    one = torch.ones(len(samples), dtype=torch.float64)
    return mixture.responsibilities(samples, one, torch.zeros_like(one)).mean(dim=0)


@dataclass(frozen=True)
class GuidanceError:
    """Error of a guidance in the units the sampler uses."""

    relative: float
    """sqrt(E_t E_{p_t} |sigma (grad f - grad f*)|^2 / E_t E_{p_t} |sigma grad f*|^2)"""
    times: list[float]
    """t, uniform on [0.02, 1]"""
    errors: list[float]
    """the root of E_{p_t} |sigma (grad f - grad f*)|^2 at each t"""
    sizes: list[float]
    """the root of E_{p_t} |sigma grad f*|^2 at each t"""


def guidance_error(
    gradient: GradientField,
    exact: TiltedMixture,
    n_times: int = 50,
    n_samples: int = 2_000,
    seed: int = 0,
) -> GuidanceError:
    """Compare a guidance, evaluated in float32, with the closed form at samples of p_t."""
    generator = torch.Generator().manual_seed(seed)
    schedule, times = exact.schedule, torch.linspace(0.02, 1.0, n_times, dtype=torch.float64)
    errors, sizes = [], []
    for time in times:
        x_0, _ = exact.p.sample(n_samples, generator)
        t = time.expand(n_samples)
        noise = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
        x_t = diffuse(x_0, t, noise, schedule)
        sigma = schedule.sigma(t)[:, None]
        expected = sigma * exact.gradient(x_t, t)
        estimate = sigma * gradient(x_t.float(), t.float()).double()
        errors.append(float(torch.mean(torch.sum((estimate - expected) ** 2, dim=-1))))
        sizes.append(float(torch.mean(torch.sum(expected**2, dim=-1))))
    total = torch.tensor(sizes).sum()
    relative = float((torch.tensor(errors).sum() / total).sqrt()) if total > 0 else 0.0
    return GuidanceError(
        relative, times.tolist(), [e**0.5 for e in errors], [s**0.5 for s in sizes]
    )
