"""EnergyGuidedDiffusion: sample p(x) ~ q(x) exp(-beta E(x)) for vectors x, any data and any energy.

How it is trained and sampled is in `guided/tilted.py`; `images.py` has the same for images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from qgpo.agents.guided.tilted import Array, Factories, Layout, TiltedConfig, TiltedDiffusion
from qgpo.agents.guided.tilted import Callback as Callback
from qgpo.networks import NaturalNetwork, mlp


@dataclass(frozen=True)
class EnergyGuidedConfig(TiltedConfig):
    """What an EnergyGuidedDiffusion is made of."""

    hidden: tuple[int, ...] = (192, 192, 192)
    """layers of the data model"""
    energy_hidden: tuple[int, ...] = (128, 128, 128)
    """layers of f, and of the clean energy where one is learned"""
    sharpness: float = 12.0
    """scale of the networks' inputs: how fine the features are that they learn first"""


class EnergyGuidedDiffusion(TiltedDiffusion[EnergyGuidedConfig]):
    """A model of p(x) ~ q(x) exp(-beta E(x)), or of p(x|c) given conditions, for x of (D,).

        model = EnergyGuidedDiffusion(EnergyGuidedConfig(beta=3.0), seed=0)
        samples = model.fit(data, energy).sample(1000)

    `energy` is a callable on samples or an array of one value per sample, lower is better.
    """

    name: ClassVar[str] = "EnergyGuidedDiffusion"
    config_class: ClassVar[type[EnergyGuidedConfig]] = EnergyGuidedConfig
    data_model_fields = (*TiltedDiffusion.data_model_fields, "hidden", "sharpness")

    def _factories(self, layout: Layout) -> Factories:
        c = self.config
        natural = partial(NaturalNetwork, layout.dim, layout.condition_dim)
        common = self.schedule, c.sharpness
        sizes = [layout.dim + layout.condition_dim, *c.energy_hidden, max(1, layout.energies)]
        return Factories(
            network=partial(natural, layout.dim, c.hidden, *common, True),
            energy_network=partial(natural, layout.energies, c.energy_hidden, *common),
            clean_energy=partial(mlp, sizes, "silu"),
        )

    def _read(self, data: Array) -> Array:
        return self._matrix("data", data)

    def _rows(self, data: Array) -> Tensor:
        x = torch.as_tensor(data)
        if self.progress["data"] == 0:
            self.normalizer.fit(x)
        return self.encode(x)

    def _units(self, x: Array) -> Tensor:
        return torch.as_tensor(x)
