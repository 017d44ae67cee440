"""Playing for ranking.py: states of episodes, and what every action is worth from there.

Many environments are played in lock-step, with one `predict` per step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qgpo.agents import OfflineAgent
from qgpo.agents.guided.policy import GuidedPolicy
from qgpo.envs.play.evaluation import FALLBACK_LIMIT
from qgpo.envs.play.snapshots import Snapshot, restore, take_snapshot
from qgpo.envs.tasks.making import quiet_mujoco
from qgpo.envs.tasks.observations import stack

Agent = OfflineAgent[Any]
Env = gym.Env[Any, Any]
Array = NDArray[np.float64]
Tail = Callable[[Any], Array]
"""observations (B, …) to what is still to come after them, (B,)"""


@dataclass(frozen=True)
class Start:
    """A state of an episode."""

    snapshot: Snapshot
    observation: Any
    source: str
    """whose episode it is: behavior or policy"""
    seed: int
    """of the episode"""
    step: int
    length: int
    """steps of the whole episode"""


@dataclass
class Episode:
    """What was seen and done."""

    seed: int
    observations: list[Any] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    success: bool | None = None
    """whether it succeeded at its end; None where the environment does not say"""


@dataclass(frozen=True)
class Follow:
    """Who plays on after the action, and for how long."""

    actor: Agent
    horizon: int
    """steps, with that of the action"""
    gamma: float
    repetitions: int
    deterministic: bool
    seed: int
    tail: Tail | None = None
    """added, discounted, to rollouts that have not ended within the horizon"""


# Actors -----------------------------------------------------------------------------------


def acting(agent: Agent, scale: float | None) -> Agent:
    """The agent at a guidance scale, where it has one; networks are shared with it."""
    actor = copy.copy(agent)
    if isinstance(actor, GuidedPolicy) and scale is not None:
        actor.guidance_scale = scale
    return actor


class CommonNoise:
    """Noise of `predict` that is the same for all actions of a group.

    A batch has `copies` rows for each group, in the order of the groups. Every group has its own
    generator, so that its noise does not depend on what else is in the batch.
    """

    def __init__(self, seeds: Sequence[int], copies: int, device: torch.device) -> None:
        self.copies, self.device = copies, device
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.live = list(range(len(seeds)))
        """groups in the batch"""

    def normal(self, *shape: int) -> Tensor:
        """In the place of an agent's `_prediction_normal`: the last axis but one is the batch's.

        Of an agent that draws n actions per observation it is n times as long.
        """
        n = shape[-2] // (len(self.live) * self.copies)
        own = (*shape[:-2], n, shape[-1])
        drawn = [torch.randn(own, generator=self.generators[g]) for g in self.live]
        groups = torch.stack(drawn, dim=-3)[..., None, :, :]
        spread = groups.expand(*shape[:-2], len(self.live), self.copies, n, shape[-1])
        return spread.reshape(shape).to(self.device)


# States -----------------------------------------------------------------------------------


def play_episodes(
    envs: Sequence[Env], actor: Agent, seeds: Sequence[int], deterministic: bool
) -> list[Episode]:
    """One episode per seed, at most one for each environment, to its end or limit."""
    episodes = [Episode(seed) for seed in seeds]
    with quiet_mujoco():
        for env, episode in zip(envs, episodes, strict=False):
            episode.observations.append(copy.deepcopy(env.reset(seed=episode.seed)[0]))
    spec = envs[0].spec
    limit = (spec.max_episode_steps if spec is not None else None) or FALLBACK_LIMIT
    playing = list(range(len(episodes)))
    for _ in range(limit):
        if not playing:
            break
        seen = stack([episodes[k].observations[-1] for k in playing])
        actions, _ = actor.predict(seen, deterministic=deterministic)
        for k, action in zip(list(playing), actions, strict=True):
            observation, _, terminated, truncated, info = envs[k].step(action)
            episodes[k].actions.append(action)
            episodes[k].observations.append(copy.deepcopy(observation))
            success = info.get("success", info.get("is_success"))
            episodes[k].success = None if success is None else bool(success)
            if terminated or truncated:
                playing.remove(k)
    return episodes


def replay(envs: Sequence[Env], chosen: Sequence[tuple[Episode, int, str]]) -> list[Start]:
    """The states of episodes at steps, each with its source.

    Raises ValueError where an episode does not repeat: the environment is then not a function of
    the seed and the actions.
    """
    starts = []
    for i, (episode, step, source) in enumerate(chosen):
        env = envs[i % len(envs)]
        with quiet_mujoco():
            observation = env.reset(seed=episode.seed)[0]
        for action in episode.actions[:step]:
            observation = env.step(action)[0]
        if not np.array_equal(_flat(observation), _flat(episode.observations[step])):
            name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
            raise ValueError(
                f"environment {name!r}: the same seed and actions led to another state; its "
                "states cannot be compared"
            )
        seen = copy.deepcopy(observation)
        length = len(episode.actions)
        starts.append(Start(take_snapshot(env), seen, source, episode.seed, step, length))
    return starts


def _flat(observation: Any) -> NDArray[Any]:
    """All numbers of an array or a Dict."""
    if isinstance(observation, dict):
        return np.concatenate([_flat(observation[key]) for key in sorted(observation)])
    return np.ravel(observation)


def find_starts(
    envs: Sequence[Env],
    actors: dict[str, Agent],
    n: int,
    seed: int,
    near_success: int | None,
    most_episodes: int,
    deterministic: bool,
) -> list[Start]:
    """As many states as episodes, in equal parts from the behavior's and the policy's.

    The step is uniform over the episode; with `near_success`, over that many last steps of
    episodes that succeeded. What the behavior's do not give within `most_episodes` episodes, the
    policy's do. The order is random. Raises ValueError for less than two states.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[Episode, int, str]]] = {}
    for i, (source, actor) in enumerate(actors.items()):
        actor.seed_predictions(seed + i)
        of_source = found.setdefault(source, [])
        played = 0
        missing = n - sum(map(len, found.values())) if i else n // 2
        while len(of_source) < missing and played < most_episodes:
            most = missing - len(of_source) if near_success is None else most_episodes - played
            first = seed + 100_000 * (i + 1) + played
            seeds = range(first, first + min(len(envs), most))
            certain = deterministic and source == "policy"
            for episode in play_episodes(envs, actor, seeds, certain):
                if near_success is not None and episode.success is None:
                    raise ValueError(
                        "near_success: the environment's info does not say whether an episode "
                        "succeeded"
                    )
                if near_success is not None and not episode.success:
                    continue
                length = len(episode.actions)
                least = 0 if near_success is None else max(0, length - near_success)
                of_source.append((episode, int(rng.integers(least, length)), source))
            played += len(seeds)
        del of_source[missing:]
    chosen = [one for of_source in found.values() for one in of_source]
    if len(chosen) < 2:
        raise ValueError(
            f"{len(chosen)} of {most_episodes} episodes of each source succeeded: at least two "
            "states are needed; play more with --most-episodes, or leave --near-success away"
        )
    return replay(envs, [chosen[i] for i in rng.permutation(len(chosen))])


# Rollouts ---------------------------------------------------------------------------------


def play_out(
    envs: Sequence[Env],
    starts: Sequence[Start],
    actions: NDArray[Any],
    follow: Follow,
    numbers: Sequence[int],
    advance: Callable[[int], object] = lambda steps: None,
) -> Array:
    """Discounted returns (S, K, R) of actions (S, K, A) in each state, and of playing on.

    Actions are in the environment's units; `numbers` are those of the states, from which their
    noise follows. Environments and policies have the same random numbers for all actions of a
    state in a repetition. A rollout ends with its episode, at the limit too.
    """
    n, k = actions.shape[:2]
    if len(envs) < k:
        raise ValueError(f"{len(envs)} environments, expected one for each of {k} actions")
    returns = np.zeros((n, k, follow.repetitions))
    groups = [(s, r) for s in range(n) for r in range(follow.repetitions)]
    at_once = len(envs) // k
    for begin in range(0, len(groups), at_once):
        chunk = groups[begin : begin + at_once]
        seeds = [_seed_of(follow.seed, numbers[s], r) for s, r in chunk]
        first = []
        for g, (s, _) in enumerate(chunk):
            for j in range(k):
                restore(envs[g * k + j], starts[s].snapshot, seeds[g])
                first.append(actions[s, j])
        played = _play_chunk(envs, first, k, seeds, follow, advance).reshape(len(chunk), k)
        for g, (s, r) in enumerate(chunk):
            returns[s, :, r] = played[g]
    return returns


def _seed_of(*numbers: int) -> int:
    """One seed of several numbers, below 2^32."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _play_chunk(
    envs: Sequence[Env],
    first: list[Any],
    k: int,
    seeds: list[int],
    follow: Follow,
    advance: Callable[[int], object],
) -> Array:
    """Returns (G * k,) of G groups: environment i takes first[i], then what the actor says."""
    actor = copy.copy(follow.actor)
    noise = CommonNoise(seeds, k, actor.device)
    actor._prediction_normal = noise.normal  # type: ignore[method-assign]
    returns, alive = np.zeros(len(first)), np.ones(len(first), bool)
    seen: list[Any] = [None] * len(first)
    chosen: dict[int, Any] = dict(enumerate(first))
    for t in range(follow.horizon):
        for i in np.flatnonzero(alive):
            observation, reward, terminated, truncated, _ = envs[i].step(chosen[i])
            returns[i] += follow.gamma**t * float(reward)
            seen[i] = copy.deepcopy(observation)
            alive[i] = not (terminated or truncated)
        advance(len(first))
        noise.live = [g for g in range(len(seeds)) if alive[g * k : (g + 1) * k].any()]
        if not noise.live or t + 1 == follow.horizon:
            break
        rows = [i for g in noise.live for i in range(g * k, (g + 1) * k)]
        acted, _ = actor.predict(stack([seen[i] for i in rows]), deterministic=follow.deterministic)
        chosen = dict(zip(rows, acted, strict=True))
    advance((follow.horizon - 1 - t) * len(first))
    if follow.tail is not None:
        left = np.flatnonzero(alive)
        if len(left):
            rest = follow.tail(stack([seen[i] for i in left]))
            returns[left] += follow.gamma**follow.horizon * rest
    return returns


def vectors(agent: Agent, observations: Iterable[Any]) -> Tensor:
    """Observations as the agent's networks see them, (B, S) on its device."""
    batch = stack(list(observations))
    array = agent.adapter.flatten(batch) if agent.adapter is not None else batch
    return torch.as_tensor(np.asarray(array, np.float32), device=agent.device)
