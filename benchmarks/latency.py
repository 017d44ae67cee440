"""How long acting takes: every agent at the same number of solver steps, in alternating turns.

python benchmarks/latency.py --output benchmarks/latency.json

Networks have the laptop preset's sizes and are not trained: the time does not depend on their
weights. Spaces are HalfCheetah's. Each turn calls every agent once; medians and their ratio to
QGPO are over the turns.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from gymnasium import spaces

from qgpo import AEPO, QGPO, QIPO
from qgpo.agents import OfflineAgent


@dataclass
class Args:
    """Acting latency."""

    turns: int = 200
    """calls of each agent per batch size"""
    batch_sizes: tuple[int, ...] = (1, 100)
    """observations in a call"""
    output: Path = Path("benchmarks/latency.json")
    """JSON to write"""


def agents() -> dict[str, OfflineAgent[Any]]:
    """Built, not trained, at 8 solver steps."""
    built: dict[str, OfflineAgent[Any]] = {
        "QGPO": QGPO("laptop", device="cpu"),
        "QGPO, w = 0": QGPO("laptop", device="cpu"),
        "QGPO, DPS": QGPO("laptop", guidance="dps", device="cpu"),
        "AEPO": AEPO("laptop", device="cpu"),
        "QIPO diffusion": QIPO("laptop", device="cpu"),
        "QIPO flow": QIPO("laptop-flow", device="cpu"),
    }
    observations = spaces.Box(-np.inf, np.inf, (17,), np.float32)
    for agent in built.values():
        agent.set_spaces(observations, spaces.Box(-1.0, 1.0, (6,), np.float32), "the benchmark")
    built["QGPO, w = 0"].guidance_scale = 0.0  # type: ignore[attr-defined]
    return built


def main(args: Args) -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    built = agents()
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for n in args.batch_sizes:
        observations = np.random.default_rng(0).normal(size=(n, 17)).astype(np.float32)
        seconds: dict[str, list[float]] = {name: [] for name in built}
        for turn in range(args.turns + 10):
            for name, agent in built.items():
                began = time.perf_counter()
                agent.predict(observations)
                if turn >= 10:
                    seconds[name].append(time.perf_counter() - began)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        rows[str(n)] = {
            name: {"milliseconds": 1e3 * m, "over_qgpo": m / medians["QGPO"]}
            for name, m in medians.items()
        }
        for name, row in rows[str(n)].items():
            print(
                f"{n:4d} observations  {name:15s} {row['milliseconds']:7.2f} ms  "
                f"{row['over_qgpo']:.2f} of QGPO"
            )
    args.output.write_text(json.dumps({"turns": args.turns, "batch_sizes": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
