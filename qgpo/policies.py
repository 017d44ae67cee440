"""How a policy without guidance is trained: the losses of BC, TD3+BC, IQL and Diffusion-QL.

Also the short denoising chain that is Diffusion-QL's policy. Observations (B, S) are normalised,
actions (B, A) lie in [-1, 1]; every loss returns (loss, metrics).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qgpo.diffusion import Metrics, diffuse
from qgpo.networks import GaussianPolicy, TwinQ, gaussian_log_prob
from qgpo.schedule import LinearVP


class DenoisingChain(nn.Module):
    """A diffusion policy of N ancestral steps, differentiable from noise to action.

    DDPM (Ho et al. 2020, arXiv 2006.11239) at the times k / N, k = 1 … N, of the variance
    preserving schedule with beta from 0.1 to 10, which is Diffusion-QL's (arXiv 2208.06193):
    alpha_k^2 / alpha_{k-1}^2 = exp(-0.1 / N - 9.9 (2 k - 1) / (2 N^2)).
    """

    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__()
        self.network = network
        self.schedule = LinearVP(0.1, 10.0)
        self.steps = steps
        times = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
        self.alphas: list[float] = self.schedule.alpha(times).tolist()
        self.variances: list[float] = (self.schedule.sigma(times) ** 2).tolist()

    def loss(
        self, actions: Tensor, observations: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """Mean squared error of the predicted noise, k uniform on 1 … N."""
        k = torch.randint(
            1, self.steps + 1, (len(actions),), generator=generator, device=actions.device
        )
        t = k.to(actions.dtype) / self.steps
        noise = torch.randn(actions.shape, generator=generator, device=actions.device)
        noisy = diffuse(actions, t, noise, self.schedule)
        loss = torch.mean((self.network(noisy, t, observations) - noise) ** 2)
        return loss, {"denoising_loss": loss}

    def sample(self, noise: Tensor, observations: Tensor) -> Tensor:
        """Noise (N, B, A) ~ N(0, I) and observations (B, S) to actions (B, A).

        noise[0] is the chain's initial state and noise[i] is added at step i. Step k draws from
        the Gaussian q(a_{k-1} | a_k, a_0) (DDPM, Eq. 7), with a_0 estimated and clamped to [-1, 1].
        """
        a = noise[0]
        for i, k in enumerate(range(self.steps, 0, -1)):
            t = a.new_full((len(a),), k / self.steps)
            epsilon: Tensor = self.network(a, t, observations)
            a_0 = (a - math.sqrt(self.variances[k]) * epsilon) / self.alphas[k]
            a_0 = a_0.clamp(-1.0, 1.0)
            if k == 1:
                return a_0
            ratio = self.alphas[k] / self.alphas[k - 1]
            added = 1.0 - ratio**2
            mean = self.alphas[k - 1] * added * a_0 + ratio * self.variances[k - 1] * a
            std = math.sqrt(added * self.variances[k - 1] / self.variances[k])
            a = mean / self.variances[k] + std * noise[i + 1]
        raise AssertionError("a chain has at least one step")


def imitation_loss(
    policy: GaussianPolicy, observations: Tensor, actions: Tensor
) -> tuple[Tensor, Metrics]:
    """Squared error for the mean plus negative log likelihood for the standard deviation.

    The likelihood has no gradient in the mean. It would weight the mean's error by 1 / std^2, and
    so neglect states in which the behavior is broad.
    """
    mean, std = policy.moments(observations)
    mse = torch.mean((actions - mean) ** 2)
    nll = -torch.mean(gaussian_log_prob(mean.detach(), std, actions))
    loss = mse + nll
    return loss, {"actor_loss": loss, "mse": mse, "nll": nll}


def perturbed(actions: Tensor, noise: Tensor, clip: float) -> Tensor:
    """Actions plus clipped noise, inside [-1, 1] (TD3, arXiv 1802.09477, section 5.3)."""
    return (actions + noise.clamp(-clip, clip)).clamp(-1.0, 1.0)


def gumbel(normal: Tensor) -> Tensor:
    """Gumbel noise -log(-log u) from standard normal noise, u = Phi(normal); any shape.

    The largest of logits + Gumbel noise is a draw from their softmax (Gumbel 1954).
    """
    return -torch.log(-torch.special.log_ndtr(normal))


def squared_distance(first: Tensor, second: Tensor) -> Tensor:
    """Summed over the action's dimensions: (..., A) to (...)."""
    return torch.sum((first - second) ** 2, dim=-1)


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


def advantage_weights(advantages: Tensor, beta: float, clip: float) -> Tensor:
    """min(exp(beta A), clip), shape (B,) (IQL, Eq. 7; the clip is from the authors' code)."""
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

    q and scale are the values of the critic's two heads: the unit of the rewards cancels.
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

    L_d is the denoising loss. L_q is `normalized_q_loss` of actions sampled through the whole
    chain; which head of the critic is q and which the scale is random.
    """
    denoising_loss, metrics = policy.loss(actions, observations, generator)
    shape = (policy.steps, *actions.shape)
    noise = torch.randn(shape, generator=generator, device=actions.device)
    proposed = policy.sample(noise, observations)
    head = int(torch.randint(2, (), generator=generator, device=actions.device))
    q = critic.both(observations, proposed)
    q_loss = normalized_q_loss(q[head], q[1 - head])
    loss = denoising_loss + eta * q_loss
    return loss, {**metrics, "actor_loss": loss, "q_loss": q_loss}
