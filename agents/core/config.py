"""What the configurations of all agents have in common: kinds of fields, and longer trainings."""

from __future__ import annotations

import math
from dataclasses import is_dataclass, replace
from numbers import Real
from typing import Annotated, TypeVar

from qgpo.envs.data.dataset import REWARD_TUNINGS
from qgpo.fields import OneOf, Range, marked

STEPS = "gradient steps of a stage"
MODEL = "gradient steps of a model of the environment"
PERIOD = "steps between two renewals of what a stage learns from"

Steps = Annotated[int, Range(1, 10**12), STEPS]
OptionalSteps = Annotated[int, Range(0, 10**12), STEPS]
ModelSteps = Annotated[int, Range(0, 10**12), STEPS, MODEL]
Period = Annotated[int, Range(1, 10**12), PERIOD]
Fraction = Annotated[float, Range(0.0, 1.0)]
NOT_NEGATIVE = Range(0.0, 1e9)
NotNegative = Annotated[float, NOT_NEGATIVE]
Decay = Annotated[float, Range(0.0, 0.999999)]
Rate = Annotated[float, Range(1e-9, 1.0)]
Expectile = Annotated[float, Range(1e-6, 1.0 - 1e-6)]
RewardTuning = Annotated[str, OneOf((*REWARD_TUNINGS, "unit"))]

LEAST_MODEL_STEPS = 10_000
"""a model of the environment of fewer gradient steps judges nothing: models of 8,000 disagree
(docs/notes/log.md)"""

ConfigT = TypeVar("ConfigT")


def longer(config: ConfigT, factor: float) -> ConfigT:
    """Return the configuration with `factor` times the gradient steps in every stage.

        QGPO(longer(QGPO.presets["laptop"], 4))

    Stages with 0 steps keep 0 steps. A model of the environment (`dynamics_steps`) that would have
    fewer than 10,000 steps judges nothing and is left out; a larger factor does not bring it back.
    Training targets are renewed as many times as before, because more renewals would change what is
    learned. `within_minutes` finds the factor for a given time. Raises ValueError unless the factor
    is positive, and TypeError for anything else than a configuration.
    """
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(
            f"config={config!r}, expected a configuration such as QGPO.settings_for(dataset), "
            "then the factor"
        )
    if not isinstance(factor, Real) or not 0.0 < factor < math.inf:
        raise ValueError(f"factor={factor!r}, expected a positive number")
    scaled = scale_steps(config, factor)
    left_out = {
        name: 0
        for name in marked(type(config), MODEL)
        if getattr(scaled, name) < LEAST_MODEL_STEPS <= getattr(config, name)
    }
    return replace(scaled, **left_out)  # type: ignore[type-var]


def scale_steps(config: ConfigT, factor: float) -> ConfigT:
    """The configuration with `factor` times all gradient steps."""
    values = vars(config)
    steps = {name: values[name] for name in marked(type(config), STEPS)}
    periods = {name: values[name] for name in marked(type(config), PERIOD)}
    return replace(  # type: ignore[type-var]
        config,
        **{name: max(1, round(n * factor)) for name, n in steps.items() if n},
        **{name: math.ceil(n * factor) for name, n in periods.items()},
    )
