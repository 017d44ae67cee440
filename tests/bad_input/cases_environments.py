"""Bad input of environments that files describe."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from cases import CLI, LOAD, PLAY, Case, agent, play, saved, train
from cases_plans import key
from factory import make_dataset, numbered_episodes, write_buffers
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from gymnasium.wrappers import NormalizeObservation

from qgpo import evaluate, load_dataset
from qgpo.envs.play.snapshots import check_restorable
from qgpo.envs.store.local import folder_of
from qgpo.envs.tasks.arguments import SpecError
from qgpo.experiments import documents

NAME = "test/numbered-v0"


def recorded(text: str) -> str:
    """A dataset of numbered episodes whose metadata have this text as their environment."""
    source = write_buffers(numbered_episodes((2,), (True,)), NAME)
    source.storage.update_metadata({"env_spec": text})
    return NAME


def spec(**changes: Any) -> EnvSpec:
    return dataclasses.replace(gym.spec("Hopper-v5"), **changes)


def trained(changed: EnvSpec) -> Callable[[], Any]:
    """train.py on a dataset of that environment."""
    return lambda: train("--dataset-id", recorded(changed.to_json()), "--n-episodes", "1")()


class Hiding(gym.Env[Any, Any]):
    """Counts its steps in an object of its own."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self) -> None:
        self.counter = iter(range(1000))

    def reset(self, **_: Any) -> Any:
        return np.zeros(1), {}

    def step(self, action: Any) -> Any:
        return np.array([next(self.counter)]), 0.0, False, False, {}


def without_spaces() -> None:
    recorded(EnvSpec("Gone-v0", entry_point="gone:Env").to_json())
    path = folder_of(NAME) / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata["action_space"]
    path.write_text(json.dumps(metadata))
    load_dataset(NAME)


def played_run() -> None:
    documents.write(Path("config.json"), {"args": {"env_id": "mine:Env-v0"}, "measured": {}})
    saved().rename("checkpoint.zip")
    play("--run", ".")()


CASES = [
    Case(
        LOAD,
        "an env_spec that is not a spec",
        SpecError,
        f"dataset '{NAME}': env_spec '{{\"id\": 5}}' cannot be read (id=5, expected a string)",
        lambda: load_dataset(recorded('{"id": 5}')),
    ),
    Case(
        LOAD,
        "no spaces, and an unregistered environment",
        SpecError,
        f"dataset '{NAME}' does not state its spaces, and environment 'Gone-v0' cannot be made: it "
        "is not registered, …",
        without_spaces,
    ),
    Case(
        CLI,
        "train: the data's environment is not registered",
        SystemExit,
        "error: environment 'Gone-v0' cannot be made: it is not registered, and code that a "
        "dataset or a checkpoint names is never imported. Name the module that registers it "
        "yourself with --env-id module:Gone-v0, put its folder on PYTHONPATH, import that "
        "module first in Python, or train without evaluation (--n-episodes 0)",
        trained(EnvSpec("Gone-v0", entry_point="gone:Env")),
    ),
    Case(
        CLI,
        "train: the data were recorded with a user-defined wrapper",
        SystemExit,
        "error: environment 'Hopper-v5' was recorded with the wrapper Mine (mine:Mine), which "
        "cannot be recreated; without it, agents would play in a different environment. Name "
        "an environment that has the wrapper with --env-id, pass a wrapped environment to "
        "evaluate(), or train without evaluation (--n-episodes 0)",
        trained(spec(additional_wrappers=(WrapperSpec("Mine", "mine:Mine", {}),))),
    ),
    Case(
        CLI,
        "train: the data were recorded with running statistics",
        SystemExit,
        "error: environment 'Hopper-v5' was recorded with the wrapper NormalizeObservation "
        "(…), which cannot be recreated (its statistics are not recorded); …",
        trained(spec(additional_wrappers=(NormalizeObservation.wrapper_spec(epsilon=1e-8),))),
    ),
    Case(
        CLI,
        "train: an argument that the installed environment does not accept",
        SystemExit,
        "error: environment 'Hopper-v5' cannot be made with the arguments {'reset_target': "
        "True} (TypeError: …). Name another one with --env-id, or train without evaluation "
        "(--n-episodes 0)",
        trained(spec(kwargs={"reset_target": True})),
    ),
    Case(
        CLI,
        "train: an argument that may name a file",
        SystemExit,
        "error: environment 'Hopper-v5' has the argument xml_file='robots/a.xml', and "
        "'robots/a.xml' may name a file or code, which is never taken from a dataset or a "
        "checkpoint. Register an environment that has this argument (gymnasium.register) and "
        "name it with --env-id, or pass an environment object to evaluate()",
        trained(spec(kwargs={"xml_file": "robots/a.xml"})),
    ),
    Case(
        PLAY,
        "a wrapper argument that is too large",
        SpecError,
        'environment "Hopper-v5\'s wrapper MaxAndSkipObservation" has the argument '
        "skip=1000000000, expected an integer of at most 1000",
        lambda: evaluate(
            agent(),
            spec(
                additional_wrappers=(gym.wrappers.MaxAndSkipObservation.wrapper_spec(skip=10**9),)
            ),
        ),
    ),
    Case(
        PLAY,
        "a dataset whose environment cannot be stored in a file",
        SpecError,
        "dataset 'test/made/by-hand-v0': environment 'Hopper-v5' has the argument "
        "goal=array(…), which cannot be stored in a file (…): register an environment that has "
        "this argument (gymnasium.register), and use its spec",
        lambda: make_dataset(env_spec=spec(kwargs={"goal": np.ones(3)})),
    ),
    Case(
        PLAY,
        "OGBench's environment with another goal in every episode",
        ValueError,
        "environment 'cube-single-v0' cannot be used: its goal changes in every episode, and "
        "agents do not observe it: use one of its tasks, cube-single-singletask-task1-v0 to "
        "cube-single-singletask-task5-v0 (cube-single-singletask-v0 is OGBench's default task)",
        lambda: evaluate(agent(), "cube-single-v0"),
    ),
    Case(
        PLAY,
        "OGBench's environment with images",
        ValueError,
        "environment 'visual-scene-singletask-task1-v0' cannot be used: its observations are "
        "images, and agents need vectors: use scene-singletask-task1-v0",
        lambda: evaluate(agent(), "visual-scene-singletask-task1-v0"),
    ),
    Case(
        PLAY,
        "restoring a state in an environment with hidden state",
        ValueError,
        "environment 'Hiding' cannot be set to a state: step 1 after restoring differs. Part "
        "of its state is neither a plain attribute nor in a MuJoCo simulation (supported are "
        "MuJoCo, classic control, Gymnasium-Robotics' and OGBench's environments)",
        lambda: check_restorable(Hiding(), Hiding()),
    ),
    Case(
        CLI,
        "evaluate: an OGBench dataset name as environment",
        SystemExit,
        "error: environment 'cube-single-play-singletask-task2-v0' cannot be used: that is the "
        "name of a dataset: use cube-single-singletask-task2-v0",
        play("--env-id", "cube-single-play-singletask-task2-v0"),
    ),
    Case(
        CLI,
        "evaluate: a module that cannot be imported",
        SystemExit,
        "error: environment 'gone:Env-v0' cannot be made: module 'gone' cannot be imported "
        "(ModuleNotFoundError: …). The folder of gone.py must be on PYTHONPATH; where it is this "
        "one: PYTHONPATH=. … --env-id gone:…",
        play("--env-id", "gone:Env-v0"),
    ),
    Case(
        CLI,
        "evaluate: a run that names a module",
        SystemExit,
        "error: config.json: env_id='mine:Env-v0' names a module, and modules named in files "
        "are never imported: give it yourself, --env-id mine:Env-v0",
        played_run,
    ),
    key(
        "an environment id with a module",
        'env_id = "mine:Env-v0"',
        "a plan: env_id='mine:Env-v0' names a module, and modules named in files are never "
        "imported: train and evaluate there with --env-id mine:Env-v0",
    ),
]
