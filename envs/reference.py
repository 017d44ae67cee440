"""Reference returns for normalised scores, each with its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ReferenceScores:
    """Returns that count as 0 and as 100, and where they are from."""

    minimum: float
    maximum: float
    source: str

    def normalize(self, returns: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """100 (return - minimum) / (maximum - minimum)."""
        return 100.0 * (np.asarray(returns) - self.minimum) / (self.maximum - self.minimum)


D4RL = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "adroithandpen": (96.262799, 3076.8331),
    "adroithandhammer": (-274.856578, 12794.1348),
    "adroithandrelocate": (-6.425911, 4233.8778),
    "adroithanddoor": (-56.512833, 2880.5693),
    "antmaze": (0.0, 1.0),
    "frankakitchen": (0.0, 4.0),
}
"""Random and expert returns of D4RL (Fu et al. 2020, arXiv 2004.07219), by environment family."""


def reference_scores(metadata: dict[str, Any], env_id: str | None) -> ReferenceScores | None:
    """The dataset's own pair first, else D4RL's by environment, else None.

    D4RL measured older physics versions; the pair is the community's scale, not a promise that
    scores compare across data.
    """
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if low is not None and high is not None and float(high) > float(low):
        return ReferenceScores(float(low), float(high), "dataset metadata")
    if env_id is not None:
        name = env_id.split("/")[-1].split("-")[0].split("_")[0].lower()
        if name in D4RL:
            return ReferenceScores(*D4RL[name], f"D4RL table ({name})")
    return None
