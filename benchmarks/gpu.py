"""How long training and acting take on a GPU and on the CPU of the same machine.

    python benchmarks/gpu.py --output benchmarks/gpu.json

1. Every stage of a preset is trained in alternating turns on both devices, a few steps each, at the
   preset's own batch sizes and networks. A step's time does not depend on what is learned, nor on
   how many data there are, so the data are few. From the medians follows what the whole preset
   takes on 100,000 transitions.
2. Both act on batches of observations, in alternating turns, with sampled actions.

Part 1 leaves out what is computed once or rarely: the critic's targets, the table of Q, distances
between states.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from turns import ACTIONS, OBSERVATIONS, Turn, let_guide, noise

from qgpo import PRESETS, QGPO
from qgpo.agents.core.provenance import versions
from qgpo.agents.guided.support import ROWS_PER_CHUNK

TRANSITIONS = 100_000
STATES_PER_EPISODE = 1_000


@dataclass
class Args:
    """Measure a GPU beside a CPU."""

    presets: tuple[str, ...] = ("laptop", "paper")
    """presets of QGPO"""
    rounds: int = 3
    """turns of each device per stage"""
    steps: int = 12
    """steps per turn, at least 2"""
    threads: int = 2
    """torch threads of the CPU"""
    acting_rounds: int = 30
    """calls of each device per batch size"""
    batch_sizes: tuple[int, ...] = (1, 100, 1_000)
    """observations in a call"""
    output: Path = Path("benchmarks/gpu.json")
    """JSON to write"""


def training(preset: str, args: Args) -> dict[str, Any]:
    """Milliseconds per step of every stage on both devices, and hours for the whole preset."""
    whole = PRESETS[preset]
    total = args.rounds * args.steps
    names = ("whitening_steps", "behavior_steps", "critic_steps", "energy_steps")
    few = {name: total for name in names if getattr(whole, name)}
    agents = {
        device: QGPO(replace(whole, **few), seed=0, device=device) for device in ("cpu", "cuda")
    }
    per_chunk = max(1, ROWS_PER_CHUNK // whole.support_actions)
    dataset = noise(total * per_chunk - 1)
    stages: dict[str, dict[str, float]] = {}
    hours = dict.fromkeys(agents, 0.0)
    chunks = math.ceil((TRANSITIONS + TRANSITIONS // STATES_PER_EPISODE) / per_chunk)
    for stage in agents["cpu"].stages:
        steps = chunks if stage == "support" else getattr(whole, f"{stage}_steps")
        if not steps:
            continue
        seconds: dict[str, list[float]] = {device: [] for device in agents}
        for i in range(args.rounds):
            for device in sorted(agents, reverse=i % 2 == 0):
                turn = Turn(stage, i * args.steps, (i + 1) * args.steps)
                agents[device].learn(dataset, turn, reset_num_timesteps=False)
                seconds[device].append(turn.seconds / (args.steps - 1))
        median = {device: statistics.median(values) for device, values in seconds.items()}
        stages[stage] = {
            "steps": steps,
            **{f"{device}_milliseconds": 1e3 * value for device, value in median.items()},
            "ratio": median["cpu"] / median["cuda"],
        }
        for device, value in median.items():
            hours[device] += steps * value / 3600.0
        print(f"{preset} {stage}: {json.dumps(stages[stage])}", flush=True)
    return {"stages": stages, "hours": hours, "ratio": hours["cpu"] / hours["cuda"]}


def acting(args: Args) -> dict[str, Any]:
    """Milliseconds per `predict` of the laptop preset."""
    agents = {device: QGPO("laptop", device=device) for device in ("cpu", "cuda")}
    for agent in agents.values():
        agent.set_spaces(OBSERVATIONS, ACTIONS, "the benchmark")
        let_guide(agent)
    rows = {}
    for n in args.batch_sizes:
        observations = np.random.default_rng(0).standard_normal((n, 17), np.float32)
        seconds: dict[str, list[float]] = {device: [] for device in agents}
        for i in range(args.acting_rounds + 5):
            for device, agent in agents.items():
                began = time.perf_counter()
                agent.predict(observations)
                if i >= 5:
                    seconds[device].append(time.perf_counter() - began)
        median = {device: statistics.median(values) for device, values in seconds.items()}
        rows[str(n)] = {
            **{f"{device}_milliseconds": 1e3 * value for device, value in median.items()},
            "ratio": median["cpu"] / median["cuda"],
        }
        print(f"acting on {n}: {json.dumps(rows[str(n)])}", flush=True)
    return rows


def main(args: Args) -> None:
    """Measure and print; write after every part."""
    if args.steps < 2:
        raise SystemExit(f"--steps {args.steps}, expected at least 2")
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "threads": args.threads,
        "rounds": args.rounds,
        "steps_per_turn": args.steps,
        "acting_rounds": args.acting_rounds,
        "versions": versions(),
        "training": {},
    }
    for preset in args.presets:
        results["training"][preset] = training(preset, args)
        args.output.write_text(json.dumps(results, indent=1) + "\n")
    results["acting"] = acting(args)
    args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
