"""Run folders: everything about one training in one place, never two trainings in one folder.

config.json        arguments, configuration, dataset, versions
metrics.csv        every logged metric; TensorBoard events beside it
checkpoint.zip     the agent, rewritten atomically every few thousand steps
evaluation.json    raw returns with seeds, per guidance scale
report.png         learning curves and returns
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import (
    CSVOutputFormat,
    HumanOutputFormat,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
)


class RunFolderError(RuntimeError):
    """A run folder that another process is training in."""


class RunFolder:
    """A run folder, locked while it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.zip"
        self.config = path / "config.json"
        self.metrics = path / "metrics.csv"
        self.evaluation = path / "evaluation.json"
        self.report = path / "report.png"

    @property
    def is_locked(self) -> bool:
        """Whether a process is training here."""
        try:
            with open(self.path / ".lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; a second process that wants it gets a RunFolderError."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunFolderError(
                    f"another process is training in {self.path}: wait for it, or choose another "
                    "--run-dir"
                ) from None
            for left in self.path.glob(".*.tmp"):  # by a run that was killed while writing
                left.unlink()
            yield

    def write_json(self, path: Path, data: Any, indent: int | None = 2) -> None:
        """Write atomically."""
        scratch = path.with_name(f".{path.name}.tmp")
        try:
            scratch.write_text(json.dumps(data, indent=indent, default=str))
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)

    def logger(self, verbose: bool, extra: list[KVWriter], progress: dict[str, int]) -> Logger:
        """SB3's logger with this folder's formats.

        `metrics.csv` goes on after the rows up to `progress`, the steps done per stage; rows that
        a killed run wrote after its last checkpoint are logged again.
        """
        outputs: list[KVWriter] = [
            ContinuedCSV(self.metrics, progress),
            TensorBoardOutputFormat(str(self.path)),
            *extra,
        ]
        if verbose:
            outputs.append(HumanOutputFormat(sys.stdout))
        return Logger(folder=str(self.path), output_formats=outputs)


class WandbOutput(KVWriter):
    """Sends SB3's logger to a new run on Weights & Biases."""

    def __init__(self, project: str, folder: RunFolder, config: dict[str, Any]) -> None:
        import wandb

        path = folder.path
        self.run = wandb.init(project=project, name=path.name, dir=str(path), config=config)

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0
    ) -> None:
        """One row of metrics."""
        numbers = {k: v for k, v in key_values.items() if isinstance(v, int | float)}
        self.run.log(numbers, step=step)

    def close(self) -> None:
        """Nothing yet: returns come after training."""

    def finish(self, summary: dict[str, float]) -> None:
        """Add figures of the whole run and end it."""
        self.run.summary.update(summary)
        self.run.finish()


class ContinuedCSV(CSVOutputFormat):
    """SB3's CSV format that keeps the rows of a run up to where it is resumed."""

    def __init__(self, path: Path, progress: dict[str, int]) -> None:
        keys, rows = _rows_until(path, progress)
        scratch = path.with_name(f".{path.name}.tmp")
        with open(scratch, "w", newline="") as file:
            if keys:
                writer = csv.DictWriter(file, keys, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        scratch.replace(path)
        self.file = open(path, "r+")  # noqa: SIM115
        self.file.seek(0, os.SEEK_END)
        self.keys = keys
        self.separator = ","
        self.quotechar = '"'


def _rows_until(path: Path, progress: dict[str, int]) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of a metrics.csv that training at `progress` has behind it."""
    if not path.exists():
        return [], []
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        keys = list(reader.fieldnames or [])
        rows = []
        for row in reader:
            steps = row.get("time/stage_steps") or ""
            stage = row.get("time/stage") or ""
            whole = None not in row and None not in row.values()  # not cut off by a kill
            if whole and steps.isdigit() and int(steps) <= progress.get(stage, 0):
                rows.append(row)
    return (keys, rows) if rows else ([], [])
