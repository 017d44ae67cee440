"""What the answers to "what is the intermediate energy?" have in common.

Every guidance gives `gradient(x_t, t, condition)`, the estimate of grad f*_t that the sampler
adds to the score. f_0 = beta e, with e higher where samples should be (e = -E).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from qgpo.diffusion import (
    Diffusion,
    GuidanceGradient,
    Guide,
    Metrics,
    batch_posterior,
    diffuse,
    uniform_times,
)
from qgpo.fields import check_fields
from qgpo.prepared import AtStep, prepared_gradient
from qgpo.schedule import Schedule

ScaledEnergy = Callable[[Tensor, Tensor | None], Tensor]
"""f_0: clean samples (B, D) and condition (B, C) or None to beta e, (B,) or, of several energies,
(B, E); differentiable"""
Nearest = Callable[[Tensor, Tensor | None], Tensor]
"""clean samples (B, D) and condition (B, C) or None to the nearest ones inside the data's bounds"""
Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""E[x_0 | x_t]: (B, D), (B,), (B, C) to (B, D)"""

TARGETS = ("sample", "posterior")


@dataclass(frozen=True)
class GuidanceOptions:
    """What may be chosen in `guidance_options`: nothing, unless a guidance derives its own."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ClampOptions(GuidanceOptions):
    """Where a guidance evaluates the energy."""

    clamp: float | None = None
    """bound on the coordinates of the denoised sample before the energy is evaluated; none: no
    bound"""

    def clamped(self, x_0: Tensor) -> Tensor:
        """The nearest sample within that bound, (B, D)."""
        return x_0 if self.clamp is None else x_0.clamp(-self.clamp, self.clamp)


OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True)
class GuidanceParts:
    """What a guidance may be built from; each takes what it needs."""

    dim: int
    """D, of a sample"""
    schedule: Schedule
    denoise: Denoiser
    """of the trained diffusion model of q"""
    make_energy_network: Callable[[], nn.Module]
    """a fresh network for f: (B, D), (B,), (B, C) to (B,) or, of several energies, (B, E)"""
    make_diffusion: Callable[[], Diffusion]
    """a fresh diffusion model, for `weighted`"""
    energy: ScaledEnergy | None = None
    """for `dps`, `qgf` and `analytic`; of samples inside the bounds, where there are any"""
    nearest: Nearest | None = None
    """for the same, where the data have bounds"""
    preconditioned: bool = True
    """f = alpha_t times the network"""
    targets: str = "sample"
    """sample, or posterior: labels averaged over the batch's posterior (unconditional only)"""
    components: int = 0
    """of the Gaussian mixtures whose f_t the network of `cep` corrects (unconditional only)"""
    options: Mapping[str, Any] = field(default_factory=dict)
    """by name, those of the guidance that is built"""

    def __post_init__(self) -> None:
        check_targets(self.targets)

    def energy_for(self, guidance: str) -> ScaledEnergy:
        """The energy of the nearest sample inside the bounds. Raises ValueError without one."""
        energy = self.unbounded_energy_for(guidance)
        return energy if self.nearest is None else partial(_energy_inside, energy, self.nearest)

    def unbounded_energy_for(self, guidance: str) -> ScaledEnergy:
        """The energy as it is given. Raises ValueError where there is none."""
        if self.energy is None:
            raise ValueError(
                f"guidance={guidance!r} differentiates the energy: a callable is needed"
            )
        return self.energy


def _energy_inside(
    energy: ScaledEnergy, nearest: Nearest, x_0: Tensor, condition: Tensor | None
) -> Tensor:
    """The energy of the nearest samples inside the bounds, (B, D) to (B,)."""
    return energy(nearest(x_0, condition), condition)


def read_options(kind: type[OptionsT], options: Mapping[str, Any]) -> OptionsT:
    """Named options as a guidance's own dataclass, whose `__post_init__` checks their values."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(options, Mapping):
        raise ValueError(f"guidance_options={options!r}, expected a dict with some of {known}")
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(f"guidance_options has {unknown[0]!r}, expected some of {known}")
    return kind(**options)


class Samples(NamedTuple):
    """N samples of q, or B groups of K that are compared with each other at one noise level.

    There may be several energies, E, each with a p of its own: one per class, say.
    """

    x_0: Tensor
    """(N, D) or (B, K, D)"""
    scaled_energy: Tensor
    """f_0 = beta e(x_0), (N,) or (B, K); of several energies (N, E) or (B, E, K)"""
    condition: Tensor | None = None
    """(N, C); of groups (B, C) or (B, K, C)"""


class Guidance(nn.Module):
    """An estimate of grad f*_t, built from the parts that it needs.

    Raises ValueError for options that it does not have, or values that they may not have.
    """

    Options: ClassVar[type[Any]] = GuidanceOptions
    """a frozen dataclass of what may be chosen in `guidance_options`"""
    trainable: ClassVar[bool] = False
    """whether `loss` exists"""
    needs_energy: bool = False
    """whether the clean energy is differentiated while sampling"""
    several: ClassVar[bool] = False
    """whether there may be several energies, of which every sample follows one"""
    single: ClassVar[bool] = True
    """whether there may be one"""

    def __init__(self, parts: GuidanceParts) -> None:
        super().__init__()
        self.schedule = parts.schedule
        self.denoise = parts.denoise
        self.targets = parts.targets
        self.options = read_options(self.Options, parts.options)

    def start(self, samples: Samples) -> None:
        """Set what the training begins with: the same for the same samples. Files keep it."""

    def finish(self, samples: Samples) -> None:
        """After the last step: the same for the same samples and networks. Files keep it."""

    def prepare(self, samples: Samples, generator: torch.Generator) -> None:
        """Take constants from the training data before any step."""

    def f(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The intermediate energy up to a c(t, condition): (B, D), (B,), (B, C) to (B,).

        Where there are several energies, all of them: (B, E).
        """
        raise NotImplementedError(f"{type(self).__name__} has a gradient but no scalar f")

    def gradient(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Gradient of f in x_t, shape (B, D): the energy guidance of the CEP paper's Eq. 11."""
        return self._gradient(x_t, t, condition)

    def prepared(self, times: Tensor, condition: Tensor | None) -> AtStep | None:
        """The gradient at times (K,), by number, for conditions (B, C), where that is faster."""
        return None

    def towards(self, target: Tensor) -> GuidanceGradient:
        """The gradient where there are several energies and sample i follows number target[i]."""
        return partial(self._gradient, target=target)

    def _gradient(
        self, x_t: Tensor, t: Tensor, condition: Tensor | None, target: Tensor | None = None
    ) -> Tensor:
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            f = self.f(x_t, t, condition)
            if target is not None:
                f = f.gather(-1, target[:, None])
            return torch.autograd.grad(f.sum(), x_t)[0]

    def metrics(self, groups: Samples, generator: torch.Generator) -> Metrics:
        """What is worth logging about a guidance that has no loss."""
        return {}

    def loss(self, groups: Samples, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Loss over groups, each with one noise level."""
        raise NotImplementedError(f"{type(self).__name__} has nothing to train")


class EnergyGuide(Guide):
    """The gradient of a guidance times a factor of each condition, (B,), which may be missing."""

    def __init__(self, guidance: Guidance, factor: Tensor | None = None) -> None:
        self.guidance = guidance
        self.factor = None if factor is None else factor[:, None]

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """At any time."""
        gradient = self.guidance.gradient(x_t, t, condition)
        return gradient if self.factor is None else self.factor * gradient

    def prepared(self, times: Tensor, condition: Tensor | None) -> AtStep | None:
        """At those times."""
        gradient, factor = self.guidance.prepared(times, condition), self.factor
        if gradient is None or factor is None:
            return gradient
        full = gradient

        def weakened(k: int, x_t: Tensor) -> Tensor:
            return full(k, x_t).mul_(factor)

        return weakened


def check_targets(targets: str) -> None:
    """Raise ValueError for unknown targets."""
    if targets not in TARGETS:
        raise ValueError(f"targets={targets!r}, expected one of {list(TARGETS)}")


def refuse_posterior_targets(targets: str, condition: Tensor | None) -> None:
    """Raise ValueError where targets need a batch that shares one condition, and it does not."""
    if targets == "posterior" and condition is not None:
        raise ValueError(
            "targets='posterior' averages over a batch that shares its condition: use "
            "targets='sample' for conditional models"
        )


class NoisyGroups(NamedTuple):
    """B groups of K noisy samples, one time per group, independent noise."""

    x_t: Tensor
    """(B, K, D)"""
    t: Tensor
    """(B, K)"""
    log_posterior: Tensor | None
    """(B, K, K) over which member of the group x_t was made from; None with sample targets"""


def noisy_groups(
    x_0: Tensor, schedule: Schedule, targets: str, generator: torch.Generator
) -> NoisyGroups:
    """Diffuse groups x_0 (B, K, D); posterior targets draw who is diffused with replacement."""
    n, k, _ = x_0.shape
    t = uniform_times(n, schedule, generator)[:, None].expand(n, k)
    clean = x_0
    if targets == "posterior":
        source = torch.randint(k, (n, k), generator=generator, device=x_0.device)
        clean = torch.gather(x_0, 1, source[..., None].expand_as(x_0))
    noise = torch.randn(x_0.shape, generator=generator, device=x_0.device)
    x_t = diffuse(clean, t, noise, schedule)
    posterior = batch_posterior(x_t, t, x_0, schedule) if targets == "posterior" else None
    return NoisyGroups(x_t, t, posterior)


def flat_condition(condition: Tensor | None, k: int) -> Tensor | None:
    """Conditions of groups, (B, C) or (B, K, C), one per sample: (B K, C)."""
    if condition is None:
        return None
    if condition.dim() == 2:
        condition = condition[:, None].expand(-1, k, -1)
    return condition.flatten(0, 1)


class LearnedEnergy(Guidance):
    """A network f_phi(x_t, t, condition) trained by some regression.

    With `preconditioned`, f_phi = alpha_t times the network. The exact f*_t depends on x_t only
    through what x_t still tells about x_0, so its gradient vanishes like alpha_t towards t = 1,
    while the sampler divides it by alpha_t: an unscaled network's error is multiplied there by
    a hundred (cosine schedule at its t_max), a scaled one's by one. Ours, not the paper's.
    """

    trainable = True

    def __init__(self, parts: GuidanceParts) -> None:
        super().__init__(parts)
        self.network = parts.make_energy_network()
        self.preconditioned = parts.preconditioned

    def f(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The intermediate energy up to a c(t, condition), (B,) or (B, E)."""
        f: Tensor = self.network(x_t, t, condition)
        if not self.preconditioned:
            return f
        alpha = self.schedule.alpha(t)
        return (alpha if f.dim() == 1 else alpha[:, None]) * f

    def prepared(self, times: Tensor, condition: Tensor | None) -> AtStep | None:
        """Written out for an `EnergyNetwork` alone."""
        of_network = prepared_gradient(self.network, times, condition)
        if of_network is None or not self.preconditioned:
            return of_network
        alphas = self.schedule.alpha(times).tolist()

        def gradient(k: int, x_t: Tensor) -> Tensor:
            return of_network(k, x_t).mul_(alphas[k])

        return gradient

    def noisy_f(self, groups: Samples, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Values of f at noisy versions of the groups, and NoisyGroups.log_posterior.

        They are (B, K), or (B, E, K) of several energies; the posterior is the same for all.
        """
        refuse_posterior_targets(self.targets, groups.condition)
        noisy = noisy_groups(groups.x_0, self.schedule, self.targets, generator)
        condition = flat_condition(groups.condition, groups.x_0.shape[1])
        f = self.f(noisy.x_t.flatten(0, 1), noisy.t.flatten(), condition)
        f, log_posterior = f.unflatten(0, groups.x_0.shape[:2]), noisy.log_posterior
        if f.dim() == 2:
            return f, log_posterior
        return f.mT, None if log_posterior is None else log_posterior[:, None]


def log_mean_exp_label(scaled_energy: Tensor, log_posterior: Tensor | None) -> Tensor:
    """The label whose exponential is e^{f_0} (sample) or its posterior mean, (B, K).

    Of several energies (B, E, K), with a posterior (B, 1, K, K).
    """
    if log_posterior is None:
        return scaled_energy
    return torch.logsumexp(log_posterior + scaled_energy[..., None, :], dim=-1)
