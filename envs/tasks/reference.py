"""Reference returns for normalised scores, each with its source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray


def is_scale(minimum: Any, maximum: Any) -> bool:
    """Whether the two are numbers a finite distance apart, the first one less than the second."""
    if not all(isinstance(n, Real) and not isinstance(n, bool) for n in (minimum, maximum)):
        return False
    try:
        low, high = float(minimum), float(maximum)
    except OverflowError:
        return False
    return low < high and math.isfinite(high - low)


@dataclass(frozen=True)
class ReferenceScores:
    """The returns that count as 0 and as 100, and their source.

    Raises ValueError where they are no scale.
    """

    minimum: float
    maximum: float
    source: str

    def __post_init__(self) -> None:
        if not is_scale(self.minimum, self.maximum):
            raise ValueError(
                f"reference returns {self.minimum!r:.40} and {self.maximum!r:.40}, expected two "
                "finite numbers, the first one less than the second, not farther apart than "
                "floats reach"
            )
        for name in ("minimum", "maximum"):
            # NumPy's numbers are none of JSON's
            object.__setattr__(self, name, float(getattr(self, name)))
        if not isinstance(self.source, str):
            raise ValueError(f"source={self.source!r} of reference returns, expected a text")

    def normalize(self, returns: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """100 (return - minimum) / (maximum - minimum)."""
        return 100.0 * (np.asarray(returns) - self.minimum) / (self.maximum - self.minimum)
