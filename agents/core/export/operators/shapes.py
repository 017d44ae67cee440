"""Operators that join, cut, stretch and reorder axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from qgpo.agents.core.export.graph import Value
from qgpo.agents.core.export.recording import Constant, ExportError, Shape, Size, Step
from qgpo.agents.core.export.translation import Translation, axes_of, operator


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
    """Rows at places along an axis."""
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
