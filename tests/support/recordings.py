"""Recordings of a robot that were never made: a table, a sound log, LeRobot's folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qgpo.envs.logs.log import Log
from qgpo.envs.logs.reading import Names

STEP = 0.02


def sound(lengths=(30, 40)) -> Log:
    rng = np.random.default_rng(0)
    n = sum(lengths)
    starts = np.cumsum([0, *lengths[:-1]])
    within = np.arange(n) - np.repeat(starts, lengths)
    last = np.isin(np.arange(n), np.cumsum(lengths) - 1)
    return Log(
        of="a log",
        observations=rng.normal(size=(n, 3)).cumsum(axis=0),
        actions=rng.uniform(-0.9, 0.9, (n, 2)),
        episodes=np.repeat(np.arange(len(lengths)), lengths),
        observation_names=("q", "dq", "load"),
        action_names=("u0", "u1"),
        rewards=rng.normal(size=n),
        terminations=last & (np.arange(n) < lengths[0]),
        truncations=last & (np.arange(n) >= lengths[0]),
        times=within * STEP,
    )


TABLE = """trial,t,q0,q1,dq0,u,r,fell
0,0.00,1,2,3,0.5,1,false
0,0.02,2,3,4,0.25,2,false
0,0.04,3,4,5,-0.5,3,true
1,0.00,9,8,7,0.125,4,false
1,0.02,8,7,6,1,5,False
"""
NAMES = Names(
    observations=("q*", "dq0"),
    actions=("u",),
    reward="r",
    episode="trial",
    time="t",
    termination="fell",
)


def write_table(path: Path, text: str = TABLE) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def write_lerobot(folder: Path, version: str, success: bool = True, **changes) -> Path:
    """Two episodes of an arm with two joints at 50 frames per second, as LeRobot lays them out."""
    pyarrow = pytest.importorskip("pyarrow", reason="the arrow extra is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    episodes = []
    for episode, length in enumerate((4, 3)):
        frames = np.arange(length)
        state = np.stack([frames + 10 * episode, -frames], axis=1).astype(np.float32)
        columns = {
            "observation.state": pyarrow.array(state.tolist(), pyarrow.list_(pyarrow.float32(), 2)),
            "action": pyarrow.array((state * 0.01).tolist(), pyarrow.list_(pyarrow.float32(), 2)),
            "timestamp": pyarrow.array((frames / 50).astype(np.float32)),
            "frame_index": pyarrow.array(frames),
            "episode_index": pyarrow.array(np.full(length, episode)),
            "index": pyarrow.array(frames + 4 * episode),
            "task_index": pyarrow.array(np.zeros(length, np.int64)),
            "next.reward": pyarrow.array(frames.astype(np.float32)),
            "next.done": pyarrow.array(frames == length - 1),
        }
        if success:
            columns["next.success"] = pyarrow.array((frames >= 2) & (episode == 0))
        episodes.append(pyarrow.table(columns))
    feature = {"dtype": "float32", "shape": [2], "names": {"motors": ["pan", "lift"]}}
    single = {
        name: {"dtype": dtype, "shape": [1], "names": None}
        for name, dtype in [
            *(("timestamp", "float32"), ("next.reward", "float32"), ("next.done", "bool")),
            *((n, "int64") for n in ("frame_index", "episode_index", "index", "task_index")),
            *([("next.success", "bool")] if success else []),
        ]
    }
    camera = {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    info = {
        "codebase_version": version,
        "robot_type": "so100",
        "total_episodes": 2,
        "total_frames": 7,
        "chunks_size": 1000,
        "fps": 50,
        "features": {
            "observation.state": feature,
            "action": {**feature, "names": ["pan", "lift"]},
            "observation.images.top": camera,
            **single,
        },
        **changes,
    }
    data = folder / "data" / "chunk-000"
    data.mkdir(parents=True)
    (folder / "meta").mkdir()
    (folder / "meta" / "info.json").write_text(json.dumps(info), encoding="utf-8")
    if version.startswith("v2"):
        for k, table in enumerate(episodes):
            parquet.write_table(table, data / f"episode_{k:06d}.parquet")
    else:
        parquet.write_table(pyarrow.concat_tables(episodes), data / "file-000.parquet")
    return folder
