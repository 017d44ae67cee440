"""The three stages of a model of p(x) ~ q(x) exp(-beta E(x)): data, energy, guidance."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qgpo.agents.core.process import usual_torch
from qgpo.agents.core.training import Training, average
from qgpo.agents.general.data import Data
from qgpo.diffusion import Metrics
from qgpo.gaussians import CorrectedNetwork, FittedMixture
from qgpo.guidance import Guidance, Samples, Weighted, weighted_loss
from qgpo.networks import join
from qgpo.normalization import ObservationNormalizer

ROWS_PER_CALL = 16_384
"""samples of which the energy, or what a guidance prepares, is computed at a time"""
ROWS_OF_METRICS = 50


class Model(Protocol):
    """What has these stages."""

    config: Any
    seed: int
    device: torch.device
    training: Training
    progress: dict[str, int]
    steps: dict[str, int]
    """of each stage"""
    targets: str
    labelled: bool
    """whether the energy came as labels"""
    data_model: Any
    data_model_ema: Any
    clean_energy: nn.Module
    energy_scale: ObservationNormalizer
    guidance_model: Any
    guidance_ema: Any

    def values_of(self, energies: Tensor) -> Tensor:
        """(..., max(1, E)) as (...) where there is a single energy."""


def fit_data(model: Model, data: Data) -> None:
    """Stage 1: q, which is the weighted model at beta = 0."""
    if model.progress["data"] == 0:
        _fit_mixture(model, data)

    def loss(groups: Samples) -> tuple[Tensor, Metrics]:
        value, _ = weighted_loss(model.data_model, *groups, model.targets, model.training.generator)
        return value, {"loss": value}

    zeros = data._replace(energies=torch.zeros(len(data.z), device=model.device))
    after = partial(average, model.data_model, model.data_model_ema, model.config.ema_decay)
    _minimize(model, "data", zeros, loss, after)


def _fit_mixture(model: Model, data: Data) -> None:
    """What the data model's network corrects."""
    network = model.data_model.network
    if isinstance(network, CorrectedNetwork):
        everything = data.z[torch.arange(len(data.z), device=model.device)]
        network.mixture.fit(everything, torch.Generator(model.device).manual_seed(model.seed))
        model.data_model_ema.load_state_dict(model.data_model.state_dict())


def fit_energy(model: Model, data: Data) -> None:
    """Stage 2: a smooth E(x), where it is differentiated and came as labels."""
    if not (model.labelled and model.guidance_model.needs_energy):
        return

    def loss(groups: Samples) -> tuple[Tensor, Metrics]:
        x_0, standardised, condition = groups
        output = model.values_of(model.clean_energy(join(x_0, condition)))
        output = output.mT if output.dim() == 3 else output
        value = torch.mean((output - standardised) ** 2)
        return value, {"loss": value}

    energies = data.energies if data.energies.dim() == 2 else data.energies[:, None]
    model.energy_scale.fit(energies)
    standardised = model.values_of(model.energy_scale(energies))
    _minimize(model, "energy", data._replace(energies=standardised), loss)


@usual_torch()
def fit_guidance(model: Model, data: Data) -> None:
    """Stage 3: f_t on groups of K samples, each group at one noise level."""
    data = data._replace(energies=scaled(data.energies, model.config.beta))
    guidance = model.guidance_model
    seen = _seen(guidance, data)
    if model.progress["guidance"] == 0:
        if isinstance(guidance, Weighted):
            guidance.model.load_state_dict(model.data_model_ema.state_dict())
        guidance.start(seen)
        model.guidance_ema.load_state_dict(guidance.state_dict())
    for one in (guidance, model.guidance_ema):
        # of the seed alone: a training that goes on prepares what the first one did
        one.prepare(seen, torch.Generator(model.device).manual_seed(model.seed))
    if guidance.trainable:
        loss = partial(guidance.loss, generator=model.training.generator)
        after = partial(average, guidance, model.guidance_ema, model.config.ema_decay)
        _minimize(model, "guidance", data, loss, after)
        if model.progress["guidance"] >= model.steps["guidance"]:
            model.guidance_ema.finish(seen)


def scaled(energies: Tensor, beta: float) -> Tensor:
    """f_0 = -beta E. Raises ValueError where float32 does not hold it.

    E enters relative to its mean: the same f for energies that differ by a constant.
    """
    f_0 = -beta * (energies.double() - energies.double().mean())
    if not bool(torch.isfinite(f_0.float()).all()):
        raise ValueError(
            f"{beta=} times the energy reaches {float(f_0.abs().max()):.3g}, which is larger than "
            "float32 holds: choose a smaller beta, or a larger unit of the energy"
        )
    return f_0.float()


def _seen(guidance: Guidance, data: Data) -> Samples:
    """What a guidance prepares from: every energy, and all samples where mixtures are fitted.

    Otherwise the first ROWS_PER_CALL samples are enough. Images may be too many for the memory.
    """
    fitted = any(isinstance(part, FittedMixture) for part in guidance.modules())
    rows = slice(None if fitted else ROWS_PER_CALL)
    return data.rows(rows)._replace(scaled_energy=data.energies)


def _minimize(
    model: Model,
    stage: str,
    data: Data,
    loss: Callable[[Samples], tuple[Tensor, Metrics]],
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """Minimise a loss over random groups; the energy has as many steps as the guidance."""
    c, training = model.config, model.training
    is_data = stage == "data"
    total = model.steps["data" if is_data else "guidance"]
    rate = c.data_learning_rate if is_data else c.guidance_learning_rate

    def loss_of_groups(step: int) -> tuple[Tensor, Metrics]:
        return loss(data.rows(training.draw(len(data.z), c.groups, c.contrast)))

    training.log_interval = max(1, total // ROWS_OF_METRICS)
    training.minimize(stage, total, loss_of_groups, rate, after=after)
