"""What rollouts and evaluation need of a policy or an agent."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from gymnasium import spaces
from numpy.typing import NDArray

from qgpo.envs.tasks.observations import ObservationAdapter
from qgpo.envs.tasks.window import Window


@runtime_checkable
class Policy(Protocol):
    """A policy that draws its actions from a given generator."""

    def act(
        self, observations: Any, generator: torch.Generator, deterministic: bool = False
    ) -> NDArray[Any]:
        """A batch of B observations (arrays, or Dicts of arrays) to actions (B, A)."""
        ...


@runtime_checkable
class Predicts(Protocol):
    """An agent with SB3's predict."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """Batched observations to (batched actions, state); one without memory needs no state."""
        ...


@runtime_checkable
class MadeForSpaces(Protocol):
    """An agent that was made for certain spaces; None before it saw data."""

    observation_space: spaces.Box | None
    action_space: spaces.Box | None
    adapter: ObservationAdapter | None
    """how Dict observations become vectors"""
    window: Window | None
    """how many observations it sees, and how many actions it decides, at once"""


@runtime_checkable
class SeedsPredictions(Protocol):
    """An agent with a random generator of its own for predictions."""

    def seed_predictions(self, seed: int) -> None:
        """Start the generator again from a seed."""
        ...
