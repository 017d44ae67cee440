"""What a benchmark measured, as numbers by dataset, agent and seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qgpo.agents.core.parsing import brief
from qgpo.experiments import statistics
from qgpo.experiments.measured_run import Key, Run, read_run
from qgpo.experiments.packing import ResultError, read_what_can_be

__all__ = ["RESAMPLES", "Improvement", "Key", "ResultError", "Results", "Run", "read_run"]
RESAMPLES = 2_000
"""draws of a bootstrap interval"""
SCORED = {True: "success", False: "returns"}


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
        """Whether the interval excludes 1/2; that of single runs has no width."""
        return self.runs > 1 and not self.interval[0] <= 0.5 <= self.interval[1]


@dataclass(frozen=True, repr=False)
class Results:
    """The runs that were measured, and the keys of those that are expected."""

    runs: dict[Key, Run]
    expected: list[Key]
    skipped: tuple[str, ...] = ()
    """what is wrong with results that were left out"""

    def __repr__(self) -> str:
        labels, datasets = ", ".join(self.labels), ", ".join(self.datasets)
        return f"Results({len(self.runs)} runs of {labels} on {datasets})"

    @classmethod
    def read(
        cls, folders: Sequence[Path], expected: Iterable[Key] = (), skip: bool = False
    ) -> Results:
        """Every cell's result in the folders, packed or not.

        Where `expected` is empty, all combinations of the datasets, labels and seeds of the runs
        are expected; other runs than those expected are left out. Raises ResultError for other
        files, for a second result of a run, and for results on other data than those before them
        under the same name, scored in another way (by success or by returns) or by other reference
        returns, or of other settings under the same label; with `skip` these are left out, and
        `skipped` says why. Raises it, too, where no result is left.
        """
        runs: dict[Key, Run] = {}
        fingerprints: dict[str, str] = {}
        by_success: dict[str, bool] = {}
        references: dict[str, tuple[float, float] | None] = {}
        first: dict[tuple[str, str], Run] = {}
        errors: list[ResultError] = []
        for folder in folders:
            documents, unreadable = read_what_can_be(folder)
            errors += unreadable.values()
            for name, document in documents.items():
                try:
                    run = read_run(document, str(folder / name))
                    if run.key in runs:
                        raise ResultError(f"{folder / name}: there are two results of {run.key}")
                    if fingerprints.setdefault(run.dataset, run.fingerprint) != run.fingerprint:
                        raise ResultError(
                            f"{folder / name} was measured on other data under the name "
                            f"{run.dataset!r} than the results before it: use separate folders"
                        )
                    if by_success.setdefault(run.dataset, run.by_success) != run.by_success:
                        raise ResultError(
                            f"{folder / name} was scored by {SCORED[run.by_success]}, the results "
                            f"on {run.dataset!r} before it by {SCORED[not run.by_success]}: use "
                            "separate folders"
                        )
                    same = references.setdefault(run.dataset, run.limits)
                    if same != run.limits:
                        raise ResultError(
                            f"{folder / name} has the reference returns {run.limits}, the results "
                            f"on {run.dataset!r} before it {same}: use separate folders"
                        )
                    _check_same_settings(first.setdefault(run.key[:2], run), run, folder / name)
                    runs[run.key] = run
                except ResultError as error:
                    errors.append(error)
        if errors and not skip:
            raise errors[0]
        if not runs:
            names, rest = ", ".join(map(str, folders)), "".join(f"; {e}" for e in errors)
            raise ResultError(
                f"no results in {names}: expected one JSON per run, or packed tables{rest}"
            )
        columns = [sorted(set(column)) for column in zip(*runs, strict=True)]
        expected = list(expected) or list(product(*columns))  # type: ignore[arg-type]
        wanted = set(expected)
        runs = {key: run for key, run in runs.items() if key in wanted} or runs
        return cls(runs, expected, tuple(map(str, errors)))

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
        """Expected runs that are not measured yet."""
        return [key for key in self.expected if key not in self.runs]

    def planned(self, dataset: str, label: str) -> list[Key]:
        """The expected runs of an agent on a dataset."""
        return [key for key in self.expected if key[:2] == (dataset, label)]

    def of(self, dataset: str, label: str) -> list[Run]:
        """The measured runs of an agent on a dataset that are expected, one per seed."""
        return [self.runs[key] for key in self.planned(dataset, label) if key in self.runs]

    def labelled(self, label: str) -> list[Run]:
        """All measured runs of an agent."""
        return [run for run in self.runs.values() if run.label == label]

    def scores(self, dataset: str, label: str) -> NDArray[np.float64]:
        """Normalised headline scores (R,) of the measured runs."""
        scores = [run.score for run in self.of(dataset, label)]
        return np.array([score for score in scores if score is not None], dtype=np.float64)

    def covered(self, label: str) -> list[str]:
        """Datasets with a headline score of the agent."""
        return [dataset for dataset in self.datasets if len(self.scores(dataset, label))]

    @cached_property
    def scored_datasets(self) -> list[str]:
        """Datasets on which any agent has a headline score."""
        return [d for d in self.datasets if any(len(self.scores(d, x)) for x in self.labels)]

    def is_complete(self, label: str) -> bool:
        """Whether the agent has a headline score on every dataset that has any.

        Means of other agents are over other datasets: they are shown apart.
        """
        return len(self.covered(label)) == len(self.scored_datasets)

    @cached_property
    def scored_labels(self) -> list[str]:
        """Agents with a headline score on any dataset; those that cover all of them come first."""
        scored = [label for label in self.labels if self.covered(label)]
        return sorted(scored, key=lambda label: not self.is_complete(label))

    def iqm_interval(self, label: str) -> tuple[float, float]:
        """Stratified bootstrap interval of the agent's interquartile mean."""
        if label not in self._iqm_intervals:
            tasks = self.tasks(label)
            interval = statistics.stratified_bootstrap(tasks, resamples=RESAMPLES)
            self._iqm_intervals[label] = interval
        return self._iqm_intervals[label]

    @cached_property
    def _iqm_intervals(self) -> dict[str, tuple[float, float]]:
        return {}

    def tasks(self, label: str, among: Sequence[str] | None = None) -> list[NDArray[np.float64]]:
        """Headline scores by dataset, of all that the agent covers or of some of these."""
        return [self.scores(d, label) for d in self.covered(label) if among is None or d in among]

    def interval(self, dataset: str, label: str) -> tuple[float, float]:
        """Interval of an agent's mean on a dataset at its headline scale: see `interval_of`."""
        seeds = [run.outcomes[run.headline_scale] for run in self.of(dataset, label)]
        return statistics.interval_of(seeds, self.by_success(dataset))

    def best_scale(self, dataset: str, label: str) -> float | None:
        """The scale with the best mean over seeds: chosen online, so no headline."""
        runs = self.of(dataset, label)
        scales = [s for s in (runs[0].returns if runs else {}) if s is not None]
        of_all = [s for s in scales if all(s in run.returns for run in runs)]
        return max(of_all, key=lambda s: np.mean([run.mean(s) for run in runs]), default=None)

    @cached_property
    def improvements(self) -> list[Improvement]:
        """All pairs of agents that have scores on a common dataset."""
        pairs = []
        for first, second in combinations(self.scored_labels, 2):
            common = [d for d in self.covered(first) if d in self.covered(second)]
            if common:
                sides = self.tasks(first, common), self.tasks(second, common)
                probability = statistics.probability_of_improvement(*sides)
                interval = statistics.improvement_interval(*sides, resamples=RESAMPLES)
                runs = min(len(scores) for side in sides for scores in side)
                pairs.append(Improvement(first, second, len(common), runs, probability, interval))
        return pairs

    @cached_property
    def trained_on_cpu(self) -> bool:
        """Whether CPU time is comparable: measured for all runs, none of them on a GPU."""
        runs = self.runs.values()
        return all(r.cpu_seconds is not None and r.machine["device"] == "cpu" for r in runs)

    def minutes(self, run: Run) -> float:
        """Training time: CPU time, or wall-clock time where not all runs were trained on CPUs."""
        seconds = run.cpu_seconds if self.trained_on_cpu else None
        return (run.wall_seconds if seconds is None else seconds) / 60.0

    def center(self, label: str) -> tuple[float, float]:
        """Minutes of training and headline score of an agent: means over its covered datasets.

        A mean over runs would favor the dataset with most seeds.
        """
        covered = self.covered(label)
        minutes = [np.mean([self.minutes(run) for run in self.of(d, label)]) for d in covered]
        scores = [self.scores(dataset, label).mean() for dataset in covered]
        return float(np.mean(minutes)), float(np.mean(scores))

    def data(self, dataset: str) -> Run | None:
        """Any run on the dataset: all hold the same facts about the data."""
        return next((run for run in self.runs.values() if run.dataset == dataset), None)

    def by_success(self, dataset: str) -> bool:
        """Whether runs on the dataset are scored by success: their numbers are percentages."""
        run = self.data(dataset)
        return run is not None and run.by_success

    @cached_property
    def scored_by_success(self) -> list[str]:
        """The datasets of which that holds."""
        return [dataset for dataset in self.datasets if self.by_success(dataset)]

    def data_mean(self, dataset: str) -> float:
        """Mean return of the dataset's episodes, to which runs compare.

        NaN where no run on it is measured, and where success counts, which the data do not have.
        """
        run = self.data(dataset)
        if run is None or run.by_success:
            return float("nan")
        return float(run.data_returns.mean())


def _check_same_settings(first: Run, run: Run, source: Path) -> None:
    """Raise ResultError where two runs of one label on one dataset differ in more than the seed."""
    for name in sorted(first.settings.keys() & run.settings.keys()):
        one, two = first.settings[name], run.settings[name]
        if one != two:
            raise ResultError(
                f"{source} has {name}={brief(two)}, the result of {run.label!r} with seed "
                f"{first.seed} on {run.dataset!r} has {brief(one)}: use another label or folder"
            )
