"""AEPO: analytic energy instead of a contrast (arXiv 2505.01822).

1. behavior   a diffusion model of mu(a|s), by denoising
2. support    M actions from it for every observation
3. critic     in-support Q-learning over those actions
4. energy     the posterior mu(a_0 | a_t, s) as a Gaussian and Q as its Taylor series give f_t in
              closed form; a network is regressed on it (`guidance="aepo"`), or it is evaluated
              while acting (`guidance="analytic"`)
act           as QGPO

Everything but the closed form (`qgpo/guidance/analytic.py`) is QGPO's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qgpo.agents.guided.config import LAPTOP, LAPTOP_SUPPORT
from qgpo.agents.qgpo import LAPTOP_ENERGY, QGPO, QGPOConfig


@dataclass(frozen=True)
class AEPOConfig(QGPOConfig):
    """Hyperparameters of AEPO: QGPO's, with the analytic energy by default."""

    guidance: str = "aepo"
    """aepo (a network learns the analytic energy) or analytic (the analytic energy is evaluated
    while acting)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance not in ("aepo", "analytic"):
            raise ValueError(
                f"guidance={self.guidance!r}, expected one of ['aepo', 'analytic']; use QGPO "
                "for others"
            )


class AEPO(QGPO):
    """Diffusion policy guided by the analytic intermediate energy.

    agent = AEPO("laptop", seed=0).learn(dataset)

    Exact for a Gaussian behavior and a linear Q (order 1) or a quadratic one (order 2, which
    needs a smooth `critic_activation`); elsewhere cheaper and coarser than QGPO.
    """

    name: ClassVar[str] = "AEPO"
    config_class: ClassVar[type[QGPOConfig]] = AEPOConfig
    presets: ClassVar[dict[str, QGPOConfig]] = {
        "paper": AEPOConfig(),
        "laptop": AEPOConfig(**{**LAPTOP, **LAPTOP_ENERGY, "energy_steps": 1_000}),
        "laptop-support": AEPOConfig(**{**LAPTOP_SUPPORT, **LAPTOP_ENERGY, "energy_steps": 1_000}),
    }
