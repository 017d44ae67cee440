"""A policy's `predict` in slots that are played side by side, with the memory that it may have."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from qgpo.envs.rollouts.protocols import Predicts
from qgpo.envs.tasks.observations import stack


class Player:
    """Calls `predict` as SB3's evaluate_policy does: with the state that it returned last.

    `state` is whatever the policy returns (arrays, tuples, Dicts), None for one without memory.
    `starts` (n,) tells the policy where an episode begins; who plays sets it after a reset. What
    is returned belongs to the caller: no array is shared with the policy.
    """

    def __init__(self, agent: Predicts, n: int, deterministic: bool) -> None:
        self._predict = agent.predict
        self._knows = _parameters(agent.predict)
        self._deterministic = deterministic
        self.starts = np.ones(n, dtype=np.bool_)
        self.state: Any = None
        self._slots: list[int] = []

    def batch(self, observations: Any) -> Any:
        """Actions for a batch of all n slots, whose arrays the policy may keep."""
        return self._call(observations, self.starts)

    def act(self, observation: Mapping[int, Any], playing: Iterable[int]) -> dict[int, Any]:
        """The actions of the slots that play, from the observation of each slot.

        A policy with memory sees the slots that have ended, too: its state has a row for each.
        """
        if self.state is None:
            self._slots = list(playing)
        slots = self._slots
        actions = self._call(stack([observation[k] for k in slots]), self.starts[slots])
        return dict(zip(slots, actions, strict=True))

    def _call(self, observations: Any, starts: Any) -> Any:
        given = {"state": self.state, "episode_start": starts.copy()}
        memory = {name: value for name, value in given.items() if name in self._knows}
        predicted = self._predict(observations, **memory, deterministic=self._deterministic)
        if not isinstance(predicted, tuple) or len(predicted) != 2:
            raise TypeError(
                f"predict() returned a {type(predicted).__name__}, expected a tuple "
                "(actions, state), as in SB3; state is None without memory"
            )
        actions, self.state = predicted
        self.starts = np.zeros_like(self.starts)
        return copy.deepcopy(actions)


def _parameters(predict: Callable[..., Any]) -> set[str]:
    """Which of `state` and `episode_start` a `predict` takes: one that has no memory needs none."""
    parameters = inspect.signature(predict).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return {name for name in ("state", "episode_start") if takes_all or name in parameters}
