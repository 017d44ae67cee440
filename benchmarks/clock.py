"""How long one call takes."""

from __future__ import annotations

import time
from collections.abc import Callable


def latency(act: Callable[[], object], rounds: int = 20, seconds: float = 0.05) -> float:
    """Microseconds of CPU time of one call, in the fastest round; a round lasts `seconds`."""
    act()
    began, calls = time.process_time(), 0
    while time.process_time() - began < seconds:
        act()
        calls += 1
    fastest = float("inf")
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(calls):
            act()
        fastest = min(fastest, (time.process_time() - began) / calls)
    return 1e6 * fastest
