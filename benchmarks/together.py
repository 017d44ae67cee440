"""What trainings with different seeds are worth when they act together.

python benchmarks/together.py \
    --runs runs/locomotion runs/bundled runs/seeds \
    --results benchmarks/locomotion benchmarks/bundled benchmarks/seeds

Of the finished cells of the label, seeds 0, 1 and 2 of a dataset make an ensemble, 3, 4 and 5 the
next, and so on. Where the agents have a guidance scale, `tune_guidance` chooses it from the data,
and the ensemble is played at all scales at which its members were, or at those of `--scales`.
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

from qgpo import Ensemble, load_agent, load_dataset
from qgpo.agents.core.files import processor, versions
from qgpo.envs.play.evaluation import evaluate_scales
from qgpo.experiments.statistics import hierarchical_bootstrap, loss_of_choice

Group = list[tuple[dict[str, Any], Path]]


@dataclass
class Args:
    """Ensembles of the finished cells of a benchmark."""

    runs: tuple[Path, ...]
    """folders with the cells' run folders"""
    results: tuple[Path, ...]
    """folders with the cells' results, in the same order"""
    label: str = "QGPO"
    """label of the cells"""
    datasets: tuple[str, ...] = ()
    """only these; default all"""
    members: int = 3
    """agents in an ensemble"""
    scales: tuple[float, ...] = ()
    """guidance scales to choose among and to play, in place of those at which the cells were"""
    where: str = ""
    """which machine this is, if not that of most rows"""
    output: Path = Path("benchmarks/together.json")
    """JSON to write, a line per ensemble; those that it already holds are not repeated"""


def groups(args: Args) -> list[Group]:
    """The cells of every ensemble that is complete, with their run folders."""
    found: dict[tuple[str, int], Group] = {}
    for runs, results in zip(args.runs, args.results, strict=True):
        for file in sorted(results.glob("*.json")):
            cell = json.loads(file.read_text())
            name, seed = cell["measured"]["dataset"], cell["measured"]["seed"]
            if cell["label"] == args.label and (not args.datasets or name in args.datasets):
                group = found.setdefault((name, seed // args.members), [])
                group.append((cell, runs / file.stem))
    complete = []
    for (name, _), group in sorted(found.items()):
        group.sort(key=lambda one: one[0]["measured"]["seed"])
        without = [str(run) for _, run in group if not (run / "checkpoint.zip").exists()]
        if without:
            print(f"{name}, seeds {seeds_of(group)}: no checkpoint in {', '.join(without)}")
        elif len(group) != args.members:
            print(f"{name}: seeds {seeds_of(group)} make no ensemble of {args.members}")
        else:
            complete.append(group)
    return complete


def seeds_of(group: Group) -> list[int]:
    """Of the members."""
    return [cell["measured"]["seed"] for cell, _ in group]


def what(group: Group, args: Args) -> dict[str, Any]:
    """What decides the result. SystemExit where the cells differ by more than their seed."""
    shared = [{k: v for k, v in cell["measured"].items() if k != "seed"} for cell, _ in group]
    if any(one != shared[0] for one in shared):
        raise SystemExit(f"cells of seeds {seeds_of(group)} differ by more than their seed")
    [data] = {cell["dataset"]["fingerprint"] for cell, _ in group}
    measured = shared[0]
    if args.scales and measured["guidance_scales"]:
        measured = {**measured, "guidance_scales": list(args.scales)}
    return {
        "label": group[0][0]["label"],
        "seeds": seeds_of(group),
        "where": args.where,
        "measured": measured,
        "fingerprint": data,
    }


def measure(group: Group, about: dict[str, Any]) -> dict[str, Any]:
    """Tune the ensemble, then play it at every scale."""
    measured = about["measured"]
    dataset = load_dataset(measured["dataset"], download=False)
    agents = [load_agent(run / "checkpoint.zip", device="cpu") for _, run in group]
    for agent, (cell, run) in zip(agents, group, strict=True):
        config = json.loads(json.dumps(dataclasses.asdict(agent.config)))
        if (config, agent.seed) != (measured["config"], cell["measured"]["seed"]):
            raise SystemExit(f"{run}: the checkpoint is not that of the cell's configuration")
    together = Ensemble(agents)
    scales = measured["guidance_scales"]
    tuned: dict[str, Any] = {}
    if scales:
        began = time.process_time()
        tuned["tuning"] = together.tune_guidance(dataset, scales).as_dict()
        tuned["tuning_cpu_seconds"] = time.process_time() - began
    evaluations = []
    for w, played in evaluate_scales(
        together,
        measured["env_id"] or dataset,
        measured["n_episodes"],
        scales or [None],
        seed=10_000 + seeds_of(group)[0],
        deterministic=measured["deterministic"],
    ):
        print(f"{about['label']}, {dataset.id} {seeds_of(group)}, scale {w}: {played}", flush=True)
        evaluations.append({"guidance_scale": w, **dataclasses.asdict(played)})
    return {
        **about,
        "cpu_seconds": sum(cell["training"]["cpu_seconds"] for cell, _ in group),
        **tuned,
        "evaluations": evaluations,
        "processor": processor(),
        "versions": versions(),
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """For every dataset and scale, mean and interval over ensembles and episodes."""
    lines = []
    for name in sorted({row["measured"]["dataset"] for row in rows}):
        mine = [row for row in rows if row["measured"]["dataset"] == name]
        played = [{e["guidance_scale"]: e for e in row["evaluations"]} for row in mine]
        seconds = np.mean([row["cpu_seconds"] for row in mine])
        more = np.mean([row.get("tuning_cpu_seconds", 0.0) for row in mine])
        lines.append(f"{name}: {len(mine)} ensembles, {seconds:.0f} CPU-seconds")
        for w in played[0]:
            kind = "played" if w is None else f"w = {w:g}"
            lines.append(line(kind, [by_scale[w] for by_scale in played]))
        if "tuning" in mine[0]:
            chosen = [row["tuning"]["best"] for row in mine]
            at_chosen = [by_scale[w] for by_scale, w in zip(played, chosen, strict=True)]
            lines.append(f"{line('tuned', at_chosen)}, w = {chosen}, {more:.0f} CPU-seconds more")
            for kind, scales in (("tuned", chosen), ("w = 1", [1.0] * len(mine))):
                lost = [losses(row["evaluations"], w) for row, w in zip(mine, scales, strict=True)]
                upper, lower = np.mean(lost, axis=0)
                lines.append(f"  {kind} loses {lower:.1f} (halved) to {upper:.1f} points")
    return "\n".join(lines)


def losses(evaluations: list[dict[str, Any]], chosen: float) -> tuple[float, float]:
    """Normalised points to the best played scale, and the halved loss (benchmarks/tuning.py)."""
    returns = np.array([e["returns"] for e in evaluations])
    index = [e["guidance_scale"] for e in evaluations].index(chosen)
    reference = evaluations[0]["reference"]
    return_per_point = (reference["maximum"] - reference["minimum"]) / 100.0
    means = returns.mean(axis=1)
    upper = (means.max() - means[index]) / return_per_point
    return float(upper), loss_of_choice(returns, index) / return_per_point


def line(kind: str, evaluations: list[dict[str, Any]]) -> str:
    """Mean, its interval over ensembles and episodes, normalised mean; mean of each ensemble."""
    returns = [e["returns"] for e in evaluations]
    low, high = hierarchical_bootstrap(returns)
    scores = [e["score"] for e in evaluations if e["score"] is not None]
    score = f"{np.mean(scores):6.1f}" if scores else "     -"
    means = ", ".join(f"{np.mean(r):.0f}" for r in returns)
    return f"  {kind:10s}{np.mean(returns):8.0f} [{low:.0f}, {high:.0f}]  {score}  ({means})"


def main(args: Args) -> None:
    """Measure, write after every ensemble, and print those that were asked for."""
    torch.set_num_threads(1)
    if len(args.runs) != len(args.results) or args.members < 1:
        raise SystemExit("as many --runs as --results are needed, and at least one --members")
    rows = json.loads(args.output.read_text()) if args.output.exists() else []
    asked = []
    for group in groups(args):
        about = what(group, args)
        row = next((row for row in rows if {key: row[key] for key in about} == about), None)
        if row is None:
            row = measure(group, about)
            rows.append(row)
            rows.sort(key=lambda r: (r["label"], r["measured"]["dataset"], r["where"], r["seeds"]))
            args.output.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
        asked.append(row)
    if not asked:
        raise SystemExit(f"no {args.members} finished cells with the label {args.label!r}")
    print(summary(asked))


if __name__ == "__main__":
    main(tyro.cli(Args))
