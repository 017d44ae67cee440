"""BC, TD3+BC and IQL beside CORL's: the same data, settings, steps and evaluation episodes.

    git clone https://github.com/tinkoff-ai/CORL
    python benchmarks/peers.py --corl CORL --dataset-id zoo/halfcheetah/medium-v0 --steps 3000

CORL (Clean Offline Reinforcement Learning, arXiv 2210.07105) is imported from that clone, which
runs its code; its learners, networks and replay buffer are used as they are, with the defaults of
its files (not its configurations per dataset), BC on all episodes and observations standardised.
Simulator, logging and command line (d4rl, gym, wandb, pyrallis), which it also imports, are
replaced by empty modules. Agents that are in the output already are not trained again.

Known differences: CORL's std has 1e-3 added and is over starting states only; its IQL takes the
advantage and V(s') from V before its update, ours from V after it, as the authors do.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from qgpo import BC, IQL, TD3BC, OfflineDataset, evaluate, load_dataset
from qgpo.agents import OfflineAgent
from qgpo.experiments.statistics import hierarchical_bootstrap

FILES = {"BC": "any_percent_bc", "TD3+BC": "td3_bc", "IQL": "iql"}
LEARNING_RATE = 3e-4


@dataclass
class Args:
    """Ours and CORL's, in turns."""

    corl: Path
    """a clone of CORL"""
    dataset_id: tuple[str, ...] = ("zoo/halfcheetah/medium-v0",)
    """datasets"""
    steps: int = 10_000
    """gradient steps, batches of 256"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """one training each"""
    n_episodes: int = 20
    """final episodes, the same for both"""
    output: Path = Path("benchmarks/peers.json")
    """JSON to write, after each training; what it already holds is not repeated"""


def module(clone: Path, name: str) -> ModuleType:
    """One of CORL's files, without the packages that learning does not need."""
    path = clone / "algorithms" / "offline" / f"{name}.py"
    if not path.is_file():
        raise SystemExit(f"no {path}: --corl must be a clone of github.com/tinkoff-ai/CORL")
    for absent in ("d4rl", "gym", "wandb"):
        sys.modules.setdefault(absent, MagicMock())
    command_line = ModuleType("pyrallis")
    command_line.wrap = lambda: lambda main: main  # type: ignore[attr-defined]
    sys.modules.setdefault("pyrallis", command_line)
    spec = importlib.util.spec_from_file_location(f"corl_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@dataclass
class Peer:
    """CORL's actor as `evaluate` plays it."""

    actor: nn.Module
    mean: np.ndarray
    std: np.ndarray

    @torch.no_grad()
    def predict(self, observation: Any, **_: Any) -> tuple[np.ndarray, None]:
        """Its deterministic actions (B, A) in observations (B, S)."""
        states = torch.as_tensor((observation - self.mean) / self.std, dtype=torch.float32)
        actions: Any = self.actor(states)
        tensor: Tensor = actions if isinstance(actions, Tensor) else actions.mean
        return tensor.clamp(-1.0, 1.0).numpy(), None


def train_corl(clone: Path, name: str, dataset: OfflineDataset, steps: int, seed: int) -> Peer:
    """CORL's learner with the defaults of its file; BC on all episodes."""
    corl = module(clone, FILES[name])
    data = transitions(dataset)
    mean, std = corl.compute_mean_std(data["observations"], eps=1e-3)
    for key in ("observations", "next_observations"):
        data[key] = corl.normalize_states(data[key], mean, std)
    state_dim, action_dim = data["observations"].shape[1], data["actions"].shape[1]
    buffer = corl.ReplayBuffer(state_dim, action_dim, len(data["rewards"]), "cpu")
    buffer.load_d4rl_dataset(data)
    corl.set_seed(seed)

    def optimizer(network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)

    make_actor: Callable[..., nn.Module] = corl.GaussianPolicy if name == "IQL" else corl.Actor
    actor = make_actor(state_dim, action_dim, 1.0)
    common: dict[str, Any] = {
        "max_action": 1.0,
        "actor": actor,
        "actor_optimizer": optimizer(actor),
        "device": "cpu",
    }
    if name == "BC":
        learner = corl.BC(**common)
    elif name == "TD3+BC":
        critics = [corl.Critic(state_dim, action_dim) for _ in range(2)]
        learner = corl.TD3_BC(
            critic_1=critics[0],
            critic_1_optimizer=optimizer(critics[0]),
            critic_2=critics[1],
            critic_2_optimizer=optimizer(critics[1]),
            **common,
        )
    else:
        q, v = corl.TwinQ(state_dim, action_dim), corl.ValueFunction(state_dim)
        learner = corl.ImplicitQLearning(
            q_network=q,
            q_optimizer=optimizer(q),
            v_network=v,
            v_optimizer=optimizer(v),
            max_steps=steps,
            **common,
        )
    for _ in range(steps):
        learner.train(buffer.sample(256))
    return Peer(actor.eval(), mean, std)


def transitions(dataset: OfflineDataset) -> dict[str, np.ndarray]:
    """The dataset in D4RL's form, with the last transition of timeouts, which D4RL drops."""
    return {
        "observations": np.asarray(dataset.observations, np.float32),
        "actions": np.asarray(dataset.actions, np.float32),
        "rewards": np.asarray(dataset.rewards, np.float32),
        "next_observations": np.asarray(dataset.next_observations, np.float32),
        "terminals": np.asarray(dataset.terminations, np.float32),
    }


def train_ours(name: str, dataset: OfflineDataset, steps: int, seed: int) -> OfflineAgent[Any]:
    """Our agent with the settings of CORL's file."""
    agent: OfflineAgent[Any]
    if name == "BC":
        bc = replace(BC.presets["paper"], steps=steps, normalize_observations=True)
        agent = BC(bc, seed=seed, device="cpu")
    elif name == "TD3+BC":
        agent = TD3BC(replace(TD3BC.presets["paper"], steps=steps), seed=seed, device="cpu")
    else:
        iql = replace(IQL.presets["paper"], steps=steps, reward_tuning="none")
        agent = IQL(replace(iql, normalize_observations=True), seed=seed, device="cpu")
    return agent.learn(dataset)


def train(args: Args, code: str, name: str, dataset: OfflineDataset, seed: int) -> dict[str, Any]:
    """Train and play one agent."""
    began = time.process_time()
    agent: Any
    if code == "ours":
        agent = train_ours(name, dataset, args.steps, seed)
    else:
        agent = train_corl(args.corl, name, dataset, args.steps, seed)
    seconds = time.process_time() - began
    played = evaluate(agent, dataset, args.n_episodes, seed=1000)
    print(f"{dataset.id}  {name:7s}{code:5s} seed {seed}{np.mean(played.returns):9.1f}", flush=True)
    return {
        "dataset": dataset.id,
        "agent": name,
        "code": code,
        "seed": seed,
        "steps": args.steps,
        "cpu_seconds": round(seconds, 1),
        "returns": [round(float(value), 2) for value in played.returns],
    }


def table(rows: list[dict[str, Any]]) -> None:
    """Print means with intervals over seeds and episodes, and CPU seconds with preparing data."""
    groups: dict[tuple[str, int, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        key = row["dataset"], row["steps"], row["agent"], row["code"]
        groups.setdefault(key, []).append(row)
    for (dataset_id, steps, name, code), group in groups.items():
        tasks = [row["returns"] for row in group]
        low, high = hierarchical_bootstrap(tasks)
        seconds = np.mean([row["cpu_seconds"] for row in group])
        print(
            f"{dataset_id}  {steps} steps  {name:7s}{code:5s}{np.mean(tasks):7.0f} "
            f"[{low:.0f}, {high:.0f}]  seeds {' '.join(f'{np.mean(task):.0f}' for task in tasks)}"
            f"  {seconds:.0f} CPU-s"
        )


def check(dataset: OfflineDataset) -> OfflineDataset:
    """Refuse what CORL's code, as it is used here, does not handle."""
    space = dataset.action_space
    if dataset.adapter is not None or not (np.all(space.low == -1) and np.all(space.high == 1)):
        raise SystemExit(f"{dataset.id}: expected vector observations and actions in [-1, 1]")
    return dataset


def main(args: Args) -> None:
    """Train, play, write and print."""
    torch.set_num_threads(1)
    for file in FILES.values():
        module(args.corl, file)  # a wrong clone fails before anything is trained
    rows = json.loads(args.output.read_text()) if args.output.exists() else []
    done = {
        (row["dataset"], row["agent"], row["code"], row["seed"])
        for row in rows
        if (row["steps"], len(row["returns"])) == (args.steps, args.n_episodes)
    }
    for dataset in [check(load_dataset(dataset_id)) for dataset_id in args.dataset_id]:
        for seed in args.seeds:
            for name in FILES:
                for code in ("ours", "CORL"):
                    if (dataset.id, name, code, seed) not in done:
                        rows.append(train(args, code, name, dataset, seed))
                        args.output.write_text(json.dumps(rows, indent=1) + "\n")
    table(rows)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
