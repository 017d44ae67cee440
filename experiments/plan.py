"""A benchmark as data: agents x datasets x seeds, read from one TOML file.

    datasets = ["qgpo/hopper/mixed-v0"]
    seeds = [0, 1, 2]
    n_episodes = 50

    [[agents]]
    label = "QGPO"                        # its name in tables and folders
    agent = "QGPO"
    preset = "laptop"
    overrides = { beta = 10.0 }           # fields of its configuration
    guidance_scales = [0.0, 1.0, 2.0]
    estimate_minutes = 6                  # for the plan's table, until a cell is finished

    [[agents]]
    label = "QGPO, MSE"
    agent = "QGPO"
    overrides = { beta = 10.0, guidance = "mse" }
    adopt = "QGPO"                        # trains the last stage only

Each combination is a cell. An agent's table may have `datasets` and `seeds` of its own. A
configuration is the preset, then what the dataset's family changes of it, then `longer`, then the
overrides: what `train.py` trains with these flags. `adopt` is the label of an agent further up: its
cell of the same dataset and seed gives the stages before the last one, once it is finished; or the
behavior alone, where the two have different critics. The result is that of a training from scratch,
in less time.

Tasks of OGBench whose trajectories are the same share whitening and behavior: with `adopt_dataset`,
one of the datasets, its cell of the agent `adopt`, which may be the agent itself, gives these
stages to the cells of the others.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from qgpo.agents.core.parsing import brief
from qgpo.agents.guided.adoption import different_field
from qgpo.envs.store.local import split_version
from qgpo.envs.store.opening import newest_here
from qgpo.envs.tasks.ogbench import parse
from qgpo.envs.text_files import read_toml
from qgpo.experiments.settings import (
    AT_LEAST_0,
    AT_LEAST_1,
    THREADS,
    Experiment,
    check_types,
    choose_config,
)


class PlanError(ValueError):
    """A plan that cannot be run, with what is wrong in it."""


@dataclass(frozen=True)
class Cell(Experiment[Any]):
    """One training with its evaluations, of many; its guidance scales include the configured one.

    Its defaults differ from those of train.py where many are run beside each other.
    """

    donor_label: str | None = None
    """label of the agent whose cell provides the stages before the last"""
    donor_dataset: str | None = None
    """dataset of that cell, if it is another task; then it provides the stages before the critic"""
    folder_name: str | None = None
    """of its run folder; default from dataset, label and seed"""
    gpus: Annotated[float, AT_LEAST_0] = 0.0
    """fraction of a GPU to reserve on a Ray cluster"""
    n_episodes: Annotated[int, AT_LEAST_1] = 50
    """evaluation episodes per guidance scale; at least one, because a cell needs a result"""
    estimate_minutes: Annotated[float | None, AT_LEAST_0] = None
    """expected minutes for training from scratch and evaluation"""
    threads: Annotated[int, THREADS] = 1
    """torch threads on the CPU"""
    checkpoint_every: Annotated[int, AT_LEAST_1] = 2_000
    """steps between two checkpoints"""
    progress_bar: bool = False
    """off, because cells run in the background"""

    @property
    def key(self) -> tuple[str, str, int]:
        """Dataset, label and seed."""
        return self.dataset_id, self.label, self.seed

    @property
    def name(self) -> str:
        """Name of its run folder and of its result's file."""
        return self.folder_name or self._name_of(self.dataset_id, self.label)

    @property
    def donor(self) -> str | None:
        """Name of the cell that gives the stages before the last, or before the critic."""
        if self.donor_label is None:
            return None
        return self._name_of(self.donor_dataset or self.dataset_id, self.donor_label)

    def _name_of(self, dataset_id: str, label: str) -> str:
        return re.sub(r"[^\w.+=-]+", "-", f"{dataset_id}-{label}-s{self.seed}")


DONOR = {"donor_label", "donor_dataset"}
NO_KEYS = {"dataset_id", "seed", "folder_name", "config", "progress_bar"} | DONOR
KEYS = {field.name for field in dataclasses.fields(Cell)} - NO_KEYS
"""of an agent's table that are fields of its cells; `adopt` is the label there"""
OTHER_KEYS = {"datasets", "seeds", "overrides", "adopt_dataset"}
LARGEST_PLAN = 2**20
"""bytes"""
MOST_CELLS = 10_000


def read_plan(path: Path) -> list[Cell]:
    """Every cell of the plan, agent by agent as it lists them. Raises PlanError."""
    try:
        data = read_toml(path, LARGEST_PLAN)
    except (OSError, ValueError) as error:
        raise PlanError(f"plan {str(path)!r} cannot be read: {error}") from error
    tables = data.pop("agents", None)
    cells: list[Cell] = []
    try:
        if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables or [0]):
            raise PlanError("no agents: at least one [[agents]] table is needed")
        for table in tables:
            cells += _cells({**data, **table})
            if len(cells) > MOST_CELLS:
                raise PlanError(f"it has more than {MOST_CELLS} cells: split it into several plans")
        _check_names(cells)
        for i, cell in enumerate(cells):
            if cell.donor_label is not None:
                itself = cell.donor_dataset is not None and cell.donor_label == cell.label
                _check_donor(cell, cells if itself else cells[:i])
    except RecursionError as error:
        raise PlanError(f"plan {str(path)!r} is nested too deeply") from error
    except PlanError as error:
        raise PlanError(f"plan {str(path)!r}: {error}") from error
    return cells


def in_turn(cells: list[Cell]) -> list[Cell]:
    """The cells as they are run, seed by seed: a benchmark that is stopped has some of all agents.

    Those that adopt come last of their seed: meanwhile their donors are trained.
    """
    return sorted(cells, key=lambda cell: (cell.seed, cell.donor_label is not None))


def _cells(table: dict[str, Any]) -> list[Cell]:
    """One agent's cells. Raises PlanError where its table, over the plan's defaults, is wrong."""
    label = table.setdefault("label", table.get("agent"))
    try:
        unknown = sorted(table.keys() - KEYS - OTHER_KEYS)
        if unknown:
            choices = sorted(KEYS | OTHER_KEYS)
            raise ValueError(f"unknown key {brief(unknown[0])}, expected one of {choices}")
        if "agent" not in table:
            raise ValueError("it has no key 'agent', the name of its class")
        if isinstance(label, str):
            _check_label(label)
        datasets = _list(table.pop("datasets", None), "datasets", str, "Minari ids")
        seeds = _list(table.pop("seeds", None), "seeds", int, "integers of at least 0")
        if len(datasets) * len(seeds) > MOST_CELLS:
            raise ValueError(
                f"{len(datasets)} datasets and {len(seeds)} seeds, expected at most {MOST_CELLS} "
                "cells"
            )
        cells = [_cell(table, dataset, seed) for dataset in datasets for seed in seeds]
        for dataset in datasets:
            _check_version(dataset)
        return cells
    except (ValueError, TypeError) as error:
        raise PlanError(f"agent {brief(label)}: {error}") from error


def _check_version(dataset: str) -> None:
    """Raise ValueError for an id without a version: the newest may be another one later."""
    if split_version(dataset)[1] is None:
        known = newest_here(dataset) or f"{dataset}-v0"
        raise ValueError(
            f"dataset {dataset!r} has no version, expected one, such as {known!r}: the newest may "
            "be another one when the plan goes on"
        )


def _check_names(cells: list[Cell]) -> None:
    """Raise PlanError where two cells would share a folder, on any system."""
    taken: dict[str, Cell] = {}
    for cell in cells:
        # neither upper and lower case nor the two ways to write é make two files everywhere
        other = taken.setdefault(unicodedata.normalize("NFC", cell.name).casefold(), cell)
        if other is cell:
            continue
        if other.name == cell.name:
            raise PlanError(f"{cell.name} occurs twice: give the agents different labels")
        raise PlanError(
            f"{cell.name} and {other.name} are the same name on file systems that ignore case: "
            "give the agents different labels"
        )


def _check_label(label: str) -> None:
    """Raise ValueError for what is no name in a table, or too long for one of a folder."""
    if not label.isprintable() or not 0 < len(label.strip()) <= 60:
        raise ValueError(f"label={brief(label)}, expected a line of 1 to 60 printable characters")


def _list(values: Any, name: str, kind: type, words: str) -> list[Any]:
    """The values, where they are a list of that kind."""
    if not (isinstance(values, list) and values and all(type(v) is kind for v in values)):
        raise ValueError(f"{name}={brief(values)}, expected a list of {words}")
    return values


def _cell(table: dict[str, Any], dataset: str, seed: int) -> Cell:
    """One cell, its configuration built and its scales settled. Raises ValueError."""
    settings = {
        "overrides": {},
        "guidance_scales": [],
        "adopt": None,
        "adopt_dataset": None,
        **table,
    }
    overrides, scales = settings.pop("overrides"), settings.pop("guidance_scales")
    scales = tuple(scales) if isinstance(scales, list) else (scales,)
    donor = _donor(settings.pop("adopt"), settings.pop("adopt_dataset"), table["label"], dataset)
    cell = Cell(**settings, **donor, dataset_id=dataset, seed=seed, guidance_scales=scales)
    check_types(cell)
    cell.check_origin("a plan", f"train and evaluate there with --env-id {cell.env_id}")
    row = choose_config(cell.agent, cell.preset, dataset, cell.longer)
    names = sorted(vars(row))
    unknown = sorted(set(overrides) - set(names)) if isinstance(overrides, dict) else [overrides]
    if unknown:
        raise ValueError(f"overrides has {brief(unknown[0])}, expected a table of some of {names}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    cell = dataclasses.replace(cell, config=dataclasses.replace(row, **values))
    cell.check()
    headline = cell.headline_scale
    if headline is None:
        return cell
    if scales and headline not in scales:
        raise ValueError(
            f"guidance_scales={list(scales)} lacks the configured scale {headline:g}, which is "
            "the main result; add it, or set overrides = { guidance_scale = ... }"
        )
    return dataclasses.replace(cell, guidance_scales=tuple(map(float, scales or (headline,))))


def _donor(label: Any, dataset_id: Any, own_label: Any, own_dataset: str) -> dict[str, Any]:
    """A cell's `donor_label` and `donor_dataset`; none for the cell from which others adopt.

    Raises ValueError for another dataset that is not known to have the same trajectories.
    """
    if dataset_id in (None, own_dataset):
        is_donor = dataset_id is not None and label == own_label
        return {"donor_label": None if is_donor else label, "donor_dataset": None}
    trajectories = _trajectories(dataset_id), _trajectories(own_dataset)
    if label is None or None in trajectories or trajectories[0] != trajectories[1]:
        raise ValueError(
            f"adopt_dataset={brief(dataset_id)} for dataset {own_dataset!r}, expected another "
            "OGBench task on the same trajectories, together with adopt, the label of an agent"
        )
    return {"donor_label": label, "donor_dataset": dataset_id}


def _trajectories(dataset_id: Any) -> str | None:
    """The trajectories that a task of OGBench labels; None for other data."""
    name = parse(dataset_id) if isinstance(dataset_id, str) else None
    return None if name is None else name.trajectories.id


def _check_donor(cell: Cell, others: list[Cell]) -> None:
    """Raise PlanError where the agent that the cell adopts from is not there, or another one.

    `others` are the cells further up, or all of them where it adopts from its own agent.
    """
    of = f"agent {cell.label!r}: adopt={cell.donor_label!r}"
    own = cell.donor_dataset is None
    labels = list(dict.fromkeys(c.label for c in others if c.label != cell.label or not own))
    if cell.donor_label not in labels:
        raise PlanError(f"{of}, expected the label of an earlier agent, one of {labels}")
    donor = next((c for c in others if c.name == cell.donor), None)
    if donor is None:
        dataset_id = cell.donor_dataset or cell.dataset_id
        raise PlanError(
            f"{of} has no cell of dataset {dataset_id!r} and seed {cell.seed}: give both "
            "agents the same datasets and seeds"
        )
    for one in (cell, donor):
        if one.headline_scale is None:
            raise PlanError(
                f"{of}: a {one.agent} shares no stages, expected QGPO, AEPO, QIPO, SIR or BestOfN"
            )
    different = different_field(cell.config, donor.config)
    if different is not None:
        name, wanted, found = different
        raise PlanError(
            f"{of} has {name} = {found!r} and this agent {wanted!r}, which determines the "
            "behavior: use the same value for both, or remove adopt"
        )
