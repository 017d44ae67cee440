"""Rollouts of policies into Minari datasets."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import minari
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray
from tqdm import tqdm

from qgpo.envs.data.local import datasets_root, folder_of, new_dataset_path, put_in_place
from qgpo.envs.tasks.families import find_family
from qgpo.envs.tasks.making import as_played, make_env, quiet_mujoco
from qgpo.envs.tasks.observations import stack

N_ENVS = 10


class Policy(Protocol):
    """What collection needs of a policy."""

    def act(
        self, observations: Any, generator: torch.Generator, deterministic: bool = False
    ) -> NDArray[np.float32]:
        """A batch of B observations (arrays, or Dicts of arrays) to actions (B, A)."""
        ...


def collect(
    env_id: str | EnvSpec,
    make_policies: Callable[[gym.spaces.Box], Sequence[Policy]],
    n_steps: int,
    seed: int,
    *,
    switch_every: int | None = None,
    deterministic: bool = False,
    max_episode_steps: int | None = None,
    progress_bar: bool = True,
) -> list[EpisodeBuffer]:
    """At least `n_steps` steps of whole episodes, with one policy drawn at random per episode.

    With `switch_every`, the policy is drawn anew about every so many steps (a coin each step),
    so that all behaviors visit the same states. An id is played as its family is, where a maze
    ends at the goal; a spec as it is. Episodes open when the steps are reached are played to
    their end: dropping them would favour short ones. Reproducible from the seed, on one machine:
    with several torch threads sums are rounded differently, and a simulator makes that another
    rollout, so one is used. Policies that round their actions, as an ActorPolicy does, are rolled
    out alike on all machines with the same MuJoCo whose C library computes alike.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    envs = [_make(env_id) for _ in range(N_ENVS)]
    name = env_id if isinstance(env_id, str) else env_id.id
    if not isinstance(envs[0].action_space, gym.spaces.Box):
        raise ValueError(f"{name} has action space {envs[0].action_space}, expected a Box")
    policies = make_policies(envs[0].action_space)
    spec = envs[0].spec
    limit = max_episode_steps or (spec.max_episode_steps if spec else None) or 1000
    finished: list[EpisodeBuffer] = []
    playing = {i: _Episode.begin(env, int(rng.integers(2**31))) for i, env in enumerate(envs)}
    active = rng.integers(len(policies), size=N_ENVS)
    taken = 0
    with (
        one_thread(),
        tqdm(total=n_steps, desc=f"collect {name}", disable=not progress_bar) as bar,
    ):
        while playing:
            slots = list(playing)
            observations = stack([playing[i].observations[-1] for i in slots])
            if switch_every is not None:
                switch = rng.random(N_ENVS) < 1.0 / switch_every
                active = np.where(switch, rng.integers(len(policies), size=N_ENVS), active)
            proposals = [policy.act(observations, generator, deterministic) for policy in policies]
            taken += len(slots)
            bar.update(len(slots))
            for row, i in enumerate(slots):
                if not playing[i].step(proposals[active[i]][row], limit):
                    continue
                finished.append(playing.pop(i).buffer())
                if taken < n_steps:
                    playing[i] = _Episode.begin(envs[i], int(rng.integers(2**31)))
                    active[i] = rng.integers(len(policies))
    for env in envs:
        env.close()
    return finished


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside, as many as before after it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _make(env: str | EnvSpec) -> gym.Env[Any, Any]:
    return make_env(as_played(env) if isinstance(env, str) else env)


class _Episode:
    """An episode under way: T + 1 observations, T of everything else."""

    def __init__(self, env: gym.Env[Any, Any], seed: int, observation: Any) -> None:
        self.env, self.seed = env, seed
        self.observations: list[Any] = [observation]
        self.actions: list[Any] = []
        self.rewards: list[float] = []
        self.terminations: list[bool] = []
        self.truncations: list[bool] = []

    @classmethod
    def begin(cls, env: gym.Env[Any, Any], seed: int) -> _Episode:
        return cls(env, seed, env.reset(seed=seed)[0])

    def step(self, action: Any, limit: int) -> bool:
        """Take one step; whether the episode is over."""
        observation, reward, terminated, truncated, _ = self.env.step(action)
        truncated = truncated or (len(self.rewards) + 1 >= limit and not terminated)
        self.observations.append(observation)
        self.actions.append(action)
        self.rewards.append(float(reward))
        self.terminations.append(bool(terminated))
        self.truncations.append(bool(truncated))
        return bool(terminated or truncated)

    def buffer(self) -> EpisodeBuffer:
        return EpisodeBuffer(
            seed=self.seed,
            observations=stack(self.observations),
            actions=np.asarray(self.actions),  # type: ignore[arg-type]
            rewards=self.rewards,
            terminations=self.terminations,
            truncations=self.truncations,
        )


def write_minari(
    dataset_id: str,
    episodes: list[EpisodeBuffer],
    env_id: str | EnvSpec,
    algorithm_name: str,
    description: str,
    eval_env: EnvSpec | None = None,
    bundled: bool = False,
) -> None:
    """Store episodes as a Minari dataset, whole or not at all.

    It is written beside the local datasets and renamed into place, so that an interrupted run
    leaves nothing that a later load would trip over. `eval_env` is where agents are to play, if
    elsewhere. Raises ValueError where the id exists, or is under qgpo/ and not `bundled`.
    """
    new_dataset_path(dataset_id, bundled)
    root = folder_of("")
    root.mkdir(parents=True, exist_ok=True)
    env = _make(env_id)
    family = find_family(env_id=env.spec.id if env.spec else None)
    references = family.reference if family.episodes == "recorded" else None
    with tempfile.TemporaryDirectory(prefix=".qgpo-", dir=root) as scratch:
        with (
            datasets_root(Path(scratch)),
            quiet_mujoco(),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", message="`eval_env` is set to None")
            minari.create_dataset_from_buffers(
                dataset_id,
                episodes,
                env=env,
                eval_env=eval_env,
                algorithm_name=algorithm_name,
                author="qgpo",
                author_email="none",
                code_permalink="none",
                description=description,
                ref_min_score=references.minimum if references else None,
                ref_max_score=references.maximum if references else None,
            )
            made = folder_of(dataset_id)
        put_in_place(made, dataset_id)
