"""What every critic part gives the family: Q of a state's support actions, and energies of it.

critic="support"    in-support Q-learning, the paper's          support_critic.py
critic="implicit"   implicit Q-learning                         implicit_critic.py
critic="stacked"    both kinds, weighted by unseen episodes     stacked_critic.py, learners.py
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from qgpo.agents.core.batches import Batches, take
from qgpo.agents.core.training import Training, half_cosine
from qgpo.agents.guided.behavior import Behavior
from qgpo.agents.guided.support import ROWS_PER_CHUNK, Support
from qgpo.diffusion import Metrics
from qgpo.networks import TwinQ


def renew(
    table: Tensor | None, n: int, everything: bool, targets_of: Callable[[int], Tensor]
) -> Tensor:
    """The table of n targets: made anew, or as it is with those of transitions that were added.

    `targets_of(first)` are those of the transitions from `first` on; episodes are added whole.
    """
    if table is None or everything:
        return targets_of(0)
    return table if len(table) == n else torch.cat([table, targets_of(len(table))])


class Critic(ABC):
    """Q sees actions in the behavior's coordinates.

    There the actions that a state's behavior takes differ by about one, however narrow it is.
    """

    def __init__(self, behavior: Behavior, support: Support, training: Training) -> None:
        self.config = behavior.config
        self.behavior, self.support = behavior, support
        self.training = training

    @property
    @abstractmethod
    def networks(self) -> tuple[str, ...]:
        """Names under which its networks are registered."""

    @property
    @abstractmethod
    def target(self) -> nn.Module:
        """Q as one network: normalised states (..., S), actions (..., A) to (...).

        Raises RuntimeError where there is none.
        """

    @abstractmethod
    def update(self, data: Batches, step: int, rate: float) -> Metrics:
        """One step of the stage, at that learning rate."""

    @abstractmethod
    def q_of_support(self, data: Batches, rows: Tensor) -> Tensor:
        """Q of the support actions of those states, (B,) to (B, M)."""

    @property
    def states_per_chunk(self) -> int:
        """States whose support actions are asked about in one call."""
        return self.support.states_per_chunk

    def table_of_q(self, data: Batches, first: int = 0) -> Tensor:
        """Q of every support action, (R, M); of those of the states from `first` on."""
        table = data.table((len(data.states) - first, self.config.support_actions))
        for rows in torch.arange(len(table), device=data.device).split(self.states_per_chunk):
            table[rows[0] : rows[-1] + 1] = self.q_of_support(data, first + rows)
        return table

    @property
    def ranks(self) -> bool:
        """Whether it tells a state's actions apart; where it does not, nothing is guided."""
        return True

    def train(self, data: Batches) -> None:
        """The whole stage."""

        def update(step: int) -> Metrics:
            return self.update(data, step, self._learning_rate(step))

        self.training.run_stage("critic", self.config.critic_steps, update)

    def _learning_rate(self, step: int) -> float:
        c = self.config
        return half_cosine(c.critic_learning_rate, step, c.critic_steps, c.learning_rate_decay)

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
        for chunk in q.split(ROWS_PER_CHUNK):
            chunk.copy_(self.tilted(chunk, beta.to(q.device), iterates))
        return q

    def tilted(self, q: Tensor, beta: Tensor, iterates: int = 1) -> Tensor:
        """The same energies of Q (..., M), as another tensor."""
        energies = (q - q.mean(dim=-1, keepdim=True)) * beta
        if self.config.tilt_limit is None:
            return energies
        spread = energies.std(dim=-1, keepdim=True)
        limit = self.config.tilt_limit / iterates
        return energies * torch.clamp(limit / spread.clamp(min=1e-9), max=1.0)


class TwinCritic(Critic):
    """One Q with two heads, and its slowly moving target; a subclass says how it learns."""

    def __init__(
        self, behavior: Behavior, support: Support, training: Training, name: str = "critic"
    ) -> None:
        super().__init__(behavior, support, training)
        c = self.config
        network = TwinQ(
            behavior.observation_dim,
            behavior.action_dim,
            c.critic_hidden,
            c.critic_layer_norm,
            c.critic_activation,
            c.critic_baseline,
        )
        self.name = name
        self.network = training.add_trained(name, network)
        self._target = training.add_copy(f"{name}_target", network)

    @property
    def networks(self) -> tuple[str, ...]:
        """Q and the slowly moving Q."""
        return self.name, f"{self.name}_target"

    @property
    def target(self) -> nn.Module:
        """The slowly moving Q."""
        return self._target

    @torch.no_grad()
    def _encoded_actions(self, data: Batches, index: Tensor, condition: Tensor) -> Tensor:
        """The dataset's actions of those transitions, in the behavior's coordinates, (B, A)."""
        return self.behavior.whitening.encode(condition, data.scaled_actions(index))

    @torch.no_grad()
    def q_of_support(self, data: Batches, rows: Tensor) -> Tensor:
        """Target Q of the support actions of those states, (B,) to (B, M)."""
        z = take(self.training.tables["support"], rows)
        q: Tensor = self.target(self.behavior.normalizer(data.observations(rows))[:, None], z)
        return q
