"""One experiment with several seeds: trained at the same time, and summarized.

Each seed is a run like any other: its own process with one torch thread, its own run folder and
checkpoint. So it equals the run of that seed alone with one thread, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgpo.envs.play.scores import scale_label
from qgpo.envs.text import counted, readable, with_interval
from qgpo.experiments import documents
from qgpo.experiments.documents import (
    Document,
    DocumentError,
    check_same_training,
    evaluations_from_json,
)
from qgpo.experiments.folder import RunFolder
from qgpo.experiments.plan import Cell
from qgpo.experiments.settings import Experiment
from qgpo.experiments.statistics import interval_of
from qgpo.experiments.threads import available_cores
from qgpo.fields import check_seed


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise ValueError for numbers that are no seeds, for equal ones, and for none."""
    if not seeds:
        raise ValueError("seeds=[], expected at least one")
    for seed in seeds:
        check_seed(seed)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={list(seeds)}, expected different seeds")


def cells_of(
    experiment: Experiment[Any], seeds: Sequence[int], name_of: Callable[[int], str]
) -> list[Cell]:
    """A cell for each seed; `name_of(seed)` is the name of its run folder."""
    fields = {f.name: getattr(experiment, f.name) for f in dataclasses.fields(Experiment)}
    fields |= {"threads": experiment.threads or 1, "progress_bar": False}
    return [Cell(**fields | {"seed": seed, "folder_name": name_of(seed)}) for seed in seeds]


def as_begun(cell: Cell, folder: RunFolder, fingerprint: str) -> Cell:
    """The cell with the number of threads with which its run began, if it did.

    Raises DocumentError where the folder holds another training, or one on other data than those
    with that fingerprint.
    """
    if not folder.config.exists():
        return cell
    document = documents.read(folder.config)
    check_same_training(cell, folder.config, document)
    found = document.get("dataset", {}).get("fingerprint", fingerprint)
    if found != fingerprint:
        raise DocumentError(
            f"{folder.path} was trained on other data than the present {cell.dataset_id!r} "
            f"({found}, not {fingerprint}): choose another --run-dir, or continue this one alone, "
            "with --resume and --allow-other-dataset"
        )
    threads = document.get("machine", {}).get("threads") or cell.threads
    return dataclasses.replace(cell, threads=threads)


def at_once(seeds: Sequence[int], threads: int = 1) -> int:
    """Processes at the same time: as many as cores have their threads, at most one per seed."""
    return max(1, min(len(seeds), int(available_cores()) // max(1, threads)))


def summary(results: Sequence[Document], data: NDArray[np.float64]) -> str:
    """Scores of every seed, and their mean with the interval of a new training, as a table.

    Returns, below those of the `data`, or percent of episodes that succeed. Where the scale was
    tuned, each seed has its own. With one seed the interval is over episodes alone.
    """
    seeds = [document["measured"]["seed"] for document in results]
    played = [dict(evaluations_from_json(document["evaluations"])) for document in results]
    tuned = [(document.get("guidance_tuning") or {}).get("best") for document in results]
    rows_of = {
        scale_label(scale): [one[scale] for one in played]
        for scale in played[0]
        if all(scale in one for one in played)
    }
    if None not in tuned:
        rows_of["tuned"] = [one[scale] for one, scale in zip(played, tuned, strict=True)]
    if not rows_of:
        return f"{counted(len(seeds), 'seed')}: nothing was evaluated"
    by_success = all(one.successes is not None for row in rows_of.values() for one in row)
    rows = [] if by_success else [f"{'data':22s}{readable(float(data.mean())):>8s}"]
    for label, row in rows_of.items():
        values = [
            100.0 * np.asarray(one.successes, float) if by_success else one.returns for one in row
        ]
        means = [float(np.mean(value)) for value in values]
        one_number = sum(map(len, values)) == 1
        known = None if one_number else interval_of(values, by_success)
        mean, interval = with_interval(float(np.mean(means)), known)
        each = "  ".join(f"{readable(one):>10s}" for one in means)
        rows.append(f"{label:22s}{mean:>8s}   {interval:20s}{each}")
    what = "success %" if by_success else "return"
    names = "  ".join(f"{f'seed {seed}':>10s}" for seed in seeds)
    rows.insert(0, f"{'':22s}{what:>8s}   {'95 % interval':20s}{names}")
    if None not in tuned:
        own = "  ".join(f"{f'w = {scale:g}':>10s}" for scale in tuned)
        rows.append(f"{'':53s}{own}")
    return "\n".join(rows)
