"""Classifier guidance: the class probabilities of noisy samples, by cross entropy over the classes.

Of several energies e_c = log p(c|x_0), c = 1 ... E, it learns log p(c|x_t) = f*_t up to a constant
(Dhariwal & Nichol 2021, arXiv 2105.05233). Contrastive energy prediction compares K samples under
one class, this one E classes for one sample: labels softmax_c(beta e_c) instead of
softmax_k(beta e(x^k)). With beta = 1 both have the same exact minimiser.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qgpo.diffusion import Metrics
from qgpo.guidance.base import LearnedEnergy, Samples


def classifier_loss(f: Tensor, label: Tensor) -> tuple[Tensor, Metrics]:
    """Cross entropy from probabilities to softmax(f) over the energies, (B, E, K) each."""
    loss = -torch.sum(label * torch.log_softmax(f, dim=-2), dim=-2).mean()
    hit = f.argmax(dim=-2) == label.argmax(dim=-2)
    return loss, {"loss": loss, "accuracy": hit.float().mean()}


class Classifier(LearnedEnergy):
    """A network of logits, whose log probabilities are f."""

    several = True
    single = False

    def f(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Log p(c|x_t) of every class: (B, D), (B,), (B, C) to (B, E)."""
        return torch.log_softmax(super().f(x_t, t, condition), dim=-1)

    def loss(self, groups: Samples, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Cross entropy at one time per group."""
        f, log_posterior = self.noisy_f(groups, generator)
        label = torch.softmax(groups.scaled_energy, dim=-2)
        if log_posterior is not None:
            label = label @ log_posterior.exp().squeeze(1).mT
        return classifier_loss(f, label)
