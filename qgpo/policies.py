"""Policies without guidance: a Gaussian, and a short denoising chain that can be differentiated.

Observations (..., S) are normalised, actions (..., A) lie in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qgpo.diffusion import Metrics, diffuse
from qgpo.networks import mlp
from qgpo.schedule import LinearVP

LOG_STD_RANGE = (-5.0, 2.0)
"""bounds of a Gaussian policy's log standard deviation (IQL's code)"""


def deterministic_policy(
    observation_dim: int, action_dim: int, hidden: Sequence[int]
) -> nn.Sequential:
    """Actions tanh(MLP(s)): (..., S) to (..., A)."""
    return nn.Sequential(mlp([observation_dim, *hidden, action_dim]), nn.Tanh())


class GaussianPolicy(nn.Module):
    """N(m(s), d^2) with m(s) = tanh of an MLP, and d one per action dimension or a function of s.

    Where d depends on the state it is read linearly off the mean's last hidden layer, without a
    gradient back into it: the mean is what it would be without the spread.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        state_dependent_std: bool,
    ) -> None:
        super().__init__()
        net = mlp([observation_dim, *hidden, action_dim])
        self.features, self.mean = net[:-1], net[-1]
        self.log_std: nn.Linear | nn.Parameter
        if state_dependent_std:
            self.log_std = nn.Linear([observation_dim, *hidden][-1], action_dim)
        else:
            self.log_std = nn.Parameter(torch.zeros(action_dim))

    def moments(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the action, each (..., A)."""
        features = self.features(observations)
        mean = torch.tanh(self.mean(features))
        if isinstance(self.log_std, nn.Linear):
            log_std = self.log_std(features.detach())
        else:
            log_std = self.log_std.expand_as(mean)
        return mean, torch.exp(log_std.clamp(*LOG_STD_RANGE))


def gaussian_log_prob(mean: Tensor, std: Tensor, actions: Tensor) -> Tensor:
    """Density log N(a; m, d^2), summed over the action's dimensions: (..., A) to (...)."""
    z = (actions - mean) / std
    return torch.sum(-0.5 * z**2 - torch.log(std) - 0.5 * math.log(2.0 * math.pi), dim=-1)


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

        noise[0] is where the chain starts, the rest is added on the way: step k draws from the
        Gaussian q(a_{k-1} | a_k, a_0) (DDPM, Eq. 7) with a_0 estimated and clamped to [-1, 1].
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
