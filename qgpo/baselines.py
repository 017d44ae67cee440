"""Losses of the baselines: BC, TD3+BC, IQL and Diffusion-QL, as pure functions.

Observations (B, S), actions (B, A) in [-1, 1]; every loss returns (loss, metrics).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qgpo.diffusion import Metrics
from qgpo.networks import TwinQ
from qgpo.policies import DenoisingChain, GaussianPolicy, gaussian_log_prob


def imitation_loss(
    policy: GaussianPolicy, observations: Tensor, actions: Tensor
) -> tuple[Tensor, Metrics]:
    """Squared error for the mean, likelihood (of that mean, held fixed) for the spread.

    The likelihood alone would weigh the mean's error by 1 / std^2 and so neglect it where the
    behavior is broad.
    """
    mean, std = policy.moments(observations)
    mse = torch.mean((actions - mean) ** 2)
    nll = -torch.mean(gaussian_log_prob(mean.detach(), std, actions))
    loss = mse + nll
    return loss, {"actor_loss": loss, "mse": mse, "nll": nll}


def perturbed(actions: Tensor, noise: Tensor, clip: float) -> Tensor:
    """Actions plus clipped noise, inside [-1, 1] (TD3, arXiv 1802.09477, section 5.3)."""
    return (actions + noise.clamp(-clip, clip)).clamp(-1.0, 1.0)


def td3_bc_loss(
    policy: nn.Module, critic: TwinQ, observations: Tensor, actions: Tensor, alpha: float
) -> tuple[Tensor, Metrics]:
    """-lambda Q_1(s, pi(s)) + (pi(s) - a)^2, lambda = alpha / mean |Q_1(s, pi(s))|.

    Fujimoto & Gu 2021 (arXiv 2106.06860), Eqs. 3 and 5; no gradient passes through lambda.
    """
    proposed = policy(observations)
    q = critic.first(observations, proposed)
    lambda_ = alpha / q.detach().abs().mean().clamp(min=1e-6)
    mse = torch.mean((proposed - actions) ** 2)
    loss = -lambda_ * q.mean() + mse
    return loss, {"actor_loss": loss, "mse": mse, "lambda": lambda_}


def expectile_loss(differences: Tensor, expectile: float) -> Tensor:
    """Mean of |expectile - 1(u < 0)| u^2 over u = differences.

    Kostrikov et al. 2021 (arXiv 2110.06169), Eq. 5. At 0.5 it is half the squared error, whose
    minimiser is the mean; towards 1 the minimiser approaches the maximum.
    """
    weights = torch.where(differences < 0.0, 1.0 - expectile, expectile)
    return torch.mean(weights * differences**2)


def advantage_weights(advantages: Tensor, beta: float, clip: float) -> Tensor:
    """min(exp(beta A), clip), shape (B,) (IQL, Eq. 7; the clip is of their code)."""
    return torch.exp(beta * advantages).clamp(max=clip)


def weighted_likelihood_loss(
    policy: GaussianPolicy, observations: Tensor, actions: Tensor, weights: Tensor
) -> tuple[Tensor, Metrics]:
    """-mean of weight * log pi(a|s): advantage-weighted regression, weights (B,)."""
    mean, std = policy.moments(observations)
    loss = -torch.mean(weights * gaussian_log_prob(mean, std, actions))
    return loss, {
        "actor_loss": loss,
        "mse": torch.mean((actions - mean) ** 2),
        "weight": weights.mean(),
    }


def normalized_q_loss(q: Tensor, scale: Tensor) -> Tensor:
    """-mean q / mean |scale|, both (B,), no gradient through the scale (Diffusion-QL's code).

    q is one head's value and scale the other's, so that the unit of the rewards cancels.
    """
    return -q.mean() / scale.detach().abs().mean().clamp(min=1e-6)


def diffusion_ql_loss(
    policy: DenoisingChain,
    critic: TwinQ,
    observations: Tensor,
    actions: Tensor,
    eta: float,
    generator: torch.Generator,
) -> tuple[Tensor, Metrics]:
    """L_d + eta L_q (Wang et al. 2022, arXiv 2208.06193, Algorithm 1).

    L_d is the denoising loss; L_q the normalised value, by one head drawn by lot, of actions
    sampled through the whole chain.
    """
    denoising_loss, metrics = policy.loss(actions, observations, generator)
    shape = (policy.steps, *actions.shape)
    noise = torch.randn(shape, generator=generator, device=actions.device)
    proposed = policy.sample(noise, observations)
    lot = int(torch.randint(2, (), generator=generator, device=actions.device))
    q = critic.both(observations, proposed)
    q_loss = normalized_q_loss(q[lot], q[1 - lot])
    loss = denoising_loss + eta * q_loss
    return loss, {**metrics, "actor_loss": loss, "q_loss": q_loss}
