"""What a general model is made of: its configuration, its networks, and the shape of its data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from torch import nn

from qgpo.agents.core.config import Fraction, NotNegative
from qgpo.fields import OneOf, Range, check_fields
from qgpo.guidance import check_guidance
from qgpo.guidance.base import TARGETS

STEPS = {"data": 4_000, "guidance": 3_000}
"""gradient steps unless the configuration or the model says another number"""
SIMPLE_DIM = 32
"""most dimensions in which targets are averaged over posteriors, unless asked for"""
StepsOrNone = Annotated[int | None, Range(0, 10**12)]


@dataclass(frozen=True)
class TiltedConfig:
    """What every such model is made of, but for its networks."""

    beta: Annotated[float, Range(-1e9, 1e9)] = 1.0
    """inverse temperature of p ~ q exp(-beta E): larger values concentrate p on low energies, 0 is
    q"""
    guidance: str = "cep"
    """kind of guidance: cep (the paper's, exact), mse, emse, dps, qgf, analytic, aepo, weighted, or
    (several energies) classifier"""
    guidance_options: dict[str, bool | int | float | str] = field(default_factory=dict)
    """options of the guidance, by name; the file of each guidance in qgpo/guidance lists its
    options"""
    schedule: str = "cosine"
    """noise schedule: cosine, linear (both variance-preserving), or ot (straight path of flow
    matching)"""
    prediction: str = "velocity"
    """output of the data model's network: velocity, noise, or flow (only with schedule ot)"""
    data_steps: StepsOrNone = None
    """gradient steps of the data model; none: 4,000, or what the model needs"""
    data_learning_rate: NotNegative = 3e-3
    """initial Adam step size of the data model"""
    guidance_steps: StepsOrNone = None
    """gradient steps of f, or of the weighted model; none: 3,000, or what the model needs"""
    guidance_learning_rate: NotNegative = 5e-3
    """initial Adam step size of f, or of the weighted model"""
    contrast: int = 512
    """K, number of samples that are contrasted with each other at one noise level: more are slower
    and more exact"""
    groups: int = 4
    """number of such groups per gradient step, each with its own noise level"""
    targets: Annotated[str, OneOf(("auto", *TARGETS))] = "auto"
    """sample, or posterior: targets averaged over the group's posterior, which takes most of their
    variance away (unconditional models in few dimensions); auto: posterior in these"""
    preconditioned: bool = True
    """multiply the output of the network for f by alpha_t"""
    ema_decay: Fraction = 0.999
    """decay of the averaged weights from which samples are drawn: larger averages over more steps,
    0 uses the last weights"""
    guidance_bound: float | None = None
    """largest |w sigma grad f| / |eps| while sampling: smaller values limit the guidance more.
    none: no bound"""
    solver: str = "dpm_solver_2m"
    """ODE solver, if `sample` is given no other one"""
    solver_steps: int = 50
    """solver steps per sample: more are slower and more exact"""
    spacing: str = "log_snr"
    """times of the solver steps: uniform in time, uniform in log_snr, or karras"""

    def __post_init__(self) -> None:
        check_fields(self)
        check_guidance(self.guidance, self.guidance_options)


class Layout(NamedTuple):
    """What the data decide about the networks."""

    shape: tuple[int, ...]
    """of one sample: (D,), or of an image its channels, height and width"""
    condition_dim: int
    """C, 0 in unconditional models"""
    energies: int = 0
    """E; 0 for a single one, whose f is (B,)"""

    @property
    def dim(self) -> int:
        """D, of a sample as a vector."""
        return math.prod(self.shape)


class Factories(NamedTuple):
    """What makes a model's networks."""

    network: Callable[[], nn.Module]
    """of a data model: (B, D), (B,), (B, C) to (B, D)"""
    energy_network: Callable[[], nn.Module]
    """of f: (B, D), (B,), (B, C) to (B,), or (B, E) of several energies"""
    clean_energy: Callable[[], nn.Module]
    """of E that came as labels: (..., D + C) to (..., max(1, E))"""
    components: int = 0
    """of the Gaussian mixtures that the networks of cep and weighted correct"""
    steps: Mapping[str, int] = STEPS
    """gradient steps of the stages unless the configuration says another number"""


def is_simple(layout: Layout) -> bool:
    """Whether data are so few numbers that mixtures and posteriors say most of them."""
    return not layout.condition_dim and layout.dim <= SIMPLE_DIM


def layout_of(header: dict[str, Any]) -> Layout:
    """The layout that a file states; the first files had neither shape nor several energies."""
    dim, condition_dim = header["dims"]
    shape, energies = header.get("shape", [dim]), header.get("energies", 0)
    if any(type(n) is not int or n < 0 for n in (dim, condition_dim, energies, *shape)):
        raise ValueError(f"dims={header['dims']}, {shape=} or {energies=} is none")
    layout = Layout(tuple(shape), condition_dim, energies)
    if layout.dim != dim:
        raise ValueError(f"{shape=} has not {dim} numbers")
    return layout
