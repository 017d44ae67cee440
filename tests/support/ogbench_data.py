"""Small trajectories as OGBench's files hold them: T + 1 rows, the last action leads nowhere."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qgpo.envs.store.trajectories import as_episode, write_trajectories
from qgpo.envs.tasks.making import make_env
from qgpo.envs.tasks.ogbench import Name, parse

MAZE, MAZE_TASK = (
    f"ogbench-generated/pointmaze-medium-navigate-100k{task}-v0"
    for task in ("", "-singletask-task1")
)
"""an environment that is made in no time; its first task's goal is at (20, 20), within 1"""
GOAL, ELSEWHERE = (20.0, 20.0), (0.0, 0.0)
Rows = dict[str, np.ndarray[Any, Any]]


def maze_rows(solved: Sequence[Sequence[bool]], seed: int = 0) -> Rows:
    """A trajectory for each list, which says at which of its T + 1 rows the point is at the goal.

    Observations are the positions, a little off so that all differ.
    """
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
def played_rows(env_id: str, lengths: tuple[int, ...] = (30, 20)) -> Rows:
    """Random actions in an environment, recorded as OGBench's generator records its experts."""
    manipulates = not env_id.startswith(("pointmaze", "antmaze"))
    env = make_env(env_id)
    if manipulates:
        env.unwrapped._mode = "data_collection"
    rows: dict[str, list[Any]] = {}
    rng = np.random.default_rng(0)
    for seed, length in enumerate(lengths):
        observation, info = env.reset(seed=seed)
        for step in range(length + 1):
            state = env.unwrapped.data
            row = {
                "observations": observation,
                "qpos": state.qpos.copy(),
                "qvel": state.qvel.copy(),
            }
            if "button_states" in info:
                row["button_states"] = info["button_states"].copy()
            row["actions"] = rng.uniform(-1.0, 1.0, env.action_space.shape)
            row["terminals"] = step == length
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
            observation, *_, info = env.step(row["actions"])
    env.close()
    kinds = {"terminals": np.bool_, "button_states": np.int64}
    return {name: np.array(values, kinds.get(name, np.float32)) for name, values in rows.items()}


def write_npz(folder: Path, name: str, rows: Rows, suffixes: Sequence[str] = ("", "-val")) -> Path:
    """OGBench's two files of that name, with the same rows in both."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in suffixes:
        np.savez_compressed(folder / f"{name}{suffix}.npz", **rows)
    return folder / f"{name}.npz"


def write_generated(dataset_id: str, rows: Rows) -> Name:
    """These rows as generated trajectories, under the id of a Minari dataset."""
    name = parse(dataset_id)
    assert name is not None
    ends = np.flatnonzero(rows["terminals"]) + 1
    parts = [
        {key: values[begin:end] for key, values in rows.items()}
        for begin, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    about = {"origin": "generated", "name": name.published, "steps": 0, "seed": 0, "versions": {}}
    dims = rows["observations"].shape[1], rows["actions"].shape[1]
    write_trajectories(
        name, dims, map(as_episode, parts), about, ("by hand", "tests"), "made by hand"
    )
    return name
