"""Critics are weighted by what their advantages say of outcomes that they have not seen.

Stacked regression with weights that are not negative (Breiman 1996, "Stacked regressions").
Advantages have mean zero over a state's actions, so that any function of the state may be
subtracted from an outcome: the slope of outcomes on advantages is that within states.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slope:
    """A least-squares slope through the origin, of centered outcomes on one regressor."""

    slope: float
    error: float
    """standard error, with groups of transitions (episodes) independent of each other"""
    correlation: float

    @property
    def t(self) -> float:
        """Slope over its error; 0 where the regressor does not vary."""
        return self.slope / self.error if self.error > 0.0 else 0.0


def grouped_slope(regressor: Tensor, outcome: Tensor, groups: Tensor) -> Slope:
    """Of (N,) outcomes on (N,) values; `groups` (N,) numbers what is not independent.

    The error is the cluster-robust one (Liang & Zeger 1986), times G / (G - 1) for G groups.
    """
    a, y = regressor.double(), outcome.double()
    a, y = a - a.mean(), y - y.mean()
    squares = torch.sum(a * a)
    if not squares > 0.0:
        return Slope(0.0, 0.0, 0.0)
    slope = torch.sum(a * y) / squares
    scores = torch.zeros(int(groups.max()) + 1, dtype=torch.float64, device=a.device)
    scores.index_add_(0, groups, a * (y - slope * a))
    kept = len(torch.unique(groups))
    few = kept / (kept - 1) if kept > 1 else float("inf")
    norm = (squares * torch.sum(y * y)).sqrt()
    correlation = torch.sum(a * y) / norm.clamp(min=1e-300)
    return Slope(float(slope), few * float(scores.norm() / squares), float(correlation))


def stacked_weights(regressors: Tensor, outcome: Tensor) -> Tensor:
    """Least-squares weights (J,) that are not negative, of outcomes (N,) on regressors (J, N).

    With few regressors all subsets can be tried: of those whose own least-squares weights are
    positive, the one with the smallest residual is the minimiser.
    """
    x, y = regressors.double(), outcome.double()
    x, y = x - x.mean(dim=1, keepdim=True), y - y.mean()
    gram, moments = x @ x.T, x @ y
    best, weights = 0.0, torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for subset in range(1, 2 ** len(x)):
        kept = [j for j in range(len(x)) if subset >> j & 1]
        solved = torch.linalg.lstsq(gram[kept][:, kept], moments[kept][:, None]).solution[:, 0]
        explained = float(solved @ moments[kept])
        if bool((solved > 0.0).all()) and explained > best:
            best, weights = explained, torch.zeros_like(weights)
            weights[kept] = solved
    return weights


def of_the_mean(slope: float, heads: int) -> float:
    """What to multiply the weights of one head by for the mean of so many.

    A head is the truth plus an error of its own, so that its slope is its reliability (that of
    slopes above 1 counts as 1), and the mean's is k s / (1 + (k - 1) s) (Spearman 1910, Brown
    1910).
    """
    return heads / (1.0 + (heads - 1) * min(slope, 1.0))
