"""Training from memory-mapped data: memory, and speed beside the same data in memory.

    python benchmarks/memmap.py

1. A dataset is written as Minari HDF5 and converted (`load_dataset(..., storage="memmap")`).
2. A fresh process trains from the map through all stages; the dataset is to be three times its
   peak.
3. A fresh process trains two agents, one from memory and one from the map, in alternating turns,
   and compares the medians of their times, and the final parameters.

Peaks are of resident memory that cannot be dropped and read again: anonymous pages and those of
file systems in memory, read every millisecond by the parent process. Times are with the files in
the page cache, as far as the machine's memory allows; reading from disk depends on the disk. Writes
memmap.json in this folder after every part. Needs three times the data on disk, and twice
in memory (for writing them, and for 3.).
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from turns import Turn

OUTPUT = Path(__file__).with_name("memmap.json")
DATASET = "bench/large-v0"


@dataclass
class Args:
    """Measure memory and speed."""

    transitions: int = 700_000
    """transitions in the dataset"""
    observation_dim: int = 376
    """numbers per observation (Humanoid's 376)"""
    action_dim: int = 17
    """numbers per action"""
    rounds: int = 9
    """turns of each agent per stage"""
    steps: int = 50
    """gradient steps per turn"""
    output: Path = OUTPUT
    """where the results go"""


def configuration(steps: int) -> Any:
    """So many steps per stage with small networks: the less they compute, the more data count."""
    from qgpo import PRESETS

    return replace(
        PRESETS["laptop"],
        whitening_steps=0,
        behavior_hidden=(32, 32),
        behavior_steps=steps,
        critic_hidden=(32, 32),
        critic_steps=steps,
        energy_hidden=(32, 32),
        energy_steps=steps,
        support_actions=2,
        support_solver_steps=1,
        target_every=10**9,
    )


def write_data(args: Args) -> dict[str, Any]:
    """Episodes of 1000 steps as a Minari dataset."""
    import minari
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            observations=rng.standard_normal((1001, args.observation_dim), np.float32),
            actions=rng.uniform(-1, 1, (1000, args.action_dim)).astype(np.float32),
            rewards=rng.standard_normal(1000, np.float32),  # type: ignore[arg-type]
            terminations=[False] * 1000,
            truncations=[False] * 999 + [True],
        )
        for _ in range(args.transitions // 1000)
    ]
    minari.create_dataset_from_buffers(
        DATASET,
        buffers,
        observation_space=spaces.Box(-np.inf, np.inf, (args.observation_dim,), np.float32),
        action_space=spaces.Box(-1.0, 1.0, (args.action_dim,), np.float32),
        algorithm_name="random",
        author="qgpo",
        author_email="none",
        code_permalink="none",
        description="noise",
    )
    return {}


def in_process(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of the work, done in a separate process, and that process's `peak_bytes`."""
    with tempfile.NamedTemporaryFile() as file:
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)
                Path(file.name).write_text(json.dumps(work()))
            except BaseException as error:
                print(f"failed: {error!r}", flush=True)
                os._exit(1)
            os._exit(0)
        peak = 0
        ended = status = 0
        while not ended:
            peak = max(peak, kept_memory(child))
            time.sleep(0.001)
            ended, status = os.waitpid(child, os.WNOHANG)
        if status != 0:
            raise SystemExit("a measurement failed")
        return {"peak_bytes": peak, **json.loads(Path(file.name).read_text())}


def kept_memory(process: int | str = "self") -> int:
    """Bytes of resident memory that no file on a disk holds (nothing of a process that ended)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    kept = [line.split()[1] for line in lines if line.startswith(("RssAnon", "RssShmem"))]
    return sum(map(int, kept)) * 1024


def convert() -> dict[str, Any]:
    """Write the mapped files."""
    from qgpo import load_dataset

    began = time.monotonic()
    dataset = load_dataset(DATASET, False, "memmap")
    assert dataset.folder is not None
    size = sum(file.stat().st_size for file in dataset.folder.iterdir())
    return {"seconds": time.monotonic() - began, "dataset_bytes": size}


def train(steps: int, scratch: Path) -> dict[str, Any]:
    """Load, train through all stages and save, from the map."""
    from qgpo import QGPO, load_dataset

    libraries = kept_memory()
    dataset = load_dataset(DATASET, False, "memmap")
    QGPO(configuration(steps), device="cpu").learn(dataset).save(scratch / "agent")
    return {"libraries_bytes": libraries}


def speeds(rounds: int, steps: int) -> dict[str, Any]:
    """Seconds per turn of two agents that train alternately, from memory and from the map."""
    from qgpo import QGPO, load_dataset
    from qgpo.agents.core.agent import OfflineAgent

    config = configuration(rounds * steps)
    data = {name: load_dataset(DATASET, False, name) for name in ("memory", "memmap")}
    agents: dict[str, OfflineAgent[Any]] = {
        name: QGPO(config, seed=1, device="cpu") for name in data
    }
    seconds: dict[str, dict[str, list[float]]] = {}
    for stage in ("behavior", "critic", "energy"):
        seconds[stage] = {name: [] for name in data}
        for i in range(rounds):
            for name in sorted(data, reverse=i % 2 == 0):
                turn = Turn(stage, i * steps, (i + 1) * steps)
                agents[name].learn(data[name], turn, reset_num_timesteps=False)
                seconds[stage][name].append(turn.seconds)
    first, second = (agents[name].networks.state_dict() for name in data)
    median = {s: {n: statistics.median(v) for n, v in row.items()} for s, row in seconds.items()}
    totals = {n: sum(row[n] for row in median.values()) for n in data}
    return {
        "median_seconds_per_turn": median,
        "speed_ratio_by_stage": {s: row["memory"] / row["memmap"] for s, row in median.items()},
        "speed_ratio": totals["memory"] / totals["memmap"],
        "identical_parameters": all(torch.equal(first[k], second[k]) for k in first),
        "seconds": seconds,
    }


def main(args: Args) -> None:
    """All measurements, to the screen and into the JSON."""
    results: dict[str, Any] = {
        "transitions": args.transitions,
        "steps_per_turn": args.steps,
        "torch": torch.__version__,
    }

    def note(**more: Any) -> None:
        results.update(more)
        args.output.write_text(json.dumps(results, indent=1) + "\n")
        more.get("speed", {}).pop("seconds", None)
        print(json.dumps(more, indent=2), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        in_process(lambda: write_data(args))
        converted = in_process(convert)
        note(conversion=converted)
        trained = in_process(lambda: train(50, Path(folder)))
        ratio = converted["dataset_bytes"] / trained["peak_bytes"]
        note(training=trained, dataset_over_peak_memory=ratio)
        note(speed=in_process(lambda: speeds(args.rounds, args.steps)))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
