"""Put the rooms where type checkers and editors look for them: `typings/qgpo/<room>`.

    python typings/link.py

`make` runs it. Links are made where the system allows them, copies elsewhere (run it again then,
after changes).
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOMS = ("agents", "envs", "experiments", "scripts")


def main() -> None:
    """Make all links anew."""
    root = Path(__file__).resolve().parents[1]
    package = root / "typings" / "qgpo"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir()
    for room in ROOMS:
        try:
            (package / room).symlink_to(Path("..") / ".." / room, target_is_directory=True)
        except OSError:  # Windows, without the right to make links
            shutil.copytree(root / room, package / room)


if __name__ == "__main__":
    main()
