"""Run folders: everything about one training in one place, never two trainings in one folder.

config.json        arguments, configuration, dataset, versions
metrics.csv        every logged metric; TensorBoard events beside it
checkpoint.zip     the agent, rewritten atomically every few thousand steps
evaluation.json    raw returns with seeds, per guidance scale
report.png         learning curves and returns
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import (
    CSVOutputFormat,
    HumanOutputFormat,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
)


class RunFolder:
    """A run folder, locked while it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.zip"
        self.config = path / "config.json"
        self.metrics = path / "metrics.csv"
        self.evaluation = path / "evaluation.json"
        self.report = path / "report.png"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; a second process that wants it gets a RuntimeError."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(
                    f"another process is training in {self.path}: wait for it, or choose another "
                    "--run-dir"
                ) from None
            yield

    def write_json(self, path: Path, data: Any) -> None:
        """Write atomically."""
        scratch = path.with_name(f".{path.name}.tmp")
        scratch.write_text(json.dumps(data, indent=2, default=str))
        scratch.replace(path)

    def logger(self, verbose: bool, extra: list[KVWriter]) -> Logger:
        """SB3's logger with this folder's formats; a resumed run's CSV goes on in a new file."""
        csv = self.metrics
        if csv.exists():
            csv = self.path / f"metrics.{int(time.time())}.csv"
        outputs: list[KVWriter] = [
            CSVOutputFormat(str(csv)),
            TensorBoardOutputFormat(str(self.path)),
            *extra,
        ]
        if verbose:
            outputs.append(HumanOutputFormat(sys.stdout))
        return Logger(folder=str(self.path), output_formats=outputs)


class SaveCheckpoint(BaseCallback):
    """Save the agent every `every` calls, and at the end of training."""

    def __init__(self, path: Path, every: int) -> None:
        super().__init__()
        self.path, self.every = path, every

    def _on_step(self) -> bool:
        if self.n_calls % self.every == 0:
            self.model.save(self.path)
        return True

    def _on_training_end(self) -> None:
        self.model.save(self.path)
