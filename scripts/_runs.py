"""The runs that a command line names, and the checkpoints in them."""

from __future__ import annotations

from pathlib import Path

from qgpo.experiments.folder import RunFolder


def find_run(run: Path) -> RunFolder:
    """The run folder, whose `checkpoint` is the file to read."""
    folder = RunFolder(run if run.is_dir() else run.parent)
    if run.is_file() and run.suffix != ".zip":
        raise ValueError(f"--run {run}: expected a run folder, or a checkpoint that ends in .zip")
    if run.is_file():
        folder.checkpoint = run
    if not run.exists() or not folder.checkpoint.is_file():
        root = Path("runs")
        known = sorted(str(found.parent) for found in root.glob("*/checkpoint.zip"))
        missing = "no checkpoint.zip in it" if run.exists() else "does not exist"
        raise ValueError(f"--run {run}: {missing}; runs under {root}: {', '.join(known) or 'none'}")
    return folder


def find_runs(runs: tuple[Path, ...]) -> list[RunFolder]:
    """The folder of each; a checkpoint that would count twice is refused."""
    folders: dict[Path, RunFolder] = {}
    for run in runs:
        folder = find_run(run)
        if folders.setdefault(folder.checkpoint.resolve(), folder) is not folder:
            raise ValueError(f"--run {run}: named twice")
    return list(folders.values())
