"""Processes that play OGBench's trajectories, each into a file of its own.

A process runs `python -m qgpo.envs.rollouts.ogbench_players`. The first line of its standard input
is JSON that says what to play. Each further line is the number of a trajectory, which it answers
with a line. It ends at once where the input ends: whoever started it is gone then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.numpy

from qgpo.envs.rollouts.ogbench_experts import Procedure, Trajectory, trajectory
from qgpo.files import write_whole

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
POLL_SECONDS = 1.0
"""how long Ctrl-C may take where a waiting process does not notice it (Windows)"""


class WorkerError(OSError):
    """A worker process that ended before its work did."""


@dataclass(frozen=True)
class Parts:
    """The files of trajectories that are played in the same way."""

    folder: Path
    procedure: Procedure
    seed: int

    def path(self, index: int) -> Path:
        """The file of a trajectory."""
        return self.folder / f"{index:06d}.safetensors"

    def write(self, index: int) -> None:
        """Play a trajectory, and write its file whole or not at all."""
        played = trajectory(self.procedure, self.seed, index)
        write_whole(self.path(index), safetensors.numpy.save(played))

    def read(self, index: int) -> Trajectory:
        """A trajectory. Raises ValueError for a file that is not one, and FileNotFoundError."""
        path = self.path(index)
        try:
            found: Trajectory = safetensors.numpy.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}): delete it") from error
        rows = {name: len(values) for name, values in found.items()}
        if set(rows.values()) != {self.procedure.length + 1}:
            raise ValueError(f"{path} has {rows} rows, expected {self.procedure.length + 1}")
        return found

    def has(self, index: int) -> bool:
        """Whether the file of a trajectory is here, and whole."""
        try:
            self.read(index)
        except (OSError, ValueError):
            return False
        return True


def played(parts: Parts, indices: Sequence[int], processes: int) -> Generator[int, None, None]:
    """Play these trajectories in so many processes; each index as its file is written.

    Raises WorkerError where a process ended early, and OSError where a file could not be written.
    """
    todo, waiting = iter(indices), len(indices)
    with contextlib.ExitStack() as stack:
        answers: queue.SimpleQueue[tuple[_Worker, str]] = queue.SimpleQueue()
        for _ in range(min(processes, waiting)):
            worker = stack.enter_context(_Worker.started(parts, answers))
            worker.ask(next(todo))
        while waiting > 0:
            try:
                worker, line = answers.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            index = worker.index_in(line)
            waiting -= 1
            following = next(todo, None)
            if following is not None:
                worker.ask(following)
            yield index


class _Worker:
    """A process that plays, as the process sees it that asks."""

    def __init__(self, process: subprocess.Popen[str], log: IO[bytes]) -> None:
        self.process, self.log = process, log

    @classmethod
    @contextlib.contextmanager
    def started(
        cls, parts: Parts, answers: queue.SimpleQueue[tuple[_Worker, str]]
    ) -> Iterator[_Worker]:
        """A new process, which has ended when the block has."""
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                # -P: no module is imported from the folder in which the user happens to be
                [sys.executable, "-P", "-W", "ignore", "-m", "qgpo.envs.rollouts.ogbench_players"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,  # Ctrl-C reaches only us
            )
            worker = cls(process, log)
            threading.Thread(target=worker.listen, args=(answers,), daemon=True).start()
            try:
                worker.say(json.dumps(dataclasses.asdict(parts), default=str))
                yield worker
            finally:
                process.kill()
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    assert pipe is not None
                    with contextlib.suppress(OSError):
                        pipe.close()

    def listen(self, answers: queue.SimpleQueue[tuple[_Worker, str]]) -> None:
        """Pass the answers on; an empty one is the end."""
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):  # closed meanwhile
            for line in self.process.stdout:
                answers.put((self, line))
        answers.put((self, ""))

    def say(self, line: str) -> None:
        """Write a line, unless it has ended: `listen` notices that."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()

    def ask(self, index: int) -> None:
        """Have a trajectory played."""
        self.say(str(index))

    def index_in(self, line: str) -> int:
        """The trajectory that an answer is about. Raises OSError for one that failed."""
        if not line:
            raise WorkerError(f"a process that plays trajectories ended early: {self.reason()}")
        answer = json.loads(line)
        if "error" in answer:
            raise OSError(answer["errno"], answer["error"])
        return int(answer["index"])

    def reason(self) -> str:
        """Why it ended: the signal that ended it, or the last line that it wrote."""
        code = self.process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (by the system, for want of memory?)" if name == "SIGKILL" else ""
            return f"{name}{hint}"
        self.log.seek(0)
        lines = self.log.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {code}"


# In a worker --------------------------------------------------------------------------------


def main() -> None:
    """A worker process."""
    wanted = _lines()
    given = json.loads(wanted.get())
    parts = Parts(Path(given["folder"]), Procedure(**given["procedure"]), given["seed"])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what others print is no answer
    while True:
        answer: dict[str, Any] = {"index": int(wanted.get())}
        try:
            parts.write(answer["index"])
        except OSError as error:
            answer.update(error=str(error), errno=error.errno)
        answers.write(f"{json.dumps(answer)}\n")
        answers.flush()


def _lines() -> queue.SimpleQueue[str]:
    """The lines of the standard input. The process ends where they do."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)  # files are written whole or not at all

    threading.Thread(target=read, daemon=True).start()
    return lines


if __name__ == "__main__":
    main()
