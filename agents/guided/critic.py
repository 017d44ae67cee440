"""The critic part: Q by in-support Q-learning, and tables of it for the last stage.

Values are softmax or expectile over a state's support actions, targets one step or lambda-returns
along the episodes (formulas: qgpo/critic.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qgpo.agents.core.batches import Batches, take
from qgpo.agents.core.training import Training
from qgpo.agents.guided.behavior import Behavior
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
from qgpo.networks import TwinQ


class SupportCritic:
    """Two heads and their targets; Q sees actions in the behavior's coordinates.

    There the actions that a state's behavior takes differ by about one, however narrow it is.
    """

    def __init__(self, behavior: Behavior, support: Support, training: Training) -> None:
        c = behavior.config
        self.config = c
        self.behavior, self.support = behavior, support
        self.training = training
        dims = behavior.observation_dim, behavior.action_dim
        network = TwinQ(
            *dims, c.critic_hidden, c.critic_layer_norm, c.critic_activation, c.critic_baseline
        )
        self.network = training.add_trained("critic", network)
        self.target = training.add_copy("critic_target", network)

    def train(self, data: Batches) -> None:
        """Regress Q on in-support targets."""
        c, training = self.config, self.training
        tables = training.tables

        def loss(step: int) -> tuple[Tensor, Metrics]:
            if c.critic_lambda > 0.0 and (step % c.target_every == 0 or "returns" not in tables):
                tables["returns"] = self._lambda_targets(data, c.critic_lambda if step else 1.0)
            index = training.draw(len(data), c.critic_batch_size)
            rows = take(data.state_index, index)
            if c.critic_lambda > 0.0:
                targets = tables["returns"][index]
            else:
                next_values = self._value(self._support_q(data, rows + 1))
                terminations = take(data.terminations, index).float()
                targets = td_target(data.rewards[index], terminations, next_values, c.gamma)
            condition = self.behavior.normalizer(data.observations(rows))
            with torch.no_grad():
                z = self.behavior.whitening.encode(condition, data.scaled_actions(index))
            return critic_loss(self.network, condition, z, targets)

        def after(step: int) -> None:
            polyak_update(self.network, self.target, c.tau)

        rate, decays = c.critic_learning_rate, c.learning_rate_decay
        training.minimize("critic", c.critic_steps, loss, rate, decays, after)

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

    @torch.no_grad()
    def _support_q(self, data: Batches, rows: Tensor) -> Tensor:
        """Target Q of the support actions of those states, (B,) to (B, M)."""
        z = take(self.training.tables["support"], rows)
        q: Tensor = self.target(self.behavior.normalizer(data.observations(rows))[:, None], z)
        return q

    # For the last stage -------------------------------------------------------------------

    def table_of_q(self, data: Batches) -> Tensor:
        """Target Q of every support action, (R, M)."""
        table = data.table((len(data.states), self.config.support_actions))
        rows = torch.arange(len(table), device=data.device)
        for chunk in rows.split(self.support.states_per_chunk):
            table[chunk[0] : chunk[-1] + 1] = self._support_q(data, chunk)
        return table

    def scale(self, q: Tensor) -> Tensor:
        """The unit of Q in beta Q: typical standard deviation over support actions, or 1."""
        if self.config.q_unit == "reward":
            return torch.ones((), device=q.device)
        return q.std(dim=-1).mean().clamp(min=1e-6)

    def scaled_energies(self, q: Tensor, beta: Tensor, iterates: int = 1) -> Tensor:
        """Energies beta (Q - its mean over the state's actions), in place of q (R, M).

        Where the standard deviation of beta Q over a state's actions exceeds `tilt_limit`, beta is
        lowered until it does not: KL(pi || mu) stays at about limit^2 / 2. Iterates that tilt one
        after the other share the limit.
        """
        beta = beta.to(q.device)
        limit = None if self.config.tilt_limit is None else self.config.tilt_limit / iterates
        for chunk in q.split(ROWS_PER_CHUNK):
            chunk -= chunk.mean(dim=-1, keepdim=True)
            chunk *= beta
            if limit is not None:
                spread = chunk.std(dim=-1, keepdim=True)
                chunk *= torch.clamp(limit / spread.clamp(min=1e-9), max=1.0)
        return q
