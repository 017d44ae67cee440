"""How good a guidance scale `tune_guidance` chooses, beside the best one found by playing.

python benchmarks/tuning.py --runs runs/locomotion --results benchmarks/locomotion

For every finished cell of the label with a checkpoint in `runs`: the scales at which the cell was
played (1 must be among them) are compared in the model that is learned from the cell's dataset. The
loss is the played score at the best scale minus that at the chosen one, in normalised points. The
best of several measured means is too good by chance, so that is an upper estimate; the halved
loss, a lower one, finds the best scale in half of the played episodes and compares in the others.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from qgpo import QGPO, load_dataset
from qgpo.experiments.statistics import hierarchical_bootstrap, loss_of_choice

Key = tuple[str, str, int]
COLUMNS = ("loss", "loss_of_1", "halved_loss", "halved_loss_of_1")


@dataclass
class Args:
    """Guidance scales chosen from data, against played returns."""

    runs: Path
    """folder with the cells' run folders"""
    results: Path = Path("benchmarks/locomotion")
    """folder with the cells' results"""
    label: str = "QGPO"
    """label of the cells"""
    seeds: tuple[int, ...] = ()
    """only these; default all"""
    output: Path = Path("benchmarks/tuning.json")
    """JSON to write; cells that it already holds are not repeated"""


def compare(cell: dict[str, Any], run: Path) -> dict[str, Any]:
    """Tune the agent of one cell."""
    dataset = load_dataset(cell["measured"]["dataset"], download=False)
    agent = QGPO.load(run / "checkpoint.zip", device="cpu")
    config = json.loads(json.dumps(dataclasses.asdict(agent.config)))
    if config != cell["measured"]["config"]:
        raise SystemExit(f"{run}: the checkpoint is not that of the cell's configuration")
    played = {e["guidance_scale"]: e for e in cell["evaluations"]}
    began = time.process_time()
    found = agent.tune_guidance(dataset, tuple(played))
    seconds = time.process_time() - began
    scores = {w: e["score"] for w, e in played.items()}
    returns = np.array([e["returns"] for e in played.values()])
    reference = next(iter(played.values()))["reference"]
    return_per_point = (reference["maximum"] - reference["minimum"]) / 100.0
    scales = list(played)
    return {
        "label": cell["label"],
        "dataset": dataset.id,
        "seed": cell["measured"]["seed"],
        "chosen": found.best,
        "loss": max(scores.values()) - scores[found.best],
        "loss_of_1": max(scores.values()) - scores[1.0],
        "halved_loss": loss_of_choice(returns, scales.index(found.best)) / return_per_point,
        "halved_loss_of_1": loss_of_choice(returns, scales.index(1.0)) / return_per_point,
        "cpu_seconds": seconds,
        "scales": [
            {
                "guidance_scale": w,
                "predicted": float(predicted.mean()),
                "standard_error": float(predicted.std() / len(predicted) ** 0.5),
                "left_data": float(left.mean()),
                "played": played[w]["mean"],
                "score": scores[w],
            }
            for w, predicted, left in zip(found.scales, found.returns, found.left_data, strict=True)
        ],
    }


def key_of(row: dict[str, Any]) -> Key:
    """Which agent the row is about."""
    return row["label"], row["dataset"], row["seed"]


def summary(rows: list[dict[str, Any]], cells: dict[Key, dict[str, Any]]) -> str:
    """What each agent of the rows loses; for the cells, the mean return at the chosen scales."""
    lines = [f"{'dataset':36s}{'seed':>5s}{'chosen':>8s}" + "".join(f"{c:>18s}" for c in COLUMNS)]
    for row in rows:
        losses = "".join(f"{row[c]:18.1f}" for c in COLUMNS)
        lines.append(f"{row['dataset']:36s}{row['seed']:5d}{row['chosen']:8g}{losses}")
    means = "".join(f"{np.mean([row[c] for row in rows]):18.1f}" for c in COLUMNS)
    lines.append(f"{'mean, normalised points':49s}{means}")
    played: dict[str, list[list[float]]] = {}
    for row in rows:
        for e in cells.get(key_of(row), {}).get("evaluations", []):
            if e["guidance_scale"] == row["chosen"]:
                played.setdefault(row["dataset"], []).append(e["returns"])
    for dataset, returns in played.items():
        low, high = hierarchical_bootstrap(returns)
        lines.append(
            f"{dataset:36s} return at the chosen scales {np.mean(returns):.0f} "
            f"[{low:.0f}, {high:.0f}], {len(returns)} seeds"
        )
    return "\n".join(lines)


def main(args: Args) -> None:
    """Tune, write after every cell, and print."""
    torch.set_num_threads(1)
    rows = json.loads(args.output.read_text()) if args.output.exists() else []
    done = {key_of(row) for row in rows}
    cells = {}
    for file in sorted(args.results.glob("*.json")):
        cell = json.loads(file.read_text())
        key = cell["label"], cell["measured"]["dataset"], cell["measured"]["seed"]
        if key[0] != args.label or (args.seeds and key[2] not in args.seeds):
            continue
        cells[key] = cell
        run = args.runs / file.stem
        if key in done:
            continue
        if not (run / "checkpoint.zip").exists():
            print(f"{file.stem}: no checkpoint in {run}")
            continue
        rows = sorted([*rows, compare(cell, run)], key=key_of)
        args.output.write_text(json.dumps(rows, indent=1) + "\n")
    if not cells:
        raise SystemExit(f"{args.results} has no cell labelled {args.label!r} with those seeds")
    if mine := [row for row in rows if row["label"] == args.label]:
        print(summary(mine, cells))


if __name__ == "__main__":
    main(tyro.cli(Args))
