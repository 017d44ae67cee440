"""Products of matrices."""

from __future__ import annotations

from typing import Any

import torch

from qgpo.agents.core.export.graph import Value
from qgpo.agents.core.export.recording import Constant, ExportError, Ref, Size, Step
from qgpo.agents.core.export.translation import Translation, axes_of, operator


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
