"""Acting like an SB3 algorithm: `predict`, for whoever maps observations to actions in [-1, 1]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from qgpo.envs.tasks.observations import ObservationAdapter


class Acting(ABC):
    """What acts in Box spaces; a subclass says how in `_act`."""

    name: ClassVar[str]
    device: torch.device
    prediction_generator: torch.Generator
    """noise of `predict`"""
    observation_space: spaces.Box | None
    action_space: spaces.Box | None
    adapter: ObservationAdapter | None
    """makes vectors of an environment's Dict observations"""

    @abstractmethod
    def _act(self, observations: Tensor, deterministic: bool) -> Tensor:
        """(B, S) to actions (B, A) in [-1, 1]."""

    def predict(
        self,
        observation: NDArray[Any] | dict[str, Any],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], tuple[NDArray[Any], ...] | None]:
        """Actions (A,) for an observation (S,), or (B, A) for (B, S), in the action space.

        An agent that learned from Dict observations takes the environment's Dicts, single or as
        arrays with a leading axis, as well as the vectors that its `adapter` makes of them.
        `state` is returned as given and `episode_start` ignored (no memory). `deterministic`
        makes the action a function of the observation alone; otherwise it is sampled.
        """
        if self.observation_space is None or self.action_space is None:
            raise RuntimeError(
                f"this {self.name} has not been trained: call learn(dataset), or load a file"
            )
        if isinstance(observation, tuple):
            raise ValueError(
                "predict() was given a tuple: `env.reset()` returns (observation, info), pass "
                "only the observation"
            )
        shape = self.observation_space.shape
        if isinstance(observation, Mapping) and self.adapter is not None:
            observation = self.adapter.flatten(observation)
        try:
            array = np.asarray(observation, dtype=np.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"observation is a {type(observation).__name__} that is no array of numbers "
                f"({error}); expected shape {shape} or (n, {shape[0]})"
            ) from error
        if array.ndim not in (1, 2) or array.shape[-1:] != shape:
            raise ValueError(
                f"observation has shape {array.shape}, expected {shape} or (n, {shape[0]})"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"observation has NaN or infinite values: {array}")
        batch = torch.as_tensor(np.atleast_2d(array), device=self.device)
        if len(batch) == 0:
            return np.zeros((0, *self.action_space.shape), dtype=np.float32), state
        actions = self._unscale_actions(self._act(batch, deterministic).cpu().numpy())
        return actions[0] if array.ndim == 1 else actions, state

    def seed_predictions(self, seed: int) -> None:
        """Seed the noise of `predict`; training is not touched."""
        self.prediction_generator.manual_seed(seed)

    def _unscale_actions(self, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """From [-1, 1] to the action space, never outside."""
        assert self.action_space is not None
        low, high = self.action_space.low, self.action_space.high
        unscaled = low + 0.5 * (actions + 1.0) * (high - low)
        return np.clip(unscaled, low, high).astype(np.float32)
