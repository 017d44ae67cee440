"""Downloads: checked against the remote's checksums, put in place only when complete.

Files arrive in a hidden folder beside the datasets, `.qgpo-download-…`. A download that was
interrupted is continued there: complete files are kept, an incomplete file is fetched again.
`download.json` beside the data names the remote and the digest of every file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import warnings
from pathlib import Path

from minari import MinariDataset

from qgpo.commands import command
from qgpo.envs.store import ogbench
from qgpo.envs.store.hdf5 import COLUMNS
from qgpo.envs.store.local import (
    DamagedDatasetError,
    files_in,
    folder_of,
    open_local,
    open_whole,
    split_version,
)
from qgpo.envs.store.names import fault
from qgpo.envs.store.remote import (
    Checksum,
    RemoteError,
    checksums,
    choose_remote,
    fetch_files,
    remote_name,
)
from qgpo.envs.store.scratch import download_folder
from qgpo.envs.store.writing import RECORD, add_dataset, check_space, sole_writer
from qgpo.envs.tasks.ogbench import GENERATED, Name
from qgpo.envs.text_files import read_json


def download(dataset_id: str, *, force: bool = False, progress_bar: bool = True) -> MinariDataset:
    """Fetch a dataset from Minari's remote; without a version, the newest one readable here.

    Of OGBench's, the trajectories are fetched from its host.

    A complete local dataset is opened as it is, unless `force` is set. A damaged one is replaced
    once the new one is complete; one that was not downloaded is kept under another name, and
    replaced only where `force` is set or its metadata are missing. Raises RemoteError where the
    remote cannot be reached, does not have the dataset, or delivers something else than it
    announces, and ValueError for a local dataset that is not to be replaced.
    """
    name = ogbench.name_of(dataset_id)
    if name is not None:
        return _from_ogbench(name, force, progress_bar)
    if not force and split_version(dataset_id)[1] is not None:
        opened = _open_here(dataset_id)
        if opened is not None:
            return opened
    dataset_id, about = choose_remote(dataset_id)
    with sole_writer(dataset_id), download_folder(dataset_id) as scratch:
        opened = None if force else _open_here(dataset_id)  # another process may have fetched it
        if opened is not None:
            return opened
        expected = checksums(dataset_id)
        size = sum(file.size for file in expected.values())
        check_space(dataset_id, size or float(about.get("dataset_size") or 0.0) * 1e6)
        _fetch(dataset_id, scratch, expected, progress_bar)
        made = scratch / dataset_id
        try:
            for path in made.iterdir():  # what the client of the remote noted for itself
                if path.name != "data":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            open_whole(made, dataset_id, COLUMNS)
        except (DamagedDatasetError, FileNotFoundError) as error:
            shutil.rmtree(made, ignore_errors=True)
            raise RemoteError(
                f"dataset {dataset_id!r} on {remote_name()} is itself damaged: {error}"
            ) from error
        _write_record(made)
        kept = add_dataset(made, dataset_id, replace=True)
        if kept is not None:
            warnings.warn(
                f"dataset {dataset_id!r} was downloaded; the previous data are now in {kept}",
                stacklevel=2,
            )
        return open_local(dataset_id)


def _from_ogbench(name: Name, force: bool, progress_bar: bool) -> MinariDataset:
    """OGBench's trajectories. Raises ValueError where those here were to be replaced."""
    stored = name.trajectories.id
    folder = folder_of(stored)
    if force and folder.exists():
        made = "generated here" if name.namespace == GENERATED else "made from OGBench's file"
        raise ValueError(
            f"dataset {stored!r} in {folder} was {made}: delete that folder to generate it again"
        )
    ogbench.ensure(name, download=True, progress_bar=progress_bar)
    return open_local(stored)


def _open_here(dataset_id: str) -> MinariDataset | None:
    """The local dataset; None without one, and where it is to be fetched again.

    Raises ValueError for a damaged one that was not downloaded: it may be the only copy.
    """
    try:
        return open_local(dataset_id)
    except FileNotFoundError:
        return None
    except DamagedDatasetError as error:
        folder = folder_of(dataset_id)
        if (folder / RECORD).exists() or not (folder / "data" / "metadata.json").exists():
            return None
        raise ValueError(
            f"dataset {dataset_id!r} in {folder} is incomplete or damaged ({error}). It was not "
            "downloaded by qgpo and is not replaced: delete that folder, or replace it with "
            f"`{command('data', 'download', dataset_id, '--force')}`"
        ) from error


def damaged_files(folder: Path) -> list[str] | None:
    """Files of a downloaded dataset that have changed since; None without a record."""
    try:
        expected = {
            str(name): Checksum(int(about["size"]), "sha256", str(about["sha256"]))
            for name, about in read_json(folder / RECORD)["files"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return None
    return _differing(folder, expected)


def digest(path: Path, algorithm: str) -> str:
    """SHA-256, or git's SHA-1 ("git-sha1"), which hashes a header with the length first."""
    state = hashlib.sha256()
    if algorithm == "git-sha1":
        state = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: state).hexdigest()


def _fetch(
    dataset_id: str, scratch: Path, expected: dict[str, Checksum], progress_bar: bool
) -> None:
    """Fetch all files into the scratch folder; files with a wrong digest are fetched twice."""
    for _ in range(2):
        try:
            with contextlib.nullcontext() if progress_bar else _without_bars():
                fetch_files(dataset_id, scratch, expected)
        except RemoteError:
            raise
        except Exception as error:
            raise RemoteError(
                f"the download of {dataset_id!r} from {remote_name()} failed "
                f"({type(error).__name__}: {error}). Run it again: complete files are kept in "
                f"{scratch}"
            ) from error
        wrong = _differing(scratch / dataset_id, expected)
        if not wrong:
            return
        for name in wrong:
            (scratch / dataset_id / name).unlink(missing_ok=True)
    raise RemoteError(
        f"dataset {dataset_id!r}: {', '.join(wrong)} were downloaded twice from "
        f"{remote_name()}, both times incomplete or with another checksum than announced; no "
        "dataset was changed. The cause "
        "is the remote, a proxy or Hugging Face's cache (HF_HOME): try again later, or without "
        "that cache"
    )


def _differing(folder: Path, expected: dict[str, Checksum]) -> list[str]:
    """Names of files that are missing, lead out of the folder, or have another size or digest."""
    return [
        name
        for name, checksum in expected.items()
        if fault(name) is not None
        or not (folder / name).is_file()
        or not (folder / name).resolve().is_relative_to(folder.resolve())
        or (folder / name).stat().st_size != checksum.size
        or digest(folder / name, checksum.algorithm) != checksum.digest
    ]


def _write_record(folder: Path) -> None:
    files = {
        f"data/{name}": {"size": path.stat().st_size, "sha256": digest(path, "sha256")}
        for name, path in files_in(folder / "data").items()
    }
    record = {"remote": remote_name(), "files": files}
    (folder / RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")


def _without_bars() -> contextlib.ExitStack:
    """Hide Hugging Face's progress bars until the block ends."""
    from huggingface_hub import utils

    stack = contextlib.ExitStack()
    if not utils.are_progress_bars_disabled():  # type: ignore[attr-defined]
        utils.disable_progress_bars()  # type: ignore[attr-defined]
        stack.callback(utils.enable_progress_bars)  # type: ignore[attr-defined]
    return stack
