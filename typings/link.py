"""Put the rooms where type checkers and editors look for them: `typings/qgpo/<room>`.

    python typings/link.py

`make` runs it. mypy reads this folder as `mypy_path`, pyright and Pylance as their default
`stubPath`. On Windows the links are junctions, which need no right of an administrator.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Make all links anew; a room is a top-level folder with an `__init__.py`."""
    package = ROOT / "typings" / "qgpo"
    if package.exists():
        for link in package.iterdir():
            remove(link)
    package.mkdir(exist_ok=True)
    for room in sorted(path.parent for path in ROOT.glob("*/__init__.py")):
        if room.name != "qgpo":
            link_folder(package / room.name, room)


def link_folder(link: Path, folder: Path) -> None:
    """Let `link` lead to `folder`."""
    if sys.platform == "win32":
        import _winapi

        _winapi.CreateJunction(str(folder), str(link))
    else:
        link.symlink_to(os.path.relpath(folder, link.parent), target_is_directory=True)


def remove(link: Path) -> None:
    """Remove a link, or the copy of a folder, never what a link leads to."""
    if link.is_symlink():
        link.unlink()
    elif link.is_dir():
        try:
            link.rmdir()  # a junction, or an empty folder
        except OSError:
            shutil.rmtree(link)
    else:
        link.unlink()


if __name__ == "__main__":
    main()
