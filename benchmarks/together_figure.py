"""The picture of what benchmarks/together.py measured.

python benchmarks/together_figure.py
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import tyro
from tables import DATASETS, returns_of

from qgpo.envs.figures import BLUE, GRAY, ORANGE
from qgpo.statistics import hierarchical_bootstrap

mpl.use("Agg")

ROWS = (
    ("BC", None, GRAY),
    ("TD3+BC", None, GRAY),
    ("IQL", None, GRAY),
    ("QGPO, w = 0", 0.0, BLUE),
    ("QGPO, w = 1", 1.0, BLUE),
    ("QGPO, tuned", "tuned", ORANGE),
)
"""name, guidance scale and color of each line, from above"""


@dataclass
class Args:
    """Mean return and interval of every ensemble's agent, a panel per dataset."""

    measured: Path = Path("benchmarks/together.json")
    """what together.py wrote"""
    results: tuple[Path, ...] = (Path("benchmarks/locomotion"), Path("benchmarks/bundled"))
    """folders with cells, which know the returns of the data"""
    output: Path = Path("docs/together.png")
    """picture to write"""


def data_means(folders: tuple[Path, ...]) -> dict[str, float]:
    """Mean return of each dataset."""
    means: dict[str, float] = {}
    for folder in folders:
        for file in sorted(folder.glob("*-BC-s0.json")):
            dataset = json.loads(file.read_text())["dataset"]
            means[dataset["id"]] = float(np.mean(dataset["returns"]))
    return {name: means[name] for name in DATASETS if name in means}


def main(args: Args) -> None:
    """Draw."""
    import matplotlib.pyplot as plt

    rows = json.loads(args.measured.read_text())
    data = data_means(args.results)
    figure, grid = plt.subplots(2, 5, figsize=(14.5, 4.8), layout="constrained", sharey=True)
    for axis, (name, mean) in zip(grid.flat, data.items(), strict=True):
        for y, (label, scale, color) in enumerate(reversed(ROWS)):
            agent = label.split(",")[0]
            mine = [r for r in rows if (r["label"], r["measured"]["dataset"]) == (agent, name)]
            returns = returns_of(mine, scale)
            low, high = hierarchical_bootstrap(returns)
            axis.plot([low, high], [y, y], color=color, lw=7, alpha=0.35, solid_capstyle="butt")
            axis.plot([np.mean(returns)] * 2, [y - 0.3, y + 0.3], color=color, lw=2.5)
            note = {"textcoords": "offset points", "va": "center", "fontsize": 7, "color": GRAY}
            axis.annotate(f"n = {len(mine)}", (high, y), (4, 0), **note)
        axis.axvline(mean, color="black", ls=":", lw=1.2)
        axis.set_title(name.removesuffix("-v0"), fontsize=9)
        axis.margins(x=0.09)
        axis.set_yticks(range(len(ROWS)), [label for label, _, _ in reversed(ROWS)], fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "Three agents together: mean return and 95 % interval "
        "(n ensembles; dotted: the data's mean)",
        fontsize=10,
    )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=130)


if __name__ == "__main__":
    main(tyro.cli(Args))
