"""What a benchmark measured: the JSON files of its cells, as numbers by dataset, agent and seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.experiments import statistics

RESAMPLES = 2_000
"""draws of a bootstrap interval"""

Key = tuple[str, str, int]
"""dataset, label, seed"""


class ResultError(ValueError):
    """A file that is no cell's result."""


@dataclass(frozen=True)
class Run:
    """One training and its evaluations."""

    dataset: str
    label: str
    seed: int
    headline_scale: float | None
    """guidance scale that was configured before any evaluation; None for agents without one"""
    returns: dict[float | None, NDArray[np.float64]]
    """every episode's return, by guidance scale"""
    reference: ReferenceScores | None
    data_returns: NDArray[np.float64]
    """of the dataset's own episodes"""
    fingerprint: str
    """of the dataset"""
    wall_seconds: float
    cpu_seconds: float | None
    """of training; None where it was not measured"""
    environment_steps: int
    """0 for agents that learn from the data alone"""
    about: dict[str, Any]
    """versions, machine, configuration"""

    @property
    def key(self) -> Key:
        """Which run it is."""
        return self.dataset, self.label, self.seed

    @property
    def device(self) -> str:
        """Torch device of the training."""
        return str(self.about["machine"]["device"])

    def mean(self, scale: float | None) -> float:
        """Mean return at that guidance scale."""
        return float(self.returns[scale].mean())

    def score(self, scale: float | None) -> float | None:
        """Normalised score of the mean return, None without references."""
        return None if self.reference is None else float(self.reference.normalize(self.mean(scale)))


@dataclass(frozen=True)
class Improvement:
    """How probably a run of one agent beats one of another."""

    first: str
    second: str
    datasets: int
    """on which both have scores"""
    runs: int
    """of either agent, on the dataset with the fewest"""
    probability: float
    interval: tuple[float, float]
    """95 % bootstrap"""

    @property
    def is_clear(self) -> bool:
        """Whether a half is outside the interval; that of single runs has no width."""
        return self.runs > 1 and not self.interval[0] <= 0.5 <= self.interval[1]


@dataclass(frozen=True)
class Results:
    """All runs that were measured, and those that should have been."""

    runs: dict[Key, Run]
    expected: list[Key]

    @classmethod
    def read(cls, folders: Sequence[Path], expected: Iterable[Key] = ()) -> Results:
        """Every `*.json` in the folders.

        Expected are `expected` or, where it is empty, all combinations of the datasets, labels
        and seeds that are there. Raises ResultError for other files, runs that are there twice,
        and a dataset that is not the same in all its runs.
        """
        paths = sorted(path for folder in folders for path in folder.glob("*.json"))
        if not paths:
            names = ", ".join(str(folder) for folder in folders)
            raise ResultError(f"no results in {names}: expected one JSON per run there")
        runs: dict[Key, Run] = {}
        fingerprints: dict[str, str] = {}
        for path in paths:
            run = read_run(path)
            if run.key in runs:
                raise ResultError(f"{path}: {run.key} is there twice")
            if fingerprints.setdefault(run.dataset, run.fingerprint) != run.fingerprint:
                raise ResultError(
                    f"{path} was measured on other data under the name {run.dataset!r} than the "
                    "files before it: keep them in different folders"
                )
            runs[run.key] = run
        return cls(runs, list(expected) or _combinations(runs))

    @cached_property
    def datasets(self) -> list[str]:
        """In the order in which they are expected."""
        return list(dict.fromkeys(dataset for dataset, _, _ in self.expected))

    @cached_property
    def labels(self) -> list[str]:
        """Agents, in the order in which they are expected."""
        return list(dict.fromkeys(label for _, label, _ in self.expected))

    @property
    def missing(self) -> list[Key]:
        """Expected runs that nobody measured yet."""
        return [key for key in self.expected if key not in self.runs]

    def planned(self, dataset: str, label: str) -> list[Key]:
        """The expected runs of an agent on a dataset."""
        return [key for key in self.expected if key[:2] == (dataset, label)]

    def of(self, dataset: str, label: str) -> list[Run]:
        """The expected runs of an agent on a dataset that are there, one per seed."""
        return [self.runs[key] for key in self.planned(dataset, label) if key in self.runs]

    def scores(self, dataset: str, label: str) -> NDArray[np.float64]:
        """Normalised headline scores (R,) of the runs that are there."""
        scores = [run.score(run.headline_scale) for run in self.of(dataset, label)]
        return np.array([score for score in scores if score is not None], dtype=np.float64)

    def tasks(self, label: str, among: Sequence[str] | None = None) -> list[NDArray[np.float64]]:
        """Headline scores by dataset, datasets without any left out."""
        found = [self.scores(d, label) for d in (self.datasets if among is None else among)]
        return [scores for scores in found if len(scores)]

    def covered(self, label: str) -> list[str]:
        """Datasets with a headline score of the agent."""
        return [dataset for dataset in self.datasets if len(self.scores(dataset, label))]

    def best_scale(self, dataset: str, label: str) -> float | None:
        """The scale with the best mean over seeds: chosen by online returns, so no headline."""
        runs = self.of(dataset, label)
        scales = [s for s in (runs[0].returns if runs else {}) if s is not None]
        everywhere = [s for s in scales if all(s in run.returns for run in runs)]
        if not everywhere:
            return None
        return max(everywhere, key=lambda s: float(np.mean([run.mean(s) for run in runs])))

    @cached_property
    def improvements(self) -> list[Improvement]:
        """All pairs of agents that have scores on a common dataset."""
        found = []
        for first, second in combinations(self.labels, 2):
            common = [d for d in self.covered(first) if d in self.covered(second)]
            if common:
                sides = self.tasks(first, common), self.tasks(second, common)
                probability = statistics.probability_of_improvement(*sides)
                interval = statistics.improvement_interval(*sides, resamples=RESAMPLES)
                runs = min(len(scores) for side in sides for scores in side)
                found.append(Improvement(first, second, len(common), runs, probability, interval))
        return found

    @cached_property
    def trained_on_cpu(self) -> bool:
        """Whether CPU time says how long training takes: measured for all runs, and no GPU."""
        runs = self.runs.values()
        return all(r.cpu_seconds is not None and r.device == "cpu" for r in runs)

    def minutes(self, run: Run) -> float:
        """Of training: CPU time, or where that says too little the wall clock."""
        if self.trained_on_cpu and run.cpu_seconds is not None:
            return run.cpu_seconds / 60.0
        return run.wall_seconds / 60.0

    def center(self, label: str) -> tuple[float, float]:
        """Minutes of training and headline score of an agent: means over its covered datasets.

        A mean over runs would favor the dataset with most seeds.
        """
        covered = self.covered(label)
        minutes = [np.mean([self.minutes(run) for run in self.of(d, label)]) for d in covered]
        scores = [self.scores(dataset, label).mean() for dataset in covered]
        return float(np.mean(minutes)), float(np.mean(scores))

    def data(self, dataset: str) -> Run | None:
        """Any run on the dataset, for what it says of the data."""
        return next((run for run in self.runs.values() if run.dataset == dataset), None)


def read_run(path: Path) -> Run:
    """One JSON. Raises ResultError where it is something else."""
    try:
        raw = json.loads(path.read_text())
        data, reference = raw["dataset"], raw["dataset"]["reference"]
        about = {name: raw[name] for name in ("preset", "overrides", "versions", "machine")}
        run = Run(
            dataset=data["id"],
            label=raw["label"],
            seed=raw["measured"]["seed"],
            headline_scale=raw["headline_scale"],
            returns={
                e["guidance_scale"]: np.array(e["returns"], dtype=np.float64)
                for e in raw["evaluations"]
            },
            reference=ReferenceScores(**reference) if reference else None,
            data_returns=np.array(data["returns"], dtype=np.float64),
            fingerprint=data["fingerprint"],
            wall_seconds=raw["training"]["wall_seconds"],
            cpu_seconds=raw["training"]["cpu_seconds"],
            environment_steps=raw["environment_steps"],
            about={**about, "measured": raw["measured"]},
        )
        if run.headline_scale not in run.returns:
            raise ValueError(f"nothing was evaluated at its headline scale {run.headline_scale}")
        return run
    except (LookupError, TypeError, ValueError) as error:
        raise ResultError(f"{path} is no cell's result: {error!r}") from error


def _combinations(runs: dict[Key, Run]) -> list[Key]:
    datasets, labels, seeds = (sorted(set(column)) for column in zip(*runs, strict=True))
    return [(d, a, s) for d in datasets for a in labels for s in seeds]
