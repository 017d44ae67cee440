"""Two halves of the episodes: what is learned from one is judged by the other (cross-fitting)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qgpo.agents.core.batches import Batches, draw_mixed, take
from qgpo.agents.core.training import Training
from qgpo.agents.guided.behavior import Behavior
from qgpo.agents.guided.held_out import groups_of

FOLDS = 2

ROWS_PER_CHUNK = 8192
"""transitions whose actions are encoded at a time"""


def fold_of(heads: int) -> Tensor:
    """The fold from which each head learns, (H,): they take turns."""
    return torch.arange(heads) % FOLDS


def by_fold(of_heads: Tensor) -> Tensor:
    """The mean over the heads of each fold, (H, ...) to (F, ...)."""
    mean: Tensor = of_heads.unflatten(0, (-1, FOLDS)).mean(0)
    return mean


class FoldedBatch(NamedTuple):
    """A batch for each of H heads, from its fold."""

    transitions: Tensor
    """(H, B) row numbers of transitions"""
    rows: Tensor
    """(H, B) row numbers of their states"""
    condition: Tensor
    """(H, B, S) normalised states"""
    actions: Tensor
    """(H, B, 1, A) the dataset's actions, in the behavior's coordinates"""


class Folds:
    """Which transitions each fold has. The same data and seed have the same folds."""

    def __init__(self, data: Batches, behavior: Behavior, seed: int) -> None:
        n = data.recorded
        self.groups = groups_of(data)
        """(N,) what is kept together: the number of the episode, or of the stretch"""
        generator = torch.Generator().manual_seed(seed)
        groups, recorded = self.groups[:n], int(self.groups[:n].max()) + 1
        side = torch.randperm(recorded, generator=generator).to(data.device) % FOLDS
        # episodes that were collected take turns: those of the data stay where they were
        self.fold = torch.cat([side[groups], (self.groups[n:] - recorded) % FOLDS])
        """(N,) the fold of each transition"""
        self.members = [torch.nonzero(self.fold == fold).squeeze(1) for fold in range(FOLDS)]
        """row numbers of every fold's transitions; one transition alone is in all"""
        if not all(map(len, self.members)):
            self.members = [torch.arange(len(data), device=data.device)] * FOLDS
        self.recorded = [int((members < n).sum()) for members in self.members]
        """how many of them are the dataset's, which come first"""
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

    def draw(self, training: Training, heads: int, batch_size: int) -> FoldedBatch:
        """A batch of its fold for each head."""
        share = self.data.collected_share
        drawn = []
        for fold in fold_of(heads).tolist():
            members, recorded = self.members[fold], self.recorded[fold]
            rows = draw_mixed(training, recorded, len(members) - recorded, share, batch_size)
            drawn.append(members[rows])
        index = torch.stack(drawn)
        rows = take(self.data.state_index, index)
        condition = self.behavior.condition(self.data, rows.flatten())
        return FoldedBatch(
            index,
            rows,
            condition.unflatten(0, rows.shape),
            take(self.actions, index)[:, :, None],
        )
