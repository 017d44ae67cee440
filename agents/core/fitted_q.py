"""Fitted Q evaluation: what a policy is worth, from data of another one.

Q(s, a) is regressed on r + gamma Q'(s', pi(s')), where Q' follows Q slowly (Le, Voloshin & Yue
2019, arXiv 1903.08738). It begins as the data's own discounted returns, from which a policy near
the data is not far; that beginning, and the bounds on targets, are ours.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from qgpo.agents.core.acting import Acts
from qgpo.agents.core.batches import Batches, take
from qgpo.agents.core.config import Fraction, Rate, Steps
from qgpo.agents.core.process import seeded
from qgpo.agents.core.training import LIKELY_CAUSES, NonFiniteError, half_cosine
from qgpo.critic import critic_loss, lambda_returns, polyak_update
from qgpo.envs.progress import Bar
from qgpo.fields import Range, check_fields
from qgpo.networks import TwinQ
from qgpo.normalization import ObservationNormalizer

STATES_PER_CHUNK = 2048
"""in which a policy acts at a time"""


@dataclass(frozen=True)
class FittedQConfig:
    """How Q of a policy is learned."""

    steps: Steps = 20_000
    """gradient steps by the policy's own actions"""
    first_steps: Annotated[int, Range(0, 10**12)] = 4_000
    """gradient steps before, on the data's returns"""
    batch_size: Annotated[int, Range(1, 10**6)] = 256
    hidden: Annotated[tuple[int, ...], Range(1, 10**5)] = (256, 256)
    learning_rate: Rate = 1e-3
    """the first one; it falls to zero along half a cosine"""
    tau: Fraction = 0.05
    """how fast Q' follows Q: errors fade by 1 - (1 - gamma) tau per step"""
    samples: Annotated[int, Range(1, 1000)] = 4
    """actions per state of a policy that is sampled"""

    def __post_init__(self) -> None:
        check_fields(self)


class FittedQ:
    """Q of a policy: two heads that were learned from different targets."""

    def __init__(
        self, normalizer: ObservationNormalizer, critic: TwinQ, unit: float, offset: float
    ) -> None:
        self.normalizer, self.critic, self.unit, self.offset = normalizer, critic, unit, offset

    @torch.no_grad()
    def __call__(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q of both heads in the rewards' unit, (B, S), (B, A) to (2, B)."""
        q = self.critic.both(self.normalizer(observations), actions)
        return q * self.unit + self.offset


@torch.no_grad()
def actions_of(agent: Acts, states: Tensor, deterministic: bool, samples: int) -> Tensor:
    """What the agent does in every state, (R, S) to (R, K, A) in [-1, 1]; K = 1 of the mean."""
    repeats = 1 if deterministic else samples
    rows = []
    for chunk in states.split(STATES_PER_CHUNK):
        observations = chunk.to(agent.device)
        acted = [agent.act(observations, deterministic) for _ in range(repeats)]
        rows.append(torch.stack(acted, dim=1).clamp(-1.0, 1.0))
    return torch.cat(rows)


def fit_q(
    data: Batches,
    rewards: Tensor,
    actions: Tensor,
    gamma: float,
    config: FittedQConfig,
    generator: torch.Generator,
    bar: Bar,
) -> FittedQ:
    """Q of the policy that takes these actions (R, K, A) in the data's states, (R,) of them.

    `rewards` (N,) are the raw ones. Raises NonFiniteError where a loss is not finite.
    """
    device, n = generator.device, len(data)
    terminations = take(data.terminations, torch.arange(n)).float()
    last = take(data.last_steps, torch.arange(n))
    returns = lambda_returns(rewards, terminations, last, torch.zeros_like(rewards), gamma, 1.0)
    offset, unit = float(returns.mean()), float(returns.std(correction=min(1, n - 1)))
    unit = unit if unit > 1e-6 * max(1.0, abs(offset)) else max(abs(offset), 1.0)
    first_targets = (returns - offset) / unit
    low, high = _bounds(rewards, gamma, bool(terminations.any()))
    low, high = (low - offset) / unit, (high - offset) / unit

    normalizer = ObservationNormalizer(data.states.shape[1]).to(device)
    normalizer.fit(data.states)
    with seeded(generator.initial_seed()):
        critic = TwinQ(data.states.shape[1], actions.shape[-1], config.hidden, layer_norm=True).to(
            device
        )
    target = copy.deepcopy(critic).requires_grad_(False)
    optimizer = torch.optim.Adam(critic.parameters(), lr=config.learning_rate, fused=True)
    total = config.first_steps + config.steps
    for step in range(total):
        index = torch.randint(n, (config.batch_size,), generator=generator, device=device)
        batch = data.transitions(index)
        if step < config.first_steps:
            targets = first_targets[index]
        else:
            following = take(data.state_index, index) + 1
            chosen = _one_of(take(actions, following), generator)
            with torch.no_grad():
                after = target.both(normalizer(batch.next_observations), chosen)
            value = gamma * (1.0 - batch.terminations) * (after * unit + offset)
            targets = ((rewards[index] + value - offset) / unit).clamp(low, high)
        loss, _ = critic_loss(critic, normalizer(batch.observations), batch.actions, targets)
        optimizer.param_groups[0]["lr"] = half_cosine(config.learning_rate, step, total)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step < config.first_steps:
            target.load_state_dict(critic.state_dict())
        else:
            polyak_update(critic, target, config.tau)
        bar.update()
    if not bool(torch.isfinite(loss.detach())):
        raise NonFiniteError(f"fitted Q evaluation diverged. {LIKELY_CAUSES}")
    return FittedQ(normalizer, critic.requires_grad_(False), unit, offset)


def _bounds(rewards: Tensor, gamma: float, terminates: bool) -> tuple[float, float]:
    """What a discounted return can be: all rewards the smallest, or the largest, for ever.

    Where episodes may terminate, a return may also have fewer of them.
    """
    low, high = float(rewards.min()), float(rewards.max())
    if gamma >= 1.0:
        return -torch.inf, torch.inf
    ends = [reward / (1.0 - gamma) for reward in (low, high)] + [low, high] * terminates
    return min(ends), max(ends)


def _one_of(actions: Tensor, generator: torch.Generator) -> Tensor:
    """One action of each row, (B, K, A) to (B, A)."""
    if actions.shape[1] == 1:
        return actions[:, 0]
    rows = torch.arange(len(actions), device=actions.device)
    size = (len(actions),)
    device = actions.device
    return actions[rows, torch.randint(actions.shape[1], size, generator=generator, device=device)]
