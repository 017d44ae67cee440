"""A kind of bad input, and ways to provoke it: see `test_bad_input.py`."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from factory import (
    PAPER_LIKE,
    make_dataset,
    numbered_episodes,
    write_buffers,
)
from safetensors.torch import load, save

from qgpo import PRESETS, QGPO, OfflineDataset, load_dataset
from qgpo.experiments import documents
from qgpo.experiments.folder import RunFolder
from qgpo.scripts import evaluate as evaluate_script
from qgpo.scripts import train as train_script

LOAD, ARRAYS, MAKE = "load_dataset", "OfflineDataset", "constructor"
LEARN, ONLINE = "learn", "learn_online"
PREDICT, FILE, PLAY, CLI = "predict", "load", "evaluate", "command line"


@dataclass(frozen=True)
class Case:
    """One kind of bad input."""

    where: str
    what: str
    error: type[BaseException]
    message: str
    provoke: Callable[[], Any]

    def matches(self, text: str) -> bool:
        pattern = ".*".join(re.escape(part) for part in self.message.split("…"))
        return re.fullmatch(pattern, " ".join(text.split()), re.DOTALL) is not None


@lru_cache
def agent() -> QGPO:
    return QGPO(PAPER_LIKE, device="cpu").learn(make_dataset())


def learn(**more: Any) -> QGPO:
    return QGPO(PAPER_LIKE, device="cpu").learn(**{"dataset": make_dataset(), **more})


def arrays(**changes: Any) -> OfflineDataset:
    """Two transitions of one dimension each, with something changed."""
    good: dict[str, Any] = {
        "observations": np.zeros((2, 1)),
        "next_observations": np.zeros((2, 1)),
        "actions": np.zeros((2, 1)),
        "rewards": np.zeros(2),
        "terminations": np.array([False, True]),
    }
    return OfflineDataset.from_arrays(**{**good, **changes})


def minari_with(**more: Any) -> Any:
    return load_dataset(write_buffers(numbered_episodes((2,), (True,)), **more))


def episodes_with(**changes: Any) -> Any:
    buffers = numbered_episodes((2, 3), (True, True))
    return load_dataset(write_buffers([buffers[0], replace(buffers[1], **changes)]))


def config(**changes: Any) -> Callable[[], Any]:
    return lambda: replace(PRESETS["laptop"], **changes)


def predict(observation: Any) -> Callable[[], Any]:
    return lambda: agent().predict(observation)


def predict_with(**attributes: Any) -> None:
    one = QGPO(PAPER_LIKE, device="cpu").learn(make_dataset())
    for name, value in attributes.items():
        setattr(one, name, value)
    one.predict(np.zeros(3))


def saved(change: Callable[[dict[str, bytes]], Any] | None = None, tail: bytes = b"") -> Path:
    """A checkpoint with its members changed."""
    path = Path("agent.zip")
    agent().save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if change is not None:
        change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    path.write_bytes(path.read_bytes() + tail)
    return path


def loaded(change: Callable[[dict[str, bytes]], Any] | None = None, tail: bytes = b"") -> Any:
    return QGPO.load(saved(change, tail), device="cpu")


def header(**changes: Any) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        content = {**json.loads(members["checkpoint.json"]), **changes}
        members["checkpoint.json"] = json.dumps(content).encode()

    return change


def tensor(value: Callable[[Any], Any]) -> Callable[[dict[str, bytes]], None]:
    """Replace the critic's first bias, or drop it where the value is None."""

    def change(members: dict[str, bytes]) -> None:
        tensors = load(members["modules.safetensors"])
        name = "critic.q1.0.bias" if "critic.q1.0.bias" in tensors else sorted(tensors)[0]
        new = value(tensors.pop(name))
        members["modules.safetensors"] = save(tensors if new is None else {**tensors, name: new})

    return change


def truncated() -> Any:
    path = saved()
    path.write_bytes(path.read_bytes()[:-1000])
    return QGPO.load(path, device="cpu")


def held_folder() -> None:
    with RunFolder(Path("run")).locked(), RunFolder(Path("run")).locked():
        pass


def damaged_folder() -> None:
    folder = Path("minari/test/half-v0/data")
    folder.mkdir(parents=True)
    (folder / "main_data.hdf5").write_bytes(b"half")
    load_dataset("test/half-v0", download=False)


def train(*argv: str) -> Callable[[], Any]:
    return lambda: train_script.main(train_script.parse([*argv, "--no-progress-bar"]))


def run_folder() -> None:
    folder = RunFolder(Path("run"))
    folder.path.mkdir()
    args = {"dataset_id": "test/a-v0", "agent": "QGPO", "preset": "laptop", "seed": 0}
    about = {**args, "config": PRESETS["laptop"].__dict__, "guidance_scales": []}
    documents.write(folder.config, {"args": about})


def train_in_run(*argv: str) -> Callable[[], Any]:
    def provoke() -> None:
        run_folder()
        train(*argv)()

    return provoke


def train_over(name: str, *argv: str) -> Callable[[], Any]:
    """Train in a folder that holds a file which is no run's."""

    def provoke() -> None:
        Path("other").mkdir()
        Path("other", name).write_text('{"name": "something else"}', encoding="utf-8")
        train("--run-dir", "other", *argv)()

    return provoke


def play(*argv: str) -> Callable[[], Any]:
    def provoke() -> None:
        saved()
        run = [] if "--run" in argv else ["--run", "agent.zip"]
        args = evaluate_script.tyro.cli(evaluate_script.Args, args=[*run, *argv, "--device", "cpu"])
        evaluate_script.main(args)

    return provoke


def prepared(**changes: Any) -> QGPO:
    one = QGPO(PAPER_LIKE, device="cpu")
    one.prepare(make_dataset(**changes))
    return one


def exploding() -> QGPO:
    return learn_with(critic_learning_rate=math.inf)


def learn_with(**changes: Any) -> QGPO:
    return QGPO(replace(PAPER_LIKE, **changes), device="cpu").learn(make_dataset())


def resume_on(dataset: OfflineDataset) -> Any:
    one = QGPO(PAPER_LIKE, device="cpu")
    one.learn(make_dataset(), lambda scope, _: scope["self"].num_timesteps < 2)
    return one.learn(dataset, reset_num_timesteps=False, allow_other_dataset=True)


def commented(path: Path) -> Path:
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"cos"
    return path


def register_walk() -> None:
    """An environment in the spaces of the made datasets."""
    from agent_tester import Walk

    if "test/Walk-v0" not in gym.registry:
        gym.register("test/Walk-v0", Walk, max_episode_steps=5)
