"""Jumps from row to row, which show where episodes end although no next observations are given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgpo.envs.data.doubts import turns

FEWEST_ROWS = 100
"""of which anything is said"""
FEWEST_ENDS = 5
"""flagged ends inside the rows, of which it is said that they are one row off"""
ROWS_THAT_ARE_READ = 50_000
CLIPPED = 3.0
"""spreads, so that one column cannot outweigh all others"""
AS_FAR_AS_RANDOM = (0.9, 1.1)
"""median step of shuffled rows, in that between random rows"""
USUAL = 0.95
"""quantile of the steps, above which one is unusual"""
FEWEST_JUMPS = 3
MOST_JUMPS = 0.1
"""part of the rows: where more jump, that is how the task moves"""
FAR, BESIDE, HALF_WAY = 4.0, 1.5, 0.5
"""a jump is longer than so many upper quartiles of the steps, so many times both steps beside it,
and this part of the distance between random rows"""

SHUFFLED = (
    "observations change from one row to the next as much as between any two rows, as if rows were "
    "shuffled. Pass the rows of each episode in the order of their steps; with shuffled rows, pass "
    "the next observations that were recorded"
)


def jump_doubts(observations: NDArray[Any], ends: NDArray[np.bool_]) -> Iterator[str]:
    """What is odd about the order of N rows (N, S), by how far each is from the next.

    `ends` (N,) are flagged as an end, the last row too. Of many rows the first ones are read.
    Nothing can be said of episodes that begin where the one before ended.
    """
    n = min(len(ends), ROWS_THAT_ARE_READ)
    values = _in_spreads(np.asarray(observations[:n], np.float64))
    if n < FEWEST_ROWS or values.shape[1] == 0:
        return
    flagged = np.flatnonzero(ends[: n - 1])
    inner: NDArray[np.bool_] = np.ones(n - 1, np.bool_)
    for beside in (-1, 0, 1):
        inner[np.clip(flagged + beside, 0, n - 2)] = False
    if inner.sum() < FEWEST_ROWS / 2:
        return
    changes = _changes(values[1:], values[:-1])
    steps = changes.mean(axis=1)
    order = np.random.default_rng(0).permutation(n)
    between = _changes(values[order[1:]], values[order[:-1]])
    low, high = (share * np.median(between.mean(axis=1)) for share in AS_FAR_AS_RANDOM)
    if low <= np.median(steps[inner]) <= high:
        if turns(values, np.append(flagged + 1, n)) is None:  # else that is said, of the episodes
            yield SHUFFLED
        return
    yield from _one_row_off(steps, flagged, float(np.quantile(steps[inner], USUAL)))
    jumps = _jumps(changes, between) if len(flagged) == 0 else flagged[:0]
    if FEWEST_JUMPS <= len(jumps) <= MOST_JUMPS * n:
        yield (
            f"no step of {len(ends)} rows is flagged as an end, and observations jump after "
            f"{len(jumps)} rows, first after row {jumps[0]}, as if an episode ended there. "
            "Flag the last step of every episode: terminations where the task was over, "
            "truncations where only the recording or a time limit ended it"
        )


def _one_row_off(
    steps: NDArray[np.float64], flagged: NDArray[np.int64], usual: float
) -> Iterator[str]:
    """Flags that are one row late or early: the jump is before or after the flagged rows."""
    at = flagged[(flagged > 0) & (flagged < len(steps) - 1)]
    if len(at) < FEWEST_ENDS:
        return
    for word, where in (("late", at - 1), ("early", at + 1)):
        jumps = (steps[where] > usual) & (steps[where] > BESIDE * steps[at])
        if jumps.mean() > 0.5:
            yield (
                f"observations jump {'into' if word == 'late' else 'after the row behind'} "
                f"{jumps.sum()} of {len(at)} rows that are flagged as an end, more than after "
                f"these rows themselves: the flags seem to be one row {word}. Flag the last step "
                "of an episode"
            )
            return


def _jumps(changes: NDArray[np.float64], between: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows behind which the slow half of the columns jumps, most of them as well as their mean.

    A blow or a limit moves few of them at once, and a fast task all of them for several rows.
    `changes` (N - 1, S) are those from row to row, `between` those of random rows.
    """
    quartile = np.quantile(changes, 0.75, axis=0)
    moving = np.flatnonzero(quartile > 0.0)  # others change by events, as a goal does
    slow = moving[np.argsort(quartile[moving])][: (len(moving) + 1) // 2]
    if len(slow) == 0:
        return np.zeros(0, np.int64)
    jumps: NDArray[np.bool_] = np.ones(len(changes), np.bool_)
    for middle in (_mean, _lower_median):
        steps, usual = middle(changes[:, slow]), middle(between[:, slow])
        beside = np.maximum(np.append(0.0, steps[:-1]), np.append(steps[1:], 0.0))
        far = max(FAR * float(np.quantile(steps, 0.75)), HALF_WAY * float(np.median(usual)))
        jumps &= (steps > far) & (steps > BESIDE * beside)
    return np.flatnonzero(jumps)


def _mean(changes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(changes.mean(axis=1))


def _lower_median(changes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,): at least half of the columns change so much."""
    return np.asarray(np.quantile(changes, 0.5, axis=1, method="lower"))


def _in_spreads(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns in units of their spread, without those of one value and those with infinities.

    The spread is the quartiles' distance, and the standard deviation where that is 0.
    """
    low, high = np.quantile(values, (0.25, 0.75), axis=0)
    spread = np.where(high > low, high - low, values.std(axis=0))
    moving = np.isfinite(spread) & (spread > 1e-6 * np.abs(values).max(axis=0))
    scaled: NDArray[np.float64] = values[:, moving] / spread[moving]
    return scaled


def _changes(values: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Differences of rows (N, S), each clipped."""
    changes: NDArray[np.float64] = np.minimum(np.abs(values - others), CLIPPED)
    return changes
