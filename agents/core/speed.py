"""How fast an agent trains here, and how many times its steps fill so many minutes.

Throw-away agents of the same configuration run all stages with few steps on the first rows of the
dataset. Their time has two parts: gradient steps, and what is the same however many steps there
are (`longer`): the support, what a stage prepares, and what it renews. The second part grows with
the rows of the dataset, so it is measured at two sizes and drawn out as a straight line.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from decimal import ROUND_FLOOR, Context
from functools import partial
from typing import Any, TypeVar

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.core.config import (
    LEAST_MODEL_STEPS,
    MODEL,
    PERIOD,
    STEPS,
    longer,
    scale_steps,
)
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.text import in_time
from qgpo.fields import check_finite, marked

FEW_ROWS, SOME_ROWS, MORE_ROWS = 1000, 4000, 8000
"""transitions on which steps are measured, and of the two sizes: from 4000 on, what is left grows
in proportion"""
FIRST_STEPS = 16
"""of all stages together, where few are wanted"""
LEAST_STEPS = 3
"""of each: the first also prepares, and one may renew what the stage learns from"""
SECONDS = 1.5
"""of gradient steps that one throw-away training has at least"""
MOST_TRIES = 6
"""to reach them"""
MOST_MINUTES = 1e6

Clock = Callable[[], float]
ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class Speed:
    """Seconds that a configuration takes, as they were measured."""

    fixed: float
    """whatever the number of steps"""
    stages: dict[str, float]
    """gradient steps of each stage, all of them"""
    steps: dict[str, float]
    """one gradient step of each stage"""
    left_out: dict[str, float] = field(default_factory=dict)
    """factors below which `longer` leaves these stages out"""

    def __str__(self) -> str:
        stages = ", ".join(f"{name} {in_time(seconds)}" for name, seconds in self.stages.items())
        return f"the preset's steps take {stages}; {in_time(self.fixed)} do not depend on steps"

    @property
    def least(self) -> float:
        """Seconds of one step of every stage and all that is fixed."""
        return self.fixed + sum(self.steps.values())

    def without(self, factor: float) -> list[str]:
        """Stages that `longer` leaves out at that factor."""
        return [stage for stage, least in self.left_out.items() if factor < least]

    def factor(self, minutes: float) -> float:
        """How many times the steps take so long, in three digits, for `longer`.

        Raises ValueError for what is no positive number, and for fewer minutes than the least.
        """
        check_minutes(minutes)
        if 60.0 * minutes < self.least:
            least = math.ceil(self.least / 60.0 * 1000.0) / 1000.0
            raise ValueError(
                f"minutes={minutes:g}, expected at least {least:g} here: {self.fixed:.3g} s of "
                "the training do not depend on the number of steps, and every stage needs at "
                "least one step"
            )
        whole, seconds = sum(self.stages.values()), 60.0 * minutes - self.fixed
        factor = float(f"{seconds / max(whole, 1e-9):.3g}")
        for stage, least in self.left_out.items():
            if factor < least:  # what it would have taken is the others'
                whole -= self.stages[stage]
                factor = min(seconds / max(whole, 1e-9), _below(least))
        return float(f"{max(factor, 1e-9):.3g}")


def _below(number: float) -> float:
    """The largest number of three digits that is below it."""
    rounding = Context(prec=3, rounding=ROUND_FLOOR)
    return float(rounding.create_decimal_from_float(math.nextafter(number, 0.0)))


def check_minutes(minutes: float) -> None:
    """Raise ValueError unless a training may take so many."""
    if not 0.0 < check_finite("minutes", minutes) <= MOST_MINUTES:
        raise ValueError(
            f"minutes={minutes:g}, expected a positive number of at most {MOST_MINUTES:g}"
        )


def within_minutes(
    agent: type[OfflineAgent[ConfigT]],
    config: ConfigT | str,
    dataset: OfflineDataset,
    minutes: float,
    device: str = "auto",
) -> ConfigT:
    """Return the configuration with its steps scaled so that `learn` takes about `minutes`.

        config = within_minutes(QGPO, "laptop", dataset, minutes=10)
        agent = QGPO(config).learn(dataset)

    The speed of this machine is measured for some seconds, so the result differs from call to
    call. To repeat a training, reuse its configuration. If `config` is the name of a preset, the
    settings of the dataset's family are applied. Raises ValueError if the time is too short or not
    a positive number, and for agents whose speed cannot be measured.
    """
    check_minutes(minutes)
    if isinstance(config, str):
        config = agent.settings_for(dataset, config)
    speed = measure_speed(agent, config, dataset, device)
    return longer(config, speed.factor(minutes))


def measure_speed(
    agent: type[OfflineAgent[Any]],
    config: Any,
    dataset: OfflineDataset,
    device: str = "auto",
    clock: Clock = time.perf_counter,
) -> Speed:
    """Train throw-away agents for some seconds with today's threads, on the first rows.

    Other agents, their random numbers and the global ones stay as they are. Raises ValueError for
    an agent whose steps do not all take the same time.
    """
    if not agent.even_steps:
        raise ValueError(
            f"agent={agent.name!r}: its first steps take less time than later ones, so minutes "
            "cannot be measured; set its number of steps instead"
        )
    whole = agent(config, device=device).stage_steps
    few, some, more = (dataset.first(n) for n in (FEW_ROWS, SOME_ROWS, MORE_ROWS))
    least = factor = FIRST_STEPS / sum(whole.values())
    rehearse = partial(_rehearse, agent, config, whole, device, clock)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few rows, and once more of those of all
        rehearse(few, least)  # nothing is warm yet
        for _ in range(MOST_TRIES):
            first = rehearse(few, factor)
            if first.gradient_seconds >= SECONDS:
                break
            missing = SECONDS / max(first.gradient_seconds, 1e-6)
            factor *= min(max(1.5 * missing, 2.0), 64.0)
        second = rehearse(some, factor)
        large = rehearse(more, least) if len(more) > len(some) else second
    steps = {
        stage: (seconds + second.step_seconds[stage]) / 2.0
        for stage, seconds in first.step_seconds.items()
    }
    models = [name.removesuffix("_steps") for name in marked(type(config), MODEL)]
    return Speed(
        fixed=_drawn_out(second.fixed, large.fixed, (len(some), len(more), len(dataset))),
        stages={stage: seconds * whole[stage] for stage, seconds in steps.items()},
        steps=steps,
        left_out={
            stage: (LEAST_MODEL_STEPS - 0.5) / whole[stage]  # steps are rounded
            for stage in models
            if whole.get(stage, 0) >= LEAST_MODEL_STEPS
        },
    )


def _drawn_out(some: float, more: float, rows: tuple[int, int, int]) -> float:
    """Seconds at the third number of rows, on the line through those at the first two.

    Noise makes it steeper than it can be: at no rows it is not below 0, and it does not fall.
    """
    slope = (more - some) / max(1, rows[1] - rows[0])
    return more + min(max(0.0, slope), more / rows[1]) * (rows[2] - rows[1])


@dataclass(frozen=True)
class _Rehearsal:
    """What one throw-away training took."""

    step_seconds: dict[str, float]
    """a gradient step of each stage, on average"""
    gradient_seconds: float
    """all of them"""
    fixed: float
    """everything else"""


class _StopWatch(BaseCallback):
    """Seconds of every gradient step, by stage; what lies between stages is in the first one's."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.last = clock, clock()
        self.seconds: dict[str, list[float]] = {}

    def _on_step(self) -> bool:
        now = self.clock()
        self.seconds.setdefault(str(self.model.stage), []).append(now - self.last)  # type: ignore[attr-defined]
        self.last = now
        return True

    def _on_rollout_end(self) -> None:
        self.last = self.clock()


def _rehearse(
    agent: type[OfflineAgent[Any]],
    config: Any,
    whole: dict[str, int],
    device: str,
    clock: Clock,
    dataset: OfflineDataset,
    factor: float,
) -> _Rehearsal:
    """Train with `factor` times the steps; `whole` are those of a whole training, by stage."""
    throw_away = agent(_shorter(config, factor), device=device)
    watch, began = _StopWatch(clock), clock()
    try:
        throw_away.learn(dataset, watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped while the speed was measured") from None
    seconds, fixed, means = clock() - began, 0.0, {}
    for stage, steps in watch.seconds.items():
        weights: dict[int, float] = {}
        for name in marked(type(config), PERIOD):
            period = getattr(throw_away.config, name)
            renewing = range(period, len(steps), period)
            # so few steps may have fewer renewals than the whole training: each counts for more
            renewals = math.ceil(whole[stage] / getattr(config, name)) - 1
            weights |= dict.fromkeys(renewing, renewals / max(1, len(renewing)))
        means[stage] = mean = _usual(steps, weights)
        dear = {step: w for step, w in weights.items() if steps[step] > 2.0 * mean}
        fixed += sum((steps[step] - mean) * (w - 1.0) for step, w in dear.items())
    gradient = sum(means[stage] * len(steps) for stage, steps in watch.seconds.items())
    return _Rehearsal(means, gradient, max(0.0, fixed + seconds - gradient))


def _shorter(config: Any, factor: float) -> Any:
    """A factor of the steps, few of every stage at least, and renewals in between."""
    scaled = scale_steps(config, factor)
    kind, values = type(config), vars(config)
    steps = {n: max(LEAST_STEPS, getattr(scaled, n)) for n in marked(kind, STEPS) if values[n]}
    periods = {n: max(2, int(factor * values[n])) for n in marked(kind, PERIOD)}
    return replace(scaled, **steps, **periods)


def _usual(seconds: list[float], renewing: Collection[int]) -> float:
    """The mean of a stage's steps but for the first, which prepares, and those that renew."""
    usual = [one for step, one in enumerate(seconds) if step and step not in renewing]
    return float(np.mean(usual or seconds))
