"""Networks prepared for a few rows whose conditions and times are known in advance: acting.

A sampler asks a network about the same conditions at every step. What depends on conditions and
times alone is computed once for all steps, the gradient of f is written out, and nothing is kept
for a backward pass. The results are those of the networks up to rounding.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from qgpo.networks import EnergyNetwork, MLPNoiseNetwork, UNetMLP

FEW = 256
"""most rows for which it pays: of more, matrix products take most of the time"""
aten = torch.ops.aten
AtStep = Callable[[int, Tensor], Tensor]
"""number of the time, and x_t (B, D), to what a network returns for them"""
_PLAINLY = contextvars.ContextVar("plainly", default=False)


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Around what is to be computed by the networks themselves: while a function is recorded."""
    token = _PLAINLY.set(True)
    try:
        yield
    finally:
        _PLAINLY.reset(token)


def is_plain() -> bool:
    """Whether that is asked for."""
    return _PLAINLY.get()


def prepared_output(network: nn.Module, times: Tensor, condition: Tensor | None) -> AtStep | None:
    """Outputs of a noise network at times (K,) for conditions (B, C); None for other networks."""
    if condition is None:
        return None
    if type(network) is MLPNoiseNetwork and _fits(network, network.net, condition):
        return _MLPOutput(network.net, network.time, times, condition)
    if type(network) is UNetMLP and _fits(network, None, condition):
        return _UNetOutput(network, times, condition)
    return None


def prepared_gradient(network: nn.Module, times: Tensor, condition: Tensor | None) -> AtStep | None:
    """Gradients in x_t (B, D) of an energy network, likewise."""
    if condition is None or type(network) is not EnergyNetwork:
        return None
    has_hidden_layers = len(network.net) > 1
    if not has_hidden_layers or not _fits(network, network.net, condition):
        return None
    return _MLPGradient(network.net, network.time, times, condition)


def _fits(network: nn.Module, net: nn.Sequential | None, condition: Tensor) -> bool:
    """Whether nothing is to be differentiated or recorded, and the layers are SiLU's."""
    few = condition.dim() == 2 and len(condition) <= FEW
    usual = few and not torch.is_grad_enabled() and not is_plain()
    hooked = network._forward_hooks or network._forward_pre_hooks
    layers = [] if net is None else list(net)
    linear = all(type(layer) is nn.Linear for layer in layers[::2])
    return usual and not hooked and linear and all(type(a) is nn.SiLU for a in layers[1::2])


class _Hidden:
    """The hidden layers of an MLP over (x_t, features of t, condition)."""

    def __init__(
        self, net: nn.Sequential, features: nn.Module, times: Tensor, condition: Tensor
    ) -> None:
        first, *others = [layer for layer in net if isinstance(layer, nn.Linear)]
        of_time: Tensor = features(times)
        c = condition.shape[1]
        dim = first.in_features - of_time.shape[1] - c
        of_x, of_t, of_c = first.weight.split([dim, of_time.shape[1], c], dim=1)
        self.of_x = of_x
        """(H, D), what the first layer makes of x_t"""
        by_time = of_time @ of_t.t()
        by_condition = torch.addmm(first.bias, condition, of_c.t())
        self.bases = list((by_time[:, None] + by_condition).unbind(0))
        """(B, H) for every time: what it adds"""
        self.others = [(layer.weight, layer.bias) for layer in others]


class _MLPOutput(_Hidden):
    def __call__(self, k: int, x: Tensor) -> Tensor:
        hidden = torch.addmm(self.bases[k], x, self.of_x.t())
        for weight, bias in self.others:
            functional.silu(hidden, inplace=True)
            hidden = torch.addmm(bias, hidden, weight.t())
        return hidden


class _MLPGradient(_Hidden):
    def __call__(self, k: int, x: Tensor) -> Tensor:
        given = [torch.addmm(self.bases[k], x, self.of_x.t())]
        *between, (last, _) = self.others
        for weight, bias in between:
            given.append(torch.addmm(bias, functional.silu(given[-1]), weight.t()))
        gradient: Tensor = aten.silu_backward(last.expand_as(given[-1]), given.pop())
        for (weight, _), before in zip(reversed(between), reversed(given), strict=True):
            gradient = aten.silu_backward(gradient @ weight, before)
        return torch.mm(gradient, self.of_x)


class _Block(NamedTuple):
    """The layers of a residual block, and what it adds between them at each time."""

    first: nn.Linear
    second: nn.Linear
    skip: nn.Linear | None
    """None for the identity"""
    added: Sequence[Tensor]
    """(B, O) for every time"""

    def __call__(self, k: int, x: Tensor) -> Tensor:
        new = functional.silu(_linear(self.first, x), inplace=True).add_(self.added[k])
        new = functional.silu(_linear(self.second, new), inplace=True)
        return new.add_(x if self.skip is None else _linear(self.skip, x))


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Without what a module does around it, which takes as long as the product of one row."""
    return functional.linear(x, layer.weight, layer.bias)


class _UNetOutput:
    """A UNetMLP, whose embeddings of time and condition do not depend on x_t."""

    def __init__(self, network: UNetMLP, times: Tensor, condition: Tensor) -> None:
        by_time = network.time(times)[:, None].expand(-1, len(condition), -1)
        by_condition = network.condition(condition).expand(len(times), -1, -1)
        embedding = network.embedding(torch.cat([by_condition, by_time], dim=-1))
        blocks: list[Any] = [*network.down, network.middle, *network.up]
        self.blocks = [
            _Block(
                block.first[0],
                block.second[0],
                block.skip if isinstance(block.skip, nn.Linear) else None,
                block.embed(embedding).unbind(0),
            )
            for block in blocks
        ]
        self.down = len(network.down)
        self.output = network.output

    def __call__(self, k: int, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        hidden = x
        for block in self.blocks[: self.down]:
            hidden = block(k, hidden)
            skips.append(hidden)
        for block in self.blocks[self.down :]:
            hidden = torch.cat([skips.pop(), block(k, hidden)], dim=-1)
        return _linear(self.output, hidden)
