"""Reference returns for normalised scores, each with its source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ReferenceScores:
    """The returns that count as 0 and as 100, and their source."""

    minimum: float
    maximum: float
    source: str

    def normalize(self, returns: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """100 (return - minimum) / (maximum - minimum)."""
        return 100.0 * (np.asarray(returns) - self.minimum) / (self.maximum - self.minimum)
