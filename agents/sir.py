"""SIR: sampling-importance-resampling of the behavior's actions (Rubin 1987, 1988).

1. behavior   a diffusion model of mu(a|s), by denoising
2. support    M actions from it for every observation
3. critic     Q, as in QGPO
4. choice     beta in the unit of Q, and the states in which the critic is trusted
act           draw N actions of mu, take one with probability softmax(w beta Q(s, a_i))

Self-normalised importance sampling of mu(a|s) exp(w beta Q(s, a)), what QGPO's exact guidance
samples at w = 1: the distribution of the action tends to it as N grows beyond about
exp(KL(pi || mu)) (Chatterjee & Diaconis 2018, arXiv 1511.01437), because some of N actions of mu
must be as good as those of pi. QGPO needs no such luck but an f_t. Stages, beta, `q_unit`,
`tilt_limit` and `trust_power` are QGPO's, so that both may have one behavior and critic (`adopt`).
Where QGPO takes a state's spread of Q from its M support actions, acting in new states takes it
from the N candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qgpo.agents.core.acting import Normal
from qgpo.agents.core.batches import Batches
from qgpo.agents.guided.candidates import Candidates, CandidatesConfig, gain
from qgpo.agents.guided.config import LAPTOP, LAPTOP_SUPPORT, TrustPower
from qgpo.agents.guided.policy import SAMPLES_OF_MODE, InverseTemperature
from qgpo.agents.qgpo import LAPTOP_TRUST
from qgpo.density import Trust, mode_of_samples
from qgpo.diffusion import Metrics
from qgpo.policies import gumbel


@dataclass(frozen=True)
class SIRConfig(CandidatesConfig):
    """Hyperparameters of SIR: QGPO's, with N in place of an energy stage."""

    trust_power: TrustPower = 0.0
    """lower the guidance scale in states where data are sparse, as in QGPO: larger values lower it
    more, 0 uses one scale in all states"""


class SIR(Candidates[SIRConfig]):
    """Draws among actions of the behavior with weights exp(w beta Q).

        agent = QGPO("laptop", seed=0).learn(dataset)
        sir = SIR("laptop", seed=0).adopt(agent, dataset)
        sir.learn(dataset, reset_num_timesteps=False)

    `guidance_scale` and `num_samples` may be set at any time (files have the configuration's).
    With `deterministic_action` mean, the deterministic action is the weighted mean of N candidates,
    which tends to the mean action of mu exp(w beta Q); with ode it is one of them, with mode the
    mean of 16 draws where they are densest. Their noise is that of the agent's seed.
    """

    name: ClassVar[str] = "SIR"
    config_class: ClassVar[type[SIRConfig]] = SIRConfig
    presets: ClassVar[dict[str, SIRConfig]] = {
        "paper": SIRConfig(),
        "laptop": SIRConfig(**{**LAPTOP, **LAPTOP_TRUST}),
        "laptop-support": SIRConfig(**{**LAPTOP_SUPPORT, **LAPTOP_TRUST}),
    }

    def _build_last(self) -> None:
        super()._build_last()
        c = self.config
        self.temperature = self.training.add("temperature", InverseTemperature(c.beta))
        self.trust: Trust | None = None
        if c.trust_power:
            trust = Trust(self.behavior.observation_dim, c.trust_power)
            self.trust = self.training.add("trust", trust)

    def _fit_choice(self, data: Batches, q: Tensor) -> None:
        """Bring beta to the unit of Q, (R, M); show the trust the states of the data."""
        self.temperature.beta.copy_(self.config.beta / self.critic.scale(q))
        if self.trust is not None:
            self.behavior.fit_trust(self.trust, data)

    def _energies(self, q: Tensor) -> Tensor:
        """Values beta Q up to a constant per state, within the limit of the tilt, (B, N)."""
        return self.critic.tilted(q, self.temperature.beta)

    def _measure(self, q: Tensor) -> Metrics:
        """Effective number of M support actions, and what their weights gain, at w = 1."""
        weights = torch.softmax(self._energies(q), dim=-1)
        effective = (1.0 / weights.square().sum(dim=-1)).mean()
        return {"effective_samples": effective, "gain": gain(q, weights)}

    def _choose(
        self,
        z: Tensor,
        q: Tensor,
        condition: Tensor,
        deterministic: bool,
        normal: Normal,
    ) -> Tensor:
        energies = self.guidance_scale * self._energies(q)
        if self.trust is not None:
            energies = self.trust(condition)[:, None] * energies
        kind = self.config.deterministic_action if deterministic else "sample"
        if kind == "mean":
            return torch.sum(torch.softmax(energies, dim=-1)[..., None] * z, dim=1)
        # the largest of energies + Gumbel noise is a draw from their softmax
        draws = SAMPLES_OF_MODE if kind == "mode" else 1
        noise = gumbel(normal(draws if deterministic else len(z), z.shape[1]))
        noise = noise if deterministic else noise[:, None]
        drawn = (energies[:, None] + noise).argmax(dim=-1)[..., None]
        return mode_of_samples(torch.take_along_dim(z, drawn, dim=1))
