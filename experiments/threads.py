"""How many threads are free, for trainings that run beside each other.

Threads of several trainings that share cores wait for each other in every operation: many times
slower than one thread each. The number is never changed on its own: it decides the last digits.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""of a container: microseconds of CPU time, or max, and the period"""


def available_cores(quota: Path = QUOTA) -> float:
    """Cores that this process may use, by its affinity and its container's quota."""
    try:
        cores = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # not on Linux
        cores = float(os.cpu_count() or 1)
    try:
        time, period = quota.read_text(encoding="ascii").split()
        return min(cores, float(time) / float(period))
    except (OSError, ValueError):  # no quota
        return cores


def busy_cores() -> float:
    """Processes that ran or waited for a core in the last minute; 0 where nobody tells."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):  # Windows
        return 0.0


def advice(asked: int) -> str | None:
    """One line where torch has more threads than cores are free; `asked` 0 is torch's choice."""
    threads, cores, busy = torch.get_num_threads(), available_cores(), busy_cores()
    if threads < 2 or (threads <= cores and busy <= cores / 2):
        return None
    what = f"{threads} torch threads" if asked else f"{threads} torch threads (torch's choice)"
    return (
        f"note: {what} on {cores:g} cores, of which other work keeps {busy:.1f} busy: parallel "
        "trainings are many times faster with --threads 1 each"
    )
