"""Minari to OfflineDataset: read once, into memory or into memory-mapped files."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minari import EpisodeData, MinariDataset
from tqdm import tqdm

from qgpo.envs.data import memmap
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.data.memmap import Episode
from qgpo.envs.store import bundled
from qgpo.envs.store.episode_rules import RULES
from qgpo.envs.store.local import files_in
from qgpo.envs.store.opening import open_dataset
from qgpo.envs.store.writing import put_in_place
from qgpo.envs.tasks.families import UNKNOWN, Family, find_family
from qgpo.envs.tasks.observations import ObservationAdapter
from qgpo.envs.tasks.spaces import vector_spaces

STORAGES = ("memory", "memmap")
Storage = Literal["memory", "memmap"]


def load_dataset(
    dataset: str | MinariDataset,
    download: bool = True,
    storage: Storage = "memory",
    progress_bar: bool = True,
) -> OfflineDataset:
    """Read a Minari dataset, by id or opened.

    Ids under `qgpo/` are made on first use from the bundled policies (half a minute); a warning
    says where the result differs from the published data. Other ids are looked up in Minari's
    local folder (`MINARI_DATASETS_PATH`) and, with `download`, on its remote. An id without a
    version means the newest local one, or the newest remote one where none is local.

    `storage="memmap"` is for data larger than memory. On first use they are converted into files
    beside Minari's, which agents train from without reading them as a whole; the arrays, and what
    is learned from them, are the same.

    Dict observations become vectors, and episodes follow the rules of the environment in which
    agents play, as the dataset's row of `envs/tasks/families.py` states; data without a row cause
    a warning. Raises ValueError for unknown ids, unsupported spaces and invalid data.
    """
    if storage not in STORAGES:
        raise ValueError(f"storage={storage!r}, expected one of {list(STORAGES)}")
    if isinstance(dataset, str):
        source = open_dataset(dataset, download, progress_bar)
    elif isinstance(dataset, MinariDataset):
        source = dataset
    else:
        raise TypeError(
            f"dataset is a {type(dataset).__name__}, expected a Minari id such as "
            "'qgpo/halfcheetah/mixed-v0' or a minari.MinariDataset"
        )
    reader = _Reader.of(source)
    read = _map(reader, progress_bar) if storage == "memmap" else _read(reader)
    if reader.is_complete:
        bundled.warn_of_other_data(read)
    return read


@dataclass(frozen=True)
class _Reader:
    """A Minari dataset and how its family is read."""

    source: MinariDataset
    family: Family
    adapter: ObservationAdapter | None
    observation_space: spaces.Box
    action_space: spaces.Box

    @property
    def is_complete(self) -> bool:
        """Whether all stored episodes are read, not a selection of them."""
        return bool(self.source.total_episodes == self.source.storage.total_episodes)

    @classmethod
    def of(cls, source: MinariDataset) -> _Reader:
        """Raises ValueError for unsupported spaces; warns where no family is known."""
        of = f"dataset {source.id!r}"
        spec = source.env_spec
        family = find_family(source.id, spec.id if spec is not None else None)
        adapter, *boxes = vector_spaces(
            source.observation_space, source.action_space, family.observation, of
        )
        if family is UNKNOWN:
            vector = "" if adapter is None else f"observations are the vector of {adapter}; "
            warnings.warn(
                f"{of} is of no known family: {vector}rewards and episodes are used as recorded, "
                "agents play in the environment that it names, and scores are raw returns unless "
                "its metadata have reference scores",
                stacklevel=3,
            )
        return cls(source, family, adapter, *boxes)


def _read(reader: _Reader) -> OfflineDataset:
    """All episodes into memory."""
    episodes = list(_episodes(reader))
    arrays = {name: np.concatenate([e[name] for e in episodes]) for name in episodes[0]}
    lengths = [len(episode["rewards"]) for episode in episodes]
    arrays["episode_starts"] = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    return _dataset(reader, arrays, None)


def _map(reader: _Reader, progress_bar: bool) -> OfflineDataset:
    """The converted files beside the Minari data, made on first use and after changes."""
    source = reader.source
    data = Path(source.storage.data_path)
    indices = np.asarray(source.episode_indices, dtype=np.int64)
    selection = hashlib.sha256(indices.tobytes()).hexdigest()
    folder = data.parent / ("memmap" if reader.is_complete else f"memmap-{selection[:12]}")
    about = {
        "episodes": selection,
        "rule": reader.family.episodes,
        "observations": reader.adapter.to_json() if reader.adapter else None,
        "files": {
            name: [path.stat().st_size, path.stat().st_mtime_ns]
            for name, path in files_in(data).items()
        },
    }
    index = memmap.read_index(folder, about)
    if index is None:
        _convert(reader, folder, about, progress_bar)
        index = memmap.read_index(folder, about)
        if index is None:
            raise ValueError(f"dataset {source.id!r} changed while it was converted: load it again")
    arrays = memmap.map_arrays(folder, index["shapes"])
    return _dataset(reader, {**arrays, "fingerprint": index["fingerprint"]}, folder)


def _convert(reader: _Reader, folder: Path, about: dict[str, Any], progress_bar: bool) -> None:
    """Write the arrays into a scratch folder, check them, and rename it."""
    source = reader.source
    bar = tqdm(total=source.total_steps, desc=f"convert {source.id}", disable=not progress_bar)
    scratch = tempfile.TemporaryDirectory(
        prefix=".memmap-", dir=folder.parent, ignore_cleanup_errors=True
    )
    with scratch, bar:
        made = Path(scratch.name) / "arrays"
        made.mkdir()
        try:
            shapes = memmap.write_arrays(made, _counted(_episodes(reader), bar))
            # The checked arrays are released here: an open file keeps Windows from renaming.
            fingerprint = _dataset(reader, memmap.map_arrays(made, shapes), None).fingerprint
            memmap.write_index(made, shapes, {"source": about, "fingerprint": fingerprint})
            if memmap.read_index(folder, about) is None:  # else another process was faster
                put_in_place(made, folder, replace=True)
        except OSError as error:
            free = shutil.disk_usage(folder.parent).free / 2**20
            raise OSError(
                error.errno,
                f"dataset {source.id!r} could not be converted in {folder.parent} "
                f"({error}; {free:.0f} MiB free): free some space, or use storage='memory'",
            ) from error


def _counted(episodes: Iterator[Episode], bar: Any) -> Iterator[Episode]:
    for episode in episodes:
        bar.update(len(episode["rewards"]))
        yield episode


def _dataset(reader: _Reader, arrays: dict[str, Any], folder: Path | None) -> OfflineDataset:
    source, family = reader.source, reader.family
    metadata = source.storage.metadata
    recorded = source.env_spec
    if recorded is None and family.environment in gym.registry:
        recorded = gym.spec(family.environment)
    # Minari offers the evaluation spec in no other way than as a made environment.
    played = family.played(getattr(source, "_eval_env_spec", None) or recorded)
    cached: dict[str, Any] = {
        name: arrays.pop(name)
        for name in ("state_index", "last_steps", "fingerprint")
        if name in arrays
    }
    dataset = OfflineDataset(
        id=source.id,
        **arrays,
        observation_space=reader.observation_space,
        action_space=reader.action_space,
        adapter=reader.adapter,
        env_spec=played,
        reference=family.scores(metadata, played),
        details={"algorithm": metadata.get("algorithm_name"), "family": family.name},
        folder=folder,
    )
    dataset.__dict__.update(cached)  # cached properties that are stored need no computation
    return dataset


def _stored(source: MinariDataset) -> Iterator[EpisodeData]:
    """Minari's episodes. Raises ValueError where one cannot be read or steps are missing."""
    steps = 0
    try:
        for episode in source.iterate_episodes():
            steps += len(episode.rewards)
            yield episode
    except (OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"dataset {source.id!r} cannot be read after {steps} of {source.total_steps} steps "
            f"({error}): it is incomplete or damaged, fetch or regenerate it"
        ) from error
    if steps != source.total_steps:
        raise ValueError(
            f"dataset {source.id!r}: {steps} steps were read, its metadata say "
            f"{source.total_steps}. It is damaged, or its episodes are longer than Minari reads "
            "back completely from Arrow and Parquet files (32767 steps): store it as HDF5"
        )


def _episodes(reader: _Reader) -> Iterator[Episode]:
    """Every episode with at least one step, its shapes checked, read by its family's rule.

    Raises ValueError where there is none.
    """
    source, rule = reader.source, RULES[reader.family.episodes]
    is_empty = True
    for stored in _stored(source) if source.total_steps > 0 else ():
        episode = _arrays(reader, stored)
        if len(stored.rewards) > 0:
            episode = rule(episode, stored.observations)
        if len(episode["rewards"]) > 0:
            is_empty = False
            yield episode
    if is_empty:
        raise ValueError(f"dataset {source.id!r} is empty: at least one transition is needed")


def _arrays(reader: _Reader, stored: EpisodeData) -> Episode:
    """A stored episode as arrays. Raises ValueError where their shapes do not fit."""
    length = len(stored.rewards)
    observations = stored.observations
    if reader.adapter is not None:
        observations = reader.adapter.flatten(observations)
    expected = {
        "observations": (observations, (length + 1, *reader.observation_space.shape)),
        "actions": (stored.actions, (length, *reader.action_space.shape)),
        "terminations": (stored.terminations, (length,)),
        "truncations": (stored.truncations, (length,)),
    }
    for name, (values, shape) in expected.items():
        if np.shape(values) != shape:
            raise ValueError(
                f"dataset {reader.source.id!r}, episode {stored.id}: {name} has shape "
                f"{np.shape(values)}, expected {shape} (T + 1 observations for T = {length} steps)"
            )
    with np.errstate(over="ignore"):  # what overflows becomes infinite, which is refused later
        return {
            "states": np.asarray(observations, dtype=np.float32),
            "actions": np.asarray(stored.actions, dtype=np.float32),
            "rewards": np.asarray(stored.rewards, dtype=np.float32),
            "terminations": np.asarray(stored.terminations, dtype=np.bool_),
            "truncations": np.asarray(stored.truncations, dtype=np.bool_),
        }
