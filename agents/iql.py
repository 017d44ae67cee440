"""Implicit Q-learning (Kostrikov, Nair & Levine 2021, arXiv 2110.06169).

V is an upper expectile of Q over the dataset's own actions, so that no other action is ever asked
about; the policy follows by advantage-weighted regression.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qgpo.agents.core.config import Expectile, NotNegative, RewardTuning
from qgpo.agents.core.single_stage import CriticConfig, SingleStageAgent, Transitions
from qgpo.critic import critic_loss, expectile_loss, polyak_update, td_target
from qgpo.diffusion import Metrics
from qgpo.networks import GaussianPolicy, TwinQ, mlp
from qgpo.policies import advantage_weights, weighted_likelihood_loss


@dataclass(frozen=True)
class IQLConfig(CriticConfig):
    """Hyperparameters of IQL; the defaults are the authors' for locomotion (`paper`)."""

    learning_rate_decay: bool = True
    """lower the policy's learning rate to zero along half a cosine"""
    reward_tuning: RewardTuning = "locomotion"
    """scaling of rewards for the critic: none, locomotion, antmaze, or unit (discounted returns
    have unit standard deviation)"""
    expectile: Expectile = 0.7
    """V is this expectile of Q: 0.5 is the value of the behavior, larger values approach the best
    action in the data"""
    beta: NotNegative = 3.0
    """inverse temperature of the advantage weights exp(beta advantage): larger values rely more on
    Q, 0 is imitation"""
    advantage_clip: float = 100.0
    """largest advantage weight"""


IQL_PRESETS: dict[str, IQLConfig] = {
    "paper": IQLConfig(),
    "laptop": IQLConfig(
        steps=12_000,
        learning_rate=1e-3,
        tau=0.01,
        reward_tuning="unit",
        beta=10.0,
        normalize_observations=True,
    ),
}


class IQL(SingleStageAgent[IQLConfig]):
    """A Gaussian policy, weighted by how much better than V the dataset's actions were."""

    name: ClassVar[str] = "IQL"
    config_class: ClassVar[type[IQLConfig]] = IQLConfig
    presets: ClassVar[dict[str, IQLConfig]] = IQL_PRESETS

    def _build(self, observation_dim: int, action_dim: int) -> None:
        c = self.config
        self._add_normalizer(observation_dim)
        policy = GaussianPolicy(observation_dim, action_dim, c.hidden, state_dependent_std=False)
        self.actor = self.training.add_trained("policy", policy)
        critic = TwinQ(observation_dim, action_dim, c.hidden)
        self.critic = self.training.add_trained("critic", critic)
        self.critic_target = self.training.add_copy("critic_target", critic)
        self.value = self.training.add_trained("value", mlp([observation_dim, *c.hidden, 1]))

    def update(self, batch: Transitions, step: int) -> Metrics:
        """One step of V, of the policy and of Q, in the order of the authors' code."""
        c = self.config
        # V: the expectile of min Q' over the dataset's actions (Eq. 5)
        with torch.no_grad():
            q = self.critic_target(batch.observations, batch.actions)
        value_loss = expectile_loss(q - self._values(batch.observations), c.expectile)
        value_norm = self.training.optimize("value", value_loss, c.learning_rate)

        # pi: regression weighted by exp(beta (Q - V)) (Eq. 7)
        with torch.no_grad():
            advantages = q - self._values(batch.observations)
            weights = advantage_weights(advantages, c.beta, c.advantage_clip)
            next_values = self._values(batch.next_observations)
            targets = td_target(batch.rewards, batch.terminations, next_values, c.gamma)
        policy_loss, metrics = weighted_likelihood_loss(
            self.actor, batch.observations, batch.actions, weights
        )
        policy_norm = self.training.optimize("policy", policy_loss, self._policy_rate(step))

        # Q: r + gamma V(s'), cut on termination only (Eq. 6)
        loss, critic_metrics = critic_loss(self.critic, batch.observations, batch.actions, targets)
        metrics["grad_norm"] = self.training.optimize("critic", loss, c.learning_rate)
        polyak_update(self.critic, self.critic_target, c.tau)
        return {
            **metrics,
            **critic_metrics,
            "value_loss": value_loss,
            "advantage": advantages.mean(),
            "policy_grad_norm": policy_norm,
            "value_grad_norm": value_norm,
        }

    def _values(self, observations: Tensor) -> Tensor:
        """V, (B, S) to (B,)."""
        values: Tensor = self.value(observations)
        return values.squeeze(-1)

    def act(self, observations: Tensor, deterministic: bool) -> Tensor:
        """The Gaussian's mean, or a sample of it."""
        return self._gaussian_action(self.actor, observations, deterministic)
