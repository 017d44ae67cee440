"""Hue and saturation of pixels, differentiable almost everywhere, and the energy of a hue.

The energy is the CEP paper's for color guidance (arXiv 2304.12824, section 5.2 and its code).
"""

from __future__ import annotations

import torch
from torch import Tensor

HUES = 6
"""red, yellow, green, cyan, blue, magenta: hue i / 6"""
HUE_NAMES = ("red", "yellow", "green", "cyan", "blue", "magenta")
LEAST_SATURATION, SATURATION_WEIGHT = 0.1, 3.0
SMALLEST = 1e-4
"""below which a difference of channels is none"""


def hue_saturation(images: Tensor) -> tuple[Tensor, Tensor]:
    """Hue in [0, 1) and saturation in [0, 1] of RGB pixels, (..., 3, H, W) to (..., H, W) each.

    Pixels are taken into [0, 1]. A gray pixel has hue 0 and no gradient of it.
    """
    red, green, blue = images.clamp(0.0, 1.0).unbind(dim=-3)
    most = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = most - least
    divisor = chroma.clamp(min=SMALLEST)
    sixth = torch.where(
        most == red,
        (green - blue) / divisor,
        torch.where(most == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    return torch.remainder(sixth / 6.0, 1.0), chroma / most.clamp(min=SMALLEST)


def rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Pixels (..., 3, H, W) of that hue, saturation and value in [0, 1], (..., H, W) each."""
    sixth = 6.0 * hue
    channels = []
    for shift in (5.0, 3.0, 1.0):
        k = torch.remainder(shift + sixth, 6.0)
        ramp = torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)
        channels.append(value - value * saturation * ramp)
    return torch.stack(channels, dim=-3)


def hue_distance(hue: Tensor, target: Tensor | float) -> Tensor:
    """The shorter way around the circle of hues, at most 1/2."""
    difference = torch.abs(hue - target)
    return torch.minimum(difference, 1.0 - difference)


def hue_errors(images: Tensor, target: Tensor) -> Tensor:
    """Mean distance of an image's pixels from hue number `target` of HUES: (B, 3, H, W), (B,)."""
    hue, _ = hue_saturation(images)
    return hue_distance(hue, target[:, None, None] / HUES).mean(dim=(-2, -1))


def hue_energies(images: Tensor) -> Tensor:
    """The energy of each of HUES hues, (B, 3, H, W) to (B, HUES).

    E_i = mean over pixels of |h - i/6| around the circle + 3 (0.1 - S) where the mean saturation S
    is below 0.1.
    """
    hue, saturation = hue_saturation(images)
    targets = torch.arange(HUES, device=images.device) / HUES
    distance = hue_distance(hue[:, None], targets[:, None, None]).mean(dim=(-2, -1))
    gray = (LEAST_SATURATION - saturation.mean(dim=(-2, -1))).clamp(min=0.0)
    return distance + SATURATION_WEIGHT * gray[:, None]
