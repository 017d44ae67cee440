"""The local datasets: their ids, their folders, and whether each of them is complete."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import minari
from minari import MinariDataset
from minari.dataset.minari_dataset import gen_dataset_id, parse_dataset_id
from minari.storage.datasets_root_dir import get_dataset_path

from qgpo.commands import command
from qgpo.envs.store.metadata import open_folder
from qgpo.envs.store.names import check_name, fault
from qgpo.envs.store.reading import check_files, lengths
from qgpo.envs.store.stated import read_metadata
from qgpo.envs.tasks.arguments import SpecError

LOGS = (".npz", ".npy", ".csv", ".parquet", ".hdf5", ".h5", ".pkl")
"""how files of recorded data are named, which no dataset id is"""
ROOT_VARIABLE = "MINARI_DATASETS_PATH"
_ROOT = threading.RLock()


class DamagedDatasetError(ValueError):
    """A dataset that has a folder but not all of its data."""


def check_no_file(dataset_id: str) -> None:
    """Raise ValueError, which says how it is read, for what names a file of recorded data."""
    is_file = Path(dataset_id).suffix.lower() in LOGS
    with contextlib.suppress(OSError, ValueError):  # no path either
        is_file = is_file or (fault(dataset_id) is not None and Path(dataset_id).is_file())
    if is_file:
        raise ValueError(
            f"dataset {dataset_id!r} is a file, expected an id: pass its arrays to "
            "OfflineDataset.from_arrays, or make a Minari dataset of it by "
            f"`{command('data', 'import')}`"
        )


def split_version(dataset_id: str) -> tuple[str, int | None]:
    """`a/b-v3` is `a/b` and 3; an id without a version has None. ValueError if malformed."""
    example = "expected 'namespace/name-vN', for example 'mujoco/hopper/medium-v0'"
    check_no_file(dataset_id)
    problem = fault(dataset_id)
    if problem is not None:
        raise ValueError(f"dataset id {dataset_id!a:.120} is malformed ({problem}); {example}")
    try:
        namespace, name, version = parse_dataset_id(dataset_id)
    except TypeError:  # Minari's answer to an id without a version
        return dataset_id, None
    except ValueError as error:
        raise ValueError(f"dataset id {dataset_id!r} is malformed ({error}); {example}") from error
    stem = gen_dataset_id(namespace, name)
    if f"{stem}-v{version}" != dataset_id:  # -v03 would be another folder than -v3
        raise ValueError(f"dataset id {dataset_id!r} is malformed; {example}: {stem}-v{version}")
    return stem, version


def folder_of(dataset_id: str) -> Path:
    """The folder of a dataset, which need not exist; that of all datasets for an empty id.

    Raises ValueError for a name that leads elsewhere, and for a variable that names no folder.
    """
    root = os.environ.get(ROOT_VARIABLE)
    if root is not None and (not root.strip() or Path(root).is_file()):
        raise ValueError(
            f"{ROOT_VARIABLE}={root!r} is not a folder: create it, or unset the variable"
        )
    return Path(get_dataset_path(check_name(dataset_id, "dataset id") if dataset_id else ""))


def local_ids() -> list[str]:
    """The ids of all folders with data, damaged ones too, sorted; hidden folders are skipped.

    Folders may be links, as for loading; a link to a folder that it is in is not followed.
    """
    return sorted(_ids_below(folder_of(""), "", frozenset()))


def _ids_below(folder: Path, name: str, above: frozenset[Path]) -> Iterator[str]:
    try:
        if name and (folder / "data").is_dir():
            yield name
            return
        real, inside = folder.resolve(), sorted(folder.iterdir())
    except OSError:  # it may not be read: listed where its name is a dataset's
        if re.search(r"-v\d+$", name):
            yield name
        return
    for path in [] if real in above else inside:
        if not path.name.startswith(".") and _is_folder(path):
            inner = f"{name}/{path.name}" if name else path.name
            yield from _ids_below(path, inner, above | {real})


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def local_versions(stem: str) -> list[int]:
    """The local versions of `namespace/name`, sorted."""
    folder = folder_of(stem)
    pattern = re.compile(re.escape(folder.name) + r"-v(0|[1-9][0-9]*)")
    names = [path.name for path in folder.parent.glob(f"{folder.name}-v*") if path.is_dir()]
    return sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)


def files_in(folder: Path) -> dict[str, Path]:
    """All files below a folder, by their name relative to it, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}


def open_local(dataset_id: str) -> MinariDataset:
    """Open a local dataset that has all of its episodes.

    Raises FileNotFoundError without a folder, DamagedDatasetError where the folder cannot be
    opened or holds fewer steps than its metadata state, ValueError where its metadata state another
    id, and ImportError where a package to read it is missing; SpecError for an environment that no
    dataset may name.
    """
    if not folder_of(dataset_id).exists():
        raise FileNotFoundError(f"dataset {dataset_id!r} is not in {folder_of('')}")
    opened = open_whole(folder_of(dataset_id), dataset_id)
    if opened.id != dataset_id:
        raise ValueError(
            f"dataset {dataset_id!r}: its folder was copied or renamed, its metadata say "
            f"{opened.id!r}. Rename the folder, or store the data anew: "
            f"write_minari({dataset_id!r}, load_dataset({opened.id!r}))"
        )
    return opened


def open_whole(folder: Path, dataset_id: str, names: Sequence[str] = ("rewards",)) -> MinariDataset:
    """Open the dataset in a folder, once its columns of those names are judged.

    Raises what `open_local` does.
    """
    data = folder / "data"
    try:
        metadata = read_metadata(data)
        _check_readable(metadata)
        check_files(data)
        _check_steps(data, metadata, f"dataset {dataset_id!r}", names)
        return open_folder(data)
    except (ImportError, SpecError):
        raise
    except Exception as error:
        raise DamagedDatasetError(str(error) or type(error).__name__) from error


def _check_readable(metadata: dict[str, Any]) -> None:
    """Raise ValueError where a field is missing, and for data of another version of Minari."""
    needed = ("minari_version", "dataset_id", "data_format", "total_episodes", "total_steps")
    missing = [name for name in needed if metadata.get(name) is None]
    if missing:
        raise ValueError(f"metadata have no {', '.join(missing)}")
    version = metadata["minari_version"]
    if version not in minari.supported_dataset_versions:
        raise ValueError(
            f"it was made with Minari {version}, which the installed Minari {minari.__version__} "
            "does not read"
        )


def _check_steps(data: Path, metadata: dict[str, Any], of: str, names: Sequence[str]) -> None:
    """Raise ValueError where the episodes have other steps than the metadata state."""
    stated, episodes = metadata["total_steps"], range(metadata["total_episodes"])
    found = sum(lengths(data, metadata["data_format"], episodes, of, names))
    if found != stated:
        raise ValueError(f"its episodes have {found} steps, its metadata say {stated}")


@contextlib.contextmanager
def datasets_root(folder: Path) -> Iterator[None]:
    """Let Minari work in another folder than the user's; one thread at a time."""
    with _ROOT:
        previous = os.environ.get(ROOT_VARIABLE)
        os.environ[ROOT_VARIABLE] = str(folder)
        try:
            yield
        finally:
            del os.environ[ROOT_VARIABLE]
            if previous is not None:
                os.environ[ROOT_VARIABLE] = previous
