"""OGBench's trajectories as a Minari dataset: episodes without rewards, with the simulator's state.

`infos` hold what rewards are labelled from, T + 1 rows each: `qpos`, `qvel` and, where an
environment has buttons, `button_states`. The metadata's entry `ogbench` says where they are from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from numpy.typing import NDArray

from qgpo.envs.rollouts.ogbench_experts import INFOS
from qgpo.envs.store.local import folder_of, open_local
from qgpo.envs.store.storing import store_episodes
from qgpo.envs.store.writing import new_dataset
from qgpo.envs.tasks.ogbench import Name, register


def as_episode(rows: Mapping[str, NDArray[Any]]) -> EpisodeBuffer:
    """OGBench's T + 1 rows of a trajectory as an episode of T steps.

    Its last action leads nowhere, and is left out. Nothing terminates, the last step is truncated.
    """
    steps = len(rows["actions"]) - 1
    return EpisodeBuffer(
        observations=rows["observations"],
        actions=rows["actions"][:-1],
        rewards=np.zeros(steps, np.float32),  # type: ignore[arg-type]
        terminations=np.zeros(steps, np.bool_),  # type: ignore[arg-type]
        truncations=np.arange(steps) == steps - 1,  # type: ignore[arg-type]
        infos={name: rows[name] for name in INFOS if name in rows},
    )


def write_trajectories(
    name: Name,
    dims: tuple[int, int],
    episodes: Iterable[EpisodeBuffer],
    about: dict[str, Any],
    made_by: tuple[str, str],
    description: str,
) -> None:
    """Store trajectories with S and A numbers per observation and action, whole or not at all.

    `about` is the metadata's entry `ogbench`, `made_by` are the algorithm and the author. Raises
    ValueError where the id is taken, ImportError without OGBench, and OSError where the disk does
    not take the dataset (DiskFullError where it has too little space).
    """
    register()
    version = about["versions"].get("ogbench")
    bounds = ((np.inf, dims[0]), (1.0, dims[1]))
    observation_space, action_space = (
        spaces.Box(-bound, bound, (size,), np.float32) for bound, size in bounds
    )
    with new_dataset(name.id, bundled=True):
        data = folder_of(name.id) / "data"
        data.parent.mkdir(parents=True)
        storage = MinariStorage.new(
            data,
            observation_space=observation_space,
            action_space=action_space,
            env_spec=gym.spec(name.trajectories.env_id),
        )
        store_episodes(storage, episodes)
        storage.update_metadata(
            {
                "dataset_id": name.id,
                "minari_version": minari.__version__,
                "author": {made_by[1]},
                "author_email": {"none"},
                "code_permalink": "none",
                "algorithm_name": made_by[0],
                "description": description,
                "requirements": [f"ogbench=={version}"] if version else [],
                "ogbench": about,
            }
        )
        open_local(name.id)
