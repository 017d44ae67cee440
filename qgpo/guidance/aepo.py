"""AEPO's network: regression of f_t on the analytic intermediate energy (arXiv 2505.01822).

`analytic` evaluates its closed form while sampling and differentiates energy and denoiser at
every step; a network that has learned it costs what `cep` costs. It is as inexact as the closed
form: exact for Gaussian q with a linear energy (order 1) or a quadratic one (order 2).

Only differences within a group count, as in contrastive energy prediction: energies of two
states may lie far apart (Q does), and the sampler never compares them. The published loss
regresses the value itself; f up to a c(t, condition) has the same gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qgpo.diffusion import Metrics
from qgpo.guidance.analytic import Analytic, AnalyticOptions
from qgpo.guidance.base import GuidanceParts, LearnedEnergy, Samples, flat_condition, noisy_groups
from qgpo.guidance.mse import mse_loss


class AnalyticNetwork(LearnedEnergy):
    """f_phi by regression on the closed form of `analytic`."""

    Options = AnalyticOptions
    needs_energy = True

    def __init__(self, parts: GuidanceParts) -> None:
        super().__init__(parts)
        self.analytic = Analytic(parts)

    def prepare(self, samples: Samples, generator: torch.Generator) -> None:
        """Tabulate the posterior variance on (N, D) data."""
        self.analytic.prepare(samples, generator)

    def loss(self, groups: Samples, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Squared error to the closed form, whose level is free in every group."""
        shape = groups.x_0.shape[:2]
        noisy = noisy_groups(groups.x_0, self.schedule, "sample", generator)
        x_t, t = noisy.x_t.flatten(0, 1), noisy.t.flatten()
        condition = flat_condition(groups.condition, shape[1])
        expansion = self.analytic.expand(x_t, t, condition)
        label = expansion.f.detach().reshape(shape)
        label = label - label.mean(dim=-1, keepdim=True)
        f = self.f(x_t, t, condition).reshape(shape)
        loss, metrics = mse_loss(f - f.mean(dim=-1, keepdim=True), label)
        metrics["target_range"] = (label.amax(dim=-1) - label.amin(dim=-1)).mean()
        return loss, {**metrics, **expansion.metrics(t)}
