"""Tables of broad.toml: the laptop presets on one set of every task of the suite."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from measured import Agent, Group, Scale
from suite import Half, Set, suite

from qgpo.experiments.packing import read_documents
from qgpo.experiments.report import table
from qgpo.experiments.results import read_run

FOLDER = Path(__file__).parent / "broad"
COLUMNS: tuple[tuple[str, str, Scale], ...] = (
    ("BC", "BC", None),
    ("TD3+BC", "TD3+BC", None),
    ("IQL", "IQL", None),
    ("QGPO, w = 0", "QGPO", 0.0),
    ("**QGPO, w = 1**", "QGPO", 1.0),
)
"""title, label and guidance scale"""
HALVES: tuple[Half, ...] = ("development", "validation")


def score(one: Set, mean: float, by_success: bool) -> float:
    """Normalised by the returns that count as 0 and 100 there; percent where success counts."""
    if by_success:
        return mean
    low, high = one.returns
    return 100.0 * (mean - low) / (high - low)


class Broad:
    """What was played."""

    def __init__(self) -> None:
        self.agents: dict[tuple[str, str], list[Agent]] = {}
        self.data: dict[str, float] = {}
        for name, document in read_documents(FOLDER).items():
            run = read_run(document, name)
            agent = Agent.from_run(run)
            self.agents.setdefault((run.label, run.dataset), []).append(agent)
            if not agent.by_success:
                self.data[run.dataset] = float(np.mean(document["dataset"]["returns"]))
        self.labels = {label for label, _ in self.agents}
        self.columns = [column for column in COLUMNS if column[1] in self.labels]

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
        rows = [self._mean("mean", sets)]
        if len(shared) < len(sets):
            rows.append(self._mean(f"mean of the {len(shared)} with all agents", shared))
        return rows

    def _mean(self, title: str, sets: list[Set]) -> list[str]:
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


def broad() -> dict[str, str]:
    """A table for each half."""
    played = Broad()
    header = ["", "data", *(title for title, _, _ in played.columns), "trainings"]
    halves = {
        f"broad-{half}": table(
            header, [*(played.row(one) for one in played.sets(half)), *played.means(half)]
        )
        for half in HALVES
    }
    return {**halves, "broad-seconds": played.seconds()}
