"""QIPO: Q-weighted iterative policy optimisation (Zhang et al. 2025, arXiv 2503.04975).

1. behavior   a diffusion or flow model of mu(a|s)
2. support    M actions from it for every observation
3. critic     in-support softmax Q-learning over those actions
4. policy     the same kind of model, trained on the support with weights softmax(beta Q): it
              becomes mu exp(beta Q) itself. Every `renew_every` steps the support is drawn anew
              from the policy, so that after l renewals it follows mu exp((l + 1) beta Q)
act           sample the policy; there is no guidance and no gradient

On a variance preserving schedule this is energy-weighted diffusion, on the straight path (the
presets with `-flow`) energy-weighted flow matching.
"""

from __future__ import annotations

import copy
import math
from typing import ClassVar

import torch
from torch import Tensor

from qgpo.agents.core.batches import Batches, average, take
from qgpo.agents.guided.adoption import kept_states
from qgpo.agents.guided.config import QIPO_PRESETS, QIPOConfig
from qgpo.agents.guided.policy import GuidedPolicy, InverseTemperature
from qgpo.diffusion import Diffusion, GuidanceGradient, Metrics
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.guidance import Weighted, weighted_loss


class QIPO(GuidedPolicy[QIPOConfig]):
    """Diffusion or flow policy by weighted regression, learned from a dataset alone.

        agent = QIPO("laptop-flow", seed=0).learn(dataset)

    `guidance_scale` 1 acts by the policy, 0 by the behavior; in between and beyond both models
    are evaluated, and their difference is scaled.
    """

    name: ClassVar[str] = "QIPO"
    config_class: ClassVar[type[QIPOConfig]] = QIPOConfig
    presets: ClassVar[dict[str, QIPOConfig]] = QIPO_PRESETS
    stages: ClassVar[tuple[str, ...]] = ("whitening", "behavior", "support", "critic", "policy")

    policy: Diffusion
    policy_ema: Diffusion
    source: Diffusion

    def _build_last(self, observation_dim: int, action_dim: int) -> None:
        self.policy = copy.deepcopy(self.behavior)
        self.policy_ema = copy.deepcopy(self.behavior_ema)
        self.source = copy.deepcopy(self.behavior_ema)
        self.temperature = InverseTemperature(self.config.beta)
        self.weighted = Weighted(self.policy_ema, self.behavior_ema.denoise)
        self.networks.update(
            {
                "policy": self.policy,
                "policy_ema": self.policy_ema,
                "source": self.source,
                "temperature": self.temperature,
            }
        )

    def _support_source(self) -> Diffusion:
        """The behavior; after a renewal the policy as it was then."""
        return self.source if self.progress["policy"] else self.behavior_ema

    @property
    def last_steps(self) -> int:
        """Steps of the policy stage."""
        return self.config.policy_steps

    @property
    def total_timesteps(self) -> int:
        """Gradient steps of a whole training."""
        return self.shared_timesteps + self.config.policy_steps

    # Training: the paper's order ----------------------------------------------------------

    def _train(self, dataset: OfflineDataset) -> None:
        if not self.is_trained:
            self.train_behavior(dataset)
            self.generate_support(dataset)
            self.train_critic(dataset)
            self.train_policy(dataset)
        self.tables = kept_states(self)

    def train_policy(self, dataset: OfflineDataset) -> None:
        """Stage 4: weighted regression on the support, which is renewed as it goes."""
        data = self._prepare(dataset)
        self._needs("support", "generate_support")
        c = self.config
        if self.progress["policy"] == 0:
            for model in (self.policy, self.policy_ema, self.source):
                model.load_state_dict(self.behavior_ema.state_dict())
        q = self._table_of_q(data)
        if self.progress["policy"] == 0:
            self.temperature.beta.copy_(c.beta / self._q_scale(q))
        iterates = self.most_renewals + 1
        energies = self._scaled_energies(q, self.temperature.beta, iterates)

        def update(step: int) -> Metrics:
            nonlocal energies
            if step % c.renew_every == 0 and 0 < step // c.renew_every <= self.most_renewals:
                energies = self._renew_support(data)
            rows = take(data.state_index, self._draw(len(data), c.policy_batch_size))
            condition = self.normalizer(data.observations(rows))
            support = take(self.tables["support"], rows)
            loss, metrics = weighted_loss(
                self.policy, support, take(energies, rows), condition, "sample", self.generator
            )
            rate = self._rate(c.policy_learning_rate, step, c.policy_steps)
            metrics["grad_norm"] = self._optimize("policy", loss, rate)
            renewals = min(step // c.renew_every, self.most_renewals)
            metrics["effective_beta"] = torch.tensor((renewals + 1) * c.beta, device=self.device)
            average(self.policy, self.policy_ema, c.ema_decay, step)
            return metrics

        self._run_stage("policy", c.policy_steps, update)

    @property
    def most_renewals(self) -> int:
        """Renewals after which another would leave `largest_beta` (or training has ended)."""
        c = self.config
        within_beta = math.floor(c.largest_beta / max(c.beta, 1e-9) + 1e-9) - 1
        return max(0, min(within_beta, (c.policy_steps - 1) // c.renew_every))

    def _renew_support(self, data: Batches) -> Tensor:
        """Draw the support from today's policy; beta Q of the new actions, (R, M).

        After Ctrl-C the renewal is made anew by whoever goes on: nothing else has used it.
        """
        now = self.generator.get_state()
        self.source.load_state_dict(self.policy_ema.state_dict())
        self.tables["generator/support"] = now
        for chunk in range(self.progress["support"]):
            self._draw_support(data, chunk)
            if self._interrupted:
                self.generator.set_state(now)
                self._stop_if_interrupted("while the support was being renewed")
        q = self._table_of_q(data)
        return self._scaled_energies(q, self.temperature.beta, self.most_renewals + 1)

    # Acting -------------------------------------------------------------------------------

    def _guided(self, scale: float, condition: Tensor) -> tuple[Diffusion, GuidanceGradient | None]:
        if scale == 1.0:
            return self.policy_ema, None
        return self.behavior_ema, self.weighted.gradient
