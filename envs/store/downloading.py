"""Downloads: checked against the remote's checksums, in place only when whole.

Files arrive in a hidden folder beside the datasets, `.qgpo-download-…`. What an interrupted
download left there is gone on with: files that had arrived are kept, half a file is fetched
anew. `download.json` beside the data says where they are from and what their digests are.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minari import MinariDataset
from minari.storage.datasets_root_dir import get_dataset_path

from qgpo.envs.data.local import (
    DamagedDatasetError,
    datasets_root,
    open_whole,
    put_in_place,
    split_version,
)
from qgpo.envs.store.remote import (
    Checksum,
    RemoteError,
    checksums,
    choose_remote,
    open_remote,
    remote_name,
)

RECORD = "download.json"
CHUNK = 2**20
"""bytes read at a time when digests are computed"""


def download(dataset_id: str, *, force: bool = False, progress_bar: bool = True) -> MinariDataset:
    """Fetch a dataset from Minari's remote, the newest readable version where none is named.

    One that is there and whole is opened as it is, unless `force` is set; one that is damaged is
    replaced once the new one is whole. Raises RemoteError where the remote cannot be reached,
    does not have it, or delivers something else than it announces.
    """
    if not force and split_version(dataset_id)[1] is not None:
        with contextlib.suppress(FileNotFoundError, DamagedDatasetError):
            return open_whole(dataset_id)
    dataset_id, about = choose_remote(dataset_id)
    with _scratch(dataset_id) as scratch:
        if not force:
            with contextlib.suppress(FileNotFoundError, DamagedDatasetError):
                opened = open_whole(dataset_id)  # another process may just have fetched it
                shutil.rmtree(scratch)
                return opened
        expected = _announced(dataset_id)
        _check_space(dataset_id, expected, float(about.get("dataset_size") or 0.0) * 1e6)
        made = scratch / dataset_id
        _fetch(dataset_id, scratch, expected, progress_bar)
        with datasets_root(scratch):
            try:
                open_whole(dataset_id)
            except (DamagedDatasetError, FileNotFoundError) as error:
                shutil.rmtree(made, ignore_errors=True)
                raise RemoteError(
                    f"dataset {dataset_id!r} on {remote_name()} is itself damaged: {error}"
                ) from error
        _write_record(made)
        put_in_place(made, dataset_id, replace=True)
        shutil.rmtree(scratch)
    return open_whole(dataset_id)


def damaged_files(folder: Path) -> list[str] | None:
    """Files of a downloaded dataset that are no longer what arrived; None without a record."""
    try:
        record = json.loads((folder / RECORD).read_text())
        expected = {
            name: Checksum(int(about["size"]), "sha256", str(about["sha256"]))
            for name, about in record["files"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return _differing(folder, expected)


def _announced(dataset_id: str) -> dict[str, Checksum]:
    try:
        return checksums(dataset_id)
    except Exception as error:
        raise RemoteError(
            f"the files of dataset {dataset_id!r} on {remote_name()} cannot be listed "
            f"({type(error).__name__}: {error})"
        ) from error


def _fetch(
    dataset_id: str, scratch: Path, expected: dict[str, Checksum], progress_bar: bool
) -> None:
    """All files into the scratch folder; those with a wrong digest once more."""
    made = scratch / dataset_id
    for last in (False, True):
        try:
            with _bars(progress_bar):
                open_remote().download_dataset(dataset_id, scratch)
        except Exception as error:
            raise RemoteError(
                f"the download of {dataset_id!r} from {remote_name()} broke off "
                f"({type(error).__name__}: {error}). Start it again: files that have arrived are "
                f"kept in {scratch}"
            ) from error
        wrong = _differing(made, expected)
        if not wrong:
            return
        for name in wrong:
            (made / name).unlink(missing_ok=True)
        if last:
            raise RemoteError(
                f"dataset {dataset_id!r}: {', '.join(wrong)} arrived twice from {remote_name()} "
                "incomplete or with another checksum than announced; no dataset was changed. The "
                "remote, a proxy on the way or Hugging Face's cache (HF_HOME) is at fault: try "
                "again later, or without that cache"
            )


def _differing(folder: Path, expected: dict[str, Checksum]) -> list[str]:
    """Names of files that are missing or have another size or digest."""
    return [name for name, wanted in expected.items() if not _is(folder / name, wanted)]


def _is(path: Path, wanted: Checksum) -> bool:
    if not path.is_file() or path.stat().st_size != wanted.size:
        return False
    return digest(path, wanted.algorithm) == wanted.digest


def digest(path: Path, algorithm: str) -> str:
    """SHA-256, or git's SHA-1, which has a header with the length before the content."""
    if algorithm == "sha256":
        state = hashlib.sha256()
    else:
        state = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            state.update(chunk)
    return state.hexdigest()


def _write_record(folder: Path) -> None:
    files = {
        str(path.relative_to(folder)): {
            "size": path.stat().st_size,
            "sha256": digest(path, "sha256"),
        }
        for path in sorted((folder / "data").rglob("*"))
        if path.is_file()
    }
    record: dict[str, Any] = {"remote": remote_name(), "files": files}
    (folder / RECORD).write_text(json.dumps(record, indent=2))


def _check_space(dataset_id: str, expected: dict[str, Checksum], size: float) -> None:
    """Refuse to begin what cannot end. Sizes in bytes."""
    needed = sum(file.size for file in expected.values()) or size
    free = shutil.disk_usage(get_dataset_path()).free
    if needed > free:
        raise OSError(
            f"dataset {dataset_id!r} takes {needed / 1e6:.0f} MB, {get_dataset_path('')} has "
            f"{free / 1e6:.0f} MB free: free some space, or set MINARI_DATASETS_PATH"
        )


@contextlib.contextmanager
def _scratch(dataset_id: str) -> Iterator[Path]:
    """The folder that this download arrives in, for one process at a time.

    A second process that wants the same dataset waits for the first.
    """
    scratch = Path(get_dataset_path()) / f".qgpo-download-{dataset_id.replace('/', '+')}"
    while True:
        scratch.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(scratch, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is downloading {dataset_id!r}: waiting", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if scratch.exists() and scratch.stat().st_ino == os.fstat(descriptor).st_ino:
            break
        os.close(descriptor)  # the process before finished and removed it
    try:
        for left in scratch.rglob("*.incomplete"):  # by a process that was killed
            left.unlink()
        yield scratch
    finally:
        with contextlib.suppress(OSError):
            scratch.rmdir()  # only if nothing arrived
        os.close(descriptor)


@contextlib.contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Hugging Face's progress bars, shown or not."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
