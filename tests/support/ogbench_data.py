"""Small trajectories as OGBench's files hold them: T + 1 rows, the last action leads nowhere."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from qgpo.envs.store.trajectories import as_episode, write_trajectories
from qgpo.envs.tasks.making import make_env
from qgpo.envs.tasks.ogbench import Name, parse

MAZE = "pointmaze-medium-navigate"
"""whose environment is made in no time; the goal of its first task is at (20, 20), within 1"""
MADE = f"ogbench-generated/{MAZE}-100k-v0"
GOAL, ELSEWHERE = (20.0, 20.0), (0.0, 0.0)
CUBE = 14
"""place of the first cube among the positions of a manipulated scene"""
Rows = dict[str, np.ndarray[Any, Any]]


def needs_ogbench() -> None:
    pytest.importorskip("ogbench", reason="needs ogbench: pip install ogbench")


def task_of(dataset_id: str, task: int = 0) -> str:
    """The id of a task of these trajectories, the default one without a number."""
    number = f"-task{task}" if task else ""
    return dataset_id.removesuffix("-v0") + f"-singletask{number}-v0"


def maze_rows(*solved: Sequence[int], seed: int = 0) -> Rows:
    """A trajectory for each list: at which of its T + 1 rows the point is at the goal."""
    rng = np.random.default_rng(seed)
    flags = np.concatenate([np.asarray(one, np.bool_) for one in solved])
    n = len(flags)
    places = np.where(flags[:, None], GOAL, ELSEWHERE) + rng.uniform(-0.5, 0.5, (n, 2))
    terminals = np.zeros(n, np.bool_)
    terminals[np.cumsum([len(one) for one in solved]) - 1] = True
    return {
        "observations": places.astype(np.float32),
        "actions": rng.uniform(-1.0, 1.0, (n, 2)).astype(np.float32),
        "terminals": terminals,
        "qpos": places.astype(np.float32),
        "qvel": rng.normal(size=(n, 2)).astype(np.float32),
    }


@functools.cache
def made_once(env_id: str) -> gym.Env[Any, Any]:
    """An environment of a second's making, shared by all tests."""
    env = make_env(env_id)
    env.close = lambda: None  # type: ignore[method-assign]
    return env


@functools.cache
def played_rows(env_id: str, lengths: tuple[int, ...] = (12, 8)) -> Rows:
    """Random actions in an environment, as OGBench's generator records its experts."""
    env, rng = made_once(env_id), np.random.default_rng(0)
    rows: dict[str, list[Any]] = {}
    for seed, length in enumerate(lengths):
        observation, info = env.reset(seed=seed, options={"task_id": 1})
        for step in range(length + 1):
            state = env.unwrapped.data
            row = {"observations": observation, "qpos": state.qpos.copy()}
            if "button_states" in info:
                row["button_states"] = info["button_states"].copy()
            row |= {"qvel": state.qvel.copy(), "terminals": step == length}
            row["actions"] = rng.uniform(-1.0, 1.0, env.unwrapped.action_space.shape)
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
            observation, *_, info = env.step(row["actions"])
    kinds = {"terminals": np.bool_, "button_states": np.int64}
    return {name: np.array(values, kinds.get(name, np.float32)) for name, values in rows.items()}


def write_npz(folder: Path, name: str, rows: Rows) -> Path:
    """OGBench's two files of that name, with the same rows for training and validation."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("-val", ""):
        path = folder / f"{name}{suffix}.npz"
        np.savez_compressed(path, **rows)  # type: ignore[arg-type]
    return path


def write_generated(rows: Rows, dataset_id: str = MADE) -> Name:
    """These rows as generated trajectories of that id."""
    name = parse(dataset_id)
    assert name is not None
    ends = np.flatnonzero(rows["terminals"]) + 1
    parts = [
        {key: values[begin:end] for key, values in rows.items()}
        for begin, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    about = {"origin": "generated", "name": name.published, "steps": 0, "seed": 0, "versions": {}}
    dims = rows["observations"].shape[1], rows["actions"].shape[1]
    write_trajectories(name, dims, map(as_episode, parts), about, ("by hand", "tests"), "by hand")
    return name
