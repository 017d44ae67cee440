"""What is odd about data as a whole, though each number is valid: rows out of order, odd units."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST_ROWS = 10
LARGEST_NUMBER = 256
"""of environments that may take turns"""
ROWS_THAT_ARE_READ = 4096
SMALLEST, LARGEST = 1e-6, 1e15
"""of the largest reward: below, it vanishes beside 1; above, its square overflows float32"""
ADVICE = "Pass the rows of one environment after those of the other, in the order of their steps"


def doubts(
    states: NDArray[Any],
    rewards: NDArray[Any],
    episode_starts: NDArray[np.int64],
    **flags: NDArray[np.bool_],
) -> Iterator[str]:
    """One message for each thing that is odd: states (N + E, S), rewards (N,), starts (E,).

    `flags` (N,) are those of which only an episode's last step may have one, by name.
    """
    for name, flag in flags.items():
        inside = np.setdiff1d(np.flatnonzero(flag), np.append(episode_starts[1:], len(flag)) - 1)
        if len(inside) > 0:
            episode = int(np.searchsorted(episode_starts, inside[0], side="right")) - 1
            yield (
                f"{len(inside)} {name} are inside an episode, first in episode {episode}, step "
                f"{inside[0] - episode_starts[episode]}: the episode continues after them. "
                "Split the episode there, or unset the flags"
            )
    ends = np.append(episode_starts[1:], len(rewards)) + 1 + np.arange(len(episode_starts))
    problem = turns(states, ends)
    if problem is not None:
        yield problem
    largest = max(abs(float(rewards.min())), abs(float(rewards.max())))
    if 0.0 < largest < SMALLEST or largest > LARGEST:
        yield (
            f"the largest reward is {largest:.3g}: agents with unscaled rewards "
            f"(reward_tuning='none') expect {SMALLEST:g} to {LARGEST:g}. Change their unit"
        )


def broken_chain(
    observations: NDArray[Any], next_observations: NDArray[Any], told: NDArray[np.bool_]
) -> str | None:
    """What is wrong with N rows of which most do not lead to the next one, if anything is.

    `told` (N,) are the rows that are flagged as an end.
    """
    n = len(told)
    free = np.flatnonzero(~told[:-1])
    if n < FEWEST_ROWS or len(free) == 0:
        return None
    breaks = (next_observations[free] != observations[free + 1]).any(axis=1)
    if breaks.sum() <= len(free) / 2:
        return None
    text = (
        f"{breaks.sum()} of {n} transitions do not lead to the next row and are not flagged as an "
        "end, so that most episodes have one step"
    )
    for number in range(2, min(LARGEST_NUMBER, n - 1) + 1):
        rows = free[free + number < n]
        if len(rows) == 0:
            break
        fits = (next_observations[rows] == observations[rows + number]).all(axis=1)
        if fits.mean() > 0.5:
            return f"{text}: rows of {number} environments take turns. {ADVICE}"
    return f"{text}: rows are shuffled. Their transitions are right, returns and lengths are not"


def turns(states: NDArray[Any], ends: NDArray[np.int64]) -> str | None:
    """What is wrong where environments seem to take turns in the longest episode, if they do.

    `states` (rows, S) are all observations, `ends` (E,) the row behind each episode's last one. k
    environments that take turns show as distances that are large from row to row, small over k
    rows, and grow over 2 k rows; a gait of period k returns to where it was instead.
    """
    starts = np.append(0, ends[:-1])
    longest = int(np.argmax(ends - starts))
    rows = states[starts[longest] : min(ends[longest], starts[longest] + ROWS_THAT_ARE_READ)]
    values = np.asarray(rows, dtype=np.float64)
    if len(values) < 4 * FEWEST_ROWS or not np.isfinite(values).all():
        return None
    deviation = values.std(axis=0)
    moving = deviation > 1e-6 * np.abs(values).max(axis=0)
    if not moving.any():
        return None
    values = values[:, moving] / deviation[moving]
    near = _distance(values, 1)
    if near < 0.1:  # smooth from row to row
        return None
    for number in range(2, min(LARGEST_NUMBER, len(values) // FEWEST_ROWS) + 1):
        apart = _distance(values, number)
        if apart < 0.1 * near and 1.5 * apart < _distance(values, 2 * number) < near:
            return (
                f"observations change less over {number} steps than over one: rows of {number} "
                f"environments seem to take turns in one episode. {ADVICE}"
            )
    return None


def _distance(values: NDArray[np.float64], lag: int) -> float:
    """Mean square of the change over so many rows."""
    return float(((values[lag:] - values[:-lag]) ** 2).mean())
