"""Table of cube.toml: the preset `laptop` on the five tasks of cube-single, beside ogbench.toml."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from measured import Agent, Group, Scale

from qgpo.experiments.packing import read_documents
from qgpo.experiments.report import table
from qgpo.experiments.results import read_run

HERE = Path(__file__).parent
TASKS = (1, 2, 3, 4, 5)
ROWS: tuple[tuple[str, str, str, Scale], ...] = (
    ("IQL", "ogbench", "IQL", None),
    ("best of 32 (IFQL)", "ogbench", "best of 32 (IFQL)", None),
    ("FQL", "ogbench", "FQL", None),
    ("QGPO, w = 0", "cube", "QGPO", 0.0),
    ("**QGPO, w = 1**", "cube", "QGPO", 1.0),
    ("**three QGPO together, w = 1**", "cube_together", "QGPO", 1.0),
)
"""title, folder, label and guidance scale"""


def task_of(dataset: str) -> int:
    """Number of the task in an id."""
    return int(dataset.rpartition("task")[2].partition("-")[0])


def trainings() -> dict[tuple[str, int], list[Agent]]:
    """Agents, or ensembles, by title and task."""
    found: dict[tuple[str, str, int], list[Agent]] = {}
    for folder in ("ogbench", "cube"):
        for name, document in read_documents(HERE / folder).items():
            run = read_run(document, name)
            key = folder, run.label, task_of(run.dataset)
            found.setdefault(key, []).append(Agent.from_run(run))
    for document in read_documents(HERE / "cube_together").values():
        key = "cube_together", document["label"], task_of(document["measured"]["dataset"])
        found.setdefault(key, []).append(Agent.from_ensemble(document))
    return {
        (title, task): found[folder, label, task]
        for title, folder, label, _ in ROWS
        for task in TASKS
        if (folder, label, task) in found
    }


def cube() -> dict[str, str]:
    """A row per agent, a column per task; the mean where all tasks were played."""
    of, rows = trainings(), []
    for title, _, _, scale in ROWS:
        row, means, seconds = [title], list[float](), list[float]()
        for task in TASKS:
            agents = of.get((title, task), [])
            if not agents:
                row.append("-")
                continue
            group = Group(agents, scale)
            low, high = group.interval
            means.append(group.mean)
            seconds += [agent.cpu_seconds for agent in agents]
            row.append(f"{group.mean:.0f} [{low:.0f}, {high:.0f}], {len(group)}")
        row.append(f"{np.mean(means):.0f}" if len(means) == len(TASKS) else "-")
        rows.append([*row, f"{np.mean(seconds):.0f}" if seconds else "-"])
    header = ["", *(f"task {task}" for task in TASKS), "mean", "CPU-seconds"]
    return {"cube": table(header, rows)}
