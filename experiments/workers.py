"""Cells of a benchmark in worker processes on this machine, or on a Ray cluster.

Whatever stopped a cell, running it again goes on from its last checkpoint; a finished cell is only
read. `python -m qgpo.experiments.workers <root>` is what a local worker process runs, with the cell
as JSON on its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from qgpo.envs.play.evaluation import scale_label, score_table
from qgpo.experiments.driver import Run
from qgpo.experiments.folder import RunFolder
from qgpo.experiments.format import Document, check_same_training, read_result
from qgpo.experiments.plan import Cell
from qgpo.experiments.settings import Experiment, as_json

POLL_SECONDS = 2.0
"""between two looks at a cell that another one waits for"""
STOPPED = 130
"""exit code of a worker that was asked to stop"""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
RETRIES = 3
"""how often Ray starts a cell again whose worker or machine died"""


@dataclass(frozen=True)
class Outcome:
    """How a cell ended."""

    cell: Cell
    result: Document | None
    """its evaluation.json, or None where it failed"""
    error: str
    """last line of what went wrong"""
    log: Path
    """everything that the worker printed"""


Report = Callable[[Outcome], None]


# One cell, in a worker ----------------------------------------------------------------------


def run_cell(cell: Cell, root: Path) -> Document:
    """Train and evaluate in `root/cell.name`, or go on there; returns its evaluation.json.

    Raises DocumentError for a folder of another training, RunFolderError for one in use, and
    whatever loading, training and evaluation raise. Ctrl-C and SIGTERM leave a checkpoint and
    raise KeyboardInterrupt.
    """
    folder, experiment = RunFolder(root / cell.name), cell.experiment
    with folder.locked():
        result = read_result(folder)
        if result is not None and result["measured"] == experiment.measured:
            return result
        if folder.config.exists():
            check_same_training(experiment, folder.config)
        if cell.donor and not folder.checkpoint.exists() and wait_for_donor(cell, root):
            experiment = dataclasses.replace(experiment, adopt=root / cell.donor)
        made_once = root / f".{experiment.dataset_id.replace('/', '-')}.lock"
        with FileLock(made_once):  # a dataset that is downloaded or generated on first use
            run = Run(experiment, folder, cell.label)
        document = run.finish()
    print(score_table([(scale_label(scale), played) for scale, played in run.results]), flush=True)
    return document


def wait_for_donor(cell: Cell, root: Path) -> bool:
    """Whether the cell that this one adopts from is finished; waits while a process trains it.

    It may have failed, or its run folder is gone: then all stages are trained here, which gives
    the same agent.
    """
    folder = RunFolder(root / str(cell.donor))
    waiting = False
    while read_result(folder) is None:
        if not folder.is_locked and read_result(folder) is None:
            print(f"{cell.donor} is neither finished nor running: all stages are trained here")
            return False
        if not waiting:
            print(f"waiting for {cell.donor}", flush=True)
        waiting = True
        time.sleep(POLL_SECONDS)
    return True


def run_logged(cell: Cell, root: Path, donor: object = None) -> tuple[Document | None, str]:
    """A cell in a worker, printing to its log: its document, or None and what went wrong.

    `donor` is what the cell that it adopts from has returned: Ray waits for that.
    """
    log = RunFolder(root / cell.name).log
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(log, "a") as output,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        try:
            return run_cell(cell, root), ""
        except KeyboardInterrupt as stop:
            print(stop)
            raise
        except Exception as error:
            traceback.print_exc()
            return None, " ".join(f"{type(error).__name__}: {error}".split())


def main() -> None:
    """A worker process."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    data = json.load(sys.stdin)
    data["experiment"] = Experiment.from_json(data["experiment"])
    try:
        _, error = run_logged(Cell(**data), Path(sys.argv[1]))
    except KeyboardInterrupt:
        raise SystemExit(STOPPED) from None
    raise SystemExit(error or None)


# Many cells ---------------------------------------------------------------------------------


def run_locally(cells: Sequence[Cell], root: Path, workers: int, report: Report) -> None:
    """Run the cells in `workers` processes at a time, one torch thread each.

    `report` is called as cells end, failed ones too. On Ctrl-C or SIGTERM the processes write
    checkpoints and end, then KeyboardInterrupt is raised.
    """
    with _sigterm_interrupts():
        asyncio.run(_run_locally(cells, root, workers, report))


async def _run_locally(cells: Sequence[Cell], root: Path, workers: int, report: Report) -> None:
    gate = asyncio.Semaphore(workers)
    tasks: dict[str | None, asyncio.Task[Outcome]] = {}
    for cell in cells:
        process = _in_process(cell, root, gate, tasks.get(cell.donor))
        tasks[cell.name] = asyncio.create_task(process)
    for task in asyncio.as_completed(tasks.values()):
        report(await task)


async def _in_process(
    cell: Cell, root: Path, gate: asyncio.Semaphore, donor: asyncio.Task[Outcome] | None
) -> Outcome:
    """One cell in a process, after that from which it adopts, when fewer than all are busy.

    The process has a session of its own, so that Ctrl-C reaches only us.
    """
    if donor is not None:
        await asyncio.wait([donor])
    folder = RunFolder(root / cell.name)
    folder.path.mkdir(parents=True, exist_ok=True)
    async with gate:
        with open(folder.log, "a") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "qgpo.experiments.workers", str(root)),
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,
            )
        try:
            await process.communicate(json.dumps(as_json(cell)).encode())
        except asyncio.CancelledError:
            process.terminate()  # it writes a checkpoint
            await process.wait()
            raise
    code = process.returncode
    if code == 0:
        return Outcome(cell, read_result(folder), "", folder.log)
    return Outcome(cell, None, _reason(code or 0, folder.log), folder.log)


def _reason(code: int, log: Path) -> str:
    """Why a worker ended: its last line, or the signal that killed it."""
    if code == STOPPED:
        return "stopped"
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", by the system for want of memory?" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return [f"its process ended with code {code}", *log.read_text().strip().splitlines()][-1]


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


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
    environment = {"env_vars": {**ONE_THREAD, **variables}}
    ray.init(address=address, runtime_env=environment, log_to_driver=False)
    tasks: dict[str | None, Any] = {}
    pending: dict[Any, Cell] = {}
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
                try:
                    result, reason = ray.get(done)
                except ray.exceptions.RayError as error:
                    result, reason = None, str(error).strip().splitlines()[0]
                report(Outcome(cell, result, reason, RunFolder(root / cell.name).log))
        except KeyboardInterrupt:
            for task in pending:
                ray.cancel(task)
            ray.wait(list(pending), num_returns=len(pending), timeout=60)
            raise
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
