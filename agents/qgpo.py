"""Q-guided policy optimisation (Lu et al. 2023, arXiv 2304.12824).

1. behavior   a diffusion model of mu(a|s), by denoising
2. support    M actions from it for every observation
3. critic     in-support softmax Q-learning over those actions
4. energy     f_t by contrastive energy prediction on the same actions
act           solve the reverse ODE with the score of mu plus the gradient of w f_t,
              so that actions follow mu(a|s) exp(beta Q(s, a)) at w = 1

Stages 1 and 2 are in `guided_policy.py`, 3 in `support_critic.py`. `guidance` names another answer
than contrastive energy prediction to what f_t is (`qgpo.guidance`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from qgpo.agents.core.batches import Batches, take
from qgpo.agents.guided.adoption import kept_states
from qgpo.agents.guided.config import PRESETS, QGPOConfig
from qgpo.agents.guided.policy import GuidedPolicy, InverseTemperature
from qgpo.density import REFERENCES, STATES_FOR_MEDIAN, Trust
from qgpo.diffusion import Diffusion, GuidanceGradient, Metrics
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.guidance import GUIDANCES, AnalyticOptions, Guidance, GuidanceParts, make_guidance
from qgpo.networks import EnergyNetwork

STATES_TO_PREPARE = 512
"""states whose support actions a guidance sees that tabulates posterior variances"""


class QGPO(GuidedPolicy[QGPOConfig]):
    """Diffusion policy with exact energy guidance, learned from a dataset alone.

        agent = QGPO("laptop", seed=0).learn(load_dataset("qgpo/halfcheetah/mixed-v0"))
        action, _ = agent.predict(observation)

    `guidance` is short for that field of the configuration. `guidance_scale` may be set at any
    time, `solver` and `solver_steps` once the agent has seen data.

    `env` is an environment for callbacks that want one (learning uses none), `device` a torch
    device or auto, `verbose` 1 prints metrics, `tensorboard_log` is a folder for their curves.
    """

    name: ClassVar[str] = "QGPO"
    config_class: ClassVar[type[QGPOConfig]] = QGPOConfig
    presets: ClassVar[dict[str, QGPOConfig]] = PRESETS
    younger_fields: ClassVar[frozenset[str]] = GuidedPolicy.younger_fields.union(
        {
            "analytic_covariance",
            "analytic_damped",
            "analytic_gradient",
            "analytic_order",
            "critic_activation",
            "critic_baseline",
            "critic_value",
            "deterministic_action",
            "expectile",
            "guidance",
            "guidance_bound",
            "tilt_limit",
            "trust_power",
        }
    )
    stages: ClassVar[tuple[str, ...]] = ("whitening", "behavior", "support", "critic", "energy")

    energy: Guidance
    trust: Trust

    def __init__(
        self,
        config: QGPOConfig | str = "laptop",
        env: gym.Env[Any, Any] | VecEnv | str | None = None,
        *,
        guidance: str | None = None,
        seed: int = 0,
        device: torch.device | str = "auto",
        verbose: int = 0,
        tensorboard_log: str | None = None,
    ) -> None:
        if guidance is not None:
            config = replace(self.choose_config(config), guidance=guidance)
        super().__init__(
            config, env, seed=seed, device=device, verbose=verbose, tensorboard_log=tensorboard_log
        )

    def _build_last(self, observation_dim: int, action_dim: int) -> None:
        c = self.config
        self.temperature = InverseTemperature(c.beta)

        def make_energy_network() -> EnergyNetwork:
            return EnergyNetwork(action_dim, observation_dim, c.energy_hidden, c.energy_time_scale)

        parts = GuidanceParts(
            dim=action_dim,
            schedule=self.behavior_ema.schedule,
            denoise=self.behavior_ema.denoise,
            make_energy_network=make_energy_network,
            make_diffusion=lambda: self._make_diffusion(observation_dim, action_dim),
            energy=self._scaled_energy,
            preconditioned=c.energy_preconditioned,
            analytic=AnalyticOptions(
                order=c.analytic_order,
                covariance=c.analytic_covariance,
                gradient=c.analytic_gradient,
                damped=c.analytic_damped,
            ),
        )
        self.energy = make_guidance(c.guidance, parts)
        self.networks["energy"] = self.energy
        if self.energy.needs_energy:
            self.networks["temperature"] = self.temperature
        if c.trust_power:
            self.trust = Trust(observation_dim, c.trust_power)
            self.networks["trust"] = self.trust

    def _scaled_energy(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """f_0 = beta Q(s, a) at the nearest action inside the bounds, (B, A), (B, S) to (B,)."""
        assert condition is not None
        actions = self.whitening.decode(condition, z).clamp(-1.0, 1.0)
        q: Tensor = self.critic_target(condition, self.whitening.encode(condition, actions))
        return self.temperature.beta * q

    @property
    def last_steps(self) -> int:
        """Steps of the energy stage; a guidance without a network has one, to look at it."""
        return self.config.energy_steps if self._trains_energy else 1

    @property
    def total_timesteps(self) -> int:
        """Gradient steps of a whole training."""
        return self.shared_timesteps + (self.config.energy_steps if self._trains_energy else 0)

    @property
    def _trains_energy(self) -> bool:
        return GUIDANCES[self.config.guidance].trainable

    # Training: the paper's order ----------------------------------------------------------

    def _train(self, dataset: OfflineDataset) -> None:
        if not self.is_trained:
            self.train_behavior(dataset)
            self.generate_support(dataset)
            self.train_critic(dataset)
            self.train_energy(dataset)
        self.tables = kept_states(self)

    def train_energy(self, dataset: OfflineDataset) -> None:
        """Stage 4: f_t over each state's support actions, by contrast or as `guidance` says."""
        data = self._prepare(dataset)
        self._needs("support", "generate_support")
        c, energy = self.config, self.energy
        q = self._table_of_q(data)
        self.temperature.beta.copy_(self._inverse_temperature(q))
        self._fit_trust(data)
        energies = self._scaled_energies(q, self.temperature.beta)
        self._prepare_guidance(data, energies)

        def update(step: int) -> Metrics:
            rows = take(data.state_index, self._draw(len(data), c.energy_batch_size))
            condition = self.normalizer(data.observations(rows))
            support = take(self.tables["support"], rows)
            if not energy.trainable:
                return energy.metrics(support, condition, self.generator)
            loss, metrics = energy.loss(support, take(energies, rows), condition, self.generator)
            rate = self._rate(c.energy_learning_rate, step, c.energy_steps)
            metrics["grad_norm"] = self._optimize("energy", loss, rate)
            return metrics

        self._run_stage("energy", self.last_steps, update, gradient_steps=energy.trainable)

    def _inverse_temperature(self, q: Tensor) -> Tensor:
        """The factor on Q; `tilt_limit` lowers it here where it is the same in all states."""
        c = self.config
        beta = c.beta / self._q_scale(q)
        if self.energy.needs_energy and c.tilt_limit is not None:
            beta = torch.minimum(beta, c.tilt_limit / q.std(dim=-1).mean().clamp(min=1e-9))
        return beta

    def _fit_trust(self, data: Batches) -> None:
        if not self.config.trust_power:
            return
        rows = self._random_rows(data)
        kept = rows[torch.arange(REFERENCES, device=self.device) % len(rows)]
        others = rows[-STATES_FOR_MEDIAN:]
        episodes = data.episodes()
        self.trust.fit(
            self.normalizer(data.observations(kept)),
            self.normalizer(data.observations(others)),
            episodes[others][:, None] == episodes[kept],
        )

    def _prepare_guidance(self, data: Batches, energies: Tensor) -> None:
        """Constants of the guidance, from the whole table.

        A guidance that tabulates posterior variances sees a few random states, always the same.
        """
        generator = torch.Generator(self.device)
        generator.manual_seed(self.seed)
        if not self.energy.needs_energy:
            everything = self.tables["support"].flatten(0, 1), energies.flatten()
            self.energy.prepare(*everything, None, generator)
            return
        n = min(STATES_TO_PREPARE, len(energies))
        rows = torch.randperm(len(energies), generator=generator, device=self.device)[:n]
        support = take(self.tables["support"], rows)
        condition = self.normalizer(data.observations(rows))[:, None]
        self.energy.prepare(
            support.flatten(0, 1),
            take(energies, rows).flatten(),
            condition.expand(-1, support.shape[1], -1).flatten(0, 1),
            generator,
        )

    # Acting -------------------------------------------------------------------------------

    def _guided(self, scale: float, condition: Tensor) -> tuple[Diffusion, GuidanceGradient]:
        """The behavior and the gradient of f_t, less of it where the data do not bear Q out."""
        if not self.config.trust_power or scale == 0.0:
            return self.behavior_ema, self.energy.gradient
        trust: Tensor = self.trust(condition)[:, None]

        def gradient(x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
            full: Tensor = self.energy.gradient(x_t, t, condition)
            return trust * full

        return self.behavior_ema, gradient
