"""Early stopping: where data are few, episodes that a stage does not learn from choose its weights.

A stage that sees every transition many times learns the actions of the data by heart, and not the
behavior. There a tenth of the episodes is held out, and the weights are averaged over steps. The
stage keeps the last average whose loss on the held-out episodes exceeds the smallest one by at most
a standard error of the paired differences. The average with the smallest loss of many would partly
be the luckiest one.

Early stopping: Prechelt 1998. Averages of weights: Polyak and Juditsky 1992. One standard error:
Breiman et al. 1984.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from qgpo.agents.core.batches import Batches, take
from qgpo.agents.core.registers import Kinds, Table
from qgpo.agents.core.training import Training, share_of_step

MOST_EPOCHS = 64
"""times that a stage sees each transition, from which on a part of them is held out"""
HELD_OUT = 10
"""one of so many groups is held out"""
MOST_ROWS = 4096
"""held-out transitions on which a loss is computed"""
CHECKS = 200
"""times that it is computed in a stage"""
DECAY = 0.995
"""of the averaged weights"""
FEWEST_EPISODES = 10
"""below which the transitions are cut into BLOCKS stretches in place of episodes"""
BLOCKS = 20

Judge: TypeAlias = Callable[[Any, Tensor], Tensor]
"""the losses of a network on the transitions of those rows, (R,) to (R,)"""


def groups_of(data: Batches) -> Tensor:
    """What is held out together, (N,): a transition's recorded episode, or a stretch of it."""
    n, rows = data.recorded, data.state_index.to(data.device)
    recordings = take(data.recordings(), rows)
    groups, later = recordings[:n], recordings[n:] - recordings[n - 1] - 1
    if int(groups[-1]) + 1 < FEWEST_EPISODES:
        groups = _stretches(take(data.episodes(), rows)[:n], groups)
    return torch.cat([groups, int(groups.max()) + 1 + later])


def _stretches(own: Tensor, recorded: Tensor) -> Tensor:
    """Numbers of stretches, (N,): BLOCKS in all, or in each recorded episode if some overlap."""
    n = len(own)
    if torch.equal(own, recorded):
        return torch.arange(n, device=own.device) * BLOCKS // n
    lengths = torch.bincount(own)
    steps = torch.arange(n, device=own.device) - (lengths.cumsum(0) - lengths)[own]
    stretches = recorded * BLOCKS + steps * BLOCKS // lengths[own]
    found: Tensor = torch.unique(stretches, return_inverse=True)[1]
    return found


class EarlyStopping:
    """The rows from which a stage learns, and which of its averaged weights are kept.

    With many data, or without `averages`, the stage learns from all rows and keeps its last
    weights. Averages are tables of the training, so that a checkpoint within the stage has them.
    """

    def __init__(
        self,
        training: Training,
        stage: str,
        network: nn.Module,
        judge: Judge,
        data: Batches,
        steps: int,
        batch_size: int,
        averages: bool = True,
    ) -> None:
        self.training, self.stage, self.network, self.judge = training, stage, network, judge
        self.steps, self.every = steps, max(1, steps // CHECKS)
        self.learned = torch.arange(len(data), device=data.device)
        """row numbers of the transitions from which the stage learns"""
        self.held_out = self.learned[:0]
        """row numbers of transitions on which its weights are judged"""
        if averages and steps * batch_size > MOST_EPOCHS * len(data):
            self._hold_out(groups_of(data))

    def _hold_out(self, groups: Tensor) -> None:
        """A tenth of the groups; nothing where there is only one."""
        generator = torch.Generator().manual_seed(self.training.seed)
        groups = torch.unique(groups, return_inverse=True)[1]  # without numbers that none has
        n = int(groups.max()) + 1
        if n == 1:
            return
        order = torch.randperm(n, generator=generator).to(groups.device)
        held = torch.isin(groups, order[: math.ceil(n / HELD_OUT)])
        self.learned, held_out = (torch.nonzero(rows).squeeze(1) for rows in (~held, held))
        shuffled = torch.randperm(len(held_out), generator=generator).to(groups.device)
        self.held_out = held_out[shuffled[:MOST_ROWS]].sort().values
        self.judged = copy.deepcopy(self.network).requires_grad_(False)

    @torch.no_grad()
    def after(self, step: int) -> None:
        """Average the weights of that step, counted from 0, and judge the average now and then."""
        if not len(self.held_out):
            return
        average, kept, least = tables_of(self.stage)
        tables, weights = self.training.tables, parameters_to_vector(self.network.parameters())
        if average not in tables:
            tables[average] = weights.clone()
        tables[average].lerp_(weights, share_of_step(DECAY, step))
        if (step + 1) % self.every and step + 1 < self.steps:
            return
        set_weights(self.judged, tables[average])
        losses = self.judge(self.judged, self.held_out)
        if not losses.isfinite().all():
            return
        worse = losses - tables.setdefault(least, losses)
        if worse.mean() < 0.0:
            tables[least] = losses
        if worse.mean() <= 0.0 or worse.mean() <= worse.std() / math.sqrt(len(worse)):
            tables[kept] = tables[average].clone()

    @torch.no_grad()
    def finish(self) -> bool:
        """Give the network the average that is kept, once the stage has ended. Whether one was."""
        if self.training.progress[self.stage] < self.steps:
            return False
        _, kept, _ = (self.training.tables.pop(name, None) for name in tables_of(self.stage))
        if kept is not None:
            set_weights(self.network, kept)
        return kept is not None


def set_weights(network: nn.Module, weights: Tensor) -> None:
    """Copy a vector of all parameters into a network."""
    parameters = list(network.parameters())
    parts = weights.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.view_as(parameter))


def tables_of(stage: str) -> tuple[str, str, str]:
    """Names of the tables: the average, the one that is kept, and the losses of the best one."""
    return f"{stage}_average", f"{stage}_kept", f"{stage}_losses"


def kinds_of(stage: str, network: nn.Module) -> Kinds:
    """The tables that a checkpoint within a stage may hold: weights (P,) twice, losses (R,)."""
    average, kept, losses = tables_of(stage)
    weights = Table((sum(p.numel() for p in network.parameters()),))
    return {average: weights, kept: weights, losses: Table((None,))}
