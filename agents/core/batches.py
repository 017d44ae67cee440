"""What training stands on: the data on the device, and the ways in which it can stop."""

from __future__ import annotations

import contextlib
import math
import signal
import tempfile
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.utils import get_device
from torch import Tensor, nn

from qgpo.critic import lambda_returns, polyak_update
from qgpo.envs.data.dataset import OfflineDataset


class TrainingStoppedError(Exception):
    """Raised inside learn() when a callback asks to stop; learn() itself returns normally."""


class NonFiniteError(RuntimeError):
    """A loss, a gradient or a parameter became NaN or infinite."""


LIKELY_CAUSES = (
    "Likely causes: a learning rate or beta that is too high, or rewards or observations of "
    "very different sizes in the dataset (see reward_tuning and normalize_observations)"
)


@dataclass
class Batches:
    """The dataset as training reads it: N transitions over R states (see OfflineDataset).

    Data in memory lie on the device. Memory-mapped data stay on disk: only the rows that a batch
    asks for are read.
    """

    states: Tensor
    """(R, S)"""
    state_index: Tensor
    """(N,) row of `states` where each transition starts; it ends in the row after"""
    actions: Tensor
    """(N, A) in the environment's units"""
    rewards: Tensor
    """(N,) raw until the agent tunes them; always on the device"""
    terminations: Tensor
    """(N,) whether the bootstrap is cut"""
    last_steps: Tensor
    """(N,) whether an episode ends"""
    low: Tensor
    """(A,) lowest actions"""
    high: Tensor
    """(A,) highest actions"""
    device: torch.device
    scratch: Path | None
    """folder for tables over all states where the data are memory-mapped"""

    @classmethod
    def of(cls, dataset: OfflineDataset, device: torch.device) -> Batches:
        """Data in memory are copied to the device once, and shared with it on the CPU."""
        place = device if dataset.folder is None else torch.device("cpu")

        def tensor(array: NDArray[Any], on: torch.device = place) -> Tensor:
            return torch.as_tensor(array, device=on)

        return cls(
            states=tensor(dataset.states),
            state_index=tensor(dataset.state_index),
            actions=tensor(dataset.actions),
            rewards=tensor(dataset.rewards, device),
            terminations=tensor(dataset.terminations),
            last_steps=tensor(dataset.last_steps),
            low=tensor(dataset.action_space.low.astype(np.float32), device),
            high=tensor(dataset.action_space.high.astype(np.float32), device),
            device=device,
            scratch=dataset.folder,
        )

    def __len__(self) -> int:
        return len(self.rewards)

    def observations(self, rows: Tensor) -> Tensor:
        """Those rows of `states`, (B, S)."""
        return take(self.states, rows)

    def episodes(self) -> Tensor:
        """Number of the episode to which each row of `states` belongs, (R,)."""
        starts = torch.zeros(len(self.states), dtype=torch.long, device=self.device)
        starts[(self.state_index[self.last_steps] + 2)[:-1].to(self.device)] = 1
        return starts.cumsum(0)

    def scaled_actions(self, index: Tensor) -> Tensor:
        """Actions of those transitions in [-1, 1], (B, A)."""
        actions = take(self.actions, index)
        return (2.0 * (actions - self.low) / (self.high - self.low) - 1.0).clamp(-1.0, 1.0)

    def table(self, shape: tuple[int, ...]) -> Tensor:
        """Zeros: on the device, or in a file without a name where the data are mapped."""
        if self.scratch is None:
            return torch.zeros(shape, device=self.device)
        with _nameless_file(self.scratch) as file:
            return torch.as_tensor(np.memmap(file, np.float32, "w+", shape=shape))


def half_cosine(rate: float, step: int, total: int) -> float:
    """A learning rate that falls to zero along half a cosine."""
    return rate * 0.5 * (1.0 + math.cos(math.pi * step / total))


def average(source: nn.Module, target: nn.Module, decay: float, step: int) -> None:
    """EMA that forgets the first steps sooner: decay min(decay, (1 + step) / (10 + step))."""
    polyak_update(source, target, 1.0 - min(decay, (1.0 + step) / (10.0 + step)))


def tuned_rewards(dataset: OfflineDataset, data: Batches, rule: str, gamma: float) -> Tensor:
    """Rewards as a critic sees them, (N,).

    By one of the dataset's own rules, or `unit`: divided by the standard deviation of the
    discounted returns of all transitions (as they are where these do not differ).
    """
    if rule != "unit":
        return torch.as_tensor(dataset.tuned_rewards(rule), device=data.device)
    rewards = torch.as_tensor(dataset.rewards, device=data.device)
    no_values = torch.zeros_like(rewards)
    returns = lambda_returns(rewards, data.terminations, data.last_steps, no_values, gamma, 1.0)
    spread = returns.std(correction=min(1, len(returns) - 1))
    return rewards / spread if spread > 1e-6 else rewards


def _nameless_file(folder: Path) -> Any:
    """It disappears with the process, however that ends."""
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError:  # a folder that may only be read
        return tempfile.TemporaryFile()


def choose_device(device: torch.device | str) -> torch.device:
    """The device asked for; `auto` is the GPU where there is one. Never another in silence."""
    if device == "auto":
        return get_device("auto")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r}, expected auto, cpu, cuda or cuda:N") from error
    try:
        torch.Generator(chosen)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device={str(device)!r} is not available here, expected auto or cpu"
        ) from error
    return chosen


def take(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table, on the device of the row numbers."""
    return table[rows.to(table.device)].to(rows.device)


@contextlib.contextmanager
def on_signals(interrupt: Callable[[], None]) -> Iterator[None]:
    """Call `interrupt` on SIGINT and SIGTERM, in the main thread; others are left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(signum: int, frame: types.FrameType | None) -> None:
        interrupt()

    former = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, previous in former.items():
            signal.signal(signum, previous)
