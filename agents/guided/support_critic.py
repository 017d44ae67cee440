"""The paper's critic: Q by in-support Q-learning.

Values are softmax or expectile over a state's support actions, targets one step or lambda-returns
along the episodes (formulas: qgpo/critic.py).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from qgpo.agents.core.batches import Batches, take
from qgpo.agents.guided.critic import TwinCritic, renew
from qgpo.agents.guided.support import ROWS_PER_CHUNK
from qgpo.critic import (
    critic_loss,
    in_support_expectile,
    in_support_value,
    polyak_update,
    td_target,
)
from qgpo.diffusion import Metrics


class SupportCritic(TwinCritic):
    """In-support Q-learning."""

    def update(self, data: Batches, step: int, rate: float) -> Metrics:
        """Regress Q on in-support targets."""
        c, training = self.config, self.training
        tables = training.tables
        if c.critic_lambda > 0.0:
            renewed, lambda_ = step % c.target_every == 0, c.critic_lambda if step else 1.0
            targets_of = partial(self._lambda_targets, data, lambda_)
            tables["returns"] = renew(tables.get("returns"), len(data), renewed, targets_of)
        index = data.draw(training, c.critic_batch_size)
        rows = take(data.state_index, index)
        if c.critic_lambda > 0.0:
            targets = tables["returns"][index]
        else:
            next_values = self._value(self.q_of_support(data, rows + 1))
            terminations = take(data.terminations, index).float()
            targets = td_target(data.rewards[index], terminations, next_values, c.gamma)
        condition = self.behavior.normalizer(data.observations(rows))
        z = self._encoded_actions(data, index, condition)
        loss, metrics = critic_loss(self.network, condition, z, targets)
        metrics["grad_norm"] = training.optimize(self.name, loss, rate)
        polyak_update(self.network, self.target, c.tau)
        return metrics

    def _lambda_targets(self, data: Batches, lambda_: float, first: int = 0) -> Tensor:
        """lambda-returns with today's in-support values, (N,): of the transitions from `first`."""
        row = int(data.state_index[first])
        chunks = self.table_of_q(data, row).split(ROWS_PER_CHUNK)
        values = torch.cat([self._value(chunk) for chunk in chunks]).to(data.device)
        return data.lambda_returns(values, self.config.gamma, lambda_, first)

    def _value(self, q: Tensor) -> Tensor:
        """V(s) from Q of the support actions, (..., M) to (...)."""
        if self.config.critic_value == "expectile":
            return in_support_expectile(q, self.config.expectile)
        return in_support_value(q, self.config.beta_q)
