"""Episodes into Minari's files: how many bytes they take, and a full disk that ends no process."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from qgpo.envs.rollouts.collecting import N_ENVS
from qgpo.envs.tasks.making import as_played, make_env

EPISODE_BYTES = 20_000
"""what HDF5 adds to each episode; measured: 14,000 to 16,000 where all arrays are short"""
CHUNK_FACTOR = 1.5
"""HDF5's arrays are whole chunks; measured: 1.23 for episodes of 1000 steps"""

FLOAT_BYTES = 8


class _FileOfHDF5(io.FileIO):
    """A file for h5py that reports no failed write: HDF5 may end the process after one (SIGSEGV).

    The first error is kept in `error`; from then on nothing is written.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of the data, or keep the error."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while self.error is None and len(rest) > 0:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the size, or keep the error."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def until_error(self, episodes: Iterable[EpisodeBuffer]) -> Iterator[EpisodeBuffer]:
        """The episodes, as long as there was no error."""
        for episode in episodes:
            if self.error is not None:
                return
            yield episode


def store_episodes(storage: MinariStorage, episodes: Iterable[EpisodeBuffer]) -> None:
    """Add episodes to a Minari storage. Raises OSError where the disk does not take them."""
    if storage.FORMAT != "hdf5":
        storage.update_episodes(episodes)
        return
    path = storage._file_path  # type: ignore[attr-defined]  # h5py takes files in its place
    with _FileOfHDF5(path, "r+") as file:
        storage._file_path = file  # type: ignore[attr-defined]
        try:
            storage.update_episodes(file.until_error(episodes))
            os.fsync(file.fileno())
        except Exception as error:  # what HDF5 says of a file that lacks what it wrote
            raise file.error or error from error
        finally:
            storage._file_path = path  # type: ignore[attr-defined]
        if file.error is not None:
            raise file.error


def size_of(episodes: Iterable[EpisodeBuffer]) -> int:
    """About how many bytes these episodes take on a disk."""
    names = ("observations", "actions", "rewards", "terminations", "truncations", "infos")
    sizes = [sum(_bytes(getattr(episode, name)) for name in names) for episode in episodes]
    return int(CHUNK_FACTOR * sum(sizes)) + EPISODE_BYTES * len(sizes)


def expected_size(env_id: str | EnvSpec, steps: int, max_episode_steps: int | None = None) -> int:
    """About how many bytes take the episodes that `collect` plays; more where many end early."""
    env = make_env(as_played(env_id))
    limit = max_episode_steps or (env.spec.max_episode_steps if env.spec else None) or 1000
    numbers = gym.spaces.flatdim(env.observation_space) + gym.spaces.flatdim(env.action_space) + 2
    env.close()
    steps += min(N_ENVS * limit, steps)  # open episodes are played to their end
    return int(CHUNK_FACTOR * FLOAT_BYTES * numbers * steps) + EPISODE_BYTES * (steps // limit + 1)


def _bytes(values: Any) -> int:
    """Bytes of the arrays in what may be nested dictionaries and tuples."""
    if isinstance(values, dict):
        return sum(map(_bytes, values.values()))
    if isinstance(values, tuple):
        return sum(map(_bytes, values))
    return 0 if values is None else int(np.asarray(values).nbytes)
