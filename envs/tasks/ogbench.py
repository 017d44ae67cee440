"""OGBench's names, as dataset ids, and its environments, registered without notes.

Park et al. 2025 (arXiv 2410.20092). A file of trajectories has no rewards: each of the five tasks
of its environment labels them (`-singletask-task2`). What its authors published is in the
namespace `ogbench`; what was generated here is in another one, and its id says how much it is.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from dataclasses import dataclass

import gymnasium as gym

PUBLISHED, GENERATED = "ogbench", "ogbench-generated"
ENVIRONMENTS = (
    r"(?:(?:point|ant|humanoid)maze-(?:medium|large|giant|teleport)|antsoccer-(?:arena|medium)"
    r"|cube-(?:single|double|triple|quadruple|octuple)|scene|puzzle-(?:3x3|4x4|4x5|4x6))"
)
"""regular expression of the environments with state observations"""
_ID = re.compile(
    rf"(?P<namespace>{PUBLISHED}|{GENERATED})/(?P<environment>{ENVIRONMENTS})"
    r"-(?P<kind>play|noisy|navigate|stitch|explore)"
    r"(?:-(?P<size>[1-9][0-9]*[km]?)(?:-seed(?P<seed>[1-9][0-9]*))?)?"
    r"(?P<single>-singletask(?:-task(?P<task>[1-5]))?)?-v(?P<version>0)"
)
TASKS = (1, 2, 3, 4, 5)
"""of every environment"""
INSTALL = "pip install 'qgpo[ogbench]'"


@dataclass(frozen=True)
class Name:
    """What a dataset id under `ogbench/` or `ogbench-generated/` says."""

    namespace: str
    environment: str
    """such as cube-single"""
    kind: str
    """how the trajectories were made, such as play"""
    size: str = ""
    """transitions of generated trajectories, such as 100k or 1m; empty for published ones"""
    seed: int = 0
    """of the generation"""
    task: int | None = None
    """1 to 5; 0 is the environment's default task; None is the trajectories, without rewards"""

    @property
    def id(self) -> str:
        """The dataset id."""
        parts = [self.environment, self.kind]
        parts += [self.size] if self.size else []
        parts += [f"seed{self.seed}"] if self.seed else []
        parts += ["singletask"] if self.task is not None else []
        parts += [f"task{self.task}"] if self.task else []
        return f"{self.namespace}/{'-'.join(parts)}-v0"

    @property
    def trajectories(self) -> Name:
        """The dataset whose trajectories the task labels."""
        return dataclasses.replace(self, task=None)

    @property
    def published(self) -> str:
        """OGBench's own name of trajectories of that kind, such as cube-single-play-v0."""
        return f"{self.environment}-{self.kind}-v0"

    @property
    def env_id(self) -> str:
        """The environment in which agents play; for trajectories, the one with any goal."""
        suffix = "" if self.task is None else "-singletask"
        suffix += f"-task{self.task}" if self.task else ""
        return f"{self.environment}{suffix}-v0"


def parse(dataset_id: str) -> Name | None:
    """The parts of an id with state observations; None for other ids."""
    match = _ID.fullmatch(dataset_id)
    if match is None or (match["namespace"] == GENERATED) != (match["size"] is not None):
        return None
    return Name(
        match["namespace"],
        match["environment"],
        match["kind"],
        match["size"] or "",
        int(match["seed"] or 0),
        None if match["single"] is None else int(match["task"] or 0),
    )


@functools.cache
def register() -> None:
    """Add its environments to Gymnasium's registry, once. Raises ImportError where it is missing.

    Notes on import about a missing display are hidden.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ogbench

        gym.register_envs(ogbench)
