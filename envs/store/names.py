"""Names from outside: dataset ids and files that a listing, a plan or a user states.

Every such name passes `check_name` before a path is made of it, so that nothing outside the
folder that it is looked up in is read, written or deleted, on any operating system.
"""

from __future__ import annotations

import re
from pathlib import Path

LONGEST = 200
"""bytes of a whole name; file systems allow 255 a part, locks and scratch folders add to it"""
RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{device}{number}" for device in ("com", "lpt") for number in "0123456789¹²³"
}
"""devices of Windows, with any extension"""
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|\[\]\ud800-\udfff]')
"""control characters, other separators, drives, and patterns"""


def check_name(name: object, what: str) -> str:
    """The name, a relative path with / between its parts.

    Raises ValueError, which names `what` it is of, for a name that leads elsewhere or that is no
    file name everywhere.
    """
    problem = fault(name)
    if problem is not None:
        raise ValueError(
            f"{what} {name!a:.120} is malformed ({problem}); expected names with / between "
            "them, without '..'"
        )
    assert isinstance(name, str)
    return name


def check_inside(path: Path, folder: Path, what: str) -> Path:
    """The path, all links followed. Raises ValueError where that leads out of the folder."""
    found = path.resolve()
    if not found.is_relative_to(folder.resolve()):
        raise ValueError(f"{what} {path.name!r} is a link to {found}, outside of {folder}")
    return found


def fault(name: object) -> str | None:
    """The reason why it is no name that leads to one place, if there is one."""
    if not isinstance(name, str) or not name:
        return "no name"
    if FORBIDDEN.search(name):
        return "a character that names cannot have"
    if len(name.encode()) > LONGEST:
        return f"{len(name.encode())} bytes, at most {LONGEST}"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return f"part {part!r}"
        if part[-1] in ". ":
            return "a part that ends in a dot or a space"
        if part.split(".")[0].rstrip().lower() in RESERVED:
            return f"{part} is a device on Windows"
    return None
