"""How exact w = 1 is inside trained agents, against their own behavior and Q.

python benchmarks/exactness_agents.py --runs runs/a runs/b --output agents.json

Each agent as it is; with `--guidances`, also other guidances on its behavior and critic, of which
only the last stage is trained; with `--steps`, `--widths` and `--actions`, its own guidance trained
for other numbers of steps, with wider layers, or from more actions of each state, with a critic for
these.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from qgpo import QGPO, QGPOConfig, evaluate, load_dataset
from qgpo.agents.guided.exactness import Exactness
from qgpo.envs import OfflineDataset
from qgpo.envs.play.evaluation import FIRST_SEED
from qgpo.files import replacing


@dataclass
class Args:
    """Exactness inside agents."""

    runs: tuple[Path, ...]
    """run folders or checkpoints of QGPO"""
    guidances: tuple[str, ...] = ()
    """others to train on the same behavior and critic"""
    steps: tuple[int, ...] = ()
    """other numbers of steps of the agent's own guidance"""
    widths: tuple[int, ...] = ()
    """other widths of its layers"""
    actions: tuple[int, ...] = ()
    """other numbers of actions per state, from which the critic and f are trained"""
    states: int = 64
    """states measured"""
    samples: int = 4096
    """actions of the behavior in each"""
    support: tuple[int, ...] = ()
    """also the error of what so many actions of a state say by themselves"""
    n_episodes: int = 0
    """episodes played at w = 1 by deterministic actions, the same for all; 0: none"""
    output: Path = Path("benchmarks/results/exactness_agents.json")
    """JSON to write"""


def variants(
    args: Args, agent: QGPO, dataset: OfflineDataset
) -> Iterator[tuple[dict[str, Any], QGPO]]:
    """The agent, and others that share all but its last stage."""
    c = agent.config
    yield {**described(c), "trained": True}, agent
    asked = [replace(c, guidance=name, guidance_options={}) for name in args.guidances]
    asked += [replace(c, energy_steps=steps) for steps in args.steps]
    asked += [replace(c, energy_hidden=(n,) * len(c.energy_hidden)) for n in args.widths]
    asked += [replace(c, support_actions=n) for n in args.actions]
    for config in asked:
        began = time.process_time()
        other = QGPO(config, seed=agent.seed, device="cpu").adopt(agent, dataset)
        other.learn(dataset, reset_num_timesteps=False, progress_bar=False)
        seconds = time.process_time() - began
        yield {**described(config), "trained": False, "train_cpu": seconds}, other


def described(config: QGPOConfig) -> dict[str, Any]:
    """What the variants differ in."""
    return {
        "guidance": config.guidance,
        "steps": config.energy_steps,
        "width": config.energy_hidden[0],
        "actions": config.support_actions,
    }


def main(args: Args) -> None:
    """Measure every agent, and write after each."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for run in args.runs:
        agent = QGPO.load(run, device="cpu")
        dataset = load_dataset(str(agent.dataset_id), progress_bar=False)
        for about, one in variants(args, agent, dataset):
            began = time.process_time()
            found: Exactness = one.exactness(
                dataset, args.states, samples=args.samples, support=args.support
            )
            seconds = time.process_time() - began
            row = {"dataset": agent.dataset_id, **about, **found.as_dict(), "measure_cpu": seconds}
            if args.n_episodes:
                one.guidance_scale = 1.0
                played = evaluate(one, dataset, args.n_episodes, seed=FIRST_SEED)
                row["returns"] = [round(float(r), 2) for r in played.returns]
            rows.append(row)
            print(f"{agent.dataset_id} {about}\n{found}\n{seconds:.0f} CPU-seconds", flush=True)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            with replacing(args.output) as file:
                file.write((json.dumps({"rows": rows}) + "\n").encode())


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
