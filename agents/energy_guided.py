"""EnergyGuidedDiffusion: sample p(x) ~ q(x) exp(-beta E(x)) for vectors x, any data and any energy.

How it is trained and sampled is in `general/tilted.py`; `images.py` has the same for images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from qgpo.agents.general.config import STEPS, Factories, Layout, TiltedConfig, is_simple
from qgpo.agents.general.data import Array
from qgpo.agents.general.tilted import Callback as Callback
from qgpo.agents.general.tilted import TiltedDiffusion
from qgpo.fields import Range
from qgpo.gaussians import CorrectedNetwork, FittedMixture
from qgpo.networks import NaturalNetwork, mlp

CORRECTED = {"data": 500, "guidance": 300}
"""gradient steps where the networks correct mixtures"""


@dataclass(frozen=True)
class EnergyGuidedConfig(TiltedConfig):
    """What an EnergyGuidedDiffusion is made of."""

    hidden: tuple[int, ...] = (192, 192, 192)
    """hidden layer sizes of the data model"""
    energy_hidden: tuple[int, ...] = (128, 128, 128)
    """hidden layer sizes of f, and of the clean energy if it is learned"""
    sharpness: float = 12.0
    """scale of the networks' inputs: with larger values they learn finer features first"""
    components: Annotated[int, Range(0, 4096)] = 32
    """of Gaussian mixtures, fitted to the data and to their energies, that the networks of the data
    model, cep and weighted correct, in 500 and 300 gradient steps unless others are asked for
    (unconditional models in up to 32 dimensions); 0: none"""


class EnergyGuidedDiffusion(TiltedDiffusion[EnergyGuidedConfig]):
    """A model of p(x) ~ q(x) exp(-beta E(x)), or of p(x|c) given conditions, for x of (D,).

        model = EnergyGuidedDiffusion(EnergyGuidedConfig(beta=3.0), seed=0)
        samples = model.fit(data, energy).sample(1000)

    `energy` is a function of samples, or an array with one value per sample. Lower is better.
    """

    name: ClassVar[str] = "EnergyGuidedDiffusion"
    config_class: ClassVar[type[EnergyGuidedConfig]] = EnergyGuidedConfig
    data_model_fields = (*TiltedDiffusion.data_model_fields, "hidden", "sharpness", "components")

    def _factories(self, layout: Layout) -> Factories:
        c = self.config
        of_data = c.components if is_simple(layout) else 0
        components = 0 if layout.energies else of_data
        dims, common = (layout.dim, layout.condition_dim), (self.schedule, c.sharpness)
        sizes = [sum(dims), *c.energy_hidden, max(1, layout.energies)]

        def network() -> nn.Module:
            natural = NaturalNetwork(*dims, layout.dim, c.hidden, *common, zero_start=True)
            if not of_data:
                return natural
            mixture = FittedMixture(layout.dim, of_data)
            return CorrectedNetwork(natural, mixture, self.schedule, c.prediction)

        return Factories(
            network=network,
            energy_network=partial(
                NaturalNetwork, *dims, layout.energies, c.energy_hidden, *common, components > 0
            ),
            clean_energy=partial(mlp, sizes, "silu"),
            components=components,
            steps={
                "data": (CORRECTED if of_data else STEPS)["data"],
                "guidance": (CORRECTED if components else STEPS)["guidance"],
            },
        )

    def _read(self, data: Array) -> Array:
        return self.reader.matrix("data", data)

    def _rows(self, data: Array) -> Tensor:
        x = torch.as_tensor(data)
        if self.progress["data"] == 0:
            self.normalizer.fit(x)
        return self.encode(x)

    def _units(self, x: Array) -> Tensor:
        return torch.as_tensor(x)
