"""Operators that work element by element."""

from __future__ import annotations

import math

from qgpo.agents.core.export.graph import Value
from qgpo.agents.core.export.recording import Step
from qgpo.agents.core.export.translation import Translation, operator

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
