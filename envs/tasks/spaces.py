"""The spaces that agents can learn from and play in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from qgpo.envs.tasks.actions import half_width, resolved
from qgpo.envs.tasks.observations import ObservationAdapter, refuse_images

ACTION_DTYPES = ("float16", "float32", "float64")
SAME = 1e-5
"""of a bounds' width, by which equal bounds may differ"""


def check_spaces(
    observation_space: gym.Space[Any], action_space: gym.Space[Any], of: str
) -> tuple[spaces.Box, spaces.Box]:
    """The two spaces as Boxes. Raises ValueError, which states what is supported."""
    action_box = check_action_space(action_space, of)
    refuse_images(observation_space, of)
    if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
        raise ValueError(
            f"{of} has observation space {observation_space}; only one-dimensional Box "
            "observations are supported. load_dataset reads datasets with Dict observations, "
            "and agents trained on them can act in their environments; otherwise flatten "
            "observations with gymnasium.wrappers.FlattenObservation"
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
            "bounds) are supported. The way out of discrete ones: qgpo.envs.one_hot(actions, n) "
            "makes vectors of n choices, and qgpo.envs.OneHotActions(env) acts by the largest "
            "number. Where choices are settings of something continuous, record that instead. For "
            "many choices use a method made for them, such as discrete CQL"
        )
    if str(action_space.dtype) not in ACTION_DTYPES:
        raise ValueError(
            f"{of} has action space {action_space} of {action_space.dtype}; only continuous "
            f"actions (a Box of one of {', '.join(ACTION_DTYPES)}) are supported. If integers "
            "represent a continuous quantity, declare floats and round in the environment"
        )
    if not np.all(np.isfinite(action_space.low)) or not np.all(np.isfinite(action_space.high)):
        raise ValueError(
            f"{of} has action space {action_space} with infinite bounds; finite ones are needed "
            "to scale actions. Take them from the data: box = gymnasium.spaces.Box("
            "actions.min(axis=0), actions.max(axis=0)), then OfflineDataset.from_arrays(..., "
            "action_space=box); give an environment the same bounds with "
            "gymnasium.wrappers.TransformAction(env, lambda action: action, box)"
        )
    if len(action_space.shape) != 1:
        raise ValueError(f"{of} has action shape {action_space.shape}, expected one dimension")
    if action_space.shape == (0,) or np.any(action_space.low >= action_space.high):
        raise ValueError(
            f"{of} has action space {action_space}; expected low < high for every action"
        )
    narrow = np.flatnonzero(~resolved(action_space.low, action_space.high))
    if len(narrow) > 0:
        low, high = float(action_space.low[narrow[0]]), float(action_space.high[narrow[0]])
        raise ValueError(
            f"{of} has action column {narrow[0]} between {low!r} and {high!r}, which float32 "
            "can hardly distinguish: record the difference from the lowest action, in a unit "
            "in which it is about 1"
        )
    return action_space


def same_box(first: spaces.Box, second: spaces.Box) -> bool:
    """Whether shapes and bounds are equal; dtypes may differ."""
    return (
        first.shape == second.shape
        and _close(first.low, second.low, first)
        and _close(first.high, second.high, first)
    )


def _close(one: NDArray[Any], other: NDArray[Any], box: spaces.Box) -> bool:
    """Whether bounds differ by no more than rounding, measured by the width of the box."""
    return bool(np.all(np.abs(half_width(one, other)) <= SAME * half_width(box.low, box.high)))
