"""OGBench's names, as dataset ids, and its environments, registered without notes.

Park et al. 2025 (arXiv 2410.20092). A file of trajectories has no rewards: each of the five tasks
of its environment labels them (`-singletask-task2`). What its authors published is in the
namespace `ogbench`; what was generated here is in another one, and its id says how much it is.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import os
import re
import tempfile
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

PUBLISHED, GENERATED = "ogbench", "ogbench-generated"
ENVIRONMENTS = (
    r"(?:(?:point|ant|humanoid)maze-(?:medium|large|giant|teleport)|antsoccer-(?:arena|medium)"
    r"|cube-(?:single|double|triple|quadruple|octuple)|scene|puzzle-(?:3x3|4x4|4x5|4x6))"
)
"""regular expression of the environments with state observations"""
KINDS = "play|noisy|navigate|stitch|explore"
"""how trajectories were made"""
TASKS = rf"{ENVIRONMENTS}-singletask(?:-task[1-5])?-v0"
"""regular expression of the environments of a single task"""
DATASETS = rf"({PUBLISHED}|{GENERATED})/{ENVIRONMENTS}-.*"
"""regular expression of dataset ids"""
OTHERS = (
    rf"(?P<images>visual-)?(?P<environment>{ENVIRONMENTS})(?:-(?P<kind>{KINDS}))?"
    r"(?P<single>-singletask(?:-task[0-9]+)?)?(?:-oraclerep)?-v[0-9]+"
)
"""regular expression of the other environments, and of what else may be taken for one"""
_ID = re.compile(
    rf"(?P<namespace>{PUBLISHED}|{GENERATED})/(?P<environment>{ENVIRONMENTS})"
    rf"-(?P<kind>{KINDS})"
    r"(?:-(?P<size>[1-9][0-9]{0,11}[km]?)(?:-seed(?P<seed>[1-9][0-9]{0,9}))?)?"
    r"(?P<single>-singletask(?:-task(?P<task>[1-5]))?)?-v0"
)
MULTIPLES = (("m", 1_000_000), ("k", 1_000))
"""how ids shorten numbers of steps"""
NUMBERS = (1, 2, 3, 4, 5)
"""of the tasks of every environment"""
INSTALL = "pip install ogbench"


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


def size_of_steps(steps: int) -> str:
    """How an id spells a number of steps: 100000 is 100k."""
    for letter, multiple in MULTIPLES:
        if steps % multiple == 0:
            return f"{steps // multiple}{letter}"
    return str(steps)


def steps_of_size(size: str) -> int:
    """The number of steps that an id spells."""
    multiple = dict(MULTIPLES).get(size[-1])
    return int(size) if multiple is None else int(size[:-1]) * multiple


def parse(dataset_id: str) -> Name | None:
    """The parts of an id with state observations; None for other ids.

    A size has one spelling: 1000k and 1000000 are 1m.
    """
    match = _ID.fullmatch(dataset_id)
    if match is None or (match["namespace"] == GENERATED) != (match["size"] is not None):
        return None
    return Name(
        match["namespace"],
        match["environment"],
        match["kind"],
        size_of_steps(steps_of_size(match["size"])) if match["size"] else "",
        int(match["seed"] or 0),
        None if match["single"] is None else int(match["task"] or 0),
    )


@contextlib.contextmanager
def global_generator_kept() -> Iterator[None]:
    """After the block NumPy's global generator, from which OGBench draws, is as it was before."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


@functools.cache
def register() -> None:
    """Add its environments to Gymnasium's registry, once. Raises ImportError where it is missing.

    Notes on import about a missing display are hidden.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ogbench

        gym.register_envs(ogbench)
        _repair_manipulation()
        _repair_mazes()


def _repair_manipulation() -> None:
    """Give each robot arm one action space, whose bounds are float32, and the rate of its frames.

    In OGBench it is another space at every look, with a warning of rounded bounds, and a seed that
    a user gives it is lost. An arm takes 20 steps a second, which is not in its metadata.
    """
    from ogbench.manipspace.envs.manipspace_env import ManipSpaceEnv

    space = functools.cached_property(_five_actions)
    space.__set_name__(ManipSpaceEnv, "action_space")
    ManipSpaceEnv.action_space = space
    ManipSpaceEnv.metadata = {"render_modes": ["rgb_array"], "render_fps": 20}


def _five_actions(_: Any) -> gym.spaces.Box:
    """Three directions, the turn and the grip."""
    return gym.spaces.Box(np.full(5, -1.0, np.float32), np.full(5, 1.0, np.float32))


def _repair_mazes() -> None:
    """Close and delete the file that each maze is made from.

    OGBench leaves them open, so that a process runs out of open files, and never deletes them.
    """
    from ogbench.locomaze import maze

    maze.tempfile = types.SimpleNamespace(mkstemp=_scratch_file)


@functools.cache
def _scratch() -> str:
    """A folder that is deleted when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="qgpo-mazes-")
    atexit.register(folder.cleanup)
    return folder.name


def _scratch_file(suffix: str, text: bool) -> tuple[None, str]:
    """A new file's name, in the place of tempfile.mkstemp's open file and its name."""
    opened, path = tempfile.mkstemp(suffix=suffix, text=text, dir=_scratch())
    os.close(opened)
    return None, path


def refusal(env_id: str) -> str:
    """Why agents do not play in an environment of `OTHERS`, and in which ones instead."""
    match = re.fullmatch(OTHERS, env_id)
    assert match is not None, env_id
    environment = match["environment"]
    named = f"{environment}{match['single'] or ''}-v0"
    if re.fullmatch(TASKS, named):
        instead = named
    else:
        task = f"{environment}-singletask"
        instead = f"{task}-task1-v0 to {task}-task5-v0 ({task}-v0 is OGBench's default task)"
    if match["images"]:
        return f"its observations are images, and agents need vectors: use {instead}"
    if match["kind"]:
        return f"that is the name of a dataset: use {instead}"
    if match["single"]:
        return f"there is no such task: use {instead}"
    return (
        "its goal changes in every episode, and agents do not observe it: use one of its "
        f"tasks, {instead}"
    )


class Task(gym.Wrapper[Any, Any, Any, Any]):
    """A task whose episodes follow from the seed of `reset` alone, and whose success SB3 finds.

    OGBench's mazes draw starts and teleports from NumPy's global generator, and all environments
    take random steps before an episode begins. Here they draw from a generator of their own; the
    global one stays as it is. Both spaces are the same objects all the time. `info["success"]` is
    also in `info["is_success"]`, from which SB3 logs rates of success.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self._random = np.random.RandomState()

    @property
    def spec(self) -> gym.envs.registration.EnvSpec | None:  # type: ignore[override]
        """Of the environment: under this wrapper it is no other one."""
        return self.env.spec

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; without a seed, from where the generators stand."""
        if seed is not None:
            self._random.seed(seed % 2**32)
            self.unwrapped.action_space.seed(seed)
        with self._own_generator():
            return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step."""
        with self._own_generator():
            observation, reward, terminated, truncated, info = self.env.step(action)
        info["is_success"] = bool(info["success"])
        return observation, reward, terminated, truncated, info

    @contextlib.contextmanager
    def _own_generator(self) -> Iterator[None]:
        """NumPy's global generator is this environment's own inside the block."""
        with global_generator_kept():
            np.random.set_state(self._random.get_state())  # noqa: NPY002
            try:
                yield
            finally:
                self._random.set_state(np.random.get_state())  # noqa: NPY002
