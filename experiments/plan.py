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

Each combination is a cell. An agent's table may have `datasets` and `seeds` of its own. `adopt` is
the label of an agent further up: its cell of the same dataset and seed gives the stages before the
last one, once it is finished. The result is that of a training from scratch, in less time.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.guided.adoption import different_field
from qgpo.agents.guided.policy import GuidedPolicy
from qgpo.agents.registry import agent_class
from qgpo.envs.store.loading import STORAGES, Storage

KINDS: dict[str, tuple[type | UnionType, str]] = {
    "agent": (str, "a string"),
    "label": (str, "a string"),
    "preset": (str, "a string"),
    "overrides": (dict, "a table"),
    "deterministic": (bool, "true or false"),
    "env_id": (str | None, "a string"),
    "adopt": (str | None, "a string"),
    "device": (str, "a string"),
    "gpus": (int | float, "a number of at least 0"),
    "estimate_minutes": (int | float | None, "a number of at least 0"),
}
"""types of the plan's keys that have no check of their own, as `isinstance` and as people say it"""


class PlanError(ValueError):
    """A plan that cannot be run, with what is wrong in it."""


@dataclass(frozen=True)
class Cell:
    """One training with its evaluations."""

    label: str
    """the agent's name in tables"""
    agent: str
    """the agent's class, a name in the registry"""
    preset: str
    """row of hyperparameters"""
    overrides: dict[str, Any]
    """fields of the configuration that differ from the preset"""
    dataset: str
    """Minari id"""
    seed: int
    """seed of the training; episodes are seeded from 10000 + seed on, as in scripts/train.py"""
    guidance_scales: tuple[float, ...]
    """scales to evaluate, the configured one among them; empty for agents without guidance"""
    n_episodes: int = 50
    """episodes per scale"""
    deterministic: bool = True
    """deterministic actions instead of sampled ones"""
    env_id: str | None = None
    """environment for evaluation, where it is not the dataset's"""
    storage: Storage = "memory"
    """memory, or memmap for datasets larger than memory"""
    checkpoint_every: int = 2_000
    """steps between two checkpoints"""
    log_interval: int = 500
    """steps between two rows of metrics"""
    adopt: str | None = None
    """label of the agent whose cell gives the stages before the last"""
    device: str = "auto"
    """torch device"""
    gpus: float = 0.0
    """share of a GPU that a cell asks of a Ray cluster"""
    estimate_minutes: float | None = None
    """training (from scratch) and evaluation, as whoever wrote the plan expects them"""

    @property
    def name(self) -> str:
        """Name of its run folder and of its result's file."""
        return self._name_of(self.label)

    @property
    def donor(self) -> str | None:
        """Name of the cell that gives the stages before the last."""
        return None if self.adopt is None else self._name_of(self.adopt)

    def _name_of(self, label: str) -> str:
        return re.sub(r"[^\w.+=-]+", "-", f"{self.dataset}-{label}-s{self.seed}")

    @property
    def agent_class(self) -> type[OfflineAgent[Any]]:
        """The class of the agent."""
        return agent_class(self.agent)

    @property
    def config(self) -> Any:
        """The agent's whole configuration."""
        row = self.agent_class.presets[self.preset]
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in self.overrides.items()}
        return dataclasses.replace(row, **values)

    @property
    def headline_scale(self) -> float | None:
        """The configured guidance scale, chosen before any evaluation."""
        return getattr(self.config, "guidance_scale", None)

    @property
    def training(self) -> dict[str, Any]:
        """What decides the trained agent, as JSON would have it."""
        config = _as_json(self.config)
        return {"agent": self.agent, "config": config, "dataset": self.dataset, "seed": self.seed}

    @property
    def measured(self) -> dict[str, Any]:
        """What decides the result: the training and how it is evaluated."""
        evaluation = {
            "guidance_scales": list(self.guidance_scales),
            "n_episodes": self.n_episodes,
            "deterministic": self.deterministic,
            "env_id": self.env_id,
        }
        return {**self.training, **evaluation}

    def completed(self, former: dict[str, Any]) -> dict[str, Any]:
        """A former `measured`; options that did not exist then have their defaults."""
        defaults = _as_json(self.agent_class.config_class())
        return {**former, "config": {**defaults, **former["config"]}}


def _as_json(config: Any) -> dict[str, Any]:
    values = dataclasses.asdict(config).items()
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values}


def read_plan(path: Path) -> list[Cell]:
    """Every cell of the plan, agent by agent as it lists them. Raises PlanError."""
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PlanError(f"plan {str(path)!r} cannot be read: {error}") from error
    try:
        cells = [cell for table in _agents(data) for cell in _cells(data, table)]
        names = [cell.name for cell in cells]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PlanError(f"{twice[0]} is there twice: give the agents different labels")
        for i, cell in enumerate(cells):
            _check_donor(cell, cells[:i])
    except PlanError as error:
        raise PlanError(f"plan {str(path)!r}: {error}") from error
    return cells


def in_turn(cells: list[Cell]) -> list[Cell]:
    """The cells as they are run, seed by seed: one that is stopped has something of all agents.

    Those that adopt come last of their seed: meanwhile their donors are trained.
    """
    return sorted(cells, key=lambda cell: (cell.seed, cell.adopt is not None))


def _check_donor(cell: Cell, earlier: list[Cell]) -> None:
    """Raise PlanError where the agent that the cell adopts from is not there, or another one."""
    if cell.adopt is None:
        return
    of = f"agent {cell.label!r}: adopt = {cell.adopt!r}"
    labels = list(dict.fromkeys(c.label for c in earlier if c.label != cell.label))
    if cell.adopt not in labels:
        raise PlanError(f"{of}, expected the label of an agent further up, one of {labels}")
    donors = [c for c in earlier if c.name == cell.donor]
    if not donors:
        raise PlanError(
            f"{of} has no cell of dataset {cell.dataset!r} and seed {cell.seed}: give both agents "
            "the same datasets and seeds"
        )
    for one in (cell, donors[0]):
        if not issubclass(one.agent_class, GuidedPolicy):
            raise PlanError(f"{of}: a {one.agent} shares no stages, expected QGPO, AEPO or QIPO")
    different = different_field(cell.config, donors[0].config)
    if different is not None:
        name, wanted, found = different
        raise PlanError(
            f"{of} has {name} = {found!r} and this agent {wanted!r}, which decides the stages "
            "before the last: give both the same, or leave adopt away"
        )


def _agents(data: dict[str, Any]) -> list[dict[str, Any]]:
    tables = data.get("agents")
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables) or not tables:
        raise PlanError("no agents: at least one [[agents]] table is needed")
    return tables


def _cells(data: dict[str, Any], table: dict[str, Any]) -> list[Cell]:
    """One agent's cells: its table over the plan's defaults."""
    settings = {k: v for k, v in data.items() if k != "agents"} | table
    label = settings.setdefault("label", settings.get("agent"))
    known = {field.name for field in dataclasses.fields(Cell)} - {"dataset", "seed"}
    unknown = sorted(set(settings) - known - {"datasets", "seeds"})
    if unknown:
        choices = sorted(known | {"datasets", "seeds"})
        raise PlanError(f"agent {label!r}: unknown key {unknown[0]!r}, expected one of {choices}")
    datasets = _list(settings.pop("datasets", None), "datasets", str, label)
    seeds = _list(settings.pop("seeds", None), "seeds", int, label)
    if "agent" not in settings:
        raise PlanError(f"agent {label!r}: it has no key 'agent', the name of its class")
    settings = {"preset": "laptop", "overrides": {}, "guidance_scales": []} | settings
    settings["guidance_scales"] = _scales(settings["guidance_scales"], label)
    cells = []
    for dataset in datasets:
        for seed in seeds:
            cell = Cell(**settings, dataset=dataset, seed=seed)
            cells.append(_checked(cell))
    return cells


def _list(values: Any, name: str, kind: type, label: Any) -> list[Any]:
    good = isinstance(values, list) and values and all(type(v) is kind for v in values)
    if not good or (kind is int and min(values) < 0):
        wanted = "integers of at least 0" if kind is int else "Minari ids"
        raise PlanError(f"agent {label!r}: {name} = {values!r}, expected a list of {wanted}")
    return list(values)


def _scales(values: Any, label: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(
        type(v) in (int, float) and math.isfinite(v) for v in values
    ):
        raise PlanError(
            f"agent {label!r}: guidance_scales = {values!r}, expected a list of finite numbers"
        )
    return tuple(float(v) for v in values)


def _checked(cell: Cell) -> Cell:
    """The cell with its scales settled. Raises PlanError where agent or settings are wrong."""
    of = f"agent {cell.label!r}"
    for name, (kind, said) in KINDS.items():
        value = getattr(cell, name)
        good = isinstance(value, kind) and (type(value) is not bool or kind is bool)
        if isinstance(value, float):
            good = good and math.isfinite(value)
        if not good or (isinstance(value, int | float) and value < 0):
            raise PlanError(f"{of}: {name} = {value!r}, expected {said}")
    try:
        presets = cell.agent_class.presets
        if cell.preset not in presets:
            raise PlanError(f"preset = {cell.preset!r}, expected one of {sorted(presets)}")
        fields = {field.name for field in dataclasses.fields(presets[cell.preset])}
        unknown = sorted(set(cell.overrides) - fields)
        if unknown:
            raise PlanError(f"overrides has {unknown[0]!r}, expected some of {sorted(fields)}")
        scale = cell.headline_scale
    except (ValueError, TypeError, AttributeError) as error:
        raise PlanError(f"{of}: {error}") from error
    for name in ("n_episodes", "checkpoint_every", "log_interval"):
        value = getattr(cell, name)
        if type(value) is not int or value < 1:
            raise PlanError(f"{of}: {name} = {value!r}, expected an integer of at least 1")
    if cell.storage not in STORAGES:
        raise PlanError(f"{of}: storage = {cell.storage!r}, expected one of {list(STORAGES)}")
    if scale is None and cell.guidance_scales:
        raise PlanError(f"{of}: a {cell.agent} agent has no guidance_scales")
    if scale is None:
        return cell
    scales = cell.guidance_scales or (scale,)
    if scale not in scales:
        raise PlanError(
            f"{of}: guidance_scales = {list(scales)} lacks the configured scale {scale:g}, which "
            "is the headline; add it, or set overrides = { guidance_scale = ... }"
        )
    return dataclasses.replace(cell, guidance_scales=scales)
