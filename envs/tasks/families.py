"""What is known of families of datasets, one row each: see `docs/families.md`.

A row is found by the id of a dataset, else by the environment in which it was recorded. Task names
occur nowhere else, except in the list of D4RL's ids (`catalogue.py`) and the bundled recipes.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator

from qgpo.envs.tasks import ogbench
from qgpo.envs.tasks.reference import ReferenceScores, is_scale
from qgpo.envs.tasks.wrappers import changing_returns

D4RL = "D4RL (Fu et al. 2020, arXiv 2004.07219)"
Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Family:
    """Datasets of one task: how they are read, where agents play, which return counts as 100."""

    name: str
    datasets: str = r"(?!)"
    """regular expression of dataset ids"""
    environments: str = r"(?!)"
    """regular expression of environment ids"""
    environment: str = ""
    """where agents play if the dataset names no environment and this one is registered"""
    package: str | None = None
    """module that registers the environments"""
    observation: tuple[str, ...] | None = None
    """parts of a Dict observation that make up the vector, in order"""
    episodes: str = "recorded"
    """how episodes are read: a name of `qgpo.envs.store.episode_rules.RULES`"""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """arguments that turn the recorded environment into the one that is played"""
    max_episode_steps: int | None = None
    """limit of a played episode, where it is not the environment's own"""
    reference: ReferenceScores | None = None
    """the returns that count as 0 and 100 in the environment that is played"""
    scored: str | None = None
    """regular expression of the environments that the reference is for; default `environment`"""
    reference_needs: Mapping[str, int] = field(default_factory=dict)
    """arguments without which the environment is another task, and how many entries they have"""
    reference_sees: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    """by argument, what of its value makes the task"""
    success: bool = False
    """whether an episode is scored by `info["success"]` of its last step, in percent of the
    episodes, instead of by its return"""
    wrapper: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]] | None = None
    """what mends the environments of the package"""
    refused: Callable[[str], str] | None = None
    """why agents do not play in the environment of that id, and in which ones instead"""
    n_episodes: int = 50
    """episodes of an evaluation"""
    n_envs: int = 50
    """copies of the environment, at most, that are played side by side: fewer where making one
    takes long"""
    settings: Settings = field(default_factory=dict)
    """by preset: hyperparameters that differ from the preset's"""

    def played(self, spec: EnvSpec | None) -> EnvSpec | None:
        """The environment in which agents play, from the one that a dataset names."""
        if spec is None:
            return None
        return dataclasses.replace(
            spec,
            kwargs={**spec.kwargs, **self.evaluation},
            max_episode_steps=self.max_episode_steps or spec.max_episode_steps,
        )

    def scores(self, metadata: Mapping[str, Any], spec: EnvSpec | None) -> ReferenceScores | None:
        """The reference returns for that environment: the metadata's, else the row's, else None.

        Data whose episodes are changed by a rule are scored by the row alone, because the pair in
        their metadata is about another return. The row's pair holds in the row's environment
        alone (`other_task`). It is the community's scale; scores need not compare across physics
        versions and data.
        """
        if self.success:
            return None
        low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
        row = self.reference
        if self.episodes == "recorded" and is_scale(low, high):
            if row is not None and (low, high) == (row.minimum, row.maximum):
                return row  # whoever wrote the metadata took it from there
            return ReferenceScores(float(low), float(high), "dataset metadata")  # type: ignore[arg-type]
        if self.reference is None or spec is None or self.other_task(spec) is not None:
            return None
        return self.reference

    def without_scores(self, metadata: Mapping[str, Any], spec: EnvSpec | None) -> Iterator[str]:
        """What is to be said where the data's or the row's reference returns are not used."""
        low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
        if not self.success and (low, high) != (None, None) and not is_scale(low, high):
            yield (
                f"its metadata have ref_min_score={low!r} and ref_max_score={high!r}, which are "
                "ignored: the first must be less than the second"
            )
        if spec is None:
            return
        if self.success and (other := self.other_task(spec)) is not None:
            yield f"no score, because its success rate is not comparable with the task's: {other}"
        if self.reference is not None and self.scores(metadata, spec) is None:
            yield (
                "no normalised scores, because the reference returns do not hold in its "
                f"environment: {self.other_task(spec)}"
            )

    def other_task(self, spec: EnvSpec) -> str | None:
        """Why the row's scores do not hold in that environment; None where they do.

        Reference returns and successes hold for the row's environments and versions, with the
        registered step limit and arguments and those that the row gives, and no wrapper that may
        change returns. An environment that is not registered here is compared with the row alone.
        """
        pattern = re.escape(self.environment) if self.scored is None else self.scored
        if not re.fullmatch(pattern, spec.id):
            return f"they are for {self.environment or self.scored}, not for {spec.id}"
        registered = gym.registry.get(spec.id)
        limit = self.max_episode_steps or (registered and registered.max_episode_steps)
        if limit is not None and spec.max_episode_steps != limit:
            return f"they are for {limit} steps, not for max_episode_steps={spec.max_episode_steps}"
        changing = changing_returns(spec.additional_wrappers)
        if changing:
            return f"{spec.id} is wrapped in {', '.join(changing)}"
        for name in sorted({*spec.kwargs, *self.evaluation, *self.reference_needs}):
            if not self._same_argument(name, spec, registered):
                value = f"={spec.kwargs[name]!r}" if name in spec.kwargs else " missing"
                return f"{spec.id} has the argument {name}{value}"
        return None

    def _same_argument(self, name: str, spec: EnvSpec, registered: EnvSpec | None) -> bool:
        """Whether an argument leaves the task what it is."""
        value = spec.kwargs.get(name)
        if name in self.evaluation:
            return name in spec.kwargs and _equal(value, self.evaluation[name])
        if name in self.reference_needs:
            return isinstance(value, Sized) and len(value) == self.reference_needs[name]
        if name == "render_mode" or registered is None:
            return True
        see = self.reference_sees.get(name, _whole)
        if name in registered.kwargs:
            return _equal(see(value), see(registered.kwargs[name]))
        return name in self.reference_sees or _equal(value, _default(registered, name))


def _equal(value: Any, other: Any) -> bool:
    """Whether they are equal, as JSON has them."""
    try:
        return bool(value == (list(other) if isinstance(other, tuple) else other))
    except ValueError:  # arrays are none of JSON's values
        return False


def _whole(value: Any) -> Any:
    return value


def _nothing(_: Any) -> None:
    return None


def _walls(maze: Any) -> Any:
    """Where a maze has walls, whatever cells its goals and starts are drawn from."""
    rows = maze if isinstance(maze, list) else []
    return [[cell == 1 for cell in row] if isinstance(row, list) else row for row in rows]


def _default(registered: EnvSpec, name: str) -> Any:
    """The default of an argument in the registered code; the class of absence without one."""
    try:
        code: Any = registered.entry_point
        code = load_env_creator(code) if isinstance(code, str) else code
        return inspect.signature(code).parameters[name].default
    except (ImportError, LookupError, TypeError, ValueError):
        return inspect.Parameter.empty


def looks_adapted(dataset_id: str) -> bool:
    """Whether an id looks like one of D4RL or OGBench whose data are not used as recorded."""
    return re.match(ADAPTED, dataset_id) is not None


def find_family(dataset_id: str | None = None, env_id: str | None = None) -> Family:
    """The row of a dataset, by its id or by its environment; UNKNOWN where there is none.

    No row depends on a dataset's version, so an id without one has the same row.
    """
    if dataset_id is not None and not re.search(r"-v\d+$", dataset_id):
        dataset_id += "-v0"
    for text, pattern in ((dataset_id, "datasets"), (env_id, "environments")):
        for family in FAMILIES:
            if text is not None and re.fullmatch(getattr(family, pattern), text):
                return family
    return UNKNOWN


def family_settings(family: Family, preset: str, fields: set[str]) -> dict[str, Any]:
    """The row's hyperparameters on top of a preset, those that the agent has."""
    row = family.settings.get(preset.removesuffix("-flow"), {})
    return {name: value for name, value in row.items() if name in fields}


# The rows ---------------------------------------------------------------------------------

GOAL_ANT = ("achieved_goal", "observation", "desired_goal")
"""torso x and y, then joints and velocities: the 29 numbers of D4RL, then the goal"""
GOAL_POINT = ("observation", "desired_goal")
"""x, y and their velocities, then the goal (`achieved_goal` is x and y once more)"""

ANTMAZES = r"AntMaze_(UMaze|Open|Medium|Large)(_Diverse_GR?)?-v[45]"
"""with the sparse reward, whose return is a success"""

# Lu et al. 2023 (arXiv 2304.12824), appendix: 32 support actions and rewards minus 1 for AntMaze;
# beta_q = 20 is that of the code derived from theirs. Their reported scale is the best of six per
# dataset; ours stays at 1, the exact one.
ANTMAZE: Settings = {
    "paper": {"support_actions": 32, "reward_tuning": "antmaze", "beta_q": 20.0},
    "laptop-support": {"support_actions": 32},
}
# Not in the paper: sparse rewards are not scaled to a spread of 1000. OGBench's are -1 and 0
# already, and its trajectories are no episodes of a task, so that their returns are no scale.
SPARSE: Settings = {"paper": {"reward_tuning": "antmaze"}}
COUNTED: Settings = {"paper": {"reward_tuning": "none"}}

U_MAZE = [
    [1, 1, 1, 1, 1],
    [1, "g", 0, 0, 1],
    [1, 1, 1, 0, 1],
    [1, "r", 0, 0, 1],
    [1, 1, 1, 1, 1],
]
"""the walls of the recorded maze, from one end of the U to the other; Minari's evaluation
environments for AntMaze's umaze have the mirror image of these walls"""


_d4rl = functools.partial(ReferenceScores, source=D4RL)


def _measured(low: float, high: float, good: str) -> ReferenceScores:
    """The mean returns of uniform actions and of a good policy's mean actions.

    `benchmarks/suite.py --references` plays 100 episodes of each, but for what the RL Zoo
    publishes.
    """
    return ReferenceScores(low, high, f"uniform actions, and {good}")


def _locomotion(environment: str, reference: ReferenceScores | None = None) -> Family:
    name = environment.lower()
    return Family(
        name=name,
        datasets=rf"mujoco/{name}/.*",
        environments=rf"{environment}-v\d+",
        environment=f"{environment}-v5",
        reference=reference,
    )


_robotics = functools.partial(Family, package="gymnasium_robotics")
_maze = functools.partial(
    _robotics,
    episodes="until_success",
    evaluation={"continuing_task": False},
    reference=ReferenceScores(0.0, 1.0, f"success rate, as {D4RL} counts it"),
    reference_sees={"maze_map": _walls, "reset_target": _nothing},
    n_episodes=100,
)


def _adroit(task: str, reference: ReferenceScores, max_episode_steps: int) -> Family:
    return _robotics(
        name=task.lower(),
        datasets=rf"(D4RL/)?{task.lower()}[/-](human|cloned|expert)-v\d+",
        environments=rf"AdroitHand{task}-v\d+",
        environment=f"AdroitHand{task}-v1",
        max_episode_steps=max_episode_steps,
        reference=reference,
    )


_ogbench = functools.partial(
    Family,
    package="ogbench",
    success=True,
    scored=ogbench.TASKS,
    wrapper=ogbench.Task,
    settings=COUNTED,
)
HALFCHEETAH = _locomotion("HalfCheetah", _d4rl(-280.178953, 12135.0))
FAMILIES: tuple[Family, ...] = (
    _maze(
        name="antmaze-umaze",
        datasets=r"(D4RL/)?antmaze[/-]umaze(-diverse)?-v\d+",
        environments=r"AntMaze_UMaze-v\d+",
        environment="AntMaze_UMaze-v4",
        observation=GOAL_ANT,
        evaluation={"continuing_task": False, "maze_map": U_MAZE},
        scored=ANTMAZES,
        settings=ANTMAZE,
    ),
    _maze(
        name="antmaze",
        datasets=r"(D4RL/)?antmaze[/-](medium|large)-(play|diverse)-v\d+",
        environments=r"AntMaze_(Open|Medium|Large)(_Diverse_GR?)?-v\d+",
        scored=ANTMAZES,
        observation=GOAL_ANT,
        settings=ANTMAZE,
    ),
    _robotics(name="antmaze-dense", environments=r"AntMaze_.*Dense-v\d+", observation=GOAL_ANT),
    _maze(
        name="pointmaze",
        datasets=r"(D4RL/)?pointmaze[/-](open|umaze|medium|large)-v\d+",
        environments=r"PointMaze_(Open|UMaze|Medium|Large)(_Diverse_GR?)?-v\d+",
        scored=r"PointMaze_(Open|UMaze|Medium|Large)(_Diverse_GR?)?-v3",
        observation=GOAL_POINT,
        settings=SPARSE,
    ),
    _robotics(
        name="pointmaze-dense",
        datasets=r"(D4RL/)?pointmaze[/-].*-dense-v\d+",
        environments=r"PointMaze_.*Dense-v\d+",
        observation=GOAL_POINT,
    ),
    _robotics(
        name="kitchen",
        datasets=r"(D4RL/)?kitchen[/-](complete|partial|mixed)-v\d+",
        environments=r"FrankaKitchen-v\d+",
        scored=r"FrankaKitchen-v1",
        observation=("observation",),
        episodes="first_completions",
        evaluation={"remove_task_when_completed": True, "terminate_on_tasks_completed": True},
        reference=_d4rl(0.0, 4.0),
        reference_needs={"tasks_to_complete": 4},
        settings=COUNTED,
    ),
    _adroit("Pen", _d4rl(96.262799, 3076.8331), 100),
    _adroit("Door", _d4rl(-56.512833, 2880.5693), 200),
    _adroit("Hammer", _d4rl(-274.856578, 12794.1348), 200),
    _adroit("Relocate", _d4rl(-6.425911, 4233.8778), 200),
    HALFCHEETAH,
    _locomotion("Hopper", _d4rl(-20.272305, 3234.3)),
    _locomotion("Walker2d", _d4rl(1.629008, 4592.3)),
    _locomotion("Ant", _d4rl(-325.6, 3879.7)),
    _locomotion("Humanoid"),
    _locomotion("HumanoidStandup"),
    _locomotion("InvertedPendulum"),
    _locomotion(
        "InvertedDoublePendulum", _measured(47.195, 9276.4, "inverteddoublependulum-expert")
    ),
    _locomotion("Reacher", _measured(-42.793, -3.9784, "reacher-expert")),
    _locomotion("Pusher"),
    _locomotion("Swimmer", _measured(0.98148, 359.127, "TD3 of the RL Zoo in Swimmer-v3")),
    Family(
        name="pendulum",
        environments=r"Pendulum-v\d+",
        environment="Pendulum-v1",
        reference=_measured(-1209.2, -156.995, "SAC of the RL Zoo"),
    ),
    # OGBench. A robot arm takes about a second to make, and 10 MB of memory.
    _ogbench(
        name="ogbench-mazes",
        datasets=rf"(?=[\w-]+/(\w*maze-|antsoccer-)){ogbench.DATASETS}",
        environments=rf"(?=\w*maze-|antsoccer-){ogbench.TASKS}",
    ),
    _ogbench(name="ogbench-arms", datasets=ogbench.DATASETS, environments=ogbench.TASKS, n_envs=10),
    Family(
        name="ogbench-goals",
        environments=ogbench.OTHERS,
        package="ogbench",
        refused=ogbench.refusal,
    ),
)
UNKNOWN = Family(name="unknown")
ADAPTED = r"(?i)(D4RL|ogbench)/|.*(antmaze|pointmaze|maze2d|antsoccer|kitchen|singletask)"
"""ids whose data are read in a way of their own where the family is known"""
