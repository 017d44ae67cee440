"""Steps of a recording become nodes of a graph; operators/ says how for each operator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from qgpo.agents.core.export.graph import Graph, Value
from qgpo.agents.core.export.recording import Constant, ExportError, Ref, Shape, Size, Step, Steps

Emit: TypeAlias = Callable[["Translation", Step], list[Value]]
OPERATORS: dict[str, Emit] = {}
"""by name; importing operators/ fills it"""
WITHOUT_TYPE = {"Where"}
"""kinds of nodes whose first input is no number"""


def operator(*names: str) -> Callable[[Emit], Emit]:
    """Register a function for the operators of those names."""

    def register(function: Emit) -> Emit:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


class Translation:
    """Turns the steps of a recording into nodes of a graph."""

    def __init__(self, steps: Steps, graph: Graph) -> None:
        self.graph = graph
        self.shapes, self.dtypes = steps.shapes, steps.dtypes
        self.values: dict[int, Value] = {}
        self.made_by = {number: step for step in steps.steps for number in step.results}

    def run(self, steps: Steps) -> Value:
        """Emit every step; the output. Raises ExportError for an operator that ONNX lacks here."""
        for name, number in steps.inputs.items():
            self.values[number] = Value(name, steps.shapes[number], dtype=steps.dtypes[number])
        for step in steps.steps:
            if step.name not in OPERATORS:
                raise ExportError(f"operator {step.name} has no translation")
            values = OPERATORS[step.name](self, step)
            for number, value in zip(step.results, values, strict=False):
                self.values[number] = replace(value, dtype=self.dtypes[number])
        return self.graph.thick(self.values[steps.output])

    # What operators ask -------------------------------------------------------------------

    def value(self, argument: Any) -> Value:
        """An argument as a value: of an earlier step, a stored tensor, or a number."""
        if isinstance(argument, Ref):
            return self.values[argument.number]
        if isinstance(argument, Constant):
            return self.graph.constant(argument)
        return Value("", (), dtype=None, number=float(argument))

    def shape(self, step: Step, result: int = 0) -> Shape:
        """The shape of a result."""
        return self.shapes[step.results[result]]

    def thick(self, argument: Any, keep: Sequence[int] = ()) -> Value:
        """An argument without thin axes, but for those to keep."""
        return self.graph.thick(self.value(argument), keep)

    def by_element(self, kind: str, shape: Shape, *values: Value, **attributes: Any) -> Value:
        """A node that stretches its inputs, and so keeps the axes thin that are so in all.

        Its inputs get one type, as in torch.
        """
        free = kind in WITHOUT_TYPE
        kept = list(values[:free])
        cast = [value.dtype for value in values[free:] if value.dtype is not None]
        common = functools.reduce(torch.promote_types, cast) if cast else torch.float32
        kept += [self.graph.cast(value, common) for value in values[free:]]
        kept, thin = self.aligned(shape, kept)
        name = self.graph.one(kind, *(value.name for value in kept), **attributes)
        return Value(name, shape, thin, common)

    def aligned(self, shape: Shape, values: Sequence[Value]) -> tuple[list[Value], frozenset[int]]:
        """The values, thick where one of them is and the other is no single row; thin axes."""
        rank, ready, thin = len(shape), list(values), set()
        for axis in range(rank):
            states = [_state(value, axis - rank + value.rank) for value in ready]
            if "thick" not in states and "thin" in states:
                thin.add(axis)
                continue
            many = isinstance(shape[axis], Size) and shape[axis].times > 1  # type: ignore[union-attr]
            if many and "thin" in states:
                ready = [
                    self._thick_at(value, axis - rank + value.rank) if state == "thin" else value
                    for value, state in zip(ready, states, strict=True)
                ]
        return ready, frozenset(thin)

    def _thick_at(self, value: Value, axis: int) -> Value:
        return self.graph.thick(value, keep=[i for i in range(value.rank) if i != axis])


def _state(value: Value, axis: int) -> str:
    if axis < 0 or (value.shape[axis] == 1 and axis not in value.thin):
        return "absent"
    return "thin" if axis in value.thin else "thick"


def axes_of(dims: Any, rank: int) -> list[int]:
    """Axes as they count from the front; None or nothing means all."""
    if isinstance(dims, int):
        dims = [dims]
    return sorted(axis % rank for axis in dims) if dims else list(range(rank))
