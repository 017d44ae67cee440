"""What a user passes as arrays and spaces, where it is something else: what that is, and a way out.

Each message names the object that was given and the call that would be right.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import ArrayLike

from qgpo.commands import command
from qgpo.envs.data.columns import without_gradient
from qgpo.envs.tasks.making import spaces_of
from qgpo.envs.tasks.observations import ENCODE
from qgpo.envs.tasks.spaces import same_box
from qgpo.envs.text import counted


def all_given(of: str, observations: ArrayLike, **others: ArrayLike | None) -> list[ArrayLike]:
    """The other arrays. Raises ValueError where one is missing, or observations are a file."""
    if isinstance(observations, str | Path):
        raise ValueError(
            f"{of}: observations={str(observations)!r} is text, expected an array. Of a file, load "
            "its arrays (numpy.load for .npz) and pass each, or make a Minari dataset of it by "
            f"`{command('data', 'import')}`"
        )
    missing = [name for name, values in others.items() if values is None]
    if missing:
        raise ValueError(f"{of}: {', '.join(missing)} not given, expected an array for each")
    return [values for values in others.values() if values is not None]


def refuse_episodes(of: str, name: str, values: ArrayLike, ndim: int) -> None:
    """Raise ValueError for a list of episodes where one array of all steps is expected."""
    listed = isinstance(values, list | tuple)
    if isinstance(values, np.ndarray) and values.dtype == object and values.ndim == 1:
        listed = True
    several: Any = values
    if not listed or len(several) == 0:
        return
    first = several[0]
    inner = _ndim(first)
    are_images = ndim == 2 and inner == 3
    is_column = ndim == 1 and all(np.shape(value) == (1,) for value in several)
    if isinstance(first, Mapping) or (inner >= ndim and not are_images and not is_column):
        raise ValueError(
            f"{of}: {name} is a list of {counted(len(several), 'episode')}, expected one array of "
            f"all steps: concatenate them, numpy.concatenate({name}). Flags mark where each "
            "episode ends"
        )


def hint(name: str, values: ArrayLike, ndim: int) -> str:
    """What to do about an array of other dimensions; empty where nobody can know."""
    try:
        array = np.asarray(without_gradient(values))
    except (TypeError, ValueError):
        return ""
    shape = array.shape
    if ndim == 1 and len(shape) == 2 and shape[1] == 1:
        return f": pass {name}[:, 0]"
    if ndim == 2 and len(shape) == 1 and array.dtype.kind in "iu" and name == "actions":
        return ". Of discrete actions qgpo.envs.one_hot(actions, n) makes vectors"
    if ndim == 2 and len(shape) == 1:
        return f": of one column pass {name}[:, None]"
    are_images = len(shape) == 4 or (len(shape) == 3 and array.dtype == np.uint8)
    if ndim == 2 and name.endswith("observations") and are_images:
        return f". These are images, and agents learn from vectors. {ENCODE}"
    if ndim == 2 and len(shape) == 3:
        return (
            f". Of episodes of {shape[1]} steps each make one array, "
            f"{name}.reshape(-1, {shape[2]}); flags mark where each ends"
        )
    return ""


def check_space(of: str, name: str, space: Any, sizes: Mapping[str, int]) -> None:
    """Raise TypeError for what is no space, ValueError for a Box that is not of the columns.

    `sizes` are the numbers of columns by the name of the space.
    """
    size = sizes[name]
    if not isinstance(space, gym.Space):
        raise TypeError(
            f"{of}: {name}={space!r} is a {type(space).__name__}, expected a Box: {_example(name)}"
            f", ({size},)), with numbers or arrays for low and high"
        )
    if isinstance(space, spaces.Box) and space.shape != (size,) and len(space.shape) == 1:
        columns = name.removesuffix("_space")
        swapped = any(space.shape == (n,) for other, n in sizes.items() if other != name)
        raise ValueError(
            f"{of}: {name}={space} has shape {space.shape}, the data have "
            f"{counted(size, f'{columns} column')}"
            f"{'. Are the two spaces exchanged?' if swapped else ''}: expected "
            f"{_example(name)}, ({size},))"
        )


def check_environment(
    of: str, spec: EnvSpec | None, observation_space: spaces.Box, action_space: spaces.Box
) -> None:
    """Raise ValueError for an environment of Gymnasium's with other spaces, before training for it.

    Discrete spaces become Boxes in a wrapper, which the spec need not name.
    """
    if spec is None or (found := spaces_of(spec)) is None:
        return
    seen, taken = found
    if not isinstance(seen, spaces.Box) or not isinstance(taken, spaces.Box):
        return
    if seen.shape != observation_space.shape or not same_box(taken, action_space):
        raise ValueError(
            f"{of}: env_spec={spec.id} has observations {seen.shape} and actions {taken}, the data "
            f"{observation_space.shape} and {action_space}: name the environment of the data, and "
            "give its action space, action_space=env.action_space"
        )


def _example(name: str) -> str:
    return f"{name}=gymnasium.spaces.Box(low, high"


def _ndim(value: Any) -> int:
    """Dimensions of an array, or of nested lists of numbers; 0 where there are none."""
    try:
        return np.ndim(value)
    except ValueError:  # lists of several lengths
        return 1
