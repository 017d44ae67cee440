"""Cells of a benchmark in worker processes on this machine, or on a Ray cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgpo.experiments.cells import LOG, RESULT, STOPPED, one_line, read_result, run_cell
from qgpo.experiments.plan import Cell

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
RETRIES = 3
"""how often Ray starts a cell again whose worker or machine died"""


@dataclass(frozen=True)
class Outcome:
    """How a cell ended."""

    cell: Cell
    result: dict[str, Any] | None
    """what its JSON says, or None where it failed"""
    error: str
    """last line of what went wrong"""
    log: Path
    """everything that the worker printed"""


Report = Callable[[Outcome], None]


def run_locally(cells: Sequence[Cell], root: Path, workers: int, report: Report) -> None:
    """Run the cells in `workers` processes at a time, one torch thread each.

    `report` is called in this thread as cells end, failed ones too. On Ctrl-C or SIGTERM the
    processes write checkpoints and end, then KeyboardInterrupt is raised.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}, expected at least 1")
    processes = _Processes(root)
    with ThreadPoolExecutor(workers) as pool:
        futures: dict[str, Future[Outcome]] = {}
        for cell in cells:
            futures[cell.name] = pool.submit(processes.run, cell, futures.get(cell.donor or ""))
        try:
            with _sigterm_interrupts():
                for future in as_completed(futures.values()):
                    report(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.stop()
            raise


class _Processes:
    """Worker processes, each with one cell, in sessions of their own: Ctrl-C reaches only us."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.running: set[subprocess.Popen[str]] = set()
        self.stopping = False
        self.lock = threading.Lock()

    def run(self, cell: Cell, donor: Future[Outcome] | None = None) -> Outcome:
        """Wait for one cell, after that from which it adopts; that one was started before it."""
        if donor is not None:
            wait([donor])
        folder = self.root / cell.name
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / LOG
        with open(log, "a") as output:
            with self.lock:
                if self.stopping:
                    return Outcome(cell, None, "not started", log)
                process = subprocess.Popen(
                    [sys.executable, "-m", "qgpo.experiments.cells", str(self.root)],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **ONE_THREAD},
                    start_new_session=True,
                    text=True,
                )
                self.running.add(process)
            with contextlib.suppress(BrokenPipeError):
                process.communicate(json.dumps(dataclasses.asdict(cell)))
            code = process.wait()
            with self.lock:
                self.running.discard(process)
        if code == 0:
            return Outcome(cell, read_result(folder / RESULT), "", log)
        return Outcome(cell, None, _reason(code, log), log)

    def stop(self) -> None:
        """Ask all to write a checkpoint and end."""
        with self.lock:
            self.stopping = True
            for process in self.running:
                process.send_signal(signal.SIGTERM)


def _reason(code: int, log: Path) -> str:
    """Why a worker ended: its last line, or the signal that killed it."""
    if code == STOPPED:
        return "stopped"
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", by the system for want of memory?" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    lines = log.read_text().strip().splitlines()
    return lines[-1] if lines else f"its process ended with code {code}"


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM is as good as Ctrl-C, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def run_on_ray(cells: Sequence[Cell], root: Path, address: str, report: Report) -> None:
    """Run the cells on a Ray cluster (`auto`, `local`, or its address), one CPU each.

    `root` and the datasets' folder must be shared by all machines: a cell whose worker died is
    started again elsewhere, up to three times, and goes on from its checkpoint. On Ctrl-C
    or SIGTERM running cells write checkpoints, then KeyboardInterrupt is raised.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(
            "Ray is not installed: pip install ray, or run locally without --ray-address"
        ) from error
    names = ("MINARI_DATASETS_PATH", "MINARI_REMOTE")
    variables = {name: os.environ[name] for name in names if name in os.environ}
    ray.init(
        address=address,
        runtime_env={"env_vars": {**ONE_THREAD, **variables}},
        log_to_driver=False,
    )
    pending: dict[Any, Cell] = {}
    tasks: dict[str | None, Any] = {}
    with _sigterm_interrupts():  # in place of Ray's own answer to it
        try:
            for cell in cells:
                task = ray.remote(num_cpus=1, num_gpus=cell.gpus, max_retries=RETRIES)(run_logged)
                donor = tasks.get(cell.donor)  # Ray starts the cell when that one has ended
                tasks[cell.name] = task.remote(cell, root.absolute(), donor)
                pending[tasks[cell.name]] = cell
            while pending:
                [done], _ = ray.wait(list(pending), num_returns=1)
                cell = pending.pop(done)
                report(_ray_outcome(ray, done, cell, root))
        except KeyboardInterrupt:
            for task in pending:
                ray.cancel(task)
            ray.wait(list(pending), num_returns=len(pending), timeout=60)
            raise
        finally:
            ray.shutdown()


def _ray_outcome(ray: Any, done: Any, cell: Cell, root: Path) -> Outcome:
    log = root / cell.name / LOG
    try:
        result, error = ray.get(done)
        return Outcome(cell, result, error, log)
    except ray.exceptions.RayError as failure:
        return Outcome(cell, None, str(failure).strip().splitlines()[0], log)


def run_logged(cell: Cell, root: Path, donor: object = None) -> tuple[dict[str, Any] | None, str]:
    """A cell in a worker of Ray's, printing to its log: (result, error).

    `donor` is what the cell that it adopts from has returned: Ray waits for that.
    """
    folder = root / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    with (
        open(folder / LOG, "a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            return run_cell(cell, root), ""
        except Exception as error:
            traceback.print_exc()
            return None, one_line(error)
