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

from typing import ClassVar

from qgpo.agents.guided.config import AEPO_PRESETS, AEPOConfig, QGPOConfig
from qgpo.agents.qgpo import QGPO


class AEPO(QGPO):
    """Diffusion policy guided by the analytic intermediate energy.

    agent = AEPO("laptop", seed=0).learn(dataset)

    Exact for a Gaussian behavior and a linear Q (order 1) or a quadratic one (order 2, which
    needs a smooth `critic_activation`); elsewhere cheaper and coarser than QGPO.
    """

    name: ClassVar[str] = "AEPO"
    config_class: ClassVar[type[QGPOConfig]] = AEPOConfig
    presets: ClassVar[dict[str, QGPOConfig]] = dict(AEPO_PRESETS)
