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
from minari import EpisodeData, MinariDataset
from tqdm import tqdm

from qgpo.envs.data import memmap
from qgpo.envs.data.dataset import ARRAYS, OfflineDataset, episode_starts
from qgpo.envs.data.memmap import Episode
from qgpo.envs.store import bundled
from qgpo.envs.store.episode_rules import RULES
from qgpo.envs.store.local import files_in
from qgpo.envs.store.metadata import differences, environments
from qgpo.envs.store.opening import open_dataset
from qgpo.envs.store.writing import put_in_place
from qgpo.envs.tasks.families import UNKNOWN, Family, find_family
from qgpo.envs.tasks.making import register_package
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
    read = reader.map(progress_bar) if storage == "memmap" else reader.read()
    if reader.is_complete:
        bundled.warn_of_other_data(read)
    return read


@dataclass(frozen=True)
class _Reader:
    """A Minari dataset and how its family is read."""

    source: MinariDataset
    family: Family
    fields: dict[str, Any]
    """the OfflineDataset's, all but its arrays and its folder"""

    @property
    def is_complete(self) -> bool:
        """Whether all stored episodes are read, not a selection of them."""
        return bool(self.source.total_episodes == self.source.storage.total_episodes)

    @classmethod
    def of(cls, source: MinariDataset) -> _Reader:
        """Raises ValueError for unsupported spaces; warns where no family is known."""
        of = f"dataset {source.id!r}"
        metadata = source.storage.metadata
        spec, evaluated = environments(metadata, of)
        family = find_family(source.id, spec.id if spec is not None else None)
        adapter, observation_space, action_space = vector_spaces(
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
        if spec is None and family.environment in gym.registry:
            spec = gym.spec(family.environment)
        played = family.played(evaluated or spec)
        if played is not None:
            register_package(played.id)
        for said in (*differences(spec, played), *family.without_scores(metadata, played)):
            warnings.warn(f"{of}: {said}", stacklevel=3)
        fields = {
            "id": source.id,
            "observation_space": observation_space,
            "action_space": action_space,
            "adapter": adapter,
            "env_spec": played,
            "reference": family.scores(metadata, played),
            "details": {"algorithm": metadata.get("algorithm_name"), "family": family.name},
        }
        return cls(source, family, fields)

    def read(self) -> OfflineDataset:
        """All episodes in memory."""
        episodes = list(self.episodes())
        arrays = {name: np.concatenate([e[name] for e in episodes]) for name in episodes[0]}
        starts = episode_starts([len(episode["rewards"]) for episode in episodes])
        return self.dataset({**arrays, "episode_starts": starts})

    def map(self, progress_bar: bool) -> OfflineDataset:
        """The converted files beside the Minari data, made on first use and after changes."""
        data = Path(self.source.storage.data_path)
        indices = np.asarray(self.source.episode_indices, dtype=np.int64)
        selection = hashlib.sha256(indices.tobytes()).hexdigest()
        folder = data.parent / ("memmap" if self.is_complete else f"memmap-{selection[:12]}")
        adapter = self.fields["adapter"]
        about = {
            "episodes": selection,
            "rule": self.family.episodes,
            "observations": adapter.to_json() if adapter else None,
            "files": {
                name: [path.stat().st_size, path.stat().st_mtime_ns]
                for name, path in files_in(data).items()
            },
        }
        if memmap.read_index(folder, about) is None:
            self.convert(folder, about, progress_bar)
        index = memmap.read_index(folder, about)
        if index is None:
            raise ValueError(
                f"dataset {self.source.id!r} changed while it was converted: load it again"
            )
        arrays = memmap.map_arrays(folder, index["shapes"])
        return self.dataset({**arrays, "fingerprint": index["fingerprint"]}, folder)

    def convert(self, folder: Path, about: dict[str, Any], progress_bar: bool) -> None:
        """Write the arrays into a scratch folder, check them, and rename it."""
        name, total = self.source.id, self.source.total_steps
        bar = tqdm(total=total, desc=f"convert {name}", disable=not progress_bar)
        scratch = tempfile.TemporaryDirectory(
            prefix=".memmap-", dir=folder.parent, ignore_cleanup_errors=True
        )
        with scratch, bar:
            made = Path(scratch.name) / "arrays"
            made.mkdir()
            try:
                shapes = memmap.write_arrays(made, self.episodes(bar))
                # The checked arrays are released here: an open file keeps Windows from renaming.
                fingerprint = self.dataset(memmap.map_arrays(made, shapes)).fingerprint
                memmap.write_index(made, shapes, {"source": about, "fingerprint": fingerprint})
                if memmap.read_index(folder, about) is None:  # else another process was faster
                    put_in_place(made, folder, replace=True)
            except OSError as error:
                free = shutil.disk_usage(folder.parent).free / 2**20
                raise OSError(
                    error.errno,
                    f"dataset {name!r} could not be converted in {folder.parent} "
                    f"({error}; {free:.0f} MiB free): free some space, or use storage='memory'",
                ) from error

    def dataset(self, arrays: dict[str, Any], folder: Path | None = None) -> OfflineDataset:
        """The dataset of these arrays; cached properties among them need no computation."""
        given = {name: arrays[name] for name in (*ARRAYS, "episode_starts")}
        dataset = OfflineDataset(**self.fields, **given, folder=folder)
        vars(dataset).update(arrays)
        return dataset

    def episodes(self, bar: Any = None) -> Iterator[Episode]:
        """Every episode with at least one step, its shapes checked, read by its family's rule.

        Raises ValueError where there is none.
        """
        source, rule = self.source, RULES[self.family.episodes]
        is_empty = True
        for stored in _stored(source) if source.total_steps > 0 else ():
            episode = self.arrays(stored)
            if len(stored.rewards) > 0:
                episode = rule(episode, stored.observations)
            if len(episode["rewards"]) > 0:
                is_empty = False
                if bar is not None:
                    bar.update(len(episode["rewards"]))
                yield episode
        if is_empty:
            raise ValueError(f"dataset {source.id!r} is empty: at least one transition is needed")

    def arrays(self, stored: EpisodeData) -> Episode:
        """A stored episode as arrays. Raises ValueError where their shapes do not fit."""
        length = len(stored.rewards)
        adapter, observations = self.fields["adapter"], stored.observations
        parts = {
            "states": observations if adapter is None else adapter.flatten(observations),
            **{name: getattr(stored, name) for name in ARRAYS if name != "states"},
        }
        shapes = {
            "states": (length + 1, *self.fields["observation_space"].shape),
            "actions": (length, *self.fields["action_space"].shape),
        }
        for name, values in parts.items():
            shape = shapes.get(name, (length,))
            if np.shape(values) != shape:
                raise ValueError(
                    f"dataset {self.source.id!r}, episode {stored.id}: "
                    f"{'observations' if name == 'states' else name} has shape {np.shape(values)}, "
                    f"expected {shape} (T + 1 observations for T = {length} steps)"
                )
        with np.errstate(over="ignore"):  # what overflows becomes infinite, which is refused later
            return {n: np.asarray(v, dtype=memmap.DTYPES[n]) for n, v in parts.items()}


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
