"""Contrastive energy prediction: the exact intermediate energy, learned (CEP paper, Eq. 12-20).

Diffuse q and p ~ q exp(beta e) with the same kernel. Then p_t ~ q_t exp(f*_t) with

    f*_t(x_t) = log E_{q(x_0 | x_t)} [exp(beta e(x_0))]                          (Eq. 9)

A softmax over K noisy samples at one noise level, trained towards their clean energies, has
f*_t + c(t) as its minimiser: with labels e^{beta e} for every K (Eq. 12), with their softmax as
K grows (Eq. 13), which needs no constant and stays finite for every beta.

Two special cases: e = log p(y|x) with beta = 1 is classifier guidance, learned at every noise
level; a CLIP-style contrastive loss is Eq. 13 with one positive, labels (1, 0, ..., 0), which is
the limit of an energy log p(y|x) that knows each sample's own y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from qgpo.diffusion import Metrics
from qgpo.fields import OneOf
from qgpo.gaussians import KINDS, FittedTilt
from qgpo.guidance.base import (
    GuidanceOptions,
    GuidanceParts,
    LearnedEnergy,
    Samples,
    log_mean_exp_label,
    noisy_groups,
)
from qgpo.prepared import AtStep
from qgpo.schedule import Schedule

LABELS = ("normalized", "exponential")
BASES = ("none", "denoised")
HELD_OUT, FEWEST = 8, 200
"""one sample in so many judges the mixtures, where there are at least so many samples"""
CALLS, GROUPS = 16, (8, 256)
"""by which mixtures are compared: so often, groups of so many samples"""


def cep_loss(
    f: Tensor, scaled_energy: Tensor, log_normalizer: Tensor | float | None = None
) -> tuple[Tensor, Metrics]:
    """Cross entropy from the clean energies to softmax(f) over the last dimension, (..., K) each.

    Labels are softmax(beta e) (Eq. 13) or, with `log_normalizer` = log E_q[e^{beta e}], a number
    per energy, the unnormalised e^{beta e} of Eq. 12 divided by that constant and by K.
    """
    log_prediction = torch.log_softmax(f, dim=-1)
    log_label = torch.log_softmax(scaled_energy, dim=-1)
    label = log_label.exp()
    effective = torch.mean(1.0 / torch.sum(label**2, dim=-1))
    if log_normalizer is not None:
        constant = torch.as_tensor(log_normalizer, device=f.device)[..., None]
        label = torch.exp(scaled_energy - constant) / f.shape[-1]
    cross_entropy = -torch.sum(label * log_prediction, dim=-1).mean()
    entropy = -torch.sum(label * log_label, dim=-1).mean()
    return cross_entropy, {
        "loss": cross_entropy,
        "excess": cross_entropy - entropy,
        "effective_samples": effective,
    }


def fit_tilt(tilt: FittedTilt, samples: Samples, schedule: Schedule) -> None:
    """Mixtures of the kind (`FittedTilt.fit`) with the least contrastive loss on held-out samples.

    Always the same one for the same samples.
    """
    n = len(samples.x_0)
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(samples.x_0.device)
    kept = n // HELD_OUT if n >= FEWEST else 0
    fitted, judges = (
        Samples(samples.x_0[rows], samples.scaled_energy[rows])
        for rows in (shuffled[kept:], shuffled[: kept or n])
    )
    losses, states = [], []
    for kind in KINDS:
        generator = torch.Generator(samples.x_0.device).manual_seed(0)
        tilt.fit(*fitted[:2], generator, kind)
        generator.manual_seed(1)
        losses.append(_contrast(tilt, judges, schedule, generator))
        states.append({name: value.clone() for name, value in tilt.state_dict().items()})
    tilt.load_state_dict(states[losses.index(min(losses))])


@torch.no_grad()
def _contrast(
    tilt: FittedTilt, samples: Samples, schedule: Schedule, generator: torch.Generator
) -> float:
    """Contrastive loss of the mixtures' f_t, with posterior targets."""
    total = 0.0
    for _ in range(CALLS):
        rows = torch.randint(
            len(samples.x_0), GROUPS, generator=generator, device=samples.x_0.device
        )
        x_0, f_0 = samples.x_0[rows], samples.scaled_energy[rows]
        noisy = noisy_groups(x_0, schedule, "posterior", generator)
        t = noisy.t.flatten()
        f = tilt.f(noisy.x_t.flatten(0, 1), schedule.alpha(t), schedule.sigma(t))
        label = log_mean_exp_label(f_0, noisy.log_posterior)
        total += float(cep_loss(f.reshape(f_0.shape), label)[0])
    return total / CALLS


@dataclass(frozen=True)
class CEPOptions(GuidanceOptions):
    """Which of the paper's two forms of the label, and what the network corrects."""

    labels: Annotated[str, OneOf(LABELS)] = "normalized"
    """normalized (Eq. 13) or exponential (Eq. 12)"""
    base: Annotated[str, OneOf(BASES)] = "none"
    """none, or denoised: the network corrects beta e at the denoised sample, of which each noise
    level takes a share that is learned. The energy is then differentiated while sampling"""


class DenoisedEnergy(nn.Module):
    """A share of beta e(E[x_0 | x_t]), by noise level: what DPS takes for f_t.

    It is f*_t where little noise is left, where contrast tells values of f better than their
    gradient. Where much is left it is several times too steep. Ours, not the paper's.
    """

    def __init__(self, parts: GuidanceParts) -> None:
        super().__init__()
        self.energy, self.denoise = parts.energy_for("cep"), parts.denoise
        self.schedule = parts.schedule
        self.share = nn.Parameter(torch.tensor([0.0, 1.0]))
        """of the logit: at alpha = sigma, and per unit of log(alpha / sigma)"""

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """(B, D), (B,), (B, C) to (B,) or (B, E)."""
        f = self.energy(self.denoise(x_t, t, condition), condition)
        level = self.schedule.half_log_snr(t.clamp(self.schedule.t_min, self.schedule.t_max))
        share = torch.sigmoid(self.share[0] + self.share[1] * level)
        return (share if f.dim() == 1 else share[:, None]) * f


class CEP(LearnedEnergy):
    """The energy network f_phi and how it is trained and used."""

    Options = CEPOptions
    several = True
    options: CEPOptions
    log_normalizer: Tensor | None = None

    def __init__(self, parts: GuidanceParts) -> None:
        super().__init__(parts)
        n = parts.components
        self.tilt = FittedTilt(parts.dim, n) if n else None
        """mixtures with an f_t in closed form, which the network corrects"""
        self.base = DenoisedEnergy(parts) if self.options.base == "denoised" else None
        self.needs_energy = self.base is not None

    def f(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The intermediate energy up to a c(t, condition): (B, D), (B,), (B, C) to (B,)."""
        f = super().f(x_t, t, condition)
        if self.base is not None:
            f = f + self.base(x_t, t, condition)
        if self.tilt is None:
            return f
        return f + self.tilt.f(x_t, self.schedule.alpha(t), self.schedule.sigma(t))

    def prepared(self, times: Tensor, condition: Tensor | None) -> AtStep | None:
        """Of the network alone, where no mixture is added."""
        return super().prepared(times, condition) if self.tilt is None else None

    def start(self, samples: Samples) -> None:
        """Fit the mixtures."""
        if self.tilt is not None:
            fit_tilt(self.tilt, samples, self.schedule)

    def prepare(self, samples: Samples, generator: torch.Generator) -> None:
        """Eq. 12 needs log E_q[e^{beta e}], (N,) to a number or (N, E) to (E,)."""
        if self.options.labels == "exponential":
            energies = samples.scaled_energy.double()
            self.log_normalizer = torch.logsumexp(energies, dim=0) - math.log(len(energies))
            self.log_normalizer = self.log_normalizer.float()

    def loss(self, groups: Samples, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Eq. 20: one time per group shared by its K samples, independent noise.

        The condition is (B, C) where a group was drawn for one condition, as in reinforcement
        learning, or (B, K, C) where the group is any sample of pairs: then c(t) is common to all
        conditions, and f* the same.
        """
        f, log_posterior = self.noisy_f(groups, generator)
        label = log_mean_exp_label(groups.scaled_energy, log_posterior)
        return cep_loss(f, label, self.log_normalizer)
