"""Statistics of a few runs on several tasks (Agarwal et al. 2021, arXiv 2108.13264).

Scores come as one array per task, with one number per run; tasks may have different numbers of
runs. Intervals resample runs within each task (a bootstrap stratified by task).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qgpo.envs.play.intervals import success_interval

Scores = NDArray[np.float64]
Tasks = Sequence[ArrayLike]
"""the scores (R_i,) of the runs on each task"""
Statistic = Callable[[Sequence[Scores]], Any]
"""a number, or an array of numbers, of the scores of all tasks"""
RESAMPLES = 10_000


def as_tasks(tasks: Tasks) -> list[Scores]:
    """Arrays (R_i,), one per task. Raises ValueError where one is empty or not finite."""
    arrays = [np.asarray(task, dtype=np.float64) for task in tasks]
    if not arrays:
        raise ValueError("no tasks, expected at least one array of scores")
    for i, array in enumerate(arrays):
        if array.ndim != 1 or len(array) == 0 or not np.isfinite(array).all():
            raise ValueError(
                f"task {i} has scores {array}, expected a finite number for each of its runs "
                "(leave out runs that are missing)"
            )
    return arrays


def mean(tasks: Tasks) -> float:
    """Mean over all runs of all tasks."""
    return float(np.concatenate(as_tasks(tasks)).mean())


def iqm(tasks: Tasks) -> float:
    """Interquartile mean: of all runs of all tasks, without the lowest and highest quarter.

    A quarter is rounded down to whole runs, so that up to three runs give their mean.
    """
    scores = np.sort(np.concatenate(as_tasks(tasks)))
    cut = len(scores) // 4
    return float(scores[cut : len(scores) - cut].mean())


def stratified_bootstrap(
    tasks: Tasks,
    statistic: Statistic = iqm,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Percentile interval of a statistic, runs drawn with replacement within each task.

    Two numbers or, of a statistic that is an array, two arrays. With one run per task the interval
    has no width: it does not contain what differs between seeds.
    """
    drawn = _resampled(as_tasks(tasks), resamples, seed)
    values = [statistic([task[i] for task in drawn]) for i in range(resamples)]
    return _percentiles(values, confidence)


def _resampled(tasks: Sequence[Scores], resamples: int, seed: int) -> list[Scores]:
    """Runs (resamples, R_i) of each task, drawn with replacement within it."""
    rows = _rows(tuple(map(len, tasks)), resamples, seed)
    return [task[drawn] for task, drawn in zip(tasks, rows, strict=True)]


@lru_cache(maxsize=32)
def _rows(lengths: tuple[int, ...], resamples: int, seed: int) -> list[NDArray[np.int64]]:
    """Which runs are drawn, (resamples, R_i) for each task; a report asks for few kinds often."""
    rng = np.random.default_rng(seed)
    rows = [np.empty((resamples, n), np.int64) for n in lengths]
    for i in range(resamples):
        for row, n in zip(rows, lengths, strict=True):
            row[i] = rng.integers(n, size=n)
    return rows


def hierarchical_bootstrap(
    seeds: Tasks, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean return of a new training: seeds are drawn, then episodes.

    `seeds` has the returns of each training's episodes; each training counts the same.
    """
    arrays = as_tasks(seeds)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(arrays), size=(resamples, len(arrays)))
    means = np.empty(drawn.shape)
    for i, returns in enumerate(arrays):
        here = drawn == i
        episodes = rng.integers(len(returns), size=(int(here.sum()), len(returns)))
        means[here] = returns[episodes].mean(axis=1)
    return _percentiles(means.mean(axis=1), confidence)


def interval_of(seeds: Tasks, by_success: bool) -> tuple[float, float]:
    """Interval of the mean of a new training, from what each training's episodes gave.

    These are returns, or 100 for each success and 0 for each failure (`by_success`). Where all
    episodes of all trainings succeed, or none, the bootstrap claims certainty; so an interval of
    successes is the smallest that contains both the bootstrap's and Wilson's of all episodes.
    """
    low, high = hierarchical_bootstrap(seeds)
    if by_success:
        least, most = success_interval(np.concatenate(as_tasks(seeds)) > 0.0)
        low, high = min(low, least), max(high, most)
    return low, high


def probability_of_improvement(first: Tasks, second: Tasks) -> float:
    """P(a run of `first` beats one of `second`), averaged over tasks; a tie counts half.

    Per task it is the Mann-Whitney statistic over all pairs of runs.
    """
    pairs = zip(as_tasks(first), as_tasks(second), strict=True)
    return float(np.mean([_wins(a, b) for a, b in pairs]))


def improvement_interval(
    first: Tasks, second: Tasks, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of `probability_of_improvement`; both sides are resampled."""
    drawn = _resampled([*as_tasks(first), *as_tasks(second)], resamples, seed)
    pairs = zip(drawn[: len(first)], drawn[len(first) :], strict=True)
    return _percentiles(np.mean([_wins(a, b) for a, b in pairs], axis=0), confidence)


def _wins(first: Scores, second: Scores) -> Scores:
    """Share of all pairs of runs (..., R) in which the first is better; a tie counts half."""
    columns = np.moveaxis(first, -1, 0)[..., None]
    twice = sum((1.0 + np.sign(column - second)).sum(axis=-1) for column in columns)
    return np.asarray(twice / (2 * first.shape[-1] * second.shape[-1]))


def loss_of_choice(returns: ArrayLike, chosen: int, halves: int = 1_000, seed: int = 0) -> float:
    """Mean return that option `chosen` loses to the best option: a lower estimate.

    The best of several measured means is too high by chance. So the best option of `returns`
    (options, episodes) is determined in a random half of the episodes and compared in the other
    half; the result is the mean over `halves` divisions. It may be negative, as the best option of
    one half need not be the best of all.
    """
    values = np.stack(as_tasks(list(np.asarray(returns, dtype=np.float64))))
    if min(values.shape) < 2:
        raise ValueError(
            f"returns of shape {values.shape}, expected (options, episodes), 2 or more"
        )
    if not 0 <= chosen < len(values):
        raise ValueError(f"chosen={chosen}, expected an option from 0 to {len(values) - 1}")
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(values.shape[1]) for _ in range(halves)])
    middle = (values.shape[1] + 1) // 2
    here, there = (values[:, part].mean(axis=2) for part in np.split(orders, [middle], axis=1))
    best = here.argmax(axis=0)
    return float(np.mean(np.take_along_axis(there, best[None], axis=0)[0] - there[chosen]))


def performance_profile(tasks: Tasks, thresholds: ArrayLike) -> Scores:
    """Share of runs above each threshold (K,), averaged over tasks: (K,)."""
    shares = [np.greater.outer(task, thresholds).mean(axis=0) for task in as_tasks(tasks)]
    return np.asarray(np.mean(shares, axis=0))


def _percentiles(values: Sequence[Any] | Scores, confidence: float) -> tuple[Any, Any]:
    """Of numbers (N,) or arrays (N, K), the two ends of the central interval: scalars or (K,)."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence}, expected between 0 and 1")
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(values, [tail, 100.0 - tail], axis=0)
    return low, high
