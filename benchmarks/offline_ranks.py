"""How offline estimates rank separately trained agents, against the returns that they played.

python benchmarks/suite.py --make
python scripts/benchmark.py --plan benchmarks/offline_ranks.toml --workers 2
python benchmarks/offline_ranks.py --runs runs/offline_ranks

Every agent of a dataset gets the value of fitted Q evaluation and the return in one learned model,
both as `evaluate_offline` computes them with the shorter settings of its page. Spearman's
correlation of each with the played returns is printed for every dataset; its interval resamples
the agents.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from measured import is_training_of

from qgpo import OfflineDataset, evaluate_offline, learn_model, load_agent, load_dataset
from qgpo.agents import OfflineAgent
from qgpo.agents.core.fitted_q import FittedQConfig
from qgpo.experiments.packing import Document, read_documents
from qgpo.experiments.ranking import rank_correlation

ESTIMATES = {"value": "fitted Q evaluation", "imagined": "return in a learned model"}
GAMMA = 0.99
FITTED_Q = FittedQConfig(first_steps=1000, steps=5000, tau=0.1)
MODEL_STEPS, ROLLOUTS = 4000, 24


@dataclass
class Args:
    """Offline estimates beside played returns."""

    runs: Path
    """folder with the cells' run folders"""
    results: Path = Path("benchmarks/offline_ranks")
    """folder with the cells' results"""
    output: Path = Path("benchmarks/offline_ranks.json")
    """JSON to write; agents that it already holds are not repeated"""


def estimate(
    cell: Document, agent: OfflineAgent[Any], dataset: OfflineDataset, model: Any
) -> Document:
    """One agent's estimates, at the scale at which it was played."""
    began = time.process_time()
    result = evaluate_offline(
        agent,
        dataset,
        gamma=GAMMA,
        config=FITTED_Q,
        model=model,
        progress_bar=False,
    )
    seconds = time.process_time() - began
    [played] = cell["evaluations"]
    assert result.left_data is not None
    return {
        "dataset": dataset.id,
        "label": cell["label"],
        "played": played["mean"],
        "value": result.value,
        "heads_apart": result.heads_apart,
        "imagined": result.imagined_return,
        "left_data": float(result.left_data.mean()),
        "cpu_seconds": round(seconds, 1),
    }


def correlations(rows: list[Document]) -> dict[str, dict[str, dict[str, Any]]]:
    """Spearman's correlation of each estimate with the played returns, by dataset."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == dataset]
        played = [row["played"] for row in own]
        of = {name: rank_correlation([([r[name] for r in own], played)]) for name in ESTIMATES}
        found[dataset] = {
            name: {"value": e.value, "interval": e.interval, "agents": e.states}
            for name, e in of.items()
        }
    return found


def main(args: Args) -> None:
    """Estimate, write after every agent, and print."""
    torch.set_num_threads(1)
    rows: list[Document] = json.loads(args.output.read_text()) if args.output.exists() else []
    done = {(row["dataset"], row["label"]) for row in rows}
    cells = read_documents(args.results)
    for dataset_id in dict.fromkeys(cell["measured"]["dataset"] for cell in cells.values()):
        own = {n: c for n, c in cells.items() if c["measured"]["dataset"] == dataset_id}
        left = {n: c for n, c in own.items() if (dataset_id, c["label"]) not in done}
        if not left:
            continue
        dataset, model = load_dataset(dataset_id), None
        for name, cell in left.items():
            agent = load_agent(args.runs / name / "checkpoint.zip", device="cpu")
            if not is_training_of(agent, cell["measured"]):
                raise SystemExit(f"{args.runs / name}: not the training of the cell {name}")
            model = model or learn_model(
                agent, dataset, steps=MODEL_STEPS, rollouts=ROLLOUTS, progress_bar=False
            )
            rows.append(estimate(cell, agent, dataset, model))
            print(rows[-1], flush=True)
            args.output.write_text(json.dumps(rows, indent=1) + "\n")
    for dataset_id, of in correlations(rows).items():
        for name, e in of.items():
            rho = "-" if e["value"] is None else f"{e['value']:.2f}"
            between = np.round(e["interval"] or [], 2).tolist()
            print(f"{dataset_id:40s} {ESTIMATES[name]:28s} {rho} {between}, {e['agents']} agents")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
