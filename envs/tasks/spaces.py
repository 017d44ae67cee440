"""The spaces that agents can learn from and play in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from qgpo.envs.tasks.observations import ObservationAdapter, refuse_images


def check_spaces(
    observation_space: gym.Space[Any], action_space: gym.Space[Any], of: str
) -> tuple[spaces.Box, spaces.Box]:
    """The two spaces as Boxes. Raises ValueError, which states what is supported."""
    action_box = check_action_space(action_space, of)
    refuse_images(observation_space, of)
    if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
        raise ValueError(
            f"{of} has observation space {observation_space}; one-dimensional Box observations "
            "are supported. Datasets with Dict observations are read by load_dataset, and agents "
            "that learned from them play in their environments; others flatten with "
            "gymnasium.wrappers.FlattenObservation"
        )
    return observation_space, action_box


def vector_spaces(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    keys: Sequence[str] | None,
    of: str,
) -> tuple[ObservationAdapter | None, spaces.Box, spaces.Box]:
    """How Dict observations become vectors (None where they are vectors), and both spaces as Boxes.

    `keys` are the parts of a Dict observation to use. Raises ValueError for unsupported spaces.
    """
    check_action_space(action_space, of)
    adapter = None
    if isinstance(observation_space, spaces.Dict):
        adapter = ObservationAdapter.choose(observation_space, keys, of)
        observation_space = adapter.box(observation_space, of)
    return adapter, *check_spaces(observation_space, action_space, of)


def check_action_space(action_space: gym.Space[Any], of: str) -> spaces.Box:
    """The space as a Box with finite bounds. Raises ValueError, which states what is supported."""
    if not isinstance(action_space, spaces.Box):
        raise ValueError(
            f"{of} has action space {action_space}; continuous actions (a Box with finite "
            "bounds) are supported. For discrete actions use a method made for them, such as "
            "discrete CQL"
        )
    if not np.all(np.isfinite(action_space.low)) or not np.all(np.isfinite(action_space.high)):
        raise ValueError(
            f"{of} has action space {action_space} with infinite bounds; finite ones are needed "
            "to scale actions (wrap the environment with gymnasium.wrappers.RescaleAction)"
        )
    if len(action_space.shape) != 1:
        raise ValueError(f"{of} has action shape {action_space.shape}, expected one dimension")
    if action_space.shape == (0,) or np.any(action_space.low >= action_space.high):
        raise ValueError(
            f"{of} has action space {action_space}; expected low < high for every action"
        )
    return action_space


def same_box(first: spaces.Box, second: spaces.Box) -> bool:
    """Whether shapes and bounds are equal; dtypes may differ."""
    return (
        first.shape == second.shape
        and np.allclose(first.low, second.low)
        and np.allclose(first.high, second.high)
    )
