"""Coordinates of the networks: standardised observations and whitened actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qgpo.diffusion import Metrics
from qgpo.networks import GaussianPolicy
from qgpo.policies import imitation_loss

ROWS_PER_CHUNK = 8192
"""rows in float64 at a time"""

CONSTANT = 1e-6
"""a column whose standard deviation is below this part of the largest column's is constant"""
Numbers = TypeVar("Numbers", NDArray[np.float32], Tensor)


def scaled(actions: Numbers, low: Numbers, high: Numbers) -> Numbers:
    """Actions (..., A) as numbers in [-1, 1]."""
    return (2.0 * (actions - low) / (high - low) - 1.0).clip(-1.0, 1.0)  # type: ignore[return-value]


def smallest_spread(mean: Tensor, std: Tensor) -> Tensor:
    """Where columns of these means and standard deviations (D,) begin to vary, (D,).

    At 1e-6 where the largest deviation is at least 1, and in proportion to it below, because
    data may be in a small unit; in any case above what float32 rounds values of that mean by.
    """
    float32 = torch.finfo(torch.float32)
    largest = std.max().clamp(max=1.0)
    rounding = (mean.abs() * float32.eps).clamp(max=CONSTANT)
    return torch.maximum(rounding, CONSTANT * largest).clamp(min=float32.tiny)


class ObservationNormalizer(nn.Module):
    """(s - mean) / std with the dataset's moments; the identity before `fit`."""

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def fit(self, observations: Tensor) -> None:
        """Take mean and standard deviation of (N, S); constant dimensions keep std 1.

        Constant means below `smallest_spread`.
        """
        chunks = observations.split(ROWS_PER_CHUNK)
        n = len(observations)
        mean = sum(chunk.double().sum(dim=0) for chunk in chunks) / n
        std = (sum(((c.double() - mean) ** 2).sum(dim=0) for c in chunks) / n) ** 0.5
        mean, std = torch.as_tensor(mean), torch.as_tensor(std)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > smallest_spread(mean, std), std, 1.0))

    def forward(self, observations: Tensor) -> Tensor:
        """(..., S) to (..., S)."""
        return (observations - self.mean) / self.std


class Whitening(nn.Module):
    """z = (a - m(s)) / d(s): actions as standardised residuals of a Gaussian policy N(m, d^2).

    The map is affine and invertible for every state, so sampling mu(a|s) exp(beta Q) in z is
    sampling it in a. Diffusion and guidance run in z, where the behavior is close to N(0, I)
    whatever its scale. An untrained diffusion model of z already is the Gaussian policy; training
    adds what is not Gaussian. Ours, not the paper's.
    """

    min_std = 0.02

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.policy = GaussianPolicy(observation_dim, action_dim, hidden, state_dependent_std=True)

    def moments(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the action, each (..., A)."""
        mean, std = self.policy.moments(observations)
        return mean, std.clamp(min=self.min_std)

    def encode(self, observations: Tensor, actions: Tensor) -> Tensor:
        """From actions to z."""
        mean, std = self.moments(observations)
        return (actions - mean) / std

    def decode(self, observations: Tensor, z: Tensor) -> Tensor:
        """From z to actions."""
        mean, std = self.moments(observations)
        return mean + std * z

    def loss(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Metrics]:
        """`imitation_loss` of the Gaussian policy on the dataset's actions."""
        return imitation_loss(self.policy, observations, actions)


class Identity(nn.Module):
    """No whitening: diffusion runs on the actions themselves, as in the paper."""

    def encode(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The actions."""
        return actions

    def decode(self, observations: Tensor, z: Tensor) -> Tensor:
        """The actions."""
        return z
