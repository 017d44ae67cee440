"""Run folders: everything about one training in one place, never two trainings in one folder.

config.json        settings, dataset, versions: see format.py
metrics.csv        every logged metric; TensorBoard events beside it
checkpoint.zip     the agent, replaced atomically every few thousand steps
clock.json         what training has cost up to that checkpoint
evaluation.json    the same as config.json, with times and the raw returns per guidance scale
report.png         learning curves and returns, by train.py
log.txt            what a benchmark's worker printed
"""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from stable_baselines3.common.logger import (
    CSVOutputFormat,
    HumanOutputFormat,
    Logger,
    TensorBoardOutputFormat,
)

from qgpo.agents.core.files import replacing

PATIENCE_SECONDS = 1.0
"""how long a process tries to get a folder: `is_locked` of another one holds it for a moment"""


class RunFolderError(RuntimeError):
    """A run folder in which another process is training."""


class RunFolder:
    """A run folder, locked while it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.zip"
        self.config = path / "config.json"
        self.metrics = path / "metrics.csv"
        self.clock = path / "clock.json"
        self.evaluation = path / "evaluation.json"
        self.evaluation_1 = path / "cell.json"  # a benchmark's, in version 1
        self.report = path / "report.png"
        self.log = path / "log.txt"
        self._lock = path / ".lock"

    @property
    def is_locked(self) -> bool:
        """Whether a process is training here."""
        if not self._lock.exists():
            return False
        try:
            with FileLock(self._lock, timeout=0):
                return False
        except Timeout:
            return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; a second process that wants it gets a RunFolderError.

        The lock of a process that was killed is free.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self._lock, timeout=PATIENCE_SECONDS).acquire()
        except Timeout:
            raise RunFolderError(
                f"another process is training in {self.path}: wait for it, or choose another "
                "--run-dir"
            ) from None
        with lock:
            for rest in self.path.glob(".*.tmp"):  # of a process that was killed while writing
                rest.unlink()
            yield

    def clear(self) -> None:
        """Delete what is in the folder, except for its lock."""
        for entry in self.path.iterdir():
            if entry != self._lock:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def logger(self, verbose: bool, progress: dict[str, int]) -> Logger:
        """SB3's logger with this folder's formats.

        `metrics.csv` continues after the rows up to `progress`, the steps done per stage; rows that
        a killed run wrote after its last checkpoint are logged again.
        """
        outputs = [ContinuedCSV(self.metrics, progress), TensorBoardOutputFormat(str(self.path))]
        shown = [HumanOutputFormat(sys.stdout)] if verbose else []
        return Logger(str(self.path), [*outputs, *shown])


class ContinuedCSV(CSVOutputFormat):
    """SB3's CSV format that keeps the rows of a run up to where it is resumed."""

    def __init__(self, path: Path, progress: dict[str, int]) -> None:
        lines = _lines_until(path, progress)
        with replacing(path) as file:
            file.write("".join(lines).encode())
        self.file = open(path, "r+", encoding="utf-8")  # noqa: SIM115
        self.file.seek(0, os.SEEK_END)
        self.keys = next(csv.reader(lines), [])
        self.separator = ","
        self.quotechar = '"'


def _lines_until(path: Path, progress: dict[str, int]) -> list[str]:
    """Header and rows of a metrics.csv that training at `progress` has behind it."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = text.splitlines(keepends=True)
    rows = []
    for line, row in zip(lines[1:], csv.DictReader(lines), strict=False):
        whole = line.endswith("\n") and None not in row and None not in row.values()
        steps, stage = row.get("time/stage_steps") or "", row.get("time/stage") or ""
        if whole and steps.isdigit() and int(steps) <= progress.get(stage, 0):
            rows.append(line)  # neither cut off by a kill nor to be logged again
    return [lines[0], *rows] if rows else []
