"""The README's results table from the raw returns in benchmarks/laptop/*.json.

    python benchmarks/table.py

Each file is the evaluation.json of one run (dataset, seed); a cell shows the mean over seeds and,
in brackets, each seed's own mean over its episodes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np


def main() -> None:
    """Print one row per dataset, one column per guidance scale."""
    means: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    data: dict[str, float] = {}
    seconds: dict[str, list[float]] = defaultdict(list)
    for path in sorted((Path(__file__).parent / "laptop").glob("*.json")):
        run = json.loads(path.read_text())
        name = run["dataset"]["id"]
        data[name] = float(np.mean(run["dataset"]["returns"]))
        seconds[name].append(run["training_seconds"])
        for evaluation in run["evaluations"]:
            means[name][evaluation["guidance_scale"]].append(evaluation["mean"])
    scales = sorted({scale for row in means.values() for scale in row})
    titles = [f"w = {scale:g}" for scale in scales]
    print("| dataset | data | " + " | ".join(titles) + " | seeds | training |")
    print("|" + "---|" * (len(scales) + 4))
    for name, row in means.items():
        cells = [_cell(row[scale]) if scale in row else "" for scale in scales]
        n = max(len(values) for values in row.values())
        took = f"{np.mean(seconds[name]):.0f} s"
        print(f"| `{name}` | {data[name]:.0f} | " + " | ".join(cells) + f" | {n} | {took} |")


def _cell(values: list[float]) -> str:
    each = ", ".join(f"{value:.0f}" for value in values)
    return f"{np.mean(values):.0f} ({each})"


if __name__ == "__main__":
    main()
