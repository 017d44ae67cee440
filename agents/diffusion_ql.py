"""Diffusion-QL (Wang, Hunt & Zhou 2022, arXiv 2208.06193).

A short denoising chain is the policy: it imitates by its denoising loss, and improves because the
gradient of Q goes back through the whole chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from qgpo.agents.core.config import Decay, NotNegative, Steps
from qgpo.agents.core.single_stage import CriticConfig, SingleStageAgent, Transitions
from qgpo.critic import critic_loss, polyak_update, td_target
from qgpo.diffusion import Metrics
from qgpo.fields import Range, count_property
from qgpo.networks import MLPNoiseNetwork, TwinQ
from qgpo.policies import DenoisingChain, diffusion_ql_loss, gumbel


@dataclass(frozen=True)
class DiffusionQLConfig(CriticConfig):
    """Hyperparameters of Diffusion-QL; the defaults are the authors' for hopper-medium-expert."""

    steps: Steps = 2_000_000
    """gradient steps, each on one batch"""
    hidden: tuple[int, ...] = (256, 256, 256)
    """hidden layer sizes of every network"""
    diffusion_steps: int = 5
    """N, number of steps of the denoising chain: more are slower and represent the data better"""
    eta: NotNegative = 1.0
    """weight of the normalised Q relative to the denoising loss: larger values rely more on Q, 0 is
    pure imitation"""
    max_grad_norm: float = 5.0
    """gradients with a larger norm are clipped to this norm"""
    ema_decay: Decay = 0.995
    """decay of the averaged policy that proposes actions for the critic's target: larger averages
    over more updates"""
    ema_every: int = 5
    """gradient steps per update of the averaged policy"""
    ema_start: Annotated[int, Range(0, 10**12)] = 1000
    """gradient steps before the first update of the averaged policy"""
    target_candidates: int = 1
    """number of actions per next state, of which the critic's target uses the best (the authors'
    max-Q backup, 10 on most AntMazes); 1: no maximum"""
    candidates: int = 50
    """number of actions drawn per observation when acting, of which one is chosen by Q: more are
    slower and rely more on Q"""


DIFFUSION_QL_PRESETS: dict[str, DiffusionQLConfig] = {
    "paper": DiffusionQLConfig(),
    "laptop": DiffusionQLConfig(
        steps=7_000,
        learning_rate=1e-3,
        learning_rate_decay=True,
        hidden=(256, 256),
        normalize_observations=True,
        reward_tuning="unit",
        tau=0.01,
        eta=0.05,
        candidates=1,
    ),
}


class DiffusionQL(SingleStageAgent[DiffusionQLConfig]):
    """A diffusion policy trained on denoising and Q at once, acting by the best of candidates.

    `candidates` may be set once the agent has seen data; files have the configuration's.
    """

    name: ClassVar[str] = "DiffusionQL"
    config_class: ClassVar[type[DiffusionQLConfig]] = DiffusionQLConfig
    presets: ClassVar[dict[str, DiffusionQLConfig]] = DIFFUSION_QL_PRESETS
    candidates = count_property("candidates", "Actions among which it chooses.")

    def _build(self, observation_dim: int, action_dim: int) -> None:
        c = self.config
        self.candidates = c.candidates
        self._action_dim = action_dim
        self._add_normalizer(observation_dim)
        network = MLPNoiseNetwork(action_dim, observation_dim, c.hidden, activation="mish")
        policy = DenoisingChain(network, c.diffusion_steps)
        self.actor = self.training.add_trained("policy", policy)
        self.policy_ema = self.training.add_copy("policy_ema", policy)
        critic = TwinQ(observation_dim, action_dim, c.hidden, activation="mish")
        self.critic = self.training.add_trained("critic", critic)
        self.critic_target = self.training.add_copy("critic_target", critic)

    def update(self, batch: Transitions, step: int) -> Metrics:
        """One step of the critic, then one of the policy (their Algorithm 1)."""
        c, training = self.config, self.training
        # Q: r + gamma min_i Q'_i(s', a'), a' from the averaged policy
        next_values = self._next_values(batch.next_observations)
        targets = td_target(batch.rewards, batch.terminations, next_values, c.gamma)
        loss, metrics = critic_loss(self.critic, batch.observations, batch.actions, targets)
        metrics["grad_norm"] = training.optimize("critic", loss, c.learning_rate, c.max_grad_norm)

        # pi: denoising loss + eta * normalised -Q through the chain
        loss, policy_metrics = diffusion_ql_loss(
            self.actor, self.critic, batch.observations, batch.actions, c.eta, training.generator
        )
        policy_metrics["policy_grad_norm"] = training.optimize(
            "policy", loss, self._policy_rate(step), c.max_grad_norm
        )

        if step >= c.ema_start and step % c.ema_every == 0:
            polyak_update(self.actor, self.policy_ema, 1.0 - c.ema_decay)
        polyak_update(self.critic, self.critic_target, c.tau)
        return {**metrics, **policy_metrics}

    @torch.no_grad()
    def _next_values(self, observations: Tensor) -> Tensor:
        """Smaller head's largest target Q among the candidates, (B, S) to (B,)."""
        n = self.config.target_candidates
        repeated = observations.repeat_interleave(n, dim=0)
        noise = self.training.normal(self.policy_ema.steps, len(repeated), self._action_dim)
        q = self.critic_target.both(repeated, self.policy_ema.sample(noise, repeated))
        best: Tensor = q.reshape(2, -1, n).amax(dim=-1).amin(dim=0)
        return best

    @torch.no_grad()
    def act(self, observations: Tensor, deterministic: bool) -> Tensor:
        """One of several candidates: the best by Q, or one drawn with probabilities softmax(Q).

        When `deterministic`, the candidates of every observation come from the same noise, drawn
        on the CPU from the agent's seed.
        """
        b, n = len(observations), self.candidates
        condition = self.normalizer(observations).repeat_interleave(n, dim=0)
        if deterministic:
            same = self._fixed_normal(self.actor.steps, 1, n, self._action_dim)
            noise = same.expand(-1, b, -1, -1).flatten(1, 2)
        else:
            noise = self._prediction_normal(self.actor.steps, b * n, self._action_dim)
        actions = self.actor.sample(noise, condition)
        q = self.critic_target(condition, actions).reshape(b, n)
        if not deterministic:  # the largest of Q + Gumbel noise is a draw from their softmax
            q = q + gumbel(self._prediction_normal(b, n))
        chosen = q.argmax(dim=-1)[:, None, None]
        return torch.take_along_dim(actions.reshape(b, n, -1), chosen, dim=1).squeeze(1)
