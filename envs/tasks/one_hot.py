"""Discrete actions as vectors: the way out where agents act in continuous spaces alone.

A choice among n becomes a vector of n numbers, 1 for what was chosen and 0 for the others. An agent
that learned from such vectors acts by the largest of its numbers.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

MOST_CHOICES = 256


def one_hot(actions: ArrayLike, choices: int | None = None) -> NDArray[np.float32]:
    """Whole numbers from 0, (N,) or (N, 1), as vectors (N, n) of 0 and 1.

    n is by default one more than the largest. Raises ValueError for other numbers.
    """
    array = np.asarray(actions)
    numbers = array.reshape(len(array), -1) if array.ndim else array[None, None]
    whole = array.dtype.kind in "biuf" and bool(np.isfinite(array.astype(np.float64)).all())
    if numbers.shape[1] != 1 or not whole or not np.array_equal(numbers, np.round(numbers)):
        raise ValueError(
            f"actions have shape {array.shape} and type {array.dtype}, expected whole numbers (N,)"
        )
    n = int(numbers.max()) + 1 if choices is None else choices
    if not 2 <= n <= MOST_CHOICES or numbers.min() < 0 or numbers.max() >= n:
        raise ValueError(
            f"actions from {numbers.min():g} to {numbers.max():g} of {n} choices, expected numbers "
            f"from 0 on, of 2 to {MOST_CHOICES} choices"
        )
    return np.eye(n, dtype=np.float32)[numbers[:, 0].astype(np.int64)]


class OneHotActions(gym.ActionWrapper[Any, Any, Any]):
    """An environment of n choices whose actions are n numbers in [0, 1]: the largest is chosen."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        if not isinstance(env.action_space, spaces.Discrete):
            raise ValueError(f"{env} has actions {env.action_space}, expected Discrete")
        self.first = int(env.action_space.start)
        self.action_space = spaces.Box(0.0, 1.0, (int(env.action_space.n),), np.float32)

    def action(self, action: NDArray[Any]) -> int:
        """The number of the choice."""
        return self.first + int(np.argmax(action))
