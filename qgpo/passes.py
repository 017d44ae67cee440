"""Batched MLPs forwards and backwards, written out for the CPU.

Autograd keeps what every operator returns and walks over it again. Written out, a layer of one
head is one matrix product, one normalisation with its affine part and one activation in place, of
so few rows that they stay in the cache, and its gradients are written where they belong. Values
and gradients are those of the operators of `BatchedMLP` up to rounding. The operators compute
where `applies` says no: on a GPU, where the inputs need a gradient, and while a function is
recorded (`plainly`).
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 512
"""of a head at a time: with 256 numbers each, half a megabyte"""
EPSILON = 1e-5
"""added to the variance where layers are normalised: torch's default"""
aten = torch.ops.aten
_PLAINLY = contextvars.ContextVar("plainly", default=False)


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Around what operators are to compute one by one."""
    token = _PLAINLY.set(True)
    try:
        yield
    finally:
        _PLAINLY.reset(token)


def is_plain() -> bool:
    """Whether that is asked for."""
    return _PLAINLY.get()


class Activation(NamedTuple):
    """A function, the same in place, and the gradient of its input."""

    forward: Callable[[Tensor], Tensor]
    in_place: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    """the gradient of its output, which is overwritten, and its output or its input"""
    by_output: bool
    """which of the two: by its output, the input may be overwritten"""


def _relu_backward(gradient: Tensor, output: Tensor) -> Tensor:
    written: Tensor = aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)
    return written


def _silu_backward(gradient: Tensor, given: Tensor) -> Tensor:
    written: Tensor = aten.silu_backward.grad_input(gradient, given, grad_input=gradient)
    return written


def _silu_(x: Tensor) -> Tensor:
    return functional.silu(x, inplace=True)


ACTIVATIONS = {
    "relu": Activation(torch.relu, torch.relu_, _relu_backward, by_output=True),
    "silu": Activation(functional.silu, _silu_, _silu_backward, by_output=False),
}
"""by the names of a configuration; others are left to the operators"""


class Parameters(NamedTuple):
    """Those of H MLPs, or of one of them, by layer; the last layer has no activation."""

    weights: Sequence[Tensor]
    """(H, I, O) each, or (I, O)"""
    biases: Sequence[Tensor]
    """(H, 1, O) each, or (1, O)"""
    gains: Sequence[Tensor] = ()
    """(H, 1, O) each, or (O,), of all layers but the last; none where nothing is normalised"""
    shifts: Sequence[Tensor] = ()

    @property
    def flat(self) -> tuple[Tensor, ...]:
        """All of them, in this order."""
        return (*self.weights, *self.biases, *self.gains, *self.shifts)

    def like(self, flat: Sequence[Tensor]) -> Parameters:
        """The same from a list in that order."""
        n, m = len(self.weights), len(self.gains)
        return Parameters(flat[:n], flat[n : 2 * n], flat[2 * n : 2 * n + m], flat[2 * n + m :])

    def heads(self) -> list[Parameters]:
        """Those of each head, as views."""
        matrices = [[p.unbind(0) for p in kind] for kind in (self.weights, self.biases)]
        vectors = [[p.squeeze(1).unbind(0) for p in kind] for kind in (self.gains, self.shifts)]
        kinds = [
            list(zip(*kind, strict=True)) or [()] * len(self.weights[0])
            for kind in matrices + vectors
        ]
        return [Parameters(*head) for head in zip(*kinds, strict=True)]


class _Kept(NamedTuple):
    """What the backward pass of a layer reads."""

    x: Tensor
    before: Any = None
    """x @ weight + bias, where the layer has an activation"""
    moments: Sequence[Tensor] = ()
    """of a normalisation: each row's mean and 1 / standard deviation"""
    activated: Any = None
    """output or input of the activation"""


def applies(activation: str, x: Tensor, parameters: Parameters) -> bool:
    """Whether `outputs` computes MLPs of those parameters for inputs x."""
    weight = parameters.weights[0]
    return (
        activation in ACTIVATIONS
        and x.device.type == weight.device.type == "cpu"
        and x.dtype is weight.dtype is torch.float32
        and not x.requires_grad
        and not is_plain()
    )


def outputs(activation: str, x: Tensor, parameters: Parameters) -> Tensor:
    """(H, B, I) to (H, B, O), with a gradient of the parameters where one is asked for."""
    flat = parameters.flat
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in flat):
        trained: Tensor = _Trained.apply(activation, x, parameters, *flat)  # type: ignore[no-untyped-call]
        return trained
    return _forward(ACTIVATIONS[activation], x, parameters, None)


class _Trained(torch.autograd.Function):
    """All heads as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, activation: str, x: Tensor, of: Parameters, *flat: Tensor) -> Tensor:
        ctx.activation, ctx.of, ctx.kept = ACTIVATIONS[activation], of, []
        ctx.save_for_backward(*flat)
        return _forward(ctx.activation, x, of.like(flat), ctx.kept)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        written = [torch.empty_like(parameter) for parameter in ctx.saved_tensors]
        heads = ctx.of.like(ctx.saved_tensors).heads()
        into = ctx.of.like(written).heads()
        kept = iter(ctx.kept)
        for head, gradients, rows in zip(heads, into, gradient.unbind(0), strict=True):
            for number, part in enumerate(_parts(rows)):
                _backward(ctx.activation, head, gradients, next(kept), part, first=number == 0)
        return (None, None, None, *written)


def _parts(rows: Tensor) -> Sequence[Tensor]:
    return rows.split(ROWS) if len(rows) > ROWS else (rows,)


def _forward(
    activation: Activation, x: Tensor, parameters: Parameters, kept: list[list[_Kept]] | None
) -> Tensor:
    """The outputs; `kept` gets what the backward pass reads, by head and part of its rows."""
    out = x.new_empty(*x.shape[:2], parameters.weights[-1].shape[-1])
    for rows, head, of_head in zip(x.unbind(0), parameters.heads(), out.unbind(0), strict=True):
        for part, written in zip(_parts(rows), _parts(of_head), strict=True):
            one: list[_Kept] | None = None if kept is None else []
            hidden = part
            for i in range(len(head.weights) - 1):
                hidden = _hidden(activation, head, i, hidden, one)
            torch.addmm(head.biases[-1], hidden, head.weights[-1], out=written)
            if kept is not None and one is not None:
                kept.append([*one, _Kept(hidden)])
    return out


def _hidden(
    activation: Activation, head: Parameters, i: int, x: Tensor, kept: list[_Kept] | None
) -> Tensor:
    """The output of the i-th layer, which has an activation, for rows (B, I)."""
    before = linear = torch.addmm(head.biases[i], x, head.weights[i])
    moments: list[Tensor] = []
    if head.gains:
        affine = head.gains[i], head.shifts[i]
        linear, *moments = torch.native_layer_norm(before, before.shape[-1:], *affine, EPSILON)
    if kept is None:
        return activation.in_place(linear)
    output = (activation.in_place if activation.by_output else activation.forward)(linear)
    kept.append(_Kept(x, before, moments, output if activation.by_output else linear))
    return output


def _backward(
    activation: Activation,
    head: Parameters,
    gradients: Parameters,
    kept: list[_Kept],
    d: Tensor,
    first: bool,
) -> None:
    """Write the gradients of one head, or add them, from d (B, O) of some rows."""
    _linear(gradients, -1, kept[-1].x, d, first)
    d = torch.mm(d, head.weights[-1].t())
    for i in range(len(kept) - 2, -1, -1):
        one = kept[i]
        d = activation.backward(d, one.activated)
        if head.gains:
            affine = head.gains[i], head.shifts[i], [True, True, True]
            d, *of_affine = aten.native_layer_norm_backward(
                d, one.before, one.before.shape[-1:], *one.moments, *affine
            )
            for into, new in zip((gradients.gains[i], gradients.shifts[i]), of_affine, strict=True):
                into.copy_(new) if first else into.add_(new)
        _linear(gradients, i, one.x, d, first)
        if i:
            d = torch.mm(d, head.weights[i].t())


def _linear(gradients: Parameters, i: int, x: Tensor, d: Tensor, first: bool) -> None:
    """The gradients of the i-th weights and biases, from that of x @ weight + bias."""
    if first:
        torch.mm(x.t(), d, out=gradients.weights[i])
        torch.sum(d, dim=0, keepdim=True, out=gradients.biases[i])
    else:
        gradients.weights[i].addmm_(x.t(), d)
        gradients.biases[i].add_(d.sum(dim=0))
