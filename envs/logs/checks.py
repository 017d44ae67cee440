"""What is wrong with a recording, said before anything is learned from it.

A finding is bad where the dataset would be wrong. It is a doubt where only its owner can know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgpo.envs.data.doubts import at_limit, limit_text
from qgpo.envs.data.jumps import jump_doubts
from qgpo.envs.logs.columns import listed
from qgpo.envs.logs.log import Ends, Log
from qgpo.envs.store.checking import Finding
from qgpo.envs.text import counted

GAP = 1.5
"""times the usual step, from which on time stamps have a gap: at least one row is missing"""
JITTER = 0.2
"""part of the usual step by which steps differ usually, from which on it is said"""
CLIPPED = 0.01
"""part of a column's rows at its largest or smallest value, from which on it looks clipped"""
FEWEST = 10
"""rows, or episodes, of which the same is said"""
ALL_BUT_FEW = 0.95
"""part of the rewards"""
REPEATED = 0.2
"""part of the rows whose observation is the one before, from which on it is said"""


def check_log(log: Log, ends: Ends = "truncated") -> list[Finding]:
    """Everything that is known of a recording: its size, values, columns, time, actions and ends.

    `ends` is what the end of an episode without a flag is taken for.
    """
    found = [_size(log)]
    if len(log) > 0:
        with np.errstate(over="ignore"):  # absurdly large numbers are named by `_values`
            found += [*_values(log), *_columns(log), *_time(log), *_actions(log)]
            found += [*_ends(log, ends), *_rewards(log)]
    return [*found, *(Finding("note", None, note) for note in log.notes)]


def gaps(log: Log) -> NDArray[np.bool_]:
    """(N,) rows after which a row of the same episode is missing, by the time stamps."""
    after = np.zeros(len(log), np.bool_)
    steps, rows = _steps(log)
    if len(steps) > 0 and (usual := float(np.median(steps))) > 0.0:
        after[rows[steps > GAP * usual]] = True
    return after


def _steps(log: Log) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Differences of time within episodes, and the rows from which they lead on."""
    if log.times is None:
        return np.zeros(0), np.zeros(0, np.int64)
    rows = np.setdiff1d(np.arange(len(log)), log.ends)
    return log.times[rows + 1] - log.times[rows], rows


def _where(log: Log, row: int) -> str:
    """Episode and step of a row."""
    if log.is_ambiguous:
        return f"row {row} of all files"
    k = int(np.searchsorted(log.starts, row, side="right")) - 1
    return f"episode {log.episodes[row]}, row {row - log.starts[k]}"


def _size(log: Log) -> Finding:
    text = (
        f"{len(log)} rows in {len(log.starts)} episodes, observations "
        f"{log.observations.shape[1]}, actions {log.actions.shape[1]}"
    )
    if len(log) == 0:
        return Finding("size", False, f"{text}: it is empty")
    recorded = dataclasses.replace(log, pieces=None).starts
    numbers = log.episodes[recorded]
    if len(np.unique(numbers)) < len(numbers):
        values, counts = np.unique(numbers, return_counts=True)
        return Finding(
            "size",
            False,
            f"{text}; {int((counts > 1).sum())} episode numbers come back after other episodes, "
            f"first {values[counts > 1][0]}: rows of several episodes take turns, or numbers count "
            "anew in each file. Sort the rows by episode and time",
        )
    several = log.next_observations is None  # else each row is a transition
    if several and len(log.starts) > 0.5 * len(log) and len(log) >= FEWEST:
        return Finding("size", False, f"{text}: most episodes have one row. Is that the column?")
    return Finding("size", True, text)


def _values(log: Log) -> Iterator[Finding]:
    parts: list[tuple[str, NDArray[Any], Sequence[str]]] = [
        ("observations", log.observations, log.observation_names),
        ("actions", log.actions, log.action_names),
    ]
    if log.rewards is not None:
        parts.append(("rewards", log.rewards[:, None], ("reward",)))
    if log.next_observations is not None:
        parts.append(("next observations", log.next_observations, log.observation_names))
    good = True
    for what, array, names in parts:
        wrong = ~np.isfinite(array.astype(np.float32))
        if wrong.any():
            good = False
            said = "NaN or infinite values"
            if np.isfinite(array[wrong].astype(np.float64)).all():
                most = float(np.finfo(np.float32).max)
                said = f"numbers beyond {most:.2g}, which float32 does not hold,"
            rows = np.flatnonzero(wrong.any(axis=1))
            columns = [names[int(k)] for k in np.flatnonzero(wrong.any(axis=0))]
            odd = np.unique(log.episodes[rows])
            leave_out = (
                "import the files one by one, and leave these episodes out (--skip-episodes)"
                if log.is_ambiguous
                else f"leave these episodes out (--skip-episodes {' '.join(map(str, odd[:8]))}"
                f"{' …' if len(odd) > 8 else ''})"
            )
            yield Finding(
                "values",
                False,
                f"{what} have {said} in {len(rows)} rows of {len(odd)} episodes, "
                f"first in {_where(log, int(rows[0]))}, columns {listed(columns)}: repair them, or "
                f"{leave_out}",
            )
    if good:
        yield Finding("values", True, "all numbers are finite")


def _columns(log: Log) -> Iterator[Finding]:
    """Columns that say nothing, and sensors that are slower than the rows."""
    for what, array, names in (
        ("observations", log.observations, log.observation_names),
        ("actions", log.actions, log.action_names),
    ):
        spread = np.asarray(np.ptp(array, axis=0))
        constant = [name for name, one in zip(names, spread, strict=True) if one == 0]
        if constant:
            text = f"{what} with one value in all rows: {listed(constant)}"
            if what == "actions":
                text += ". An agent cannot learn what they do"
            yield Finding("columns", None, text)
    inside = np.setdiff1d(np.arange(len(log)), log.ends)
    if len(inside) >= FEWEST:
        same = (log.observations[inside + 1] == log.observations[inside]).all(axis=1)
        if same.mean() > REPEATED:
            yield Finding(
                "columns",
                None,
                f"{same.mean():.0%} of the rows repeat the observation before: sensors are slower "
                "than the rows. Keep one row per new observation",
            )


def _time(log: Log) -> Iterator[Finding]:
    steps, rows = _steps(log)
    if log.times is None:
        yield Finding("time", None, "no time stamps: gaps cannot be seen (--time names a column)")
        return
    if not np.isfinite(log.times).all():
        row = int(np.flatnonzero(~np.isfinite(log.times))[0])
        yield Finding("time", False, f"no time stamp in {_where(log, row)}")
        return
    if len(steps) == 0:
        return
    back = np.flatnonzero(steps < 0.0)
    if len(back) > 0:
        worst = back[np.argmin(steps[back])]
        yield Finding(
            "time",
            False,
            f"time goes backward {len(back)} times, by {-steps[worst]:.4g} s at most, in "
            f"{_where(log, int(rows[worst]))}: sort the rows, or begin another episode there",
        )
        return
    usual = float(np.median(steps))
    still = int((steps == 0.0).sum())
    if usual == 0.0 or still > 0:
        yield Finding(
            "time",
            usual > 0.0 and None,
            f"{still} rows have the time of the row before: recorded twice, or stamps too coarse",
        )
        if usual == 0.0:
            return
    jumps = np.flatnonzero(steps > GAP * usual)
    if len(jumps) > 0:
        worst = jumps[np.argmax(steps[jumps])]
        yield Finding(
            "time",
            False,
            f"{len(jumps)} gaps: rows are {usual:.4g} s apart, {steps[worst]:.4g} s at most, in "
            f"{_where(log, int(rows[worst]))}. The action before a gap did not lead to the row "
            "after it: end episodes there with --split-gaps",
        )
        return
    jitter = float(np.median(np.abs(steps - usual))) / usual
    text = f"rows are {usual:.4g} s apart ({1.0 / usual:.4g} per second)"
    if jitter > JITTER:
        text += f", half of them off by {jitter:.0%} and more"
    yield Finding("time", None if jitter > JITTER else True, text)


def _actions(log: Log) -> Iterator[Finding]:
    """Discrete actions, and columns that look clipped."""
    whole = np.array_equal(log.actions, np.round(log.actions))
    if whole and log.actions.shape[1] == 1 and len(np.unique(log.actions)) <= 64:
        values = np.unique(log.actions)
        if len(values) > 2 or len(log) >= FEWEST:
            yield Finding(
                "actions",
                None,
                f"actions are {len(values)} whole numbers ({values[0]:g} to {values[-1]:g}), "
                "numbers of choices perhaps. Agents here act in continuous spaces: --one-hot makes "
                "a vector of each",
            )
            return
    if log.is_one_hot:
        yield Finding("actions", True, f"one of {log.actions.shape[1]} choices in every row")
        return
    low, high = log.actions.min(axis=0), log.actions.max(axis=0)
    odd = []
    for k, name in enumerate(log.action_names):
        column = log.actions[:, k]
        share = max(float((column == low[k]).mean()), float((column == high[k]).mean()))
        if low[k] < high[k] and share >= CLIPPED and share * len(log) >= FEWEST:
            odd.append((share, f"{name} ({share:.0%})"))
    if odd:
        text = ", ".join(said for _, said in sorted(odd, reverse=True)[:8])
        yield Finding(
            "actions",
            None,
            f"rows at the end of an action's range: {text}. They were clipped: record what was "
            "executed, not what was asked for",
        )
    else:
        spread = f"{float(low.min()):.4g} to {float(high.max()):.4g}"
        yield Finding("actions", True, f"{spread}, no column looks clipped")


def _ends(log: Log, ends: Ends) -> Iterator[Finding]:
    terminated, truncated = log.flagged("terminations"), log.flagged("truncations")
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        inside = np.flatnonzero(flag & ~np.isin(np.arange(len(log)), log.ends))
        if len(inside) > 0:
            yield Finding(
                "ends",
                False,
                f"{len(inside)} rows are {name} and others of their episode follow, first in "
                f"{_where(log, int(inside[0]))}: correct the flags, or let them end "
                "episodes (--episode '')",
            )
            return
    last = log.ends
    counts = int(terminated[last].sum()), int((truncated & ~terminated)[last].sum())
    neither = len(last) - sum(counts)
    text = f"{counted(counts[0], 'episode')} terminated, {counts[1]} truncated"
    if neither:
        text += (
            f", {neither} with neither flag: taken as {ends} (--ends). Terminated: the task was "
            "over, nothing comes after. Truncated: the recording stopped, the task went on"
        )
    count = at_limit(log.lengths, terminated[last])
    if count > 0:
        yield Finding(
            "ends",
            None,
            f"{limit_text(log.lengths, terminated[last], count, 'rows')}: a time limit perhaps, "
            "which is a truncation. Make two columns of the flag: --truncation names the one that "
            "is true there, --termination the other",
        )
    alike = counts[0] == len(last) >= FEWEST
    if alike:
        text += (
            ". Every episode ends for good: right if none was cut by a time limit, the end of a "
            "shift or a person"
        )
    yield Finding("ends", None if neither or alike else True, text)
    yield from _worth(log, terminated & np.isin(np.arange(len(log)), last))
    finite = np.isfinite(log.observations.astype(np.float64)).all()
    if log.next_observations is None and finite:
        for doubt in jump_doubts(log.observations, np.isin(np.arange(len(log)), last)):
            yield Finding("ends", None, doubt)


def _worth(log: Log, terminated: NDArray[np.bool_]) -> Iterator[Finding]:
    """Doubt terminations after which nothing is paid, where all else costs."""
    if log.rewards is None or not terminated.any():
        return
    before, at_end = log.rewards[~terminated], log.rewards[terminated]
    if len(before) and np.mean(before < 0.0) >= ALL_BUT_FEW and at_end.mean() < 0.0:
        yield Finding(
            "ends",
            None,
            "nearly all rewards are below 0, and 0 is the value after a termination: to the agent "
            "ending early is a gain. Right if the task is to end, such as to arrive; where "
            "terminations are failures, subtract a penalty from their rewards",
        )


def _rewards(log: Log) -> Iterator[Finding]:
    if log.rewards is None:
        yield Finding("rewards", None, "none: only imitation (BC) can learn from these data")
    elif np.isfinite(log.rewards.astype(np.float64)).all() and np.ptp(log.rewards) == 0:
        yield Finding(
            "rewards",
            None,
            f"all are {float(log.rewards[0]):g}: they say nothing about which actions are good, "
            "unless episodes differ in length",
        )
    else:
        sums = np.add.reduceat(log.rewards.astype(np.float64), log.starts)
        yield Finding("rewards", True, f"returns {sums.min():.4g} to {sums.max():.4g}")
