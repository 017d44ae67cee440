"""Train the small online SB3 policies whose rollouts are the embedded datasets.

One run per environment; a snapshot of the actor is written every `snapshot_every` steps together
with its measured return, so that poor, medium and good behaviors come from one training. PPO's
observation normalisation is folded into the first layer, so that a snapshot is an actor alone.

    python benchmarks/train_policies.py --env-id HalfCheetah-v5
    python benchmarks/train_policies.py --env-id Hopper-v5
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from gymnasium import spaces
from safetensors.torch import save_file
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor, nn

from qgpo.envs.rollouts.sb3_policies import ActorPolicy
from qgpo.envs.tasks.making import make_env


@dataclass
class Args:
    """Online PPO with a small actor (online: it spends environment steps)."""

    env_id: Literal[
        "HalfCheetah-v5",
        "Hopper-v5",
        "Pendulum-v1",
        "Reacher-v5",
        "InvertedDoublePendulum-v5",
        "Swimmer-v5",
        "Walker2d-v5",
    ] = "HalfCheetah-v5"
    """the environment to train in"""
    steps: int = 1_000_000
    """environment steps"""
    snapshot_every: int = 51_200
    """environment steps between two snapshots of the actor"""
    hidden: int = 64
    """width of the actor's two hidden layers (the value network has 256)"""
    episodes: int = 10
    """episodes with sampled actions that measure each snapshot"""
    seed: int = 0
    """seed of the environment and of PPO"""
    threads: int = 1
    """torch threads"""
    output: Path = Path("policies")
    """folder that receives <env_id>/<steps>.safetensors"""


class ActorSnapshots(BaseCallback):
    """Writes the actor as safetensors every `every` steps, with its sampled-action return."""

    def __init__(self, folder: Path, args: Args) -> None:
        super().__init__()
        self.folder, self.args = folder, args
        self.env = Monitor(make_env(args.env_id))

    def _on_step(self) -> bool:
        if self.num_timesteps % self.args.snapshot_every == 0:
            assert isinstance(self.model, PPO)
            assert isinstance(self.env.action_space, spaces.Box)
            weights, activation = actor_weights(self.model)
            policy = ActorPolicy(weights, self.env.action_space, activation)
            returns = self._returns(policy)
            about = {
                "algorithm": "PPO",
                "env_id": self.args.env_id,
                "steps": str(self.num_timesteps),
                "seed": str(self.args.seed),
                "activation": activation,
                "mean_return": f"{np.mean(returns):.1f}",
                "returns": json.dumps([round(r, 1) for r in returns]),
            }
            save_file(weights, self.folder / f"{self.num_timesteps}.safetensors", metadata=about)
            print(
                f"{self.args.env_id} {self.num_timesteps:8d}: {np.mean(returns):8.1f}", flush=True
            )
        return True

    def _returns(self, policy: ActorPolicy) -> list[float]:
        generator = torch.Generator().manual_seed(self.args.seed)
        returns = []
        for episode in range(self.args.episodes):
            observation, _ = self.env.reset(seed=1000 + episode)
            total, over = 0.0, False
            while not over:
                action = policy.act(observation[None], generator)[0]
                observation, reward, terminated, truncated, _ = self.env.step(action)
                total, over = total + float(reward), terminated or truncated
            returns.append(total)
        return returns


def actor_weights(model: PPO) -> tuple[dict[str, Tensor], str]:
    """The actor's tensors under SB3's names, normalisation folded in, and its activation."""
    state = model.policy.state_dict()
    names = [n for n in state if n.startswith(("mlp_extractor.policy_net.", "action_net."))]
    weights = {name: state[name].clone() for name in [*names, "log_std"]}
    normalizer = model.get_vec_normalize_env()
    assert normalizer is not None
    assert isinstance(normalizer.obs_rms, RunningMeanStd)
    mean = torch.as_tensor(normalizer.obs_rms.mean, dtype=torch.float64)
    var = torch.as_tensor(normalizer.obs_rms.var, dtype=torch.float64)
    first = "mlp_extractor.policy_net.0."
    folded = weights[f"{first}weight"].double() / torch.sqrt(var + normalizer.epsilon)
    bias = weights[f"{first}bias"].double() - folded @ mean
    weights[f"{first}weight"], weights[f"{first}bias"] = folded.float(), bias.float()
    return weights, "relu"


DEFAULTS: dict[str, Any] = {
    "n_envs": 1,
    "batch_size": 64,
    "learning_rate": 3e-4,
    "n_steps": 2048,
    "n_epochs": 10,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_range": 0.2,
    "ent_coef": 0.0,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
    "log_std_init": -0.5,
}
"""SB3's, but for a narrower policy at the beginning"""
SIDE_BY_SIDE = {"n_envs": 8, "n_steps": 512, "batch_size": 256, "learning_rate": 6e-4}
"""a third of the time"""
SETTINGS: dict[str, dict[str, Any]] = {
    "HalfCheetah-v5": {
        "learning_rate": 1e-4,
        "n_steps": 512,
        "n_epochs": 20,
        "gamma": 0.98,
        "gae_lambda": 0.92,
        "clip_range": 0.1,
        "ent_coef": 4e-4,
        "vf_coef": 0.58,
        "max_grad_norm": 0.8,
        "log_std_init": -2.0,
    },
    "Hopper-v5": {},
    "Pendulum-v1": {"learning_rate": 1e-3, "gamma": 0.9, "log_std_init": 0.0},
    "Reacher-v5": {**SIDE_BY_SIDE, "gamma": 0.9, "log_std_init": -1.0},
    "InvertedDoublePendulum-v5": {
        **SIDE_BY_SIDE,
        "gamma": 0.98,
        "gae_lambda": 0.8,
        "log_std_init": -1.0,
    },
    "Swimmer-v5": {**SIDE_BY_SIDE, "gamma": 0.9999, "gae_lambda": 0.98},
    "Walker2d-v5": SIDE_BY_SIDE,
}
"""what differs per environment: close to the RL Zoo's for HalfCheetah, Pendulum and Swimmer"""


def make_model(args: Args) -> PPO:
    """PPO with this environment's settings and a small actor."""
    settings = {**DEFAULTS, **SETTINGS[args.env_id]}
    log_std = settings.pop("log_std_init")
    env = DummyVecEnv([lambda: Monitor(make_env(args.env_id))] * settings.pop("n_envs"))
    return PPO(
        "MlpPolicy",
        VecNormalize(env, gamma=settings["gamma"]),
        policy_kwargs={
            "net_arch": {"pi": [args.hidden, args.hidden], "vf": [256, 256]},
            "activation_fn": nn.ReLU,
            "log_std_init": log_std,
            "ortho_init": False,
        },
        seed=args.seed,
        device="cpu",
        **settings,
    )


def main(args: Args) -> None:
    """Train and keep every snapshot."""
    torch.set_num_threads(args.threads)
    folder = args.output / args.env_id
    folder.mkdir(parents=True, exist_ok=True)
    make_model(args).learn(args.steps, callback=ActorSnapshots(folder, args))


if __name__ == "__main__":
    main(tyro.cli(Args))
