"""How long evaluation takes, beside the simulator alone.

    python benchmarks/playing.py     # a minute; playing.json

50 episodes of 1,000 steps of HalfCheetah: the simulator with random actions, in one process and in
one for each core, and `evaluate` of the trained agent that comes with the package, one torch
thread. "In halves" plays half of the episodes while a second thread predicts the actions of the
other half. Seconds are wall time: run it while nothing else does. HalfCheetah's episodes all have
1,000 steps.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro

from qgpo import QGPO, evaluate
from qgpo.agents.core.provenance import versions
from qgpo.envs.tasks.making import quiet_mujoco

OUTPUT = Path(__file__).with_name("playing.json")
ENVIRONMENT = "HalfCheetah-v5"
AGENT = "halfcheetah/mixed"


@dataclass
class Args:
    """Measure evaluation."""

    episodes: int = 50
    """episodes of each way"""
    output: Path = OUTPUT
    """JSON to write"""


def simulate(episodes: int, ready: Any = None) -> None:
    """Episodes with random actions; `ready` is waited for once an environment is there."""
    with quiet_mujoco():
        env = gym.make(ENVIRONMENT)
        env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (1000, 6)).astype(np.float32)
    if ready is not None:
        ready.wait()
    for episode in range(episodes):
        env.reset(seed=episode)
        for action in actions:
            env.step(action)


def on_all_cores(episodes: int) -> float:
    """Seconds of that, divided among processes, without their start."""
    cores = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(cores + 1)
    shares = [len(part) for part in np.array_split(np.arange(episodes), cores)]
    workers = [context.Process(target=simulate, args=(n, ready)) for n in shares]
    for worker in workers:
        worker.start()
    ready.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    return time.perf_counter() - began


def in_halves(agent: QGPO, episodes: int, deterministic: bool) -> None:
    """Episodes of which one half is simulated while actions of the other are predicted."""
    with quiet_mujoco():
        envs = [gym.make(ENVIRONMENT) for _ in range(episodes)]
    halves = envs[: episodes // 2], envs[episodes // 2 :]

    def predict(observations: list[Any]) -> Any:
        return agent.predict(np.stack(observations), deterministic=deterministic)[0]

    with ThreadPoolExecutor(1) as pool:
        starts = [[env.reset(seed=i)[0] for i, env in enumerate(half)] for half in halves]
        waiting = [pool.submit(predict, observations) for observations in starts]
        for _ in range(1000):
            for i, half in enumerate(halves):
                pairs = zip(half, waiting[i].result(), strict=True)
                waiting[i] = pool.submit(predict, [env.step(action)[0] for env, action in pairs])


def seconds(call: Callable[[], object]) -> float:
    """Wall time of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main(args: Args) -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    agent, n = QGPO.pretrained(AGENT, device="cpu"), args.episodes
    play = partial(evaluate, agent, ENVIRONMENT, n)
    evaluate(agent, ENVIRONMENT, 2, max_episode_steps=3)  # nothing is warm before
    found = {
        "the simulator alone, one process": seconds(lambda: simulate(n)),
        "the simulator alone, one process per core": on_all_cores(n),
        "`evaluate`, sampled actions": seconds(lambda: play(deterministic=False)),
        "`evaluate`, deterministic actions": seconds(lambda: play(deterministic=True)),
        "in halves, sampled actions": seconds(lambda: in_halves(agent, n, False)),
        "in halves, deterministic actions": seconds(lambda: in_halves(agent, n, True)),
    }
    floor = found["the simulator alone, one process"]
    ways = {name: {"seconds": s, "over_floor": s / floor} for name, s in found.items()}
    print(json.dumps(ways, indent=1))
    about = {"episodes": n, "cores": os.cpu_count(), "versions": versions()}
    args.output.write_text(json.dumps({**about, "ways": ways}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
