"""Agents whose networks all learn together: one stage, one update per batch of transitions."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.core.batches import Batches, tuned_rewards
from qgpo.agents.core.batches import Transitions as Transitions  # subclasses take it from here
from qgpo.agents.core.config import Fraction, Rate, RewardTuning, Steps
from qgpo.agents.core.training import half_cosine
from qgpo.diffusion import Metrics
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.fields import check_fields
from qgpo.networks import GaussianPolicy
from qgpo.normalization import ObservationNormalizer


@dataclass(frozen=True)
class SingleStageConfig:
    """Fields of every agent of one stage; a subclass changes a default where its paper does."""

    steps: Steps = 1_000_000
    """gradient steps, each on one batch"""
    batch_size: int = 256
    """transitions per gradient step"""
    learning_rate: float = 3e-4
    """Adam step size of every network"""
    learning_rate_decay: bool = False
    """lower the policy's learning rate to zero along half a cosine"""
    hidden: tuple[int, ...] = (256, 256)
    """hidden layer sizes of every network"""
    normalize_observations: bool = False
    """standardise observations with the dataset's mean and standard deviation"""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class CriticConfig(SingleStageConfig):
    """Fields of those with a critic."""

    gamma: Fraction = 0.99
    """discount factor; larger values weight later rewards more"""
    tau: Rate = 0.005
    """Polyak rate of the target networks; larger values make them follow faster"""
    reward_tuning: RewardTuning = "none"
    """scaling of rewards for the critic: none, locomotion, antmaze, or unit (discounted returns
    have unit standard deviation)"""


ConfigT = TypeVar("ConfigT", bound=SingleStageConfig)


class SingleStageAgent(OfflineAgent[ConfigT]):
    """Calls `update` on `steps` batches of transitions drawn uniformly with replacement."""

    stages: ClassVar[tuple[str, ...]] = ("training",)
    uses_next_actions: ClassVar[bool] = False
    """whether batches have `following`; what is not used is not read"""

    @abstractmethod
    def update(self, batch: Transitions, step: int) -> Metrics:
        """Every network's part in one step of the paper's algorithm."""

    @property
    def total_timesteps(self) -> int:
        """Updates of a whole training."""
        return self.config.steps

    @property
    def gamma(self) -> float | None:
        """The discount; None without a critic."""
        return self.config.gamma if isinstance(self.config, CriticConfig) else None

    def _train(self, dataset: OfflineDataset) -> None:
        data = self.prepare(dataset)

        def update(step: int) -> Metrics:
            index = self.training.draw(len(data), self.config.batch_size)
            batch = data.transitions(index)
            if self.uses_next_actions:
                batch = batch._replace(following=data.next_actions(index))
            normalised = batch._replace(
                observations=self.normalizer(batch.observations),
                next_observations=self.normalizer(batch.next_observations),
            )
            return self.update(normalised, step)

        self.training.run_stage("training", self.config.steps, update)

    def _on_new_data(self, dataset: OfflineDataset, batches: Batches) -> None:
        c = self.config
        if c.normalize_observations and self.num_timesteps == 0:
            self.normalizer.fit(batches.states)
        if isinstance(c, CriticConfig):
            batches.rewards = tuned_rewards(dataset, batches, c.reward_tuning, c.gamma)

    # Parts of a subclass's methods ----------------------------------------------------------

    def _add_normalizer(self, observation_dim: int) -> None:
        self.normalizer = self.training.add("normalizer", ObservationNormalizer(observation_dim))

    def _policy_rate(self, step: int) -> float:
        c = self.config
        return half_cosine(c.learning_rate, step, c.steps, c.learning_rate_decay)

    @torch.no_grad()
    def _gaussian_action(
        self, policy: GaussianPolicy, observations: Tensor, deterministic: bool
    ) -> Tensor:
        """The policy's mean or a sample, (B, S) to (B, A) in [-1, 1]."""
        mean, std = policy.moments(self.normalizer(observations))
        if not deterministic:
            mean = mean + std * self._prediction_normal(*mean.shape)
        return mean.clamp(-1.0, 1.0)
