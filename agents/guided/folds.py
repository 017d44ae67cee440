"""Two halves of the episodes: what is learned from one is judged by the other (cross-fitting)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qgpo.agents.core.batches import Batches, take
from qgpo.agents.core.training import Training
from qgpo.agents.guided.behavior import Behavior

FOLDS = 2
FEWEST_EPISODES = 10
"""below which the transitions are cut into BLOCKS stretches in place of episodes"""
BLOCKS = 20


ROWS_PER_CHUNK = 8192
"""transitions whose actions are encoded at a time"""


class FoldedBatch(NamedTuple):
    """A batch from each of F folds."""

    transitions: Tensor
    """(F, B) row numbers of transitions"""
    rows: Tensor
    """(F, B) row numbers of their states"""
    condition: Tensor
    """(F, B, S) normalised states"""
    actions: Tensor
    """(F, B, 1, A) the dataset's actions, in the behavior's coordinates"""


class Folds:
    """Which transitions each fold has. The same data and seed have the same folds."""

    def __init__(self, data: Batches, behavior: Behavior, seed: int) -> None:
        groups = take(data.episodes(), data.state_index.to(data.device))
        if int(groups[-1]) + 1 < FEWEST_EPISODES:
            groups = torch.arange(len(data), device=data.device) * BLOCKS // len(data)
        self.groups = groups
        """(N,) what is kept together: the number of the episode, or of the stretch"""
        generator = torch.Generator().manual_seed(seed)
        side = torch.randperm(int(groups[-1]) + 1, generator=generator).to(data.device) % FOLDS
        self.fold = side[groups]
        """(N,) the fold of each transition"""
        self.members = [torch.nonzero(self.fold == fold).squeeze(1) for fold in range(FOLDS)]
        """row numbers of every fold's transitions; one transition alone is in all"""
        if not all(map(len, self.members)):
            self.members = [torch.arange(len(data), device=data.device)] * FOLDS
        self.data, self.behavior = data, behavior
        self.actions = self._encoded_actions()
        """(N, A) the dataset's, in the behavior's coordinates"""

    @torch.no_grad()
    def _encoded_actions(self) -> Tensor:
        data, behavior = self.data, self.behavior
        table = data.table((len(data), data.actions.shape[-1]))
        for index in torch.arange(len(data), device=data.device).split(ROWS_PER_CHUNK):
            condition = behavior.condition(data, take(data.state_index, index))
            z = behavior.whitening.encode(condition, data.scaled_actions(index))
            table[int(index[0]) : int(index[-1]) + 1] = z
        return table

    def draw(self, training: Training, batch_size: int) -> FoldedBatch:
        """A batch from each fold."""
        drawn = [training.draw(len(m), batch_size) for m in self.members]
        index = torch.stack([m[i] for m, i in zip(self.members, drawn, strict=True)])
        rows = take(self.data.state_index, index)
        condition = self.behavior.condition(self.data, rows.flatten())
        return FoldedBatch(
            index,
            rows,
            condition.unflatten(0, rows.shape),
            take(self.actions, index)[:, :, None],
        )
