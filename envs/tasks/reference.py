"""Reference returns for normalised scores, each with its source."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ReferenceScores:
    """The returns that count as 0 and as 100, and their source."""

    minimum: float
    maximum: float
    source: str

    def __post_init__(self) -> None:
        for name in ("minimum", "maximum"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if not -math.inf < self.minimum < math.inf or not -math.inf < self.maximum < math.inf:
            raise ValueError(f"{self}, expected finite returns")
        if self.minimum == self.maximum or not isinstance(self.source, str):
            raise ValueError(f"{self}, expected two different returns and their source")

    def normalize(self, returns: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """100 (return - minimum) / (maximum - minimum)."""
        return 100.0 * (np.asarray(returns) - self.minimum) / (self.maximum - self.minimum)
