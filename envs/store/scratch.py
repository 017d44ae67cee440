"""Unfinished files: one process per target, in hidden folders that do not outlive their owner.

A scratch folder and its lock lie beside what is made there. The lock of a process that was killed
is free, by which the next process knows that the folder may be removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from qgpo.envs.store.local import folder_of

LOCKS = ".qgpo-locks"
"""folder of the lock files of targets, which stay there: a waiting process has them open"""
INCOMPLETE = (".incomplete", ".tmp")
"""of files on their way here: Hugging Face's and OGBench's"""
UNOWNED_SECONDS = 24 * 3600.0
"""scratch without a lock, as earlier versions made it, is removed after so long without a change"""


@contextlib.contextmanager
def target_lock(target: Path, doing: str) -> Iterator[None]:
    """Let one process at a time make a target; a second one says that it waits, and waits.

    `doing` is what the other process does, such as "converting 'a/b-v0'". Who has the lock may
    take it again.
    """
    from filelock import FileLock, Timeout

    path = target.resolve()
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    name = f"{path.parent.name}+{path.name}"[-100:]
    lock = FileLock(folder_of(LOCKS) / f"{name}-{digest}.lock", is_singleton=True)
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"another process is {doing}: waiting", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new hidden folder, removed at the end; first those that killed processes left are.

    Its name is the prefix, the process id and a random part; its lock is the same with `.lock`.
    """
    from filelock import FileLock

    remove_abandoned(parent, prefix)
    scratch = parent / f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"
    lock = FileLock(f"{scratch}.lock")
    parent.mkdir(parents=True, exist_ok=True)
    try:
        with lock:
            try:
                scratch.mkdir()
                yield scratch
            finally:
                # On Windows, the folder survives an error while one of its files is open.
                shutil.rmtree(scratch, ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):  # on Windows, where another process looks at it
            Path(lock.lock_file).unlink(missing_ok=True)


@contextlib.contextmanager
def download_folder(dataset_id: str) -> Iterator[Path]:
    """The folder for the files of this download, for the sole writer of the dataset.

    It is removed at the end; after an error it stays, unless it is empty.
    """
    scratch = folder_of("") / f".qgpo-download-{dataset_id.replace('/', '+')}"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        for path in scratch.rglob("*"):  # left by a process that was killed
            if path.suffix in INCOMPLETE:
                path.unlink()
        yield scratch
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.rmdir()  # only if nothing arrived
        raise
    else:
        shutil.rmtree(scratch)


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the scratch folders of that prefix whose owners are gone.

    Names without a process id and a random part may be a user's, and stay.
    """
    name = re.compile(re.escape(prefix) + r"\d+-[0-9a-f]{8}")
    for path in {p.with_name(p.name.removesuffix(".lock")) for p in parent.glob(f"{prefix}*")}:
        with contextlib.suppress(OSError):
            if name.fullmatch(path.name) is None:
                continue
            if path.with_name(f"{path.name}.lock").exists():
                _remove_unlocked(path)
            elif time.time() - path.stat().st_mtime > UNOWNED_SECONDS:
                shutil.rmtree(path)


def _remove_unlocked(folder: Path) -> None:
    """Remove a folder and its lock, unless a process holds the lock."""
    from filelock import FileLock, Timeout

    lock = FileLock(f"{folder}.lock")
    with contextlib.suppress(Timeout), lock.acquire(blocking=False):
        shutil.rmtree(folder, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)
