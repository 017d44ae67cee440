"""The picture of what ten minutes of two cores are worth.

python benchmarks/together_figure.py
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
import tyro
from tables import BASELINES, OURS, TUNED, Args, read, returns_of

from qgpo.experiments.run_figure import BLUE, GRAY, ORANGE
from qgpo.experiments.statistics import hierarchical_bootstrap

mpl.use("Agg")


@dataclass
class Picture:
    """Each baseline as it does best, and three QGPO together, a panel per dataset."""

    measured: Args = field(default_factory=Args)
    """what is drawn"""
    output: Path = Path("docs/together.png")
    """picture to write"""


def main(args: Picture) -> None:
    """Draw."""
    import matplotlib.pyplot as plt

    found = read(args.measured)
    figure, grid = plt.subplots(2, 5, figsize=(14.5, 4.8), layout="constrained", sharey=True)
    for axis, (dataset, mean) in zip(grid.flat, found.data.items(), strict=True):
        lines = []
        for name, _, _ in BASELINES:
            use = found.best_use(name, dataset)
            lines.append((name, [] if use is None else use.returns, GRAY))
        for (name, label, scale), color in zip((*OURS, *TUNED), (BLUE, BLUE, ORANGE), strict=True):
            ours = returns_of(found.together.get((label, dataset), []), scale)
            lines.append((name.strip("*"), ours, color))
        lines.reverse()  # from below
        for y, (_, returns, color) in enumerate(lines):
            low, high = hierarchical_bootstrap(returns)
            axis.plot([low, high], [y, y], color=color, lw=7, alpha=0.35, solid_capstyle="butt")
            axis.plot([np.mean(returns)] * 2, [y - 0.3, y + 0.3], color=color, lw=2.5)
            note = {"textcoords": "offset points", "va": "center", "fontsize": 7, "color": GRAY}
            axis.annotate(f"n = {len(returns)}", (high, y), (4, 0), **note)
        axis.axvline(mean, color="black", ls=":", lw=1.2)
        axis.set_title(dataset.removesuffix("-v0"), fontsize=9)
        axis.margins(x=0.09)
        axis.set_yticks(range(len(lines)), [name for name, _, _ in lines], fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "Ten minutes of two cores, each baseline in its best use: mean return and 95 % interval "
        "(n agents or ensembles; dotted: the data's mean)",
        fontsize=10,
    )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=130)


if __name__ == "__main__":
    main(tyro.cli(Picture))
