"""What values the fields of a configuration may have, said beside each field and checked once.

    gamma: Annotated[float, Range(0.0, 1.0)] = 0.99
    solver: Annotated[str, OneOf(SOLVERS)] = "ddim"

Numbers without a rule must be positive; None is allowed where it is the default. Arguments of
functions have checks of their own here (`check_seed` and so on), which return the plain value.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from typing import Any, NamedTuple, TypeGuard, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

MOST = 10**18
"""no integer is larger: beyond, counting and allocating overflow"""


class Range(NamedTuple):
    """Inclusive bounds of a number, or of every number in a tuple."""

    low: float = 0.0
    high: float = math.inf


class OneOf:
    """The choices."""

    def __init__(self, choices: Iterable[str | int]) -> None:
        self.choices = tuple(choices)


def is_integer(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, NumPy's too; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_seed(seed: object) -> int:
    """The seed of a generator. Raises ValueError for other values."""
    if not is_integer(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!r:.200}, expected an integer of at least 0 and below 2**63")
    return int(seed)


@cache
def rules(kind: Any) -> dict[str, tuple[Any, ...]]:
    """Per field of a dataclass, its type and what is said beside it."""
    hints = get_type_hints(kind, include_extras=True)
    said = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    plain = get_type_hints(kind)
    return {field.name: (plain[field.name], *said[field.name]) for field in fields(kind)}


def marked(kind: Any, mark: object) -> list[str]:
    """Names of the fields beside which `mark` is said."""
    return [name for name, (_, *said) in rules(kind).items() if mark in said]


def check_fields(config: Any) -> None:
    """Raise ValueError, naming field, value and choices, for values that are not allowed."""
    defaults = {field.name: field.default for field in fields(config)}
    of: Any = type(config)
    for name, (kind, *said) in rules(of).items():
        value = getattr(config, name)
        if value is None and defaults[name] is None:
            continue
        for rule in said:
            if isinstance(rule, OneOf) and value not in rule.choices:
                raise ValueError(f"{name}={value!r}, expected one of {sorted(rule.choices)}")  # type: ignore[type-var]
        if kind is bool and type(value) is not bool:
            raise ValueError(f"{name}={value!r}, expected True or False")
        if kind in (str, str | None) and type(value) is not str:
            raise ValueError(f"{name}={value!r}, expected text")
        if kind not in (bool, str, str | None) and get_origin(kind) is not dict:
            _check_numbers(name, value, kind, next((r for r in said if isinstance(r, Range)), None))


def _check_numbers(name: str, value: Any, kind: Any, rule: Range | None) -> None:
    low, high = rule or Range(1e-12)
    whole = kind is int or int in get_args(kind)
    several = get_origin(kind) is tuple
    if several and not isinstance(value, tuple):
        raise ValueError(f"{name}={value!r}, expected a tuple of numbers")
    for number in value if several else (value,):
        if whole and type(number) is not int:
            raise ValueError(f"{name}={value!r}, expected an integer")
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{name}={value!r}, expected a number")
        if isinstance(number, int) and number > MOST:
            raise ValueError(f"{name} has an integer of more than {MOST:g}")
        if not low <= number <= high:
            wanted = "positive" if rule is None else f"in [{low:g}, {high:g}]"
            raise ValueError(f"{name}={value!r}, expected {wanted}")


def check_count(name: str, value: Any, low: int = 1) -> int:
    """The value as a plain integer of at least `low`; ValueError for others."""
    if not is_integer(value):
        raise ValueError(f"{name}={value!r}, expected an integer of at least {low}")
    if value < low:
        raise ValueError(f"{name}={value}, expected at least {low}")
    return int(value)


def count_property(name: str, doc: str) -> Any:
    """A property that is a whole number of at least 1; ValueError where it is set to others."""

    def read(owner: Any) -> int:
        number: int = getattr(owner, f"_{name}")
        return number

    def write(owner: Any, number: int) -> None:
        setattr(owner, f"_{name}", check_count(name, number))

    return property(read, write, doc=doc)


def check_finite(name: str, value: Any, rule: Range | None = None) -> float:
    """The value as a plain number; ValueError for NaN, infinity and what is no number.

    With a rule, for numbers outside its bounds, too.
    """
    real = isinstance(value, int | float | np.integer | np.floating)
    low, high = rule or Range(-math.inf)
    with contextlib.suppress(OverflowError):  # of an integer with more digits than a float has
        if real and math.isfinite(value) and low <= value <= high:
            return float(value)
    within = "" if rule is None else f" in [{low:g}, {high:g}]"
    raise ValueError(f"{name}={value!r}, expected a finite number{within}")


def check_labels(values: Any, n: int) -> NDArray[np.int64]:
    """Labels of n samples, (n,) whole numbers from 0. Raises ValueError for others."""
    labels = np.asarray(values)
    if labels.shape != (n,):
        raise ValueError(f"labels have shape {labels.shape}, expected ({n},)")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels have type {labels.dtype}, expected integers")
    if n and not 0 <= labels.min() <= labels.max() <= MOST:
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}, expected 0 and above")
    return labels.astype(np.int64)


def check_flag(name: str, value: Any) -> bool:
    """The value as a plain boolean; ValueError for others, such as texts, which all are true."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}={value!r}, expected True or False")
    return bool(value)
