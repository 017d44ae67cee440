"""Folders that appear complete or not at all: written aside, then renamed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def scratch_folder(prefix: str, parent: Path) -> Iterator[Path]:
    """A temporary folder on the same file system as the folders beside it.

    On Windows it may survive an error while one of its files is open.
    """
    with tempfile.TemporaryDirectory(
        prefix=prefix, dir=parent, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


def put_in_place(made: Path, target: Path, replace: bool = False) -> None:
    """Rename a finished folder, whose files are closed, to its name.

    Without `replace`, a target that another process has finished in the meantime is kept.
    Raises OSError, and leaves the target as it was, where a folder cannot be renamed: Windows
    renames no folder with an open file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    previous = target.with_name(f".{target.name}.old")
    shutil.rmtree(previous, ignore_errors=True)
    if replace and target.exists():
        target.rename(previous)
    try:
        made.rename(target)
    except OSError:
        if not target.exists():
            if previous.exists():
                previous.rename(target)
            raise
        shutil.rmtree(made, ignore_errors=True)
    shutil.rmtree(previous, ignore_errors=True)
