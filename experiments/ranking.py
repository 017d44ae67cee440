"""How well a critic ranks a state's actions, from returns that were played from each of them.

S states, M actions in each, R repetitions of every action. Returns have shape (S, M, R), values of
the critic (S, M). Only differences within a state count. The repetitions of a state's actions have
common random numbers: what repetition r adds to all actions of a state cancels.

Played returns are noisy. So

- `perfect_gains` selects an action by one half of the repetitions and scores it by the other half;
- the reliability of mean returns is the correlation of the two halves within states, stepped up to
  all repetitions by the formula of Spearman and Brown (1910): 2 r / (1 + r);
- a correlation is corrected for attenuation by division by the root of the reliability (Spearman
  1904). It estimates the correlation with returns without noise, and may exceed 1 by chance.

States are the unit of all intervals: they are resampled (percentile bootstrap).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Numbers = tuple[Array, Array, Array]
"""within each state (S,): covariance, variance of the values, variance of the returns"""
RESAMPLES = 2_000
MOST_SPLITS = 20
"""divisions of the repetitions into halves over which results are averaged"""
SAME = 1e-9
"""spread, relative to the largest value, up to which a state's numbers count as equal"""
SAME_Q = 1e-6
"""the same for a critic's values, which are float32"""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float | None
    """None where the states do not determine it"""
    interval: tuple[float, float] | None
    states: int
    """that it is of"""


@dataclass(frozen=True)
class Ranking:
    """What values of a state's actions are worth, against returns."""

    correlation: Estimate
    """Pearson's within a state, averaged over the states in which actions matter"""
    spearman: Estimate
    """the same of ranks"""
    reliability: Estimate
    """of the mean returns: the highest that correlation² can be expected to be"""
    corrected: Estimate
    """the correlation corrected for attenuation"""
    slope: Estimate
    """of returns on values within states, over all states together; 1 for calibrated values"""
    chosen: Estimate
    """gain of the action with the highest value over the mean of the actions"""
    perfect: Estimate
    """gain of the best action: selected by one half of the repetitions, scored by the other"""
    perfect_above: Estimate
    """the same selected and scored by all repetitions: too high, by the noise"""
    share: Estimate
    """chosen / perfect"""


def rank(values: ArrayLike, returns: ArrayLike) -> Ranking:
    """Compare values (S, M) with returns (S, M, R); raises ValueError for other shapes, and NaN."""
    q, played = _checked(values, returns)
    truth = played.mean(axis=2)
    here, there = half_correlations(played)
    r = correlations(q, truth)
    known = ~np.isnan(r)
    halves = np.where(known, here, np.nan) if there else np.full(len(q), np.nan)
    covariance, variance, _ = moments(q, truth)
    chosen, best = gains_of_choice(q, truth), perfect_gains(played)
    return Ranking(
        correlation=mean_of(r),
        spearman=mean_of(correlations(_ranks(q, SAME_Q), _ranks(truth))),
        reliability=over_states(lambda i: stepped_up(_means(halves[i])), len(q), int(known.sum())),
        corrected=over_states(
            lambda i: attenuated(_means(r[i]), stepped_up(_means(halves[i]))),
            len(q),
            int(known.sum()),
        ),
        slope=ratio_of(covariance, variance),
        chosen=mean_of(chosen),
        perfect=mean_of(best),
        perfect_above=mean_of(truth.max(axis=1) - truth.mean(axis=1)),
        share=ratio_of(np.where(np.isnan(best), np.nan, chosen), best),
    )


def gains_over_mean(chosen: ArrayLike, returns: ArrayLike) -> Array:
    """What other actions gain over the mean of a state's actions, (S, K, R), (S, M, R) to (S,)."""
    chosen, returns = np.asarray(chosen, np.float64), np.asarray(returns, np.float64)
    gains: Array = chosen.mean(axis=(1, 2)) - returns.mean(axis=(1, 2))
    return gains


def shares_beaten(chosen: ArrayLike, returns: ArrayLike) -> Array:
    """Share of a state's actions that others are better than, (S, K, R), (S, M, R) to (S,).

    1/2 is chance, ties count half. It has no unit, and no state counts more than another one.
    """
    others = np.asarray(chosen, np.float64).mean(axis=2)
    truth = np.asarray(returns, np.float64).mean(axis=2)
    shares: Array = 0.5 + 0.5 * np.sign(others[:, :, None] - truth[:, None, :]).mean(axis=(1, 2))
    return shares


# Within states ----------------------------------------------------------------------------


def moments(values: Array, truth: Array, same: float = SAME_Q) -> Numbers:
    """Covariance and both variances of (S, M) within each state, (S,) each.

    Numbers that are equal up to rounding have variance 0, and covariance 0 with everything. `same`
    is the rounding of the values: by default a critic's.
    """
    centered = []
    for array, smallest in ((values, same), (truth, SAME)):
        x = array - array.mean(axis=1, keepdims=True)
        equal = np.ptp(array, axis=1) <= smallest * np.abs(array).max(axis=1)
        centered.append(np.where(equal[:, None], 0.0, x))
    x, y = centered
    return (x * y).mean(axis=1), (x**2).mean(axis=1), (y**2).mean(axis=1)


def correlations(values: Array, truth: Array, same: float = SAME_Q) -> Array:
    """Pearson's correlation within each state, (S, M) twice to (S,); `same` as in `moments`.

    0 where the values are all equal: such a critic orders by chance. NaN where the returns are:
    there is nothing to order.
    """
    covariance, of_values, of_truth = moments(values, truth, same)
    scale = np.sqrt(of_values) * np.sqrt(of_truth)
    r = np.divide(covariance, scale, out=np.zeros(len(scale)), where=scale > 0.0)
    return np.where(of_truth > 0.0, np.clip(r, -1.0, 1.0), np.nan)


def gains_of_choice(values: Array, truth: Array) -> Array:
    """Return of the action with the highest value minus the mean over actions, (S, M) to (S,).

    Actions whose values tie for the highest share the choice.
    """
    best = values >= values.max(axis=1, keepdims=True)
    gains: Array = (best * truth).sum(axis=1) / best.sum(axis=1) - truth.mean(axis=1)
    return gains


def perfect_gains(returns: Array) -> Array:
    """Gain of the best action by one half of the repetitions, scored by the other, (S,).

    Averaged over the divisions into halves, in both directions; NaN with one repetition. It is a
    lower estimate: half of the repetitions find the best action less surely than all.
    """
    found = [
        gains_of_choice(returns[:, :, one].mean(axis=2), returns[:, :, other].mean(axis=2))
        for half in splits(returns.shape[2])
        for one, other in (half, half[::-1])
    ]
    return np.mean(found, axis=0) if found else np.full(len(returns), np.nan)


def half_correlations(returns: Array) -> tuple[Array, int]:
    """Correlation of the halves' means within each state, (S,), and the number of divisions.

    0 where one half has no differences; NaN with one repetition.
    """
    found = []
    for one, other in splits(returns.shape[2]):
        means = returns[:, :, one].mean(axis=2), returns[:, :, other].mean(axis=2)
        found.append(np.nan_to_num(correlations(*means, same=SAME)))
    return (np.mean(found, axis=0) if found else np.full(len(returns), np.nan)), len(found)


def splits(repetitions: int) -> list[tuple[list[int], list[int]]]:
    """Divisions of the repetitions into two halves: all, or MOST_SPLITS of them; none of one."""
    everything = range(repetitions)
    middle = repetitions // 2
    if middle == 0:
        return []
    firsts = itertools.combinations(everything, middle)
    if 2 * middle == repetitions:  # each division once
        firsts = itertools.takewhile(lambda half: half[0] == 0, firsts)  # type: ignore[assignment]
    number = math.comb(repetitions, middle) // (2 if 2 * middle == repetitions else 1)
    every = max(1, number // MOST_SPLITS)
    chosen = itertools.islice(firsts, 0, every * MOST_SPLITS, every)
    return [(list(half), [r for r in everything if r not in half]) for half in chosen]


def stepped_up(halves: Array) -> Array:
    """Spearman-Brown: reliabilities of the whole from correlations of halves.

    Negative ones, which are noise, stay as they are: the formula has a pole at -1.
    """
    real = np.maximum(halves, 0.0)
    return np.where(halves > 0.0, 2.0 * real / (1.0 + real), halves)


def attenuated(correlation: Array, reliability: Array) -> Array:
    """Correlations without the noise of the returns; NaN where these are noise alone."""
    real = reliability > 0.0
    root = np.sqrt(np.where(real, reliability, 1.0))
    return np.where(real, correlation / root, np.nan)


def _ranks(values: Array, same: float = SAME) -> Array:
    """Ranks (S, M) within each state, ties sharing their mean; equal up to rounding is a tie.

    They are centered: the mean of the ranks 1 to M is exact in floating point, whatever the ties.
    """
    from scipy import stats  # takes half a second to import

    largest = np.abs(values).max(axis=1, keepdims=True)
    equal = np.ptp(values, axis=1, keepdims=True) <= same * largest
    ranks = np.asarray(stats.rankdata(np.where(equal, 0.0, values), axis=1), np.float64)
    centered: Array = ranks - (values.shape[1] + 1) / 2
    return centered


def _checked(values: ArrayLike, returns: ArrayLike) -> tuple[Array, Array]:
    q, played = np.asarray(values, np.float64), np.asarray(returns, np.float64)
    if played.ndim != 3 or q.shape != played.shape[:2] or min(played.shape) < 1 or q.shape[1] < 2:
        raise ValueError(
            f"values {q.shape} and returns {played.shape}, expected (states, actions) and (states, "
            "actions, repetitions), 2 actions or more"
        )
    if not (np.isfinite(q).all() and np.isfinite(played).all()):
        raise ValueError("values or returns are not finite")
    return q, played


# Over states ------------------------------------------------------------------------------


def mean_of(values: Array) -> Estimate:
    """Mean over the states that have a number, (S,)."""
    kept = values[~np.isnan(values)]
    return over_states(lambda i: kept[i].mean(axis=1), len(kept), len(kept))


def ratio_of(numerators: Array, denominators: Array) -> Estimate:
    """Sum over states of the one by that of the other, (S,) each; None where that is not > 0."""
    kept = ~(np.isnan(numerators) | np.isnan(denominators))
    above, below = numerators[kept], denominators[kept]
    return over_states(
        lambda i: _ratios(above[i].sum(axis=1), below[i].sum(axis=1)), len(above), len(above)
    )


def over_states(statistic: Callable[[NDArray[np.int64]], Array], n: int, states: int) -> Estimate:
    """A statistic with its bootstrap interval over n states; `states` of them say something.

    It maps the numbers of states (B, n) to (B,), NaN where they do not determine it. There is no
    interval of one state, nor where half of the resamples do not determine it.
    """
    if n == 0:
        return Estimate(None, None, 0)
    [value] = statistic(np.arange(n)[None])
    if np.isnan(value):
        return Estimate(None, None, states)
    rng = np.random.default_rng(0)
    drawn = rng.integers(n, size=(RESAMPLES, n))
    return Estimate(float(value), percentiles(statistic(drawn)) if n > 1 else None, states)


def percentiles(found: Array) -> tuple[float, float] | None:
    """The central 95 % of what resamples gave; None where less than half of them gave anything."""
    known = found[~np.isnan(found)]
    if 2 * len(known) < len(found):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _ratios(above: Array, below: Array) -> Array:
    """Quotients (B,), NaN where the denominator is not positive."""
    quotients: Array = np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0.0)
    return quotients


def _means(values: Array) -> Array:
    """Means of the numbers that are there, (B, n) to (B,); NaN without any."""
    there = ~np.isnan(values)
    return _ratios(np.where(there, values, 0.0).sum(axis=1), there.sum(axis=1).astype(np.float64))


# Over critics -----------------------------------------------------------------------------


def rank_correlation(groups: Sequence[tuple[ArrayLike, ArrayLike]]) -> Estimate:
    """Spearman's correlation within groups, pooled, of pairs ((n,), (n,)) in each group.

    Numbers are replaced by their ranks within the group, from -1/2 to 1/2; the correlation is that
    of all ranks together. Of one group it is Spearman's. Groups of one, and groups in which one
    side does not differ, contribute nothing. The interval resamples the pairs of each group;
    `states` is the number of pairs.
    """
    pairs = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in groups]
    for x, y in pairs:
        if x.ndim != 1 or x.shape != y.shape or not np.isfinite([x, y]).all():
            raise ValueError(
                f"groups of {x} and {y}, expected as many finite numbers on both sides"
            )
    counted = [(x, y) for x, y in pairs if len(x) > 1]
    n = sum(len(x) for x, _ in counted)
    [value] = _pooled([(x[None], y[None]) for x, y in counted])
    if np.isnan(value):
        return Estimate(None, None, n)
    rng = np.random.default_rng(0)
    rows = [rng.integers(len(x), size=(RESAMPLES, len(x))) for x, _ in counted]
    drawn = [(x[i], y[i]) for (x, y), i in zip(counted, rows, strict=True)]
    return Estimate(float(value), percentiles(_pooled(drawn)), n)


def _pooled(pairs: Sequence[tuple[Array, Array]]) -> Array:
    """Correlations (B,) of the centered ranks of groups (B, n); NaN without differences."""
    products = np.zeros((3, len(pairs[0][0]) if pairs else 1))
    for x, y in pairs:
        a, b = (_ranks(side) / (side.shape[1] - 1) for side in (x, y))
        of_both = a.any(axis=1) & b.any(axis=1)
        sums = [(one * other).sum(axis=1) for one, other in ((a, b), (a, a), (b, b))]
        products += of_both * np.array(sums)
    both = np.sqrt(products[1] * products[2])
    return np.clip(_ratios(products[0], both), -1.0, 1.0)
