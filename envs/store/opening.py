"""From a dataset id to an opened Minari dataset: local, made, downloaded or repaired."""

from __future__ import annotations

import difflib

from minari import MinariDataset

from qgpo.commands import command
from qgpo.envs.store import bundled, downloading, ogbench
from qgpo.envs.store.local import (
    DamagedDatasetError,
    check_no_file,
    folder_of,
    local_ids,
    local_versions,
    open_local,
    split_version,
)
from qgpo.envs.store.metadata import environments
from qgpo.envs.store.remote import RemoteError
from qgpo.envs.store.scratch import remove_abandoned
from qgpo.envs.store.stated import read_metadata
from qgpo.envs.store.writing import SCRATCH, restore


def open_dataset(
    dataset_id: str, download: bool = True, progress_bar: bool = True
) -> MinariDataset:
    """Open the dataset of that id; make, download or repair it where needed.

    An id without a version means the newest one: a bundled one, else a local one, else a remote
    one. Of a task of OGBench it is the dataset of its trajectories, which has no rewards. Raises
    ValueError, which lists the nearest local and bundled ids, where that fails.
    """
    check_no_file(dataset_id)
    remove_abandoned(folder_of(""), SCRATCH)
    name = ogbench.name_of(dataset_id)
    try:
        full_id = newest_here(dataset_id) if name is None else name.trajectories.id
    except ValueError as error:
        raise ValueError(f"{error}.\n{_nearest(dataset_id)}") from error
    try:
        if full_id is None:
            raise FileNotFoundError(
                f"no version of dataset {dataset_id!r} is in {folder_of('')}; ids are "
                "'namespace/name-vN', for example 'mujoco/hopper/medium-v0'"
            )
        restore(full_id)
        if name is not None:
            ogbench.ensure(name, download, progress_bar)
        elif is_bundled(full_id):
            bundled.ensure(full_id, progress_bar)
        return open_local(full_id)
    except ImportError as error:  # the data are complete, a package to read them is missing
        raise ValueError(f"dataset {dataset_id!r} cannot be read here: {error}") from error
    except DamagedDatasetError as error:
        where = folder_of(full_id or dataset_id)
        damage = f"dataset {dataset_id!r} in {where} is incomplete or damaged ({error})"
        if full_id in bundled.RECIPES or name is not None:
            raise ValueError(f"{damage}; delete that folder to generate it again") from error
        if not download:
            raise ValueError(
                f"{damage}; delete that folder, or pass download=True to fetch it again"
            ) from error
        here = damage
    except FileNotFoundError as error:
        if not download:
            fetch = (
                f"To fetch it: load_dataset({dataset_id!r}, download=True) or "
                f"`{command('data', 'download', dataset_id)}`"
                if "/" in dataset_id
                else "Ids on Minari's remote have a namespace, as mujoco/hopper/medium-v0 has"
            )
            raise ValueError(f"{error}.\n{_nearest(dataset_id)}\n{fetch}") from error
        here = f"dataset {dataset_id!r} is not in {folder_of('')}"
    try:
        return downloading.download(full_id or dataset_id, progress_bar=progress_bar)
    except RemoteError as error:
        raise ValueError(
            f"{here} and could not be downloaded: {error}.\n{_nearest(dataset_id)}"
        ) from error


def newest_here(dataset_id: str) -> str | None:
    """The id, completed by its newest bundled, else local version; None without any."""
    stem, version = split_version(dataset_id)
    if version is not None:
        return dataset_id
    ours = [n for name, n in map(split_version, bundled.RECIPES) if name == stem and n is not None]
    versions = ours or local_versions(stem)
    return f"{stem}-v{max(versions)}" if versions else None


def recorded_in(dataset_id: str) -> str | None:
    """The environment in which a local or bundled dataset was recorded, where it is stated.

    An id without a version means the newest one here. A task of OGBench has one of its own.
    """
    try:
        name = ogbench.name_of(dataset_id)
        if name is not None:
            return name.env_id
        dataset_id = newest_here(dataset_id) or dataset_id
        if dataset_id in bundled.RECIPES:
            return bundled.RECIPES[dataset_id].env_id
        metadata = read_metadata(folder_of(dataset_id) / "data")
        recorded, _ = environments(metadata, f"dataset {dataset_id!r}")
        return None if recorded is None else recorded.id
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def is_bundled(dataset_id: str) -> bool:
    """Whether the id has a recipe. Raises ValueError for other ids under qgpo/ without a folder."""
    if dataset_id in bundled.RECIPES:
        return True
    if dataset_id.startswith("qgpo/") and not folder_of(dataset_id).exists():
        raise ValueError(
            f"dataset {dataset_id!r} is none of the bundled ones.\n{_nearest(dataset_id)}"
        )
    return False


def _nearest(dataset_id: str) -> str:
    """The ids here that are spelled most like it, and where all are."""
    known = sorted({*local_ids(), *bundled.RECIPES})
    near = difflib.get_close_matches(dataset_id, known, n=3, cutoff=0.0)
    return f"Nearest ids here: {', '.join(near)}. All: `{command('data', 'list')}`"
