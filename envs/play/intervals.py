"""95 % intervals of what episodes gave: of a mean return, and of a rate of success."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def bootstrap_interval(
    values: NDArray[np.float64], confidence: float = 0.95, resamples: int = 10_000
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean (Efron 1979), reproducible; None for one value."""
    if len(values) < 2:
        return None
    rng = np.random.default_rng(0)
    index = rng.integers(len(values), size=(resamples, len(values)))
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(values[index].mean(axis=1), [tail, 100.0 - tail])
    return float(low), float(high)


def success_rate(successes: Sequence[bool] | NDArray[np.bool_]) -> float:
    """Percent of the episodes that succeeded."""
    return 100.0 * float(np.mean(successes))


def success_interval(
    successes: Sequence[bool] | NDArray[np.bool_], confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson's score interval (1927) of a rate of success, in percent.

    A bootstrap would claim certainty where all episodes succeed, or none. One episode has an
    interval, too.
    """
    from scipy import stats  # takes half a second to import

    test = stats.binomtest(int(np.sum(successes)), len(successes))
    interval = test.proportion_ci(confidence, method="wilson")
    return 100.0 * float(interval.low), 100.0 * float(interval.high)
