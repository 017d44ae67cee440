"""What a stacked critic is made of: Q learned in one way, by several heads for each fold.

returns    lambda-returns of in-support values; the advantage is linear in the action
implicit   implicit Q-learning
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from qgpo.agents.core.batches import Batches, take
from qgpo.agents.core.training import Training
from qgpo.agents.guided.behavior import Behavior
from qgpo.agents.guided.critic import renew
from qgpo.agents.guided.folds import FOLDS, FoldedBatch, by_fold, fold_of
from qgpo.critic import (
    expectile_loss,
    in_support_expectile,
    in_support_value,
    polyak_update,
    td_target,
)
from qgpo.diffusion import Metrics
from qgpo.networks import BatchedMLP, HeadsOfQ

RETURNS = "returns"
"""name of the table (N, F) of lambda-returns, by the heads of each fold"""
STATES_PER_CHUNK = 64
"""whose support actions are asked about at a time"""


def per_head(size: int, heads: int) -> int:
    """Width of a layer of each of K heads, or of its batch, where a single head has that size.

    It is smaller by sqrt(K). So K heads have 1 / sqrt(K) of the multiplications of one.
    """
    return max(1, round(size / math.sqrt(heads)))


class Learner(ABC):
    """H heads, each trained on its fold, and their slowly moving copy."""

    def __init__(
        self, name: str, behavior: Behavior, training: Training, baseline: bool, linear: bool
    ) -> None:
        self.config, self.behavior, self.training = behavior.config, behavior, training
        self.name = name
        c = self.config
        self.heads = FOLDS * c.critic_heads
        self.hidden = tuple(per_head(size, c.critic_heads) for size in c.critic_hidden)
        self.network = training.add_trained(
            name,
            HeadsOfQ(
                self.heads,
                behavior.observation_dim,
                behavior.action_dim,
                self.hidden,
                c.critic_layer_norm,
                c.critic_activation,
                baseline,
                linear,
            ),
        )
        self.target = training.add_copy(f"{name}_target", self.network)

    @property
    def networks(self) -> tuple[str, ...]:
        """Names under which its networks are registered."""
        return self.name, f"{self.name}_target"

    @abstractmethod
    def update(self, data: Batches, batch: FoldedBatch, step: int, rate: float) -> Metrics:
        """One optimizer step of all heads."""

    def _condition(self, data: Batches, rows: Tensor) -> Tensor:
        return self.behavior.condition(data, rows)

    @torch.no_grad()
    def q_of_support(self, data: Batches, rows: Tensor) -> Tensor:
        """Every head's Q of the support actions of those states, (B,) to (H, B, M)."""
        z = take(self.training.tables["support"], rows)
        return self.q(self._condition(data, rows), z)

    @torch.no_grad()
    def q(self, condition: Tensor, z: Tensor) -> Tensor:
        """Every head's Q of J actions per state, (B, S), (B, J, A) to (H, B, J)."""
        repeated = condition.expand(self.heads, *condition.shape)
        return self.target.every(repeated, z.expand(self.heads, *z.shape))


class Returns(Learner):
    """Lambda-returns of in-support values (as in support_critic.py), for each fold its own.

    They are noisy: what follows an action says more of the next ten. An advantage that is linear
    in the action has less to fit it with than a free one, and ranks unseen episodes better.
    """

    def __init__(self, name: str, behavior: Behavior, training: Training) -> None:
        super().__init__(name, behavior, training, baseline=True, linear=True)

    def update(self, data: Batches, batch: FoldedBatch, step: int, rate: float) -> Metrics:
        """V_h towards the returns, A_h towards what V_h leaves."""
        c, training = self.config, self.training
        renewed, lambda_ = step % c.target_every == 0, c.critic_lambda if step else 1.0
        returns_of = partial(self._returns, data, lambda_)
        known = training.tables.get(RETURNS)
        training.tables[RETURNS] = renew(known, len(data), renewed, returns_of)
        fold = fold_of(self.heads).to(batch.transitions.device)
        targets = training.tables[RETURNS][batch.transitions, fold[:, None]]
        baseline = self.network.baseline(batch.condition)
        advantages = self.network.advantages(batch.condition, batch.actions).squeeze(-1)
        value_loss = functional.mse_loss(baseline, targets)
        loss = functional.mse_loss(baseline.detach() + advantages, targets)
        norm = training.optimize(self.name, self.heads * (loss + value_loss), rate)
        polyak_update(self.network, self.target, c.tau)
        return {"loss": loss, "value_loss": value_loss, "q": baseline.mean(), "grad_norm": norm}

    @torch.no_grad()
    def values(self, data: Batches, first: int = 0) -> tuple[Tensor, Tensor]:
        """In-support values of the states, and their means over the support, by fold: (F, R).

        Of the states from row `first` on; of the heads of each fold the mean.
        """
        values, means = [], []
        states = torch.arange(len(data.states) - first, device=data.device)
        for rows in states.split(STATES_PER_CHUNK):
            q = self.q_of_support(data, first + rows)
            values.append(by_fold(self._value(q)))
            means.append(by_fold(q.mean(dim=-1)))
        return torch.cat(values, dim=1), torch.cat(means, dim=1)

    def _returns(self, data: Batches, lambda_: float, first: int = 0) -> Tensor:
        """Every fold's lambda-returns of the transitions from `first` on, (N, F)."""
        folds, gamma = self.values(data, int(data.state_index[first]))[0], self.config.gamma
        columns = [data.lambda_returns(values, gamma, lambda_, first) for values in folds]
        return torch.stack(columns, dim=1)

    def _value(self, q: Tensor) -> Tensor:
        if self.config.critic_value == "expectile":
            return in_support_expectile(q, self.config.expectile)
        return in_support_value(q, self.config.beta_q)


class Implicit(Learner):
    """Implicit Q-learning (as in implicit_critic.py), for each fold its own Q and V."""

    def __init__(self, name: str, behavior: Behavior, training: Training) -> None:
        super().__init__(name, behavior, training, baseline=False, linear=False)
        c = self.config
        sizes = [behavior.observation_dim, *self.hidden, 1]
        value = BatchedMLP(self.heads, sizes, c.critic_activation, c.critic_layer_norm)
        self.value = training.add_trained(f"{name}_value", value)

    @property
    def networks(self) -> tuple[str, ...]:
        """Q, the slowly moving Q, and V."""
        return *super().networks, f"{self.name}_value"

    def update(self, data: Batches, batch: FoldedBatch, step: int, rate: float) -> Metrics:
        """One step of V, then of Q towards the new V."""
        c, training = self.config, self.training
        with torch.no_grad():
            q = self.target.every(batch.condition, batch.actions).squeeze(-1)
        differences = q - self._values(batch.condition)
        value_loss = expectile_loss(differences, c.expectile)
        training.optimize(f"{self.name}_value", self.heads * value_loss, rate)
        with torch.no_grad():
            states = self._condition(data, batch.rows.flatten() + 1)
            terminations = take(data.terminations, batch.transitions).float()
            values = self._values(states.unflatten(0, batch.rows.shape))
            targets = td_target(data.rewards[batch.transitions], terminations, values, c.gamma)
        predicted = self.network.every(batch.condition, batch.actions).squeeze(-1)
        loss = functional.mse_loss(predicted, targets)
        norm = training.optimize(self.name, self.heads * loss, rate)
        polyak_update(self.network, self.target, c.tau)
        return {"loss": loss, "expectile_loss": value_loss, "q": q.mean(), "grad_norm": norm}

    def _values(self, condition: Tensor) -> Tensor:
        """V_h, a batch per head: (H, B, S) to (H, B)."""
        return torch.squeeze(self.value(condition), dim=-1)
