"""Tables of broad.toml and half_hour.toml: `laptop` on one set of every task of the suite."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from measured import Agent, Column, Group, Scale
from suite import Half, Set, suite

from qgpo.experiments.packing import read_documents
from qgpo.experiments.report import table
from qgpo.experiments.results import read_run

HERE = Path(__file__).parent
COLUMNS: tuple[Column, ...] = (
    ("BC", "BC", None),
    ("TD3+BC", "TD3+BC", None),
    ("IQL", "IQL", None),
    ("QGPO, w = 0", "QGPO", 0.0),
    ("**QGPO, w = 1**", "QGPO", 1.0),
)
HALF_HOUR: tuple[Column, ...] = (
    ("TD3+BC", "TD3+BC", None),
    ("IQL", "IQL", None),
    ("IQL, 8 times as long", "IQL, longer 8", None),
    ("QGPO", "QGPO", 1.0),
    ("**QGPO, 4 times as long**", "QGPO, longer 4", 1.0),
)
HALVES: tuple[Half, ...] = ("development", "validation")


def score(one: Set, mean: float, by_success: bool) -> float:
    """Normalised by the returns that count as 0 and 100 there; percent where success counts."""
    if by_success:
        return mean
    low, high = one.returns
    return 100.0 * (mean - low) / (high - low)


class Broad:
    """What was played."""

    def __init__(
        self, folders: Sequence[str] = ("broad",), columns: Sequence[Column] = COLUMNS
    ) -> None:
        self.agents: dict[tuple[str, str], list[Agent]] = {}
        self.data: dict[str, float] = {}
        for folder in folders:
            self._read(folder)
        self.labels = {label for label, _ in self.agents}
        self.columns = [column for column in columns if column[1] in self.labels]

    def _read(self, folder: str) -> None:
        for name, document in read_documents(HERE / folder).items():
            run = read_run(document, name)
            agent = Agent.from_run(run)
            self.agents.setdefault((run.label, run.dataset), []).append(agent)
            if not agent.by_success:
                self.data[run.dataset] = float(np.mean(document["dataset"]["returns"]))

    def sets(self, half: Half) -> list[Set]:
        """Those that were played; of the zoo's, the v0 that the other tables have."""
        played = {dataset for _, dataset in self.agents}
        every = [replace(one, id=re.sub(r"^(zoo/.*)-v1$", r"\1-v0", one.id)) for one in suite(half)]
        return [one for one in every if one.id in played]

    def group(self, one: Set, label: str, scale: Scale) -> Group | None:
        """Trainings of an agent, or None where there are none."""
        agents = self.agents.get((label, one.id))
        return Group(agents, scale) if agents else None

    def row(self, one: Set) -> list[str]:
        """Scores with intervals, and the number of trainings."""
        of_data = f"{score(one, self.data[one.id], False):.0f}" if one.id in self.data else "-"
        cells = [f"`{one.id}`", of_data]
        for _, label, scale in self.columns:
            group = self.group(one, label, scale)
            if group is None:
                cells.append("-")
                continue
            mean, low, high = (
                score(one, x, group.by_success) for x in (group.mean, *group.interval)
            )
            cells.append(f"{mean:.0f} [{low:.0f}, {high:.0f}]")
        trainings = self.group(one, "QGPO", 1.0)
        return [*cells, str(len(trainings) if trainings else 0)]

    def times(self, title: str, sets: list[Set]) -> list[str]:
        """CPU-seconds of a training, the mean over these sets."""
        cells = []
        for _, label, _ in self.columns:
            agents = [agent for one in sets for agent in self.agents.get((label, one.id), [])]
            cells.append(f"{np.mean([agent.cpu_seconds for agent in agents]):.0f}")
        return [title, "", *cells]

    def best(self, one: Set, labels: Sequence[str]) -> float:
        """The highest mean score among agents of these labels that have no guidance scale."""
        groups = [self.group(one, label, None) for label in labels]
        return max(score(one, group.mean, group.by_success) for group in groups if group)

    def seconds(self) -> str:
        """CPU-seconds of a training, the mean of each agent's."""
        found: dict[str, list[float]] = {}
        for (label, _), agents in self.agents.items():
            found.setdefault(label, []).extend(agent.cpu_seconds for agent in agents)
        rows = [[label, f"{np.mean(of):.0f}"] for label, of in sorted(found.items())]
        return table(["", "CPU-seconds"], rows)

    def means(self, half: Half) -> list[list[str]]:
        """Mean scores over all sets, and over those that all agents learned."""
        sets = self.sets(half)
        shared = [one for one in sets if all((c[1], one.id) in self.agents for c in self.columns)]
        rows = [self.mean("mean", sets)]
        if len(shared) < len(sets):
            rows.append(self.mean(f"mean of the {len(shared)} with all agents", shared))
        return rows

    def mean(self, title: str, sets: list[Set]) -> list[str]:
        """Mean scores over these sets."""
        cells = []
        for _, label, scale in self.columns:
            groups = [(one, self.group(one, label, scale)) for one in sets]
            means = [
                score(one, group.mean, group.by_success)
                for one, group in groups
                if group is not None
            ]
            cells.append(f"{np.mean(means):.1f}" if len(means) == len(sets) else "-")
        return [title, "", *cells, ""]


def half_hour() -> str:
    """Four sets after the presets' steps and after half an hour, and the CPU-seconds of both."""
    played = Broad(("broad", "half_hour"), HALF_HOUR)
    longer = {dataset for label, dataset in played.agents if "longer" in label}
    sets = [one for one in played.sets("validation") if one.id in longer]
    baselines = [label for _, label, scale in HALF_HOUR if scale is None and label in played.labels]
    best = [played.best(one, baselines) for one in sets]
    rows = [
        *([*played.row(one)[:-1], f"{most:.0f}"] for one, most in zip(sets, best, strict=True)),
        [*played.mean("mean", sets)[:-1], f"{np.mean(best):.1f}"],
        [*played.times("CPU-seconds", sets), ""],
    ]
    titles = [title for title, _, _ in played.columns]
    return table(["", "data", *titles, "best baseline"], rows)


def broad() -> dict[str, str]:
    """A table for each half, what a training takes, and the table of half an hour."""
    played = Broad()
    header = ["", "data", *(title for title, _, _ in played.columns), "trainings"]
    halves = {
        f"broad-{half}": table(
            header, [*(played.row(one) for one in played.sets(half)), *played.means(half)]
        )
        for half in HALVES
    }
    return {**halves, "broad-seconds": played.seconds(), "half-hour": half_hour()}
