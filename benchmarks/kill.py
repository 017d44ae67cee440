"""Kill training with SIGKILL at random moments, resume it, and compare with a run left alone.

    python benchmarks/kill.py

Moments are drawn within every stage, at a random step and while a checkpoint is being written;
each killed run is resumed to its end, and parameters, optimizers and random states are compared bit
by bit. Half of the runs train from memory-mapped data. Writes kill.json after every
trial; ends with exit code 1 where a resumed run differs. (SIGKILL ends a process, not
the machine: what a power failure leaves on the disk is not measured.)
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import minari
import numpy as np
import torch
import tyro
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from qgpo import PRESETS, QGPO, load_dataset
from qgpo.agents.core.callbacks import EveryStep, SaveCheckpoint
from qgpo.agents.core.checkpoint import CheckpointError
from qgpo.experiments.folder import RunFolder

CONFIG = replace(
    PRESETS["laptop"],
    behavior_hidden=(16, 16),
    behavior_steps=150,
    behavior_batch_size=32,
    whitening_steps=100,
    support_actions=16,
    support_solver_steps=3,
    critic_hidden=(16, 16),
    critic_steps=150,
    critic_batch_size=32,
    target_every=40,
    energy_hidden=(16, 16),
    energy_steps=150,
    energy_batch_size=8,
)
STORAGES = ("memory", "memmap")
OUTPUT = Path(__file__).with_name("kill.json")


@dataclass
class Args:
    """Kill, resume, compare."""

    kills_per_stage: int = 6
    """kills at random steps of each stage"""
    kills_while_writing: int = 3
    """kills of each stage while a checkpoint is being written"""
    checkpoint_every: int = 10
    """steps between two checkpoints"""
    seed: int = 0
    """seed of the moments"""
    output: Path = OUTPUT
    """where the results go"""


class Heartbeat(EveryStep):
    """Tells the parent process how many steps are done."""

    def __init__(self, shared: mmap.mmap) -> None:
        super().__init__()
        self.shared = shared

    def after_step(self, n: int) -> None:
        """Write down the steps of all stages."""
        done = sum(self.model.progress.values())  # type: ignore[attr-defined]
        self.shared[:8] = struct.pack("q", done)


def make_data() -> None:
    """A local Minari dataset of 4000 transitions in 40 episodes."""
    rng = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            observations=rng.normal(size=(101, 5)).astype(np.float32),
            actions=rng.uniform(-1, 1, (100, 2)).astype(np.float32),
            rewards=list(rng.normal(size=100)),
            terminations=[False] * 100,
            truncations=[False] * 99 + [True],
        )
        for _ in range(40)
    ]
    minari.create_dataset_from_buffers(
        "bench/kill-v0",
        buffers,
        observation_space=spaces.Box(-np.inf, np.inf, (5,), np.float32),
        action_space=spaces.Box(-1.0, 1.0, (2,), np.float32),
        algorithm_name="random",
        author="qgpo",
        author_email="none",
        code_permalink="none",
        description="noise",
    )


def train(folder: RunFolder, storage: Any, shared: mmap.mmap, every: int) -> None:
    """What a training process does: go on from the folder's checkpoint if there is one."""
    dataset = load_dataset("bench/kill-v0", False, storage, progress_bar=False)
    with folder.locked():
        agent = QGPO(CONFIG, seed=1, device="cpu")
        if folder.checkpoint.exists():
            agent = QGPO.load(folder.checkpoint, device="cpu")
        callbacks = [Heartbeat(shared), SaveCheckpoint(folder.checkpoint, every)]
        agent.learn(dataset, callbacks, reset_num_timesteps=False)


def in_child(work: Callable[[], None], moment: Callable[[], bool]) -> str:
    """Run the work in a process; kill it as soon as `moment()`. "killed", "done" or "failed"."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(f"child failed: {error!r}", flush=True)
            os._exit(1)
        os._exit(0)
    while True:
        if moment():
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            return "killed" if os.WIFSIGNALED(status) else "done"
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return "failed" if status else "done"
        time.sleep(1e-4)


def same(first: Any, second: Any) -> bool:
    """Equality of nested state, bit by bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def equal(path: Path, reference: QGPO) -> bool:
    """Whether the checkpoint holds the reference's parameters and random state."""
    agent = QGPO.load(path, device="cpu")
    return (
        same(agent.get_parameters(), reference.get_parameters())
        and torch.equal(agent.generator.get_state(), reference.generator.get_state())
        and agent.num_timesteps == reference.num_timesteps
    )


def stage_of(done: int, sizes: dict[str, int]) -> str:
    """The stage in which the step after so many steps lies."""
    for stage, size in sizes.items():
        if done < size:
            return stage
        done -= size
    return "end"


def trial(
    path: Path, storage: str, least: int, writing: bool, reference: QGPO, every: int, delay: float
) -> dict[str, Any]:
    """Kill at a step (or while the first checkpoint after it is written), then resume.

    `delay` is how long to wait then, in seconds: a step, or a checkpoint, has begun by then.
    """
    folder = RunFolder(path)
    shared = mmap.mmap(-1, 8)

    def moment() -> bool:
        if struct.unpack("q", shared[:8])[0] < least:
            return False
        if writing and not any(path.glob(".checkpoint*.tmp")):
            return False
        time.sleep(delay)
        return True

    def work() -> None:
        train(folder, storage, shared, every)

    first = in_child(work, moment)
    done = struct.unpack("q", shared[:8])[0]
    half_written = any(path.glob(".checkpoint*.tmp"))
    resumed_from, readable = 0, True
    if folder.checkpoint.exists():
        try:
            resumed_from = sum(QGPO.load(folder.checkpoint, device="cpu").progress.values())
        except CheckpointError:
            readable = False
    resumed = in_child(work, lambda: False) == "done"
    return {
        "storage": storage,
        "killed": first == "killed",
        "stage": stage_of(done, reference.progress),
        "steps_done": done,
        "half_written_checkpoint": half_written,
        "checkpoint_readable": readable,
        "resumed_from_step": resumed_from,
        "identical": first != "failed" and resumed and equal(folder.checkpoint, reference),
    }


def main(args: Args) -> None:
    """All trials; the summary goes to the screen and into the JSON."""
    torch.set_num_threads(1)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        os.environ["MINARI_DATASETS_PATH"] = str(root / "minari")
        make_data()
        whole = RunFolder(root / "whole")
        in_child(lambda: train(whole, "memory", mmap.mmap(-1, 8), 10**9), lambda: False)
        reference = QGPO.load(root / "whole" / "checkpoint.zip", device="cpu")
        trials = []
        for i, (least, writing) in enumerate(moments(args, reference.progress, rng)):
            # a step takes milliseconds, the writing of a checkpoint one or two
            delay = rng.random() * (0.001 if writing else 0.01)
            run = (root / f"run-{i}", STORAGES[i % 2], least, writing)
            trials.append(trial(*run, reference, args.checkpoint_every, delay))
            print(json.dumps(trials[-1]), flush=True)
            about = summary(trials)
            scratch = args.output.with_suffix(".tmp")
            scratch.write_text(json.dumps({"summary": about, "trials": trials}, indent=1) + "\n")
            scratch.replace(args.output)
    print(json.dumps(about, indent=2))
    if not all(t["identical"] and t["checkpoint_readable"] for t in trials):
        raise SystemExit("a resumed run differs from the one left alone")


def moments(args: Args, sizes: dict[str, int], rng: random.Random) -> list[tuple[int, bool]]:
    """(steps to be done, whether a checkpoint is to be in writing) of every trial, mixed."""
    chosen = []
    begin = 0
    for size in sizes.values():
        chosen += [(begin + rng.randrange(size), False) for _ in range(args.kills_per_stage)]
        # early enough for a checkpoint within the stage
        latest = max(1, size - args.checkpoint_every)
        chosen += [(begin + rng.randrange(latest), True) for _ in range(args.kills_while_writing)]
        begin += size
    rng.shuffle(chosen)
    return chosen


def summary(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all trials that were killed."""
    killed = [t for t in trials if t["killed"]]
    return {
        "kills": len(killed),
        "by_stage": dict(Counter(t["stage"] for t in killed)),
        "inside_checkpoint_writing": sum(t["half_written_checkpoint"] for t in killed),
        "inside_writing_by_stage": dict(
            Counter(t["stage"] for t in killed if t["half_written_checkpoint"])
        ),
        "most_steps_lost": max(
            (t["steps_done"] - t["resumed_from_step"] for t in killed), default=0
        ),
        "from_memmap": sum(t["storage"] == "memmap" for t in killed),
        "identical": sum(t["identical"] for t in killed),
        "readable": sum(t["checkpoint_readable"] for t in killed),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
