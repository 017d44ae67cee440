"""How good sampled images are: distances of their features from those of data.

Features (N, F) are what an independent classifier computes before its last layer.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians with the moments of (N, F) and (M, F).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), computed in float64 (Heusel et al. 2017,
    arXiv 1706.08500; there the features are Inception's, which makes it FID). The trace of the
    root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2).
    """
    for features in (first, second):
        if features.dim() != 2 or len(features) < 2:
            raise ValueError(f"features have shape {tuple(features.shape)}, expected (N >= 2, F)")
    a, b = first.double(), second.double()
    c_a, c_b = torch.atleast_2d(a.T.cov()), torch.atleast_2d(b.T.cov())
    values, vectors = torch.linalg.eigh(c_a)
    root = vectors * values.clamp(min=0.0).sqrt() @ vectors.T
    both = torch.linalg.eigvalsh(root @ c_b @ root).clamp(min=0.0).sqrt().sum()
    apart = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return float(apart + c_a.trace() + c_b.trace() - 2.0 * both)


def frechet_per_class(
    features: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor
) -> dict[int, float]:
    """The distance of every class that both have at least twice."""
    distances = {}
    for label in torch.unique(labels).tolist():
        ours, theirs = features[labels == label], real[real_labels == label]
        if min(len(ours), len(theirs)) > 1:
            distances[label] = frechet_distance(ours, theirs)
    return distances


def mean_pair_distance(features: Tensor) -> float:
    """Root mean square distance of two different rows of (N, F): how much they differ."""
    if len(features) < 2:
        raise ValueError(f"{len(features)} samples have no pairs, expected at least 2")
    # the mean square of a difference is twice the variance
    return float((2.0 * features.double().var(dim=0, correction=1).sum()).sqrt())


def diversity(features: Tensor, groups: Tensor, real: Tensor) -> float:
    """How much samples of one group differ, on average, in parts of how much data do.

    features (N, F) with a group each (N,), features of data (M, F). 1 is the data's diversity, 0
    is one image.
    """
    within = [
        mean_pair_distance(features[groups == group]) for group in torch.unique(groups).tolist()
    ]
    return sum(within) / len(within) / mean_pair_distance(real)
