"""The pictures of what ten minutes of two cores are worth, and of three, ten and thirty.

python benchmarks/figures.py
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from matplotlib.figure import Figure
from measured import BASELINES, LONGER, MINUTES, OURS, TUNED, Measurements, Scale, Source

from qgpo.envs.data.figure import BLUE, GRAY, ORANGE, save
from qgpo.experiments.result_figures import tidy

LINES: tuple[tuple[str, str, Scale, str, str], ...] = (
    ("BC", "BC", None, GRAY, ":"),
    ("TD3+BC", "TD3+BC", None, GRAY, "--"),
    ("IQL", "IQL", None, GRAY, "-"),
    ("QGPO, w = 1", "QGPO", 1.0, BLUE, "-"),
    ("QGPO, tuned", "QGPO", "tuned", ORANGE, "-"),
)
"""name, label, guidance scale, color and dashes"""
APART = 0.07
"""between the points of two agents"""


@dataclass
class Args:
    """Draw both pictures."""

    source: Source = field(default_factory=Source)
    """what is drawn"""
    together: Path = Path("docs/together.png")
    """picture to write: ten minutes, each baseline as it does best, and three QGPO together"""
    minutes: Path = Path("docs/minutes.png")
    """picture to write: mean return by training time"""


def draw_together(measurements: Measurements) -> Figure:
    """Mean return and interval of each agent, a panel per dataset."""
    figure = Figure(figsize=(14.5, 4.8), layout="constrained")
    grid = figure.subplots(2, 5, sharey=True)
    for axis, (dataset, mean) in zip(grid.flat, measurements.data.items(), strict=True):
        lines = [(name, measurements.best_group(name, dataset), GRAY) for name, _, _ in BASELINES]
        for (name, label, scale), color in zip((*OURS, *TUNED), (BLUE, BLUE, ORANGE), strict=True):
            lines.append((name.strip("*"), measurements.group(True, label, dataset, scale), color))
        lines.reverse()  # from below
        for y, (_, group, color) in enumerate(lines):
            axis.plot(group.interval, [y, y], color=color, lw=7, alpha=0.35, solid_capstyle="butt")
            axis.plot([group.mean] * 2, [y - 0.3, y + 0.3], color=color, lw=2.5)
            note = {"textcoords": "offset points", "va": "center", "fontsize": 7, "color": GRAY}
            axis.annotate(f"n = {len(group)}", (group.interval[1], y), (4, 0), **note)
        axis.axvline(mean, color="black", ls=":", lw=1.2)
        axis.set_title(dataset.removesuffix("-v0"), fontsize=9)
        axis.margins(x=0.09)
        axis.set_yticks(range(len(lines)), [name for name, _, _ in lines])
        tidy(axis, "x")
    figure.suptitle(
        "Ten minutes of two cores, each baseline in its best use: mean return and 95 % interval "
        "(n agents or ensembles; dotted: the data's mean)",
        fontsize=10,
    )
    return figure


def draw_minutes(measurements: Measurements) -> Figure:
    """Mean return and interval by training time, a panel per dataset."""
    names = [
        dataset
        for dataset in measurements.data
        if ("QGPO" + LONGER, dataset) in measurements.together
    ]
    figure = Figure(figsize=(3.6 * len(names), 3.4), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, dataset in zip(axes, names, strict=True):
        for i, (legend, label, scale, color, dashes) in enumerate(LINES):
            groups = [
                measurements.in_minutes(minutes, label, dataset, scale) for minutes in MINUTES
            ]
            points = {x + APART * (i - 2): group for x, group in enumerate(groups) if group}
            for x, group in points.items():
                axis.plot([x, x], group.interval, color=color, lw=5, alpha=0.35)
            means = [group.mean for group in points.values()]
            style: dict[str, Any] = {"color": color, "ls": dashes, "marker": "o", "ms": 4}
            axis.plot(points.keys(), means, lw=1.8, label=legend, **style)
        axis.axhline(measurements.data[dataset], color="black", ls=":", lw=1.2, label="the data")
        axis.set_title(dataset.removesuffix("-v0"), fontsize=9)
        axis.set_xticks(range(len(MINUTES)), [f"{minutes}" for minutes in MINUTES])
        axis.set_xlim(-0.4, len(MINUTES) - 0.6)
        first = axis is axes[0]
        tidy(axis, "y", "minutes of two cores, about", "mean return" if first else "")
    handles, legends = axes[0].get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": len(legends)}
    figure.legend(handles, legends, fontsize=8, frameon=False, **place)
    figure.suptitle(
        "One training, three together, three of four times the steps together: "
        "mean return and 95 % interval",
        fontsize=10,
    )
    return figure


def main(args: Args) -> None:
    """Draw."""
    measurements = Measurements(args.source)
    save(draw_together(measurements), args.together)
    save(draw_minutes(measurements), args.minutes)


if __name__ == "__main__":
    main(tyro.cli(Args))
