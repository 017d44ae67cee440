"""Distances of samples to exact ones, and between exact ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qgpo.exact import GaussianMixture, component_shares, sliced_wasserstein


def distances(samples: Tensor, exact_sets: list[Tensor], p: GaussianMixture) -> dict[str, Any]:
    """Mean sliced W2 to the exact sets, and the total variation between component weights."""
    shares = component_shares(samples, p)
    return {
        "sw2": sum(sliced_wasserstein(samples, s) for s in exact_sets) / len(exact_sets),
        "weights_tv": float(0.5 * torch.sum((shares - p.weights).abs())),
        "weights": shares.tolist(),
    }


def noise_floor(exact_sets: list[Tensor], p: GaussianMixture) -> dict[str, float]:
    """The same distances between exact sets, averaged over pairs, and over sets for weights."""
    pairs = [
        sliced_wasserstein(exact_sets[i], exact_sets[j])
        for i in range(len(exact_sets))
        for j in range(i)
    ]
    shares = [component_shares(s, p) for s in exact_sets]
    tv = [float(0.5 * torch.sum((s - p.weights).abs())) for s in shares]
    return {
        "sw2": sum(pairs) / len(pairs),
        "sw2_largest": max(pairs),
        "weights_tv": sum(tv) / len(tv),
        "weights_tv_largest": max(tv),
    }
