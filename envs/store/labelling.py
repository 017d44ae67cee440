"""A task of OGBench labels trajectories: rewards, and where the bootstrap is cut.

OGBench's own `relabel_dataset` looks at the state of each step, not at the next one. The reward is
minus the number of parts that are not solved there; where all are, the step terminates, and the
trajectory goes on behind it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from minari import MinariDataset
from numpy.typing import NDArray

from qgpo.envs.data.columns import flags, numbers, recorded
from qgpo.envs.data.memmap import Episode
from qgpo.envs.tasks.making import make_env, quiet_mujoco, register_package
from qgpo.envs.tasks.ogbench import GENERATED, INSTALL, NUMBERS, Name, global_generator_kept

STATES = ("qpos", "button_states")
"""infos that rewards are labelled from; the latter where an environment has buttons"""
ROWS_AT_ONCE = 2**16
"""labelled together: the environment is reset once for all of them"""
Labelled = tuple[Episode, Mapping[str, NDArray[Any]]]
"""an episode of T steps, and its infos of T + 1 rows"""


def task_ids(name: Name) -> list[str]:
    """The datasets that label these trajectories: the default task's, then those of all five."""
    return [dataclasses.replace(name, task=task).id for task in (0, *NUMBERS)]


def refuse_trajectories(name: Name) -> None:
    """Raise ValueError for a dataset without rewards; it names those that have some."""
    if name.task is None:
        default, *others = task_ids(name)
        raise ValueError(
            f"dataset {name.id!r} holds trajectories without rewards, for goal-conditioned "
            "agents, which this package does not have: choose one of its tasks, "
            f"{', '.join(others)}, or {default} (OGBench's default task)"
        )


@dataclass(frozen=True)
class Task:
    """A task whose trajectories are in a Minari dataset."""

    name: Name

    @classmethod
    def of(cls, name: Name, source: MinariDataset) -> Task:
        """Raises ValueError where the dataset is not what its id says, or has no rewards."""
        refuse_trajectories(name)
        origin = "generated" if name.namespace == GENERATED else "published"
        about = source.storage.metadata.get("ogbench")
        about = about if isinstance(about, dict) else {}
        found = about.get("name"), about.get("origin")
        if found != (name.published, origin):
            raise ValueError(
                f"dataset {source.id!r} does not hold trajectories of {name.published!r}, "
                f"{origin}: its metadata say {found[0]!r}, {found[1]!r}. Move that folder away"
            )
        return cls(name)

    @property
    def title(self) -> str:
        """The dataset, for messages."""
        return f"dataset {self.name.id!r}"

    @property
    def folder(self) -> str:
        """Name of the folder with the task's memory-mapped arrays."""
        return f"memmap-task{self.name.task}" if self.name.task else "memmap-singletask"

    @property
    def spec(self) -> EnvSpec:
        """The environment in which agents play. Raises ValueError where OGBench is missing."""
        register_package(self.name.env_id)
        spec = gym.registry.get(self.name.env_id)
        if spec is None:
            raise ValueError(
                f"{self.title} needs the package ogbench, which computes its rewards and has "
                f"its environment {self.name.env_id!r}: {INSTALL}"
            )
        return spec

    @property
    def made(self) -> dict[str, str]:
        """By what rewards are labelled, for the index of memory-mapped arrays."""
        return {"task": self.name.env_id, "ogbench": importlib.metadata.version("ogbench")}

    def label(self, episodes: Iterable[Labelled]) -> Iterator[Episode]:
        """The episodes with rewards, terminations and truncations.

        Raises ValueError where infos are missing, or are not those of the environment.
        """
        env = make_env(self.name.env_id)
        try:
            for group in _grouped(episodes):
                yield from self._labelled(env, group)
        finally:
            env.close()

    def _labelled(self, env: gym.Env[Any, Any], group: list[Labelled]) -> Iterator[Episode]:
        """A few episodes, labelled in one call."""
        from ogbench.relabel_utils import relabel_dataset

        lengths = [len(episode["rewards"]) for episode, _ in group]
        states = {name: self._joined(name, group) for name in STATES if name in group[0][1]}
        given = sorted(states)  # rewards and masks are added
        try:
            with quiet_mujoco(), global_generator_kept():
                relabel_dataset(self.name.env_id, env, states)
            self._check_width(env, states)
        except (IndexError, KeyError, ValueError) as error:
            raise ValueError(
                f"{self.title}: its infos {given} are not the states of "
                f"{self.name.env_id} ({type(error).__name__}: {error})"
            ) from error
        shape = (sum(lengths),)
        rewards = numbers(self.title, "rewards", states["rewards"], shape)
        goes_on = flags(self.title, "masks", states["masks"], shape)
        first = 0
        for (episode, _), length in zip(group, lengths, strict=True):
            steps = slice(first, first + length)
            yield {
                **episode,
                "rewards": rewards[steps],
                "terminations": ~goes_on[steps],
                "truncations": np.arange(length) == length - 1,
            }
            first += length

    def _joined(self, name: str, group: list[Labelled]) -> NDArray[Any]:
        """The states in which the steps of all episodes begin, of an info of T + 1 rows each."""
        what, rows = f"infos/{name}", []
        width = np.shape(group[0][1][name])[1:]
        for episode, infos in group:
            expected = (len(episode["rewards"]) + 1, *width)
            values = recorded(self.title, what, infos.get(name, ()))
            if values.shape != expected or len(width) != 1:
                raise ValueError(
                    f"{self.title}: {what} has shape {values.shape}, expected {expected}, a row "
                    "for each observation"
                )
            if not np.isfinite(values).all():
                raise ValueError(f"{self.title}: {what} has NaN or infinite values")
            rows.append(values[:-1])
        return np.concatenate(rows)

    def _check_width(self, env: gym.Env[Any, Any], states: Mapping[str, NDArray[Any]]) -> None:
        """Raise ValueError for states of another model."""
        width, expected = states["qpos"].shape[1], env.unwrapped.model.nq  # type: ignore[attr-defined]
        if width != expected:
            raise ValueError(f"qpos has {width} numbers a row, expected {expected}")


def _grouped(episodes: Iterable[Labelled]) -> Iterator[list[Labelled]]:
    """Episodes in order, as many together as have ROWS_AT_ONCE steps."""
    group: list[Labelled] = []
    rows = 0
    for episode, infos in episodes:
        group.append((episode, infos))
        rows += len(episode["rewards"])
        if rows >= ROWS_AT_ONCE:
            yield group
            group, rows = [], 0
    if group:
        yield group
