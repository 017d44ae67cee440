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
import sys
from collections.abc import Iterator
from pathlib import Path

from minari import MinariDataset

from qgpo.envs.store.local import (
    DamagedDatasetError,
    datasets_root,
    files_in,
    folder_of,
    open_local,
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
from qgpo.envs.store.writing import add_dataset, check_space

RECORD = "download.json"
LOCKS = ".qgpo-locks"
"""folder of the lock files, which stay there: a waiting process has them open"""


def download(dataset_id: str, *, force: bool = False, progress_bar: bool = True) -> MinariDataset:
    """Fetch a dataset from Minari's remote; without a version, the newest one readable here.

    A complete local dataset is opened as it is, unless `force` is set. A damaged one is replaced
    once the new one is complete. Raises RemoteError where the remote cannot be reached, does not
    have the dataset, or delivers something else than it announces.
    """
    if not force and split_version(dataset_id)[1] is not None:
        with contextlib.suppress(FileNotFoundError, DamagedDatasetError):
            return open_local(dataset_id)
    dataset_id, about = choose_remote(dataset_id)
    with _scratch(dataset_id) as scratch:
        if not force:  # another process may just have fetched it
            with contextlib.suppress(FileNotFoundError, DamagedDatasetError):
                return open_local(dataset_id)
        expected = checksums(dataset_id)
        size = sum(file.size for file in expected.values())
        check_space(dataset_id, size or float(about.get("dataset_size") or 0.0) * 1e6)
        _fetch(dataset_id, scratch, expected, progress_bar)
        made = scratch / dataset_id
        try:
            with datasets_root(scratch):
                open_local(dataset_id)
        except (DamagedDatasetError, FileNotFoundError) as error:
            shutil.rmtree(made, ignore_errors=True)
            raise RemoteError(
                f"dataset {dataset_id!r} on {remote_name()} is itself damaged: {error}"
            ) from error
        _write_record(made)
        add_dataset(made, dataset_id, replace=True)
        return open_local(dataset_id)


def damaged_files(folder: Path) -> list[str] | None:
    """Files of a downloaded dataset that have changed since; None without a record."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        expected = {
            name: Checksum(int(about["size"]), "sha256", str(about["sha256"]))
            for name, about in record["files"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
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
                open_remote().download_dataset(dataset_id, scratch)
        except Exception as error:
            raise RemoteError(
                f"the download of {dataset_id!r} from {remote_name()} broke off "
                f"({type(error).__name__}: {error}). Start it again: files that have arrived are "
                f"kept in {scratch}"
            ) from error
        wrong = _differing(scratch / dataset_id, expected)
        if not wrong:
            return
        for name in wrong:
            (scratch / dataset_id / name).unlink(missing_ok=True)
    raise RemoteError(
        f"dataset {dataset_id!r}: {', '.join(wrong)} arrived twice from {remote_name()} "
        "incomplete or with another checksum than announced; no dataset was changed. The "
        "remote, a proxy on the way or Hugging Face's cache (HF_HOME) is at fault: try "
        "again later, or without that cache"
    )


def _differing(folder: Path, expected: dict[str, Checksum]) -> list[str]:
    """Names of files that are missing or have another size or digest."""
    return [
        name
        for name, checksum in expected.items()
        if not (folder / name).is_file()
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


@contextlib.contextmanager
def _scratch(dataset_id: str) -> Iterator[Path]:
    """The folder for the files of this download, which one process at a time may use.

    Other processes that want the same dataset wait. The folder is removed at the end; after an
    error it stays, unless it is empty.
    """
    from filelock import FileLock, Timeout

    name = dataset_id.replace("/", "+")
    scratch = folder_of(f".qgpo-download-{name}")
    lock = FileLock(folder_of(LOCKS) / f"{name}.lock")
    Path(lock.lock_file).parent.mkdir(exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"another process is downloading {dataset_id!r}: waiting", file=sys.stderr)
        lock.acquire()
    try:
        scratch.mkdir(exist_ok=True)
        for path in scratch.rglob("*.incomplete"):  # left by a process that was killed
            path.unlink()
        yield scratch
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.rmdir()  # only if nothing arrived
        raise
    else:
        shutil.rmtree(scratch)
    finally:
        lock.release()


def _without_bars() -> contextlib.ExitStack:
    """Hide Hugging Face's progress bars until the block ends."""
    from huggingface_hub import utils

    stack = contextlib.ExitStack()
    if not utils.are_progress_bars_disabled():  # type: ignore[attr-defined]
        utils.disable_progress_bars()  # type: ignore[attr-defined]
        stack.callback(utils.enable_progress_bars)  # type: ignore[attr-defined]
    return stack
