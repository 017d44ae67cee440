"""How long some steps of a stage take: agents train in turns, a few steps each, on noise."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from qgpo.agents import OfflineAgent
from qgpo.agents.core.training import TrainingStoppedError
from qgpo.envs.data.dataset import OfflineDataset

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (17,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (6,), np.float32)
"""HalfCheetah's"""


class Turn(BaseCallback):
    """Ends training at the `last` step of a stage; `seconds` since the step after `first`."""

    def __init__(
        self, stage: str, first: int, last: int, clock: Callable[[], float] | None = None
    ) -> None:
        super().__init__()
        self.stage, self.first, self.last, self.clock = stage, first, last, clock or now
        self.began = self.seconds = 0.0

    def _on_step(self) -> bool:
        done: int = self.model.progress[self.stage]  # type: ignore[attr-defined]
        if done == self.first + 1:  # tables over all states are computed before the first step
            self.began = self.clock()
        if done < self.last:
            return True
        self.seconds = self.clock() - self.began
        return False

    def _on_rollout_end(self) -> None:
        self.stop_unless(self._on_step())  # the support's steps have no gradient

    @staticmethod
    def stop_unless(go_on: bool) -> None:
        """End a training within a step that has no gradient."""
        if not go_on:
            raise TrainingStoppedError


def now() -> float:
    """Seconds, after a GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def noise(transitions: int) -> OfflineDataset:
    """One episode of random numbers in HalfCheetah's spaces."""
    rng = np.random.default_rng(0)
    last = np.arange(transitions) == transitions - 1
    return OfflineDataset(
        id="bench/noise-v0",
        states=rng.standard_normal((transitions + 1, 17), np.float32),
        actions=rng.uniform(-1, 1, (transitions, 6)).astype(np.float32),
        rewards=rng.standard_normal(transitions, np.float32),
        terminations=np.zeros(transitions, np.bool_),
        truncations=last,
        episode_starts=np.zeros(1, np.int64),
        observation_space=OBSERVATIONS,
        action_space=ACTIONS,
    )


def let_guide(agent: OfflineAgent[Any]) -> None:
    """Give a stacked critic, which confirms nothing in noise, weights with which it guides."""
    if "critic_weights" in agent.networks:
        weights: Any = agent.networks["critic_weights"]
        weights.weights.fill_(0.5)
        weights.measured.fill_(1.0)
