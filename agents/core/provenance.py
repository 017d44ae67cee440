"""What a result depends on beside data and settings: library versions and the processor."""

from __future__ import annotations

import contextlib
import functools
import platform
from importlib import metadata
from pathlib import Path

LIBRARIES = (
    "qgpo",
    "torch",
    "numpy",
    "safetensors",
    "gymnasium",
    "mujoco",
    "minari",
    "stable-baselines3",
)
WHERE_INSTALLED = ("ogbench",)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide what is in a file.

    Those that are here only where they are installed are not named elsewhere.
    """
    return dict(_found())


@functools.cache
def _found() -> dict[str, str]:
    """The versions when a process first asks: reading them takes half as long as a small file."""
    installed = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "unknown"
    for name in WHERE_INSTALLED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name where the system tells it, else its architecture.

    The same seed makes another agent on another processor, because sums are rounded differently.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, [*names, platform.processor()]), platform.machine())
