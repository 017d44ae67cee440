"""Space on a disk, taken before it is needed."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path
from typing import IO, Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) if sys.platform != "win32" else (errno.ENOSPC,)
"""of the system: no space, no more of the user's share, no larger files"""


class DiskFullError(OSError):
    """A disk with less free space than what is to be written there."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno = errno.ENOSPC


def free_bytes(folder: Path) -> int:
    """Free space on the disk of a folder, or of its nearest parent that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def megabytes(size: float) -> str:
    """A size for people."""
    return f"{size / 1e6:,.1f} MB"


def check_space(folder: Path, needed: float, what: str, advice: str) -> None:
    """Raise DiskFullError where the folder's disk has fewer free bytes than needed."""
    free = free_bytes(folder)
    if needed > free:
        raise DiskFullError(
            f"{what}: {megabytes(needed)} are needed, {folder} has {megabytes(free)} free: free "
            f"some space, or {advice}"
        )


def allocate(file: IO[Any], size: int, folder: Path, what: str, advice: str) -> None:
    """Give an empty file `size` bytes of zeros that have their place on the disk.

    Later writes within them, also through a memory map, do not fail for lack of space: a write
    through a map into a file with holes ends the process with SIGBUS where the disk is full.
    (Where the system cannot reserve space, zeros are written.) Raises DiskFullError.
    """
    check_space(folder, size, what, advice)
    try:
        if sys.platform == "linux":
            if size > 0:
                os.posix_fallocate(file.fileno(), 0, size)
        else:
            for begin in range(0, size, 2**20):
                file.write(bytes(min(2**20, size - begin)))
            file.flush()
            file.seek(0)
    except OSError as error:
        raise DiskFullError(
            f"{what}: {megabytes(size)} could not be reserved in {folder} ({error}; "
            f"{megabytes(free_bytes(folder))} free): free some space, or {advice}"
        ) from error


def not_written(error: OSError, what: str, folder: Path, advice: str) -> OSError:
    """The error to raise where something could not be written: DiskFullError on a full disk."""
    message = (
        f"{what} in {folder} ({error}; {megabytes(free_bytes(folder))} free): free some space, or "
        f"{advice}"
    )
    if error.errno in FULL:
        return DiskFullError(message)
    return OSError(error.errno, message)
