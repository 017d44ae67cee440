"""How long some steps of a stage take: agents train in turns, a few steps each."""

from __future__ import annotations

import time

import torch
from stable_baselines3.common.callbacks import BaseCallback

from qgpo.agents.core.training import TrainingStoppedError


class Turn(BaseCallback):
    """Ends training at the `last` step of a stage; `seconds` since the step after `first`."""

    def __init__(self, stage: str, first: int, last: int) -> None:
        super().__init__()
        self.stage, self.first, self.last = stage, first, last
        self.began = self.seconds = 0.0

    def _on_step(self) -> bool:
        done: int = self.model.progress[self.stage]  # type: ignore[attr-defined]
        if done == self.first + 1:  # tables over all states are computed before the first step
            self.began = now()
        if done < self.last:
            return True
        self.seconds = now() - self.began
        return False

    def _on_rollout_end(self) -> None:
        if not self._on_step():  # the support's steps have no gradient
            raise TrainingStoppedError


def now() -> float:
    """Seconds, after a GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
