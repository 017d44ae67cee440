"""Another guidance scale by the returns of played episodes, in pairs with the same start.

While learning online every other episode is a trial: it begins like the one before and is played
at a neighboring scale, twice or half of today's. Where it returns more, on average and by more than
the standard error of that, its scale takes the place of today's; where less, it is dropped. A step
that was wrong is found out in the same way, because then its neighbors are tried. The same start
takes the spread of starts out of the difference. The rule is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FACTOR = 2.0
"""between neighboring scales"""
FEWEST, MOST = 3, 12
"""pairs before a neighbor is judged, and after which it is dropped whatever it returned"""
CLEAR = 1.0
"""standard errors by which the mean difference must exceed 0"""


class Next(NamedTuple):
    """What the next episode is."""

    scale: float
    """today's, by which the agent acts"""
    played: float
    """that of the episode"""
    repeats: bool
    """whether it begins like the episode before, as the second of a pair"""


def next_episode(start: float, returns: Sequence[float]) -> Next:
    """After episodes with those returns, of which the first was played at scale `start`."""
    scale, tried, done = start, dict[float, list[float]](), 0
    while done < len(returns):
        neighbor = _neighbor(scale, tried)
        if neighbor is None:
            return Next(scale, scale, False)
        if done + 1 == len(returns):
            return Next(scale, neighbor, True)
        differences = tried.setdefault(neighbor, [])
        differences.append(returns[done + 1] - returns[done])
        done += 2
        if _sign(differences) > 0:
            scale, tried = neighbor, {}
    return Next(scale, scale, False)


def _neighbor(scale: float, tried: dict[float, list[float]]) -> float | None:
    """The neighbor that was tried least, of those that are not dropped."""
    left = [
        w
        for w in (scale * FACTOR, scale / FACTOR)
        if w > 0.0 and _sign(tried.get(w, ())) == 0 and len(tried.get(w, ())) < MOST
    ]
    return min(left, key=lambda w: len(tried.get(w, ())), default=None)


def _sign(differences: Sequence[float]) -> int:
    """1 where they are above 0 on average, -1 below, 0 where that is not clear."""
    n = len(differences)
    if n < FEWEST:
        return 0
    mean = float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    return int(np.sign(mean)) if abs(mean) > CLEAR * error else 0
