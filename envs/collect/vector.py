"""Rollouts of Stable-Baselines3 agents in their own vector environments."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from tqdm import tqdm

from qgpo.envs.tasks.spaces import check_spaces


class Predicting(Protocol):
    """An SB3 agent, or one of ours."""

    def predict(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        """A batch of observations to (actions, state)."""
        ...


def collect_vec_env(
    agent: Predicting,
    vec_env: VecEnv,
    n_steps: int,
    seed: int,
    *,
    deterministic: bool = False,
    progress_bar: bool = True,
) -> list[EpisodeBuffer]:
    """At least `n_steps` steps of whole episodes, for `write_minari`.

    Under a VecNormalize, which has to be the outermost wrapper, the agent sees normalised
    observations, as in its training, and the environment's own observations and rewards are
    recorded; its statistics stay as they are. The last observation of an episode is the one
    before the automatic reset, and an episode that a time limit ended is truncated, not
    terminated. Episodes open when the steps are reached are played to their end. Raises
    ValueError for spaces that cannot be learned from, for other wrappers around a VecNormalize,
    and where the environment's episodes know no limit.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps={n_steps}, expected at least 1")
    raw, normalize = _unwrap(vec_env)
    check_spaces(raw.observation_space, raw.action_space, "the vector environment")
    for spec in raw.get_attr("spec"):
        if spec is not None and spec.max_episode_steps is None:
            raise ValueError(
                f"environment {spec.id!r} has no step limit, so that episodes may never end; make "
                "it with one: gymnasium.make(id, max_episode_steps=1000)"
            )
    raw.seed(seed)
    with (
        torch.random.fork_rng(devices=[]),
        tqdm(total=n_steps, desc="collect", disable=not progress_bar) as bar,
    ):
        torch.manual_seed(seed)
        if hasattr(agent, "seed_predictions"):
            agent.seed_predictions(seed)
        return _play(agent, raw, normalize, n_steps, deterministic, bar)


def _play(
    agent: Predicting,
    raw: VecEnv,
    normalize: VecNormalize | None,
    n_steps: int,
    deterministic: bool,
    bar: Any,
) -> list[EpisodeBuffer]:
    finished: list[EpisodeBuffer] = []
    observations = np.asarray(raw.reset())
    playing = {i: _Episode(observations[i]) for i in range(raw.num_envs)}
    taken = 0
    while playing:
        seen = observations if normalize is None else normalize.normalize_obs(observations)
        actions, _ = agent.predict(seen, deterministic=deterministic)
        observations, rewards, dones, infos = raw.step(actions)  # type: ignore[assignment]
        taken += len(playing)
        bar.update(len(playing))
        for i in list(playing):
            done = bool(dones[i])
            following = infos[i]["terminal_observation"] if done else observations[i]
            playing[i].add(actions[i], float(rewards[i]), following)
            if not done:
                continue
            cut = bool(infos[i].get("TimeLimit.truncated", False))
            finished.append(playing.pop(i).buffer(truncated=cut))
            if taken < n_steps:
                playing[i] = _Episode(observations[i])
    return finished


class _Episode:
    """An episode under way: T + 1 observations, T of everything else."""

    def __init__(self, observation: NDArray[Any]) -> None:
        self.observations = [np.array(observation)]
        self.actions: list[NDArray[Any]] = []
        self.rewards: list[float] = []

    def add(self, action: NDArray[Any], reward: float, following: NDArray[Any]) -> None:
        """Copies: vector environments may use their arrays again."""
        self.actions.append(np.array(action))
        self.rewards.append(reward)
        self.observations.append(np.array(following))

    def buffer(self, truncated: bool) -> EpisodeBuffer:
        last = np.arange(len(self.rewards)) == len(self.rewards) - 1
        return EpisodeBuffer(
            observations=np.stack(self.observations),
            actions=np.stack(self.actions),
            rewards=self.rewards,
            terminations=[bool(end) for end in last & (not truncated)],
            truncations=[bool(end) for end in last & truncated],
        )


def _unwrap(vec_env: VecEnv) -> tuple[VecEnv, VecNormalize | None]:
    """The environment to record, and what normalises its observations for the agent."""
    raw, normalize = vec_env, None
    if isinstance(vec_env, VecNormalize):
        raw, normalize = vec_env.venv, vec_env
    inner: Any = raw
    while isinstance(inner, VecEnvWrapper):
        if isinstance(inner, VecNormalize):
            raise ValueError(
                f"a VecNormalize lies inside {type(vec_env).__name__}: it has to be the outermost "
                "wrapper, so that what it normalises can be recorded as it was"
            )
        inner = inner.venv
    return raw, normalize
