"""Energy-weighted diffusion and flow matching: p's own model, without guidance at sampling time.

    L = E[ w(x_0) |output(x_t, t) - target(x_0, eps)|^2 ],   w = K softmax over K samples of beta e

is minimised by the model of p ~ q e^{beta e} (EFM / QIPO, arXiv 2503.04975), on every path: noise
or velocity prediction on a variance preserving schedule is energy-weighted diffusion, `flow` on
`ot` energy-weighted flow matching. Exact, but every beta needs its own model, and few samples
carry the weight when beta is large (`effective_samples`).

The guidance it implies is the difference between two denoisers (Tweedie's formula),

    grad f_t = alpha / sigma^2 (E_p[x_0 | x_t] - E_q[x_0 | x_t]),

so the same guidance scale applies: 0 is q's model, 1 the weighted model itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qgpo.diffusion import Diffusion, Metrics, batch_posterior, diffuse, uniform_times
from qgpo.gaussians import CorrectedNetwork
from qgpo.guidance.base import (
    Denoiser,
    Guidance,
    GuidanceParts,
    Samples,
    flat_condition,
    refuse_posterior_targets,
)


def weighted_loss(
    model: Diffusion,
    x_0: Tensor,
    scaled_energy: Tensor,
    condition: Tensor | None,
    targets: str,
    generator: torch.Generator,
) -> tuple[Tensor, Metrics]:
    """Weighted regression on groups; with all energies equal, plain denoising.

    x_0 (B, K, D), scaled_energy (B, K), condition (B, C) or (B, K, C); one time per sample.
    """
    k = x_0.shape[1]
    log_weight = torch.log_softmax(scaled_energy, dim=-1) + math.log(k)
    effective = torch.mean(k**2 / torch.sum(torch.exp(2.0 * log_weight), dim=-1))
    refuse_posterior_targets(targets, condition)
    draw = _posterior_targets if targets == "posterior" else _sample_targets
    x_t, t, target, weight = draw(model, x_0, log_weight, generator)
    output = model.network(x_t.flatten(0, 1), t.flatten(), flat_condition(condition, k))
    error = torch.mean((output - target.flatten(0, 1)) ** 2, dim=-1)
    loss = torch.mean(weight.flatten() * error)
    return loss, {"loss": loss, "effective_samples": effective}


def _sample_targets(
    model: Diffusion, x_0: Tensor, log_weight: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_t, t, the target from each sample's own x_0 and noise, and its weight."""
    t = uniform_times(log_weight.numel(), model.schedule, generator).reshape(log_weight.shape)
    noise = torch.randn(x_0.shape, generator=generator, device=x_0.device)
    x_t = diffuse(x_0, t, noise, model.schedule)
    return x_t, t, model.target(x_0, t, noise), log_weight.exp()


def _posterior_targets(
    model: Diffusion, x_0: Tensor, log_weight: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same averaged over the group's posterior: the loss keeps its expectation.

    E_j[w_j |output - target_j|^2] = W |output - mean target under w|^2 + const, W = E_j[w_j].
    """
    source = torch.randint(x_0.shape[1], log_weight.shape, generator=generator, device=x_0.device)
    clean = torch.gather(x_0, 1, source[..., None].expand_as(x_0))
    x_t, t, _, _ = _sample_targets(model, clean, log_weight, generator)
    log_joint = batch_posterior(x_t, t, x_0, model.schedule) + log_weight[..., None, :]
    mean = torch.softmax(log_joint, dim=-1) @ x_0
    alpha, sigma = model.schedule.alpha(t)[..., None], model.schedule.sigma(t)[..., None]
    target = model.target(mean, t, (x_t - alpha * mean) / sigma)
    return x_t, t, target, torch.logsumexp(log_joint, dim=-1).exp()


@torch.no_grad()
def weighted_gradient(
    model: Diffusion, denoise: Denoiser, x_t: Tensor, t: Tensor, condition: Tensor | None
) -> Tensor:
    """Gradient of f, (B, D): alpha / sigma^2 times (posterior mean of p's model - of q's)."""
    alpha, sigma = model.schedule.alpha(t)[:, None], model.schedule.sigma(t)[:, None]
    return alpha / sigma**2 * (model.denoise(x_t, t, condition) - denoise(x_t, t, condition))


class Weighted(Guidance):
    """A diffusion model of p trained by weighted regression."""

    trainable = True

    def __init__(self, parts: GuidanceParts) -> None:
        super().__init__(parts)
        self.model = parts.make_diffusion()

    def start(self, samples: Samples) -> None:
        """The mixture that the network corrects becomes that of p."""
        if isinstance(self.model.network, CorrectedNetwork):
            self.model.network.mixture.tilt_by(samples.x_0, samples.scaled_energy)

    def loss(self, groups: Samples, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Weighted regression of p's own model."""
        return weighted_loss(self.model, *groups, self.targets, generator)

    def gradient(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """`weighted_gradient` of the two models, (B, D)."""
        return weighted_gradient(self.model, self.denoise, x_t, t, condition)
