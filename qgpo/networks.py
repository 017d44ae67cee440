"""The networks: one MLP builder, noise and energy networks, twin Q, policies.

Shapes: B batch, D sample dimension (the action's), C condition dimension (the observation's).
A condition may be None everywhere (unconditional models).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from qgpo.schedule import Schedule

_SOFTENING = 0.2

ModuleT = TypeVar("ModuleT", bound=nn.Module)

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "mish": nn.Mish,
}
"""that a configuration or another library's policy may name"""
TANH_GELU = "gelu_tanh"
"""GELU by its tanh approximation (arXiv 1606.08415, section 2), which is Flax's default"""
FLAX_EPSILON = 1e-6
"""added to the variance by Flax's LayerNorm"""
UNET_WIDTHS = (512, 256, 128)
"""of the CEP authors' behavior network"""
LOG_STD_RANGE = (-5.0, 2.0)
"""bounds of a Gaussian policy's log standard deviation (IQL's code)"""


def mlp(
    sizes: Sequence[int],
    activation: str = "relu",
    layer_norm: bool = False,
    zero_start: bool = False,
    norm_after: bool = False,
) -> nn.Sequential:
    """Linear layers of the given sizes with the activation between them, none after the last.

    `layer_norm` normalises before every activation or, with `norm_after`, after it (as Flax
    does, with its epsilon). With `zero_start` the last layer's weights and biases start at zero.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes[:-1]):
        layers.append(nn.Linear(fan_in, fan_out))
        if layer_norm and not norm_after:
            layers.append(nn.LayerNorm(fan_out))
        layers.append(_activation(activation))
        if layer_norm and norm_after:
            layers.append(nn.LayerNorm(fan_out, eps=FLAX_EPSILON))
    last = nn.Linear(sizes[-2], sizes[-1])
    if zero_start:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def _activation(name: str) -> nn.Module:
    return nn.GELU(approximate="tanh") if name == TANH_GELU else ACTIVATIONS[name]()


def xavier_start(module: ModuleT) -> ModuleT:
    """The module, whose linear layers now start from Xavier's uniform weights and zero biases.

    Glorot & Bengio 2010: bounds sqrt(6 / (fan_in + fan_out)). Flax calls it
    variance_scaling(1, "fan_avg", "uniform").
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return module


def gelu_mlp(
    sizes: Sequence[int], layer_norm: bool = False, last_gain: float = 1.0
) -> nn.Sequential:
    """The MLP of FQL's code (arXiv 2502.02538): Linear, GELU by tanh, LayerNorm where asked for.

    It starts as `xavier_start` says, with the last layer's weights times `last_gain`.
    """
    net = xavier_start(mlp(sizes, TANH_GELU, layer_norm, norm_after=True))
    nn.init.xavier_uniform_(net.get_parameter(f"{len(net) - 1}.weight"), last_gain)
    return net


class FourierFeatures(nn.Module):
    """sin and cos of t at fixed random frequencies ~ N(0, scale^2): (B,) to (B, dim).

    Tancik et al. 2020 (arXiv 2006.10739).
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(dim // 2) * scale)

    def forward(self, t: Tensor) -> Tensor:
        """Time features."""
        angle = t[:, None] * self.frequencies * (2.0 * math.pi)
        return torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)


def join(*parts: Tensor | None) -> Tensor:
    """Concatenate the parts that are not None along the last dimension."""
    return torch.cat([part for part in parts if part is not None], dim=-1)


class _ResidualBlock(nn.Module):
    """Two SiLU layers with an additive embedding after the first, and a skip connection."""

    def __init__(self, fan_in: int, fan_out: int, embedding: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.SiLU(), nn.Linear(embedding, fan_out))
        self.first = nn.Sequential(nn.Linear(fan_in, fan_out), nn.SiLU())
        self.second = nn.Sequential(nn.Linear(fan_out, fan_out), nn.SiLU())
        self.skip = nn.Linear(fan_in, fan_out) if fan_in != fan_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return torch.add(self.second(self.first(x) + self.embed(embedding)), self.skip(x))


class UNetMLP(nn.Module):
    """The CEP authors' behavior network: residual MLP 512/256/128 with U-Net skips.

    1.634 M parameters at C = 17, D = 6.
    """

    def __init__(self, dim: int, condition_dim: int) -> None:
        super().__init__()
        wide, half, narrow = UNET_WIDTHS
        self.time = nn.Sequential(FourierFeatures(32, 30.0), nn.Linear(32, 32))
        self.condition = nn.Sequential(nn.Linear(condition_dim, 32), nn.SiLU())
        self.embedding = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128))
        self.down = nn.ModuleList(
            _ResidualBlock(i, o, 128) for i, o in ((dim, wide), (wide, half), (half, narrow))
        )
        self.middle = _ResidualBlock(narrow, narrow, 128)
        self.up = nn.ModuleList(
            _ResidualBlock(i, o, 128) for i, o in ((2 * narrow, half), (2 * half, wide))
        )
        self.output = nn.Linear(2 * wide, dim)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """(B, D), (B,), (B, C) to (B, D)."""
        if condition is None:
            condition = x_t.new_zeros(len(x_t), 0)
        embedding = self.embedding(join(self.condition(condition), self.time(t)))
        skips = []
        hidden = x_t
        for block in self.down:
            hidden = block(hidden, embedding)
            skips.append(hidden)
        for block in (self.middle, *self.up):
            hidden = join(skips.pop(), block(hidden, embedding))
        out: Tensor = self.output(hidden)
        return out


class MLPNoiseNetwork(nn.Module):
    """A plain MLP over (x_t, features of t, condition) whose last layer starts at zero.

    With velocity prediction an output of zero is the exact model of N(0, I) data. Training starts
    from there and learns the difference.
    """

    def __init__(
        self,
        dim: int,
        condition_dim: int,
        hidden: Sequence[int],
        time_scale: float = 1.0,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        self.time = FourierFeatures(16, time_scale)
        self.net = mlp([dim + 16 + condition_dim, *hidden, dim], activation, zero_start=True)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """(B, D), (B,), (B, C) to (B, D)."""
        out: Tensor = self.net(join(x_t, self.time(t), condition))
        return out


class EnergyNetwork(nn.Module):
    """f(x_t, t, condition), a scalar per sample; higher is better."""

    def __init__(
        self, dim: int, condition_dim: int, hidden: Sequence[int], time_scale: float
    ) -> None:
        super().__init__()
        self.time = FourierFeatures(32, time_scale)
        self.net = mlp([dim + 32 + condition_dim, *hidden, 1], "silu")

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """(B, D), (B,), (B, C) to (B,)."""
        return torch.squeeze(self.net(join(x_t, self.time(t), condition)), dim=-1)


class NaturalNetwork(nn.Module):
    """An MLP over x_t and the posterior's natural parameter, for exactness in few dimensions.

    q(x_0 | x_t) ~ q(x_0) exp(x_0 . eta - alpha^2 |x_0|^2 / (2 sigma^2)) depends on x_t through
    eta = alpha x_t / sigma^2 alone. So do the denoiser and f_t, whose features become sharper as
    sigma falls. The denominator sigma^2 + softening alpha^2 keeps eta finite at sigma = 0. Both
    inputs are multiplied by `sharpness`, because an MLP learns fine features of unscaled inputs
    last (the spectral bias of Tancik et al. 2020, arXiv 2006.10739). Ours.

    Returns (B, out_dim), or (B,) for out_dim 0; `zero_start` begins with an output of zero.
    """

    def __init__(
        self,
        dim: int,
        condition_dim: int,
        out_dim: int,
        hidden: Sequence[int],
        schedule: Schedule,
        sharpness: float,
        zero_start: bool = False,
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.sharpness = sharpness
        self.scalar = out_dim == 0
        self.time = FourierFeatures(32, 0.5)
        self.net = mlp(
            [2 * dim + 32 + condition_dim, *hidden, max(1, out_dim)], "silu", zero_start=zero_start
        )

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """(B, D), (B,), (B, C) to (B, out_dim) or (B,)."""
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        scaled = self.sharpness * x_t
        natural = math.sqrt(_SOFTENING) * alpha * scaled / (sigma**2 + _SOFTENING * alpha**2)
        out: Tensor = self.net(join(natural, scaled, self.time(t), condition))
        return out.squeeze(-1) if self.scalar else out


class TwinQ(nn.Module):
    """Two independent Q functions of (observation, action).

    With `baseline`, Q_i = V(s) + A_i(s, a) with one V; `critic_loss` regresses V on the targets
    and A_i on the residuals. Q varies far more between states than between the actions of one
    state. A single network's errors about states would therefore exceed the differences between
    actions. The split is that of the dueling architecture (Wang et al. 2016, arXiv 1511.06581),
    the residual regression is ours.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        layer_norm: bool = False,
        activation: str = "relu",
        baseline: bool = False,
        norm_after: bool = False,
    ) -> None:
        super().__init__()
        sizes = [observation_dim + action_dim, *hidden, 1]
        layers = partial(mlp, activation=activation, layer_norm=layer_norm, norm_after=norm_after)
        self.heads = nn.ModuleList(layers(sizes) for _ in range(2))
        value_sizes = [observation_dim, *hidden, 1]
        self.value = layers(value_sizes) if baseline else None

    def baseline(self, observations: Tensor) -> Tensor:
        """V, or 0 without a baseline: (..., S) to (...)."""
        if self.value is None:
            return observations.new_zeros(observations.shape[:-1])
        return torch.squeeze(self.value(observations), dim=-1)

    def advantages(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Advantages A_i of both heads: (..., S), (..., A) to (2, ...)."""
        inputs = join(observations.expand(*actions.shape[:-1], -1), actions)
        return torch.stack([head(inputs).squeeze(-1) for head in self.heads])

    def first(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The first Q alone: (..., S), (..., A) to (...)."""
        advantage = torch.squeeze(self.heads[0](join(observations, actions)), dim=-1)
        return self.baseline(observations) + advantage

    def both(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(..., S), (..., A) to (2, ...)."""
        return self.baseline(observations) + self.advantages(observations, actions)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The smaller of the two, shape (...)."""
        return self.both(observations, actions).amin(dim=0)


class BatchedMLP(nn.Module):
    """H MLPs of the same sizes as one batched product: (H, B, sizes[0]) to (H, B, sizes[-1]).

    They start like H of `mlp`, normalised (where asked for) before every activation.
    """

    def __init__(
        self, heads: int, sizes: Sequence[int], activation: str = "relu", layer_norm: bool = False
    ) -> None:
        super().__init__()
        self.activation = _activation(activation)
        pairs = list(pairwise(sizes))
        starts = [torch.empty(heads, i, o).uniform_(-1.0, 1.0) / math.sqrt(i) for i, o in pairs]
        self.weights = nn.ParameterList(starts)
        starts = [torch.empty(heads, 1, o).uniform_(-1.0, 1.0) / math.sqrt(i) for i, o in pairs]
        self.biases = nn.ParameterList(starts)
        normalised = [o for _, o in pairs[:-1]] if layer_norm else []
        self.gains = nn.ParameterList(torch.ones(heads, 1, o) for o in normalised)
        self.shifts = nn.ParameterList(torch.zeros(heads, 1, o) for o in normalised)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all heads."""
        last = len(self.weights) - 1
        for i, (bias, weight) in enumerate(zip(self.biases, self.weights, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if i < last and len(self.gains):
                x = functional.layer_norm(x, x.shape[-1:])
                x = torch.addcmul(self.shifts[i], x, self.gains[i])
            if i < last:
                x = self.activation(x)
        return x

    def mean_of_heads(self, x: Tensor) -> Tensor:
        """The heads' mean for the same inputs: (..., sizes[0]) to (..., sizes[-1])."""
        rows = x.reshape(1, -1, x.shape[-1]).expand(len(self.weights[0]), -1, -1)
        mean: Tensor = self(rows).mean(dim=0)
        return mean.reshape(*x.shape[:-1], -1)


class HeadsOfQ(nn.Module):
    """Q of H heads; as one function it is their mean.

    With `baseline`, each is its own V_h(s) + A_h(s, a), as in TwinQ. A `linear` advantage is
    g_h(s) . a: of a state's actions it knows a direction alone.
    """

    def __init__(
        self,
        heads: int,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        layer_norm: bool = False,
        activation: str = "relu",
        baseline: bool = True,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.linear = heads, linear
        layers = partial(BatchedMLP, heads, activation=activation, layer_norm=layer_norm)
        of_state, of_both = observation_dim, observation_dim + action_dim
        sizes = [of_state, *hidden, action_dim] if linear else [of_both, *hidden, 1]
        self.advantage = layers(sizes)
        self.value = layers([observation_dim, *hidden, 1]) if baseline else None

    def baseline(self, observations: Tensor) -> Tensor:
        """V_h, or 0 without a baseline: a batch per head (H, B, S) to (H, B)."""
        if self.value is None:
            return observations.new_zeros(observations.shape[:-1])
        return torch.squeeze(self.value(observations), dim=-1)

    def advantages(self, observations: Tensor, actions: Tensor) -> Tensor:
        """A_h of J actions in each state: (H, B, S), (H, B, J, A) to (H, B, J)."""
        if self.linear:
            direction: Tensor = self.advantage(observations)
            return (actions @ direction[..., None]).squeeze(-1)
        j = actions.shape[-2]
        observations = observations[:, :, None].expand(-1, -1, j, -1)
        rows: Tensor = self.advantage(join(observations, actions).flatten(1, 2))
        return rows.reshape(self.heads, -1, j)

    def every(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_h of J actions in each state: (H, B, S), (H, B, J, A) to (H, B, J)."""
        return self.baseline(observations)[..., None] + self.advantages(observations, actions)

    def mean_baseline(self, observations: Tensor) -> Tensor:
        """The mean of V_h: (..., S) to (...)."""
        rows = observations.reshape(1, -1, observations.shape[-1]).expand(self.heads, -1, -1)
        return self.baseline(rows).mean(dim=0).reshape(observations.shape[:-1])

    def mean_advantage(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The mean of A_h: (..., S), (..., A) to (...)."""
        shape = torch.broadcast_shapes(observations.shape[:-1], actions.shape[:-1])
        s = observations.expand(*shape, -1).reshape(1, -1, observations.shape[-1])
        a = actions.expand(*shape, -1).reshape(1, -1, 1, actions.shape[-1])
        every = self.advantages(s.expand(self.heads, -1, -1), a.expand(self.heads, -1, -1, -1))
        return every.mean(dim=0).reshape(shape)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The heads' mean: (..., S), (..., A) to (...)."""
        return self.mean_baseline(observations) + self.mean_advantage(observations, actions)


def gelu_twin_q(
    observation_dim: int, action_dim: int, hidden: Sequence[int], layer_norm: bool = True
) -> TwinQ:
    """Two Q functions whose layers are those of `gelu_mlp`."""
    dims = (observation_dim, action_dim)
    return xavier_start(TwinQ(*dims, hidden, layer_norm, TANH_GELU, norm_after=True))


class FlowNetwork(nn.Module):
    """An MLP over (s, x) or, with `timed`, (s, x, t): `gelu_mlp` of the plain concatenation.

    Timed, it is the velocity v(s, x_t, t) of a flow; else the map from noise to action of a
    policy of one step. FQL's code has the same inputs in this order (arXiv 2502.02538).
    """

    def __init__(
        self,
        dim: int,
        condition_dim: int,
        hidden: Sequence[int],
        timed: bool = True,
    ) -> None:
        super().__init__()
        self.net = gelu_mlp([condition_dim + dim + int(timed), *hidden, dim])

    def forward(self, x: Tensor, t: Tensor | None, condition: Tensor | None) -> Tensor:
        """(..., D), (...) or None, (..., C) to (..., D); t is None where it is not timed."""
        time = None if t is None else t[..., None]
        out: Tensor = self.net(join(condition, x, time))
        return out


def deterministic_policy(
    observation_dim: int, action_dim: int, hidden: Sequence[int]
) -> nn.Sequential:
    """Actions tanh(MLP(s)): (..., S) to (..., A)."""
    return nn.Sequential(mlp([observation_dim, *hidden, action_dim]), nn.Tanh())


class GaussianPolicy(nn.Module):
    """N(m(s), d^2) with m(s) = tanh(MLP(s)).

    d is one constant per action dimension or, with `state_dependent_std`, a function of s: a
    linear layer on the mean's last hidden features. No gradient of d reaches these features, so
    learning d does not change the mean.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        state_dependent_std: bool,
    ) -> None:
        super().__init__()
        net = mlp([observation_dim, *hidden, action_dim])
        self.features, self.mean = net[:-1], net[-1]
        self.log_std: nn.Linear | nn.Parameter
        if state_dependent_std:
            self.log_std = nn.Linear([observation_dim, *hidden][-1], action_dim)
        else:
            self.log_std = nn.Parameter(torch.zeros(action_dim))

    def moments(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the action, each (..., A)."""
        features = self.features(observations)
        mean = torch.tanh(self.mean(features))
        if isinstance(self.log_std, nn.Linear):
            log_std = self.log_std(features.detach())
        else:
            log_std = self.log_std.expand_as(mean)
        return mean, torch.exp(log_std.clamp(*LOG_STD_RANGE))


def gaussian_log_prob(mean: Tensor, std: Tensor, actions: Tensor) -> Tensor:
    """Density log N(a; m, d^2), summed over the action's dimensions: (..., A) to (...)."""
    z = (actions - mean) / std
    return torch.sum(-0.5 * z**2 - torch.log(std) - 0.5 * math.log(2.0 * math.pi), dim=-1)
