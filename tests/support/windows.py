"""Linux as strict about files as Windows is: what `behave_as_windows` forbids fails there too.

No module that only POSIX has, no directory opened as a file, no rename over an existing name, and
nothing renamed, replaced or deleted while this process has it open or mapped.
"""

from __future__ import annotations

import asyncio  # noqa: F401  (on Linux it imports fcntl itself)
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

POSIX_ONLY = ("fcntl", "grp", "pwd", "resource", "termios")


def behave_as_windows() -> None:
    """From now on, in this process, which has no use for anything else."""
    for name in POSIX_ONLY:
        sys.modules[name] = None  # type: ignore[assignment]
    shutil._use_fd_functions = False
    open_file = os.open

    def open_no_directory(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if Path(path).is_dir() and flags & os.O_TMPFILE != os.O_TMPFILE:
            raise PermissionError(13, "a directory cannot be opened", str(path))
        return open_file(path, flags, *more, **options)

    os.open = open_no_directory
    for name in ("rename", "replace"):
        setattr(os, name, _checked_move(getattr(os, name), over=name == "replace"))
    for name in ("unlink", "remove", "rmdir"):
        setattr(os, name, _checked_removal(getattr(os, name)))


def _checked_move(move: Callable[..., None], over: bool) -> Callable[..., None]:
    def checked(source: Any, target: Any, **options: Any) -> None:
        if Path(target).exists():
            if not over:
                raise FileExistsError(17, "the target exists", str(target))
            if Path(target).is_dir():
                raise PermissionError(13, "the target is a directory", str(target))
        _refuse_open(source)
        _refuse_open(target)
        move(source, target, **options)

    return checked


def _checked_removal(remove: Callable[..., None]) -> Callable[..., None]:
    def checked(path: Any, **options: Any) -> None:
        _refuse_open(path)
        remove(path, **options)

    return checked


def _refuse_open(path: Any) -> None:
    real = os.path.realpath(path)
    for opened in open_files():
        if opened == real or opened.startswith(real + os.sep):
            raise PermissionError(13, f"{opened} is open", str(path))


def open_files() -> Iterator[str]:
    """Every file that this process has open or mapped."""
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = link.readlink()
        except OSError:  # the one that listed the folder
            continue
        yield str(target)
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6:
            yield fields[5]
