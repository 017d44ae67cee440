"""Minari to OfflineDataset: contiguous float32 arrays, read once and validated."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari import MinariDataset
from minari.dataset.minari_dataset import parse_dataset_id
from minari.storage.datasets_root_dir import get_dataset_path
from numpy.typing import NDArray

from qgpo.envs import bundled
from qgpo.envs.reference import ReferenceScores, reference_scores

Array = NDArray[np.float32]

REWARD_TUNINGS = ("none", "locomotion", "antmaze")


@dataclass(frozen=True, eq=False)
class OfflineDataset:
    """N transitions in E episodes, in the order in which they happened.

    `states` keeps every observation once, an episode of T steps has T + 1 of them; transition i
    goes from `states[state_index[i]]` to the row after it. S observation, A action dimension.
    """

    id: str
    states: Array
    """(N + E, S) every observation, the last one of each episode included"""
    actions: Array
    """(N, A) as executed, in the environment's units"""
    rewards: Array
    """(N,) as given by the environment"""
    terminations: NDArray[np.bool_]
    """(N,) the episode ended inside the task: the bootstrap is cut"""
    truncations: NDArray[np.bool_]
    """(N,) the episode was cut from outside: the bootstrap is kept"""
    episode_starts: NDArray[np.int64]
    """(E,) index of the first transition of each episode"""
    observation_space: spaces.Box
    action_space: spaces.Box
    env_spec: EnvSpec | None = None
    reference: ReferenceScores | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _validate(self)

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def n_episodes(self) -> int:
        """E."""
        return len(self.episode_starts)

    @cached_property
    def last_steps(self) -> NDArray[np.bool_]:
        """(N,) the last transition of each episode, whatever ended it."""
        last = np.zeros(len(self), dtype=np.bool_)
        last[self.episode_starts[1:] - 1] = True
        last[-1] = True
        return last

    @cached_property
    def state_index(self) -> NDArray[np.int64]:
        """(N,) the row of `states` from which each transition starts."""
        starts = np.zeros(len(self), dtype=np.int64)
        starts[self.episode_starts] = 1
        return np.arange(len(self), dtype=np.int64) + np.cumsum(starts) - 1

    @property
    def observations(self) -> Array:
        """(N, S)."""
        return self.states[self.state_index]

    @property
    def next_observations(self) -> Array:
        """(N, S)."""
        return self.states[self.state_index + 1]

    @cached_property
    def episode_returns(self) -> NDArray[np.float64]:
        """(E,) undiscounted sums of rewards."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.episode_starts)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all arrays, which tells one dataset from another."""
        digest = hashlib.sha256()
        for array in (
            self.states,
            self.actions,
            self.rewards,
            self.terminations,
            self.truncations,
            self.episode_starts,
        ):
            digest.update(str((array.dtype, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def tuned_rewards(self, rule: str) -> Array:
        """Rewards as the critic sees them, (N,).

        `none`; `locomotion`: times 1000 / (largest - smallest episode return);
        `antmaze`: minus 1 (both IQL's, arXiv 2110.06169, appendix B).
        """
        if rule == "none":
            return self.rewards
        if rule == "antmaze":
            return self.rewards - np.float32(1.0)
        if rule == "locomotion":
            spread = float(self.episode_returns.max() - self.episode_returns.min())
            if spread < 1e-6:
                return self.rewards
            return self.rewards * np.float32(1000.0 / spread)
        raise ValueError(f"reward_tuning={rule!r}, expected one of {list(REWARD_TUNINGS)}")

    def normalized_score(self, returns: float | NDArray[np.float64]) -> NDArray[np.float64] | None:
        """100 (return - min) / (max - min), or None without reference scores."""
        return None if self.reference is None else self.reference.normalize(returns)


def load_dataset(dataset: str | MinariDataset, download: bool = True) -> OfflineDataset:
    """Read a Minari dataset, by id or opened, into memory.

    Ids under `qgpo/` are made on first use from the bundled policies (about a minute); other ids
    are looked up in Minari's local folder (`MINARI_DATASETS_PATH`) and, with `download`, on its
    remote. Raises ValueError for unknown ids, unsupported spaces and invalid data.
    """
    if isinstance(dataset, MinariDataset):
        return _from_minari(dataset)
    if not isinstance(dataset, str):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}, expected a Minari id such as "
            "'qgpo/halfcheetah/mixed-v0' or a minari.MinariDataset"
        )
    return _from_minari(_open(dataset, download))


def _open(dataset_id: str, download: bool) -> MinariDataset:
    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:  # TypeError: no version
        reason = error if isinstance(error, ValueError) else "no version"
        raise ValueError(
            f"dataset id {dataset_id!r} is malformed ({reason}); expected 'namespace/name-vN', "
            f"for example 'mujoco/hopper/medium-v0'.\n{_choices()}"
        ) from error
    if bundled.is_bundled(dataset_id):
        bundled.ensure(dataset_id)
        return minari.load_dataset(dataset_id)
    folder = Path(get_dataset_path(dataset_id))
    if folder.exists():
        try:
            opened = minari.load_dataset(dataset_id)
            if opened.total_episodes > 0:
                len(opened[0].rewards)
                len(opened[opened.total_episodes - 1].rewards)
            return opened
        except Exception as error:
            if not download:
                raise ValueError(
                    f"dataset {dataset_id!r} in {folder} is incomplete or damaged ({error}); "
                    "delete that folder, or pass download=True to fetch it anew"
                ) from error
            aside = folder.with_name(folder.name + ".broken")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
    elif not download:
        raise ValueError(
            f"dataset {dataset_id!r} is not in {get_dataset_path('')}.\n{_choices()}\n"
            f"To fetch it: load_dataset({dataset_id!r}, download=True) "
            f"or `minari download {dataset_id}`"
        )
    return _download(dataset_id, folder)


def _download(dataset_id: str, folder: Path) -> MinariDataset:
    aside = folder.with_name(folder.name + ".broken")
    try:
        minari.download_dataset(dataset_id)
        opened = minari.load_dataset(dataset_id)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if aside.exists():
            aside.rename(folder)
        if not isinstance(error, Exception):
            raise
        raise ValueError(
            f"dataset {dataset_id!r} is not in {get_dataset_path('')} and could not be "
            f"downloaded: {type(error).__name__}: {error}\n{_choices()}\n"
            "Check the id and the network (MINARI_REMOTE names the server), or copy the dataset "
            "into the local folder (MINARI_DATASETS_PATH)"
        ) from error
    shutil.rmtree(aside, ignore_errors=True)
    return opened


def _choices() -> str:
    try:
        local = sorted(minari.list_local_datasets())
    except Exception as error:
        local = [f"(unreadable: {error})"]
    listed = ", ".join(local) if local else "none"
    return f"Local datasets: {listed}. Bundled, made on first use: {', '.join(bundled.ids())}"


def check_spaces(
    observation_space: gym.Space[Any], action_space: gym.Space[Any], of: str
) -> tuple[spaces.Box, spaces.Box]:
    """The two spaces as Boxes, or a ValueError that says what is supported."""
    if not isinstance(action_space, spaces.Box):
        raise ValueError(
            f"{of} has action space {action_space}; continuous actions (a Box with finite "
            "bounds) are supported. For discrete actions use a method made for them, such as "
            "discrete CQL"
        )
    if not np.all(np.isfinite(action_space.low)) or not np.all(np.isfinite(action_space.high)):
        raise ValueError(
            f"{of} has action space {action_space} with infinite bounds; finite ones are needed "
            "to scale actions (wrap the environment with gymnasium.wrappers.RescaleAction)"
        )
    if len(action_space.shape) != 1:
        raise ValueError(f"{of} has action shape {action_space.shape}, expected one dimension")
    if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
        raise ValueError(
            f"{of} has observation space {observation_space}; one-dimensional Box observations "
            "are supported. Flatten Dict observations with "
            "gymnasium.wrappers.FlattenObservation before recording, and embed images first"
        )
    return observation_space, action_space


def _from_minari(source: MinariDataset) -> OfflineDataset:
    dataset_id = source.id
    metadata = source.storage.metadata
    observation_space, action_space = check_spaces(
        source.observation_space, source.action_space, f"dataset {dataset_id!r}"
    )
    if source.total_episodes == 0 or source.total_steps == 0:
        raise ValueError(f"dataset {dataset_id!r} is empty: at least one transition is needed")
    state_dim, action_dim = observation_space.shape[0], action_space.shape[0]
    parts: dict[str, list[NDArray[Any]]] = {
        name: [] for name in ("states", "actions", "rewards", "terminations", "truncations")
    }
    lengths = []
    for episode in source.iterate_episodes():
        length = len(episode.rewards)
        shapes = {
            "observations": (np.shape(episode.observations), (length + 1, state_dim)),
            "actions": (np.shape(episode.actions), (length, action_dim)),
            "terminations": (np.shape(episode.terminations), (length,)),
            "truncations": (np.shape(episode.truncations), (length,)),
        }
        for name, (shape, expected) in shapes.items():
            if shape != expected:
                raise ValueError(
                    f"dataset {dataset_id!r}, episode {episode.id}: {name} has shape {shape}, "
                    f"expected {expected} (T + 1 observations for T = {length} steps)"
                )
        if length == 0:
            continue
        lengths.append(length)
        parts["states"].append(np.asarray(episode.observations, dtype=np.float32))
        parts["actions"].append(np.asarray(episode.actions, dtype=np.float32))
        parts["rewards"].append(np.asarray(episode.rewards, dtype=np.float32))
        parts["terminations"].append(np.asarray(episode.terminations, dtype=np.bool_))
        parts["truncations"].append(np.asarray(episode.truncations, dtype=np.bool_))
    if not lengths:
        raise ValueError(f"dataset {dataset_id!r} is empty: at least one transition is needed")
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    env_spec = getattr(source.spec, "env_spec", None)
    return OfflineDataset(
        id=dataset_id,
        states=np.concatenate(parts["states"]),
        actions=np.concatenate(parts["actions"]),
        rewards=np.concatenate(parts["rewards"]),
        terminations=np.concatenate(parts["terminations"]),
        truncations=np.concatenate(parts["truncations"]),
        episode_starts=starts,
        observation_space=observation_space,
        action_space=action_space,
        env_spec=getattr(source.spec, "eval_env_spec", None) or env_spec,
        reference=reference_scores(metadata, env_spec.id if env_spec is not None else None),
        details={"algorithm": metadata.get("algorithm_name")},
    )


def _validate(data: OfflineDataset) -> None:
    n, e = len(data.rewards), len(data.episode_starts)
    if n == 0:
        raise ValueError(f"dataset {data.id!r} is empty: at least one transition is needed")
    expected = {
        "states": (n + e, *data.observation_space.shape),
        "actions": (n, *data.action_space.shape),
        "terminations": (n,),
        "truncations": (n,),
    }
    for name, shape in expected.items():
        actual = getattr(data, name).shape
        if actual != shape:
            raise ValueError(f"dataset {data.id!r}: {name} has shape {actual}, expected {shape}")
    starts = data.episode_starts
    if e == 0 or starts[0] != 0 or np.any(np.diff(starts) <= 0) or starts[-1] >= n:
        raise ValueError(f"dataset {data.id!r}: episode_starts must rise from 0, got {starts[:5]}")
    state_starts = starts + np.arange(e)
    for name, rows in (("states", state_starts), ("actions", starts), ("rewards", starts)):
        array = getattr(data, name)
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            episode = int(np.searchsorted(rows, row, side="right")) - 1
            raise ValueError(
                f"dataset {data.id!r}: {name} has NaN or infinite values, first in episode "
                f"{episode}, step {row - int(rows[episode])}; remove or repair that episode "
                "(minari's dataset.filter_episodes drops it)"
            )
    low, high = data.action_space.low, data.action_space.high
    margin = 1e-4 * (high - low)
    outside = ((data.actions < low - margin) | (data.actions > high + margin)).any(axis=1)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise ValueError(
            f"dataset {data.id!r}: {int(outside.sum())} actions lie outside the action space "
            f"[{low.min()}, {high.max()}], first {data.actions[row]} at transition {row}; record "
            "the actions as executed, or correct the dataset's action space"
        )
