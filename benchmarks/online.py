"""Fine-tuning in the environment beside SAC with as many steps, from scratch and from the data.

for s in halfcheetah hopper pendulum; do
    python scripts/train.py --dataset-id qgpo/$s/mixed-v0 --run-dir runs/$s --seed 0 --threads 1
    for a in qgpo sac sac-data; do
        python benchmarks/online.py --run runs/$s --agent $a --output benchmarks/online
    done
done

`sac` is Stable-Baselines3's SAC with its default settings, `sac-data` the same with the dataset in
its replay buffer before the first step. All play the same evaluation episodes, with deterministic
actions, before the first step and ten times after it.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback

from qgpo import QGPO, OfflineDataset, evaluate, load_agent, load_dataset
from qgpo.agents.core.provenance import processor, versions
from qgpo.envs.play.evaluation import FIRST_SEED
from qgpo.envs.tasks.making import make_env
from qgpo.files import write_whole

POINTS = 10


@dataclass
class Args:
    """One agent in the environment of one dataset."""

    run: Path
    """run folder, or a checkpoint .zip, of the QGPO agent that is fine-tuned; it names the data"""
    output: Path
    """folder of one JSON per dataset, agent and seed"""
    agent: Literal["qgpo", "sac", "sac-data"] = "qgpo"
    """who learns: the agent of the run, SAC from scratch, or SAC with the data in its buffer"""
    timesteps: int = 10_000
    """environment steps"""
    n_episodes: int = 30
    """episodes of each evaluation"""
    seed: int = 0
    """of SAC; QGPO has that of its training"""


class Points(BaseCallback):
    """Returns before the first step and at every tenth of the steps."""

    def __init__(self, dataset: OfflineDataset, every: int, n_episodes: int) -> None:
        super().__init__()
        self.dataset, self.every, self.n_episodes = dataset, every, n_episodes
        self.rows: list[dict[str, Any]] = []
        self.began, self.paused = time.process_time(), 0.0

    def measure(self, agent: Any, timesteps: int) -> None:
        """One evaluation; its time is not the training's."""
        before = time.process_time()
        played = evaluate(agent, self.dataset, self.n_episodes, seed=FIRST_SEED, warn_of_cuts=False)
        returns = [round(float(r), 3) for r in played.returns]
        seconds = before - self.began - self.paused
        self.rows.append(
            {
                "timesteps": timesteps,
                "cpu_seconds": round(seconds, 1),
                "guidance_scale": getattr(agent, "guidance_scale", None),
                "returns": returns,
            }
        )
        self.paused += time.process_time() - before
        print(f"{timesteps:7,} steps, {seconds:5.0f} CPU-s: {np.mean(returns):.1f}", flush=True)

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            self.measure(self.model, self.num_timesteps)
        return True


def sac(dataset: OfflineDataset, seed: int, with_data: bool) -> SAC:
    """SB3's SAC; `with_data` its buffer holds the dataset, and it learns from the first step."""
    assert dataset.env_spec is not None
    starts = {"learning_starts": 0} if with_data else {}
    model = SAC("MlpPolicy", make_env(dataset.env_spec), seed=seed, device="cpu", **starts)
    if with_data:
        buffer: Any = model.replay_buffer
        actions = model.policy.scale_action(dataset.actions)
        rows = zip(
            dataset.observations,
            dataset.next_observations,
            actions,
            dataset.rewards,
            dataset.terminations,
            dataset.truncations & ~dataset.terminations,
            strict=True,
        )
        for state, following, action, reward, terminated, truncated in rows:
            done = np.array([terminated or truncated])
            buffer.add(
                state[None],
                following[None],
                action[None],
                reward[None],
                done,
                [{"TimeLimit.truncated": bool(truncated)}],
            )
    return model


def main(args: Args) -> None:
    """Train, evaluate, write."""
    torch.set_num_threads(1)
    agent = load_agent(args.run, device="cpu")
    assert isinstance(agent, QGPO)
    dataset = load_dataset(str(agent.dataset_id))
    points = Points(dataset, args.timesteps // POINTS, args.n_episodes)
    seed = agent.seed if args.agent == "qgpo" else args.seed
    if args.agent == "qgpo":
        points.measure(agent, 0)
        agent.learn_online(dataset.env_spec, args.timesteps, dataset, callback=points)
    else:
        model = sac(dataset, seed, args.agent == "sac-data")
        points.began, points.paused = time.process_time(), 0.0
        points.measure(model, 0)
        model.learn(args.timesteps, callback=points)
    document = {
        "dataset": dataset.id,
        "fingerprint": dataset.fingerprint,
        "agent": args.agent,
        "online": agent.online,
        "seed": seed,
        "trained": agent.describe_policy() if args.agent == "qgpo" else None,
        "points": points.rows,
        "versions": versions(),
        "processor": processor(),
    }
    steps = "" if args.timesteps == Args.timesteps else f"-{args.timesteps}"
    name = f"{dataset.id.split('/')[1]}-{args.agent}{steps}-s{seed}.json"
    write_whole(args.output / name, (json.dumps(document, indent=1) + "\n").encode())


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
