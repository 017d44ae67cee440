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
from qgpo.experiments.documents import Document, evaluations_from_json
from qgpo.experiments.plan import Cell
from qgpo.experiments.settings import Experiment
from qgpo.experiments.statistics import interval_of
from qgpo.experiments.threads import available_cores
from qgpo.fields import check_seed


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise ValueError for numbers that are no seeds, and for equal ones."""
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


def at_once(seeds: Sequence[int]) -> int:
    """Processes at the same time: as many as there are cores, at most one per seed."""
    return max(1, min(len(seeds), int(available_cores())))


def summary(results: Sequence[Document], data: NDArray[np.float64]) -> str:
    """Scores of every seed, and their mean with the interval of a new training, as a table.

    Returns, below those of the `data`, or percent of episodes that succeed. With one seed the
    interval is over episodes alone.
    """
    seeds = [document["measured"]["seed"] for document in results]
    played = [dict(evaluations_from_json(document["evaluations"])) for document in results]
    scales = [scale for scale in played[0] if all(scale in one for one in played)]
    if not scales:
        return f"{counted(len(seeds), 'seed')}: nothing was evaluated"
    by_success = all(one[scale].successes is not None for one in played for scale in scales)
    rows = [] if by_success else [f"{'data':22s}{readable(float(data.mean())):>8s}"]
    for scale in scales:
        values = [
            100.0 * np.asarray(one[scale].successes, float) if by_success else one[scale].returns
            for one in played
        ]
        means = [float(np.mean(value)) for value in values]
        low, high = interval_of(values, by_success)
        mean, interval = with_interval(float(np.mean(means)), (low, high))
        each = "  ".join(f"{readable(one):>8s}" for one in means)
        rows.append(f"{scale_label(scale):22s}{mean:>8s}   {interval:20s}{each}")
    what = "success %" if by_success else "return"
    names = "  ".join(f"{f'seed {seed}':>8s}" for seed in seeds)
    return "\n".join([f"{'':22s}{what:>8s}   {'95 % interval':20s}{names}", *rows])
