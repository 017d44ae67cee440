"""Acting like an SB3 algorithm: `predict` around a function from observations to actions.

What acts takes `predict` and `seed_predictions` from the protocol, as methods of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from qgpo.agents.core.process import usual_torch
from qgpo.envs.data.columns import numbers
from qgpo.envs.tasks.actions import ActionScale, inside
from qgpo.envs.tasks.observations import ObservationAdapter
from qgpo.envs.tasks.window import Memory, Window
from qgpo.fields import check_flag, check_seed

Normal: TypeAlias = Callable[..., Tensor]
"""standard normal noise of a shape, whose last axis but one is the batch's (or n times as long);
the only axis, where there is one"""


def normal_of(generator: torch.Generator, device: torch.device, *shape: int) -> Tensor:
    """Standard normal noise of a generator on the CPU, brought to the device."""
    return torch.randn(shape, generator=generator, device=generator.device).to(device)


class GivenNoise:
    """Standard normal numbers (B, K), handed out in the order in which acting asks for noise."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers
        self.taken = 0
        """numbers of each member of the batch that were handed out"""

    def __call__(self, *shape: int) -> Tensor:
        """The next numbers. Raises ValueError where there are too few."""
        batch, axis = len(self.numbers), max(len(shape) - 2, 0)
        own = (*shape[:axis], shape[axis] // batch, *shape[axis + 1 :])
        first, self.taken = self.taken, self.taken + math.prod(own)
        if self.taken > self.numbers.shape[1]:
            raise ValueError(
                f"noise has {self.numbers.shape[1]} numbers for each observation, expected at "
                f"least {self.taken}"
            )
        numbers = self.numbers[:, first : self.taken].reshape(batch, *own)
        return numbers.movedim(0, axis).reshape(shape)


class Acts(Protocol):
    """What acts in Box spaces: an agent or an ensemble."""

    name: ClassVar[str]
    device: torch.device
    prediction_generator: torch.Generator
    """noise of `predict`; training has another one"""
    observation_space: spaces.Box | None
    """None until it has seen data"""
    action_space: spaces.Box | None
    action_scale: ActionScale | None
    """what -1 and 1 mean there"""
    adapter: ObservationAdapter | None
    """makes vectors of an environment's Dict observations"""
    window: Window | None
    """how many observations it sees, and actions it decides, at once; None for one of each"""

    _noise: Normal | None
    """what is taken in place of the generator's noise, where it is given"""

    def act(self, observations: Tensor, deterministic: bool) -> Tensor:
        """(B, S) to actions (B, A) in [-1, 1]."""

    def _prediction_normal(self, *shape: int) -> Tensor:
        """Standard normal noise of `predict`; the axes are those of `Normal`."""
        if self._noise is not None:
            return self._noise(*shape)
        return torch.randn(shape, generator=self.prediction_generator, device=self.device)

    @usual_torch()
    def predict(
        self,
        observation: NDArray[Any] | dict[str, Any],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Return an action (A,) for an observation (S,), or actions (B, A) for (B, S).

        Actions lie in the action space and have its dtype.

        What learned from Dict observations takes the environment's Dicts, single or as arrays
        with a leading axis, as well as the vectors that its `adapter` makes of them. `state` is
        returned as given and `episode_start` ignored (no memory), unless the data were loaded with
        a `history` or a `chunk`: then an observation is a single one, the action the next of its
        chunk, and `state` what the last call returned (None at the start of an episode;
        `episode_start` (B,) says where others begin). `deterministic` makes the action a function
        of what is observed alone; otherwise it is sampled.

        Raises RuntimeError before training. Raises ValueError for observations that are not finite
        or not in the space, and for those so far from the data that the action is not finite.
        """
        if self.observation_space is None or self.action_scale is None:
            raise RuntimeError(
                f"this {self.name} has not been trained: call learn(dataset), or load a file"
            )
        deterministic = check_flag("deterministic", deterministic)
        shape = self.observation_space.shape
        if self.window is not None:
            shape = self.window.one_observation(self.observation_space).shape
        array = _as_array(observation, shape, self.adapter)
        if self.window is not None:
            return _predict_by_memory(self, array, state, episode_start, deterministic)
        # a copy, because torch warns of arrays that are read-only
        batch = torch.tensor(np.atleast_2d(array), device=self.device)
        if len(batch) == 0:
            space = self.action_scale.space
            return np.zeros((0, *space.shape), dtype=space.dtype), state
        acted = self.act(batch, deterministic).cpu().numpy()
        _check_actions(self.name, acted, batch)
        actions = self.action_scale.to_space(acted)
        return actions[0] if array.ndim == 1 else actions, state

    def seed_predictions(self, seed: int) -> None:
        """Seed the noise of `predict`; training is not touched."""
        self.prediction_generator.manual_seed(check_seed(seed))


def _predict_by_memory(
    actor: Acts,
    array: NDArray[np.float32],
    state: Any,
    episode_start: Any,
    deterministic: bool,
) -> tuple[NDArray[Any], Memory]:
    """The next actions of the chunks, which are decided anew where one is used up; the memory.

    The memory that was given stays as it was.
    """
    window, scale = actor.window, actor.action_scale
    assert window is not None
    assert scale is not None
    rows = np.atleast_2d(array)
    action_space = window.one_action(scale.space)
    sizes = len(rows), rows.shape[1], action_space.shape[0]
    begins = np.zeros(len(rows), np.bool_)
    if state is None:
        state, begins = window.begin(*sizes), ~begins
    elif episode_start is not None:
        begins = np.broadcast_to(np.asarray(episode_start, np.bool_), begins.shape)
    history, chunk, left = window.check(state, *sizes)
    history = np.concatenate([history[:, 1:], rows[:, None]], axis=1)
    history[begins] = rows[begins, None]
    left[begins] = 0
    new = left == 0
    if new.any():
        batch = torch.tensor(history[new].reshape(int(new.sum()), -1), device=actor.device)
        acted = actor.act(batch, deterministic).cpu().numpy()
        _check_actions(actor.name, acted, batch)
        chunk[new] = scale.to_space(acted).reshape(-1, window.chunk, sizes[2])
        left[new] = window.chunk
    # The memory is float32, whose rounding may pass a bound of the space.
    actions = inside(action_space, chunk[np.arange(len(rows)), window.chunk - left])
    memory = history, chunk, left - 1
    return (actions[0] if array.ndim == 1 else actions), memory


def _as_array(
    observation: Any, shape: tuple[int, ...], adapter: ObservationAdapter | None
) -> NDArray[np.float32]:
    if isinstance(observation, tuple):
        raise ValueError(
            "predict() was given a tuple: you are probably mixing Gym API and SB3's VecEnv "
            "API. Gymnasium's `env.reset()` returns (observation, info); pass only the "
            "observation"
        )
    if isinstance(observation, Mapping):
        if adapter is None:
            raise ValueError(
                "observation is a dict, which is not an array of numbers (it has parts "
                f"{sorted(map(str, observation))}; convert it to the vector in the data, with "
                "gymnasium.wrappers.FlattenObservation(env), which joins the parts in the "
                "order of the Dict space, or with your own ObservationWrapper); expected shape "
                f"{shape} or (n, {shape[0]})"
            )
        observation = adapter.flatten(observation)
    try:
        array = numbers("observation", "its values", observation)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"observation is a {type(observation).__name__}, which is not an array of numbers "
            f"({error}); expected shape {shape} or (n, {shape[0]})"
        ) from error
    if array.ndim not in (1, 2) or array.shape[-1:] != shape:
        raise ValueError(
            f"observation has shape {array.shape}, expected {shape} or (n, {shape[0]})"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"observation has NaN or infinite values: {array}")
    return array


def _check_actions(name: str, actions: NDArray[np.float32], observations: Tensor) -> None:
    """Raise ValueError, naming the observation, where actions (B, A) are not finite."""
    wrong = np.flatnonzero(~np.isfinite(actions).all(axis=-1))
    if len(wrong) > 0:
        row = observations[int(wrong[0])].cpu().numpy()
        column = int(np.abs(row).argmax())
        raise ValueError(
            f"the action of this {name} is not finite for observation {wrong[0]}: its largest "
            f"value is {row[column]:g}, in column {column}; expected observations like those in "
            "the data"
        )
