"""Fetch KaTeX from npm into docs/assets/katex, which is not committed: formulas of the site.

python docs/_site/katex.py

Without npm or network the site is built all the same, and shows formulas as they are written.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.19.1"
FOLDER = Path(__file__).parents[1] / "assets" / "katex"
NEEDED = ("katex.min.js", "katex.min.css", "contrib/auto-render.min.js", "fonts/")


def main() -> None:
    """Fetch it, unless it is there."""
    if (FOLDER / "katex.min.js").exists():
        return
    if (npm := shutil.which("npm")) is None:
        sys.exit("formulas are shown as they are written: npm, which fetches KaTeX, is missing")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", f"katex@{VERSION}"]
        packed = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if packed.returncode:
            sys.exit(
                f"formulas are shown as they are written: npm failed ({packed.stderr.strip()})"
            )
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
        unpacked = Path(folder, "package", "dist")
        for file in unpacked.rglob("*"):
            name = file.relative_to(unpacked).as_posix()
            if file.is_file() and name.startswith(NEEDED) and file.suffix not in (".ttf", ".woff"):
                (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, FOLDER / name)


if __name__ == "__main__":
    main()
