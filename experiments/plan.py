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
cell of the same dataset and seed gives the stages before the last one, once it is finished. The
result is that of a training from scratch, in less time.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from qgpo.agents.guided.adoption import different_field
from qgpo.experiments.settings import AT_LEAST_0, Experiment, check_types, choose_config

DEFAULTS = {"checkpoint_every": 2_000, "progress_bar": False, "threads": 1}
"""settings of a cell's experiment that differ from those of train.py"""


class PlanError(ValueError):
    """A plan that cannot be run, with what is wrong in it."""


@dataclass(frozen=True)
class Cell:
    """One training with its evaluations, of many."""

    label: str
    """the agent's name in tables"""
    experiment: Experiment[Any]
    """what is run; its guidance scales include the configured one"""
    adopt: str | None = None
    """label of the agent whose cell gives the stages before the last"""
    gpus: Annotated[float, AT_LEAST_0] = 0.0
    """share of a GPU that the cell asks of a Ray cluster"""
    estimate_minutes: Annotated[float | None, AT_LEAST_0] = None
    """training (from scratch) and evaluation, as the plan's author expects them"""

    @property
    def key(self) -> tuple[str, str, int]:
        """Dataset, label and seed."""
        return self.experiment.dataset_id, self.label, self.experiment.seed

    @property
    def name(self) -> str:
        """Name of its run folder and of its result's file."""
        return self._name_of(self.label)

    @property
    def donor(self) -> str | None:
        """Name of the cell that gives the stages before the last."""
        return None if self.adopt is None else self._name_of(self.adopt)

    def _name_of(self, label: str) -> str:
        dataset, _, seed = self.key
        return re.sub(r"[^\w.+=-]+", "-", f"{dataset}-{label}-s{seed}")


NO_KEYS = {"dataset_id", "seed", "adopt", "config", "progress_bar"}
OF_EXPERIMENT = {field.name for field in dataclasses.fields(Experiment)} - NO_KEYS
OF_CELL = {field.name for field in dataclasses.fields(Cell)} - {"experiment"}
KEYS = sorted(OF_EXPERIMENT | OF_CELL | {"datasets", "seeds", "overrides"})
"""of an agent's table"""


def read_plan(path: Path) -> list[Cell]:
    """Every cell of the plan, agent by agent as it lists them. Raises PlanError."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PlanError(f"plan {str(path)!r} cannot be read: {error}") from error
    tables = data.pop("agents", None)
    cells: list[Cell] = []
    try:
        if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables or [0]):
            raise PlanError("no agents: at least one [[agents]] table is needed")
        for table in tables:
            cells += _cells({**data, **table})
        names = [cell.name for cell in cells]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PlanError(f"{twice[0]} is there twice: give the agents different labels")
        for i, cell in enumerate(cells):
            if cell.adopt is not None:
                _check_donor(cell, cells[:i])
    except PlanError as error:
        raise PlanError(f"plan {str(path)!r}: {error}") from error
    return cells


def in_turn(cells: list[Cell]) -> list[Cell]:
    """The cells as they are run, seed by seed: a benchmark that is stopped has some of all agents.

    Those that adopt come last of their seed: meanwhile their donors are trained.
    """
    return sorted(cells, key=lambda cell: (cell.experiment.seed, cell.adopt is not None))


def _cells(table: dict[str, Any]) -> list[Cell]:
    """One agent's cells. Raises PlanError where its table, over the plan's defaults, is wrong."""
    label = table.setdefault("label", table.get("agent"))
    try:
        unknown = sorted(set(table) - set(KEYS))
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}, expected one of {KEYS}")
        if "agent" not in table:
            raise ValueError("it has no key 'agent', the name of its class")
        datasets = _list(table.get("datasets"), "datasets", str, "Minari ids")
        seeds = _list(table.get("seeds"), "seeds", int, "integers of at least 0")
        of_cell = {name: table[name] for name in OF_CELL if name in table}
        cells = [
            Cell(experiment=_experiment(table, dataset, seed), **of_cell)
            for dataset in datasets
            for seed in seeds
        ]
        check_types(cells[0])
        return cells
    except (ValueError, TypeError) as error:
        raise PlanError(f"agent {label!r}: {error}") from error


def _list(values: Any, name: str, kind: type, words: str) -> list[Any]:
    """The values, where they are a list of that kind."""
    if not (isinstance(values, list) and values and all(type(v) is kind for v in values)):
        raise ValueError(f"{name}={values!r}, expected a list of {words}")
    return values


def _experiment(table: dict[str, Any], dataset: str, seed: int) -> Experiment[Any]:
    """What a cell runs, its configuration built and its scales settled. Raises ValueError."""
    given = {name: table[name] for name in OF_EXPERIMENT if name in table}
    scales = given.get("guidance_scales", [])
    scales = scales if isinstance(scales, list) else [scales]
    given["guidance_scales"] = tuple(scales)
    experiment = Experiment(**DEFAULTS | given, dataset_id=dataset, seed=seed)
    check_types(experiment)
    row = choose_config(experiment.agent, experiment.preset, dataset, experiment.longer)
    overrides = table.get("overrides", {})
    is_table = isinstance(overrides, dict)
    unknown = sorted(set(overrides) - set(vars(row))) if is_table else [overrides]
    if unknown:
        choices = sorted(vars(row))
        raise ValueError(f"overrides has {unknown[0]!r}, expected a table of some of {choices}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    experiment = dataclasses.replace(experiment, config=dataclasses.replace(row, **values))
    experiment.check()
    headline = experiment.headline_scale
    if experiment.n_episodes < 1:
        raise ValueError(f"n_episodes={experiment.n_episodes}, expected an integer of at least 1")
    if headline is not None and headline not in (scales or [headline]):
        raise ValueError(
            f"guidance_scales={scales} lacks the configured scale {headline:g}, which is the "
            "headline; add it, or set overrides = { guidance_scale = ... }"
        )
    settled = tuple(float(scale) for scale in scales or [headline] if scale is not None)
    return dataclasses.replace(experiment, guidance_scales=settled)


def _check_donor(cell: Cell, earlier: list[Cell]) -> None:
    """Raise PlanError where the agent that the cell adopts from is not there, or another one."""
    of = f"agent {cell.label!r}: adopt={cell.adopt!r}"
    labels = list(dict.fromkeys(c.label for c in earlier if c.label != cell.label))
    if cell.adopt not in labels:
        raise PlanError(f"{of}, expected the label of an agent further up, one of {labels}")
    donor = next((c.experiment for c in earlier if c.name == cell.donor), None)
    dataset, _, seed = cell.key
    if donor is None:
        raise PlanError(
            f"{of} has no cell of dataset {dataset!r} and seed {seed}: give both agents the same "
            "datasets and seeds"
        )
    for one in (cell.experiment, donor):
        if one.headline_scale is None:
            raise PlanError(f"{of}: a {one.agent} shares no stages, expected QGPO, AEPO or QIPO")
    different = different_field(cell.experiment.config, donor.config)
    if different is not None:
        name, wanted, found = different
        raise PlanError(
            f"{of} has {name} = {found!r} and this agent {wanted!r}, which decides the stages "
            "before the last: give both the same, or leave adopt away"
        )
