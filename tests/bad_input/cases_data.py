"""Bad input of datasets."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from cases import (
    ARRAYS,
    LOAD,
    Case,
    arrays,
    damaged_folder,
    episodes_with,
    minari_with,
)
from factory import (
    make_dataset,
    numbered_episodes,
    write_buffers,
)
from gymnasium import spaces

from qgpo import OfflineDataset, load_dataset
from qgpo.envs.store.hdf5 import ColumnError
from qgpo.envs.store.writing import check_new_id, write_minari

DISCRETE = "…has action space Discrete(2); continuous actions (a Box with finite bounds) are …"
NUMBERED = "dataset 'test/numbered-v0'"


def observed(observations, space):
    """One episode of two steps with these observations."""
    buffer = replace(numbered_episodes((2,), (True,))[0], observations=observations)
    return load_dataset(write_buffers([buffer], observation_space=space))


CASES = [
    Case(
        LOAD,
        "an id without a version, no local version, no download",
        ValueError,
        "no version of dataset 'hopper' is in …; ids are 'namespace/name-vN', for example "
        "'mujoco/hopper/medium-v0'. Nearest ids here: …. All: `qgpo-datasets list` Ids "
        "on Minari's remote have a namespace, as mujoco/hopper/medium-v0 has",
        lambda: load_dataset("hopper", download=False),
    ),
    Case(
        LOAD,
        "a file",
        ValueError,
        "dataset 'log.npz' is a file, expected an id: pass its arrays to "
        "OfflineDataset.from_arrays, or make a Minari dataset of it by `qgpo-datasets import`",
        lambda: load_dataset("log.npz"),
    ),
    Case(
        LOAD,
        "an empty id",
        ValueError,
        "dataset id '' is malformed (…); expected 'namespace/…",
        lambda: load_dataset(""),
    ),
    Case(
        LOAD,
        "an id that is not local, without download",
        ValueError,
        "dataset 'mine/gone-v0' is not in …. Nearest ids here: …. All: `qgpo-datasets list` To "
        "fetch it: load_dataset('mine/gone-v0', download=True) or `qgpo-datasets download "
        "mine/gone-v0`",
        lambda: load_dataset("mine/gone-v0", download=False),
    ),
    Case(
        LOAD,
        "an unknown bundled id",
        ValueError,
        "dataset 'qgpo/hopper/expert-v0' is none of the bundled ones. Nearest ids here: …. All: "
        "`qgpo-datasets list`",
        lambda: load_dataset("qgpo/hopper/expert-v0"),
    ),
    Case(
        LOAD,
        "trajectories of OGBench, which have no rewards",
        ValueError,
        "dataset 'ogbench/cube-single-play-v0' holds trajectories without rewards, for "
        "goal-conditioned agents, which this package does not have: choose one of its tasks, "
        "ogbench/cube-single-play-singletask-task1-v0, …, or "
        "ogbench/cube-single-play-singletask-v0 (OGBench's default task)",
        lambda: load_dataset("ogbench/cube-single-play-v0"),
    ),
    Case(
        LOAD,
        "images of OGBench",
        ValueError,
        "dataset 'ogbench/visual-scene-play-singletask-v0' cannot be read (its observations "
        "are images, but agents learn from vectors): expected a task of trajectories with "
        "vectors, such as 'ogbench/cube-single-play-singletask-task2-v0'",
        lambda: load_dataset("ogbench/visual-scene-play-singletask-v0"),
    ),
    Case(
        LOAD,
        "trajectories of OGBench that were not generated",
        ValueError,
        "dataset 'ogbench-generated/scene-play-100k-v0' is not in …: generate it by "
        "`qgpo-datasets generate ogbench/scene-play --steps 100000`",
        lambda: load_dataset("ogbench-generated/scene-play-100k-singletask-v0"),
    ),
    Case(
        LOAD,
        "a new id among OGBench's published ones",
        ValueError,
        "dataset id 'ogbench/mine-v0': ids under ogbench/ are reserved for OGBench's published "
        "data; choose another namespace, for example mine/",
        lambda: check_new_id("ogbench/mine-v0"),
    ),
    Case(
        LOAD,
        "a half-made folder, without download",
        ValueError,
        "dataset 'test/half-v0' in … is incomplete or damaged (…); delete that folder, or pass "
        "download=True to fetch it again",
        damaged_folder,
    ),
    Case(
        LOAD,
        "an object that is not an id",
        TypeError,
        "dataset is a PosixPath, expected an OfflineDataset (to learn from), a Minari id such as "
        "'qgpo/halfcheetah/mixed-v0' or a minari.MinariDataset",
        lambda: load_dataset(Path("somewhere")),
    ),
    Case(
        LOAD,
        "an unknown storage",
        ValueError,
        "storage='disk', expected one of ['memory', 'memmap']",
        lambda: load_dataset("mine/gone-v0", storage="disk"),
    ),
    Case(
        LOAD,
        "a history of no observations",
        ValueError,
        "history=0, expected an integer from 1 to 1000",
        lambda: load_dataset("mine/gone-v0", history=0),
    ),
    Case(
        LOAD,
        "chunks of memory-mapped data",
        ValueError,
        "storage='memmap' with history=1 and chunk=4: histories and chunks are held in memory; "
        "leave storage away",
        lambda: load_dataset("mine/gone-v0", storage="memmap", chunk=4),
    ),
    Case(
        LOAD,
        "discrete actions",
        ValueError,
        DISCRETE,
        lambda: load_dataset(
            write_buffers(
                [replace(numbered_episodes((2,), (True,))[0], actions=np.array([0, 1]))],
                action_space=spaces.Discrete(2),
            )
        ),
    ),
    Case(
        LOAD,
        "unbounded actions",
        ValueError,
        NUMBERED + " has action space Box(-inf, inf, (1,), float32) with infinite bounds; finite "
        "ones are needed to scale actions. Take them from the data: box = gymnasium.spaces.Box("
        "actions.min(axis=0), actions.max(axis=0)), then OfflineDataset.from_arrays(..., "
        "action_space=box); give an environment the same bounds with "
        "gymnasium.wrappers.TransformAction(env, lambda action: action, box)",
        lambda: minari_with(action_space=spaces.Box(-np.inf, np.inf, (1,), np.float32)),
    ),
    Case(
        ARRAYS,
        "integer actions",
        ValueError,
        "dataset 'arrays' has action space Box(0, 5, (1,), int64) of int64; only continuous "
        "actions (a Box of one of float16, float32, float64) are supported. If integers "
        "represent a continuous quantity, declare floats and round in the environment",
        lambda: arrays(action_space=spaces.Box(0, 5, (1,), np.int64)),
    ),
    Case(
        ARRAYS,
        "action bounds that float32 cannot distinguish",
        ValueError,
        "dataset 'arrays' has action column 0 between 1000000.0 and 1000000.01, which float32 "
        "can hardly distinguish: record the difference from the lowest action, in a unit in "
        "which it is about 1",
        lambda: arrays(action_space=spaces.Box(1e6, 1e6 + 0.01, (1,), np.float64)),
    ),
    Case(
        LOAD,
        "observations with a part that is not a Box",
        ValueError,
        NUMBERED
        + " has observation part x of Discrete(2); only Box parts are supported. Convert it "
        "to numbers before recording",
        lambda: observed({"x": np.array([0, 1, 1])}, spaces.Dict({"x": spaces.Discrete(2)})),
    ),
    Case(
        LOAD,
        "observations that are images",
        ValueError,
        NUMBERED
        + " has observations Box(0, 255, (8, 8, 3), uint8), which are images; only vectors "
        "are supported. Encode the images first (with a pretrained network, say), and "
        "build the dataset from the codes with OfflineDataset.from_arrays",
        lambda: observed(np.zeros((3, 8, 8, 3), np.uint8), spaces.Box(0, 255, (8, 8, 3), np.uint8)),
    ),
    Case(
        LOAD,
        "observations of several dimensions",
        ValueError,
        NUMBERED + " has observation space Box(…); only one-dimensional Box observations are "
        "supported. load_dataset reads datasets with Dict observations, and agents trained "
        "on them can act in their environments; otherwise flatten observations with "
        "gymnasium.wrappers.FlattenObservation",
        lambda: observed(np.zeros((3, 2, 2)), spaces.Box(-1.0, 1.0, (2, 2), np.float64)),
    ),
    Case(
        LOAD,
        "a NaN in an observation",
        ValueError,
        NUMBERED + ": states has NaN or infinite values, first in episode 1, step 0; remove or "
        "repair that episode (minari's dataset.filter_episodes drops it)",
        lambda: episodes_with(observations=np.full((4, 2), np.nan)),
    ),
    Case(
        LOAD,
        "an infinite reward",
        ValueError,
        NUMBERED + ": rewards has NaN or infinite values, first in episode 1, step 2; …",
        lambda: episodes_with(rewards=[0.0, 0.0, math.inf]),
    ),
    Case(
        LOAD,
        "actions outside the action space",
        ValueError,
        NUMBERED + ": 3 actions lie outside the action space [-1.0, 1.0], first [2.] at transition "
        "2; record the actions as executed, or correct the dataset's action space (of arrays: "
        "from_arrays(..., action_space=gymnasium.spaces.Box(low, high, (1,))))",
        lambda: episodes_with(actions=np.full((3, 1), 2.0, np.float32)),
    ),
    Case(
        LOAD,
        "one observation too few",
        ValueError,
        NUMBERED + ", episode 1: observations has shape (3, 2), expected (4, 2) (T + 1 "
        "observations for T = 3 steps)",
        lambda: episodes_with(observations=np.zeros((3, 2))),
    ),
    Case(
        LOAD,
        "an id outside the dataset folder",
        ValueError,
        "dataset id '../x-v0' is malformed (part '..'); expected 'namespace/name-vN', for …",
        lambda: load_dataset("../x-v0"),
    ),
    Case(
        LOAD,
        "flags that are text",
        ColumnError,
        NUMBERED + ", episode 1: terminations contains no numbers, its type is text",
        lambda: episodes_with(terminations=[b"False"] * 3),
    ),
    Case(
        LOAD,
        "rewards of shape (N, 1)",
        ValueError,
        NUMBERED + ", episode 1: rewards has shape (3, 1), expected (3,) …",
        lambda: episodes_with(rewards=np.zeros((3, 1))),
    ),
    Case(
        LOAD,
        "rewards too large for float32",
        ValueError,
        NUMBERED + ", episode 1: rewards has value 1e+39, which is larger than float32 holds; …",
        lambda: episodes_with(rewards=[0.0, 0.0, 1e39]),
    ),
    Case(
        LOAD,
        "rewards that float32 cannot distinguish",
        ValueError,
        "dataset 'arrays': rewards loses digits in float32: …all rewards become 1e+09",
        lambda: arrays(rewards=np.array([1e9, 1e9 + 1.0])),
    ),
    Case(
        ARRAYS,
        "from_arrays: masked values",
        ValueError,
        "dataset 'arrays': rewards has masked values, expected a number everywhere",
        lambda: arrays(rewards=np.ma.array(np.zeros(2), mask=[True, False])),
    ),
    Case(
        LOAD,
        "a new id that already exists",
        ValueError,
        "dataset 'test/numbered-v0' already exists in …; choose another version, or delete it "
        "with `minari delete test/numbered-v0`",
        lambda: (minari_with(), check_new_id("test/numbered-v0")),
    ),
    Case(
        ARRAYS,
        "from_arrays: no transitions",
        ValueError,
        "dataset 'arrays' is empty: at least one transition is needed",
        lambda: arrays(rewards=np.zeros(0), terminations=np.zeros(0)),
    ),
    Case(
        ARRAYS,
        "from_arrays: rewards of shape (N, 1)",
        ValueError,
        "dataset 'arrays': rewards has shape (2, 1), expected (N,): pass rewards[:, 0]",
        lambda: arrays(rewards=np.zeros((2, 1))),
    ),
    Case(
        ARRAYS,
        "from_arrays: observations of one dimension",
        ValueError,
        "dataset 'arrays': observations has shape (2,), expected (N, dimensions): of one column "
        "pass observations[:, None]",
        lambda: arrays(observations=np.zeros(2)),
    ),
    Case(
        ARRAYS,
        "from_arrays: a file",
        ValueError,
        "dataset 'arrays': observations='lab.npz' is text, expected an array. Of a file, load its "
        "arrays (numpy.load for .npz) and pass each, or make a Minari dataset of it by "
        "`qgpo-datasets import`",
        lambda: OfflineDataset.from_arrays("lab.npz"),
    ),
    Case(
        ARRAYS,
        "from_arrays: arrays that are missing",
        ValueError,
        "dataset 'arrays': rewards, terminations not given, expected an array for each",
        lambda: OfflineDataset.from_arrays(np.zeros((2, 1)), np.zeros((2, 1))),
    ),
    Case(
        ARRAYS,
        "from_arrays: a list of episodes",
        ValueError,
        "dataset 'arrays': observations is a list of 2 episodes, expected one array of all steps: "
        "concatenate them, numpy.concatenate(observations). Flags mark where each episode ends",
        lambda: arrays(observations=[np.zeros((3, 1)), np.zeros((4, 1))]),
    ),
    Case(
        ARRAYS,
        "from_arrays: images",
        ValueError,
        "dataset 'arrays': observations has shape (2, 8, 8, 3), expected (N, dimensions). These "
        "are images, and agents learn from vectors. Encode the images first (with a pretrained "
        "network, say), and build the dataset from the codes with OfflineDataset.from_arrays",
        lambda: arrays(observations=np.zeros((2, 8, 8, 3))),
    ),
    Case(
        ARRAYS,
        "from_arrays: bounds in place of an action space",
        TypeError,
        "dataset 'arrays': action_space=(-2, 2) is a tuple, expected a Box: "
        "action_space=gymnasium.spaces.Box(low, high, (1,)), with numbers or arrays for low and "
        "high",
        lambda: arrays(action_space=(-2, 2)),
    ),
    Case(
        ARRAYS,
        "from_arrays: a space of other columns",
        ValueError,
        "dataset 'arrays': action_space=Box(-2.0, 2.0, (3,), float32) has shape (3,), the data "
        "have 1 action column: expected action_space=gymnasium.spaces.Box(low, high, (1,))",
        lambda: arrays(action_space=spaces.Box(-2.0, 2.0, (3,))),
    ),
    Case(
        ARRAYS,
        "write_minari: arguments exchanged",
        TypeError,
        "write_minari() was given a OfflineDataset as dataset_id and the id 'mine/arm-v0' as "
        "episodes, which are exchanged, expected the id first: write_minari('mine/arm-v0', "
        "dataset)",
        lambda: write_minari(make_dataset(), "mine/arm-v0"),
    ),
    Case(
        ARRAYS,
        "from_arrays: text",
        ValueError,
        "dataset 'arrays': actions are not numbers (…)",
        lambda: arrays(actions=[["left"], ["right"]]),
    ),
    Case(
        ARRAYS,
        "from_arrays: flags of another length",
        ValueError,
        "dataset 'arrays': terminations has shape (3,), expected (2,)",
        lambda: arrays(terminations=np.zeros(3)),
    ),
    Case(
        ARRAYS,
        "from_arrays: flags with values other than 0 and 1",
        ValueError,
        "dataset 'arrays': truncations has value …2…, expected False or True",
        lambda: arrays(truncations=np.array([0, 2])),
    ),
    Case(
        ARRAYS,
        "from_arrays: next_observations of another length",
        ValueError,
        "dataset 'arrays': next_observations has shape (3, 1), expected (2, dimensions)",
        lambda: arrays(next_observations=np.zeros((3, 1))),
    ),
    Case(
        ARRAYS,
        "from_arrays: rows and columns exchanged",
        ValueError,
        "dataset 'arrays': observations has shape (3, 2), expected (2, dimensions): rows and "
        "columns are exchanged, observations.T exchanges them",
        lambda: arrays(observations=np.zeros((3, 2))),
    ),
    Case(
        ARRAYS,
        "from_arrays: a NaN",
        ValueError,
        "dataset 'arrays': observations has NaN or infinite values in 1 of 2 rows, first in row 1, "
        "column 0. Leave these rows out of all arrays, an episode then ends before them",
        lambda: arrays(observations=np.array([[0.0], [math.nan]])),
    ),
    Case(
        ARRAYS,
        "from_arrays: a word in place of next observations",
        ValueError,
        "dataset 'arrays': next_observations='next', expected an array, 'shift' or None",
        lambda: arrays(next_observations="next"),
    ),
    Case(
        ARRAYS,
        "from_arrays: final observations missing",
        ValueError,
        "dataset 'arrays': observations has 2 rows, expected 3 for 2 transitions in 1 episode "
        "(each episode's final observation included); or pass next_observations, or "
        "next_observations='shift' where they were not recorded: each is then the observation of "
        "the next row",
        lambda: arrays(next_observations=None),
    ),
    Case(
        ARRAYS,
        "from_arrays: actions outside the bounds",
        ValueError,
        "dataset 'arrays': 2 actions lie outside the action space [-1.0, 1.0], first …",
        lambda: arrays(actions=np.full((2, 1), 7.0)),
    ),
    Case(
        ARRAYS,
        "from_arrays: actions of another length",
        ValueError,
        "dataset 'arrays': actions has shape (5, 1), expected (2, dimensions)",
        lambda: arrays(actions=np.zeros((5, 1))),
    ),
    Case(
        ARRAYS,
        "action bounds with low = high",
        ValueError,
        "dataset 'arrays' has action space Box(0.0, 0.0, (1,), float32); expected low < high for "
        "every action",
        lambda: arrays(action_space=spaces.Box(0.0, 0.0, (1,), np.float32)),
    ),
    Case(
        ARRAYS,
        "episode starts that do not increase",
        ValueError,
        "dataset 'test/made/by-hand-v0': episode_starts must increase strictly from 0, got [ 0 "
        "5 5 10]",
        lambda: make_dataset(episode_starts=np.array([0, 5, 5, 10])),
    ),
    Case(
        ARRAYS,
        "concatenate: no datasets",
        ValueError,
        "concatenate() was given no datasets, expected at least one",
        lambda: OfflineDataset.concatenate([]),
    ),
    Case(
        ARRAYS,
        "concatenate: different spaces",
        ValueError,
        "datasets 'arrays' and 'test/made/by-hand-v0' cannot be concatenated: observations (1,) "
        "and (3,), actions … and …; expected the same",
        lambda: OfflineDataset.concatenate([arrays(), make_dataset()]),
    ),
    Case(
        ARRAYS,
        "an unknown reward tuning",
        ValueError,
        "reward_tuning='iql', expected one of ['none', 'locomotion', 'antmaze']",
        lambda: make_dataset().tuned_rewards("iql"),
    ),
]
