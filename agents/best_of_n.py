"""Best of N: the behavior's action with the largest Q among N of them.

1. behavior   a diffusion model of mu(a|s), by denoising
2. support    M actions from it for every observation
3. critic     Q, as in QGPO
4. choice     nothing to do but to measure
act           draw N actions of mu, take the one with the largest Q

The way in which IDQL (Hansen-Estruch et al. 2023, arXiv 2304.10573) and many others act, here on
the behavior and critic of a QGPO agent (`adopt`); `IFQL` has a critic of its own. N is the only
strength: KL(pi || mu) is at most log N - (N - 1) / N (Beirami et al. 2024, arXiv 2401.01879),
whatever the unit of Q. SIR at a very large beta is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from qgpo.agents.core.acting import Normal
from qgpo.agents.guided.candidates import Candidates, CandidatesConfig, gain
from qgpo.agents.guided.config import LAPTOP, LAPTOP_SUPPORT
from qgpo.diffusion import Metrics


@dataclass(frozen=True)
class BestOfNConfig(CandidatesConfig):
    """Hyperparameters of BestOfN: N beside the family's; `beta` and its limits have no use."""


class BestOfN(Candidates[BestOfNConfig]):
    """Takes the best by Q of `num_samples` actions of the behavior.

        agent = QGPO("laptop", seed=0).learn(dataset)
        best = BestOfN("laptop", seed=0).adopt(agent, dataset)
        best.learn(dataset, reset_num_timesteps=False)

    `num_samples` may be set at any time (files have the configuration's). `guidance_scale` 0 is
    the behavior, any positive one the best of N.
    """

    name: ClassVar[str] = "BestOfN"
    config_class: ClassVar[type[BestOfNConfig]] = BestOfNConfig
    presets: ClassVar[dict[str, BestOfNConfig]] = {
        "paper": BestOfNConfig(),
        "laptop": BestOfNConfig(**LAPTOP),
        "laptop-support": BestOfNConfig(**LAPTOP_SUPPORT),
    }

    @property
    def tries_scales(self) -> bool:
        """All positive scales act alike."""
        return False

    def _measure(self, q: Tensor) -> Metrics:
        """What the best of M support actions gains over their mean."""
        best = nn.functional.one_hot(q.argmax(dim=-1), q.shape[-1])
        return {"gain": gain(q, best)}

    def _choose(
        self,
        z: Tensor,
        q: Tensor,
        condition: Tensor,
        deterministic: bool,
        normal: Normal,
    ) -> Tensor:
        best = q.argmax(dim=-1)[:, None, None]
        return torch.take_along_dim(z, best, dim=1).squeeze(1)
