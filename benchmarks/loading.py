"""Reading a million transitions: time and memory, beside reading episodes and concatenating.

    python benchmarks/loading.py     # three minutes, 2 GB of disk; loading.json

The files are noise in a temporary folder: a Minari dataset in HDF5 of HalfCheetah's sizes (17
numbers and 6), and OGBench's own npz file of cube-single. The usual way is, for Minari, its
`iterate_episodes`, appended to lists and concatenated to observations, actions, rewards, next
observations and terminations; for OGBench, its `load_dataset` and `relabel_dataset`.
Both make float32 and the same transitions, which is checked. Each is read in a process of its own,
in alternating turns, with the file in the page cache; the medians count. Seconds are CPU time.
Memory is what the process holds at its peak beyond what it held before. An OGBench file is
converted once, when it is first asked for; that time is measured once.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from memmap import DATASET as HDF5
from memmap import in_process, kept_memory, write_data
from numpy.typing import NDArray

OUTPUT = Path(__file__).with_name("loading.json")
OGBENCH = "cube-single-play-v0"
TASK = "cube-single-singletask-task1-v0"
OGBENCH_TASK = "ogbench/cube-single-play-singletask-task1-v0"
Arrays = dict[str, NDArray[Any]]


@dataclass
class Args:
    """Measure loading."""

    transitions: int = 1_000_000
    """transitions in each file"""
    observation_dim: int = 17
    """numbers per observation"""
    action_dim: int = 6
    """numbers per action"""
    rounds: int = 3
    """turns of each way"""
    output: Path = OUTPUT
    """JSON to write"""


def concatenated(parts: dict[str, list[NDArray[Any]]]) -> Arrays:
    """The lists as arrays in float32."""
    return {name: np.concatenate(part).astype(np.float32) for name, part in parts.items()}


def minari_by_episodes() -> Arrays:
    """Minari's own reader."""
    import minari

    names = ("observations", "actions", "rewards", "next_observations", "terminations")
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for episode in minari.load_dataset(HDF5).iterate_episodes():
        parts["observations"].append(episode.observations[:-1])
        parts["next_observations"].append(episode.observations[1:])
        parts["actions"].append(episode.actions)
        parts["rewards"].append(episode.rewards)
        parts["terminations"].append(episode.terminations)
    return concatenated(parts)


def write_ogbench(transitions: int) -> dict[str, Any]:
    """OGBench's own file of trajectories of 1000 steps."""
    import gymnasium
    import ogbench  # noqa: F401

    env: Any = gymnasium.make(TASK)
    observations, model = len(env.reset()[0]), env.unwrapped.model
    rng = np.random.default_rng(0)
    rows = transitions // 1000 * 1001
    sizes = {"observations": observations, "qpos": model.nq, "qvel": model.nv}
    arrays: Arrays = {n: rng.standard_normal((rows, s), np.float32) for n, s in sizes.items()}
    arrays["actions"] = rng.uniform(-1, 1, (rows, env.action_space.shape[0])).astype(np.float32)
    arrays["terminals"] = np.arange(rows) % 1001 == 1000
    np.savez_compressed(ogbench_file(), **arrays)  # type: ignore[arg-type]
    return {}


def ogbench_file() -> Path:
    """Where OGBench's loader is told to look."""
    return Path(os.environ["MINARI_DATASETS_PATH"], f"{OGBENCH}.npz")


def ogbench_by_itself() -> Arrays:
    """OGBench's own reader, with the rewards of a task."""
    import gymnasium
    from ogbench import utils

    arrays: Arrays = utils.load_dataset(str(ogbench_file()), add_info=True)
    utils.relabel_dataset(TASK, gymnasium.make(TASK), arrays)
    return arrays


def ours_of_ogbench(storage: str) -> Arrays:
    """Our reader, which finds OGBench's file where it lies."""
    from ogbench import utils

    utils.DEFAULT_DATASET_DIR = os.environ["MINARI_DATASETS_PATH"]
    return ours(OGBENCH_TASK, storage)


def ours(dataset_id: str, storage: str) -> Arrays:
    """Our reader; observations and next observations are rows of the same states."""
    from qgpo import load_dataset

    dataset = load_dataset(dataset_id, False, storage, progress_bar=False)  # type: ignore[arg-type]
    return {"states": dataset.states, "actions": dataset.actions, "index": dataset.state_index}


def measured(read: Callable[[], Arrays]) -> dict[str, Any]:
    """Seconds, what was read in short, and what the process held before."""
    import minari  # noqa: F401

    import qgpo  # noqa: F401

    warnings.simplefilter("ignore")  # of a dataset without a family
    before, began = kept_memory(), time.process_time()
    arrays = read()
    seconds = time.process_time() - began
    index = arrays.get("index")
    states = arrays["observations"] if index is None else arrays["states"]
    next_states = arrays["next_observations"] if index is None else states[1:]
    rows = np.arange(len(arrays["actions"]))[::997]
    place = rows if index is None else index[rows]
    sums = [float(part.astype(np.float64).sum()) for part in (states[place], next_states[place])]
    sums.append(float(arrays["actions"][rows].astype(np.float64).sum()))
    return {"seconds": seconds, "before_bytes": before, "sums": sums, "rows": len(rows)}


def compare(name: str, ways: dict[str, Callable[[], Arrays]], rounds: int) -> dict[str, Any]:
    """Medians of all ways, and the ratios of ours to the usual one."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, read in ways.items():
            found[way].append(in_process(partial(measured, read)))
    sums = [one["sums"] for rows in found.values() for one in rows]
    if not all(np.allclose(sums[0], other, rtol=1e-6) for other in sums):
        sys.exit(f"{name}: the ways read different data: {sums}")
    medians: dict[str, Any] = {
        way: {
            "seconds": statistics.median(one["seconds"] for one in rows),
            "peak_bytes": statistics.median(
                one["peak_bytes"] - one["before_bytes"] for one in rows
            ),
        }
        for way, rows in found.items()
    }
    own, usual = medians["ours"], medians["usual"]
    medians["seconds_ratio"] = own["seconds"] / usual["seconds"]
    medians["memory_ratio"] = own["peak_bytes"] / usual["peak_bytes"]
    print(f"{name}: {json.dumps(medians)}", flush=True)
    return medians


def first_reading(read: Callable[[], Arrays]) -> float:
    """CPU-seconds of the reading that converts, or makes the map."""
    return float(in_process(partial(measured, read))["seconds"])


def main(args: Args) -> None:
    """Write, read and compare."""
    files: dict[str, Any] = {}
    kinds: dict[str, tuple[Callable[[], Any], Callable[[str], Arrays], Callable[[], Arrays]]] = {
        "Minari, HDF5": (
            lambda: write_data(args),  # type: ignore[arg-type]
            partial(ours, HDF5),
            minari_by_episodes,
        ),
        "OGBench, npz": (
            partial(write_ogbench, args.transitions),
            ours_of_ogbench,
            ogbench_by_itself,
        ),
    }
    for kind, (write, read, usual) in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MINARI_DATASETS_PATH"] = folder
            in_process(write)
            for storage, how in (("memory", ""), ("memmap", ", memory-mapped")):
                own = partial(read, storage)
                first = first_reading(own)
                found = compare(f"{kind}{how}", {"ours": own, "usual": usual}, args.rounds)
                files[f"{kind}{how}"] = found | {"first_seconds": first}
    written = {"transitions": args.transitions, "rounds": args.rounds, "files": files}
    args.output.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
