"""QIPO: Q-weighted iterative policy optimisation (Zhang et al. 2025, arXiv 2503.04975).

1. behavior   a diffusion or flow model of mu(a|s)
2. support    M actions from it for every observation
3. critic     in-support softmax Q-learning over those actions
4. policy     the same kind of model, trained on the support with weights softmax(beta Q): it
              becomes mu exp(beta Q) itself. Every `renew_every` steps the support is drawn again
              from the policy, so that after l renewals it follows mu exp((l + 1) beta Q)
act           sample the policy; there is no guidance and no gradient

On a variance preserving schedule this is energy-weighted diffusion, on the straight path (the
presets with `-flow`) energy-weighted flow matching.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from qgpo.agents.core.batches import Batches, take
from qgpo.agents.core.config import Period, Steps
from qgpo.agents.core.training import average
from qgpo.agents.guided.config import LAPTOP, LAPTOP_SUPPORT, GuidedPolicyConfig
from qgpo.agents.guided.policy import GuidedPolicy, InverseTemperature
from qgpo.diffusion import Diffusion, GuidanceGradient, Metrics, is_known
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.fields import Range
from qgpo.guidance import weighted_gradient, weighted_loss


@dataclass(frozen=True)
class QIPOConfig(GuidedPolicyConfig):
    """Hyperparameters of QIPO; the defaults are those of published code (the `paper` preset)."""

    support_actions: Annotated[int, Range(2, 1_000_000)] = 64
    """M, number of weighted actions per observation: more are slower, and represent the policy
    better"""
    policy_steps: Steps = 98_000
    """gradient steps of the policy stage"""
    policy_batch_size: int = 256
    """states per policy step, each with all its support actions"""
    policy_learning_rate: float = 3e-4
    """Adam step size of the policy stage"""
    renew_every: Period = 10_000
    """policy steps between two renewals of the support with actions of the policy"""
    largest_beta: float = 30.0
    """limit of the effective beta, which is (l + 1) beta after the l-th renewal; renewals stop
    before they exceed it"""


LAPTOP_POLICY: dict[str, Any] = {
    "policy_steps": 3_000,
    "policy_batch_size": 128,
    "policy_learning_rate": 1e-3,
    "renew_every": 1_500,
    "beta": 5.0,
}
FLOW: dict[str, Any] = {"schedule": "ot", "prediction": "flow"}

QIPO_PRESETS: dict[str, QIPOConfig] = {
    "paper": QIPOConfig(),
    "paper-flow": QIPOConfig(**FLOW),
    "laptop": QIPOConfig(**{**LAPTOP, **LAPTOP_POLICY}),
    "laptop-flow": QIPOConfig(**{**LAPTOP, **LAPTOP_POLICY, **FLOW}),
    "laptop-support": QIPOConfig(**{**LAPTOP_SUPPORT, **LAPTOP_POLICY}),
    "laptop-flow-support": QIPOConfig(**{**LAPTOP_SUPPORT, **LAPTOP_POLICY, **FLOW}),
}


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
    learns_online: ClassVar[bool] = False

    def _build_last(self) -> None:
        behavior, training = self.behavior, self.training
        self.actor = training.add_trained("policy", copy.deepcopy(behavior.model))
        self.policy_ema = training.add_copy("policy_ema", behavior.average)
        self.source = training.add_copy("source", behavior.average)
        self.temperature = training.add("temperature", InverseTemperature(self.config.beta))

    def _support_source(self) -> Diffusion:
        """The behavior; after a renewal the policy as it was then."""
        return self.source if self.progress["policy"] else self.behavior.average

    @property
    def last_timesteps(self) -> int:
        """Gradient steps of the policy stage."""
        return self.config.policy_steps

    # Training: the paper's order ----------------------------------------------------------

    def _train_last(self, dataset: OfflineDataset) -> None:
        self.train_policy(dataset)

    def train_policy(self, dataset: OfflineDataset) -> None:
        """Stage 5: weighted regression on the support, which is renewed as it goes."""
        data = self._with_support(dataset)
        c, training = self.config, self.training
        q = self.critic.table_of_q(data)
        if self.progress["policy"] == 0:
            for model in (self.actor, self.policy_ema, self.source):
                model.load_state_dict(self.behavior.average.state_dict())
            self.temperature.beta.copy_(c.beta / self.critic.scale(q))
        energies = self._energies(q)

        def loss(step: int) -> tuple[Tensor, Metrics]:
            nonlocal energies
            if step % c.renew_every == 0 and 0 < step // c.renew_every <= self.most_renewals:
                energies = self._regenerate_support(data)
            rows = take(data.state_index, training.draw(len(data), c.policy_batch_size))
            condition = self.behavior.condition(data, rows)
            support = take(self.tables["support"], rows)
            value, metrics = weighted_loss(
                self.actor, support, take(energies, rows), condition, "sample", training.generator
            )
            renewals = min(step // c.renew_every, self.most_renewals)
            metrics["effective_beta"] = torch.tensor((renewals + 1) * c.beta, device=self.device)
            return value, metrics

        after = partial(average, self.actor, self.policy_ema, c.ema_decay)
        rate, decays = c.policy_learning_rate, c.learning_rate_decay
        training.minimize("policy", c.policy_steps, loss, rate, decays, after)

    @property
    def most_renewals(self) -> int:
        """Renewals after which another would leave `largest_beta` (or training has ended)."""
        c = self.config
        within_beta = math.floor(c.largest_beta / max(c.beta, 1e-9) + 1e-9) - 1
        return max(0, min(within_beta, (c.policy_steps - 1) // c.renew_every))

    def _regenerate_support(self, data: Batches) -> Tensor:
        """Draw the support from today's policy; beta Q of the new actions, (R, M)."""
        self.source.load_state_dict(self.policy_ema.state_dict())
        self.support.regenerate(data)
        return self._energies(self.critic.table_of_q(data))

    def _energies(self, q: Tensor) -> Tensor:
        return self.critic.scaled_energies(q, self.temperature.beta, self.most_renewals + 1)

    # Acting -------------------------------------------------------------------------------

    def _guided(
        self, scale: float | Tensor, condition: Tensor
    ) -> tuple[Diffusion, GuidanceGradient | None]:
        behavior = self.behavior.average
        if not self.critic.ranks:  # the policy would differ from the behavior by chance alone
            return behavior, None
        if is_known(scale, 1.0):
            return self.policy_ema, None
        return behavior, partial(weighted_gradient, self.policy_ema, behavior.denoise)

    def _bound(self, scale: float | Tensor) -> float | Tensor | None:
        """None at scale 1, where there is no guidance that it would bound."""
        bound = super()._bound(scale)
        if bound is None or not isinstance(scale, Tensor):
            return bound
        return torch.where(scale == 1.0, torch.inf, bound)
