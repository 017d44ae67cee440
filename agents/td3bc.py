"""TD3+BC (Fujimoto & Gu 2021, arXiv 2106.06860): TD3 whose policy also imitates the dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qgpo.agents.core.config import NotNegative
from qgpo.agents.core.single_stage import CriticConfig, SingleStageAgent, Transitions
from qgpo.critic import critic_loss, polyak_update, td_target
from qgpo.diffusion import Metrics
from qgpo.networks import TwinQ, deterministic_policy
from qgpo.policies import perturbed, td3_bc_loss


@dataclass(frozen=True)
class TD3BCConfig(CriticConfig):
    """Hyperparameters of TD3+BC; the defaults are the authors' (the `paper` preset)."""

    normalize_observations: bool = True
    """standardise observations with the dataset's mean and standard deviation"""
    alpha: NotNegative = 2.5
    """weight of the normalised Q relative to imitation: larger values rely more on Q, 0 is pure
    imitation"""
    policy_delay: int = 2
    """critic updates per update of the policy and of the target networks"""
    policy_noise: NotNegative = 0.2
    """standard deviation of the noise on the target policy's action, for actions in [-1, 1]"""
    noise_clip: NotNegative = 0.5
    """bound on the absolute value of that noise"""
    exploration_noise: NotNegative = 0.1
    """standard deviation of the noise on sampled actions (deterministic=False), for actions in [-1,
    1]"""


TD3BC_PRESETS: dict[str, TD3BCConfig] = {
    "paper": TD3BCConfig(),
    "laptop": TD3BCConfig(
        steps=15_000,
        learning_rate=1e-3,
        learning_rate_decay=True,
        tau=0.01,
        reward_tuning="unit",
        alpha=0.1,
    ),
}


class TD3BC(SingleStageAgent[TD3BCConfig]):
    """A deterministic policy that maximises Q and stays near the dataset's actions."""

    name: ClassVar[str] = "TD3BC"
    config_class: ClassVar[type[TD3BCConfig]] = TD3BCConfig
    presets: ClassVar[dict[str, TD3BCConfig]] = TD3BC_PRESETS

    def _build(self, observation_dim: int, action_dim: int) -> None:
        c = self.config
        self._add_normalizer(observation_dim)
        policy = deterministic_policy(observation_dim, action_dim, c.hidden)
        self.actor = self.training.add_trained("policy", policy)
        self.policy_target = self.training.add_copy("policy_target", policy)
        critic = TwinQ(observation_dim, action_dim, c.hidden)
        self.critic = self.training.add_trained("critic", critic)
        self.critic_target = self.training.add_copy("critic_target", critic)

    def update(self, batch: Transitions, step: int) -> Metrics:
        """One critic step; every `policy_delay` of them, one of the policy and the targets."""
        c = self.config
        # y = r + gamma min_i Q'_i(s', pi'(s') + clipped noise), cut on termination only
        with torch.no_grad():
            noise = c.policy_noise * self.training.normal(*batch.actions.shape)
            proposed = perturbed(self.policy_target(batch.next_observations), noise, c.noise_clip)
            next_values = self.critic_target(batch.next_observations, proposed)
            targets = td_target(batch.rewards, batch.terminations, next_values, c.gamma)
        loss, metrics = critic_loss(self.critic, batch.observations, batch.actions, targets)
        metrics["grad_norm"] = self.training.optimize("critic", loss, c.learning_rate)
        if (step + 1) % c.policy_delay:
            return metrics

        # pi maximises lambda Q and imitates
        loss, policy_metrics = td3_bc_loss(
            self.actor, self.critic, batch.observations, batch.actions, c.alpha
        )
        policy_metrics["policy_grad_norm"] = self.training.optimize(
            "policy", loss, self._policy_rate(step)
        )
        polyak_update(self.critic, self.critic_target, c.tau)
        polyak_update(self.actor, self.policy_target, c.tau)
        return {**metrics, **policy_metrics}

    @torch.no_grad()
    def act(self, observations: Tensor, deterministic: bool) -> Tensor:
        """The policy's action, with noise unless `deterministic`."""
        actions: Tensor = self.actor(self.normalizer(observations))
        if not deterministic:
            noise = self._prediction_normal(*actions.shape)
            actions = actions + self.config.exploration_noise * noise
        return actions.clamp(-1.0, 1.0)
