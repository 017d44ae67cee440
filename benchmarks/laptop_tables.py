"""The preset `laptop` on ten sets of HalfCheetah and Hopper, of laptop.toml and broad.toml."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from measured import DATASETS, Group, Measurements, Source
from tables import entry, short

from qgpo.experiments.report import table

HERE = Path(__file__).parent
SOURCE = Source(cells=(HERE / "broad", HERE / "laptop"), together=HERE / "laptop_tuned")
USUAL = 3
"""trainings"""
FORMER = "`laptop-support`, w = 1"


def laptop(measurements: Measurements) -> dict[str, str]:
    """A row per set, and normalised means."""
    own = Measurements(SOURCE)
    groups: dict[str, dict[str, Group]] = {
        name: {dataset: choose(dataset) for dataset in DATASETS}
        for name, choose in {
            "IQL": lambda d: measurements.group(False, "IQL", d, None),
            FORMER: lambda d: measurements.group(False, "QGPO", d, 1.0),
            "w = 0": lambda d: own.group(False, "QGPO", d, 0.0),
            "**w = 1**": lambda d: own.group(False, "QGPO", d, 1.0),
            "tuned, no rehearsal": lambda d: own.group(True, "QGPO", d, "tuned"),
        }.items()
    }
    rows = [
        [
            short(dataset),
            f"{measurements.data[dataset]:.0f}",
            *(entry(of[dataset], USUAL) for of in groups.values()),
            ", ".join(f"{agent.tuned:g}" for agent in own.together.get(("QGPO", dataset), [])),
        ]
        for dataset in DATASETS
    ]
    scores = {"data": [measurements.score(d, x) for d, x in measurements.data.items()]}
    for name, of in groups.items():
        scores[name] = [measurements.score(d, of[d].mean) for d in DATASETS]
    means = ["normalised mean", *(f"{np.mean(values):.1f}" for values in scores.values()), ""]
    return {"laptop": table(["", "data", *groups, "w that was chosen"], [*rows, means])}
