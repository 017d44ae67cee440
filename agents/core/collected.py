"""What an agent collects while it learns online: whole episodes, as tables of its training.

Checkpoints write tables, so that an agent that is loaded has its episodes. Only an episode that has
ended is there: states have one row more per episode than the transitions, as in OfflineDataset.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qgpo.agents.core.batches import Batches
from qgpo.agents.core.registers import Kinds, Table
from qgpo.agents.core.training import Training

STATES, ACTIONS, REWARDS = "online/states", "online/actions", "online/rewards"
TERMINATIONS, ENDS = "online/terminations", "online/ends"
SCALES, PAIRED = "online/scales", "online/paired"
"""tables (N + E, S), (N, A) in the environment's units, (N,) raw, (N,) and (N,) of 0 and 1, and
(E,), the guidance scale of each episode (0 where an agent has none) and whether it is one of a
pair that compares scales, which earlier files do not say"""


def kinds(observation_dim: int, action_dim: int, needed: bool) -> Kinds:
    """The tables that a file may hold."""
    return {
        STATES: Table((None, observation_dim), needed=needed),
        ACTIONS: Table((None, action_dim), needed=needed),
        REWARDS: Table((None,), needed=needed),
        TERMINATIONS: Table((None,), 0.0, 1.0, needed),
        ENDS: Table((None,), 0.0, 1.0, needed),
        SCALES: Table((None,), 0.0, needed=needed),
        PAIRED: Table((None,), 0.0, 1.0, needed=False),
    }


def begin(training: Training, observation_dim: int, action_dim: int) -> None:
    """Empty tables, where there are none."""
    for name, kind in kinds(observation_dim, action_dim, True).items():
        assert isinstance(kind, Table)
        empty = torch.zeros([n or 0 for n in kind.shape], device=training.device)
        training.tables.setdefault(name, empty)
    if not len(training.tables[PAIRED]):
        training.tables[PAIRED] = torch.zeros_like(training.tables[SCALES])


def collected_rows(training: Training) -> tuple[int, int]:
    """Rows of states and transitions collected so far."""
    tables = training.tables
    return len(tables.get(STATES, ())), len(tables.get(REWARDS, ()))


def check(training: Training) -> None:
    """Raise ValueError for tables, from a file, that do not fit each other."""
    tables = training.tables
    ends = tables[ENDS].bool()
    n, whole = len(ends), not len(ends) or bool(ends[-1])
    lengths = {len(tables[name]) for name in (ACTIONS, REWARDS, TERMINATIONS)}
    episodes = int(ends.sum())
    whole = whole and len(tables[SCALES]) == len(tables[PAIRED]) == episodes
    if lengths != {n} or len(tables[STATES]) != n + episodes or not whole:
        raise ValueError(
            "this agent's collected episodes do not fit each other: its file is damaged; use an "
            "earlier copy"
        )


@dataclass
class Episode:
    """An episode under way, which no table has yet."""

    states: list[NDArray[np.float32]] = field(default_factory=list)
    """(T + 1) of (S,)"""
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    """(T) of (A,), as executed"""
    rewards: list[float] = field(default_factory=list)
    scale: float = 0.0
    """guidance scale at which it is played"""
    paired: bool = False
    """whether its return is compared with that of another one, at another scale"""
    terminated: bool = False
    """whether its last step ended the task: else it was cut, and its last state has a value"""

    def __len__(self) -> int:
        return len(self.rewards)

    def store(self, training: Training) -> None:
        """Append it to the tables."""
        ends = np.zeros(len(self))
        ends[-1] = 1.0
        rows = {
            STATES: np.stack(self.states),
            ACTIONS: np.stack(self.actions),
            REWARDS: np.array(self.rewards),
            TERMINATIONS: ends * self.terminated,
            ENDS: ends,
            SCALES: np.array([self.scale]),
            PAIRED: np.array([self.paired]),
        }
        for name, values in rows.items():
            new = torch.as_tensor(values, dtype=torch.float32, device=training.device)
            training.tables[name] = torch.cat([training.tables[name], new])


def returns_and_lengths(training: Training) -> list[tuple[float, int]]:
    """Undiscounted return and steps of every episode that was collected."""
    rewards = training.tables[REWARDS].double().cpu().numpy()
    starts = np.flatnonzero(training.tables[ENDS].cpu().numpy()) + 1
    parts = np.split(rewards, starts)[: len(starts)]
    return [(float(part.sum()), len(part)) for part in parts]


def joined(training: Training, recorded: Batches, tuned: Tensor, share: float) -> Batches:
    """The dataset's transitions and then those that were collected, whose rewards are `tuned`."""
    tables = training.tables
    ends = tables[ENDS].bool()
    before = torch.cat([ends.new_zeros(1), ends[:-1]]).long().cumsum(0)
    collected = Batches(
        states=tables[STATES],
        state_index=torch.arange(len(ends), device=training.device) + before,
        actions=tables[ACTIONS],
        rewards=tuned,
        terminations=tables[TERMINATIONS].bool(),
        last_steps=ends,
        low=recorded.low,
        high=recorded.high,
        device=recorded.device,
        scratch=None,
        recorded_episodes=torch.arange(int(ends.sum()), device=training.device),
    )
    return recorded.followed_by(collected, share)
