"""The scripts as subprocesses, with settings that train in seconds."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

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


def run(name, *more, cwd, data, code=0, **environment):
    done = subprocess.run(
        arguments(name, *more),
        cwd=cwd,
        env=subprocess_environment(MINARI_DATASETS_PATH=str(data), **environment),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done
