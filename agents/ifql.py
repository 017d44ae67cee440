"""Implicit flow Q-learning: IDQL (Hansen-Estruch et al. 2023, arXiv 2304.10573) with a flow.

The critic is implicit Q-learning's, the policy a flow that imitates the dataset; acting takes the
best of several of its samples by Q. A baseline of the FQL paper (arXiv 2502.02538).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from qgpo.agents.core.config import Expectile
from qgpo.agents.core.single_stage import CriticConfig, SingleStageAgent, Transitions
from qgpo.critic import critic_loss, expectile_loss, polyak_update, td_target
from qgpo.diffusion import Metrics
from qgpo.fields import Range, count_property
from qgpo.flow import flow_actions, flow_matching_loss, inside
from qgpo.networks import FlowNetwork, gelu_mlp, gelu_twin_q


@dataclass(frozen=True)
class IFQLConfig(CriticConfig):
    """Hyperparameters of IFQL; the defaults are those of FQL's authors (the `paper` preset)."""

    hidden: tuple[int, ...] = (512, 512, 512, 512)
    """hidden layer sizes of every network"""
    expectile: Expectile = 0.9
    """V is this expectile of Q: 0.5 is the value of the behavior, larger values approach the best
    action in the data"""
    num_samples: Annotated[int, Range(1, 100_000)] = 32
    """number of actions drawn per observation when acting, of which the one with the highest Q is
    taken: more are slower and rely more on Q, 1 is imitation"""
    flow_steps: Annotated[int, Range(1, 1000)] = 10
    """Euler steps per action: more are slower and more exact"""


IFQL_PRESETS: dict[str, IFQLConfig] = {
    "paper": IFQLConfig(),
    "laptop": IFQLConfig(
        steps=20_000,
        learning_rate=1e-3,
        learning_rate_decay=True,
        hidden=(256, 256),
        normalize_observations=True,
        reward_tuning="unit",
        tau=0.01,
    ),
}


class IFQL(SingleStageAgent[IFQLConfig]):
    """Imitates by a flow and takes the best of its samples.

    `num_samples` may be set once the agent has seen data; files have the configuration's.
    """

    name: ClassVar[str] = "IFQL"
    config_class: ClassVar[type[IFQLConfig]] = IFQLConfig
    presets: ClassVar[dict[str, IFQLConfig]] = IFQL_PRESETS
    num_samples = count_property("num_samples", "Actions drawn per observation.")

    def _build(self, observation_dim: int, action_dim: int) -> None:
        c = self.config
        self.num_samples = c.num_samples
        self._action_dim = action_dim
        self._add_normalizer(observation_dim)
        flow = FlowNetwork(action_dim, observation_dim, c.hidden)
        self.flow = self.training.add_trained("flow", flow)
        critic = gelu_twin_q(observation_dim, action_dim, c.hidden)
        self.critic = self.training.add_trained("critic", critic)
        self.critic_target = self.training.add_copy("critic_target", critic)
        value = gelu_mlp([observation_dim, *c.hidden, 1], layer_norm=True)
        self.value = self.training.add_trained("value", value)

    def update(self, batch: Transitions, step: int) -> Metrics:
        """One step of all networks, each on its loss at the parameters before the step."""
        c, training = self.config, self.training
        observations, actions = batch.observations, inside(batch.actions)
        # V: the expectile of min Q' over the dataset's actions
        with torch.no_grad():
            q = self.critic_target(observations, actions)
        differences = q - self._values(observations)
        value_loss = expectile_loss(differences, c.expectile)

        # Q: r + gamma V(s'), cut on termination only
        with torch.no_grad():
            next_values = self._values(batch.next_observations)
            targets = td_target(batch.rewards, batch.terminations, next_values, c.gamma)
        loss, metrics = critic_loss(self.critic, observations, actions, targets)

        # v: the straight paths from noise to the dataset's actions
        noise, t = training.normal(*actions.shape), training.uniform(len(actions))
        flow_loss, flow_metrics = flow_matching_loss(self.flow, observations, actions, noise, t)

        polyak_update(self.critic, self.critic_target, c.tau)  # follows the Q before its step
        value_norm = training.optimize("value", value_loss, c.learning_rate)
        flow_norm = training.optimize("flow", flow_loss, self._policy_rate(step))
        metrics["grad_norm"] = training.optimize("critic", loss, c.learning_rate)
        return {
            **metrics,
            **flow_metrics,
            "value_loss": value_loss,
            "advantage": differences.mean(),
            "flow_grad_norm": flow_norm,
            "value_grad_norm": value_norm,
        }

    def _values(self, observations: Tensor) -> Tensor:
        """V, (B, S) to (B,)."""
        values: Tensor = self.value(observations)
        return values.squeeze(-1)

    @torch.no_grad()
    def act(self, observations: Tensor, deterministic: bool) -> Tensor:
        """The sample with the largest min Q of `num_samples` from the flow.

        When `deterministic`, the samples of every observation come from the same noise, drawn on
        the CPU from the agent's seed.
        """
        b, n = len(observations), self.num_samples
        condition = self.normalizer(observations).repeat_interleave(n, dim=0)
        if deterministic:
            noise = self._fixed_normal(n, self._action_dim).repeat(b, 1)
        else:
            noise = self._prediction_normal(b * n, self._action_dim)
        actions = flow_actions(self.flow, condition, noise, self.config.flow_steps)
        best = self.critic(condition, actions).reshape(b, n).argmax(dim=-1)[:, None, None]
        return torch.take_along_dim(actions.reshape(b, n, -1), best, dim=1).squeeze(1)
