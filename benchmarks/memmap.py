"""Training from memory-mapped data: memory, and speed beside the same data in memory.

    python benchmarks/memmap.py

1. A dataset is written as Minari HDF5 and converted (`load_dataset(..., storage="memmap")`).
2. A fresh process trains from the map through all stages; its peak anonymous resident memory (what
   cannot be dropped and read again) is sampled from /proc. The dataset is to be three times that.
3. A fresh process trains two agents, one from memory and one from the map, in turns of a few
   hundred steps, and compares times and final parameters.

Times are with the files in the page cache, as far as the machine's memory allows; reading from
disk depends on the disk. Writes memmap.json beside this file.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

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
    rounds: int = 6
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


def write_data(args: Args) -> None:
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


def in_process(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of the work, done in a process of its own."""
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
        if os.waitpid(child, 0)[1] != 0:
            raise SystemExit("a measurement failed")
        result: dict[str, Any] = json.loads(Path(file.name).read_text())
        return result


def convert() -> dict[str, Any]:
    """Write the mapped files."""
    from qgpo import load_dataset

    began = time.monotonic()
    dataset = load_dataset(DATASET, False, "memmap")
    assert dataset.folder is not None
    size = sum(file.stat().st_size for file in dataset.folder.iterdir())
    return {"seconds": time.monotonic() - began, "bytes": size}


def anonymous_memory() -> int:
    """Bytes of this process's resident memory that belong to no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("RssAnon is not in /proc/self/status")


def peak_memory(storage: Any, steps: int) -> dict[str, Any]:
    """Peak anonymous memory of loading and training through all stages."""
    from qgpo import QGPO, load_dataset

    before = peak = anonymous_memory()
    training = True

    def sample() -> None:
        nonlocal peak
        while training:
            peak = max(peak, anonymous_memory())
            time.sleep(0.005)

    thread = threading.Thread(target=sample)
    thread.start()
    dataset = load_dataset(DATASET, False, storage)
    agent = QGPO(configuration(steps), device="cpu").learn(dataset)
    agent.save(Path(tempfile.gettempdir()) / f"memmap-{os.getpid()}.zip")
    (Path(tempfile.gettempdir()) / f"memmap-{os.getpid()}.zip").unlink()
    training = False
    thread.join()
    return {"peak_bytes": peak, "libraries_bytes": before}


def speeds(rounds: int, steps: int) -> dict[str, Any]:
    """Seconds per turn of two agents that train alternately, from memory and from the map."""
    from qgpo import QGPO, load_dataset
    from qgpo.agents.base import OfflineAgent

    config = configuration(rounds * steps)
    data = {name: load_dataset(DATASET, False, name) for name in ("memory", "memmap")}
    agents: dict[str, OfflineAgent[Any]] = {
        name: QGPO(config, seed=1, device="cpu") for name in data
    }
    seconds: dict[str, dict[str, list[float]]] = {}
    for turn in range(3 * rounds):
        stage = ("behavior", "critic", "energy")[turn // rounds]
        for name in sorted(data, reverse=turn % 2 == 0):
            began = [0.0]

            def stop(scope: dict[str, Any], _: Any, began: list[float] = began) -> bool:
                done = scope["self"].progress[stage] - (turn % rounds) * steps  # noqa: B023
                if done == 1:  # tables over all states are made before the first step
                    began[0] = time.perf_counter()
                return bool(done < steps)

            agents[name].learn(data[name], stop, reset_num_timesteps=False)
            took = time.perf_counter() - began[0]
            seconds.setdefault(stage, {}).setdefault(name, []).append(took)
    first, second = (agents[name].networks.state_dict() for name in data)
    median = {s: {n: statistics.median(v) for n, v in row.items()} for s, row in seconds.items()}
    ratios = {stage: row["memory"] / row["memmap"] for stage, row in median.items()}
    totals = {n: sum(row[n] for row in median.values()) for n in data}
    return {
        "median_seconds_per_turn": median,
        "speed_ratio_by_stage": ratios,
        "speed_ratio": totals["memory"] / totals["memmap"],
        "identical_parameters": all(torch.equal(first[k], second[k]) for k in first),
        "seconds": seconds,
    }


def main(args: Args) -> None:
    """All measurements, to the screen and into the JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MINARI_DATASETS_PATH"] = scratch

        def write() -> dict[str, Any]:
            write_data(args)
            return {}

        print("writing", flush=True)
        in_process(write)
        converted = in_process(convert)
        memory = in_process(lambda: peak_memory("memmap", 50))
        results = {
            "transitions": args.transitions,
            "dataset_bytes": converted["bytes"],
            "conversion_seconds": converted["seconds"],
            "anonymous_memory": memory,
            "dataset_over_peak_memory": converted["bytes"] / memory["peak_bytes"],
            **in_process(lambda: speeds(args.rounds, args.steps)),
            "torch": torch.__version__,
        }
    shown = {name: value for name, value in results.items() if name != "seconds"}
    print(json.dumps(shown, indent=2))
    args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
