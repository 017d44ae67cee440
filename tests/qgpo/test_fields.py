from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest

from qgpo.fields import OneOf, Range, check_fields, marked

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
