"""Flow Q-learning (Park, Li & Levine 2025, arXiv 2502.02538).

A flow imitates the dataset; a policy of one step is distilled from it and maximises Q at the same
time, so that no gradient goes back through the flow's steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from qgpo.agents.core.config import NotNegative
from qgpo.agents.core.single_stage import CriticConfig, SingleStageAgent, Transitions
from qgpo.critic import critic_loss, polyak_update, td_target
from qgpo.diffusion import Metrics
from qgpo.fields import OneOf, Range
from qgpo.flow import flow_actions, flow_matching_loss, inside, one_step_loss
from qgpo.networks import FlowNetwork, gelu_twin_q


@dataclass(frozen=True)
class FQLConfig(CriticConfig):
    """Hyperparameters of FQL; the defaults are the authors' (the `paper` preset)."""

    hidden: tuple[int, ...] = (512, 512, 512, 512)
    """hidden layer sizes of every network"""
    alpha: NotNegative = 10.0
    """weight of the distillation relative to Q: larger values imitate more. The authors tune it for
    every environment"""
    normalize_q_loss: bool = False
    """divide Q by its mean absolute value in the policy's loss, so that alpha does not depend on
    the scale of rewards"""
    q_agg: Annotated[str, OneOf(("mean", "min"))] = "mean"
    """how the critic's target combines the two target Qs: mean, or min (more pessimistic)"""
    flow_steps: Annotated[int, Range(1, 1000)] = 10
    """Euler steps of the flow that is distilled: more are slower and more exact"""


FQL_PRESETS: dict[str, FQLConfig] = {
    "paper": FQLConfig(),
    "laptop": FQLConfig(
        steps=20_000,
        learning_rate=1e-3,
        learning_rate_decay=True,
        hidden=(256, 256),
        normalize_observations=True,
        reward_tuning="unit",
        tau=0.01,
        normalize_q_loss=True,
    ),
}


class FQL(SingleStageAgent[FQLConfig]):
    """A policy of one step from noise to action, near a flow of the data and high in Q."""

    name: ClassVar[str] = "FQL"
    config_class: ClassVar[type[FQLConfig]] = FQLConfig
    presets: ClassVar[dict[str, FQLConfig]] = FQL_PRESETS

    def _build(self, observation_dim: int, action_dim: int) -> None:
        c = self.config
        self._action_dim = action_dim
        self._add_normalizer(observation_dim)
        policy = FlowNetwork(action_dim, observation_dim, c.hidden, timed=False)
        self.actor = self.training.add_trained("policy", policy)
        flow = FlowNetwork(action_dim, observation_dim, c.hidden)
        self.flow = self.training.add_trained("flow", flow)
        critic = gelu_twin_q(observation_dim, action_dim, c.hidden)
        self.critic = self.training.add_trained("critic", critic)
        self.critic_target = self.training.add_copy("critic_target", critic)

    def update(self, batch: Transitions, step: int) -> Metrics:
        """One step of all networks, each on its loss at the parameters before the step."""
        c, training = self.config, self.training
        observations, actions = batch.observations, inside(batch.actions)
        # Q: r + gamma Q'(s', mu(s', z)), cut on termination only
        with torch.no_grad():
            next_values = self._next_values(batch.next_observations)
            targets = td_target(batch.rewards, batch.terminations, next_values, c.gamma)
        loss, metrics = critic_loss(self.critic, observations, actions, targets)

        # v: the straight paths from noise to the dataset's actions
        noise, t = training.normal(*actions.shape), training.uniform(len(actions))
        flow_loss, flow_metrics = flow_matching_loss(self.flow, observations, actions, noise, t)

        # mu: near the flow of the same noise, and high in Q
        noise = training.normal(*actions.shape)
        with torch.no_grad():
            goals = flow_actions(self.flow, observations, noise, c.flow_steps)
        policy_loss, policy_metrics = one_step_loss(
            self.actor, self.critic, observations, noise, goals, c.alpha, c.normalize_q_loss
        )

        # Q' follows the Q before its step; the policy's loss reaches Q, so Q steps last
        polyak_update(self.critic, self.critic_target, c.tau)
        rate = self._policy_rate(step)
        policy_norm = training.optimize("policy", policy_loss, rate)
        flow_norm = training.optimize("flow", flow_loss, rate)
        metrics["grad_norm"] = training.optimize("critic", loss, c.learning_rate)
        return {
            **metrics,
            **flow_metrics,
            **policy_metrics,
            "policy_grad_norm": policy_norm,
            "flow_grad_norm": flow_norm,
        }

    def _next_values(self, observations: Tensor) -> Tensor:
        """Target Q of the policy's action for fresh noise, (B, S) to (B,)."""
        noise = self.training.normal(len(observations), self._action_dim)
        proposed = self.actor(noise, None, observations).clamp(-1.0, 1.0)
        q = self.critic_target.both(observations, proposed)
        return q.amin(dim=0) if self.config.q_agg == "min" else q.mean(dim=0)

    @torch.no_grad()
    def act(self, observations: Tensor, deterministic: bool) -> Tensor:
        """The policy's action for fresh noise.

        When `deterministic`, every observation has the same noise, drawn on the CPU from the
        agent's seed.
        """
        b = len(observations)
        if deterministic:
            noise = self._fixed_normal(1, self._action_dim).expand(b, -1)
        else:
            noise = self._prediction_normal(b, self._action_dim)
        actions: Tensor = self.actor(noise, None, self.normalizer(observations))
        return actions.clamp(-1.0, 1.0)
