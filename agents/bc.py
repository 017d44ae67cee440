"""Behavior cloning: regress the dataset's actions on its observations.

The oldest method there is (Pomerleau 1989, ALVINN), here with the network, optimizer and length
that TD3+BC (Fujimoto & Gu 2021, arXiv 2106.06860) and its BC baseline share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from qgpo.agents.core.single_stage import SingleStageAgent, SingleStageConfig, Transitions
from qgpo.diffusion import Metrics
from qgpo.networks import GaussianPolicy
from qgpo.policies import imitation_loss


@dataclass(frozen=True)
class BCConfig(SingleStageConfig):
    """Hyperparameters of BC; the defaults are the `paper` preset."""


BC_PRESETS: dict[str, BCConfig] = {
    "paper": BCConfig(),
    "laptop": BCConfig(
        steps=20_000,
        learning_rate=1e-3,
        learning_rate_decay=True,
        normalize_observations=True,
    ),
}


class BC(SingleStageAgent[BCConfig]):
    """A Gaussian policy that imitates the dataset: the yardstick that every agent must beat.

    The mean, which acts when `deterministic`, is learned by squared error alone; the spread, by
    likelihood around it, makes sampled actions vary as the dataset's do.
    """

    name: ClassVar[str] = "BC"
    config_class: ClassVar[type[BCConfig]] = BCConfig
    presets: ClassVar[dict[str, BCConfig]] = BC_PRESETS

    def _build(self, observation_dim: int, action_dim: int) -> None:
        self._add_normalizer(observation_dim)
        policy = GaussianPolicy(
            observation_dim, action_dim, self.config.hidden, state_dependent_std=True
        )
        self.actor = self.training.add_trained("policy", policy)

    def update(self, batch: Transitions, step: int) -> Metrics:
        """One regression step."""
        loss, metrics = imitation_loss(self.actor, batch.observations, batch.actions)
        metrics["grad_norm"] = self.training.optimize("policy", loss, self._policy_rate(step))
        return metrics

    def act(self, observations: Tensor, deterministic: bool) -> Tensor:
        """The Gaussian's mean, or a sample of it."""
        return self._gaussian_action(self.actor, observations, deterministic)
