"""Minari to OfflineDataset: read once, in memory or into memory-mapped files."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import minari
import numpy as np
from gymnasium import spaces
from minari import EpisodeData, MinariDataset
from tqdm import tqdm

from qgpo.envs.data import mapping
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.data.local import (
    DamagedDatasetError,
    folder_of,
    local_ids,
    local_versions,
    open_whole,
    split_version,
)
from qgpo.envs.data.mapping import Episode
from qgpo.envs.store import bundled, downloading
from qgpo.envs.store.episodes import RULES
from qgpo.envs.store.remote import RemoteError
from qgpo.envs.tasks.families import UNKNOWN, Family, find_family
from qgpo.envs.tasks.observations import ObservationAdapter
from qgpo.envs.tasks.spaces import check_action_space, check_spaces

STORAGES = ("memory", "memmap")
Storage = Literal["memory", "memmap"]


def load_dataset(
    dataset: str | MinariDataset,
    download: bool = True,
    storage: Storage = "memory",
    progress_bar: bool = True,
) -> OfflineDataset:
    """Read a Minari dataset, by id or opened.

    Ids under `qgpo/` are made on first use from the bundled policies (half a minute; a warning says
    where they are not the numbers that were published); other ids are looked up in Minari's local
    folder (`MINARI_DATASETS_PATH`) and, with `download`, on its remote. An id without version means
    the newest: of the local ones if there are any, else of the remote ones. `storage="memmap"` is
    for data larger than memory: on first use they are converted into files beside Minari's, from
    which agents train without reading them whole; the arrays, and what is learned from them, are
    the same. Dict observations become vectors, and episodes follow the rules of the environment
    that agents play in, as the dataset's row of `envs/tasks/families.py` says; a dataset that is in
    no row is warned about. Raises ValueError for unknown ids, unsupported spaces and invalid data.
    """
    if storage not in STORAGES:
        raise ValueError(f"storage={storage!r}, expected one of {list(STORAGES)}")
    if not isinstance(dataset, str | MinariDataset):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}, expected a Minari id such as "
            "'qgpo/halfcheetah/mixed-v0' or a minari.MinariDataset"
        )
    source = (
        dataset
        if isinstance(dataset, MinariDataset)
        else open_dataset(dataset, download, progress_bar)
    )
    if source.total_episodes == 0 or source.total_steps == 0:
        raise ValueError(f"dataset {source.id!r} is empty: at least one transition is needed")
    reader = _Reader.of(source)
    read = _map(reader, progress_bar) if storage == "memmap" else _read(reader)
    if reader.is_whole:
        bundled.warn_of_other_data(read)
    return read


def recorded_in(dataset_id: str) -> str | None:
    """The environment that a dataset which lies here was recorded in, where it says so.

    An id without version means the newest one here.
    """
    try:
        dataset_id = _newest_here(dataset_id) or dataset_id
        if dataset_id in bundled.RECIPES:
            return bundled.RECIPES[dataset_id].env_id
        metadata = folder_of(dataset_id) / "data" / "metadata.json"
        return str(json.loads(json.loads(metadata.read_text())["env_spec"])["id"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


@dataclass(frozen=True)
class _Reader:
    """A Minari dataset and how its family is read."""

    source: MinariDataset
    family: Family
    adapter: ObservationAdapter | None
    observation_space: spaces.Box
    action_space: spaces.Box

    @property
    def is_whole(self) -> bool:
        """Whether all stored episodes are meant, not some that were chosen."""
        return bool(self.source.total_episodes == self.source.storage.total_episodes)

    @classmethod
    def of(cls, source: MinariDataset) -> _Reader:
        """Raises ValueError for spaces that are not supported; says what is assumed."""
        of = f"dataset {source.id!r}"
        spec = getattr(source.spec, "env_spec", None)
        family = find_family(source.id, spec.id if spec is not None else None)
        check_action_space(source.action_space, of)
        space, adapter = source.observation_space, None
        if isinstance(space, spaces.Dict):
            adapter = ObservationAdapter.choose(space, family.observation, of)
            space = adapter.box(space, of)
        boxes = check_spaces(space, source.action_space, of)
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
    source = reader.source
    episodes = list(_episodes(reader))
    if not episodes:
        raise ValueError(f"dataset {source.id!r} is empty: at least one transition is needed")
    arrays = {name: np.concatenate([e[name] for e in episodes]) for name in episodes[0]}
    lengths = [len(episode["rewards"]) for episode in episodes]
    arrays["episode_starts"] = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    return _dataset(reader, arrays, None)


def _map(reader: _Reader, progress_bar: bool) -> OfflineDataset:
    """The converted files beside the Minari data, made on first use and when those changed."""
    source = reader.source
    data = Path(source.storage.data_path)
    indices = np.asarray(source.episode_indices, dtype=np.int64)
    chosen = hashlib.sha256(indices.tobytes()).hexdigest()
    folder = data.parent / ("memmap" if reader.is_whole else f"memmap-{chosen[:12]}")
    about = {
        "episodes": chosen,
        "rule": reader.family.episodes,
        "observations": reader.adapter.to_json() if reader.adapter else None,
        "files": {
            str(f.relative_to(data)): [f.stat().st_size, f.stat().st_mtime_ns]
            for f in sorted(data.rglob("*"))
            if f.is_file()
        },
    }
    index = mapping.read_index(folder, about)
    if index is None:
        _convert(reader, folder, about, progress_bar)
        index = mapping.read_index(folder, about)
        if index is None:
            raise ValueError(f"dataset {source.id!r} changed while it was converted: load it again")
    dataset = _dataset(reader, mapping.map_arrays(folder, index["shapes"]), folder)
    dataset.__dict__["fingerprint"] = index["fingerprint"]
    return dataset


def _convert(reader: _Reader, folder: Path, about: dict[str, Any], progress_bar: bool) -> None:
    """Write the arrays into a scratch folder, check them, and rename it."""
    source = reader.source
    with (
        tempfile.TemporaryDirectory(prefix=".memmap-", dir=folder.parent) as scratch,
        tqdm(
            total=source.total_steps, desc=f"convert {source.id}", disable=not progress_bar
        ) as bar,
    ):
        target = Path(scratch) / "arrays"
        target.mkdir()

        def counted() -> Iterator[Episode]:
            for episode in _episodes(reader):
                bar.update(len(episode["rewards"]))
                yield episode

        try:
            shapes = mapping.write_arrays(target, counted())
            if shapes["rewards"] == (0,):
                raise ValueError(
                    f"dataset {source.id!r} is empty: at least one transition is needed"
                )
            checked = _dataset(reader, mapping.map_arrays(target, shapes), None)
            mapping.finish(
                target, folder, shapes, {"source": about, "fingerprint": checked.fingerprint}
            )
        except OSError as error:
            free = shutil.disk_usage(folder.parent).free / 2**20
            raise OSError(
                error.errno,
                f"dataset {source.id!r} could not be converted in {folder.parent} "
                f"({error}; {free:.0f} MiB free): free some space, or use storage='memory'",
            ) from error


def _dataset(reader: _Reader, arrays: dict[str, Any], folder: Path | None) -> OfflineDataset:
    source, family = reader.source, reader.family
    metadata = source.storage.metadata
    recorded = getattr(source.spec, "env_spec", None)
    if recorded is None and family.environment in gym.registry:
        recorded = gym.spec(family.environment)
    # Minari offers the evaluation spec in no other way than as a made environment
    played = family.played(getattr(source, "_eval_env_spec", None) or recorded)
    derived: dict[str, Any] = {
        name: arrays.pop(name) for name in ("state_index", "last_steps") if name in arrays
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
    dataset.__dict__.update(derived)  # the cached properties: mapped, not computed
    return dataset


def _stored(source: MinariDataset) -> Iterator[EpisodeData]:
    """Minari's episodes. Raises ValueError where one cannot be read, or steps are missing."""
    steps = 0
    try:
        for episode in source.iterate_episodes():
            steps += len(episode.rewards)
            yield episode
    except (OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"dataset {source.id!r} cannot be read after {steps} of {source.total_steps} steps "
            f"({error}): it is incomplete or damaged, fetch or make it anew"
        ) from error
    if steps != source.total_steps:
        raise ValueError(
            f"dataset {source.id!r}: {steps} steps were read, its metadata say "
            f"{source.total_steps}. It is damaged, or its episodes are longer than Minari reads "
            "back whole from Arrow and Parquet files (32767 steps): store it as HDF5"
        )


def _episodes(reader: _Reader) -> Iterator[Episode]:
    """Every episode with at least one step, its shapes checked, read by its family's rule."""
    source, adapter, rule = reader.source, reader.adapter, RULES[reader.family.episodes]
    state_dim, action_dim = reader.observation_space.shape[0], reader.action_space.shape[0]
    for episode in _stored(source):
        states = episode.observations if adapter is None else adapter.flatten(episode.observations)
        length = len(episode.rewards)
        shapes = {
            "observations": (np.shape(states), (length + 1, state_dim)),
            "actions": (np.shape(episode.actions), (length, action_dim)),
            "terminations": (np.shape(episode.terminations), (length,)),
            "truncations": (np.shape(episode.truncations), (length,)),
        }
        for name, (shape, expected) in shapes.items():
            if shape != expected:
                raise ValueError(
                    f"dataset {source.id!r}, episode {episode.id}: {name} has shape {shape}, "
                    f"expected {expected} (T + 1 observations for T = {length} steps)"
                )
        if length == 0:
            continue
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
            read = {
                "states": np.asarray(states, dtype=np.float32),
                "actions": np.asarray(episode.actions, dtype=np.float32),
                "rewards": np.asarray(episode.rewards, dtype=np.float32),
                "terminations": np.asarray(episode.terminations, dtype=np.bool_),
                "truncations": np.asarray(episode.truncations, dtype=np.bool_),
            }
        read = rule(read, episode.observations)
        if len(read["rewards"]) > 0:
            yield read


def open_dataset(
    dataset_id: str, download: bool = True, progress_bar: bool = True
) -> MinariDataset:
    """The Minari dataset of that id, made, downloaded or repaired if need be.

    Raises ValueError that names the local and bundled ids where that cannot be done.
    """
    dataset_id = _with_version(dataset_id, download, progress_bar)
    if bundled.is_bundled(dataset_id):
        bundled.ensure(dataset_id, progress_bar)
        return minari.load_dataset(dataset_id)
    try:
        return open_whole(dataset_id)
    except ImportError as error:  # the data are whole, a package to read them is missing
        raise ValueError(f"dataset {dataset_id!r} cannot be read here: {error}") from error
    except DamagedDatasetError as error:
        if not download:
            raise ValueError(
                f"dataset {dataset_id!r} in {folder_of(dataset_id)} is incomplete or damaged "
                f"({error}); delete that folder, or pass download=True to fetch it anew"
            ) from error
    except FileNotFoundError as error:
        if not download:
            raise ValueError(
                f"{error}.\n{_choices()}\n"
                f"To fetch it: load_dataset({dataset_id!r}, download=True) "
                f"or `python scripts/data.py download {dataset_id}`"
            ) from error
    return _download(dataset_id, progress_bar)


def _newest_here(dataset_id: str) -> str | None:
    """The id itself, or with the newest version that is bundled, else here; None without any."""
    stem, version = split_version(dataset_id)
    if version is not None:
        return dataset_id
    own = [split_version(other)[1] for other in bundled.ids() if split_version(other)[0] == stem]
    versions = [number for number in own if number is not None] or local_versions(stem)
    return f"{stem}-v{max(versions)}" if versions else None


def _with_version(dataset_id: str, download: bool, progress_bar: bool) -> str:
    """The id itself, or with the newest version: a bundled one, else a local, else a remote one."""
    try:
        here = _newest_here(dataset_id)
    except ValueError as error:
        raise ValueError(f"{error}.\n{_choices()}") from error
    if here is not None:
        return here
    if not download:
        raise ValueError(
            f"no version of dataset {dataset_id!r} is in {folder_of('')}; ids are "
            f"'namespace/name-vN', for example 'mujoco/hopper/medium-v0'.\n{_choices()}"
        )
    return str(_download(dataset_id, progress_bar).id)


def _download(dataset_id: str, progress_bar: bool) -> MinariDataset:
    try:
        return downloading.download(dataset_id, progress_bar=progress_bar)
    except RemoteError as error:
        raise ValueError(
            f"dataset {dataset_id!r} is not in {folder_of('')} and could not be "
            f"downloaded: {error}.\n{_choices()}"
        ) from error


def _choices() -> str:
    listed = ", ".join(local_ids()) or "none"
    return f"Local datasets: {listed}. Bundled, made on first use: {', '.join(bundled.ids())}"
