"""Q over the actions that a behavior takes: in-support Q-learning on a table of such actions.

The table (R, M, A) holds M actions for every observation of the dataset. Values are softmax or
expectile over them, targets one step or lambda-returns along the episodes (qgpo/critic.py).
"""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor

from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.core.batches import Batches, half_cosine, take
from qgpo.agents.guided import adoption
from qgpo.agents.guided.config import GuidedPolicyConfig
from qgpo.critic import (
    critic_loss,
    in_support_expectile,
    in_support_value,
    lambda_returns,
    polyak_update,
    td_target,
)
from qgpo.diffusion import Metrics
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.networks import TwinQ
from qgpo.normalization import Identity, ObservationNormalizer, Whitening

ROWS_PER_CHUNK = 2048
"""rows per network call where tables over all states are filled: few enough to stay in cache"""

GuidedConfigT = TypeVar("GuidedConfigT", bound=GuidedPolicyConfig)


class SupportCritic(OfflineAgent[GuidedConfigT], Generic[GuidedConfigT]):
    """The critic stage of the family, what the last stage asks of Q, and what all stages share."""

    normalizer: ObservationNormalizer
    whitening: Whitening | Identity
    critic: TwinQ
    critic_target: TwinQ

    def train_critic(self, dataset: OfflineDataset) -> None:
        """Stage 3: Q by regression on in-support targets.

        Q sees actions in the coordinates of the diffusion: whitened, the actions that a state's
        behavior takes differ by about one, however narrow that behavior is.
        """
        data = self._prepare(dataset)
        self._needs("support", "generate_support")
        c, tables = self.config, self.tables

        def update(step: int) -> Metrics:
            if c.critic_lambda > 0.0 and (step % c.target_every == 0 or "returns" not in tables):
                tables["returns"] = self._lambda_targets(data, c.critic_lambda if step else 1.0)
            index = self._draw(len(data), c.critic_batch_size)
            rows = take(data.state_index, index)
            if c.critic_lambda > 0.0:
                targets = tables["returns"][index]
            else:
                q = self._support_q(data, rows + 1)
                targets = td_target(
                    data.rewards[index],
                    take(data.terminations, index).float(),
                    self._value(q, c.beta_q),
                    c.gamma,
                )
            condition = self.normalizer(data.observations(rows))
            with torch.no_grad():
                z = self.whitening.encode(condition, data.scaled_actions(index))
            loss, metrics = critic_loss(self.critic, condition, z, targets)
            rate = self._rate(c.critic_learning_rate, step, c.critic_steps)
            metrics["grad_norm"] = self._optimize("critic", loss, rate)
            polyak_update(self.critic, self.critic_target, c.tau)
            return metrics

        self._run_stage("critic", c.critic_steps, update)
        adoption.keep_states(self)

    # Tables over the support --------------------------------------------------------------

    @property
    def _states_per_chunk(self) -> int:
        return max(1, ROWS_PER_CHUNK // self.config.support_actions)

    @torch.no_grad()
    def _support_q(self, data: Batches, rows: Tensor) -> Tensor:
        """Target Q of the support actions of those states, (B,) to (B, M)."""
        z = take(self.tables["support"], rows)
        condition = self.normalizer(data.observations(rows))[:, None]
        q: Tensor = self.critic_target(condition, z)
        return q

    def _table_of_q(self, data: Batches) -> Tensor:
        """Target Q of every support action, (R, M)."""
        table = data.table((len(data.states), self.config.support_actions))
        for begin in range(0, len(table), self._states_per_chunk):
            end = min(begin + self._states_per_chunk, len(table))
            rows = torch.arange(begin, end, device=self.device)
            table[begin:end] = self._support_q(data, rows)
        return table

    def _scaled_energies(self, q: Tensor, beta: Tensor, iterates: int = 1) -> Tensor:
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

    def _lambda_targets(self, data: Batches, lambda_: float) -> Tensor:
        """lambda-returns of every transition with today's in-support values, (N,)."""
        c = self.config
        q = self._table_of_q(data)
        chunks = q.split(ROWS_PER_CHUNK)
        values = torch.cat([self._value(chunk, c.beta_q) for chunk in chunks]).to(self.device)
        return lambda_returns(
            data.rewards,
            data.terminations,
            data.last_steps,
            values[1:][data.state_index],
            c.gamma,
            lambda_,
        )

    # Parts of the stages ------------------------------------------------------------------

    def _q_scale(self, q: Tensor) -> Tensor:
        """The unit of Q in beta Q: typical standard deviation over support actions, or 1."""
        if self.config.q_unit == "reward":
            return torch.ones((), device=q.device)
        return q.std(dim=-1).mean().clamp(min=1e-6)

    def _value(self, q: Tensor, beta_q: float) -> Tensor:
        """V(s) from Q of the support actions, (..., M) to (...)."""
        if self.config.critic_value == "expectile":
            return in_support_expectile(q, self.config.expectile)
        return in_support_value(q, beta_q)

    def _condition(self, data: Batches, index: Tensor) -> Tensor:
        """Normalised observations in which those transitions start, (B, S)."""
        condition: Tensor = self.normalizer(data.observations(take(data.state_index, index)))
        return condition

    def _draw(self, n: int, batch_size: int) -> Tensor:
        return torch.randint(n, (batch_size,), generator=self.generator, device=self.device)

    def _draw_by(self, cumulative: Tensor, batch_size: int) -> Tensor:
        """Rows in proportion to weights of which `cumulative` (N,) are the partial sums.

        (torch.multinomial would sum them anew in every step, and takes no more than 2^24.)
        """
        u = torch.rand(
            batch_size, generator=self.generator, device=self.device, dtype=cumulative.dtype
        )
        return torch.searchsorted(cumulative, u * cumulative[-1])

    def _random_rows(self, data: Batches) -> Tensor:
        """All rows of the data's states, shuffled, (R,): the same whenever it is asked for."""
        generator = torch.Generator(self.device)
        generator.manual_seed(self.seed)
        return torch.randperm(len(data.states), generator=generator, device=self.device)

    def _rate(self, base: float, step: int, total: int) -> float:
        return half_cosine(base, step, total) if self.config.learning_rate_decay else base

    def _needs(self, table: str, stage: str) -> None:
        if table not in self.tables:
            raise RuntimeError(f"no {table} actions yet: call {stage}(dataset) first")
