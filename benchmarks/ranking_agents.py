"""What ranking.py asks of trained agents and their data: Q, behavior, units, density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ranking_play import Agent, Tail, acting, vectors
from torch import Tensor

from qgpo.agents import AGENTS, load_agent
from qgpo.agents.core.batches import Batches
from qgpo.agents.core.process import usual_torch
from qgpo.agents.fql import FQL
from qgpo.agents.guided.behavior import fit_trust
from qgpo.agents.guided.policy import GuidedPolicy
from qgpo.agents.ifql import IFQL
from qgpo.agents.iql import IQL
from qgpo.agents.rebrac import ReBRAC
from qgpo.agents.td3bc import TD3BC
from qgpo.density import Trust, nearest_distance
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.experiments.folder import RunFolder
from qgpo.normalization import ObservationNormalizer

TWIN_CRITICS = (IQL, IFQL, FQL, ReBRAC, TD3BC)
"""agents beside the guided family whose Q can be asked"""
SHIFTED = 1e-5
"""constant in the rewards, relative to the largest, up to which it is rounding"""


@dataclass(frozen=True)
class Unit:
    """The rewards that a critic learned from: scale * reward + shift."""

    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True)
class Actions:
    """Actions (S, K, A) in every state: the behavior's first, then the policy's."""

    scaled: Tensor
    """in [-1, 1]"""
    in_space: NDArray[Any]
    """in the environment's units"""
    parts: dict[str, slice]
    """which of the K are what"""


def load(run: Path) -> Agent:
    """The trained agent of a run folder. Raises ValueError where there is none."""
    checkpoint = RunFolder(run).checkpoint
    if not checkpoint.is_file():
        raise ValueError(f"--run {run}: no checkpoint.zip in it")
    agent = load_agent(checkpoint, device="cpu")
    if not agent.is_trained:
        raise ValueError(f"--run {run}: the training is not complete: {agent}")
    return agent


def check_ranks(agent: Agent) -> None:
    """Raise ValueError for an agent without one Q to rank actions by."""
    guided = isinstance(agent, GuidedPolicy)
    if not guided and not isinstance(agent, TWIN_CRITICS):
        kinds = (GuidedPolicy, *TWIN_CRITICS)
        known = [name for name, kind in AGENTS.items() if issubclass(kind, kinds)]
        raise ValueError(f"a {agent.name} agent has no Q to rank by, expected one of {known}")


def values_of(agent: Agent, observations: Tensor, actions: Tensor) -> NDArray[np.float64]:
    """The critic's Q of actions (S, K, A) in states (S, obs), in its own unit: (S, K).

    It is the Q by which the agent improves: the mean of both heads in FQL, the smaller target head
    elsewhere. Raises ValueError for agents without one.
    """
    check_ranks(agent)
    with usual_torch(), torch.no_grad():
        if isinstance(agent, GuidedPolicy):
            condition = agent.behavior.normalizer(observations)[:, None]
            z = agent.behavior.whitening.encode(condition, actions)
            q = agent.critic.target(condition, z)
        elif isinstance(agent, FQL):
            q = agent.critic.both(agent.normalizer(observations)[:, None], actions).mean(dim=0)
        else:
            assert isinstance(agent, TWIN_CRITICS)
            q = agent.critic_target(agent.normalizer(observations)[:, None], actions)
    values: NDArray[np.float64] = q.double().cpu().numpy()
    return values


def behavior_of(agent: Agent, other: Agent | None) -> Agent:
    """Who draws the behavior's actions: the agent itself without guidance, or another one.

    Raises ValueError where the agent has no model of the behavior, or acts in another scale.
    """
    if other is not None:
        if other.action_scale is None or not other.action_scale.agrees_with(agent.action_scale):
            raise ValueError("--behavior: that agent scales actions by other data")
        return acting(other, 0.0)
    if isinstance(agent, GuidedPolicy):
        return acting(agent, 0.0)
    if isinstance(agent, IFQL):
        alone: Any = acting(agent, None)
        alone.num_samples = 1
        return alone  # type: ignore[no-any-return]
    raise ValueError(
        f"a {agent.name} agent has no model of the behavior: name a run of QGPO, AEPO, QIPO, SIR, "
        "BestOfN, IFQL or BC on the same data with --behavior"
    )


def draw_actions(
    policy: Agent,
    behavior: Agent,
    observations: Tensor,
    support: int,
    guided_samples: int,
    seed: int,
) -> Actions:
    """The actions to compare in each state (S, obs)."""
    for i, actor in enumerate((policy, behavior)):
        actor.seed_predictions(seed + i)
    drawn = {
        "support": _drawn(behavior, observations, support, False),
        "behavior_mean": _drawn(behavior, observations, 1, True),
        "guided_mean": _drawn(policy, observations, 1, True),
        "guided_samples": _drawn(policy, observations, guided_samples, False),
    }
    parts, begin = {}, 0
    for name, actions in drawn.items():
        parts[name] = slice(begin, begin + actions.shape[1])
        begin += actions.shape[1]
    scaled = torch.cat(list(drawn.values()), dim=1)
    assert policy.action_scale is not None
    return Actions(scaled, policy.action_scale.to_space(scaled.cpu().numpy()), parts)


def _drawn(actor: Agent, observations: Tensor, n: int, deterministic: bool) -> Tensor:
    """Several actions in each state, (S, n, A)."""
    with usual_torch(), torch.no_grad():
        actions = actor.act(observations.repeat_interleave(n, dim=0), deterministic)
    return actions.reshape(len(observations), n, -1)


def unit_of(dataset: OfflineDataset, data: Batches) -> Unit:
    """How the critic's rewards follow from the data's: every rule of tuning is affine."""
    raw, tuned = np.asarray(dataset.rewards, np.float64), data.rewards.double().cpu().numpy()
    away = raw - raw.mean()
    if not away.any():
        return Unit(1.0, float(tuned.mean() - raw.mean()))
    scale = float((away @ tuned) / (away @ away))
    shift = float(tuned.mean() - scale * raw.mean())
    return Unit(scale, shift if abs(shift) > SHIFTED * np.abs(tuned).max() else 0.0)


def tail_of(agent: Agent, policy: Agent, unit: Unit) -> Tail:
    """V of an observation as Q of the policy's deterministic action, in the environment's units.

    Raises ValueError where the critic's rewards are shifted: its values are not those of a
    rollout's rewards in another unit.
    """
    if unit.shift:
        raise ValueError(f"value_at_end: the critic learned from rewards with {unit.shift:g} added")
    return partial(_values_at_end, agent, policy, unit.scale)


def _values_at_end(
    agent: Agent, policy: Agent, scale: float, observations: Sequence[Any]
) -> NDArray[np.float64]:
    batch = vectors(agent, observations)
    with usual_torch(), torch.no_grad():
        acted = policy.act(batch, True)[:, None]
    values: NDArray[np.float64] = values_of(agent, batch, acted)[:, 0] / scale
    return values


def density_of(data: Batches, observations: Tensor) -> NDArray[np.float64]:
    """Distance of states (S, obs) to the nearest of the dataset, relative to the median there.

    References and median are those of `qgpo.density.Trust`, in standardised coordinates.
    """
    normalizer = ObservationNormalizer(data.states.shape[1])
    normalizer.fit(data.states)
    trust = Trust(data.states.shape[1], 1.0)
    rows = torch.randperm(len(data.states), generator=torch.Generator().manual_seed(0))
    fit_trust(trust, data, normalizer, rows)
    distances = nearest_distance(normalizer(observations), trust.references)
    relative: NDArray[np.float64] = (distances / trust.median).double().numpy()
    return relative
