"""Rows of transitions as one chain of states: what they must be, and next ones not recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgpo.envs.text import counted

Array = NDArray[np.float32]
Flags = NDArray[np.bool_]
SHIFT = "shift"
"""in place of next observations that were not recorded"""


def is_shift(of: str, next_observations: Any) -> bool:
    """Whether each next observation is that of the next row. Raises ValueError for other words."""
    if not isinstance(next_observations, str):
        return False
    if next_observations != SHIFT:
        raise ValueError(
            f"{of}: next_observations={next_observations!r}, expected an array, {SHIFT!r} or None"
        )
    return True


def check_columns(of: str, columns: dict[str, Array], n: int, finals: int) -> None:
    """Raise ValueError for other than n rows of finite numbers.

    Of observations there may be `finals` more: where no next ones are given, the last one of each
    of so many episodes.
    """
    for name, array in columns.items():
        rows = n + finals if name == "observations" else n
        if len(array) == rows:
            continue
        if array.ndim == 2 and array.shape[1] in (n, rows):
            raise ValueError(
                f"{of}: {name} has shape {array.shape}, expected ({rows}, dimensions): rows and "
                f"columns are exchanged, {name}.T exchanges them"
            )
        if name == "observations" and finals > 0:
            shift = (
                f", or next_observations={SHIFT!r} where they were not recorded: each is then the "
                "observation of the next row"
            )
            raise ValueError(
                f"{of}: observations has {len(array)} rows, expected {rows} for {n} transitions in "
                f"{counted(finals, 'episode')} (each episode's final observation included); or "
                f"pass next_observations{shift if len(array) == n else ''}"
            )
        expected = f"({rows}, dimensions)" if array.ndim == 2 else f"({rows},)"
        raise ValueError(f"{of}: {name} has shape {array.shape}, expected {expected}")
    states, following = columns["observations"], columns.get("next_observations")
    if following is not None and following.shape != states.shape:
        raise ValueError(
            f"{of}: next_observations has shape {following.shape}, expected {states.shape}"
        )
    _check_finite(of, columns)


def _check_finite(of: str, columns: dict[str, Array]) -> None:
    advice = (
        "Leave these rows out of all arrays, an episode then ends before them"
        if "next_observations" in columns
        else "Repair them, or leave their episodes out of all arrays"
    )
    for name, array in columns.items():
        wrong = np.argwhere(~np.isfinite(array))
        if len(wrong) > 0:
            column = f", column {wrong[0][1]}" if array.ndim == 2 else ""
            raise ValueError(
                f"{of}: {name} has NaN or infinite values in {len(np.unique(wrong[:, 0]))} of "
                f"{len(array)} rows, first in row {wrong[0][0]}{column}. {advice}"
            )


def shifted(
    of: str, columns: dict[str, Array], terminations: Flags, truncations: Flags, ends: Flags
) -> tuple[dict[str, Array], Flags, Flags]:
    """Columns with next observations, terminations and truncations, of rows that have a next one.

    The last row of an episode that was not terminated has none: the row before it is truncated.
    Nothing is expected after a terminated one, so its own observation follows it.
    """
    kept = terminations | ~ends
    if not kept.any():
        raise ValueError(
            f"{of}: no step leads to another row: every episode has one. Pass next_observations"
        )
    states = columns["observations"]
    following = np.roll(states, -1, axis=0)
    following[terminations] = states[terminations]
    truncations = truncations | (~ends & ~np.roll(kept, -1))
    rows = {name: array[kept] for name, array in columns.items()}
    rows["next_observations"] = following[kept]
    return rows, terminations[kept], truncations[kept]


def chained(observations: Array, next_observations: Array, ends: Flags) -> tuple[Array, Flags]:
    """All states (N + E, S), and the ends of episodes (N,), breaks of the chain included."""
    n = len(ends)
    ends = ends.copy()
    ends[:-1] |= (observations[1:] != next_observations[:-1]).any(axis=1)
    place = np.arange(n) + np.cumsum(np.concatenate([[False], ends[:-1]]))
    states = np.empty((n + int(ends.sum()), observations.shape[1]), np.float32)
    states[place] = observations
    states[place[ends] + 1] = next_observations[ends]
    return states, ends
