"""Run folders: everything about one training in one place, never two trainings in one folder.

config.json        settings, dataset, versions: see documents.py
metrics.csv        every logged metric; TensorBoard events beside it
checkpoint.zip     the agent, replaced atomically every few thousand steps
clock.json         what training has cost up to that checkpoint
evaluation.json    the same as config.json, with times and the raw returns per guidance scale;
                   evaluation-2.json and so on where other evaluations were asked for later
report.png         learning curves and returns, by train.py
agent.png          a picture of the trained agent, by evaluate.py --picture
data.png           a picture of its data, likewise
exactness.png      how exact its guidance is, by evaluate.py --exactness
log.txt            what a benchmark's worker printed

Other files in the folder are somebody else's and stay.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from stable_baselines3.common.logger import (
    CSVOutputFormat,
    HumanOutputFormat,
    Logger,
    TensorBoardOutputFormat,
)

from qgpo.files import is_scratch_of, replacing

try:
    fcntl: Any = importlib.import_module("fcntl")
except ImportError:  # Windows; everything works without it
    fcntl = None

PATIENCE_SECONDS = 1.0
"""how long a process tries to get a folder before it asks whether another one has it"""
POLL_SECONDS = 2.0
"""between two looks at a folder that somebody waits for"""
EVENT_WRITER = "_AsyncWriterThread"
"""the class of TensorBoard's thread"""
EVENTS = re.compile(r"events\.out\.tfevents\.\d+\..*")
OWN_EVALUATION = re.compile(r"evaluation-(\d{1,4})\.json")
OF_EVALUATE = re.compile(r"evaluation(-together)?-\d{8}-\d{6}(-\d{1,4})?\.json")
"""written by evaluate.py, with the time"""


class RunFolderError(RuntimeError):
    """A run folder in which another process is training, or with what no run wrote."""


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
        self.unfinished = path / "evaluation-unfinished.json"
        """what an evaluation that did not come to its end had played"""
        self.report = path / "report.png"
        self.picture, self.picture_of_data = path / "agent.png", path / "data.png"
        """of the trained agent and its data, by evaluate.py --picture"""
        self.exactness = path / "exactness.png"
        """by evaluate.py --exactness"""
        self.trial = path / ".trial.zip"
        """a checkpoint that is deleted at once"""
        self.log = path / "log.txt"
        self._lock = path / ".lock"
        self._held: tuple[int, int] | None = None
        """the lock file that this process holds, by the file system's numbers"""

    @property
    def evaluations(self) -> list[Path]:
        """The run's own evaluations that are there, the first one first."""
        later = {
            int(found[1]): path
            for path in self.path.glob("evaluation-*.json")
            if (found := OWN_EVALUATION.fullmatch(path.name)) and _is_evaluation(path)
        }
        paths = [self.evaluation, *(later[n] for n in sorted(later)), self.evaluation_1]
        return [path for path in paths if path.exists() and path.stat().st_size]

    @property
    def is_locked(self) -> bool:
        """Whether a process is training here. Whoever asks keeps nobody from training."""
        if not self._lock.exists():
            return False
        if fcntl is not None:
            try:
                with open(self._lock, "rb") as file:  # shared: `_acquire` knows it from a holder's
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
            except BlockingIOError:
                return True
            except OSError:  # a file system without locks, where filelock has its own way
                pass
        try:
            with FileLock(self._lock, timeout=0):
                return False
        except Timeout:
            return True

    def _acquire(self) -> BaseFileLock:
        """The lock; Timeout only where another process holds it, not where one asks."""
        lock = FileLock(self._lock)
        while True:
            try:
                lock.acquire(timeout=PATIENCE_SECONDS, poll_interval=0.01)
                return lock
            except Timeout:
                if self.is_locked:
                    raise

    @contextlib.contextmanager
    def locked(self, wait: bool = False) -> Iterator[None]:
        """Hold the folder; a second process that wants it waits, or gets a RunFolderError.

        The lock of a process that was killed is free.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            lock = self._acquire()
        except Timeout:
            if not wait:
                raise RunFolderError(
                    f"another process is training in {self.path}: wait for it, or choose another "
                    "folder"
                ) from None
            print(f"{self.path} is in use by another process: waiting", flush=True)
            lock = self._wait()
        try:
            self._held = self._identity()
            self.check_regular()
            self._clean()
            yield
        finally:
            self._held = None
            lock.release()

    def _identity(self) -> tuple[int, int] | None:
        """Which lock file is there now; None where there is none."""
        try:
            found = self._lock.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def check_held(self) -> None:
        """Raise RunFolderError where this process holds the lock of a folder that is gone.

        Who removes or moves a run folder leaves its process with the lock of a file without a name,
        and another training may have begun there.
        """
        if self._held not in (None, self._identity()):
            raise RunFolderError(
                f"{self.path} was removed or moved while this process was using it: the process "
                "stops without writing anything"
            )

    def check_regular(self) -> None:
        """Raise RunFolderError where something else than a file has one of a run's names."""
        for path in (*self._names(), self.log):
            if path.exists() and not path.is_file():
                raise RunFolderError(
                    f"{path} is not a file, and was not made by a run: move it away, or choose "
                    "another --run-dir"
                )

    def _wait(self) -> BaseFileLock:
        """The lock, when the process that holds it has ended."""
        while True:
            with contextlib.suppress(Timeout):
                return self._acquire()
            time.sleep(POLL_SECONDS)

    def _clean(self) -> None:
        """Delete what a process left that was killed while it was writing."""
        names = {path.name for path in (*self._names(), self.trial)}
        for path in self.path.glob(".*.tmp"):
            if is_scratch_of(names, path):
                path.unlink()
        self.trial.unlink(missing_ok=True)

    def _names(self) -> list[Path]:
        """What a run writes under a fixed name, beside its log; config.json comes last."""
        return [
            *(self.checkpoint, self.metrics, self.clock, self.evaluation, self.evaluation_1),
            *(self.unfinished, self.report, self.picture, self.picture_of_data),
            *(self.exactness, self.config),
        ]

    def named(self) -> list[Path]:
        """What is here under these names, links too; config.json comes last."""
        return [path for path in self._names() if path.is_symlink() or path.exists()]

    def _written(self) -> list[Path]:
        """All that a run and its evaluations wrote; config.json comes last."""
        others = [
            path
            for path in sorted(self.path.iterdir())
            if EVENTS.fullmatch(path.name)
            or (
                any(pattern.fullmatch(path.name) for pattern in (OWN_EVALUATION, OF_EVALUATE))
                and _is_evaluation(path)
            )
        ]
        return [*others, *self.named()]

    def check_clear(self) -> None:
        """Raise RunFolderError where one of a run's names is a folder or a link."""
        for path in self._written():
            if path.is_symlink() or not path.is_file():
                raise RunFolderError(
                    f"{path} is a {'link' if path.is_symlink() else 'folder'}, which was not "
                    "made by a run: move it away, or choose another --run-dir"
                )

    def clear(self) -> list[str]:
        """Delete what a run wrote; returns the names of what stays because no run wrote it.

        Raises RunFolderError, and deletes nothing, as `check_clear` does.
        """
        self.check_clear()
        for path in self._written():
            path.unlink()
        return sorted(path.name for path in self.path.iterdir() if path != self._lock)

    def logger(self, verbose: bool, progress: dict[str, int]) -> Logger:
        """SB3's logger with this folder's formats.

        `metrics.csv` continues after the rows up to `progress`, the steps done per stage; rows that
        a killed run wrote after its last checkpoint are logged again.
        """
        outputs = [ContinuedCSV(self.metrics, progress), TensorBoardOutputFormat(str(self.path))]
        shown = [HumanOutputFormat(sys.stdout)] if verbose else []
        return Logger(str(self.path), [*outputs, *shown])


@contextlib.contextmanager
def events_in_one_line() -> Iterator[None]:
    """Name in one line what TensorBoard's thread cannot write; who logs next gets its OSError."""
    former = threading.excepthook

    def hook(args: Any) -> None:
        if type(args.thread).__name__ == EVENT_WRITER and isinstance(args.exc_value, OSError):
            print(f"TensorBoard's events cannot be written: {args.exc_value}", file=sys.stderr)
        else:
            former(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = former


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


def _is_evaluation(path: Path) -> bool:
    """Whether a file with an evaluation's name is one, or an empty one; others are a user's."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        content = path.read_bytes()
        entries = json.loads(content)["evaluations"] if content else []
        return all("returns" in entry for entry in entries)
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return False


def _lines_until(path: Path, progress: dict[str, int]) -> list[str]:
    """Header and rows of a metrics.csv that training at `progress` has behind it.

    Raises RunFolderError for a file that is no text.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        raise RunFolderError(f"{path} cannot be read ({error}): move it away") from error
    lines = text.splitlines(keepends=True)
    keys = _cells(lines[0]) if lines else []
    rows = []
    for line in lines[1:]:
        cells = _cells(line)
        row = dict(zip(keys, cells, strict=False))
        whole = line.endswith("\n") and len(cells) == len(keys)
        steps, stage = row.get("time/stage_steps", ""), row.get("time/stage", "")
        if whole and steps.isdecimal() and len(steps) < 19 and int(steps) <= progress.get(stage, 0):
            rows.append(line)  # neither cut off by a kill nor to be logged again
    return [lines[0], *rows] if rows else []


def _cells(line: str) -> list[str]:
    """The cells of one row; none where it is no row, as after a power failure."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []
