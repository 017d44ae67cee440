"""Everything that decides a run and its evaluation, for the command line, plans and workers."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, get_args, get_origin

from qgpo.agents import QGPOConfig
from qgpo.agents.core.checkpoint import config_from_json
from qgpo.agents.core.config import NOT_NEGATIVE, longer
from qgpo.agents.core.parsing import brief
from qgpo.agents.core.training import check_device_name
from qgpo.agents.registry import agent_class, check_adopts
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.progress import on_terminal
from qgpo.envs.store.loading import Storage
from qgpo.envs.store.local import split_version
from qgpo.envs.tasks.specs import check_file_id
from qgpo.envs.tasks.window import LONGEST
from qgpo.fields import MOST, Range, check_seed, rules

ConfigT = TypeVar("ConfigT")
WORDS = {bool: "true or false", float: "a finite number", int: "an integer", str: "a string"}
OBVIOUS = 1000
"""a bound from there on is said only to those who are above it"""
AT_LEAST_0, AT_LEAST_1 = Range(0), Range(1)
STEPS_AT_ONCE = Range(1, LONGEST)
SEED = "what generators start from"
THREADS = Range(0, 1024)
"""more exhaust what a system allows"""


@dataclass(frozen=True)
class Experiment(Generic[ConfigT]):
    """One training and its evaluation."""

    dataset_id: str = "qgpo/halfcheetah/mixed-v0"
    """Minari dataset: bundled (qgpo/…), local (in MINARI_DATASETS_PATH) or downloaded; or an
    OGBench task (ogbench/cube-single-play-singletask-task2-v0)"""
    agent: str = "QGPO"
    """name of the agent: QGPO, AEPO, QIPO, SIR, BestOfN, OneStepPolicy, BC, TD3BC, ReBRAC, IQL,
    DiffusionQL, FQL or IFQL"""
    label: str = ""
    """name of the agent in tables; default --agent"""
    preset: str = "laptop"
    """set of hyperparameters, which --config flags override: laptop (minutes on two CPU cores),
    paper (the authors' settings) or another preset of the agent (laptop-support, laptop-flow,
    paper-flow)"""
    longer: float = 1.0
    """factor on the gradient steps of every stage: 4 trains four times as long. The number of
    renewals of the critic's targets does not change. A model of the environment that would have
    fewer than 10,000 steps is left out"""
    seed: Annotated[int, SEED] = 0
    """seed of initialisation, batches, noise and evaluation"""
    adopt: Path | None = None
    """run folder or checkpoint of a trained agent: take whitening, behavior, support and critic
    from it, and train what is left. For QGPO, AEPO, QIPO, SIR, BestOfN and OneStepPolicy with the
    same seed, data and settings of these stages. If the support, the critic or the OGBench task
    differs, only whitening and behavior are taken"""
    device: str = "auto"
    """torch device: auto, cpu, cuda, …"""
    threads: Annotated[int, THREADS] = 0
    """torch threads on the CPU; 0 keeps torch's default"""
    download: bool = True
    """download the dataset from Minari's remote if it is not local"""
    storage: Storage = "memory"
    """memory, or memmap for datasets that are larger than memory (converted once, next to Minari's
    files)"""
    history: Annotated[int, STEPS_AT_ONCE] = 1
    """observations that the agent sees at once, for recordings of many steps per second"""
    chunk: Annotated[int, STEPS_AT_ONCE] = 1
    """number of actions that the agent decides at once; gamma is then per decision"""
    guidance_scales: Annotated[tuple[float, ...], NOT_NEGATIVE] = ()
    """guidance scales w to evaluate after training, for agents with guidance; default 0 (imitation)
    and the configured scale"""
    tune_guidance: bool = False
    """after training, choose the guidance scale with simulated episodes in a model of the
    environment (the agent's own, or a new one), and evaluate it too"""
    n_episodes: Annotated[int, AT_LEAST_0] = 50
    """evaluation episodes per guidance scale (default 100 for AntMaze and PointMaze); 0 skips the
    evaluation"""
    env_id: str | None = None
    """Gymnasium id of the evaluation environment; default the dataset's environment. module:Id
    imports the module first. The id of the dataset's environment keeps the recorded arguments"""
    deterministic: bool = True
    """evaluate deterministic actions instead of sampled ones"""
    log_interval: Annotated[int, AT_LEAST_1] = 500
    """gradient steps between two rows of metrics; a stage has at least 20 rows"""
    checkpoint_every: Annotated[int, AT_LEAST_1] = 5000
    """gradient steps between two checkpoints"""
    progress_bar: bool = field(default_factory=on_terminal)
    """show the stages and the remaining time; default if stderr is a terminal"""
    config: ConfigT = field(default_factory=QGPOConfig)  # type: ignore[assignment]
    """hyperparameters of the agent; the defaults are those of the preset"""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of `as_json` for what has nothing to adopt; more keys do not matter.

        Raises LookupError, TypeError or ValueError for other data.
        """
        config = config_from_json(agent_class(data["agent"]).config_class, data["config"])
        known = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        scales = tuple(data["guidance_scales"])
        return cls(**known | {"config": config, "guidance_scales": scales})

    @property
    def headline_scale(self) -> float | None:
        """The configured guidance scale, chosen before any evaluation; None without a choice."""
        fixed = agent_class(self.agent).fixed_scale
        return None if fixed else as_json(self.config).get("guidance_scale")

    @property
    def measured(self) -> dict[str, Any]:
        """What decides the result, for JSON: the training and how it is evaluated."""
        return measured_of(as_json(self))

    def overrides(self, dataset: OfflineDataset) -> dict[str, Any]:
        """Fields of the configuration that the preset does not have so for that dataset."""
        row = as_json(choose_config(self.agent, self.preset, dataset, self.longer))
        return {name: v for name, v in as_json(self.config).items() if v != row[name]}

    def check_origin(self, of: str, instead: str) -> None:
        """Raise ValueError where an experiment that a file describes wants a module imported."""
        if self.env_id is not None:
            check_file_id(self.env_id, of, instead)

    def check(self) -> None:
        """Raise ValueError, naming the field, for values that are not allowed."""
        check_types(self)
        split_version(self.dataset_id)
        if self.device != "auto":
            check_device_name(self.device)
        if self.headline_scale is None and (self.guidance_scales or self.tune_guidance):
            name = "guidance_scales" if self.guidance_scales else "tune_guidance"
            raise ValueError(
                f"{name}={getattr(self, name)}: a {self.agent} agent has no guidance_scale"
            )
        if self.adopt is not None:
            check_adopts(agent_class(self.agent), self.adopt)


def choose_config(
    agent: str, preset: str, dataset: OfflineDataset | str, times: float = 1.0
) -> Any:
    """The agent's configuration: the preset, what the dataset's family changes, then `longer`.

    Raises ValueError, naming the field, for an unknown agent, an unknown preset, or a factor that
    is not positive.
    """
    if not 0.0 < times < math.inf:
        raise ValueError(f"longer={times:g}, expected a positive number")
    return longer(agent_class(agent).settings_for(dataset, preset), times)


def measured_of(args: dict[str, Any]) -> dict[str, Any]:
    """Of an experiment's JSON, what decides the result."""
    evaluation = ("guidance_scales", "tune_guidance", "n_episodes", "deterministic", "env_id")
    names = ("agent", "config", "seed", *evaluation)
    windows = {n: args[n] for n in ("history", "chunk") if args.get(n, 1) != 1}
    return {
        "dataset": args.get("dataset_id"),
        **{n: args[n] for n in names if n in args},
        **windows,
    }


def as_json(data: Any) -> dict[str, Any]:
    """A dataclass as JSON gives it back: lists for tuples, text for paths."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(data), default=str))
    return values


def check_types(data: Any) -> None:
    """Raise ValueError where a dataclass has a value of another type or outside a field's Range."""
    kind_of_data: Any = type(data)
    for name, (kind, *said) in rules(kind_of_data).items():
        value, kinds = getattr(data, name), get_args(kind) or (kind,)
        if get_origin(kind) is Literal and value not in kinds:
            raise ValueError(f"{name}={brief(value)}, expected one of {list(kinds)}")
        words = next((WORDS[kind] for kind in kinds if kind in WORDS), None)
        if words is None or (value is None and type(None) in kinds):
            continue
        if SEED in said:
            check_seed(value)
        low, high = next((rule for rule in said if isinstance(rule, Range)), Range(-math.inf))
        for one in value if isinstance(value, tuple) else (value,):
            good = type(one) in kinds or (type(one) is int and float in kinds)
            large = (
                type(one) is int and SEED not in said and abs(one) > MOST
            )  # no float holds the largest
            if good and isinstance(one, int | float):
                good = not large and low <= one <= high and abs(one) < math.inf
            if not good:
                least = f" of at least {low:g}" if low > -math.inf else ""
                high = min(high, MOST) if large else high
                said_too = large or high < OBVIOUS or (type(one) is int and one > high)
                most = f" and at most {high:g}" if said_too else ""
                raise ValueError(f"{name}={brief(one)}, expected {words}{least}{most}")
