"""What a guidance is built from, where a test gives a few of the parts only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qgpo.diffusion import Diffusion
from qgpo.guidance import GuidanceParts
from qgpo.networks import EnergyNetwork, NaturalNetwork
from qgpo.schedule import Schedule


def sample_at_zero(x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    """A denoiser for guidances that ask for none."""
    return torch.zeros_like(x_t)


def guidance_parts(
    schedule: Schedule,
    network: nn.Module | None = None,
    model: nn.Module | None = None,
    dim: int = 2,
    **parts: Any,
) -> GuidanceParts:
    """Parts with small networks; `network` and `model` stand in their place."""

    def make_diffusion() -> Diffusion:
        natural = NaturalNetwork(dim, 0, dim, (8,), schedule, 1.0)
        return Diffusion(natural, schedule, "velocity")

    defaults: dict[str, Any] = {
        "denoise": sample_at_zero,
        "make_energy_network": lambda: network or EnergyNetwork(dim, 0, (8,), 1.0),
        "make_diffusion": lambda: model or make_diffusion(),
        "preconditioned": False,
    }
    return GuidanceParts(dim, schedule, **{**defaults, **parts})
