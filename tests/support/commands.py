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

from factory import ROOT, WHITENED, subprocess_environment

SCRIPTS = sorted(p.stem for p in (ROOT / "scripts").glob("[!_]*.py"))
DATASET = "test/pendulum/tiny-v0"
STEPS = {"behavior_steps": 1500, "critic_steps": 300, "energy_steps": 100}
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
    if not hasattr(os, "fork"):
        return run_anew(command, cwd, environment, timeout)
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            _become(command, cwd, environment)
        deadline = time.monotonic() + timeout
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                raise subprocess.TimeoutExpired(command, timeout)
            time.sleep(0.005)
        output.seek(0)
        errors.seek(0)
        code = os.waitstatus_to_exitcode(ended[1])
        return subprocess.CompletedProcess(command, code, output.read(), errors.read())


def _become(command, cwd, environment):
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
