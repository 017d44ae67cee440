"""The wrappers of a recording: which are left out, which are made again, which cannot be.

A file names a wrapper by its class. The name is looked up in the tables below and never imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import wrappers
from gymnasium.envs.registration import WrapperSpec

from qgpo.envs.tasks.arguments import SpecError, check_arguments

WITHOUT_EFFECT = {
    "stable_baselines3.common.monitor:Monitor",
    "minari.data_collector.data_collector:DataCollector",
}
"""wrappers of other packages that change nothing of what an agent sees, does and gets"""
GYMNASIUM = re.compile(r"gymnasium\.wrappers(?:\.\w+)*:(\w+)")
GYMNASIUM_WITHOUT_EFFECT = {
    "AddWhiteNoise",
    "Autoreset",
    "HumanRendering",
    "ObstructView",
    "OrderEnforcing",
    "PassiveEnvChecker",
    "RecordEpisodeStatistics",
    "RecordVideo",
    "RenderCollection",
}
"""the same among Gymnasium's: they watch, draw, or begin the next episode"""
MADE_AGAIN: Mapping[str, type[gym.Wrapper[Any, Any, Any, Any]]] = {
    name: getattr(wrappers, name)
    for name in (
        "ClipAction",
        "ClipReward",
        "DelayObservation",
        "FilterObservation",
        "FlattenObservation",
        "FrameStackObservation",
        "MaxAndSkipObservation",
        "RepeatAction",
        "RescaleAction",
        "RescaleObservation",
        "ReshapeObservation",
        "StickyAction",
        "TimeAwareObservation",
        "TimeLimit",
    )
    if name in wrappers.__all__  # RepeatAction is not in every version
}
"""Gymnasium's wrappers that follow from their arguments alone. NormalizeObservation and
NormalizeReward do not: they had statistics, which are not recorded"""
COUNTS = {"delay", "num_repeats", "repeat_action_duration", "skip", "stack_size"}
"""arguments of theirs that multiply memory or steps"""
PER_STEP = {"RepeatAction": "num_repeats", "MaxAndSkipObservation": "skip"}
"""by wrapper that takes several steps of its environment at a time, the argument that says how
many"""
LARGEST = 1000
"""of each of them, and of the product of all"""
MOST_WRAPPERS = 20
SAME_RETURNS = {
    "qgpo.envs.tasks.observations:FlatObservations",
    "ClipAction",
    "DtypeObservation",
    "FilterObservation",
    "FlattenObservation",
    "FrameStackObservation",
    "NormalizeObservation",
    "RescaleAction",
    "RescaleObservation",
    "ReshapeObservation",
    "TimeAwareObservation",
    "TransformAction",
    "TransformObservation",
}
"""wrappers under which a policy of the same task gets the same return"""


def _name(wrapper: WrapperSpec) -> str:
    """The class of a wrapper of Gymnasium, module and class of another."""
    match = GYMNASIUM.fullmatch(str(wrapper.entry_point))
    return str(wrapper.entry_point) if match is None else match[1]


def effective(recorded: Iterable[WrapperSpec]) -> tuple[WrapperSpec, ...]:
    """The wrappers that change what an agent sees, does or gets."""
    without = WITHOUT_EFFECT | GYMNASIUM_WITHOUT_EFFECT
    return tuple(wrapper for wrapper in recorded if _name(wrapper) not in without)


def changing_returns(recorded: Iterable[WrapperSpec]) -> list[str]:
    """Names of the wrappers under which returns may be others."""
    return [one.name for one in effective(recorded) if _name(one) not in SAME_RETURNS]


def steps_per_step(recorded: Iterable[WrapperSpec]) -> int:
    """How many steps of the environment one step of the wrapped one takes."""
    numbers = ((one.kwargs or {}).get(PER_STEP.get(_name(one), "")) for one in recorded)
    return math.prod(number for number in numbers if isinstance(number, int))


def names(recorded: Iterable[WrapperSpec]) -> list[str]:
    """What the wrappers are called, with their arguments."""
    return [f"{one.name}({_text(one.kwargs or {})})" for one in effective(recorded)]


def _text(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in kwargs.items())


def wrap_again(
    made: gym.Env[Any, Any], recorded: Iterable[WrapperSpec], env_id: str
) -> gym.Env[Any, Any]:
    """The environment in the wrappers under which it was recorded.

    Those that it has already are not added twice. Raises SpecError, which names it, for a wrapper
    that is in no table or that does not take its arguments.
    """
    missing = list(_missing(made, effective(recorded), env_id))
    _check_together(missing, env_id)
    for wrapper in missing:
        name = _name(wrapper)
        if name not in MADE_AGAIN or wrapper.kwargs is None:
            statistics = " (its statistics are not recorded)" if name.startswith("Norm") else ""
            raise SpecError(
                f"environment {env_id!r} was recorded with the wrapper {wrapper.name} "
                f"({wrapper.entry_point}), which cannot be recreated{statistics}; without it, "
                "agents would play in a different environment. Name an environment that has "
                "the wrapper with --env-id, pass a wrapped environment to evaluate(), or train "
                "without evaluation (--n-episodes 0)"
            )
        try:
            made = MADE_AGAIN[name](made, **wrapper.kwargs)
        except Exception as error:  # a wrapper's own checks are of many types
            raise SpecError(
                f"environment {env_id!r} was recorded with "
                f"{wrapper.name}({_text(wrapper.kwargs)}), whose arguments are not accepted "
                f"here ({type(error).__name__}: {error})"
            ) from error
    return made


def _check(of: str, kwargs: Mapping[str, Any]) -> None:
    """Raise SpecError for arguments that name something, or take memory or time without end."""
    for name in COUNTS.intersection(kwargs):
        numbers = np.atleast_1d(kwargs[name])
        if numbers.dtype.kind != "i" or numbers.size == 0 or np.any(numbers > LARGEST):
            raise SpecError(
                f"environment {of!r} has the argument {name}={kwargs[name]!r}, expected an integer "
                f"of at most {LARGEST}"
            )
    check_arguments(of, kwargs)


def _check_together(recorded: Sequence[WrapperSpec], env_id: str) -> None:
    """Raise SpecError for more wrappers than anybody uses, or for counts that multiply far."""
    if len(recorded) > MOST_WRAPPERS:
        raise SpecError(
            f"environment {env_id!r} was recorded with {len(recorded)} wrappers, expected at "
            f"most {MOST_WRAPPERS}"
        )
    times = 1
    for wrapper in recorded:
        kwargs = wrapper.kwargs or {}
        if _name(wrapper) not in MADE_AGAIN:
            continue
        _check(f"{env_id}'s wrapper {wrapper.name}", kwargs)
        for name in COUNTS.intersection(kwargs):
            times *= max(1, int(np.max(kwargs[name])))
    if times > LARGEST:
        raise SpecError(
            f"environment {env_id!r} was recorded with wrappers that together multiply steps or "
            f"memory by {times}, expected at most {LARGEST}: {', '.join(names(recorded))}"
        )


def _missing(
    made: gym.Env[Any, Any], recorded: tuple[WrapperSpec, ...], env_id: str
) -> Iterator[WrapperSpec]:
    """What is left of the recorded wrappers after those that the registered code adds itself.

    Checkpoints of former versions name none. Raises SpecError where the registered ones are others.
    """
    own = effective(made.spec.additional_wrappers) if made.spec is not None else ()
    first = recorded[: len(own)]
    if recorded and [(_name(w), w.kwargs) for w in own] != [(_name(w), w.kwargs) for w in first]:
        raise SpecError(
            f"environment {env_id!r} was recorded with {names(recorded)}, and is registered "
            f"here with {names(own)}: name the recorded one with --env-id, or train without "
            "evaluation (--n-episodes 0)"
        )
    yield from recorded[len(own) :]
