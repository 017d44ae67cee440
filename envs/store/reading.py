"""Episodes of a dataset in whichever format Minari stored them, judged before they are read."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from minari import EpisodeData, MinariDataset

from qgpo.envs.store import arrow, hdf5
from qgpo.envs.store.names import check_inside

FORMATS = ("hdf5", "arrow", "parquet")


def check_files(data: Path) -> None:
    """Raise ValueError for anything in the folder but files and folders of its own.

    Folders above it may be links, to a larger disk for example.
    """
    for path in data.rglob("*"):
        check_inside(path, data, "file")
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ValueError(f"{path.name!r} is a pipe, a socket or a device, expected a file")


def lengths(
    data: Path, file_format: str, indices: Iterable[int], of: str, names: Iterable[str]
) -> list[int]:
    """The steps of these episodes; the columns of those names are judged, and nothing is read.

    Raises ColumnError, OSError, ImportError where a package to read them is missing, and
    ValueError for an unknown format.
    """
    if file_format == "hdf5":
        return hdf5.lengths(data / hdf5.FILE, indices, of, names)
    if file_format not in FORMATS:
        raise ValueError(f"data_format={file_format!r}, expected one of {list(FORMATS)}")
    return arrow.lengths(data, indices, file_format, of)


def judge(source: MinariDataset) -> None:
    """Judge every column of all episodes, infos too, before another library reads them."""
    data, of = Path(source.storage.data_path), f"dataset {source.id!r}"
    names = (*hdf5.COLUMNS, "infos")
    lengths(data, source.storage.FORMAT, source.episode_indices.tolist(), of, names)


def read_episodes(source: MinariDataset, infos: Iterable[str] = ()) -> Iterator[EpisodeData]:
    """Its episodes, one after the other; of their infos, the columns of those names.

    Infos are read from HDF5 alone. Raises ValueError where one cannot be read, or steps are
    missing or too many.
    """
    data, of = Path(source.storage.data_path), f"dataset {source.id!r}"
    steps, total = 0, source.total_steps
    try:
        check_files(data)
        for episode in _episodes(source, data, of, infos):
            steps += int(np.shape(episode.rewards)[0])
            yield episode
    except hdf5.ColumnError:
        raise
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise ValueError(
            f"{of} cannot be read after {steps} of {total} steps "
            f"({error}): it is incomplete or damaged, fetch or regenerate it"
        ) from error
    if steps != total:
        raise ValueError(f"{of}: {steps} steps were read, its metadata say {total}: it is damaged")


def _episodes(
    source: MinariDataset, data: Path, of: str, infos: Iterable[str]
) -> Iterator[EpisodeData]:
    indices, space = source.episode_indices.tolist(), source.storage.observation_space
    if source.storage.FORMAT == "hdf5":
        return hdf5.read(data / hdf5.FILE, indices, space, of, infos)
    return arrow.read(data, indices, source.storage.FORMAT, space, of)
