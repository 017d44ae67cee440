"""ReBRAC (Tarasov et al. 2023, arXiv 2305.09836): TD3+BC that also penalises the target's action.

The critic has layer normalisation, and policy and critic have an imitation weight each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from qgpo.agents.core.batches import NextActions
from qgpo.agents.core.config import NotNegative
from qgpo.agents.core.single_stage import CriticConfig, SingleStageAgent, Transitions
from qgpo.critic import critic_loss, polyak_update, td_target
from qgpo.diffusion import Metrics
from qgpo.networks import TwinQ, gelu_mlp, gelu_twin_q
from qgpo.policies import normalized_q_loss, perturbed, squared_distance

LAST_GAIN = 0.1
"""of the policy's last weights: actions begin near 0"""


@dataclass(frozen=True)
class ReBRACConfig(CriticConfig):
    """Hyperparameters of ReBRAC; the defaults are those of FQL's authors (the `paper` preset)."""

    hidden: tuple[int, ...] = (512, 512, 512, 512)
    """hidden layer sizes of every network"""
    layer_norm: bool = True
    """layer normalisation in the critic's hidden layers"""
    alpha_actor: NotNegative = 0.1
    """weight of imitation relative to the normalised Q, to be chosen per task (0.003 to 1): larger
    values imitate more"""
    alpha_critic: NotNegative = 0.01
    """penalty in the critic's target per squared distance of the target action from the next action
    in the data, in the unit of Q: larger values imitate more"""
    policy_delay: int = 2
    """critic updates per update of the policy and of the target networks"""
    policy_noise: NotNegative = 0.2
    """standard deviation of the noise on the target policy's action and on sampled actions, for
    actions in [-1, 1]"""
    noise_clip: NotNegative = 0.5
    """bound on the absolute value of that noise"""


REBRAC_PRESETS: dict[str, ReBRACConfig] = {
    "paper": ReBRACConfig(),
    "laptop": ReBRACConfig(
        steps=20_000,
        learning_rate=1e-3,
        learning_rate_decay=True,
        hidden=(256, 256),
        normalize_observations=True,
        tau=0.01,
        reward_tuning="unit",
        alpha_actor=1.0,
        alpha_critic=0.0,
    ),
}


def penalized_values(
    critic: TwinQ, observations: Tensor, proposed: Tensor, following: NextActions, alpha: float
) -> Tensor:
    """min_i Q_i(s', a') - alpha |a' - a'_data|^2 of proposed actions a', (B,).

    Without a next action in the data there is no penalty.
    """
    penalty = following.exist * squared_distance(proposed, following.actions)
    values: Tensor = critic(observations, proposed)
    return values - alpha * penalty


def rebrac_loss(
    policy: nn.Module, critic: TwinQ, observations: Tensor, actions: Tensor, alpha: float
) -> tuple[Tensor, Metrics]:
    """Mean of alpha |pi(s) - a|^2 - lambda Q, Q = min_i Q_i(s, pi(s)), lambda = 1 / mean |Q|.

    No gradient passes through lambda.
    """
    proposed = policy(observations)
    q = critic(observations, proposed)
    q_loss = normalized_q_loss(q, q)
    distance = squared_distance(proposed, actions).mean()
    loss = alpha * distance + q_loss
    return loss, {"actor_loss": loss, "q_loss": q_loss, "distance": distance}


class ReBRAC(SingleStageAgent[ReBRACConfig]):
    """A deterministic policy that maximises Q near the data's actions, where Q is pessimistic."""

    name: ClassVar[str] = "ReBRAC"
    config_class: ClassVar[type[ReBRACConfig]] = ReBRACConfig
    presets: ClassVar[dict[str, ReBRACConfig]] = REBRAC_PRESETS
    uses_next_actions: ClassVar[bool] = True

    def _build(self, observation_dim: int, action_dim: int) -> None:
        c = self.config
        self._add_normalizer(observation_dim)
        layers = gelu_mlp([observation_dim, *c.hidden, action_dim], last_gain=LAST_GAIN)
        policy = nn.Sequential(layers, nn.Tanh())
        self.actor = self.training.add_trained("policy", policy)
        self.policy_target = self.training.add_copy("policy_target", policy)
        critic = gelu_twin_q(observation_dim, action_dim, c.hidden, c.layer_norm)
        self.critic = self.training.add_trained("critic", critic)
        self.critic_target = self.training.add_copy("critic_target", critic)

    def update(self, batch: Transitions, step: int) -> Metrics:
        """One critic step; every `policy_delay` of them, one of the policy and the targets."""
        c = self.config
        assert batch.following is not None
        # y = r + gamma (min_i Q'_i(s', a') - alpha_critic |a' - a'_data|^2), a' = pi'(s') + noise
        with torch.no_grad():
            noise = c.policy_noise * self.training.normal(*batch.actions.shape)
            proposed = perturbed(self.policy_target(batch.next_observations), noise, c.noise_clip)
            next_values = penalized_values(
                self.critic_target,
                batch.next_observations,
                proposed,
                batch.following,
                c.alpha_critic,
            )
            targets = td_target(batch.rewards, batch.terminations, next_values, c.gamma)
        loss, metrics = critic_loss(self.critic, batch.observations, batch.actions, targets)
        metrics["grad_norm"] = self.training.optimize("critic", loss, c.learning_rate)
        if (step + 1) % c.policy_delay:
            return metrics

        # pi maximises the normalised Q and imitates
        loss, policy_metrics = rebrac_loss(
            self.actor, self.critic, batch.observations, batch.actions, c.alpha_actor
        )
        policy_metrics["policy_grad_norm"] = self.training.optimize(
            "policy", loss, self._policy_rate(step)
        )
        polyak_update(self.critic, self.critic_target, c.tau)
        polyak_update(self.actor, self.policy_target, c.tau)
        return {**metrics, **policy_metrics}

    @torch.no_grad()
    def act(self, observations: Tensor, deterministic: bool) -> Tensor:
        """The policy's action, with the target's noise unless `deterministic`."""
        actions: Tensor = self.actor(self.normalizer(observations))
        if deterministic:
            return actions
        noise = self.config.policy_noise * self._prediction_normal(*actions.shape)
        return perturbed(actions, noise, self.config.noise_clip)
