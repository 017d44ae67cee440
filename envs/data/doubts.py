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
SAME_ENDS = 5
"""terminated episodes of one length, from which on a time limit is likely"""
LIMIT_SHARE, SHORTEST_LIMIT = 0.1, 10
"""and which part of the terminated episodes they are where others are shorter; steps of a limit"""
ADVICE = "Pass the rows of one environment after those of the other, in the order of their steps"


def doubts(
    states: NDArray[Any],
    rewards: NDArray[Any],
    episode_starts: NDArray[np.int64],
    *,
    terminations: NDArray[np.bool_] | None = None,
    truncations: NDArray[np.bool_] | None = None,
    doubted: bool = False,
    imitation: bool = False,
) -> Iterator[str]:
    """One message for each thing that is odd: states (N + E, S), rewards (N,), starts (E,).

    `terminations` and `truncations` (N,) are given where only an episode's last step may have one.
    Nothing follows about the lengths of episodes whose rows or flags are `doubted` already, nor
    about rewards of data that are for `imitation` alone.
    """
    for name, flag in (("terminations", terminations), ("truncations", truncations)):
        if flag is None:
            continue
        inside = np.setdiff1d(np.flatnonzero(flag), np.append(episode_starts[1:], len(flag)) - 1)
        if len(inside) > 0:
            episode = int(np.searchsorted(episode_starts, inside[0], side="right")) - 1
            yield (
                f"{len(inside)} {name} are inside an episode, first in episode {episode}, step "
                f"{inside[0] - episode_starts[episode]}: the episode continues after them. "
                "Split the episode there, or unset the flags"
            )
    if terminations is not None and truncations is not None and not doubted:
        yield from _odd_ends(terminations, truncations, episode_starts)
    lengths = np.diff(episode_starts, append=len(rewards))
    if len(rewards) >= FEWEST_ROWS and not doubted and (lengths == 1).mean() > 0.5:
        yield (
            f"{(lengths == 1).sum()} of {len(lengths)} episodes have one step, which is right only "
            "where each decision stands alone. Flag the last step of an episode, and no other one"
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
    same = len(rewards) >= FEWEST_ROWS and float(rewards.min()) == float(rewards.max())
    ended = terminations is not None and bool(np.any(terminations))
    if same and not imitation and (largest == 0.0 or not ended):  # else an end makes a difference
        yield (
            f"all {len(rewards)} rewards are {float(rewards[0]):g}: there is nothing to learn from "
            "them, only actions to imitate (BC)"
        )


def _odd_ends(
    terminations: NDArray[np.bool_],
    truncations: NDArray[np.bool_],
    episode_starts: NDArray[np.int64],
) -> Iterator[str]:
    """Of flags (N,): one column for both, and terminations that look like a time limit."""
    both, either = (terminations & truncations).sum(), (terminations | truncations).sum()
    if both > 1 and both > either / 2:
        yield (
            f"{both} of {either} flagged steps are terminated and truncated, and taken as "
            "terminated. Did the task end there (terminations), or only the recording, as by a "
            "time limit (truncations)? Unset the other flag"
        )
        return
    last = np.append(episode_starts[1:], len(terminations)) - 1
    lengths, terminated = last - episode_starts + 1, terminations[last]
    count = at_limit(lengths, terminated)
    if count > 0:
        limit = int(lengths.max() if count < terminated.sum() else lengths[terminated][0])
        yield (
            f"{limit_text(lengths, terminated, count, 'steps')}, as if a time limit ended them. "
            "That is a truncation: a critic expects nothing after a termination. Where one flag "
            f"`done` holds both, pass truncations = done & (length == {limit}), with the length of "
            "each step's episode, and terminations = done & ~truncations"
        )


def at_limit(lengths: NDArray[np.int64], terminated: NDArray[np.bool_]) -> int:
    """How many of the terminated episodes (E,) a time limit seems to have ended.

    All of them, where all have one length. Else those that are as long as the longest one, where
    they stand out: SAME_ENDS and a LIMIT_SHARE at least, more than twice as many as those that are
    up to a tenth shorter, and more than the truncated ones of that length (which show that the
    recording tells a limit from an end).
    """
    own = lengths[terminated]
    if len(own) < SAME_ENDS:
        return 0
    if own[0] > 1 and (own == own[0]).all():
        return len(own)
    limit = int(lengths.max())
    count = int((own == limit).sum())
    near = int(((own >= 0.9 * limit - 1) & (own < limit)).sum())
    cut = int((lengths[~terminated] >= limit - 1).sum())  # their last row may be left out
    stands_out = count >= max(SAME_ENDS, LIMIT_SHARE * len(own)) and count > max(2 * near, cut)
    return count if stands_out and limit >= SHORTEST_LIMIT else 0


def limit_text(
    lengths: NDArray[np.int64], terminated: NDArray[np.bool_], count: int, unit: str
) -> str:
    """What `at_limit` counted, in numbers."""
    own = lengths[terminated]
    if count == len(own):
        return f"all {count} terminated episodes have {own[0]} {unit}"
    return (
        f"{count} of {len(own)} terminated episodes have exactly {lengths.max()} {unit}, as many "
        f"as the longest, and the others {own[own < lengths.max()].max()} at most"
    )


def flag_doubts(ends: NDArray[np.bool_]) -> Iterator[str]:
    """What is odd about the number of flagged rows (N,), whatever was recorded in them."""
    if len(ends) >= FEWEST_ROWS and ends.sum() > len(ends) / 2:
        yield (
            f"{ends.sum()} of {len(ends)} rows are flagged as an end, so that most episodes have "
            "one step. Are the flags inverted (pass ~flags)? Flag the last step of an episode, and "
            "no other one"
        )


def link_doubts(
    observations: NDArray[Any], next_observations: NDArray[Any], ends: NDArray[np.bool_]
) -> Iterator[str]:
    """What is odd about where N rows (N, S) lead; `ends` (N,) are flagged, the last row too."""
    problem = broken_chain(observations, next_observations, ends)
    if problem is not None:
        yield problem
        return
    following = np.roll(observations, -1, axis=0)
    links = (next_observations == following).all(axis=1)
    moves = (next_observations != observations).any(axis=1)  # else it says nothing
    flagged, leads_on = int(ends[:-1].sum()), (ends & links & moves)[:-1]
    breaks = (~ends & ~links)[:-1]
    for word, shifted in (
        ("late", leads_on[1:] & breaks[:-1]),
        ("early", leads_on[:-1] & breaks[1:]),
    ):
        if shifted.sum() > flagged / 2:
            yield (
                f"{shifted.sum()} of {flagged} steps that are flagged as an end lead to the next "
                f"row, and the step {'before' if word == 'late' else 'after'} them does not: the "
                f"flags seem to be one row {word}. Flag the last step of an episode"
            )
            return
    wrapped = int((ends & links & moves).sum())
    if wrapped > ends.sum() / 2:
        yield (
            f"the next observation of {wrapped} of {ends.sum()} steps that end an episode is the "
            "first one of the next episode, as np.roll makes it. It is right only where recording "
            "went on without a reset; where it was not recorded, pass next_observations='shift'"
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
    known = {
        0: "next_observations are the observations themselves. Pass those after the action",
        -1: "next_observations are those of the row before. Pass those after the action",
        **{
            number: f"rows of {number} environments take turns. {ADVICE}"
            for number in range(2, min(LARGEST_NUMBER, n - 1) + 1)
        },
    }
    for offset, cause in known.items():
        rows = free[(free + offset >= 0) & (free + offset < n)]
        if len(rows) > 0:
            fits = (next_observations[rows] == observations[rows + offset]).all(axis=1)
            if fits.mean() > 0.5:
                return f"{text}: {cause}"
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
