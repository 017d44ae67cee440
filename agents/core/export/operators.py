"""Torch's operators in ONNX: one function for each kind, found by the operator's name.

They are those that recordings of the package's policies have. An operator that is not here is an
error that names it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch

from qgpo.agents.core.export.graph import Graph, Value
from qgpo.agents.core.export.recording import Constant, ExportError, Ref, Shape, Size, Step, Steps

Emit: TypeAlias = Callable[["Translation", Step], list[Value]]
OPERATORS: dict[str, Emit] = {}
BY_ELEMENT = {
    "div.Tensor": "Div",
    "div.Scalar": "Div",
    "mul.Tensor": "Mul",
    "mul.Scalar": "Mul",
    "pow.Tensor_Scalar": "Pow",
    "pow.Tensor_Tensor": "Pow",
    "maximum.default": "Max",
    "minimum.default": "Min",
    "logical_and.default": "And",
    "bitwise_and.Tensor": "And",
    "eq.Tensor": "Equal",
    "eq.Scalar": "Equal",
    "le.Tensor": "LessOrEqual",
    "le.Scalar": "LessOrEqual",
    "lt.Tensor": "Less",
    "lt.Scalar": "Less",
    "ge.Tensor": "GreaterOrEqual",
    "ge.Scalar": "GreaterOrEqual",
    "gt.Tensor": "Greater",
    "gt.Scalar": "Greater",
    "exp.default": "Exp",
    "log.default": "Log",
    "sqrt.default": "Sqrt",
    "sin.default": "Sin",
    "cos.default": "Cos",
    "sigmoid.default": "Sigmoid",
    "tanh.default": "Tanh",
    "relu.default": "Relu",
    "neg.default": "Neg",
    "abs.default": "Abs",
    "sign.default": "Sign",
    "floor.default": "Floor",
    "ceil.default": "Ceil",
    "erf.default": "Erf",
    "reciprocal.default": "Reciprocal",
    "logical_not.default": "Not",
    "isnan.default": "IsNaN",
}
ERFC = (
    *(-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806),
    *(0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277),
)
"""coefficients of p(u), the constant one first"""
WITHOUT_TYPE = {"Where"}
"""kinds of nodes whose first input is no number"""
REDUCTIONS = {
    "sum.dim_IntList": "ReduceSum",
    "mean.dim": "ReduceMean",
    "amax.default": "ReduceMax",
    "amin.default": "ReduceMin",
}


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


# Element by element -----------------------------------------------------------------------


@operator(*BY_ELEMENT)
def emit_by_element(t: Translation, step: Step) -> list[Value]:
    """One node of the same meaning."""
    values = [t.value(argument) for argument in step.args]
    return [t.by_element(BY_ELEMENT[step.name], t.shape(step), *values)]


@operator("add.Tensor", "sub.Tensor", "add.Scalar", "sub.Scalar")
def emit_sum(t: Translation, step: Step) -> list[Value]:
    """A + alpha b, a - alpha b."""
    first, second = (t.value(argument) for argument in step.args[:2])
    alpha = step.kwargs.get("alpha", step.args[2] if len(step.args) > 2 else 1)
    if alpha != 1:
        second = t.by_element("Mul", second.shape, second, t.value(alpha))
    kind = "Add" if step.name.startswith("add") else "Sub"
    return [t.by_element(kind, t.shape(step), first, second)]


@operator("rsub.Scalar")
def emit_reversed(t: Translation, step: Step) -> list[Value]:
    """B - a."""
    first, second = (t.value(argument) for argument in step.args[:2])
    return [t.by_element("Sub", t.shape(step), second, first)]


@operator("silu.default")
def emit_silu(t: Translation, step: Step) -> list[Value]:
    """X sigmoid(x)."""
    x, shape = t.value(step.args[0]), t.shape(step)
    return [t.by_element("Mul", shape, x, t.by_element("Sigmoid", shape, x))]


@operator("gelu.default")
def emit_gelu(t: Translation, step: Step) -> list[Value]:
    """By tanh or exactly."""
    x, how = t.value(step.args[0]), step.kwargs.get("approximate", "none")
    return [t.by_element("Gelu", t.shape(step), x, approximate=how)]


@operator("mish.default")
def emit_mish(t: Translation, step: Step) -> list[Value]:
    """X tanh(log(1 + e^x)) = x n / (n + 2) with n = e^x (e^x + 2), which is x where e^x is large.

    Softplus and Tanh would take longer than the products of the network.
    """
    x, shape = t.value(step.args[0]), t.shape(step)
    e = t.by_element("Exp", shape, t.by_element("Min", shape, x, t.value(20.0)))
    n = t.by_element("Mul", shape, e, t.by_element("Add", shape, e, t.value(2.0)))
    share = t.by_element("Div", shape, n, t.by_element("Add", shape, n, t.value(2.0)))
    return [t.by_element("Mul", shape, x, share)]


@operator("log1p.default")
def emit_log1p(t: Translation, step: Step) -> list[Value]:
    """Log(1 + x) in full precision: x log(u) / (u - 1) with u = 1 + x, or x where u is 1."""
    x, shape = t.value(step.args[0]), t.shape(step)
    one = t.value(1.0)
    u = t.by_element("Add", shape, x, one)
    rounded = t.by_element("Sub", shape, u, one)
    tiny = t.by_element("Equal", shape, rounded, t.value(0.0))
    divisor = t.by_element("Where", shape, tiny, one, rounded)
    share = t.by_element("Div", shape, x, divisor)
    exact = t.by_element("Mul", shape, t.by_element("Log", shape, u), share)
    return [t.by_element("Where", shape, tiny, x, exact)]


@operator("special_log_ndtr.default")
def emit_log_ndtr(t: Translation, step: Step) -> list[Value]:
    """Log Phi(x), with erfc as in Numerical Recipes (Press et al. 1992, section 6.2).

    Erfc(z) is u exp(-z^2 + p(u)) with u = 1 / (1 + z / 2) for z >= 0, up to 1.2e-7 of it. Below 0
    its logarithm follows without a loss, above it is -d - d^2 / 2 - d^3 / 3 ... of d = erfc / 2,
    taken as log(1 - d) where d is large.
    """
    x, shape = t.value(step.args[0]), t.shape(step)

    def of(kind: str, *values: Value | float) -> Value:
        return t.by_element(
            kind, shape, *(v if isinstance(v, Value) else t.value(v) for v in values)
        )

    z = of("Mul", of("Abs", x), math.sqrt(0.5))
    u = of("Reciprocal", of("Add", of("Mul", z, 0.5), 1.0))
    p = t.value(ERFC[-1])
    for coefficient in ERFC[-2::-1]:
        p = of("Add", of("Mul", p, u), coefficient)
    log_erfc = of("Add", of("Log", u), of("Sub", p, of("Mul", z, z)))
    below = of("Add", log_erfc, math.log(0.5))
    d = of("Mul", of("Exp", log_erfc), 0.5)
    series = t.value(1.0 / 4.0)
    for coefficient in (1.0 / 3.0, 1.0 / 2.0, 1.0):
        series = of("Add", of("Mul", series, d), coefficient)
    small = of("Neg", of("Mul", series, d))
    large = of("Log", of("Sub", t.value(1.0), d))
    above = of("Where", of("Less", d, 0.01), small, large)
    return [of("Where", of("Less", x, 0.0), below, above)]


@operator("clamp.default", "clamp.Tensor", "clamp_min.default", "clamp_max.default")
def emit_clamp(t: Translation, step: Step) -> list[Value]:
    """Within bounds, either of which may be missing."""
    x, shape = t.value(step.args[0]), t.shape(step)
    if step.name == "clamp_max.default":
        low, high = None, step.args[1]
    else:
        low = step.args[1] if len(step.args) > 1 else step.kwargs.get("min")
        high = step.args[2] if len(step.args) > 2 else step.kwargs.get("max")
    if low is not None:
        x = t.by_element("Max", shape, x, t.value(low))
    if high is not None:
        x = t.by_element("Min", shape, x, t.value(high))
    return [x]


@operator("where.self")
def emit_where(t: Translation, step: Step) -> list[Value]:
    """One or the other."""
    return [t.by_element("Where", t.shape(step), *(t.value(x) for x in step.args))]


@operator("to.dtype", "_to_copy.default")
def emit_cast(t: Translation, step: Step) -> list[Value]:
    """Another type."""
    dtype = step.kwargs.get("dtype", step.args[1] if len(step.args) > 1 else None)
    x = t.value(step.args[0])
    if dtype is None:
        return [x]
    return [t.graph.cast(x, dtype)]


@operator("clone.default", "conj_physical.default", "contiguous.default")
def emit_nothing(t: Translation, step: Step) -> list[Value]:
    """The same numbers."""
    return [t.value(step.args[0])]


# Products ---------------------------------------------------------------------------------


@operator("addmm.default")
def emit_addmm(t: Translation, step: Step) -> list[Value]:
    """Bias + x W; of an x that is joined from parts, the parts' products.

    What no step changes is then multiplied once for all steps, and constants are added up here.
    """
    bias, x, weight = step.args
    beta, alpha = step.kwargs.get("beta", 1), step.kwargs.get("alpha", 1)
    if (beta, alpha) != (1, 1) or not isinstance(weight, Constant):
        raise ExportError(f"operator {step.name} with beta={beta}, alpha={alpha}")
    parts = _parts(t, x)
    added = bias.value.double() if isinstance(bias, Constant) else None
    if len(parts) == 1 or added is None:
        return [_gemm(t, step, t.value(x), weight.value, t.value(bias).name)]
    row, products = 0, []
    for part in parts:
        size = _columns(t, part)
        rows = weight.value[row : row + size]
        row += size
        if isinstance(part, Constant) and part.value.shape[0] == 1:
            added = added + (part.value.double() @ rows.double())[0]
        else:
            products.append((t.value(part), rows))
    products.sort(key=lambda pair: not pair[0].thin)
    bias_name = t.graph.array(added.float().numpy())
    total = _gemm(t, step, *products[0], bias_name)
    for value, rows in products[1:]:
        total = t.by_element("Add", t.shape(step), _gemm(t, step, value, rows, ""), total)
    return [total]


def _parts(t: Translation, x: Any) -> list[Any]:
    """What x is joined from along its columns, or x alone."""
    step = t.made_by.get(x.number) if isinstance(x, Ref) else None
    if step is None or step.name != "cat.default" or axes_of(step.args[1:] or 0, 2) != [1]:
        return [x]
    parts: list[Any] = step.args[0]
    return parts


def _columns(t: Translation, part: Any) -> int:
    shape = part.shape if isinstance(part, Constant) else t.shapes[part.number]
    size = shape[1]
    assert isinstance(size, int)
    return size


def _gemm(t: Translation, step: Step, x: Value, weight: torch.Tensor, bias: str) -> Value:
    """Rows x W + bias; equal rows stay thin."""
    x = t.graph.thick(x, keep=[0])
    transposed = not weight.is_contiguous() and weight.t().is_contiguous()
    stored = t.graph.array((weight.t() if transposed else weight).numpy())
    inputs = [x.name, stored, *([bias] if bias else [])]
    return Value(t.graph.one("Gemm", *inputs, transB=int(transposed)), t.shape(step), x.thin)


@operator("mm.default")
def emit_mm(t: Translation, step: Step) -> list[Value]:
    """X W."""
    x, weight = step.args
    if isinstance(weight, Constant) and not any(isinstance(s, Size) for s in weight.shape):
        return [_gemm(t, step, t.value(x), weight.value, "")]
    values = t.thick(x), t.thick(weight)
    return [Value(t.graph.one("MatMul", *(value.name for value in values)), t.shape(step))]


@operator("bmm.default", "baddbmm.default")
def emit_bmm(t: Translation, step: Step) -> list[Value]:
    """Products of many matrices, to which something may be added."""
    *added, x, y = step.args
    if step.kwargs.get("beta", 1) != 1 or step.kwargs.get("alpha", 1) != 1:
        raise ExportError(f"operator {step.name} with {step.kwargs}")
    names = [_heads(t, argument).name for argument in (x, y)]
    product = Value(t.graph.one("MatMul", *names), t.shape(step))
    if not added:
        return [product]
    return [t.by_element("Add", t.shape(step), product, t.value(added[0]))]


def _heads(t: Translation, argument: Any) -> Value:
    """A factor that may be thin over the first axis: ONNX stretches it."""
    return t.thick(argument, keep=[0] if isinstance(t.value(argument).shape[0], int) else [])


# Reductions -------------------------------------------------------------------------------


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


# Shapes -----------------------------------------------------------------------------------


@operator("cat.default")
def emit_cat(t: Translation, step: Step) -> list[Value]:
    """Joined along an axis; what is thin in all parts stays so."""
    values = [t.value(part) for part in step.args[0] if _is_something(t, part)]
    rank = len(t.shape(step))
    (axis,) = axes_of(step.args[1] if len(step.args) > 1 else 0, rank)
    thin = frozenset.intersection(*(value.thin for value in values)) - {axis}
    names = [t.graph.thick(value, keep=sorted(thin)).name for value in values]
    name = names[0] if len(names) == 1 else t.graph.one("Concat", *names, axis=axis)
    return [Value(name, t.shape(step), thin)]


def _is_something(t: Translation, part: Any) -> bool:
    shape = part.shape if isinstance(part, Constant) else t.shapes[part.number]
    return 0 not in shape


@operator("stack.default")
def emit_stack(t: Translation, step: Step) -> list[Value]:
    """Joined along a new axis."""
    (axis,) = axes_of(step.args[1] if len(step.args) > 1 else 0, len(t.shape(step)))
    new = t.graph.integers(axis)
    names = [t.graph.one("Unsqueeze", t.thick(part).name, new) for part in step.args[0]]
    return [Value(t.graph.one("Concat", *names, axis=axis), t.shape(step))]


@operator("unsqueeze.default")
def emit_unsqueeze(t: Translation, step: Step) -> list[Value]:
    """A new axis of one."""
    x = t.value(step.args[0])
    axis = step.args[1] % (x.rank + 1)
    name = t.graph.one("Unsqueeze", x.name, t.graph.integers(axis))
    return [Value(name, t.shape(step), frozenset(i + (i >= axis) for i in x.thin))]


@operator("squeeze.dims", "squeeze.dim")
def emit_squeeze(t: Translation, step: Step) -> list[Value]:
    """Without axes of one."""
    x = t.value(step.args[0])
    gone = [axis for axis in axes_of(step.args[1], x.rank) if x.shape[axis] == 1]
    if not gone:
        return [x]
    name = t.graph.one("Squeeze", x.name, t.graph.integers(*gone))
    left = [axis for axis in range(x.rank) if axis not in gone]
    return [Value(name, t.shape(step), frozenset(left.index(axis) for axis in x.thin))]


@operator("expand.default")
def emit_expand(t: Translation, step: Step) -> list[Value]:
    """Repeated along axes of one: left thin."""
    x, shape = t.value(step.args[0]), t.shape(step)
    name, added = x.name, len(shape) - x.rank
    if added:
        name = t.graph.one("Unsqueeze", name, t.graph.integers(*range(added)))
    before = (1,) * added + x.shape
    thin = {axis + added for axis in x.thin}
    thin |= {axis for axis, size in enumerate(shape) if size != 1 and before[axis] == 1}
    return [Value(name, shape, frozenset(thin))]


@operator("view.default", "_unsafe_view.default", "reshape.default")
def emit_view(t: Translation, step: Step) -> list[Value]:
    """Other axes over the same numbers; the batch is in one of them."""
    x, shape = t.value(step.args[0]), t.shape(step)
    if x.shape == shape:
        return [x]
    x = t.graph.thick(x, keep=[0] if _kept_first(x, shape) else [])  # equal rows stay thin
    sizes = [-1 if isinstance(size, Size) else size for size in shape]
    if sizes.count(-1) > 1:
        raise ExportError(f"operator {step.name} makes two axes of the batch")
    if 0 in x.thin:
        sizes[0] = 1
    return [Value(t.graph.one("Reshape", x.name, t.graph.integers(*sizes)), shape, x.thin)]


def _kept_first(x: Value, shape: Shape) -> bool:
    return 0 in x.thin and bool(shape) and x.shape[0] == shape[0] == Size(1)


@operator("permute.default", "transpose.int", "t.default")
def emit_permute(t: Translation, step: Step) -> list[Value]:
    """Axes in another order."""
    x = t.value(step.args[0])
    order = list(range(x.rank))
    if step.name == "permute.default":
        order = [axis % x.rank for axis in step.args[1]]
    else:
        one, two = (0, 1) if step.name == "t.default" else (a % x.rank for a in step.args[1:3])
        order[one], order[two] = order[two], order[one]
    name = t.graph.one("Transpose", x.name, perm=order)
    return [Value(name, t.shape(step), frozenset(order.index(axis) for axis in x.thin))]


@operator("slice.Tensor")
def emit_slice(t: Translation, step: Step) -> list[Value]:
    """A range along an axis."""
    source, axis, start, end, stride = (*step.args, *(None, 0, 0, None, 1)[len(step.args) :])[:5]
    start, end = start or 0, np.iinfo(np.int64).max if end is None else end
    x = t.value(source)
    axis %= x.rank
    if t.shape(step) == x.shape:
        return [x]
    if isinstance(start, Size) or isinstance(end, Size) or isinstance(x.shape[axis], Size):
        raise ExportError("a range of the batch is taken")
    x = t.graph.thick(x, keep=[i for i in range(x.rank) if i != axis])
    parts = (t.graph.integers(number) for number in (start, end, axis, stride))
    return [Value(t.graph.one("Slice", x.name, *parts), t.shape(step), x.thin)]


@operator("select.int")
def emit_select(t: Translation, step: Step) -> list[Value]:
    """One place along an axis, without the axis."""
    source, axis, place = step.args
    x = t.value(source)
    axis %= x.rank
    if isinstance(x.shape[axis], Size):
        raise ExportError("a member of the batch is taken")
    x = t.graph.thick(x, keep=[i for i in range(x.rank) if i != axis])
    name = t.graph.one("Gather", x.name, t.graph.array(np.array(place, np.int64)), axis=axis)
    left = [i for i in range(x.rank) if i != axis]
    return [Value(name, t.shape(step), frozenset(left.index(i) for i in x.thin))]


@operator("split_with_sizes.default", "split.Tensor")
def emit_split(t: Translation, step: Step) -> list[Value]:
    """Parts along an axis; of the batch there is one part."""
    x = t.value(step.args[0])
    if len(step.results) == 1:
        return [x]
    (axis,) = axes_of(step.args[2] if len(step.args) > 2 else 0, x.rank)
    shapes = [t.shape(step, i) for i in range(len(step.results))]
    sizes = [shape[axis] for shape in shapes]
    if any(isinstance(size, Size) for size in sizes):
        raise ExportError("the batch is split")
    x = t.graph.thick(x, keep=[i for i in range(x.rank) if i != axis])
    lengths = t.graph.integers(*(size for size in sizes if isinstance(size, int)))
    names = t.graph.node("Split", x.name, lengths, outputs=len(sizes), axis=axis)
    return [Value(name, shape, x.thin) for name, shape in zip(names, shapes, strict=True)]


@operator("gather.default")
def emit_gather(t: Translation, step: Step) -> list[Value]:
    """Numbers at places along an axis."""
    source, dim, places = step.args[:3]
    x, index = t.thick(source), t.thick(places)
    (axis,) = axes_of(dim, x.rank)
    return [Value(t.graph.one("GatherElements", x.name, index.name, axis=axis), t.shape(step))]


@operator("index_select.default")
def emit_index_select(t: Translation, step: Step) -> list[Value]:
    """Places along an axis that are always the same."""
    source, dim, places = step.args
    x = t.thick(source)
    (axis,) = axes_of(dim, x.rank)
    return [Value(t.graph.one("Gather", x.name, t.thick(places).name, axis=axis), t.shape(step))]


@operator("remainder.Scalar")
def emit_remainder(t: Translation, step: Step) -> list[Value]:
    """Of whole numbers."""
    x = t.value(step.args[0])
    divisor = t.graph.array(np.array(step.args[1], np.int64))
    return [Value(t.graph.one("Mod", x.name, divisor), t.shape(step), x.thin)]


@operator("slice_scatter.default")
def emit_slice_scatter(t: Translation, step: Step) -> list[Value]:
    """A tensor in which a range along an axis is another one."""
    around, source, axis, start, end, stride = (
        *step.args,
        *(None, 0, 0, None, 1)[len(step.args) - 1 :],
    )[:6]
    x, axis = t.value(around), axis % len(t.shape(step))
    size = x.shape[axis]
    if isinstance(size, Size) or stride != 1:
        raise ExportError("a range of the batch is set")
    first, last = start or 0, size if end is None else min(end, size)
    x = t.graph.thick(x, keep=[i for i in range(x.rank) if i != axis])
    parts = [t.value(source)]
    for low, high, place in ((last, size, 1), (0, first, 0)):
        if low < high:
            bounds = (t.graph.integers(number) for number in (low, high, axis))
            name = t.graph.one("Slice", x.name, *bounds)
            shape = (*x.shape[:axis], high - low, *x.shape[axis + 1 :])
            parts.insert(place, Value(name, shape, x.thin, x.dtype))
    thin = frozenset.intersection(*(part.thin for part in parts)) - {axis}
    names = [t.graph.thick(part, keep=sorted(thin)).name for part in parts]
    return [Value(t.graph.one("Concat", *names, axis=axis), t.shape(step), thin)]
