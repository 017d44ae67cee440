# ruff: noqa: NPY002 - OGBench's experts draw from NumPy's global generator, and so does this file
"""OGBench's own experts, one trajectory at a time from a seed.

The procedure is that of the scripts that made the published files (Park et al. 2025, arXiv
2410.20092); the experts of manipulation are in the package `ogbench`, that of the point mazes is
the direction of the next cell on the shortest path, with noise. The official scripts seed nothing.
Here every trajectory has a seed of its own, so that it does not matter who plays the others.
"""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from qgpo.envs.tasks import ogbench
from qgpo.envs.tasks.making import quiet_mujoco

Trajectory = dict[str, NDArray[Any]]
"""a trajectory as in OGBench's files, one row more than it has transitions: see `trajectory`"""
Cell = tuple[int, int]
"""row and column of a maze"""


@dataclass(frozen=True)
class Procedure:
    """How the trajectories of a set are made."""

    environment: str
    """such as cube-single"""
    kind: str
    """play and noisy (manipulation), navigate and stitch (mazes)"""
    length: int
    """transitions of a trajectory"""
    noise: float
    """of the plan (play); the largest of an episode's actions (noisy); of all actions (mazes)"""
    random_actions: float = 0.0
    """the share of actions that are uniformly random"""

    @property
    def name(self) -> str:
        """Such as cube-single-play."""
        return f"{self.environment}-{self.kind}"


def _procedures() -> Iterator[Procedure]:
    for environment in (*(f"cube-{n}" for n in CUBES), "scene"):
        yield Procedure(environment, "play", 1000, 0.1)
        yield Procedure(environment, "noisy", 1000, 0.1, random_actions=0.1)
    for size in ("3x3", "4x4", "4x5", "4x6"):
        yield Procedure(f"puzzle-{size}", "play", 1000, 0.1)
        yield Procedure(f"puzzle-{size}", "noisy", 1000, 0.1, random_actions=0.2)
    for maze in ("medium", "large", "giant", "teleport"):
        yield Procedure(f"pointmaze-{maze}", "navigate", 2000 if maze == "giant" else 1000, 0.5)
        yield Procedure(f"pointmaze-{maze}", "stitch", 200, 0.5)


CUBES: dict[str, tuple[float, float] | None] = {
    "single": None,
    "double": (0.0, 0.25),
    "triple": (0.05, 0.35),
    "quadruple": (0.1, 0.5),
}
"""by the number of cubes: the range of an episode's probability to stack a cube on another"""
PROCEDURES = {procedure.name: procedure for procedure in _procedures()}
"""the sets whose experts are in the package `ogbench`, as commands of its authors state them"""
DOWNLOADED = ("antmaze-", "humanoidmaze-", "antsoccer-")
"""how environments begin whose experts are not in the package"""
PLAN_SMOOTHING, MARKOV_MIN_NORM = 0.5, 0.4
"""of the noise of a plan; the shortest step of a closed-loop expert, in its units"""
STITCH_CELLS = 4
"""how far the goal of a stitch trajectory is from its start"""
CHANGED = ("site_pos", "dof_damping", "geom_rgba", "mat_rgba")
"""what episodes change of MuJoCo's model: targets, locks and colors"""
INFOS = ("qpos", "qvel", "button_states")
"""what is recorded of the simulation's state, where the environment has it"""


def why_not(environment: str, kind: str) -> str | None:
    """Why a set cannot be generated, as the end of a sentence; None where it can be."""
    if f"{environment}-{kind}" in PROCEDURES:
        return None
    if environment.startswith(DOWNLOADED):
        return (
            "cannot be generated here: its experts are trained networks, which OGBench's "
            "authors offer for download and which are not in the package ogbench"
        )
    return "is none of OGBench's sets whose experts are in the package ogbench"


def trajectory(procedure: Procedure, seed: int, index: int) -> Trajectory:
    """The trajectory of that index, a function of its arguments alone.

    It has T + 1 rows for T transitions, as OGBench's files do: `observations` (float32),
    `actions` (float32; the last one leads nowhere), `terminals` (bool, the last row), `qpos` and
    `qvel` (float32) and, where there are buttons, `button_states` (int64), the state in which the
    row's action is taken. NumPy's global generator is used, and left as it was.
    """
    generator, reset, action_space = np.random.SeedSequence([seed, index]).generate_state(3)
    recorder = _recorder(procedure)
    recorder.env.action_space.seed(int(action_space))
    with quiet_mujoco(), ogbench.global_generator_kept():
        np.random.seed(generator)
        return recorder.record(int(reset))


def make_recorded_env(procedure: Procedure) -> gym.Env[Any, Any]:
    """The environment in which the experts play, without a step limit.

    Raises ImportError without the package `ogbench`.
    """
    ogbench.register()
    is_maze = procedure.environment.startswith("pointmaze-")
    arguments: dict[str, Any] = {} if is_maze else {"mode": "data_collection"}
    with quiet_mujoco():
        return gym.make(
            f"{procedure.environment}-v0",
            max_episode_steps=-1,
            disable_env_checker=True,
            terminate_at_goal=False,
            **arguments,
        )


class _Recorder(Protocol):
    """Plays the trajectories of one procedure."""

    env: gym.Env[Any, Any]

    def record(self, seed: int) -> Trajectory:
        """One trajectory, whose environment is reset with that seed."""


@functools.lru_cache(maxsize=1)
def _recorder(procedure: Procedure) -> _Recorder:
    """An environment takes seconds to make, and a trajectory nothing from those before it."""
    if procedure.environment.startswith("pointmaze-"):
        return _Maze(procedure)
    return _Manipulation(procedure)


class _Rows:
    """The rows of a trajectory, as they are played."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {}

    def add(self, observation: Any, action: Any, info: dict[str, Any]) -> None:
        """A row; `info` is that of the step, which knows the state before it."""
        row = {"observations": observation, "actions": action}
        row.update({name: info[f"prev_{name}"] for name in INFOS if f"prev_{name}" in info})
        for name, value in row.items():
            self.columns.setdefault(name, []).append(value)

    def arrays(self) -> Trajectory:
        """All rows; the last one ends the trajectory."""
        found = {
            name: np.array(values, dtype=np.int64 if name == "button_states" else np.float32)
            for name, values in self.columns.items()
        }
        terminals = np.zeros(len(found["actions"]), dtype=np.bool_)
        terminals[-1] = True
        return {**found, "terminals": terminals}


# Manipulation -------------------------------------------------------------------------------


class _Expert(Protocol):
    """What OGBench's oracles have."""

    done: bool

    def reset(self, observation: Any, info: dict[str, Any]) -> None:
        """Begin a task that `info` states."""

    def select_action(self, observation: Any, info: dict[str, Any]) -> NDArray[np.float64]:
        """The action in that state."""


class _Manipulation:
    """A robot arm whose experts do one random task after the other."""

    def __init__(self, procedure: Procedure) -> None:
        self.procedure = procedure
        self.env = make_recorded_env(procedure)
        make = _plan_expert if procedure.kind == "play" else _markov_expert
        self.experts = {task: make(task, procedure, self.env) for task in _tasks(procedure)}
        env: Any = self.env.unwrapped
        self.targets = {
            name: copy.deepcopy(value)
            for name, value in vars(env).items()
            if name.startswith(("_target_", "_cur_"))
        }
        self.model: dict[str, NDArray[Any]] = {}
        self._after_compilation = env.post_compilation
        env.post_compilation = self._remember
        env.reset()  # compiles the model, and begins an episode

    def _remember(self) -> None:
        """Keep what episodes will change of a model that is compiled."""
        self._after_compilation()
        model = self.env.unwrapped.model  # type: ignore[attr-defined]
        self.model = {name: getattr(model, name).copy() for name in CHANGED}

    def _renew(self) -> None:
        """Make the environment as it was before its first episode.

        A reset leaves the targets of other tasks than the episode's first one as they were, in
        Python and in the model, and closed-loop experts look at them for a step.
        """
        env: Any = self.env.unwrapped
        vars(env).update(copy.deepcopy(self.targets))
        for name, values in self.model.items():
            getattr(env.model, name)[:] = values

    def record(self, seed: int) -> Trajectory:
        """One trajectory; of the scene, the first one in which the cube stays in reach."""
        self._renew()
        first: int | None = seed
        while True:
            played = self._play(first)
            if self.procedure.environment != "scene" or is_in_reach(played["qpos"][:, 14:17]):
                return played
            first = None  # the same random streams go on

    def _play(self, seed: int | None) -> Trajectory:
        observation, info = self.env.reset(seed=seed)
        p_stack = _stacking(self.procedure.environment)
        is_noisy = self.procedure.kind == "noisy"
        noise = np.random.uniform(0, self.procedure.noise) if is_noisy else 0.0
        spread = noise * np.array([1.0, 1.0, 1.0, 3.0, 10.0])
        expert = self.experts[info["privileged/target_task"]]
        expert.reset(observation, info)
        rows = _Rows()
        for _ in range(self.procedure.length + 1):
            if np.random.rand() < self.procedure.random_actions:
                action: Any = self.env.action_space.sample()
            else:
                action = np.array(expert.select_action(observation, info))
                if is_noisy:
                    action = action + np.random.normal(0, spread, action.shape)
            action = np.clip(action, -1, 1)
            following, _, _, _, info = self.env.step(action)
            rows.add(observation, action, info)
            observation = following
            if expert.done:
                env: Any = self.env.unwrapped
                begin, aim = env.set_new_target(p_stack=p_stack)
                expert = self.experts[aim["privileged/target_task"]]
                expert.reset(begin, aim)
        return rows.arrays()


def _tasks(procedure: Procedure) -> tuple[str, ...]:
    """What there is to do in an environment, by the names of OGBench's modules."""
    if procedure.environment == "scene":
        return ("cube", "button", "drawer", "window")
    return (procedure.environment.split("-")[0].replace("puzzle", "button"),)


def _plan_expert(task: str, procedure: Procedure, env: gym.Env[Any, Any]) -> _Expert:
    """An expert that follows a noisy plan which it made beforehand."""
    made: _Expert = _expert_class("plan", task)(
        env=env,
        noise=procedure.noise,
        noise_smoothing=PLAN_SMOOTHING,
        **_gripper(procedure),
    )
    return made


def _markov_expert(task: str, procedure: Procedure, env: gym.Env[Any, Any]) -> _Expert:
    """An expert that answers to the current state."""
    steps = {"max_step": 100} if (procedure.environment, task) == ("scene", "cube") else {}
    made: _Expert = _expert_class("markov", task)(
        env=env, min_norm=MARKOV_MIN_NORM, **_gripper(procedure), **steps
    )
    return made


def _expert_class(kind: str, task: str) -> Any:
    module = importlib.import_module(f"ogbench.manipspace.oracles.{kind}.{task}_{kind}")
    return getattr(module, f"{task.capitalize()}{kind.capitalize()}Oracle")


def _gripper(procedure: Procedure) -> dict[str, bool]:
    """A puzzle's buttons are pressed with a closed gripper."""
    is_puzzle = procedure.environment.startswith("puzzle-")
    return {"gripper_always_closed": True} if is_puzzle else {}


def _stacking(environment: str) -> float:
    """An episode's probability to stack; drawn where there is something to stack on."""
    family, _, number = environment.partition("-")
    if family != "cube":
        return 0.5
    bounds = CUBES[number]
    return 0.0 if bounds is None else np.random.uniform(*bounds)


def is_in_reach(cube: NDArray[Any]) -> bool:
    """Whether a scene's cube, (T + 1, 3) positions in metres, is always visible or in the drawer.

    Else pictures of a goal would not tell where it is. The drawer is what is left of -0.3 m at a
    height of 6 to 8 cm.
    """
    side, height = cube[:, 1], cube[:, 2]
    in_drawer = (height >= 0.06) & (height <= 0.08)
    return bool(np.all(side < 0.29) and np.all((side > -0.3) | in_drawer))


# Mazes --------------------------------------------------------------------------------------


class _Maze:
    """A point that walks along shortest paths, with noise."""

    def __init__(self, procedure: Procedure) -> None:
        self.procedure = procedure
        self.env = make_recorded_env(procedure)
        maze: Any = self.env.unwrapped
        self.maze = maze
        self.is_free: NDArray[np.bool_] = np.asarray(maze.maze_map) == 0
        self.cells: list[Cell] = [(int(i), int(j)) for i, j in np.argwhere(self.is_free)]
        self.goals = [cell for cell in self.cells if not is_corridor(self.is_free, cell)]

    def record(self, seed: int) -> Trajectory:
        """One trajectory; `navigate` has a new goal whenever one is reached."""
        start = _any(self.cells)
        if self.procedure.kind == "navigate":
            goal = _any(self.goals)
        else:
            ring = cells_at(self.is_free, start, STITCH_CELLS)
            goal = _any(ring) if ring else start
        task = {"init_ij": start, "goal_ij": goal}
        observation, _ = self.env.reset(seed=seed, options={"task_info": task})
        rows = _Rows()
        for _ in range(self.procedure.length + 1):
            action = self._towards_goal() + np.random.normal(0, self.procedure.noise, 2)
            action = np.clip(action, -1, 1)
            following, _, _, _, info = self.env.step(action)
            rows.add(observation, action, info)
            observation = following
            if info["success"] and self.procedure.kind == "navigate":
                self.maze.set_goal(_any(self.goals))
        return rows.arrays()

    def _towards_goal(self) -> Any:
        """The unit vector to the next cell on the shortest path."""
        here = self.maze.get_xy()
        next_cell, _ = self.maze.get_oracle_subgoal(here, self.maze.cur_goal_xy)
        way = next_cell - here
        return way / (np.linalg.norm(way) + 1e-6)


def _any(cells: list[Cell]) -> Cell:
    return cells[np.random.randint(len(cells))]


def is_corridor(is_free: NDArray[np.bool_], cell: Cell) -> bool:
    """Whether the way leads straight through a free cell, which makes it no goal of `navigate`."""
    i, j = cell
    across, along = is_free[i, j - 1 : j + 2 : 2], is_free[i - 1 : i + 2 : 2, j]
    return bool((across.all() and not along.any()) or (along.all() and not across.any()))


def cells_at(is_free: NDArray[np.bool_], start: Cell, distance: int) -> list[Cell]:
    """The free cells whose shortest path from `start` has that many steps.

    They are in the order in which a search in breadth finds them: up, left, down, right.
    """
    ring, seen = [start], {start}
    for _ in range(distance):
        found: dict[Cell, None] = {}
        for i, j in ring:
            for cell in ((i - 1, j), (i, j - 1), (i + 1, j), (i, j + 1)):
                inside = 0 <= cell[0] < is_free.shape[0] and 0 <= cell[1] < is_free.shape[1]
                if inside and is_free[cell] and cell not in seen:
                    found[cell] = None
                    seen.add(cell)
        ring = list(found)
    return ring
