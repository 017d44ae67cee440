"""Whether the numbers of ranking.py order critics as the returns of their policies do.

For every measured run, the evaluations of its run folder give the mean return (or the percentage of
successes) at the guidance scale, and at w = 0. Within each dataset both the measure and the return
are replaced by ranks; the correlation is that of all ranks together, with an interval over runs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ranking_report import POLICY, TITLES, cell, of_all_states

from qgpo.experiments import documents
from qgpo.experiments.documents import Evaluations
from qgpo.experiments.folder import RunFolder
from qgpo.experiments.ranking import Estimate, rank_correlation
from qgpo.files import write_whole

FORMAT_VERSION = 1
Document = dict[str, Any]
MEASURES = tuple(name for name in TITLES if name not in ("reliability", "perfect_above"))
TARGETS = {"at_scale": "return at w", "over_behavior": "return at w minus at w = 0"}


@dataclass
class Args:
    """Ranking against returns."""

    rankings: tuple[Path, ...]
    """JSON files of ranking.py"""
    runs: Path | None = None
    """folder with the run folders, where they are no longer where they were measured"""
    follow: str = POLICY
    """who played on in the truth: policy or behavior"""
    out: Path | None = None
    """JSON to write"""


@dataclass(frozen=True)
class Row:
    """One critic."""

    name: str
    dataset: str
    measures: dict[str, float | None]
    returns: dict[str, float]
    """by the name of the target"""


def read_measured(path: Path) -> list[Document]:
    """The runs of a file of ranking.py, none where it is not there; ValueError for another file."""
    if not path.exists():
        return []
    document = documents.read_json(path)
    known = isinstance(document, dict) and document.get("format_version") == FORMAT_VERSION
    runs: Any = document.get("runs") if known else None  # other files have that version, too
    if not isinstance(runs, list):
        raise ValueError(f"{path} is no file of ranking.py: choose another one")
    return runs


def returns_of(folder: RunFolder, scale: float) -> dict[str, float]:
    """What the policy of a run gave, by target; empty where it was not played at the scale.

    Of agents without guidance it is what they gave, and not over the behavior.
    """
    played: Evaluations = [
        one
        for document in documents.read_results(folder)
        for one in documents.evaluations_from_json(document["evaluations"])
    ]
    means = {
        w: 100.0 * float(np.mean(e.successes)) if e.successes is not None else float(e.mean)
        for w, e in reversed(played)
    }
    if None in means:
        return {"at_scale": means[None]}
    if scale not in means:
        return {}
    over = {"over_behavior": means[scale] - means[0.0]} if 0.0 in means else {}
    return {"at_scale": means[scale], **over}


def read_rows(args: Args) -> list[Row]:
    """Every measured run with returns; names those without."""
    rows = []
    settings: dict[str, Any] = {}
    for path in args.rankings:
        if not path.exists():
            raise ValueError(f"{path} does not exist")
        for document in read_measured(path):
            run = Path(document["run"])
            run = run if args.runs is None else args.runs / run.name
            if "unfinished" in document:
                print(f"left out: {path} has {document['unfinished']} of {run}")
                continue
            first = settings.setdefault(str(run), document["settings"])
            if first is not document["settings"]:
                raise ValueError(
                    f"{run} is there twice, measured by {first} and {document['settings']}"
                )
            scale = document["settings"]["guidance_scale"]
            returns = returns_of(RunFolder(run), scale)
            if not returns:
                print(
                    f"left out: {run} was not played at w = {scale:g}: python scripts/evaluate.py "
                    f"--run {run} --guidance-scale 0 {scale:g} --output {run}/evaluation-2.json"
                )
                continue
            if args.follow not in document["returns"]:
                raise ValueError(
                    f"follow={args.follow!r}: {path} has {sorted(document['returns'])} of {run}"
                )
            of = of_all_states(document, args.follow)
            measures = {name: of[name]["value"] for name in MEASURES}
            name = f"{document['label']}, seed {document['seed']}"
            rows.append(Row(name, document["dataset"]["id"], measures, returns))
    return rows


def compare(rows: list[Row], measure: str, target: str) -> Estimate:
    """Spearman's correlation within datasets, over all runs that have both numbers."""
    groups: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        value = row.measures[measure]
        if value is not None and target in row.returns:
            x, y = groups.setdefault(row.dataset, ([], []))
            x.append(value)
            y.append(row.returns[target])
    return rank_correlation(list(groups.values()))


def main(args: Args) -> None:
    """Print the runs, and the correlations of every measure."""
    rows = read_rows(args)
    if not rows:
        raise ValueError("no run has both a ranking and returns")
    for row in rows:
        measured = row.measures["correlation"], row.measures["share"], row.measures["guided_mean"]
        numbers = "".join("       -" if x is None else f"{x:8.3g}" for x in measured)
        played = "".join(f"{row.returns.get(name, np.nan):10.1f}" for name in TARGETS)
        print(f"{row.dataset:44s} {row.name:28s}{numbers}{played}")
    print("columns: correlation, share of the perfect gain, gain of the guided mean; returns\n")
    print(f"{'Spearman within datasets, of':36s}" + "".join(f"{t:>30s}" for t in TARGETS.values()))
    found: Document = {}
    for measure in MEASURES:
        estimates = {target: compare(rows, measure, target) for target in TARGETS}
        found[measure] = {target: vars(estimate) for target, estimate in estimates.items()}
        cells = [f"{cell(found[measure][t])}, n = {found[measure][t]['states']}" for t in TARGETS]
        print(f"{TITLES[measure].strip():36s}" + "".join(f"{text:>30s}" for text in cells))
    if args.out is not None:
        about = {"rankings": [path.as_posix() for path in args.rankings], "follow": args.follow}
        runs = [vars(row) for row in rows]
        content = json.dumps({**about, "runs": runs, "correlations": found}, indent=1)
        write_whole(args.out, content.encode() + b"\n")
