"""The picture of what three, ten and thirty minutes are worth.

python benchmarks/minutes_figure.py
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
import tyro
from tables import LONGER, MINUTES, Args, Scale, read

from qgpo.experiments.run_figure import BLUE, GRAY, ORANGE
from qgpo.experiments.statistics import hierarchical_bootstrap

mpl.use("Agg")

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
class Picture:
    """Mean return and interval by training time, a panel per dataset."""

    measured: Args = field(default_factory=Args)
    """what is drawn"""
    output: Path = Path("docs/minutes.png")
    """picture to write"""


def main(args: Picture) -> None:
    """Draw."""
    import matplotlib.pyplot as plt

    found = read(args.measured)
    names = [d for d in found.data if ("QGPO" + LONGER, d) in found.together]
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.6 * len(names), 3.4), layout="constrained", squeeze=False
    )
    for axis, name in zip(axes.flat, names, strict=True):
        for i, (legend, label, scale, color, dashes) in enumerate(LINES):
            xs, means = [], []
            for x, minutes in enumerate(MINUTES):
                returns = found.in_minutes(minutes, label, scale, name)
                if not returns:
                    continue
                xs.append(x + APART * (i - 2))
                means.append(np.mean(returns))
                low, high = hierarchical_bootstrap(returns)
                axis.plot([xs[-1]] * 2, [low, high], color=color, lw=5, alpha=0.35)
            axis.plot(xs, means, color=color, ls=dashes, marker="o", ms=4, lw=1.8, label=legend)
        axis.axhline(found.data[name], color="black", ls=":", lw=1.2, label="the data")
        axis.set_title(name.removesuffix("-v0"), fontsize=9)
        axis.set_xticks(range(len(MINUTES)), [f"{minutes}" for minutes in MINUTES], fontsize=8)
        axis.set_xlim(-0.4, len(MINUTES) - 0.6)
        axis.set_xlabel("minutes of two cores, about", fontsize=8)
        axis.tick_params(axis="y", labelsize=8)
        axis.grid(axis="y", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].set_ylabel("mean return", fontsize=8)
    handles, legends = axes.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, legends, loc="outside lower center", ncols=len(legends), fontsize=8, frameon=False
    )
    figure.suptitle(
        "One training, three together, three of four times the steps together: "
        "mean return and 95 % interval",
        fontsize=10,
    )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=130)


if __name__ == "__main__":
    main(tyro.cli(Picture))
