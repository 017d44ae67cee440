"""Flow policies from noise to actions, and the losses of FQL and IFQL.

A velocity v(s, x_t, t) is fitted to the straight paths x_t = (1 - t) z + t a from noise z at t = 0
to actions a at t = 1 (flow matching, Lipman et al. 2023, arXiv 2210.02747). That is the path `ot`
of `qgpo.schedule` with its time reversed. Here t covers all of [0, 1] and Euler's steps are equal,
as in FQL's code; there the times stop short of both ends, where a score is not finite.

Noise and times are arguments: every function here is deterministic. B batch, S observation, A
action. Observations are normalised, actions lie in [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from qgpo.diffusion import Metrics
from qgpo.networks import FlowNetwork, TwinQ
from qgpo.policies import normalized_q_loss

ACTION_BOUND = 1.0 - 1e-5
"""of the dataset's actions: FQL's code clips them to this"""


def inside(actions: Tensor) -> Tensor:
    """The dataset's actions clipped to +-ACTION_BOUND, any shape."""
    return actions.clamp(-ACTION_BOUND, ACTION_BOUND)


def flow_matching_loss(
    velocity: FlowNetwork, observations: Tensor, actions: Tensor, noise: Tensor, t: Tensor
) -> tuple[Tensor, Metrics]:
    """Mean squared error of v(s, (1 - t) z + t a, t) against a - z.

    Observations (B, S), actions a and noise z (B, A), times (B,).
    """
    x_t = (1.0 - t[:, None]) * noise + t[:, None] * actions
    loss = torch.mean((velocity(x_t, t, observations) - (actions - noise)) ** 2)
    return loss, {"flow_loss": loss}


def flow_actions(velocity: FlowNetwork, observations: Tensor, noise: Tensor, steps: int) -> Tensor:
    """Noise (..., A) carried from t = 0 to 1 by `steps` of Euler's method, clipped to [-1, 1].

    Observations have shape (..., S). Nothing is clipped before the end.
    """
    x = noise
    for i in range(steps):
        t = x.new_full(x.shape[:-1], i / steps)
        x = x + velocity(x, t, observations) / steps
    return x.clamp(-1.0, 1.0)


def distillation_loss(proposed: Tensor, targets: Tensor) -> Tensor:
    """Mean squared distance of a policy's actions from the flow's for the same noise, (B, A).

    No gradient reaches the flow.
    """
    return torch.mean((proposed - targets.detach()) ** 2)


def one_step_loss(
    policy: FlowNetwork,
    critic: TwinQ,
    observations: Tensor,
    noise: Tensor,
    targets: Tensor,
    alpha: float,
    normalize_q_loss: bool,
) -> tuple[Tensor, Metrics]:
    """Loss alpha * distillation - mean_i Q_i(s, clip(mu(s, z))) of FQL's one-step policy.

    Park, Li & Levine 2025 (arXiv 2502.02538). Observations (B, S); noise z and the flow's
    actions `targets` for the same noise (B, A). With `normalize_q_loss` the Q term is divided by
    E|Q|, through which no gradient passes. The actions are clipped for Q alone.
    """
    proposed = policy(noise, None, observations)
    distillation = distillation_loss(proposed, targets)
    q = critic.both(observations, proposed.clamp(-1.0, 1.0)).mean(dim=0)
    q_loss = normalized_q_loss(q, q) if normalize_q_loss else -q.mean()
    loss = alpha * distillation + q_loss
    return loss, {"actor_loss": loss, "distillation_loss": distillation, "q_loss": q_loss}
