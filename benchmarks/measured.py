"""What the plans measured: trainings and ensembles of trainings, by label and dataset."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgpo.agents import OfflineAgent
from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.experiments import documents
from qgpo.experiments.packing import Document, read_documents
from qgpo.experiments.results import Run, read_run
from qgpo.experiments.statistics import interval_of, loss_of_choice

Scale = float | str | None
"""guidance scale, None for agents without one, or "tuned": the one that tuning chose"""
Column = tuple[str, str, Scale]
"""title of a column, label of its agents, their guidance scale"""

DATASETS = (
    "zoo/halfcheetah/medium-expert-v0",
    "zoo/hopper/medium-expert-v0",
    "zoo/halfcheetah/medium-v0",
    "zoo/hopper/medium-v0",
    "qgpo/halfcheetah/mixed-v0",
    "qgpo/hopper/mixed-v0",
    "qgpo/halfcheetah/simple-v0",
    "qgpo/hopper/simple-v0",
    "qgpo/halfcheetah/medium-v0",
    "qgpo/hopper/medium-v0",
)
BASELINES: tuple[Column, ...] = (
    ("BC", "BC", None),
    ("TD3+BC", "TD3+BC", None),
    ("IQL", "IQL", None),
)
OURS: tuple[Column, ...] = (("QGPO, w = 0", "QGPO", 0.0), ("**QGPO, w = 1**", "QGPO", 1.0))
TUNED: tuple[Column, ...] = (("**QGPO, tuned**", "QGPO", "tuned"),)
RIVALS = ("BC", "TD3+BC", "IQL", "Diffusion-QL")
"""baselines; their labels begin with these names, whether trained as long or longer"""
LONGER = ", longer 4"
"""end of the labels of agents with four times the steps"""
MINUTES = (3, 10, 30)
"""of two cores: one training, three together, three of four times the steps together"""
TEN_MINUTES = 1_200.0
"""CPU-seconds, of two cores"""


@dataclass
class Source:
    """Where the measurements are."""

    cells: tuple[Path, ...] = (
        Path("benchmarks/locomotion"),
        Path("benchmarks/bundled"),
        Path("benchmarks/seeds"),
        Path("benchmarks/budgets"),
        Path("benchmarks/elsewhere"),
        Path("benchmarks/thirty"),
        Path("benchmarks/equal"),
    )
    """folders with the results of single trainings"""
    together: Path = Path("benchmarks/together")
    """folder with the results of together.py"""


@dataclass(frozen=True)
class Agent:
    """A training, or an ensemble of trainings."""

    returns: dict[float | None, NDArray[np.float64]]
    """every episode's return, by guidance scale; 100 or 0 where success is the score"""
    cpu_seconds: float
    """of training; of an ensemble, that of all members"""
    reference: ReferenceScores | None
    processor: str = ""
    name: str = ""
    """seeds of an ensemble's members, and its machine if that is not the one of most ensembles"""
    tuned: float | None = None
    """guidance scale that tuning chose"""
    by_success: bool = False
    """whether success is the score"""

    @classmethod
    def from_run(cls, run: Run) -> Agent:
        """A training. Raises ValueError where its CPU-seconds were not measured."""
        if run.cpu_seconds is None:
            raise ValueError(f"the CPU-seconds of {run.key} were not measured")
        processor = run.machine["processor"]
        return cls(
            run.outcomes, run.cpu_seconds, run.reference, processor, by_success=run.by_success
        )

    @classmethod
    def from_ensemble(cls, document: Document) -> Agent:
        """An ensemble of together.py."""
        evaluations = document["evaluations"]
        reference = evaluations[0]["reference"]
        by_success = evaluations[0].get("successes") is not None
        return cls(
            {
                e["guidance_scale"]: np.array(e["successes"]) * 100.0
                if by_success
                else np.array(e["returns"])
                for e in evaluations
            },
            document["cpu_seconds"],
            ReferenceScores(**reference) if reference else None,
            name=", ".join(map(str, [*document["seeds"], document["where"]])).removesuffix(", "),
            tuned=document.get("tuning", {}).get("best"),
            by_success=by_success,
        )

    def score(self, mean: float) -> float | None:
        """Score of a mean of `returns`; None for returns without reference."""
        if self.by_success:
            return mean
        return None if self.reference is None else float(self.reference.normalize(mean))

    def at(self, scale: Scale) -> NDArray[np.float64] | None:
        """Returns at a guidance scale, None where it was not played."""
        return self.returns.get(self.tuned if scale == "tuned" else scale)  # type: ignore[arg-type]

    def losses(self, scale: Scale) -> tuple[float, float]:
        """Normalised points that a scale loses to the best one: an upper and a lower estimate.

        The upper one compares means, of which the best is too good by chance; the lower one is
        `loss_of_choice`. Points of success are percentages. Raises ValueError for returns without
        reference.
        """
        if self.reference is None and not self.by_success:
            raise ValueError("losses are in normalised points, and there are no reference returns")
        index = list(self.returns).index(self.tuned if scale == "tuned" else scale)  # type: ignore[arg-type]
        returns = np.stack(list(self.returns.values()))
        means = returns.mean(axis=1)
        return_per_point = 1.0
        if self.reference is not None:
            return_per_point = (self.reference.maximum - self.reference.minimum) / 100.0
        losses = means.max() - means[index], loss_of_choice(returns, index)
        return float(losses[0] / return_per_point), float(losses[1] / return_per_point)


class Group:
    """The returns, or successes, of several agents."""

    def __init__(self, agents: list[Agent], scale: Scale) -> None:
        played = [agent.at(scale) for agent in agents]
        self.returns = [returns for returns in played if returns is not None]
        self.by_success = any(agent.by_success for agent in agents)

    def __len__(self) -> int:
        return len(self.returns)

    @cached_property
    def mean(self) -> float:
        """Mean return, or percentage of successes."""
        return float(np.mean(self.returns))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean, over agents and episodes."""
        return interval_of(self.returns, self.by_success)


@dataclass(frozen=True)
class Use:
    """One way to use a baseline on a dataset: alone or three together, trained longer or not."""

    label: str
    together: bool
    agents: list[Agent]
    """trainings, or ensembles"""
    group: Group
    """what they returned"""

    @property
    def seconds(self) -> float:
        """Mean CPU-seconds of training."""
        return float(np.mean([agent.cpu_seconds for agent in self.agents]))


class Measurements:
    """All trainings and ensembles. Raises SystemExit where one id stands for several datasets."""

    def __init__(self, source: Source) -> None:
        self.alone: dict[tuple[str, str], list[Agent]] = {}
        """trainings by label and dataset"""
        self.together: dict[tuple[str, str], list[Agent]] = {}
        """ensembles by label and dataset"""
        self._groups: dict[tuple[bool, str, str, Scale], Group] = {}
        runs: dict[str, Run] = {}
        for folder in source.cells:
            for name, document in read_documents(folder).items():
                run = read_run(document, str(folder / name))
                first = runs.setdefault(run.dataset, run)
                if first.fingerprint != run.fingerprint:
                    raise SystemExit(f"{folder / name}: other data under the name {run.dataset}")
                agents = self.alone.setdefault((run.label, run.dataset), [])
                agents.append(Agent.from_run(run))
        for row in read_ensembles(source.together):
            dataset = row["measured"]["dataset"]
            if dataset not in runs or row["fingerprint"] != runs[dataset].fingerprint:
                raise SystemExit(f"{row['label']}, {row['seeds']}: an ensemble of other data")
            agents = self.together.setdefault((row["label"], dataset), [])
            agents.append(Agent.from_ensemble(row))
        present = [dataset for dataset in DATASETS if dataset in runs]
        self.data = {dataset: float(runs[dataset].data_returns.mean()) for dataset in present}
        """mean return of each dataset's episodes"""
        self.references = {dataset: runs[dataset].reference for dataset in present}

    def score(self, dataset: str, mean: float) -> float:
        """Normalised score of a mean return."""
        reference = self.references[dataset]
        assert reference is not None
        return float(reference.normalize(mean))

    def group(self, together: bool, label: str, dataset: str, scale: Scale) -> Group:
        """What the trainings or the ensembles of that label returned on the dataset."""
        agents = (self.together if together else self.alone).get((label, dataset), [])
        # kept: several tables show the same interval, which takes a while to compute
        return self._groups.setdefault((together, label, dataset, scale), Group(agents, scale))

    def in_minutes(self, minutes: int, label: str, dataset: str, scale: Scale) -> Group:
        """What an agent returned after that time."""
        longer = LONGER if minutes == 30 else ""
        return self.group(minutes > 3, label + longer, dataset, scale)

    def uses(self, dataset: str) -> list[Use]:
        """Every way in which a baseline was used on the dataset."""
        return [
            Use(label, together, agents, self.group(together, label, dataset, None))
            for together, measured in ((False, self.alone), (True, self.together))
            for (label, name), agents in measured.items()
            if name == dataset and label.startswith(RIVALS)
        ]

    def best_use(self, baseline: str, dataset: str) -> Use | None:
        """The one with the highest mean return of those within ten minutes of two cores."""
        uses = [use for use in self.uses(dataset) if use.label.split(", ")[0] == baseline]
        within = [use for use in uses if use.seconds <= TEN_MINUTES]
        return max(within, key=lambda use: use.group.mean, default=None)

    def best_group(self, baseline: str, dataset: str) -> Group:
        """What that use returned."""
        use = self.best_use(baseline, dataset)
        return Group([], None) if use is None else use.group


def read_ensembles(folder: Path) -> list[Document]:
    """Documents of together.py, in the order of its tables."""
    return sorted(
        read_documents(folder).values(),
        key=lambda row: (row["label"], row["measured"]["dataset"], row["where"], row["seeds"]),
    )


def is_training_of(agent: OfflineAgent[Any], measured: dict[str, Any]) -> bool:
    """Whether a loaded agent has the configuration and the seed of a cell's document."""
    config = json.loads(json.dumps(dataclasses.asdict(agent.config)))
    cell = documents.upgrade({"measured": measured}, Path("cell"))["measured"]
    return bool((config, agent.seed) == (cell["config"], cell["seed"]))
