"""Critics of several kinds, weighted by what they say of episodes that they have not seen.

Every learner has heads for each half of the episodes. The mean advantage of a half's heads is
compared with the lambda-returns of the other half (cross-fitting). Learners that say nothing of
them have no weight; where none says anything, Q is the same for all actions and nothing is guided.
The weights are of stacked regression (Breiman 1996); that they weigh critics is not from a paper.
Outcomes come from the behavior, so stacked regression prefers the critic that is trained on them.
The implicit critic estimates a better policy. Where unseen episodes confirm it, it guides alone.
This rule is not from a paper either.
The mean of several heads ranks better than one of them (Breiman 1996, "Bagging predictors").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qgpo.agents.core.batches import Batches, take
from qgpo.agents.core.training import Training
from qgpo.agents.guided.behavior import Behavior
from qgpo.agents.guided.critic import Critic
from qgpo.agents.guided.folds import FOLDS, Folds, by_fold
from qgpo.agents.guided.learners import STATES_PER_CHUNK, Implicit, Learner, Returns, per_head
from qgpo.agents.guided.support import Support
from qgpo.diffusion import Metrics
from qgpo.stacking import Slope, grouped_slope, of_the_mean, stacked_weights

SIGNIFICANT = 2.0
"""standard errors by which a learner's slope must exceed 0"""
CONFIRMED = 2.0 / 3.0
"""slope of outcomes on the implicit critic's advantages from which it guides alone"""
MOST_TRANSITIONS = 100_000
"""that weigh the learners: whole episodes, the first of a random order"""


class Weights(nn.Module):
    """What each learner is worth, (J,); the last of the J + 1 slopes is that of the whole."""

    weights: Tensor
    slopes: Tensor
    errors: Tensor
    correlations: Tensor
    measured: Tensor

    def __init__(self, learners: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(learners))
        for name in ("slopes", "errors", "correlations"):
            self.register_buffer(name, torch.zeros(learners + 1))
        self.register_buffer("measured", torch.zeros(()))

    def set(self, weights: Tensor, slopes: Sequence[Slope]) -> None:
        """Keep what was measured."""
        self.weights.copy_(weights)
        self.slopes.copy_(torch.tensor([s.slope for s in slopes]))
        self.errors.copy_(torch.tensor([s.error for s in slopes]))
        self.correlations.copy_(torch.tensor([s.correlation for s in slopes]))
        self.measured.fill_(1.0)


class StackedQ(nn.Module):
    """Q of the whole: V of the returns, and each learner's advantage times its weight."""

    def __init__(self, returns: Returns, implicit: Implicit, stack: Weights) -> None:
        super().__init__()
        self.returns, self.implicit = returns.target, implicit.target
        self.implicit_value, self.stack = implicit.value, stack

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Normalised states (..., S), actions (..., A) to (...)."""
        of_returns, of_implicit = self.stack.weights.tolist()
        q = self.returns.mean_baseline(observations) + 0.0 * actions.sum(dim=-1)
        if of_returns > 0.0:
            q = q + of_returns * self.returns.mean_advantage(observations, actions)
        if of_implicit > 0.0:
            value = self.implicit_value.mean_of_heads(observations).squeeze(-1)
            q = q + of_implicit * (self.implicit.mean_advantage(observations, actions) - value)
        return q


class StackedCritic(Critic):
    """The learners, side by side."""

    def __init__(self, behavior: Behavior, support: Support, training: Training) -> None:
        super().__init__(behavior, support, training)
        self.outcomes = Returns("critic", behavior, training)
        implicit = Implicit("implicit_critic", behavior, training)
        self.learners: dict[str, Learner] = {"returns": self.outcomes, "implicit": implicit}
        self.stack = training.add("critic_weights", Weights(len(self.learners)))
        self._target = StackedQ(self.outcomes, implicit, self.stack)
        self._folds: tuple[Batches, Folds] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles of an agent: without its data."""
        return {**self.__dict__, "_folds": None}

    @property
    def networks(self) -> tuple[str, ...]:
        """Those of the learners, and their weights."""
        names = [name for learner in self.learners.values() for name in learner.networks]
        return *names, "critic_weights"

    @property
    def target(self) -> nn.Module:
        """Q as one network."""
        return self._target

    @property
    def reliability(self) -> float:
        """Share of the differences among a state's actions that unseen episodes confirm."""
        return min(1.0, float(self.stack.weights.sum()))

    def scale(self, q: Tensor) -> Tensor:
        """In units of the spread, what is not confirmed tilts nothing.

        At beta = 1 the typical standard deviation of beta Q over a state's actions is the
        reliability.
        """
        unit = super().scale(q)
        if self.config.q_unit == "reward" or not self.ranks:
            return unit
        return unit / self.reliability

    @property
    def ranks(self) -> bool:
        """Whether unseen episodes confirmed a learner."""
        return bool(self.stack.weights.any())

    def folds(self, data: Batches) -> Folds:
        """The two halves of those data."""
        if self._folds is None or self._folds[0] is not data:
            self._folds = data, Folds(data, self.behavior, self.training.seed)
        return self._folds[1]

    def update(self, data: Batches, step: int, rate: float) -> Metrics:
        """One step of each learner."""
        c = self.config
        size = per_head(c.critic_batch_size, c.critic_heads)
        batch = self.folds(data).draw(self.training, self.outcomes.heads, size)
        metrics: Metrics = {}
        for name, learner in self.learners.items():
            prefix = "" if learner is self.outcomes else f"{name}_"
            updated = learner.update(data, batch, step, rate)
            metrics.update({f"{prefix}{key}": value for key, value in updated.items()})
        return metrics

    def train(self, data: Batches) -> None:
        """Train the learners, then weigh them."""
        before = self.training.progress["critic"]
        super().train(data)
        if self.training.progress["critic"] > before or not self.stack.measured:
            self.stack.set(*self.weigh(data))

    @property
    def states_per_chunk(self) -> int:
        """States whose support actions are asked about in one call."""
        return STATES_PER_CHUNK

    def q_of_support(self, data: Batches, rows: Tensor) -> Tensor:
        """Q of the support actions of those states, less a function of the state."""
        total = torch.zeros(len(rows), self.config.support_actions, device=data.device)
        weights = self.stack.weights.tolist()
        for weight, learner in zip(weights, self.learners.values(), strict=True):
            if weight > 0.0:
                q = learner.q_of_support(data, rows).mean(dim=0)
                total += weight * (q - q.mean(dim=-1, keepdim=True))
        return total

    # Weights ------------------------------------------------------------------------------

    @torch.no_grad()
    def weigh(self, data: Batches) -> tuple[Tensor, list[Slope]]:
        """Weights (J,) of the learners, and slopes of held-out outcomes: each one's, the whole's.

        An outcome is a transition's lambda-return less the state's value, both by the values of
        the fold in which the transition is; an advantage is the mean over the other fold's heads.
        """
        folds = self.folds(data)
        index = self._judges(folds)
        own, groups = folds.fold[index], folds.groups[index]
        outcomes = self._outcomes(data, index, own)
        advantages = self._held_out(data, index, 1 - own)
        slopes = [grouped_slope(a, outcomes, groups) for a in advantages]
        kept = [j for j, slope in enumerate(slopes) if slope.t > SIGNIFICANT]
        implicit = list(self.learners).index("implicit")
        if implicit in kept and slopes[implicit].slope >= CONFIRMED:
            kept = [implicit]
        weights = torch.zeros(len(advantages), dtype=torch.float64, device=advantages.device)
        if kept:
            weights[kept] = stacked_weights(advantages[kept], outcomes)
        whole = (weights[:, None] * advantages).sum(dim=0)
        of_mean = weights * of_the_mean(float(weights.sum()), FOLDS)
        return of_mean, [*slopes, grouped_slope(whole, outcomes, groups)]

    def _judges(self, folds: Folds) -> Tensor:
        """Transitions that weigh: all, or whole groups of them in a random order, (K,)."""
        generator = torch.Generator().manual_seed(self.training.seed)
        order = torch.randperm(int(folds.groups.max()) + 1, generator=generator)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        sizes = torch.bincount(folds.groups.cpu(), minlength=len(order))[order].cumsum(0)
        groups = max(2, int((sizes <= MOST_TRANSITIONS).sum()))
        kept = place.to(folds.groups.device)[folds.groups] < groups
        return torch.nonzero(kept).squeeze(1)

    def _outcomes(self, data: Batches, index: Tensor, fold: Tensor) -> Tensor:
        """Lambda-returns of those transitions less the state's value, by their own fold, (K,)."""
        values, means = self.outcomes.values(data)
        lambda_, gamma = self.config.critic_lambda, self.config.gamma
        rows = take(data.state_index, index)
        of_folds = torch.stack(
            [
                data.lambda_returns(of_fold, gamma, lambda_)[index] - mean[rows]
                for of_fold, mean in zip(values, means, strict=True)
            ]
        )
        return of_folds.gather(0, fold[None]).squeeze(0)

    def _held_out(self, data: Batches, index: Tensor, fold: Tensor) -> Tensor:
        """Advantages of the actions that were taken, by the heads of the given folds, (J, K)."""
        parts = []
        for chunk, folds in zip(
            index.split(STATES_PER_CHUNK), fold.split(STATES_PER_CHUNK), strict=True
        ):
            rows = take(data.state_index, chunk)
            condition = self.behavior.condition(data, rows)
            support = take(self.training.tables["support"], rows)
            actions = torch.cat([take(self.folds(data).actions, chunk)[:, None], support], dim=1)
            q = torch.stack(
                [by_fold(part.q(condition, actions)) for part in self.learners.values()]
            )
            advantage = q[..., 0] - q[..., 1:].mean(dim=-1)
            parts.append(advantage.gather(1, folds.expand(len(q), 1, -1)).squeeze(1))
        return torch.cat(parts, dim=1)
