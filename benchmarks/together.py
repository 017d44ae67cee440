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
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from measured import Agent, Group, Scale, is_training_of

from qgpo import Ensemble, load_agent, load_dataset
from qgpo.agents.core.provenance import processor, versions
from qgpo.envs.play.evaluation import evaluate_scales
from qgpo.experiments.packing import Document, pack, read_document, read_documents, write_document

Members = list[tuple[Document, Path]]
"""documents of an ensemble's cells, and their run folders"""


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
    output: Path = Path("benchmarks/together")
    """folder for the results; ensembles that it already holds are not repeated"""


def ensembles(args: Args) -> list[Members]:
    """The cells of every ensemble that is complete, with their run folders."""
    cells: dict[tuple[str, int], Members] = {}
    for runs, results in zip(args.runs, args.results, strict=True):
        for name, cell in read_documents(results).items():
            dataset, seed = cell["measured"]["dataset"], cell["measured"]["seed"]
            if cell["label"] == args.label and (not args.datasets or dataset in args.datasets):
                members = cells.setdefault((dataset, seed // args.members), [])
                members.append((cell, runs / name))
    complete = []
    for (dataset, _), members in sorted(cells.items()):
        members.sort(key=lambda member: member[0]["measured"]["seed"])
        without = [str(run) for _, run in members if not (run / "checkpoint.zip").exists()]
        if without:
            print(f"{dataset}, seeds {seeds_of(members)}: no checkpoint in {', '.join(without)}")
        elif len(members) != args.members:
            print(f"{dataset}: seeds {seeds_of(members)} make no ensemble of {args.members}")
        else:
            complete.append(members)
    return complete


def seeds_of(members: Members) -> list[int]:
    """Of the trainings."""
    return [cell["measured"]["seed"] for cell, _ in members]


def describe(members: Members, args: Args) -> Document:
    """What decides the result. SystemExit where the cells differ by more than their seed."""
    shared = [{k: v for k, v in cell["measured"].items() if k != "seed"} for cell, _ in members]
    if any(settings != shared[0] for settings in shared):
        raise SystemExit(f"cells of seeds {seeds_of(members)} differ by more than their seed")
    [data] = {cell["dataset"]["fingerprint"] for cell, _ in members}
    measured = shared[0]
    if args.scales and measured["guidance_scales"]:
        measured = {**measured, "guidance_scales": list(args.scales)}
    return {
        "label": members[0][0]["label"],
        "seeds": seeds_of(members),
        "where": args.where,
        "measured": measured,
        "fingerprint": data,
    }


def name_of(about: Document) -> str:
    """Name of the ensemble's file: dataset, label, seeds and machine."""
    seeds = "-".join(map(str, about["seeds"]))
    name = f"{about['measured']['dataset']}-{about['label']}-s{seeds} {about['where']}".strip()
    return re.sub(r"[^\w.+=-]+", "-", name)


def measure(members: Members, about: Document) -> Document:
    """Tune the ensemble, then play it at every scale."""
    measured = about["measured"]
    dataset = load_dataset(measured["dataset"], download=False)
    agents = [load_agent(run, device="cpu") for _, run in members]
    for agent, (cell, run) in zip(agents, members, strict=True):
        if not is_training_of(agent, cell["measured"]):
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
        seed=10_000 + about["seeds"][0],
        deterministic=measured["deterministic"],
    ):
        print(f"{about['label']}, {dataset.id} {about['seeds']}, scale {w}: {played}", flush=True)
        evaluations.append({"guidance_scale": w, **dataclasses.asdict(played)})
    return {
        **about,
        "cpu_seconds": sum(cell["training"]["cpu_seconds"] for cell, _ in members),
        **tuned,
        "evaluations": evaluations,
        "processor": processor(),
        "versions": versions(),
    }


def summary(rows: list[Document]) -> str:
    """For every dataset and scale, mean and interval over ensembles and episodes."""
    lines = []
    for dataset in sorted({row["measured"]["dataset"] for row in rows}):
        of_dataset = [row for row in rows if row["measured"]["dataset"] == dataset]
        agents = [Agent.from_ensemble(row) for row in of_dataset]
        seconds = np.mean([agent.cpu_seconds for agent in agents])
        lines.append(f"{dataset}: {len(agents)} ensembles, {seconds:.0f} CPU-seconds")
        for w in agents[0].returns:
            lines.append(line("played" if w is None else f"w = {w:g}", agents, w))
        if agents[0].tuned is not None:
            chosen = [agent.tuned for agent in agents]
            more = np.mean([row["tuning_cpu_seconds"] for row in of_dataset])
            played = line("tuned", agents, "tuned")
            lines.append(f"{played}, w = {chosen}, {more:.0f} CPU-seconds more")
            for kind, scale in (("tuned", "tuned"), ("w = 1", 1.0)):
                upper, lower = np.mean([agent.losses(scale) for agent in agents], axis=0)
                lines.append(f"  {kind} loses {lower:.1f} (halved) to {upper:.1f} points")
    return "\n".join(lines)


def line(kind: str, agents: list[Agent], scale: Scale) -> str:
    """Mean, its interval over ensembles and episodes, normalised mean; mean of each ensemble."""
    group = Group(agents, scale)
    low, high = group.interval
    found = agents[0].score(group.mean)
    score = "     -" if found is None else f"{found:6.1f}"
    means = ", ".join(f"{returns.mean():.0f}" for returns in group.returns)
    return f"  {kind:10s}{group.mean:8.0f} [{low:.0f}, {high:.0f}]  {score}  ({means})"


def main(args: Args) -> None:
    """Measure, write after every ensemble, and print those of the arguments."""
    torch.set_num_threads(1)
    if len(args.runs) != len(args.results) or args.members < 1:
        raise SystemExit("as many --runs as --results are needed, and at least one --members")
    wanted = []
    for members in ensembles(args):
        about = describe(members, args)
        row = read_document(args.output, name_of(about))
        if row is None:
            row = measure(members, about)
            write_document(args.output, name_of(about), row)
        elif any(row[key] != value for key, value in about.items()):
            raise SystemExit(
                f"{args.output / name_of(about)} was measured with other settings: give another "
                "--output"
            )
        wanted.append(row)
    if not wanted:
        raise SystemExit(f"no {args.members} finished cells with the label {args.label!r}")
    pack(args.output)
    print(summary(wanted))


if __name__ == "__main__":
    main(tyro.cli(Args))
