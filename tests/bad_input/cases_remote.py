"""Bad input of downloads, of new datasets, and of their command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import tyro
from cases import CLI, LOAD, Case
from factory import numbered_episodes, write_buffers
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from qgpo import load_dataset
from qgpo.envs.rollouts.collecting import collect_vec_env
from qgpo.envs.store.combining import combine
from qgpo.envs.store.downloading import download
from qgpo.envs.store.remote import RemoteError
from qgpo.scripts import collect as collect_script
from qgpo.scripts import data as script

WRITE = "new datasets"


def collect(*argv: str) -> Callable[[], Any]:
    where = () if "--dataset-id" in argv else ("--dataset-id", "mine/a-v0")

    def provoke() -> None:
        Path("ppo.zip").touch()
        args = [*argv, *where, "--env-id", "Pendulum-v1", "--no-progress-bar"]
        collect_script.main(tyro.cli(collect_script.Args, args=args))

    return provoke


def data(*argv: str) -> Callable[[], Any]:
    return lambda: script.main(argv)


def written(*ids: str, **more: Any) -> tuple[str, ...]:
    for dataset_id in ids:
        write_buffers(numbered_episodes((2, 3), (True, True)), dataset_id, **more)
    return ids


def malformed_remote() -> None:
    with mock.patch.dict(os.environ, MINARI_REMOTE="farama-minari"):
        download("mine/gone-v0")


def combine_others() -> None:
    written("test/a-v0")
    written("test/b-v0", action_space=spaces.Box(-2.0, 2.0, (1,), np.float32))
    combine(("test/a-v0", "test/b-v0"), "test/both-v0")


def vector(**more: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: gym.make("Pendulum-v1", **more)])


def show_over() -> None:
    written("test/a-v0")
    Path("test-a-v0.png").touch()
    data("show", "test/a-v0")()


CASES = [
    Case(
        LOAD,
        "an id that is not local, without network",
        ValueError,
        "dataset 'mine/gone-v0' is not in … and could not be downloaded: hf://farama-minari "
        "cannot be reached (…). Check the network (MINARI_REMOTE names the remote), or copy the "
        "dataset into the local folder (MINARI_DATASETS_PATH) from a machine that has it. "
        "Nearest ids here: …",
        lambda: load_dataset("mine/gone-v0"),
    ),
    Case(
        LOAD,
        "download without network",
        RemoteError,
        "hf://farama-minari cannot be reached (…). Check the network …",
        lambda: download("mujoco/hopper/medium"),
    ),
    Case(
        LOAD,
        "an unsupported kind of remote",
        ValueError,
        "MINARI_REMOTE='farama-minari', expected hf://<organisation> or gcp://<bucket>",
        malformed_remote,
    ),
    Case(
        WRITE,
        "combine: a single dataset",
        ValueError,
        "['test/a-v0'], expected at least two datasets to combine",
        lambda: combine(written("test/a-v0"), "test/both-v0"),
    ),
    Case(
        WRITE,
        "combine: a new id without version",
        ValueError,
        "dataset id 'test/both' is malformed (no version); expected 'namespace/name-vN', for "
        "example 'mine/hopper/medium-v0'",
        lambda: combine(written("test/a-v0", "test/b-v0"), "test/both"),
    ),
    Case(
        WRITE,
        "combine: different spaces",
        ValueError,
        "datasets 'test/a-v0' and 'test/b-v0' cannot be combined: action_space … and …; expected "
        "the same",
        combine_others,
    ),
    Case(
        WRITE,
        "collect_vec_env: no steps",
        ValueError,
        "n_steps=0, expected at least 1",
        lambda: collect_vec_env(mock.Mock(), vector(), 0, 0),
    ),
    Case(
        WRITE,
        "collect_vec_env: a normaliser inside another wrapper",
        ValueError,
        "a VecNormalize is inside VecMonitor: it must be the outermost wrapper, so that "
        "unnormalised observations and rewards can be recorded",
        lambda: collect_vec_env(mock.Mock(), VecMonitor(VecNormalize(vector())), 1, 0),
    ),
    Case(
        WRITE,
        "collect_vec_env: episodes that may never end",
        ValueError,
        "environment 'Pendulum-v1' has no step limit, so episodes may never end; set one: "
        "gymnasium.make(id, max_episode_steps=1000)",
        lambda: collect_vec_env(mock.Mock(), vector(max_episode_steps=-1), 1, 0),
    ),
    Case(
        CLI,
        "data: no id",
        SystemExit,
        "error: no dataset id given, expected at least one",
        data("check"),
    ),
    Case(
        CLI,
        "data: an id that does not exist",
        SystemExit,
        "error: dataset 'mine/gone-v0' is not in …",
        data("check", "mine/gone-v0"),
    ),
    Case(
        CLI,
        "data: a picture that already exists",
        SystemExit,
        "error: test-a-v0.png exists: choose another --output, or replace it with --overwrite",
        show_over,
    ),
    Case(
        CLI,
        "data: a combination in the namespace of the bundled datasets",
        SystemExit,
        "error: dataset id 'qgpo/a-v0': ids under qgpo/ are reserved for the bundled datasets; "
        "choose another namespace, for example mine/",
        data("combine", "test/a-v0", "test/b-v0", "--dataset-id", "qgpo/a-v0"),
    ),
    Case(
        CLI,
        "collect: an id in the namespace of the bundled datasets",
        SystemExit,
        "error: dataset id 'qgpo/a-v0': ids under qgpo/ are reserved for the bundled datasets; "
        "choose another namespace, for example mine/",
        collect("--policy", "uniform", "--dataset-id", "qgpo/a-v0"),
    ),
    Case(
        CLI,
        "collect: fewer statistics files than policies",
        SystemExit,
        "error: --vecnormalize vecnormalize.pkl: expected one for each policy, 2 in all, with "
        "- for policies without VecNormalize",
        collect("--policy", "uniform", "ppo.zip", "--vecnormalize", "vecnormalize.pkl"),
    ),
    Case(
        CLI,
        "collect: more steps than fit on the disk",
        SystemExit,
        "error: dataset 'mine/a-v0': … MB are needed, … has … MB free: free some space, or set "
        "MINARI_DATASETS_PATH to a folder on another disk",
        collect("--policy", "uniform", "--n-steps", "1000000000000"),
    ),
    Case(
        CLI,
        "collect: statistics for a policy without VecNormalize",
        SystemExit,
        "error: --vecnormalize vecnormalize.pkl: uniform has no VecNormalize, expected -",
        collect("--policy", "uniform", "--vecnormalize", "vecnormalize.pkl"),
    ),
    Case(
        CLI,
        "collect: a missing statistics file",
        SystemExit,
        "error: --policy ppo.zip: statistics file 'vecnormalize.pkl' does not exist",
        collect("--policy", "ppo.zip", "--vecnormalize", "vecnormalize.pkl"),
    ),
]
