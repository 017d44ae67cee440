"""Tables of OGBench's arms (cube.toml, arms.toml, ogbench.toml): `laptop` beside other agents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measured import Agent, Group, Scale

from qgpo.experiments.packing import read_documents
from qgpo.experiments.report import table
from qgpo.experiments.results import read_run

HERE = Path(__file__).parent
TASKS = (1, 2, 3, 4, 5)
ARMS = ("cube-double", "scene", "puzzle-3x3")
OTHERS = ("IQL", "best of 32 (IFQL)", "FQL")
"""titles, which are labels, too"""
GUIDED: tuple[tuple[str, Scale], ...] = (("QGPO, w = 0", 0.0), ("**QGPO, w = 1**", 1.0))
ROWS: tuple[tuple[str, tuple[str, ...], str, Scale], ...] = (
    *((label, ("ogbench", "cube"), label, None) for label in OTHERS),
    *((title, ("cube",), "QGPO", scale) for title, scale in GUIDED),
    ("**three QGPO together, w = 1**", ("cube_together",), "QGPO", 1.0),
)
"""title, folders, label and guidance scale"""
EIGHT: tuple[tuple[str, str, Scale], ...] = (
    ("BC", "BC", None),
    ("IQL", "IQL", None),
    ("ReBRAC", "ReBRAC", None),
    ("IFQL, best of 32", "best of 32 (IFQL)", None),
    ("FQL", "FQL", None),
    ("QGPO, w = 0", "QGPO", 0.0),
    ("QGPO, w = 1", "QGPO", 1.0),
    ("QGPO, implicit critic, w = 1", "QGPO, implicit critic", 1.0),
)
"""agents on tasks 1 and 2: title, label and guidance scale"""
PUBLISHED = {"IQL": 83, "ReBRAC": 91, "IFQL, best of 32": 95, "FQL": 96}
"""arXiv 2502.02538: ten times the data, twenty times the updates, larger networks"""


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
        (title, task): agents
        for title, folders, label, _ in ROWS
        for task in TASKS
        if (agents := [a for folder in folders for a in found.get((folder, label, task), [])])
    }


def of_arms() -> dict[tuple[str, str], list[Agent]]:
    """Agents on the other arms, by label and arm."""
    found: dict[tuple[str, str], list[Agent]] = {}
    for folder in ("arms", "broad"):
        for name, document in read_documents(HERE / folder).items():
            run = read_run(document, name)
            for arm in ARMS:
                if f"/{arm}-" in run.dataset:
                    found.setdefault((run.label, arm), []).append(Agent.from_run(run))
    return found


def row(title: str, cells: Sequence[list[Agent]], scale: Scale) -> list[str]:
    """Successes with intervals and the number of trainings; their mean, and CPU-seconds."""
    row, means, seconds = [title], list[float](), list[float]()
    for agents in cells:
        if not agents:
            row.append("-")
            continue
        group = Group(agents, scale)
        low, high = group.interval
        means.append(group.mean)
        seconds += [agent.cpu_seconds for agent in agents]
        row.append(f"{group.mean:.0f} [{low:.0f}, {high:.0f}], {len(group)}")
    row.append(f"{np.mean(means):.0f}" if len(means) == len(cells) else "-")
    return [*row, f"{np.mean(seconds):.0f}" if seconds else "-"]


def of_eight() -> str:
    """Successes on two tasks of cube-single, in percent, a row per agent."""
    agents: dict[tuple[str, int], list[Agent]] = {}
    for name, document in read_documents(HERE / "ogbench").items():
        run = read_run(document, name)
        agents.setdefault((run.label, task_of(run.dataset)), []).append(Agent.from_run(run))
    rows = []
    for name, label, scale in EIGHT:
        row, seconds = [name], list[float]()
        for task in (2, 1):
            group = Group(agents[label, task], scale)
            low, high = group.interval
            each = ", ".join(f"{won.mean():.0f}" for won in group.returns)
            row.append(f"{group.mean:.0f} [{low:.0f}, {high:.0f}] ({each})")
            seconds += [agent.cpu_seconds for agent in agents[label, task]]
        rows.append([*row, f"{np.mean(seconds):.0f}", f"{PUBLISHED.get(name, '-')}"])
    return table(["", "task 2", "task 1", "CPU-seconds", "published"], rows)


def cube() -> dict[str, str]:
    """A row per agent, a column per task or arm; the mean where all were played."""
    of, arms = trainings(), of_arms()
    tasks = [
        row(title, [of.get((title, task), []) for task in TASKS], scale)
        for title, _, _, scale in ROWS
    ]
    others = [
        row(title, [arms.get((label, arm), []) for arm in ARMS], scale)
        for title, label, scale in (
            *((label, label, None) for label in OTHERS),
            *((title, "QGPO", scale) for title, scale in GUIDED),
        )
    ]
    last = ("mean", "CPU-seconds")
    return {
        "cube": table(["", *(f"task {task}" for task in TASKS), *last], tasks),
        "arms": table(["", *(f"`{arm}`" for arm in ARMS), *last], others),
        "ogbench": of_eight(),
    }
