"""How messages spell a command of this package: as the user called the one that is running."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

INSTALLED = {
    "train": "qgpo-train",
    "evaluate": "qgpo-evaluate",
    "collect": "qgpo-collect",
    "benchmark": "qgpo-benchmark",
    "report": "qgpo-report",
    "export": "qgpo-export",
    "finetune": "qgpo-finetune",
    "data": "qgpo-datasets",
    "share": "qgpo-share",
    "toy_2d": "qgpo-toy-2d",
    "images": "qgpo-images",
}
"""by the script's name: the command that is installed for it"""


def command(script: str, *arguments: object) -> str:
    """The command that runs a script, to be copied into a terminal.

    It is `python scripts/train.py …` where a file of that folder is running (`python -m …` where
    it was called so), or where this package is the clone in the working folder. Else it is the
    installed `qgpo-train …`.
    """
    words = [*_program(script), *map(str, arguments)]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _program(script: str) -> list[str]:
    """The words before the arguments."""
    running, installed = Path(sys.argv[0]), INSTALLED[script]
    if running.suffix == ".py" and _is_ours(running):
        if getattr(sys.modules["__main__"], "__spec__", None) is not None:
            return [sys.orig_argv[0], "-m", f"qgpo.scripts.{script}"]
        return [sys.orig_argv[0], str(running.with_name(f"{script}.py"))]
    if running.name in INSTALLED.values():
        found = shutil.which(installed)
        if found is None or Path(found).parent.resolve() != running.parent.resolve():
            return [str(running.with_name(installed))]
    elif (Path("scripts") / f"{script}.py").is_file() and _is_clone(Path()):
        return ["python", f"scripts/{script}.py"]
    return [installed]


def _is_clone(folder: Path) -> bool:
    """Whether this package was imported from that folder, where a clone has its scripts."""
    return (folder / "qgpo" / "commands.py").resolve() == Path(__file__).resolve()


def _is_ours(file: Path) -> bool:
    """Whether the file is one of the scripts: all of them are beside it, installed or cloned."""
    return file.stem in INSTALLED and all(
        file.with_name(f"{script}.py").is_file() for script in INSTALLED
    )
