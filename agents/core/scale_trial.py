"""Another guidance scale by the returns of played episodes, in pairs with the same start.

While learning online, two episodes of sampled actions are followed by a pair. Both begin alike and
have deterministic actions: the first is played at today's scale, the second at a neighboring one,
twice or half of it. Where the second returns more, on average and by more than the standard error
of that, its scale takes the place of today's; where less, it is dropped. A step that was wrong is
found out in the same way, because then its neighbors are tried. The same start takes the spread of
starts out of the difference, and nothing is learned between the two. Actions are deterministic,
because a larger scale narrows the spread of sampled actions: they return most at scales that are
too large for a trained agent. The rule is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FACTOR = 2.0
"""between neighboring scales"""
SAMPLED = 2
"""episodes of sampled actions before each pair"""
FEWEST, MOST = 3, 12
"""pairs before a neighbor is judged, and after which it is dropped whatever it returned"""
CLEAR = 1.0
"""standard errors by which the mean difference must exceed 0"""


class Played(NamedTuple):
    """An episode that has ended."""

    scale: float
    paired: bool
    """whether it is one of a pair, with deterministic actions"""
    total: float
    """its return"""


class Next(NamedTuple):
    """What the next episode is."""

    scale: float
    """today's, by which the agent acts"""
    played: float
    """that of the episode"""
    paired: bool = False
    """whether it is one of a pair, with deterministic actions"""
    repeats: bool = False
    """whether it begins like the episode before, as the second of a pair"""


def next_episode(own: float, episodes: Sequence[Played]) -> Next:
    """After those episodes of an agent whose scale is `own` where no pair has ended yet."""
    scale = next((episode.scale for episode in episodes if episode.paired), own)
    tried: dict[float, list[float]] = {}
    sampled, first = 0, None
    for episode in episodes:
        if not episode.paired:
            sampled, first = sampled + 1, None
        elif first is None:
            first = episode
        else:
            differences = tried.setdefault(episode.scale, [])
            differences.append(episode.total - first.total)
            sampled, first = 0, None
            if _sign(differences) > 0:
                scale, tried = episode.scale, {}
    neighbor = _neighbor(scale, tried)
    if neighbor is None:
        return Next(scale, scale)
    if first is not None:
        return Next(scale, neighbor, paired=True, repeats=True)
    return Next(scale, scale, paired=sampled >= SAMPLED)


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
