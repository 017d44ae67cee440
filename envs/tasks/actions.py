"""Actions as numbers in [-1, 1], and back into their space: one affine map for each column."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

FAR = 100.0
"""bounds that are so many times wider than the data say nothing about them: a policy's standard
deviation is at least 0.02 in [-1, 1], so that its actions would be noise"""
ORDINARY = 10.0
"""half of the width up to which bounds are taken as they are, whatever the data"""
RESOLVED = 1024
"""steps of float32, the fewest in an interval that actions are scaled by"""
WIDEST = float(np.finfo(np.float32).max) / 4
"""the scaled action is computed from twice the width, in float32"""
TOLERANCE = 1e-4
"""of the bounds' width, by which recorded actions may lie outside"""
ROWS = 16384
"""rows that are read at a time, so that memory-mapped actions are never in memory as a whole"""
NAMED = 5
"""columns that a message names"""


@dataclass(frozen=True, eq=False)
class ActionScale:
    """What -1 and 1 mean in an action space: its bounds, or a part of it that the data fill."""

    space: spaces.Box
    low: NDArray[np.floating]
    """(A,) becomes -1; in the space's dtype, in float32 where that is coarser"""
    high: NDArray[np.floating]
    """(A,) becomes 1"""

    @classmethod
    def between(cls, space: spaces.Box, low: Any, high: Any) -> ActionScale:
        """The scale with that interval for each column."""
        dtype = np.result_type(space.dtype or np.float32, np.float32)
        return cls(space, np.asarray(low, dtype), np.asarray(high, dtype))

    @classmethod
    def of(cls, space: spaces.Box) -> ActionScale:
        """The scale by the bounds of the space."""
        return cls.between(space, space.low, space.high)

    @classmethod
    def for_data(cls, space: spaces.Box, actions: NDArray[np.float32], of: str) -> ActionScale:
        """The scale for agents that learn from actions (N, A): the bounds, where they fit the data.

        Where a column's bounds are FAR times wider than its data, and not ORDINARY, the data's
        range is used, with a warning; for data that are constant, c - max(1, |c|) to
        c + max(1, |c|). Raises ValueError where the data themselves are too large.
        """
        lowest, highest = (np.clip(x, space.low, space.high) for x in _extremes(actions))
        radius = np.maximum(1.0, np.abs(lowest))
        constant = ~resolved(lowest, highest)
        low = np.where(constant, np.maximum(lowest - radius, space.low), lowest)
        high = np.where(constant, np.minimum(highest + radius, space.high), highest)
        widest = np.maximum(ORDINARY, FAR * half_width(low, high))
        far = half_width(space.low, space.high) > widest
        if far.any():
            columns = np.flatnonzero(far)[:NAMED].tolist()
            more = ", …" if far.sum() > NAMED else ""
            first = columns[0]
            warnings.warn(
                f"{of}: the bounds of action columns {columns}{more} are more than {FAR:.0f} "
                f"times wider than the data (column {first}: bounds [{space.low[first]:g}, "
                f"{space.high[first]:g}], data [{lowest[first]:g}, {highest[first]:g}]). Agents "
                f"act within the range of the data there, [{low[first]:g}, {high[first]:g}] in "
                f"column {first}. For another range, set it as the bounds of the action space",
                stacklevel=3,
            )
        low, high = np.where(far, low, space.low), np.where(far, high, space.high)
        if (half_width(low, high) > 0.5 * WIDEST).any():
            raise ValueError(
                f"{of} has actions from {lowest.min():g} to {highest.max():g}, which are too large "
                f"for float32: a column may be {WIDEST:.1g} wide. Record them in another unit"
            )
        return cls.between(space, low, high)

    @property
    def is_declared(self) -> bool:
        """Whether it is that of the space's bounds."""
        return np.array_equal(self.low, self.space.low) and np.array_equal(
            self.high, self.space.high
        )

    def agrees_with(self, other: ActionScale | None) -> bool:
        """Whether both map to the same actions."""
        return (
            other is not None
            and np.array_equal(self.low, other.low)
            and np.array_equal(self.high, other.high)
        )

    def check(self, actions: NDArray[np.float32], of: str) -> None:
        """Raise ValueError where actions (N, A) lie outside, which would be clipped."""
        low, high = _extremes(actions)
        margin = TOLERANCE * half_width(self.low, self.high)
        wrong = np.flatnonzero((low < self.low - margin) | (high > self.high + margin))
        if len(wrong) > 0:
            k = wrong[0]
            raise ValueError(
                f"{of} has actions from {low[k]:g} to {high[k]:g} in column {k}; this agent acts "
                f"between {self.low[k]:g} and {self.high[k]:g} there, the range of its first data: "
                "start again on these data with reset_num_timesteps=True"
            )

    def to_space(self, scaled: NDArray[np.float32]) -> NDArray[Any]:
        """From [-1, 1], (..., A), to the action space: in its dtype, never outside."""
        return inside(self.space, interpolate(self.low, self.high, 0.5 * (scaled + 1.0)))

    def to_json(self) -> dict[str, Any]:
        """Plain lists, for a file."""
        return {"low": self.low.astype(float).tolist(), "high": self.high.astype(float).tolist()}

    @classmethod
    def from_json(cls, space: spaces.Box, data: dict[str, Any] | None) -> ActionScale:
        """What `to_json` wrote; None means the space's bounds. Raises ValueError for others."""
        if data is None:
            return cls.of(space)
        scale = cls.between(space, data["low"], data["high"])
        inside = scale.low.shape == scale.high.shape == space.shape and bool(
            np.all((scale.low >= space.low) & (scale.low < scale.high))
            and np.all(scale.high <= space.high)
        )
        if not inside:
            raise ValueError(f"action scale {data}, expected intervals within {space}")
        return scale


def interpolate(
    low: NDArray[Any], high: NDArray[Any], share: NDArray[np.float32]
) -> NDArray[np.floating]:
    """What lies at shares (..., A) of the way from low to high, also where the width overflows."""
    with np.errstate(over="ignore"):
        width = high - low
    if np.isfinite(width).all():
        return np.asarray(low + share * width)
    share = np.clip(share, 0.0, 1.0)
    return np.asarray((1.0 - share) * low + share * high)


def inside(space: spaces.Box, actions: NDArray[Any]) -> NDArray[Any]:
    """Actions (..., A) in the dtype of the space, never outside."""
    clipped: NDArray[Any] = np.clip(actions, space.low, space.high)
    if clipped.dtype == space.dtype:
        return clipped
    rounded = clipped.astype(space.dtype)
    # Rounding to a coarser dtype may pass the bound, which that dtype holds.
    clipped = np.clip(rounded, space.low, space.high)
    return clipped


def outside(actions: NDArray[np.float32], space: spaces.Box) -> NDArray[np.bool_]:
    """Whether actions (..., A) lie outside the space by more than rounding."""
    with np.errstate(over="ignore"):
        margin = TOLERANCE * (space.high - space.low)
        wrong: NDArray[np.bool_] = (actions < space.low - margin) | (actions > space.high + margin)
    return wrong


def half_width(low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.float64]:
    """(A,) half of high - low, which does not overflow."""
    return 0.5 * high.astype(np.float64) - 0.5 * low.astype(np.float64)


def resolved(low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.bool_]:
    """(A,) whether float32, in which data and networks are, has RESOLVED steps between them."""
    limits = np.finfo(np.float32)
    largest = np.minimum(np.maximum(np.abs(low), np.abs(high)), limits.max).astype(np.float32)
    step = np.maximum(limits.eps * largest.astype(np.float64), float(limits.tiny))
    enough: NDArray[np.bool_] = half_width(low, high) >= 0.5 * RESOLVED * step
    return enough


def _extremes(actions: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(A,) the smallest and the largest of each column."""
    chunks = list(_chunk_extremes(actions))
    low, high = zip(*chunks, strict=True)
    return np.min(low, axis=0).astype(np.float64), np.max(high, axis=0).astype(np.float64)


def _chunk_extremes(
    actions: NDArray[np.float32],
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    for begin in range(0, len(actions), ROWS):
        chunk = actions[begin : begin + ROWS]
        yield chunk.min(axis=0), chunk.max(axis=0)
