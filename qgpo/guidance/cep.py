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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from qgpo.diffusion import Metrics
from qgpo.fields import OneOf
from qgpo.gaussians import KINDS, FittedMixture, FittedTilt
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

Candidates = Callable[[Tensor, Tensor], Iterator[Tensor]]
"""noisy samples (B, D) and times (B,) to candidates for f, (B,) each"""
LABELS = ("normalized", "exponential")
BASES = ("none", "denoised")
HELD_OUT, FEWEST = 8, 200
"""one sample in so many judges the mixtures, where there are at least so many samples"""
PARTS = (8, 4, 2, 1)
"""mixtures of J / 8 components, and so on, are fitted: fewer ones are known from more points"""
OF_MIXTURES, OF_SHARES = (16, 8, 256), (48, 1, 2_048)
"""by which candidates for f are compared: so often, so many groups of so many samples"""
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""of the network's correction of the mixtures, one of which is kept"""


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
    """Mixtures with the least contrastive loss on held-out samples.

    They are of every kind of `FittedTilt.fit`, and of J components or a part of them (PARTS).
    Always the same ones for the same samples.
    """
    n = len(samples.x_0)
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(samples.x_0.device)
    kept = n // HELD_OUT if n >= FEWEST else 0
    fitted, judges = (
        Samples(samples.x_0[rows], samples.scaled_energy[rows])
        for rows in (shuffled[kept:], shuffled[: kept or n])
    )
    states = []
    sizes = dict.fromkeys(max(1, tilt.q.components // part) for part in PARTS)
    for size in sizes:
        points = FittedMixture(tilt.q.dim, size).to(samples.x_0.device)
        points.fit(fitted.x_0, torch.Generator(samples.x_0.device).manual_seed(0))
        for kind in KINDS:
            generator = torch.Generator(samples.x_0.device).manual_seed(0)
            tilt.fit(*fitted[:2], generator, kind, size, points)
            states.append({name: value.clone() for name, value in tilt.state_dict().items()})

    def candidates(x_t: Tensor, t: Tensor) -> Iterator[Tensor]:
        for state in states:
            tilt.load_state_dict(state)
            yield tilt.f(x_t, schedule.alpha(t), schedule.sigma(t))

    tilt.load_state_dict(states[best_of(candidates, judges, schedule, OF_MIXTURES)])


@torch.no_grad()
def best_of(
    candidates: Candidates, samples: Samples, schedule: Schedule, judged: tuple[int, int, int]
) -> int:
    """Number of the candidate for f that has the least contrastive loss, the first of equal ones.

    Labels are averaged over posteriors. Where few of a group's samples have most of e^{f_0}, the
    minimiser of Eq. 13 is not f*. A network that is trained on such groups is therefore judged on
    larger ones.
    """
    calls, *groups = judged
    groups[1] = min(groups[1], len(samples.x_0))
    x_0, f_0 = samples.x_0, samples.scaled_energy
    generator = torch.Generator(x_0.device).manual_seed(1)
    losses = []
    for _ in range(calls):
        rows = torch.randint(len(x_0), groups, generator=generator, device=x_0.device)
        noisy = noisy_groups(x_0[rows], schedule, "posterior", generator)
        label = log_mean_exp_label(f_0[rows], noisy.log_posterior)
        found = candidates(noisy.x_t.flatten(0, 1), noisy.t.flatten())
        losses.append([float(cep_loss(f.view(groups), label)[0]) for f in found])
    return int(torch.tensor(losses).double().mean(dim=0).argmin())


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
    share: Tensor
    """of the network's correction that is kept"""
    log_normalizer: Tensor | None = None

    def __init__(self, parts: GuidanceParts) -> None:
        super().__init__(parts)
        n = parts.components
        self.tilt = FittedTilt(parts.dim, n) if n else None
        """mixtures with an f_t in closed form, which the network corrects"""
        if n:
            self.register_buffer("share", torch.ones(()))
        self.base = DenoisedEnergy(parts) if self.options.base == "denoised" else None
        self.needs_energy = self.base is not None

    def f(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The intermediate energy up to a c(t, condition): (B, D), (B,), (B, C) to (B,)."""
        f = super().f(x_t, t, condition)
        if self.tilt is not None:
            of_mixtures = self.tilt.f(x_t, self.schedule.alpha(t), self.schedule.sigma(t))
            f = self.share * f + of_mixtures
        return f if self.base is None else f + self.base(x_t, t, condition)

    def prepared(self, times: Tensor, condition: Tensor | None) -> AtStep | None:
        """Of the network alone, where nothing is added to it."""
        alone = self.tilt is None and self.base is None
        return super().prepared(times, condition) if alone else None

    def start(self, samples: Samples) -> None:
        """Fit the mixtures."""
        if self.tilt is not None:
            fit_tilt(self.tilt, samples, self.schedule)

    def finish(self, samples: Samples) -> None:
        """Keep as much of the network's correction as pays: the mixtures may be all there is."""
        if (tilt := self.tilt) is None:
            return

        def candidates(x_t: Tensor, t: Tensor) -> Iterator[Tensor]:
            known = tilt.f(x_t, self.schedule.alpha(t), self.schedule.sigma(t))
            correction = super(CEP, self).f(x_t, t, None)
            for share in SHARES:
                yield known + share * correction

        self.share.fill_(SHARES[best_of(candidates, samples, self.schedule, OF_SHARES)])

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
