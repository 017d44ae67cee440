"""The preset `laptop` on ten sets of HalfCheetah and Hopper, of laptop.toml and broad.toml."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from measured import BASELINES, DATASETS, OURS, Column, Group, Measurements, Scale, Source
from tables import Choose, best_within_ten_minutes, entry, losses_of_choices, short, summary

from qgpo.experiments.report import table

HERE = Path(__file__).parent
SOURCE = Source(cells=(HERE / "broad", HERE / "laptop"), together=HERE / "laptop_tuned")
USUAL = 3
"""trainings"""
SUMMARY: tuple[Column, ...] = (*BASELINES, *OURS[1:])
"""columns of the summary: the baselines, and QGPO at w = 1"""
FORMER = "`laptop-support`, w = 1"


def of_laptop(measurements: Measurements) -> Choose:
    """One training of `laptop`, and each baseline as it does best within ten minutes."""
    own, others = Measurements(SOURCE), best_within_ten_minutes(measurements)

    def choose(label: str, dataset: str, scale: Scale) -> Group:
        if label == "QGPO":
            return own.group(False, label, dataset, scale)
        return others(label, dataset, scale)

    return choose


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
            "**tuned**": lambda d: own.group(True, "QGPO", d, "tuned"),
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
    losses = losses_of_choices(own)
    return {
        **{f"laptop-{name}": text for name, text in losses.items()},
        "laptop": table(["", "data", *groups, "w that was chosen"], [*rows, means]),
        "laptop-summary": summary(measurements, of_laptop(measurements), SUMMARY),
    }
