"""Fetch from npm what the site loads and the repository does not hold: formulas, and search.

python docs/_site/fetch.py

KaTeX sets formulas; iframe-worker lets search work from a folder, without a server. Both go to
docs/assets/fetched, which is not committed. Without npm or network the site is built all the same:
formulas are shown as they are written, and search needs a server.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "assets" / "fetched"
PACKAGES = {
    "katex@0.19.1": ("dist", ("katex.min.js", "katex.min.css", "contrib/auto-render.min.js")),
    "iframe-worker@1.0.4": ("shim", ("index.js",)),
}
"""by name and version: the folder in the package, and what is taken from it"""
FONTS = "fonts/*.woff2"


def fetch(npm: str, package: str, inside: str, names: tuple[str, ...]) -> None:
    """Take these files, and fonts, from a package. Raises OSError where npm fails."""
    target = FOLDER / package.partition("@")[0]
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", package]
        packed = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if packed.returncode:
            raise OSError(f"npm pack {package} failed: {packed.stderr.strip()}")
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
        unpacked = Path(folder, "package", inside)
        for file in (*(unpacked / name for name in names), *unpacked.glob(FONTS)):
            place = target / file.relative_to(unpacked)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def main() -> None:
    """Fetch what is not there."""
    if (npm := shutil.which("npm")) is None:
        sys.exit("npm is missing: formulas are shown as they are written, search needs a server")
    for package, (inside, names) in PACKAGES.items():
        if not (FOLDER / package.partition("@")[0] / names[-1]).exists():
            fetch(npm, package, inside, names)


if __name__ == "__main__":
    main()
