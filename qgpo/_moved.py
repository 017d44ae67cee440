"""Module paths of qgpo 0.1: they work for one release, with a DeprecationWarning.

Tables say what moved. A module of `MOVED` that no longer exists is an empty one that finds its
names in the new places when they are asked for; one that still exists looks there for the names
that it lost. Whoever deletes this file deletes its import in `qgpo/__init__.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_loader
from sys import meta_path
from types import ModuleType
from typing import Any

FOLDERS = {
    "statistics": "experiments",
    "agents.acting agents.callbacks agents.sb3 agents.single_stage": "agents.core",
    "agents.adoption": "agents.guided",
    "agents.benchmark agents.plan agents.workers": "experiments",
    "envs.catalogue envs.checking envs.combining envs.downloading envs.remote": "envs.store",
    "envs.families envs.making envs.observations": "envs.tasks",
    "envs.reference envs.robotics envs.spaces": "envs.tasks",
    "envs.report envs.result_figures envs.results": "experiments",
    "envs.video": "envs.play",
}
"""old modules: the folder in which they have the same names now"""

MODULES = {
    "baselines": "policies critic",
    "empirical": "exact",
    "guidance.base": "guidance",
    "metrics": "exact.distances",
    "mixture": "exact",
    "policies": "networks",
    "agents.base": "agents",
    "agents.cells": "experiments.workers experiments.documents experiments.driver",
    "agents.sb3": "agents.core.sb3 agents.core.parameters agents.core.header",
    "agents.checkpoint": "agents.core.checkpoint agents.core.upgrade",
    "agents.energy_guided_config": "agents",
    "agents.energy_guided_model": (
        "agents.energy_guided agents.general.config agents.general.data agents.general.tilted"
    ),
    "agents.files": "agents.core.checkpoint agents.core.provenance",
    "agents.guided_policy": "agents.guided.policy",
    "agents.presets": "agents agents.qipo agents.qgpo agents.guided.config agents.core.config",
    "agents.runs": "experiments.folder",
    "agents.stages": "agents.core.training",
    "agents.tuning": "agents.guided.tuning agents.guided.imagination",
    "agents.support_critic": "agents.guided.support agents.guided.support_critic",
    "agents.training": "agents.core.training agents.core.batches",
    "envs.bundled": "envs.store.bundled envs.rollouts.sb3_policies envs.store.opening",
    "envs.collection": "envs.rollouts.collecting envs.rollouts.protocols envs",
    "envs.controllers": "envs.rollouts.scripted_policies",
    "envs.dataset_figure": "envs.data.figure",
    "envs.datasets": "envs.data.dataset",
    "envs.episodes": "envs.store.episode_rules",
    "envs.evaluation": (
        "envs.play.evaluation envs.play.scores envs.play.intervals envs.rollouts.protocols"
    ),
    "envs.figures": "experiments.run_figure",
    "envs.loading": "envs.store.loading envs.store.opening",
    "envs.local": "envs.store.local envs.store.writing",
    "envs.mapping": "envs.data.memmap",
    "envs.policies": "envs.rollouts.sb3_policies",
    "envs.policies.vecnormalize": "envs.rollouts.vecnormalize",
    "envs.vector_collection": "envs",
}
"""old module: the modules that have its names now, each name in the first that has it"""

RENAMED = {
    "qgpo.agents.cells.CellError": "qgpo.experiments.documents.DocumentError",
    "qgpo.agents.cells.read_result": "qgpo.experiments.documents.find_result",
    "qgpo.agents.files.VERSIONS_OF": "qgpo.agents.core.provenance.LIBRARIES",
    "qgpo.agents.presets.LAPTOP_SHARED": "qgpo.agents.guided.config.LAPTOP",
    "qgpo.agents.presets.check_config": "qgpo.fields.check_fields",
    "qgpo.envs.local.open_whole": "qgpo.envs.store.local.open_local",
    "qgpo.envs.local.put_in_place": "qgpo.envs.store.writing.add_dataset",
    "qgpo.envs.vector_collection.Predicting": "qgpo.envs.rollouts.protocols.Predicts",
}
"""old name, with its module, which is in `MOVED`: the present name, with its module"""

MOVED = {
    f"qgpo.{old}": (f"qgpo.{folder}.{old.rpartition('.')[-1]}",)
    for modules, folder in FOLDERS.items()
    for old in modules.split()
} | {
    f"qgpo.{old}": tuple(f"qgpo.{place}" for place in places.split())
    for old, places in MODULES.items()
}
"""`FOLDERS` and `MODULES` with full names"""


def _warn(message: str) -> None:
    message += "; the old path will be gone in qgpo 0.3"
    warnings.warn(message, DeprecationWarning, stacklevel=3)


class OldModule(ModuleType):
    """A module whose old names are found in their new places."""

    def __getattr__(self, name: str) -> Any:
        old = f"{self.__name__}.{name}"
        for place in MOVED[self.__name__] if not name.startswith("_") else ():
            home, _, new_name = RENAMED.get(old, f"{place}.{name}").rpartition(".")
            found = vars(import_module(home))
            if new_name in found:
                if not isinstance(self.__loader__, OldFinder) or new_name != name:
                    _warn(f"{old} is now {home}.{new_name}")
                setattr(self, name, found[new_name])
                return found[new_name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class RemainingLoader(SourceFileLoader):
    """Loads a module that still exists and lost some of its names."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty module."""
        return OldModule(spec.name)


class OldFinder(MetaPathFinder, Loader):
    """Finds the modules of `MOVED`, and loads those that no longer exist."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty module."""
        return OldModule(spec.name)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module itself where it still exists, else an empty one."""
        if fullname not in MOVED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = RemainingLoader(fullname, spec.loader.path)
            return spec
        has_children = any(name.startswith(f"{fullname}.") for name in MOVED)
        return spec_from_loader(fullname, self, is_package=has_children)

    def exec_module(self, module: ModuleType) -> None:
        """Say once where its names are now."""
        _warn(f"{module.__name__} is now {' or '.join(MOVED[module.__name__])}")


meta_path.insert(0, OldFinder())
