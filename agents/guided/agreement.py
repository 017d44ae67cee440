"""Two critics of different kinds, and of their advantages what both say.

In-support Q-learning with lambda-returns averages over what follows an action; implicit Q-learning
looks one step ahead. The idea is that they err in different places. Not from a paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qgpo.agents.core.batches import Batches
from qgpo.agents.core.training import Training
from qgpo.agents.guided.behavior import Behavior
from qgpo.agents.guided.critic import Critic
from qgpo.agents.guided.implicit_critic import ImplicitCritic
from qgpo.agents.guided.support import ROWS_PER_CHUNK, Support
from qgpo.agents.guided.support_critic import SupportCritic
from qgpo.critic import agreed_advantages
from qgpo.diffusion import Metrics


class Agreement(Critic):
    """Both learn from the same data, each by itself."""

    tables = 2

    def __init__(self, behavior: Behavior, support: Support, training: Training) -> None:
        super().__init__(behavior, support, training)
        self.first = SupportCritic(behavior, support, training)
        self.second = ImplicitCritic(behavior, support, training, "implicit_critic")

    @property
    def networks(self) -> tuple[str, ...]:
        """Those of both."""
        return self.first.networks + self.second.networks

    @property
    def target(self) -> nn.Module:
        """There is none: what both say is known of support actions alone."""
        raise RuntimeError("critic='agreement' has two networks and no common Q")

    def update(self, data: Batches, step: int) -> Metrics:
        """One step of each."""
        metrics = self.first.update(data, step)
        second = self.second.update(data, step)
        return {**metrics, **{f"implicit_{name}": value for name, value in second.items()}}

    def table_of_q(self, data: Batches) -> Tensor:
        """Of every support action the smaller advantage where both have one sign, else 0, (R, M).

        In units of each critic's typical standard deviation over a state's actions.
        """
        first, second = self.first.table_of_q(data), self.second.table_of_q(data)
        units = self.first.scale(first), self.second.scale(second)
        chunks = zip(first.split(ROWS_PER_CHUNK), second.split(ROWS_PER_CHUNK), strict=True)
        for a, b in chunks:
            a.copy_(agreed_advantages(a / units[0], b / units[1]))
        return first

    def scale(self, q: Tensor) -> Tensor:
        """1: the table has its unit.

        Divided by its own spread, two critics that never agree would guide as far as two that
        always do.
        """
        return torch.ones((), device=q.device)
