"""A recording: rows in the order in which they were taken, and which episode each belongs to."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray

from qgpo.envs.logs.columns import LogError

ROUNDED, SAME = 4e-6, 1e-4
"""part of a number, and of a column's spread, by which a next observation may differ from the next
row: both may be rounded in their own way"""
Ends = Literal["truncated", "terminated"]
"""what the end of an episode means where no flag says it"""


@dataclass(frozen=True)
class Log:
    """N rows; S observation, A action dimensions. A row's action was taken in its observation."""

    of: str
    """where it is from, for messages"""
    observations: NDArray[np.floating]
    """(N, S)"""
    actions: NDArray[np.floating]
    """(N, A)"""
    episodes: NDArray[np.int64]
    """(N,) number of each row's episode, as recorded, where files do not share a number"""
    observation_names: tuple[str, ...]
    action_names: tuple[str, ...]
    rewards: NDArray[np.floating] | None = None
    """(N,)"""
    terminations: NDArray[np.bool_] | None = None
    """(N,) the task ended there"""
    truncations: NDArray[np.bool_] | None = None
    """(N,) the recording was cut there"""
    times: NDArray[np.float64] | None = None
    """(N,) seconds"""
    next_observations: NDArray[np.floating] | None = None
    """(N, S); a row leads to it, and so to the next one of its episode, or the episode is cut there
    (`breaks`); without it, a row leads to the next one of its episode"""
    pieces: NDArray[np.int64] | None = None
    """(N,) numbers that change where recorded episodes were split; each piece is an episode"""
    notes: tuple[str, ...] = ()
    """what the reader has to say"""
    is_numbered: bool = False
    """whether the numbers of episodes are recorded, and not counted"""
    is_ambiguous: bool = False
    """whether episodes of several files had the same recorded number, and got others"""

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def starts(self) -> NDArray[np.int64]:
        """The first row of every episode: of each run of rows with the same number and piece."""
        if len(self) == 0:
            return np.zeros(0, np.int64)
        changes = np.diff(self.episodes) != 0
        if self.pieces is not None:
            changes |= np.diff(self.pieces) != 0
        return np.append(0, np.flatnonzero(changes) + 1).astype(np.int64)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Rows of every episode."""
        return np.diff(self.starts, append=len(self))

    @property
    def ends(self) -> NDArray[np.int64]:
        """The last row of every episode."""
        return self.starts + self.lengths - 1

    @property
    def breaks(self) -> NDArray[np.bool_]:
        """(N,) rows whose next observation is not that of the next row of their episode."""
        found = np.zeros(len(self), np.bool_)
        if self.next_observations is None or len(self) < 2:
            return found
        rows = self.observations[1:].astype(np.float64)
        finite = np.where(np.isfinite(rows), rows, 0.0)
        low, high = np.quantile(finite, (0.05, 0.95), axis=0)  # outliers do not widen it
        differences = np.abs(self.next_observations[:-1].astype(np.float64) - rows)
        found[:-1] = (differences > ROUNDED * np.abs(rows) + SAME * (high - low)).any(axis=1)
        found[self.ends] = False
        return found

    @property
    def is_one_hot(self) -> bool:
        """Whether every action is a vector of zeros with a single 1."""
        ones = (self.actions == 1.0).sum(axis=1)
        several = self.actions.shape[1] > 1 and len(self) > 0
        return bool(several and (ones == 1).all() and (self.actions != 0.0).sum() == len(self))

    def flagged(self, name: Literal["terminations", "truncations"]) -> NDArray[np.bool_]:
        """Those flags; False where none are recorded."""
        flags: NDArray[np.bool_] | None = getattr(self, name)
        return np.zeros(len(self), np.bool_) if flags is None else flags

    def rows(self, kept: NDArray[np.bool_]) -> Log:
        """The rows of a mask (N,)."""
        chosen: dict[str, Any] = {
            field.name: value[kept]
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray)
        }
        return dataclasses.replace(self, **chosen)

    def without(self, episodes: Collection[int]) -> Log:
        """Without the episodes of these numbers. Raises LogError for numbers that none has."""
        if self.is_ambiguous:
            raise LogError(
                f"{self.of}: episodes of several files have the same number, so that numbers do "
                f"not say which of them to leave out ({sorted(episodes)}): import those files alone"
            )
        unknown = sorted(set(episodes) - set(self.episodes.tolist()))
        if unknown:
            raise LogError(f"{self.of} has no episodes {unknown}, so they cannot be left out")
        return self.rows(~np.isin(self.episodes, list(episodes)))

    def split(self, after: NDArray[np.bool_]) -> Log:
        """With another piece of an episode beginning after each row of a mask (N,).

        Episodes are cut there: the rows are truncated, where no flag says that they are terminated.
        """
        if not after.any():
            return self
        begins = np.concatenate([[False], after[:-1]])
        begins[self.starts] = True
        cut = after & ~self.flagged("terminations")
        truncations = self.flagged("truncations") | cut
        return dataclasses.replace(self, pieces=np.cumsum(begins) - 1, truncations=truncations)

    def cut(self) -> Log:
        """With episodes that end at `breaks`, and a note of them."""
        breaks = self.breaks
        if not breaks.any():
            return self
        few = breaks.sum() < 0.5 * (len(self) - len(self.starts))
        note = (
            f"{int(breaks.sum())} of {len(self)} rows lead to another observation than that of "
            "the row after them, by their next observations: episodes are cut there. "
        )
        note += (
            "Critics learn more of whole episodes"
            if few
            else "Critics learn more of whole episodes: if rows are in another order, sort them by "
            "episode and time; if next observations have fewer digits, record both alike"
        )
        return dataclasses.replace(self.split(breaks), notes=(*self.notes, note))


def episodes_of(log: Log, ends: Ends = "truncated") -> Iterator[EpisodeBuffer]:
    """Every episode with at least one transition, for Minari.

    Without next observations an episode of T rows has T - 1 transitions: its last action leads
    nowhere. Where that row is terminated it is kept, followed by its own observation, because
    nothing is expected after a termination.
    """
    terminated, truncated = log.flagged("terminations"), log.flagged("truncations")
    rewards = np.zeros(len(log)) if log.rewards is None else log.rewards
    for start, length in zip(log.starts, log.lengths, strict=True):
        last = int(start + length - 1)
        over = bool(terminated[last]) or (ends == "terminated" and not truncated[last])
        steps = int(length)
        observations = log.observations[start : start + length]
        if log.next_observations is not None:
            observations = np.concatenate([observations, log.next_observations[last : last + 1]])
        elif over:
            observations = np.concatenate([observations, observations[-1:]])
        else:
            steps -= 1
        if steps == 0:
            continue
        rows = slice(int(start), int(start) + steps)
        at_end = np.arange(steps) == steps - 1
        yield EpisodeBuffer(
            observations=observations,
            actions=log.actions[rows],
            rewards=rewards[rows],  # type: ignore[arg-type]
            terminations=at_end & over,  # type: ignore[arg-type]
            truncations=at_end & (not over),  # type: ignore[arg-type]
        )
