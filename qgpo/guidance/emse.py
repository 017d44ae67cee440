"""E-MSE: regression of exp(f_t(x_t)) on exp(beta e(x_0)): exact in the limit, hard in practice.

The minimiser is f*_t, but the loss measures errors of e^f: where e^f is small, f may be
anything, and one sample of high energy outweighs thousands (CEP paper, arXiv 2304.12824, 3.3,
which clamps the exponent). The formulation here stays finite for every beta: exponents are taken
relative to the largest energy of the data, so labels are at most 1, and since f*_t cannot exceed
that maximum, e^u goes on as its tangent above it (value and slope agree), where a clamp would
cut the gradient off.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qgpo.diffusion import Metrics
from qgpo.guidance.base import LearnedEnergy, Samples, log_mean_exp_label


def bounded_exp(u: Tensor) -> Tensor:
    """e^u up to u = 0, its tangent 1 + u above."""
    return torch.where(u <= 0.0, torch.exp(u.clamp(max=0.0)), 1.0 + u)


def emse_loss(u: Tensor, log_label: Tensor) -> tuple[Tensor, Metrics]:
    """Mean squared error between e^u and the labels, log-labels <= 0, (B, K) each."""
    loss = torch.mean((bounded_exp(u) - torch.exp(log_label)) ** 2)
    return loss, {"loss": loss, "beyond_maximum": (u > 0.0).float().mean()}


class EMSE(LearnedEnergy):
    """f_phi by regression of its exponential."""

    baseline: float = 0.0
    ceiling: float = 0.0

    def prepare(self, samples: Samples, generator: torch.Generator) -> None:
        """The value of f at t = 1, log E_q[e^{f_0}], and the largest f_0."""
        energy = samples.scaled_energy.double()
        self.baseline = float(torch.logsumexp(energy, dim=0)) - math.log(len(energy))
        self.ceiling = float(energy.max())

    def loss(self, groups: Samples, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Squared error between exponentials, scaled by the largest of them."""
        f, log_posterior = self.noisy_f(groups, generator)
        label = log_mean_exp_label(groups.scaled_energy, log_posterior)
        return emse_loss(f + (self.baseline - self.ceiling), label - self.ceiling)
