"""Episodes that a policy imagines in a model of the environment, learned from the dataset.

An ensemble of networks predicts the environment's next step. Where the members disagree over ten
steps twice as much as anywhere in held-out data the model guesses; an episode that comes there gets
the mean reward of the dataset's worst episode (at most 0) for every step that is left (after MOReL,
Kidambi et al. 2020, arXiv 2005.05951).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qgpo.agents.core.acting import Acts
from qgpo.agents.core.batches import Batches, Transitions, take
from qgpo.agents.core.process import seeded
from qgpo.agents.core.training import LIKELY_CAUSES, NonFiniteError, half_cosine
from qgpo.dynamics import DynamicsEnsemble
from qgpo.envs.data.dataset import OfflineDataset, writeable
from qgpo.envs.progress import Bar
from qgpo.envs.tasks.actions import ActionScale

STEPS = 16_000
BATCH_SIZE = 64
LEARNING_RATE = 4e-3
HELD_OUT = 10
"""every tenth episode measures how far members disagree on data that they have not seen"""
WINDOW = 10
"""steps over which disagreement is averaged: single steps, such as contacts, are hard to predict"""
TOLERANCE = 2.0
"""times the largest disagreement on held-out data; at 1 imitation itself seems to leave the data"""
MOST_WINDOWS = 2_000
"""of the held-out episodes, for that"""
ROWS_FOR_SCALES = 100_000
"""of the data, at most"""
LONGEST_EPISODE = 1_000
"""where the dataset names no environment with a limit of its own"""


class Episodes:
    """The data for a model: recorded episodes that it sees, and every tenth, which is held out."""

    def __init__(self, dataset: OfflineDataset, data: Batches) -> None:
        device = data.device
        rewards = torch.as_tensor(writeable(dataset.rewards), device=device)
        self.id, self.data = dataset.id, replace(data, rewards=rewards)
        ends = torch.as_tensor(writeable(dataset.last_steps), device=device).long()
        recorded = torch.as_tensor(dataset.recorded_episodes, device=device)
        held_out = recorded[ends.cumsum(0) - ends] % HELD_OUT == HELD_OUT - 1
        self.seen = torch.nonzero(~held_out).squeeze(-1)
        self.unseen = torch.nonzero(held_out).squeeze(-1) if bool(held_out.any()) else self.seen

    def draw(self, generator: torch.Generator, *shape: int) -> Transitions:
        """Transitions of episodes that are seen."""
        rows = torch.randint(len(self.seen), shape, generator=generator, device=self.seen.device)
        return self.data.transitions(self.seen[rows])

    def fit_scales(self, model: DynamicsEnsemble, generator: torch.Generator) -> None:
        """Set the constants of a model that has seen nothing."""
        n, device = len(self.seen), self.seen.device
        rows = self.seen  # a single row may hold the only reward
        if n > ROWS_FOR_SCALES:
            rows = rows[torch.randperm(n, generator=generator, device=device)[:ROWS_FOR_SCALES]]
        some = self.data.transitions(rows)
        model.fit_scales(some.observations, some.next_observations, some.rewards)

    def loss(self, model: DynamicsEnsemble, generator: torch.Generator) -> Tensor:
        """Of a batch for each member."""
        b = self.draw(generator, len(model.members), BATCH_SIZE)
        return model.loss(b.observations, b.actions, b.next_observations, b.rewards, b.terminations)

    @torch.no_grad()
    def most_disagreement(self, model: DynamicsEnsemble) -> float:
        """The largest mean over WINDOW held-out steps. NonFiniteError if the model diverged."""
        length = min(WINDOW, len(self.unseen))
        windows = self.unseen[: len(self.unseen) // length * length].reshape(-1, length)
        evenly = torch.linspace(0, len(windows) - 1, min(len(windows), MOST_WINDOWS))
        largest = []
        for part in windows[evenly.long().to(windows.device)].split(200):
            states, actions, *_ = self.data.transitions(part.flatten())
            disagreement = model(states, actions).disagreement
            largest.append(disagreement.reshape(part.shape).mean(dim=1).max())
        worst = float(torch.stack(largest).max())
        if not math.isfinite(worst):
            raise NonFiniteError(f"the model of {self.id!r} diverged. {LIKELY_CAUSES}")
        return worst


def fit_dynamics(
    dataset: OfflineDataset, data: Batches, generator: torch.Generator, steps: int, bar: Bar
) -> DynamicsEnsemble:
    """A model learned in so many gradient steps."""
    with seeded(generator.initial_seed()):
        model = DynamicsEnsemble(data.states.shape[1], data.actions.shape[1]).to(generator.device)
    episodes = Episodes(dataset, data)
    episodes.fit_scales(model, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = half_cosine(LEARNING_RATE, step, steps)
        loss = episodes.loss(model, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.update()
    return model.requires_grad_(False)


@torch.no_grad()
def imagine(
    agent: Acts,
    model: DynamicsEnsemble,
    starts: Tensor,
    bounds: tuple[Tensor, Tensor],
    horizon: int,
    most_disagreement: float,
    worst_reward: float,
    deterministic: bool,
    bar: Bar,
) -> tuple[Tensor, Tensor]:
    """Undiscounted returns (B,) from states (B, S), and whether each episode left the data.

    Each episode follows one member of the ensemble, the same for every policy that is compared.
    States stay within the bounds of the data. After leaving, each step gives `worst_reward`, ended
    or not.
    """
    n, states = len(starts), starts
    member = torch.arange(n, device=starts.device) % len(model.members)
    lanes = torch.arange(n, device=starts.device)
    returns = starts.new_zeros(n)
    alive = torch.ones(n, dtype=torch.bool, device=starts.device)
    left = torch.zeros_like(alive)
    recent = starts.new_zeros(WINDOW, n)
    for step in range(horizon):
        prediction = model(states, agent.act(states, deterministic))
        recent[step % WINDOW] = prediction.disagreement
        left |= alive & (recent.mean(dim=0) > most_disagreement)
        rewards = prediction.rewards[member, lanes]
        returns += torch.where(alive, torch.where(left, worst_reward, rewards), 0.0)
        alive &= left | (prediction.terminations[member, lanes] <= 0.0)
        states = prediction.next_states[member, lanes].clamp(*bounds)
        bar.update()
        if not bool((alive & ~left).any()):
            rest = horizon - step - 1
            bar.update(rest)
            return returns + torch.where(left, rest * worst_reward, 0.0), left
    return returns, left


def horizon_of(dataset: OfflineDataset) -> int:
    """Decisions of an imagined episode: as long as the data's, at most the environment's limit."""
    limit = dataset.env_spec.max_episode_steps if dataset.env_spec else None
    chunk = dataset.window.chunk if dataset.window else 1
    return min(int(dataset.episode_lengths.max()), math.ceil((limit or LONGEST_EPISODE) / chunk))


@dataclass(frozen=True, eq=False, repr=False)
class Imagination:
    """A learned model of the environment, and the states in which its episodes start."""

    model: DynamicsEnsemble
    starts: Tensor
    """(rollouts, S)"""
    bounds: tuple[Tensor, Tensor]
    """(S,) smallest and largest of the data"""
    horizon: int
    most_disagreement: float
    worst_reward: float
    fingerprint: str
    """of the data"""
    action_scale: ActionScale | None
    """what -1 and 1 mean in it"""

    @classmethod
    def of(
        cls,
        model: DynamicsEnsemble,
        dataset: OfflineDataset,
        data: Batches,
        generator: torch.Generator,
        action_scale: ActionScale | None,
        rollouts: int,
    ) -> Imagination:
        """In that model of those data; the starts are drawn.

        Raises NonFiniteError if the model diverged.
        """
        in_data = Episodes(dataset, data).most_disagreement(model)
        device = generator.device
        begins = dataset.episode_starts[dataset.first_readings]
        first = torch.as_tensor(writeable(begins), device=device)
        lanes = torch.randint(len(first), (rollouts,), generator=generator, device=device)
        starts = data.observations(take(data.state_index, first[lanes]))
        low, high = torch.aminmax(data.states, dim=0)
        worst = min(0.0, float((dataset.episode_returns / dataset.episode_lengths).min()))
        bounds = low.to(device), high.to(device)
        return cls(
            model,
            starts,
            bounds,
            horizon_of(dataset),
            TOLERANCE * in_data,
            worst,
            dataset.fingerprint,
            action_scale,
        )

    def play(self, agent: Acts, deterministic: bool, bar: Bar) -> tuple[Tensor, Tensor]:
        """Undiscounted returns (rollouts,) of an agent, and whether each episode left the data."""
        return imagine(
            agent,
            self.model,
            self.starts,
            self.bounds,
            self.horizon,
            self.most_disagreement,
            self.worst_reward,
            deterministic,
            bar,
        )
