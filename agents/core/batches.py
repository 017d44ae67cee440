"""The dataset as training reads it: tensors on the device, or rows of memory-mapped files."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qgpo.agents.core.training import Training
from qgpo.critic import lambda_returns
from qgpo.envs.data.dataset import OfflineDataset, writeable
from qgpo.envs.data.disk import allocate, check_space
from qgpo.envs.tasks.actions import ActionScale
from qgpo.normalization import scaled

FLOAT_BYTES = 4
TABLE_ADVICE = "choose fewer support_actions, or storage='memory'"


class NextActions(NamedTuple):
    """The actions that the data take after transitions (B,)."""

    actions: Tensor
    """(B, A) in [-1, 1]; any numbers where there is none"""
    exist: Tensor
    """(B,) 0 at the last step of an episode, whatever ended it, else 1"""


class Transitions(NamedTuple):
    """Transitions (B,), or of any other shape in its place."""

    observations: Tensor
    """(B, S)"""
    actions: Tensor
    """(B, A) in [-1, 1]"""
    rewards: Tensor
    """(B,) as tuned"""
    next_observations: Tensor
    """(B, S)"""
    terminations: Tensor
    """(B,) 1 where the bootstrap is cut: terminated, not truncated"""
    following: NextActions | None = None
    """None for agents that do not ask for it (`SingleStageAgent.uses_next_actions`)"""


@dataclass(repr=False)
class Batches:
    """The dataset as training reads it: N transitions over R states (see OfflineDataset).

    Data in memory are on the device. Memory-mapped data stay on disk: only the rows that a batch
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
    """(A,) actions that are -1 in [-1, 1]"""
    high: Tensor
    """(A,) actions that are 1"""
    device: torch.device
    scratch: Path | None
    """folder for tables over all states where the data are memory-mapped"""
    recorded_episodes: Tensor
    """(E,) which recorded episode each of the dataset's is: with chunks, several are of one"""
    collected: int = 0
    """how many of the N, the last ones, were collected while learning online"""
    collected_share: float = 0.0
    """of a batch: so many of its transitions are collected ones, where there are any"""

    @classmethod
    def of(
        cls, dataset: OfflineDataset, device: torch.device, scale: ActionScale | None = None
    ) -> Batches:
        """Data in memory are copied to the device once, and shared with it on the CPU.

        `scale` of actions: by default the bounds of the dataset's action space.
        """
        scale = scale or ActionScale.of(dataset.action_space)
        place = device if dataset.folder is None else torch.device("cpu")

        def tensor(array: NDArray[Any], on: torch.device = place) -> Tensor:
            return torch.as_tensor(writeable(array), device=on)

        return cls(
            states=tensor(dataset.states),
            state_index=tensor(dataset.state_index),
            actions=tensor(dataset.actions),
            rewards=tensor(dataset.rewards, device),
            terminations=tensor(dataset.terminations),
            last_steps=tensor(dataset.last_steps),
            low=tensor(scale.low.astype(np.float32), device),
            high=tensor(scale.high.astype(np.float32), device),
            device=device,
            scratch=dataset.folder,
            recorded_episodes=tensor(dataset.recorded_episodes, device),
        )

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def recorded(self) -> int:
        """Transitions of the dataset, which come before those that were collected."""
        return len(self) - self.collected

    def draw(self, training: Training, n: int) -> Tensor:
        """Row numbers of a batch of n transitions, with replacement."""
        return draw_mixed(training, self.recorded, self.collected, self.collected_share, n)

    def followed_by(self, later: Batches, share: float) -> Batches:
        """These transitions and then those, which were collected; `share` of a batch is later."""
        shifted = later.state_index + len(self.states)
        joined: dict[str, Any] = {
            name: torch.cat([getattr(self, name), getattr(later, name)])
            for name in ("states", "actions", "rewards", "terminations", "last_steps")
        }
        return replace(
            self,
            **joined,
            state_index=torch.cat([self.state_index, shifted]),
            collected=len(later),
            collected_share=share,
        )

    def observations(self, rows: Tensor) -> Tensor:
        """Those rows of `states`, (B, S)."""
        return take(self.states, rows)

    def episodes(self) -> Tensor:
        """Number of the episode to which each row of `states` belongs, (R,)."""
        starts = torch.zeros(len(self.states), dtype=torch.long, device=self.device)
        starts[(self.state_index[self.last_steps] + 2)[:-1].to(self.device)] = 1
        return starts.cumsum(0)

    def recordings(self) -> Tensor:
        """Number of the recorded episode of each row of `states`, (R,); collected ones follow."""
        episodes, recorded = self.episodes(), self.recorded_episodes
        later = torch.arange(int(episodes[-1]) + 1 - len(recorded), device=recorded.device)
        numbers: Tensor = torch.cat([recorded, later + recorded[-1] + 1])[episodes]
        return numbers

    def scaled_actions(self, index: Tensor) -> Tensor:
        """Actions of those transitions in [-1, 1], (B, A)."""
        actions = take(self.actions, index)
        return scaled(actions, self.low, self.high)

    def transitions(self, index: Tensor) -> Transitions:
        """Those transitions."""
        rows = take(self.state_index, index)
        return Transitions(
            observations=self.observations(rows),
            actions=self.scaled_actions(index),
            rewards=self.rewards[index],
            next_observations=self.observations(rows + 1),
            terminations=take(self.terminations, index).float(),
        )

    def next_actions(self, index: Tensor) -> NextActions:
        """The actions of the transitions after those, in the same episodes."""
        following = (index + 1).clamp(max=len(self) - 1)
        return NextActions(
            self.scaled_actions(following), 1.0 - take(self.last_steps, index).float()
        )

    def lambda_returns(
        self, values: Tensor, gamma: float, lambda_: float, first: int = 0
    ) -> Tensor:
        """Lambda-returns of the transitions from `first` on, (N,).

        `values` are those of the states from the row on in which that transition starts.
        """
        starts = self.state_index[first:].to(values.device)
        return lambda_returns(
            self.rewards[first:],
            self.terminations[first:],
            self.last_steps[first:],
            values[1:][starts - starts[0]],
            gamma,
            lambda_,
        )

    def table(self, shape: tuple[int, ...]) -> Tensor:
        """Zeros: on the device, or in a file without a name where the data are mapped.

        Raises DiskFullError where that file's disk is full.
        """
        if self.scratch is None:
            return torch.zeros(shape, device=self.device)
        with _nameless_file(self.scratch) as file:
            size = math.prod(shape) * FLOAT_BYTES
            allocate(file, size, self.scratch, "a table of the training", TABLE_ADVICE)
            return torch.as_tensor(np.memmap(file, np.float32, "r+", shape=shape))

    def check_tables(self, *shapes: tuple[int, ...]) -> None:
        """Raise DiskFullError where the data are mapped and tables do not fit beside them."""
        if self.scratch is not None:
            size = sum(map(math.prod, shapes)) * FLOAT_BYTES
            check_space(self.scratch, size, "tables of the training", TABLE_ADVICE)


def draw_mixed(training: Training, recorded: int, collected: int, share: float, n: int) -> Tensor:
    """Row numbers (n,), with replacement, below recorded + collected; `share` of collected ones.

    Both kinds are drawn uniformly.
    """
    later = round(share * n) if recorded else n
    if not collected or not later:
        return training.draw(recorded, n)
    drawn = [training.draw(recorded, n - later)] if later < n else []
    return torch.cat([*drawn, recorded + training.draw(collected, later)])


def tuned_rewards(
    dataset: OfflineDataset,
    data: Batches,
    rule: str,
    gamma: float,
    collected: NDArray[np.float32] | None = None,
) -> Tensor:
    """Rewards as a critic sees them: the dataset's (N,), or those that were `collected`.

    By one of the dataset's own rules, or `unit`: divided by the standard deviation of the
    discounted returns of all its transitions (as they are where these do not differ).
    """
    if rule != "unit":
        by_rule = dataset.tuned_rewards(rule, collected)
        return torch.as_tensor(writeable(by_rule), device=data.device)
    rewards = torch.as_tensor(writeable(dataset.rewards), device=data.device)
    tuned = rewards if collected is None else torch.as_tensor(collected, device=data.device)
    no_values = torch.zeros_like(rewards)
    returns = lambda_returns(rewards, data.terminations, data.last_steps, no_values, gamma, 1.0)
    spread = returns.std(correction=min(1, len(returns) - 1))
    largest = returns.abs().max()
    if not 1e-6 < spread < torch.inf and largest > 0.0:  # in an odd unit, squares leave float32
        relative = (returns / largest).std(correction=min(1, len(returns) - 1))
        return tuned / largest / relative if relative > 1e-6 else tuned
    return tuned / spread if spread > 1e-6 else tuned


def _nameless_file(folder: Path) -> Any:
    """A temporary file that the system removes when the process ends."""
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError:  # a folder that may only be read
        return tempfile.TemporaryFile()


def take(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table, on the device of the row numbers."""
    return table[rows.to(table.device)].to(rows.device)
