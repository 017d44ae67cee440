"""MSE: regression of f_t(x_t) on beta e(x_0), which learns the first cumulant only.

The minimiser is beta E[e | x_t], a lower bound on f*_t = log E[e^{beta e} | x_t] (Jensen); the
difference starts with beta^2 Var[e | x_t] / 2. Good where the posterior hardly varies in energy
(small beta, small t), too weak elsewhere. A baseline of the CEP paper (arXiv 2304.12824, 3.3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qgpo.diffusion import Metrics
from qgpo.guidance.base import LearnedEnergy, Samples


def mse_loss(f: Tensor, label: Tensor) -> tuple[Tensor, Metrics]:
    """Mean squared error, (B, K) each."""
    loss = torch.mean((f - label) ** 2)
    return loss, {"loss": loss}


class MSE(LearnedEnergy):
    """f_phi by regression on the clean energy, relative to its mean over the data."""

    several = True
    baseline: Tensor | float = 0.0

    def prepare(self, samples: Samples, generator: torch.Generator) -> None:
        """The value of f at t = 1, which leaves the gradient as it is, of every energy."""
        self.baseline = samples.scaled_energy.double().mean(dim=0).float()[..., None]

    def loss(self, groups: Samples, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Squared error to the energies, or to their posterior means."""
        f, log_posterior = self.noisy_f(groups, generator)
        label = groups.scaled_energy - self.baseline
        if log_posterior is not None:
            label = torch.sum(log_posterior.exp() * label[..., None, :], dim=-1)
        return mse_loss(f, label)
