"""Sums, means, extremes, orders and norms over axes."""

from __future__ import annotations

import math

import torch

from qgpo.agents.core.export.graph import Value
from qgpo.agents.core.export.recording import Constant, ExportError, Shape, Size, Step
from qgpo.agents.core.export.translation import Translation, axes_of, operator

REDUCTIONS = {
    "sum.dim_IntList": "ReduceSum",
    "mean.dim": "ReduceMean",
    "amax.default": "ReduceMax",
    "amin.default": "ReduceMin",
}


@operator(*REDUCTIONS)
def emit_reduction(t: Translation, step: Step) -> list[Value]:
    """Over some axes."""
    x = t.value(step.args[0])
    axes = axes_of(step.args[1] if len(step.args) > 1 else None, x.rank)
    keep = bool(step.args[2]) if len(step.args) > 2 else bool(step.kwargs.get("keepdim", False))
    return [_reduced(t, step, REDUCTIONS[step.name], x, axes, keep)]


def _over(t: Translation, kind: str, x: Value, axes: list[int], shape: Shape) -> Value:
    """A reduction that keeps its axes."""
    x = t.graph.thick(x, keep=[axis for axis in range(x.rank) if axis not in axes])
    return Value(t.graph.one(kind, x.name, t.graph.integers(*axes), keepdims=1), shape, x.thin)


def _reduced(t: Translation, step: Step, kind: str, x: Value, axes: list[int], keep: bool) -> Value:
    x = t.graph.thick(x, keep=[axis for axis in range(x.rank) if axis not in axes])
    if x.dtype == torch.bool:
        x = t.graph.cast(x, torch.int64)
    name = t.graph.one(kind, x.name, t.graph.integers(*axes), keepdims=int(keep))
    left = [axis for axis in range(x.rank) if keep or axis not in axes]
    return Value(name, t.shape(step), frozenset(left.index(axis) for axis in x.thin))


@operator("var.correction")
def emit_variance(t: Translation, step: Step) -> list[Value]:
    """The mean squared distance from the mean, times n / (n - correction)."""
    x = t.value(step.args[0])
    axes = axes_of(step.args[1] if len(step.args) > 1 else None, x.rank)
    keep = bool(step.kwargs.get("keepdim", False))
    correction = step.kwargs.get("correction", 1)
    sizes = [x.shape[axis] for axis in axes]
    n = math.prod(size for size in sizes if isinstance(size, int))
    if any(isinstance(size, Size) for size in sizes):
        raise ExportError("a variance is taken over the batch")
    one = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    mean = _over(t, "ReduceMean", x, axes, one)
    apart = t.by_element("Sub", x.shape, x, mean)
    squared = t.by_element("Mul", x.shape, apart, apart)
    variance = _reduced(t, step, "ReduceMean", squared, axes, keep)
    factor = n / max(n - (1 if correction is None else correction), 0)
    return [t.by_element("Mul", t.shape(step), variance, t.value(factor))]


@operator("linalg_vector_norm.default")
def emit_norm(t: Translation, step: Step) -> list[Value]:
    """The Euclidean one."""
    x = t.value(step.args[0])
    order, dims, keep = (*step.args[1:], *(2, None, False)[len(step.args) - 1 :])[:3]
    if order != 2:
        raise ExportError(f"operator {step.name} with ord={order}")
    return [_reduced(t, step, "ReduceL2", x, axes_of(dims, x.rank), bool(keep))]


@operator("min.dim", "max.dim")
def emit_extreme(t: Translation, step: Step) -> list[Value]:
    """The smallest or largest along an axis, and its place."""
    x = t.thick(step.args[0])
    (axis,) = axes_of(step.args[1], x.rank)
    keep = bool(step.args[2]) if len(step.args) > 2 else bool(step.kwargs.get("keepdim", False))
    kind = step.name[:3].capitalize()
    value = _reduced(t, step, f"Reduce{kind}", x, [axis], keep)
    place = t.graph.one(f"Arg{kind}", x.name, axis=axis, keepdims=int(keep))
    return [value, Value(place, t.shape(step, 1))]


@operator("argmax.default", "argmin.default")
def emit_place(t: Translation, step: Step) -> list[Value]:
    """Where the largest or smallest is; of several the first."""
    x = t.thick(step.args[0])
    dim = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim")
    (axis,) = axes_of(dim, x.rank)
    keep = bool(step.args[2]) if len(step.args) > 2 else bool(step.kwargs.get("keepdim", False))
    kind = "ArgMax" if step.name.startswith("argmax") else "ArgMin"
    return [Value(t.graph.one(kind, x.name, axis=axis, keepdims=int(keep)), t.shape(step))]


@operator("sort.default")
def emit_sort(t: Translation, step: Step) -> list[Value]:
    """All numbers along an axis in their order."""
    x = t.thick(step.args[0])
    (axis,) = axes_of(step.args[1] if len(step.args) > 1 else -1, x.rank)
    falling = bool(step.args[2]) if len(step.args) > 2 else bool(step.kwargs.get("descending"))
    size = x.shape[axis]
    if isinstance(size, Size):
        raise ExportError("numbers are sorted over the batch")
    names = t.graph.node(
        "TopK", x.name, t.graph.integers(size), outputs=2, axis=axis, largest=int(falling)
    )
    return [Value(name, t.shape(step)) for name in names]


@operator("_softmax.default")
def emit_softmax(t: Translation, step: Step) -> list[Value]:
    """Along an axis."""
    x = t.thick(step.args[0])
    (axis,) = axes_of(step.args[1], x.rank)
    return [Value(t.graph.one("Softmax", x.name, axis=axis), t.shape(step))]


@operator("native_layer_norm.default")
def emit_layer_norm(t: Translation, step: Step) -> list[Value]:
    """Over the last axes, with what the backward pass reads: mean and 1 / standard deviation."""
    source, shape, weight, bias, epsilon = step.args
    x = t.graph.thick(t.value(source), keep=range(len(t.shape(step)) - len(shape)))
    ones, zeros = torch.ones(shape), torch.zeros(shape)
    scale = t.value(weight if weight is not None else Constant(ones, tuple(shape)))
    shift = t.value(bias if bias is not None else Constant(zeros, tuple(shape)))
    names = t.graph.node(
        "LayerNormalization",
        *(x.name, scale.name, shift.name),
        outputs=3,
        axis=-len(shape),
        epsilon=epsilon,
    )
    return [Value(name, t.shape(step, i), x.thin) for i, name in enumerate(names)]
