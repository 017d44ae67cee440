"""How good a guidance scale `tune_guidance` chooses, beside the best one that was played.

python benchmarks/tuning.py --runs runs/locomotion --results benchmarks/locomotion

For every finished cell of the label with a checkpoint in `runs`: the scales at which the cell was
played (1 must be among them) are compared in the model that is learned from the cell's dataset. The
loss is the played score at the best scale minus that at the chosen one, in normalised points. The
best of several measured means is too good by chance, so that is an upper estimate; the halved
loss, a lower one, finds the best scale in half of the played episodes and compares in the others.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from measured import Agent, Group, is_training_of

from qgpo import QGPO, load_dataset
from qgpo.experiments.packing import Document, read_documents
from qgpo.experiments.results import read_run

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


def compare(cell: Document, run: Path) -> dict[str, Any]:
    """Tune the agent of one cell."""
    dataset = load_dataset(cell["measured"]["dataset"], download=False)
    agent = QGPO.load(run, device="cpu")
    if not is_training_of(agent, cell["measured"]):
        raise SystemExit(f"{run}: the checkpoint is not that of the cell's configuration")
    played = {e["guidance_scale"]: e for e in cell["evaluations"]}
    began = time.process_time()
    tuning = agent.tune_guidance(dataset, tuple(played))
    seconds = time.process_time() - began
    as_played = Agent.from_run(read_run(cell, str(run)))
    loss, halved_loss = as_played.losses(tuning.best)
    loss_of_1, halved_loss_of_1 = as_played.losses(1.0)
    return {
        "label": cell["label"],
        "dataset": dataset.id,
        "seed": cell["measured"]["seed"],
        "chosen": tuning.best,
        "loss": loss,
        "loss_of_1": loss_of_1,
        "halved_loss": halved_loss,
        "halved_loss_of_1": halved_loss_of_1,
        "cpu_seconds": seconds,
        "scales": [
            {
                "guidance_scale": w,
                "predicted": float(predicted.mean()),
                "standard_error": float(predicted.std() / len(predicted) ** 0.5),
                "left_data": float(left.mean()),
                "played": played[w]["mean"],
                "score": played[w]["score"],
            }
            for w, predicted, left in zip(
                tuning.scales, tuning.returns, tuning.left_data, strict=True
            )
        ],
    }


def key_of(row: dict[str, Any]) -> Key:
    """Which agent the row is about."""
    return row["label"], row["dataset"], row["seed"]


def summary(rows: list[dict[str, Any]], cells: dict[Key, Document]) -> str:
    """What each agent of the rows loses; for the cells, the mean return at the chosen scales."""
    lines = [f"{'dataset':36s}{'seed':>5s}{'chosen':>8s}" + "".join(f"{c:>18s}" for c in COLUMNS)]
    for row in rows:
        losses = "".join(f"{row[c]:18.1f}" for c in COLUMNS)
        lines.append(f"{row['dataset']:36s}{row['seed']:5d}{row['chosen']:8g}{losses}")
    means = "".join(f"{np.mean([row[c] for row in rows]):18.1f}" for c in COLUMNS)
    lines.append(f"{'mean, normalised points':49s}{means}")
    played: dict[str, list[Agent]] = {}
    for row in rows:
        if cell := cells.get(key_of(row)):
            agent = Agent.from_run(read_run(cell, "a cell"))
            played.setdefault(row["dataset"], []).append(replace(agent, tuned=row["chosen"]))
    for dataset, agents in played.items():
        group = Group(agents, "tuned")
        low, high = group.interval
        lines.append(
            f"{dataset:36s} return at the chosen scales {group.mean:.0f} "
            f"[{low:.0f}, {high:.0f}], {len(group)} seeds"
        )
    return "\n".join(lines)


def main(args: Args) -> None:
    """Tune, write after every cell, and print."""
    torch.set_num_threads(1)
    rows = json.loads(args.output.read_text()) if args.output.exists() else []
    done = {key_of(row) for row in rows}
    cells = {}
    for name, cell in read_documents(args.results).items():
        key = cell["label"], cell["measured"]["dataset"], cell["measured"]["seed"]
        if key[0] != args.label or (args.seeds and key[2] not in args.seeds):
            continue
        cells[key] = cell
        run = args.runs / name
        if key in done:
            continue
        if not (run / "checkpoint.zip").exists():
            print(f"{name}: no checkpoint in {run}")
            continue
        rows = sorted([*rows, compare(cell, run)], key=key_of)
        args.output.write_text(json.dumps(rows, indent=1) + "\n")
    if not cells:
        raise SystemExit(f"{args.results} has no cell labelled {args.label!r} with those seeds")
    if of_label := [row for row in rows if row["label"] == args.label]:
        print(summary(of_label, cells))


if __name__ == "__main__":
    main(tyro.cli(Args))
