"""The scripts as processes of their own, with settings that train in seconds."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import matplotlib.pyplot  # noqa: F401  so that copies of this process need not
import torch._dynamo  # noqa: F401  the same: the first optimizer imports it
from factory import ROOT, WHITENED, subprocess_environment

from qgpo.agents.core.callbacks import SaveCheckpoint

SCRIPTS = sorted(p.stem for p in (ROOT / "scripts").glob("[!_]*.py"))
DATASET = "test/pendulum/tiny-v0"
STEPS = {"behavior_steps": 60, "critic_steps": 20, "energy_steps": 12}
TINY = [
    argument
    for field in dataclasses.fields(WHITENED)
    for value in [STEPS.get(field.name, getattr(WHITENED, field.name))]
    if not isinstance(value, bool | dict)
    for argument in (
        f"--config.{field.name.replace('_', '-')}",
        *map(str, value if isinstance(value, tuple) else [value]),
    )
]
QUICK = ["--no-progress-bar", "--device", "cpu", "--threads", "1"]


def arguments(name: str, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *more]


def run(name, *more, cwd, data, code=0, anew=False, **environment):
    """Run a script. `anew` starts an interpreter where a copy of this one would do."""
    environment = subprocess_environment(MINARI_DATASETS_PATH=str(data), **environment)
    start = run_anew if anew else run_in_a_copy
    done = start(arguments(name, *more)[1:], cwd, environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def run_anew(command, cwd, environment, timeout=120):
    """Run `python *command` in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_in_a_copy(command, cwd, environment, timeout=120):
    """The same in a fork of this one, which has imported everything, where the system forks."""
    started = Started(command, cwd, environment)
    code = started.wait(timeout)
    return subprocess.CompletedProcess(command, code, *started.printed())


class Started:
    """`python *command` as a fork of this process, or as a new one where the system has no forks.

    With `rests_after` its training rests after so many steps: see `rest_after`.
    """

    def __init__(self, command, cwd, environment, rests_after=None):
        self.command = command
        self.folder = tempfile.TemporaryDirectory()
        self.files = [Path(self.folder.name, name) for name in ("output", "errors")]
        with open(self.files[0], "w") as output, open(self.files[1], "w") as errors:
            self._start(command, cwd, environment, rests_after, output, errors)

    def _start(self, command, cwd, environment, rests_after, output, errors):
        self.process = None
        if hasattr(os, "fork"):
            self.pid = os.fork()
            if self.pid == 0:
                os.dup2(output.fileno(), 1)
                os.dup2(errors.fileno(), 2)
                _become(command, cwd, environment, rests_after)
        else:
            if rests_after is not None:
                code = f"{REST.format(rests_after)}; import runpy; sys.argv = {command!r}"
                command = ["-c", f"{code}; runpy.run_path(sys.argv[0], run_name='__main__')"]
            self.process = subprocess.Popen(
                [sys.executable, *command], cwd=cwd, env=environment, stdout=output, stderr=errors
            )
            self.pid = self.process.pid

    def wait(self, timeout=120):
        """Its exit code. Raises TimeoutExpired, and it is killed, where it takes longer."""
        deadline = time.monotonic() + timeout
        while (code := self._code()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(self.command, timeout)
            time.sleep(0.005)
        return code

    def _code(self):
        if self.process is not None:
            return self.process.poll()
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def kill(self):
        """End it at once."""
        os.kill(self.pid, getattr(signal, "SIGKILL", signal.SIGTERM))

    def printed(self):
        """What it has printed so far, to stdout and to stderr."""
        return tuple(path.read_text(encoding="utf-8") for path in self.files)


REST = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import commands; "
REST += "commands.rest_after({})"
"""a line of Python for another process"""


def rest_after(step):
    """Trainings of this process rest after that step, until they are asked to stop.

    One that rests makes a file `resting-` with the process's number in the working folder.
    """
    save = SaveCheckpoint.after_step

    def save_and_rest(callback, n):
        save(callback, n)
        if n == step:
            Path(f"resting-{os.getpid()}").touch()
            while not callback.model.training.interrupted:
                time.sleep(0.01)

    SaveCheckpoint.after_step = save_and_rest


def wait_until(there):
    """Wait until the function says so."""
    deadline = time.monotonic() + 180
    while not (found := there()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found


def resting(folder):
    """The numbers of the processes that rest there."""
    return [int(path.name.removeprefix("resting-")) for path in folder.glob("resting-*")]


def _become(command, cwd, environment, rests_after):
    """End this process as `python *command` would have ended."""
    code = 1
    try:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", encoding="utf-8") for fd in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        warnings.resetwarnings()
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(cwd)
        sys.path[:0] = [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
        sys.argv = list(command)
        if rests_after is not None:
            rest_after(rests_after)
        runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
