"""An ensemble of dynamics models, learned from the dataset; its disagreement bounds its use."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from qgpo.networks import mlp
from qgpo.normalization import CONSTANT, ObservationNormalizer, smallest_spread

MEMBERS = 4
HIDDEN = (256, 256, 256)
TERMINATION_WEIGHT = 0.1


class Prediction(NamedTuple):
    """Predictions of E members for B transitions."""

    next_states: Tensor
    """(E, B, S)"""
    rewards: Tensor
    """(E, B)"""
    terminations: Tensor
    """(E, B) logits"""
    disagreement: Tensor
    """(B,) norm of the members' standard deviation, in units of the data's one-step changes"""


class DynamicsEnsemble(nn.Module):
    """(s, a) to the change of s, the reward and the logit of a termination.

    The members have one architecture and differ in their initial weights and batches. Where their
    predictions disagree, the data do not determine the dynamics (Chua et al. 2018, arXiv
    1805.12114).
    """

    change: Tensor
    reward_mean: Tensor
    reward_std: Tensor

    def __init__(self, observation_dim: int, action_dim: int, members: int = MEMBERS) -> None:
        super().__init__()
        self.observations = ObservationNormalizer(observation_dim)
        self.register_buffer("change", torch.ones(observation_dim))
        self.register_buffer("reward_mean", torch.zeros(()))
        self.register_buffer("reward_std", torch.ones(()))
        sizes = (observation_dim + action_dim, *HIDDEN, observation_dim + 2)
        self.members = nn.ModuleList([mlp(sizes, "silu") for _ in range(members)])

    def fit_scales(self, states: Tensor, next_states: Tensor, rewards: Tensor) -> None:
        """Set the constants that standardise inputs and targets, from (N, S), (N, S), (N,)."""
        self.observations.fit(states)
        self.change.copy_(_spread((next_states - states).double()))
        self.reward_mean.copy_(rewards.mean())
        self.reward_std.copy_(_spread(rewards.double()[:, None]).squeeze())

    def _outputs(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Standardised changes (E, B, S) and rewards (E, B), and termination logits (E, B)."""
        x = torch.cat([self.observations(states), actions], dim=-1)
        x = x.expand(len(self.members), *x.shape[-2:])
        y = torch.stack([member(rows) for member, rows in zip(self.members, x, strict=True)])
        return y[..., :-2], y[..., -2], y[..., -1]

    def forward(self, states: Tensor, actions: Tensor) -> Prediction:
        """Predictions for states (B, S) and actions (B, A) in [-1, 1]."""
        changes, rewards, terminations = self._outputs(states, actions)
        return Prediction(
            states + changes * self.change,
            rewards * self.reward_std + self.reward_mean,
            terminations,
            changes.std(dim=0).norm(dim=-1),
        )

    def loss(
        self,
        states: Tensor,
        actions: Tensor,
        next_states: Tensor,
        rewards: Tensor,
        terminations: Tensor,
    ) -> Tensor:
        """Mean squared error plus cross entropy; a batch per member: (E, B, S), ..., (E, B)."""
        changes, standardised_rewards, logits = self._outputs(states, actions)
        error = torch.mean((changes - (next_states - states) / self.change) ** 2)
        reward_targets = (rewards - self.reward_mean) / self.reward_std
        error = error + torch.mean((standardised_rewards - reward_targets) ** 2)
        entropy = functional.binary_cross_entropy_with_logits(logits, terminations)
        return error + TERMINATION_WEIGHT * entropy


def _spread(rows: Tensor) -> Tensor:
    """Standard deviations of (N, D), (D,); those of constant columns are small."""
    mean, std = rows.mean(dim=0), rows.std(dim=0, correction=0)  # one row has one, too
    smallest = torch.where(std > 0.0, smallest_spread(mean, std), CONSTANT)
    return std.maximum(smallest)
