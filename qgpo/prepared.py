"""Networks prepared for a few rows whose conditions and times are known in advance: acting.

A sampler asks a network about the same conditions at every step. What depends on conditions and
times alone is computed once for all steps, the gradient of f is written out, and nothing is kept
for a backward pass. The results are those of the networks up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qgpo.networks import EnergyNetwork, MLPNoiseNetwork, UNetMLP
from qgpo.passes import is_plain

FEW = 256
"""most rows for which it pays: of more, matrix products take most of the time"""
aten = torch.ops.aten
AtStep = Callable[[int, Tensor], Tensor]
"""number of the time, and x_t (B, D), to what a network returns for them"""


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
    if not _fits(network, network.net, condition):
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
            nn.functional.silu(hidden, inplace=True)
            hidden = torch.addmm(bias, hidden, weight.t())
        return hidden


class _MLPGradient(_Hidden):
    def __call__(self, k: int, x: Tensor) -> Tensor:
        given = [torch.addmm(self.bases[k], x, self.of_x.t())]
        *between, (last, _) = self.others
        for weight, bias in between:
            given.append(torch.addmm(bias, nn.functional.silu(given[-1]), weight.t()))
        gradient: Tensor = aten.silu_backward(last.expand_as(given[-1]), given.pop())
        for (weight, _), before in zip(reversed(between), reversed(given), strict=True):
            gradient = aten.silu_backward(gradient @ weight, before)
        return torch.mm(gradient, self.of_x)


class _UNetOutput:
    """A UNetMLP, whose embeddings of time and condition do not depend on x_t."""

    def __init__(self, network: UNetMLP, times: Tensor, condition: Tensor) -> None:
        k, b = len(times), len(condition)
        by_time, by_condition = network.time(times), network.condition(condition)
        joined = torch.cat(
            [
                by_condition.expand(k, -1, -1),
                by_time[:, None].expand(-1, b, -1),
            ],
            dim=-1,
        )
        embedding = network.embedding(joined)
        self.blocks = [*network.down, network.middle, *network.up]
        self.down = len(network.down)
        self.added = [block.embed(embedding).unbind(0) for block in self.blocks]
        self.output = network.output

    def __call__(self, k: int, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        hidden = x
        for number, (block, added) in enumerate(zip(self.blocks, self.added, strict=True)):
            if number > self.down:
                hidden = torch.cat([skips.pop(), hidden], dim=-1)
            new = block.first(hidden).add_(added[k])
            hidden = block.second(new).add_(block.skip(hidden))
            if number < self.down:
                skips.append(hidden)
        hidden = torch.cat([skips.pop(), hidden], dim=-1)
        out: Tensor = self.output(hidden)
        return out
