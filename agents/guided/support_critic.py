"""The paper's critic: Q by in-support Q-learning.

Values are softmax or expectile over a state's support actions, targets one step or lambda-returns
along the episodes (formulas: qgpo/critic.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qgpo.agents.core.batches import Batches, take
from qgpo.agents.core.training import Training
from qgpo.agents.guided.behavior import Behavior
from qgpo.agents.guided.critic import Critic
from qgpo.agents.guided.support import ROWS_PER_CHUNK, Support
from qgpo.critic import (
    critic_loss,
    in_support_expectile,
    in_support_value,
    lambda_returns,
    polyak_update,
    td_target,
)
from qgpo.diffusion import Metrics


class SupportCritic(Critic):
    """Two heads and their targets."""

    def __init__(self, behavior: Behavior, support: Support, training: Training) -> None:
        super().__init__(behavior, support, training)
        network = self._make_twin_q(self.config.critic_baseline)
        self.network = training.add_trained(self.name, network)
        self._target = training.add_copy(f"{self.name}_target", network)

    @property
    def networks(self) -> tuple[str, ...]:
        """Q and the slowly moving Q."""
        return self.name, f"{self.name}_target"

    @property
    def target(self) -> nn.Module:
        """The slowly moving Q."""
        return self._target

    def update(self, data: Batches, step: int) -> Metrics:
        """Regress Q on in-support targets."""
        c, training = self.config, self.training
        tables = training.tables
        if c.critic_lambda > 0.0 and (step % c.target_every == 0 or "returns" not in tables):
            tables["returns"] = self._lambda_targets(data, c.critic_lambda if step else 1.0)
        index = training.draw(len(data), c.critic_batch_size)
        rows = take(data.state_index, index)
        if c.critic_lambda > 0.0:
            targets = tables["returns"][index]
        else:
            next_values = self._value(self._support_q(self.target, data, rows + 1))
            terminations = take(data.terminations, index).float()
            targets = td_target(data.rewards[index], terminations, next_values, c.gamma)
        condition = self.behavior.normalizer(data.observations(rows))
        z = self._encoded_actions(data, index, condition)
        loss, metrics = critic_loss(self.network, condition, z, targets)
        metrics["grad_norm"] = training.optimize(self.name, loss, self._learning_rate(step))
        polyak_update(self.network, self.target, c.tau)
        return metrics

    def _lambda_targets(self, data: Batches, lambda_: float) -> Tensor:
        """lambda-returns of every transition with today's in-support values, (N,)."""
        chunks = self.table_of_q(data).split(ROWS_PER_CHUNK)
        values = torch.cat([self._value(chunk) for chunk in chunks]).to(data.device)
        next_values, gamma = values[1:][data.state_index], self.config.gamma
        return lambda_returns(
            data.rewards, data.terminations, data.last_steps, next_values, gamma, lambda_
        )

    def _value(self, q: Tensor) -> Tensor:
        """V(s) from Q of the support actions, (..., M) to (...)."""
        if self.config.critic_value == "expectile":
            return in_support_expectile(q, self.config.expectile)
        return in_support_value(q, self.config.beta_q)

    def table_of_q(self, data: Batches) -> Tensor:
        """Target Q of every support action, (R, M)."""
        return self._table(self.target, data)
