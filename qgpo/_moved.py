"""Module paths of qgpo 0.1: they work for one release, with a DeprecationWarning.

Two tables say what moved. A module of `MOVED` that no longer exists is an empty one that finds its
names in the new places when they are asked for; one that still exists looks there for the names
that it lost. Whoever deletes this file deletes its import in `qgpo/__init__.py`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "qgpo.baselines": ("qgpo.policies", "qgpo.critic"),
    "qgpo.empirical": ("qgpo.exact",),
    "qgpo.guidance.base": ("qgpo.guidance",),
    "qgpo.metrics": ("qgpo.exact.distances",),
    "qgpo.mixture": ("qgpo.exact",),
    "qgpo.policies": ("qgpo.networks",),
    "qgpo.statistics": ("qgpo.experiments.statistics",),
    "qgpo.agents.acting": ("qgpo.agents.core.acting",),
    "qgpo.agents.adoption": ("qgpo.agents.guided.adoption",),
    "qgpo.agents.base": ("qgpo.agents",),
    "qgpo.agents.benchmark": ("qgpo.experiments.benchmark",),
    "qgpo.agents.callbacks": ("qgpo.agents.core.callbacks",),
    "qgpo.agents.cells": ("qgpo.experiments.cells",),
    "qgpo.agents.checkpoint": ("qgpo.agents.core.checkpoint", "qgpo.agents.core.upgrade"),
    "qgpo.agents.energy_guided_config": ("qgpo.agents",),
    "qgpo.agents.energy_guided_model": ("qgpo.agents.energy_guided",),
    "qgpo.agents.files": ("qgpo.agents.core.checkpoint", "qgpo.agents.core.provenance"),
    "qgpo.agents.guided_policy": ("qgpo.agents.guided.policy",),
    "qgpo.agents.plan": ("qgpo.experiments.plan",),
    "qgpo.agents.presets": (
        "qgpo.agents",
        "qgpo.agents.qipo",
        "qgpo.agents.qgpo",
        "qgpo.agents.guided.config",
        "qgpo.agents.core.config",
    ),
    "qgpo.agents.runs": ("qgpo.experiments.folder",),
    "qgpo.agents.sb3": ("qgpo.agents.core.sb3",),
    "qgpo.agents.single_stage": ("qgpo.agents.core.single_stage",),
    "qgpo.agents.stages": ("qgpo.agents.core.training",),
    "qgpo.agents.support_critic": ("qgpo.agents.guided.support", "qgpo.agents.guided.critic"),
    "qgpo.agents.training": ("qgpo.agents.core.training", "qgpo.agents.core.batches"),
    "qgpo.agents.tuning": ("qgpo.agents.guided.tuning",),
    "qgpo.agents.workers": ("qgpo.experiments.workers",),
    "qgpo.envs.bundled": ("qgpo.envs.store.bundled", "qgpo.envs.rollouts.sb3_policies"),
    "qgpo.envs.catalogue": ("qgpo.envs.store.catalogue",),
    "qgpo.envs.checking": ("qgpo.envs.store.checking",),
    "qgpo.envs.collection": (
        "qgpo.envs.rollouts.collecting",
        "qgpo.envs.rollouts.protocols",
        "qgpo.envs",
    ),
    "qgpo.envs.combining": ("qgpo.envs.store.combining",),
    "qgpo.envs.controllers": ("qgpo.envs.rollouts.scripted_policies",),
    "qgpo.envs.dataset_figure": ("qgpo.envs.data.figure",),
    "qgpo.envs.datasets": ("qgpo.envs.data.dataset",),
    "qgpo.envs.downloading": ("qgpo.envs.store.downloading",),
    "qgpo.envs.episodes": ("qgpo.envs.store.episode_rules",),
    "qgpo.envs.evaluation": ("qgpo.envs.play.evaluation", "qgpo.envs.rollouts.protocols"),
    "qgpo.envs.families": ("qgpo.envs.tasks.families",),
    "qgpo.envs.figures": ("qgpo.experiments.run_figure",),
    "qgpo.envs.loading": ("qgpo.envs.store.loading", "qgpo.envs.store.opening"),
    "qgpo.envs.local": ("qgpo.envs.store.local", "qgpo.envs.store.writing"),
    "qgpo.envs.making": ("qgpo.envs.tasks.making",),
    "qgpo.envs.mapping": ("qgpo.envs.data.memmap",),
    "qgpo.envs.observations": ("qgpo.envs.tasks.observations",),
    "qgpo.envs.policies": ("qgpo.envs.rollouts.sb3_policies",),
    "qgpo.envs.policies.vecnormalize": ("qgpo.envs.rollouts.vecnormalize",),
    "qgpo.envs.reference": ("qgpo.envs.tasks.reference",),
    "qgpo.envs.remote": ("qgpo.envs.store.remote",),
    "qgpo.envs.report": ("qgpo.experiments.report",),
    "qgpo.envs.result_figures": ("qgpo.experiments.result_figures",),
    "qgpo.envs.results": ("qgpo.experiments.results",),
    "qgpo.envs.robotics": ("qgpo.envs.tasks.robotics",),
    "qgpo.envs.spaces": ("qgpo.envs.tasks.spaces",),
    "qgpo.envs.vector_collection": ("qgpo.envs",),
    "qgpo.envs.video": ("qgpo.envs.play.video",),
}
"""former module: the modules that have its names now, each name in the first that has it"""

RENAMED: dict[str, str] = {
    "qgpo.agents.files.VERSIONS_OF": "qgpo.agents.core.provenance.LIBRARIES",
    "qgpo.agents.presets.LAPTOP_SHARED": "qgpo.agents.guided.config.LAPTOP",
    "qgpo.agents.presets.check_config": "qgpo.fields.check_fields",
    "qgpo.envs.local.open_whole": "qgpo.envs.store.local.open_local",
    "qgpo.envs.vector_collection.Predicting": "qgpo.envs.rollouts.protocols.Predicts",
}
"""former name, with its module, which is in `MOVED`: the present name, with its module"""


def _warn(message: str, stacklevel: int) -> None:
    message += "; the former path will be gone in qgpo 0.3"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)


class FormerModule(ModuleType):
    """A module whose former names are found in their new places."""

    def __getattr__(self, name: str) -> Any:
        former = f"{self.__name__}.{name}"
        if former in RENAMED:
            place, _, new_name = RENAMED[former].rpartition(".")
            places: tuple[str, ...] = (place,)
        else:
            places, new_name = MOVED[self.__name__], name
        if not name.startswith("_"):
            for place in places:
                found = vars(import_module(place))
                if new_name in found:
                    if not isinstance(self.__loader__, FormerFinder) or new_name != name:
                        _warn(f"{former} is now {place}.{new_name}", stacklevel=2)
                    setattr(self, name, found[new_name])
                    return found[new_name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class FormerFinder(MetaPathFinder, Loader):
    """Finds the modules of `MOVED`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module itself where it still exists, else an empty one."""
        if fullname not in MOVED:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and isinstance(spec.loader, SourceFileLoader):
                spec.loader = StillThere(fullname, spec.loader.path)
                return spec
        has_children = any(name.startswith(f"{fullname}.") for name in MOVED)
        return spec_from_loader(fullname, self, is_package=has_children)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty module."""
        return FormerModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Say once where its names are now."""
        _warn(f"{module.__name__} is now {' or '.join(MOVED[module.__name__])}", stacklevel=2)


class StillThere(SourceFileLoader):
    """Loads a module that lost some of its names."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty module."""
        return FormerModule(spec.name)


sys.meta_path.insert(0, FormerFinder())
