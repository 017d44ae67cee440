"""Datasets, configurations and files that tests are made of."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import minari
import numpy as np
import torch
from gymnasium import spaces
from hub import Hub
from minari import MinariDataset
from minari.data_collector import EpisodeBuffer

from qgpo import (
    PRESETS,
    AEPOConfig,
    BestOfNConfig,
    OfflineDataset,
    OneStepConfig,
    QIPOConfig,
    SIRConfig,
    load_dataset,
)
from qgpo.agents.guided.config import GuidedPolicyConfig
from qgpo.envs.store.local import datasets_root

ROOT = Path(__file__).resolve().parents[2]
REMOTE_ID = "test/remote/numbered-v0"
MAIN = "remote/numbered-v0/data/main_data.hdf5"
"""of its files, the one with the data"""
UNIT_BOX = spaces.Box(-1.0, 1.0, (1,), np.float32)

WHITENED = replace(
    PRESETS["laptop-support"],
    behavior_hidden=(8, 8),
    behavior_steps=5,
    behavior_batch_size=8,
    whitening_steps=3,
    sparsity_power=1.0,
    support_actions=3,
    support_solver_steps=2,
    critic_hidden=(8, 8),
    critic_steps=6,
    critic_batch_size=8,
    target_every=4,
    beta=30.0,
    beta_q=30.0,
    q_unit="reward",
    tilt_limit=1.0,
    energy_hidden=(8, 8),
    energy_steps=4,
    energy_batch_size=4,
    solver_steps=3,
)
PAPER_LIKE = replace(
    PRESETS["paper"],
    behavior_steps=3,
    behavior_batch_size=8,
    support_actions=3,
    support_solver_steps=2,
    critic_hidden=(8, 8),
    critic_steps=5,
    critic_batch_size=8,
    energy_hidden=(8, 8),
    energy_steps=4,
    energy_batch_size=4,
    solver_steps=3,
)
CONFIGS = {"whitened": WHITENED, "paper-like": PAPER_LIKE}
STACKED = replace(WHITENED, critic="stacked", q_unit="spread", beta=1.0)
AEPO_CONFIGS = {
    guidance: AEPOConfig(**asdict(replace(WHITENED, guidance=guidance, beta=0.1)))
    for guidance in ("aepo", "analytic")
}
SHARED = {field.name: getattr(WHITENED, field.name) for field in fields(GuidedPolicyConfig)}
QIPO_DIFFUSION = QIPOConfig(
    **{**SHARED, "beta": 1.0}, policy_steps=5, policy_batch_size=4, renew_every=2
)
SIR_CONFIGS = {
    "mean": SIRConfig(**{**SHARED, "beta": 1.0}, num_samples=4, trust_power=2.0),
    "ode": SIRConfig(**{**SHARED, "deterministic_action": "ode"}, num_samples=2),
    "implicit": SIRConfig(
        **{**SHARED, "critic": "implicit", "deterministic_action": "mode"}, num_samples=3
    ),
}
BEST_OF_N_CONFIGS = {
    "whitened": BestOfNConfig(**SHARED, num_samples=4),
    "flow": BestOfNConfig(
        **{**SHARED, "schedule": "ot", "prediction": "flow", "solver": "euler"}, num_samples=3
    ),
}
ONE_STEP = OneStepConfig(
    **vars(replace(WHITENED, energy_steps=2)),
    student_hidden=(8,),
    answer_states=15,
    answers=2,
    distillation_steps=4,
    distillation_batch_size=8,
)
QIPO_CONFIGS = {
    "diffusion": QIPO_DIFFUSION,
    "flow": replace(QIPO_DIFFUSION, schedule="ot", prediction="flow", solver="euler"),
}


def make_dataset(
    lengths: Sequence[int] = (5, 1, 4, 6),
    observation_dim: int = 3,
    action_space: spaces.Box = UNIT_BOX,
    seed: int = 0,
    terminated: Sequence[bool] | None = None,
    **changes: Any,
) -> OfflineDataset:
    """Random episodes of the given lengths; by default every second one terminates."""
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    ends = np.cumsum(lengths, dtype=np.int64) - 1
    terminated = [i % 2 == 0 for i in range(len(lengths))] if terminated is None else terminated
    terminations, truncations = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    terminations[ends] = terminated
    truncations[ends] = np.logical_not(terminated)
    arrays: dict[str, Any] = {
        "id": "test/made/by-hand-v0",
        "states": rng.normal(size=(n + len(lengths), observation_dim)).astype(np.float32),
        "actions": rng.uniform(
            action_space.low, action_space.high, (n, action_space.shape[0])
        ).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "terminations": terminations,
        "truncations": truncations,
        "episode_starts": np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64),
        "observation_space": spaces.Box(-np.inf, np.inf, (observation_dim,), np.float64),
        "action_space": action_space,
    }
    return OfflineDataset(**{**arrays, **changes})


def mapped(data: OfflineDataset, dataset_id: str = "test/mapped-v0") -> OfflineDataset:
    """The same transitions, memory-mapped by way of a Minari dataset."""
    buffers = []
    for e, start in enumerate(data.episode_starts):
        steps = slice(start, [*data.episode_starts, len(data)][e + 1])
        buffers.append(
            EpisodeBuffer(
                observations=data.states[steps.start + e : steps.stop + e + 1],
                actions=data.actions[steps],
                rewards=list(data.rewards[steps]),
                terminations=list(data.terminations[steps]),
                truncations=list(data.truncations[steps]),
            )
        )
    source = write_buffers(
        buffers,
        dataset_id,
        observation_space=data.observation_space,
        action_space=data.action_space,
    )
    return load_dataset(source, storage="memmap", progress_bar=False)


def numbered_episodes(lengths: Sequence[int], terminated: Sequence[bool]) -> list[EpisodeBuffer]:
    """Episodes whose every number says where it belongs: 100 episode + step, and so on.

    Observation (100 e + t, -(100 e + t)), action (100 e + t) / 1000, reward 100 e + t + 0.5.
    """
    buffers = []
    for e, (length, is_terminated) in enumerate(zip(lengths, terminated, strict=True)):
        steps = 100.0 * e + np.arange(length + 1)
        last = np.arange(length) == length - 1
        buffers.append(
            EpisodeBuffer(
                observations=np.stack([steps, -steps], axis=1),
                actions=(steps[:-1, None] / 1000.0).astype(np.float32),
                rewards=list(steps[:-1] + 0.5),
                terminations=list(last & is_terminated),
                truncations=list(last & (not is_terminated)),
            )
        )
    return buffers


def write_buffers(
    buffers: list[EpisodeBuffer],
    dataset_id: str = "test/numbered-v0",
    **more: Any,
) -> MinariDataset:
    if "env" not in more:
        spaces_of_data = {
            "observation_space": spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "action_space": UNIT_BOX,
        }
        more = {**spaces_of_data, **more}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="minari")
        return minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            algorithm_name="by hand",
            author="tests",
            author_email="none",
            code_permalink="none",
            description="made by hand",
            **more,
        )


def publish(hub: Hub, folder: Path, *ids: str, lengths: Sequence[int] = (2, 3)) -> None:
    """Offer datasets of terminated, numbered episodes on the hub."""
    with datasets_root(folder):
        for dataset_id in ids:
            write_buffers(numbered_episodes(lengths, [True] * len(lengths)), dataset_id)
    hub.publish(folder)


def same_parameters(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two results of `get_parameters` are equal bit for bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(
            same_parameters(first[k], second[k]) for k in first
        )
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(
            same_parameters(a, b) for a, b in zip(first, second, strict=True)
        )
    return bool(first == second)


def subprocess_environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "", **more}
