"""Cells of a benchmark in worker processes on this machine, or on a Ray cluster.

Whatever stopped a cell, running it again goes on from its last checkpoint; a finished cell is only
read. A cell that another process trains is waited for. `python -m qgpo.experiments.workers <root>`
is what a local worker process runs, with the cell as a line of JSON on its standard input, which
stays open: where it ends before the cell does, whoever runs the benchmark is gone, and the worker
stops with a checkpoint.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import dataclasses
import functools
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from qgpo.agents.core.training import on_signals
from qgpo.experiments import documents
from qgpo.experiments.documents import Document, check_same_training, find_result
from qgpo.experiments.driver import Run
from qgpo.experiments.folder import POLL_SECONDS, RunFolder, RunFolderError
from qgpo.experiments.plan import Cell
from qgpo.experiments.settings import as_json

STOPPED = 130
"""exit code of a worker that was asked to stop"""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
RETRIES = 3
"""how often Ray starts a cell again whose worker or machine died"""


class Outcome(NamedTuple):
    """How a cell ended."""

    cell: Cell
    result: Document | None
    """its evaluation.json, or None where it failed"""
    error: str
    """last line of what went wrong"""
    log: Path
    """everything that the worker printed"""


Report = Callable[[Outcome], None]
RunOne = Callable[[Cell], Awaitable[Outcome]]


# One cell, in a worker ----------------------------------------------------------------------


def run_cell(cell: Cell, root: Path) -> Document:
    """Train and evaluate in `root/cell.name`, or go on there; returns its evaluation.json.

    Waits while another process trains there. Raises DocumentError for a folder of another
    training, and whatever loading, training and evaluation raise. Ctrl-C and SIGTERM leave a
    checkpoint and raise KeyboardInterrupt.
    """
    folder = RunFolder(root / cell.name)
    with folder.locked(wait=True):
        result = find_result(folder, cell.measured)
        if result is not None:
            return result
        if folder.config.exists():
            check_same_training(cell, folder.config, documents.read(folder.config))
        if cell.donor and not folder.checkpoint.exists() and wait_for_donor(cell, root):
            cell = dataclasses.replace(cell, adopt=root / cell.donor)
        made_once = root / f".{cell.dataset_id.replace('/', '-')}.lock"
        with FileLock(made_once):  # a dataset that is downloaded or generated on first use
            run = Run(cell, folder)
        return run.finish()


def wait_for_donor(cell: Cell, root: Path) -> bool:
    """Whether the cell that this one adopts from is finished; waits while a process trains it.

    It may have failed, or its run folder or checkpoint is gone: then all stages are trained here,
    which gives the same agent.
    """
    folder = RunFolder(root / str(cell.donor))
    if not folder.evaluations and folder.is_locked:
        print(f"waiting for {cell.donor}", flush=True)
    while not folder.evaluations and folder.is_locked:
        time.sleep(POLL_SECONDS)
    if not folder.evaluations or not folder.checkpoint.exists():
        print(f"{cell.donor} is not running and has no finished agent: all stages are trained here")
        return False
    return True


def run_logged(cell: Cell, root: Path) -> Outcome:
    """A cell in a worker, printing to its log."""
    log = RunFolder(root / cell.name).log
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(log, "a", encoding="utf-8") as output,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        try:
            return Outcome(cell, run_cell(cell, root), "", log)
        except KeyboardInterrupt as stop:
            print(stop)
            raise
        except Exception as error:
            traceback.print_exc()
            return Outcome(cell, None, _in_one_line(error), log)


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def main() -> None:
    """A worker process."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cell = Cell.from_json(json.loads(sys.stdin.readline()))
    stop_at_end(sys.stdin.fileno())
    try:
        raise SystemExit(run_logged(cell, Path(sys.argv[1])).error or None)
    except KeyboardInterrupt:
        raise SystemExit(STOPPED) from None


def stop_at_end(stream: int) -> None:
    """Send this process SIGTERM when the pipe ends, whose other side is who started it.

    The system closes the pipe however that process ends: on every system, also by SIGKILL.
    """

    def watch() -> None:
        while os.read(stream, 1024):
            pass
        if sys.platform == "win32":
            _thread.interrupt_main(signal.SIGTERM)
        else:  # also ends what sleeps
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


# Many cells ---------------------------------------------------------------------------------


def run_locally(cells: Sequence[Cell], root: Path, workers: int, report: Report) -> None:
    """Run the cells in `workers` processes at a time, one torch thread each.

    `report` is called as cells end, failed ones too. On Ctrl-C or SIGTERM running cells write
    checkpoints, then KeyboardInterrupt is raised.
    """
    _run_all(cells, functools.partial(_in_process, root, asyncio.Semaphore(workers)), report)


def run_on_ray(cells: Sequence[Cell], root: Path, address: str, report: Report) -> None:
    """Run the cells on a Ray cluster (`auto`, `local`, or its address), one CPU each.

    `root` and the datasets' folder must be shared by all machines: a cell whose worker died is
    started again elsewhere, up to three times, and goes on from its checkpoint. Reports and stops
    as `run_locally` does.
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
    try:
        _run_all(cells, functools.partial(_on_ray, ray, root.absolute()), report)
    finally:
        ray.shutdown()


def _run_all(cells: Sequence[Cell], run_one: RunOne, report: Report) -> None:
    """Run all cells at once, as far as `run_one` lets them."""
    try:
        asyncio.run(_gather(cells, run_one, report))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _gather(cells: Sequence[Cell], run_one: RunOne, report: Report) -> None:
    loop, whole = asyncio.get_running_loop(), asyncio.current_task()
    assert whole is not None
    tasks: dict[str | None, asyncio.Task[Outcome]] = {}
    for cell in cells:
        tasks[cell.name] = asyncio.create_task(_after(tasks.get(cell.donor), cell, run_one))

    with on_signals(lambda *_: loop.call_soon_threadsafe(whole.cancel)):  # the tasks, too
        for task in asyncio.as_completed(tasks.values()):
            report(await task)


async def _after(donor: asyncio.Task[Outcome] | None, cell: Cell, run_one: RunOne) -> Outcome:
    """Run a cell when the one that it adopts from has ended."""
    if donor is not None:
        await asyncio.wait([donor])
    return await run_one(cell)


async def _in_process(root: Path, gate: asyncio.Semaphore, cell: Cell) -> Outcome:
    """One cell in a process of its own; what its files are not lets this cell fail, no other."""
    folder = RunFolder(root / cell.name)
    try:
        return await _started(folder, root, gate, cell)
    except (OSError, ValueError, RunFolderError) as error:
        return Outcome(cell, None, _in_one_line(error), folder.log)


async def _started(folder: RunFolder, root: Path, gate: asyncio.Semaphore, cell: Cell) -> Outcome:
    """One cell in a process with a session of its own, so that Ctrl-C reaches only us."""
    folder.path.mkdir(parents=True, exist_ok=True)
    if folder.is_locked:
        print(f"{cell.name} is in use by another process: waiting", flush=True)
    while folder.is_locked:
        await asyncio.sleep(POLL_SECONDS)
    async with gate:
        folder.check_regular()
        with open(folder.log, "ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "qgpo.experiments.workers", str(root)),
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,
            )
        try:
            await _talk(process, json.dumps(as_json(cell)).encode() + b"\n")
        finally:
            if process.returncode is None:  # we are to stop: it writes a checkpoint and ends
                process.terminate()
                await process.wait()
    if process.returncode == 0:
        result = find_result(folder, cell.measured)
        return Outcome(cell, result, "" if result else "it left no result", folder.log)
    return Outcome(cell, None, _reason(process.returncode or 0, folder.log), folder.log)


async def _talk(process: asyncio.subprocess.Process, line: bytes) -> None:
    """Write the line, and hold the pipe open until the process has ended."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its log says why it ended
        process.stdin.write(line)
        await process.stdin.drain()
    await process.wait()


def _reason(code: int, log: Path) -> str:
    """Why a worker ended: its last line, or the signal that killed it."""
    if code == STOPPED:
        return "stopped"
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", by the system for want of memory?" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"its process ended with code {code}"


async def _on_ray(ray: Any, root: Path, cell: Cell) -> Outcome:
    """One cell in a worker of Ray's."""
    options = {"num_cpus": 1, "num_gpus": cell.gpus, "max_retries": RETRIES}
    task = ray.remote(**options)(run_logged).remote(cell, root)
    try:
        outcome: Outcome = await task
        return outcome
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        return Outcome(cell, None, reason, RunFolder(root / cell.name).log)
    except asyncio.CancelledError:
        ray.cancel(task)  # it writes a checkpoint and ends
        await asyncio.wait([asyncio.wrap_future(task.future())], timeout=60)
        raise


if __name__ == "__main__":
    main()
