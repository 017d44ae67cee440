"""Writing a file whole or not at all, and never over another one's."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

LONGEST = 50
"""characters of a name that its scratch has"""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when it is complete and on the disk.

    Until then, and after an error, `path` is unchanged. Of several writers at once the last one
    counts. An OSError names `path`.
    """
    with _scratch(path) as (scratch, file):
        yield file
        file.flush()
        os.fsync(file.fileno())
        file.close()
        scratch.replace(path)
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by `replacing`."""
    with replacing(path) as file:
        file.write(content)


def write_beside(path: Path, content: bytes) -> Path:
    """Write a file that nobody has: `path`, else `path` with -2, -3, … before its suffix.

    Returns where it is. The name is taken first, at once for all processes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        free = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        with contextlib.suppress(FileExistsError):
            open(free, "xb").close()
            break
    try:
        write_whole(free, content)
    except BaseException:
        free.unlink(missing_ok=True)
        raise
    return free


def check_writable(path: Path) -> None:
    """Raise OSError, which names the path, where `replacing(path)` could not begin."""
    with _scratch(path) as (_, file):
        file.write(bytes(4096))  # a full disk has room for names
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside `path`, which is gone afterwards; an OSError names `path` instead."""
    scratch = scratch_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(scratch, "xb") as file:
            yield scratch, file
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
            del error.filename2  # the other name of a renaming; None would be shown, as "-> None"
        raise
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)


def scratch_of(path: Path) -> Path:
    """Where `path` is written before it is whole; no two writers have the same.

    A long name is cut: the scratch must not be what a file system refuses.
    """
    return path.with_name(f".{path.name[:LONGEST]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def is_scratch_of(names: set[str], path: Path) -> bool:
    """Whether the file is what a killed writer of one of these names left, in any version."""
    found = re.fullmatch(r"\.(.+?)\.\d+(-[0-9a-f]{8})?\.tmp", path.name)
    return found is not None and found[1] in names
