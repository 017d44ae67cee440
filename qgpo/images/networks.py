"""The networks of images, from the parts of the library `diffusers`; samples are vectors (B, D).

D = C H W: solvers, guidances and losses see vectors, as everywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qgpo.schedule import Schedule

INSTALL = "pip install 'qgpo[images]'"
STEPS_PER_TIME = 1000.0
"""of a network that is trained here: its time step is 1000 t"""
LARGEST_HEAD = 64
"""channels of an attention head, or as many as divide those of every level that has attention"""
Shape = tuple[int, int, int]
"""channels, height, width"""


def unet_settings(
    shape: Shape, channels: Sequence[int], layers: int, attention: Sequence[int], norm_groups: int
) -> dict[str, Any]:
    """Arguments of diffusers' UNet2DModel.

    One level of the U-Net per number of channels, each at half the size of the one before;
    `attention` numbers the levels that have it, from 0. Raises ValueError where they do not fit.
    """
    halvings = 2 ** (len(channels) - 1)
    if not channels or shape[1] % halvings or shape[2] % halvings:
        raise ValueError(
            f"channels={tuple(channels)} halves images of {shape[1]} x {shape[2]} pixels "
            f"{len(channels) - 1} times, expected a height and a width that {halvings} divides"
        )
    if any(width % norm_groups for width in channels):
        raise ValueError(f"channels={tuple(channels)}, expected multiples of {norm_groups=}")
    if not set(attention) <= set(range(len(channels))):
        raise ValueError(f"attention={tuple(attention)}, expected some of 0 to {len(channels) - 1}")
    has = [level in attention for level in range(len(channels))]
    return {
        "sample_size": list(shape[1:]),
        "in_channels": shape[0],
        "out_channels": shape[0],
        "block_out_channels": list(channels),
        "layers_per_block": layers,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in has],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(has)],
        "norm_num_groups": norm_groups,
        "attention_head_dim": math.gcd(
            LARGEST_HEAD, channels[-1], *(channels[i] for i in attention)
        ),
        "add_attention": bool(attention),
    }


def make_unet(settings: Mapping[str, Any]) -> nn.Module:
    """Diffusers' U-Net of these settings, whose last layer starts at zero."""
    unet: nn.Module = diffusers_parts().UNet2DModel(**settings)
    last = unet.get_submodule("conv_out")
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return unet


def diffusers_parts() -> Any:
    """The library `diffusers`. Raises ImportError, which says how to install it."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(f"networks of images need diffusers: {INSTALL}") from error
    return diffusers


class ImageNetwork(nn.Module):
    """The network of a data model: a U-Net over images, seen as vectors.

    `levels` is the number of noise levels of a U-Net that was trained elsewhere (0: trained here).
    Its time step at t is then where its own alpha / sigma is that of the schedule.
    """

    half_log_snr: Tensor

    def __init__(
        self, shape: Shape, settings: Mapping[str, Any], schedule: Schedule, levels: int = 0
    ) -> None:
        super().__init__()
        self.shape, self.schedule = shape, schedule
        self.unet = make_unet(settings)
        if levels:
            self.register_buffer("half_log_snr", torch.linspace(5.0, -5.0, levels))
        self.levels = levels

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """(B, D), (B,) to (B, D); there is no condition."""
        images = x_t.unflatten(-1, self.shape)
        output: Tensor = self.unet(images, self.time_step(t), return_dict=False)[0]
        return output[:, : self.shape[0]].flatten(1)  # a learned variance follows in some

    def time_step(self, t: Tensor) -> Tensor:
        """The U-Net's time step, (B,) to (B,); between two levels in proportion."""
        if not self.levels:
            return STEPS_PER_TIME * t
        wanted, own = -self.schedule.half_log_snr(t), -self.half_log_snr
        above = torch.searchsorted(own, wanted).clamp(1, self.levels - 1)
        low, high = own[above - 1], own[above]
        return (above - 1 + (wanted - low) / (high - low)).clamp(0, self.levels - 1)


class ImageEnergy(nn.Module):
    """f(x_t, t): the downward half of such a U-Net, the mean over positions, a linear layer.

    (B,) for `outputs` 0, else (B, outputs), in units of `unit`.
    """

    def __init__(
        self, shape: Shape, settings: Mapping[str, Any], outputs: int, unit: float = 1.0
    ) -> None:
        super().__init__()
        self.shape, self.scalar, self.unit = shape, outputs == 0, unit
        unet: Any = make_unet(settings)
        self.time = nn.ModuleList([unet.time_proj, unet.time_embedding])
        self.first, self.down, self.middle = unet.conv_in, unet.down_blocks, unet.mid_block
        width = settings["block_out_channels"][-1]
        self.norm = nn.Sequential(nn.GroupNorm(settings["norm_num_groups"], width), nn.SiLU())
        self.head = nn.Linear(width, max(1, outputs))

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """(B, D), (B,) to (B,) or (B, outputs); there is no condition."""
        project, embed = self.time
        embedding = embed(project(STEPS_PER_TIME * t))
        hidden = self.first(x_t.unflatten(-1, self.shape))
        for block in self.down:
            hidden, _ = block(hidden, embedding)
        hidden = self.norm(self.middle(hidden, embedding))
        out: Tensor = self.unit * self.head(hidden.mean(dim=(-2, -1)))
        return out.squeeze(-1) if self.scalar else out


class CleanImageEnergy(nn.Module):
    """The same of clean images, whatever their leading dimensions: (..., D) to (..., outputs)."""

    def __init__(self, shape: Shape, settings: Mapping[str, Any], outputs: int) -> None:
        super().__init__()
        self.network = ImageEnergy(shape, settings, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Energies."""
        rows = x.reshape(-1, x.shape[-1])
        out: Tensor = self.network(rows, rows.new_zeros(len(rows)), None)
        return out.reshape(*x.shape[:-1], -1)


class ImageClassifier(nn.Module):
    """A small convolutional classifier of clean images, (B, C, H, W) with pixels in [0, 1].

    It measures samples, so it shares no part with the networks that make them.
    """

    def __init__(self, shape: Shape, classes: int, width: int = 32, n_features: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, side = shape[0], min(shape[1:])
        while True:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            if side < 8:
                break
            layers.append(nn.AvgPool2d(2))
            channels, width, side = width, min(2 * width, 256), side // 2
        halvings = sum(isinstance(layer, nn.AvgPool2d) for layer in layers)
        positions = math.prod(n // 2**halvings for n in shape[1:])
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.embed = nn.Sequential(nn.Linear(width * positions, n_features), nn.ReLU())
        self.head = nn.Linear(n_features, classes)

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees, (B, n_features)."""
        out: Tensor = self.embed(self.body(2.0 * images - 1.0))
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        out: Tensor = self.head(self.features(images))
        return out
