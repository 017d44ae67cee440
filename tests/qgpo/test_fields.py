from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pytest

from qgpo.fields import (
    OneOf,
    Range,
    check_count,
    check_fields,
    check_finite,
    check_flag,
    check_seed,
    marked,
)

MARK = "counted"


@dataclass(frozen=True)
class Example:
    rate: float = 0.1
    share: Annotated[float, Range(0.0, 1.0)] = 0.5
    steps: Annotated[int, Range(0), MARK] = 3
    layers: tuple[int, ...] = (4, 4)
    solver: Annotated[str, OneOf(("ddim", "heun"))] = "heun"
    bound: float | None = None
    damped: bool = False


def test_defaults_and_the_ends_of_ranges_are_allowed():
    check_fields(Example())
    check_fields(Example(share=1.0, steps=0, bound=2.0, solver="ddim"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0.0}, "rate=0.0, expected positive"),
        ({"rate": float("nan")}, "rate=nan, expected positive"),
        ({"rate": "1"}, "rate='1', expected a number"),
        ({"share": 1.5}, r"share=1.5, expected in \[0, 1\]"),
        ({"steps": 2.0}, "steps=2.0, expected an integer"),
        ({"steps": True}, "steps=True, expected an integer"),
        ({"rate": True}, "rate=True, expected a number"),
        ({"damped": 1}, "damped=1, expected True or False"),
        ({"steps": -1}, r"steps=-1, expected in \[0, inf\]"),
        ({"layers": (4, 0)}, r"layers=\(4, 0\), expected positive"),
        ({"layers": (4, 2.0)}, r"layers=\(4, 2.0\), expected an integer"),
        ({"solver": "odd"}, r"solver='odd', expected one of \['ddim', 'heun'\]"),
        ({"bound": -1.0}, "bound=-1.0, expected positive"),
        ({"rate": None}, "rate=None, expected a number"),
    ],
)
def test_other_values_are_refused_by_name(changes, message):
    example = Example(**changes)
    with pytest.raises(ValueError, match=message):
        check_fields(example)


def test_fields_are_found_by_their_mark():
    assert marked(Example, MARK) == ["steps"]


@pytest.mark.parametrize("seed", [3, np.int64(3), np.uint8(3)])
def test_seeds_are_integers_of_any_kind(seed):
    assert type(check_seed(seed)) is int
    assert check_seed(2**63 - 1) == 2**63 - 1


@pytest.mark.parametrize("seed", [None, "a", True, 1.0, -1, 2**63, 2**64, np.float32(2), [1]])
def test_other_seeds_are_refused(seed):
    text = re.escape(f"seed={seed!r}, expected an integer of at least 0 and below 2**63")
    with pytest.raises(ValueError, match=text):
        check_seed(seed)


@pytest.mark.parametrize("value", ["no", 1, 0, None, [], np.int64(1)])
def test_flags_are_booleans(value):
    assert check_flag("deterministic", np.bool_(False)) is False
    with pytest.raises(ValueError, match=r"deterministic=.*, expected True or False"):
        check_flag("deterministic", value)


@pytest.mark.parametrize("value", ["x", None, math.nan, -math.inf, 10**400, 1j, np.complex64(1)])
def test_finite_numbers(value):
    assert check_finite("scale", np.float32(2)) == 2.0
    with pytest.raises(ValueError, match=r"scale=.*, expected a finite number"):
        check_finite("scale", value)


@pytest.mark.parametrize("value", [2.5, "3", True, None, 0, np.int64(-1)])
def test_counts(value):
    assert check_count("n", np.int64(2)) == 2
    with pytest.raises(ValueError, match=r"n=.*, expected .*at least 1"):
        check_count("n", value)
