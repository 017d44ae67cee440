"""What a function of tensors computes, as a list of steps that holds for every batch size.

The function is run on numbers while every operator that depends on its inputs is written down,
those of autograd's backward pass, too: a gradient becomes steps like any others. What does not
depend on the inputs is a constant. Two runs with batches of different sizes tell which numbers are
sizes of the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from qgpo.prepared import plainly

BATCHES = (2, 3)
"""sizes of the two runs"""
aten = torch.ops.aten
ALIASES = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}
WITHOUT_VALUES = {
    *(aten.full_like.default, aten.zeros_like.default, aten.ones_like.default),
    *(aten.empty_like.default, aten.new_zeros.default, aten.new_ones.default),
    *(aten.new_full.default, aten.new_empty.default),
}
"""operators that read the shape of a tensor alone: what they make is a constant"""
AS_THEY_ARE = {
    *(aten.native_layer_norm.default, aten.silu.default, aten.addmm.default),
    *(aten.baddbmm.default, aten.stack.default, aten._softmax.default),
    *(aten.special_log_ndtr.default, aten.var.correction),
    *(aten.gelu.default, aten.mish.default),
}
"""operators for which ONNX has one of its own, or whose parts would be many"""
OF_LINALG = {aten.linalg_vector_norm.default}
"""what can be translated of it"""
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}


PLACE = "a number depends on a member's place in the batch"


class ExportError(ValueError):
    """A policy that no file can express, or a file that does not act like its agent."""


@dataclass(frozen=True)
class Size:
    """So many times the size of the batch."""

    times: int


Shape: TypeAlias = tuple[int | Size, ...]


class Ref(NamedTuple):
    """An input, or a result of an earlier step."""

    number: int


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that depends on no input.

    Where its shape has a Size, `value` is what one member of the batch has, for all the same.
    """

    value: Tensor
    shape: Shape


@dataclass(frozen=True)
class Step:
    """One operator: its name and overload, what goes in, and the numbers of what comes out."""

    name: str
    args: list[Any]
    kwargs: dict[str, Any]
    results: list[int]


@dataclass(frozen=True)
class Steps:
    """The whole computation; `shapes` and `dtypes` are by number."""

    inputs: dict[str, int]
    output: int
    steps: list[Step]
    shapes: dict[int, Shape]
    dtypes: dict[int, torch.dtype]

    @property
    def read(self) -> set[int]:
        """Numbers that some step takes."""
        return {ref.number for step in self.steps for ref in references((step.args, step.kwargs))}


def record(make_inputs: Callable[[int], Mapping[str, Tensor]], function: Any) -> Steps:
    """What `function(**inputs)` computes; `make_inputs` gives inputs for a batch of that size.

    Raises ExportError where it depends on a value, or on a member's place in the batch.
    """
    runs = []
    for size in BATCHES:
        inputs = make_inputs(size)
        run = _Recording(inputs)
        with plainly(), run:
            output = function(**inputs)
        runs.append((run, output))
    (first, _), (second, _) = runs
    if [step.name for step in first.steps] != [step.name for step in second.steps]:
        raise ExportError("other operators are computed for batches of other sizes")
    numbers = {run.numbers.get(id(output)) for run, output in runs}
    (number,) = numbers if len(numbers) == 1 else (None,)
    if number is None:
        raise ExportError("the actions do not depend on the observations")
    steps = [
        Step(
            one.name,
            [_general(a, b) for a, b in zip(one.args, two.args, strict=True)],
            {name: _general(value, two.kwargs[name]) for name, value in one.kwargs.items()},
            one.results,
        )
        for one, two in zip(first.steps, second.steps, strict=True)
    ]
    pairs = zip(first.tensors, second.tensors, strict=True)
    shapes = {i: _general_shape(a.shape, b.shape) for i, (a, b) in enumerate(pairs)}
    dtypes = {i: tensor.dtype for i, tensor in enumerate(first.tensors)}
    return Steps(first.inputs, number, needed(steps, number), shapes, dtypes)


def needed(steps: list[Step], output: int) -> list[Step]:
    """The steps without which the output would not be known."""
    kept, wanted = [], {output}
    for step in reversed(steps):
        if wanted & set(step.results):
            kept.append(step)
            wanted |= {ref.number for ref in references((step.args, step.kwargs))}
    return kept[::-1]


def references(arguments: Any) -> list[Ref]:
    """Those among the arguments of a step."""
    return [x for x in tree_flatten(arguments, is_leaf=_is_ref)[0] if isinstance(x, Ref)]


def _is_ref(x: Any) -> bool:
    return isinstance(x, Ref)


class _Recording(TorchDispatchMode):
    """Runs operators and writes down those that depend on the inputs."""

    def __init__(self, inputs: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.table = _decompositions()
        self.steps: list[Step] = []
        self.tensors: list[Tensor] = []
        self.aliases: list[Tensor] = []  # kept: a tensor that is gone gives its id to another one
        self.numbers: dict[int, int] = {}
        self.inputs = {name: self._track(tensor) for name, tensor in inputs.items()}

    def _track(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        self.numbers[id(tensor)] = len(self.tensors) - 1
        return len(self.tensors) - 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if func in WITHOUT_VALUES or not any(id(tensor) in self.numbers for tensor in found):
            return func(*args, **kwargs)
        if func in READS:
            raise ExportError("a decision depends on a value that is known only while acting")
        if "linalg_" in str(func) and func not in OF_LINALG:
            raise ExportError(f"operator {func} has no translation")
        if func._schema.is_mutable:
            return self._in_place(func, args, kwargs)
        if func in self.table and func not in AS_THEY_ARE:
            with self:
                out = self.table[func](*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if func in ALIASES:
            return self._alias(out, of=args[0])
        outputs = [out] if isinstance(out, Tensor) else list(out or ())
        self.steps.append(
            Step(
                str(func).removeprefix("aten."),
                [self._argument(x) for x in args],
                {name: self._argument(x) for name, x in kwargs.items()},
                [self._track(x) for x in outputs if isinstance(x, Tensor)],
            )
        )
        return out

    def _alias(self, tensor: Tensor, of: Tensor) -> Tensor:
        self.aliases.append(tensor)
        self.numbers[id(tensor)] = self.numbers[id(of)]
        return tensor

    def _in_place(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """The operator without the underscore, whose result takes the place of its argument."""
        name, overload = str(func).removeprefix("aten.").split(".")
        target = args[0]
        others = [t for t in (*self.tensors, *self.aliases) if t is not target]
        if not name.endswith("_") or any(_overlap(target, other) for other in others):
            raise ExportError(f"operator {func} changes a tensor in place that others share")
        with self:
            out = getattr(getattr(aten, name.removesuffix("_")), overload)(*args, **kwargs)
        with torch.no_grad():  # other memory: what it held may be one of the constants
            target.set_(out.clone())
        return self._alias(target, of=out)

    def _argument(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            number = self.numbers.get(id(x))
            return x.detach() if number is None else Ref(number)
        if isinstance(x, list | tuple):
            return [self._argument(part) for part in x]
        return x


@functools.cache
def _decompositions() -> Any:
    """Operators as sums of simpler ones; reading them takes a moment that only exports need."""
    from torch._decomp import core_aten_decompositions

    return core_aten_decompositions()


def _overlap(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


# Two runs as one ------------------------------------------------------------------------------


def _general(one: Any, two: Any) -> Any:
    """An argument of the runs at both sizes of the batch, as it is at every one."""
    if isinstance(one, Tensor):
        return _constant(one, two)
    if isinstance(one, list):
        return [_general(a, b) for a, b in zip(one, two, strict=True)]
    if one == two:
        return one
    if type(one) is type(two) is int:
        return _size(one, two)
    raise ExportError(f"an argument is {one} for one size of the batch, {two} for another")


def _general_shape(one: torch.Size, two: torch.Size) -> Shape:
    return tuple(a if a == b else _size(a, b) for a, b in zip(one, two, strict=True))


def _size(one: int, two: int) -> Size:
    times = one // BATCHES[0]
    if (times * BATCHES[0], times * BATCHES[1]) != (one, two):
        raise ExportError(f"a size is {one} and {two} for batches of {BATCHES}")
    return Size(times)


def _constant(one: Tensor, two: Tensor) -> Constant:
    """A constant of both runs; along an axis of the batch, what one of its members has."""
    shape = _general_shape(one.shape, two.shape)
    for axis, size in enumerate(shape):
        if isinstance(size, Size):
            one, two = _one_member(one, axis, size), _one_member(two, axis, size)
    if not torch.equal(one, two):
        raise ExportError(PLACE)
    return Constant(one.cpu(), shape)


def _one_member(tensor: Tensor, axis: int, size: Size) -> Tensor:
    """What one member of the batch has along that axis, where all have the same numbers."""
    parts = tensor.split(size.times, dim=axis)
    if not all(torch.equal(part, parts[0]) for part in parts):
        raise ExportError(PLACE)
    return tensor.narrow(axis, 0, size.times)
