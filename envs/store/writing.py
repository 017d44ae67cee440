"""New local datasets, complete or not at all."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.namespace import create_namespace, list_local_namespaces
from numpy.typing import NDArray

from qgpo.envs.data import disk
from qgpo.envs.data.columns import flags, numbers
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.store.local import datasets_root, folder_of, split_version
from qgpo.envs.store.scratch import scratch_folder, target_lock
from qgpo.envs.store.storing import size_of, store_episodes
from qgpo.envs.tasks.families import find_family
from qgpo.envs.tasks.making import as_played, make_env, quiet_mujoco
from qgpo.envs.tasks.ogbench import PUBLISHED
from qgpo.envs.tasks.spaces import same_box

ADVICE = "set MINARI_DATASETS_PATH to a folder on another disk"
RECORD = "download.json"
"""what a download leaves beside the data: the remote, and the digest of every file"""
SCRATCH = ".qgpo-"
"""how the folders of unfinished datasets are named"""


def check_new_id(dataset_id: str, bundled: bool = False) -> None:
    """Raise ValueError for a malformed or existing id, and for one of the package's own data.

    These are under qgpo/, and under ogbench/, which has published data alone; `bundled` allows
    them.
    """
    if split_version(dataset_id)[1] is None:
        raise ValueError(
            f"dataset id {dataset_id!r} is malformed (no version); expected 'namespace/name-vN', "
            "for example 'mine/hopper/medium-v0'"
        )
    if dataset_id.startswith("qgpo/") and not bundled:
        raise ValueError(
            f"dataset id {dataset_id!r}: ids under qgpo/ are reserved for the bundled datasets; "
            "choose another namespace, for example mine/"
        )
    if dataset_id.startswith(f"{PUBLISHED}/") and not bundled:
        raise ValueError(
            f"dataset id {dataset_id!r}: ids under {PUBLISHED}/ are reserved for OGBench's "
            "published data; choose another namespace, for example mine/"
        )
    target = folder_of(dataset_id)
    if target.exists():
        raise ValueError(
            f"dataset {dataset_id!r} already exists in {target}; choose another version, or "
            f"delete it with `minari delete {dataset_id}`"
        )


def check_space(dataset_id: str, needed: float) -> None:
    """Raise DiskFullError where the local folder has less free space than the bytes needed."""
    disk.check_space(folder_of(""), needed, f"dataset {dataset_id!r}", ADVICE)


@contextlib.contextmanager
def reserved_space(dataset_id: str, needed: int) -> Iterator[None]:
    """Keep so many bytes of the local folder's disk free for a dataset while episodes are played.

    Raises DiskFullError where there are fewer.
    """
    root = folder_of("")
    with scratch_folder(root, SCRATCH) as scratch, open(scratch / "reserved", "wb") as file:
        disk.allocate(file, needed, root, f"dataset {dataset_id!r}", ADVICE)
        yield


@contextlib.contextmanager
def sole_writer(dataset_id: str) -> Iterator[None]:
    """Let one process at a time write the dataset of that id; others wait, and say so.

    A dataset that a killed process was about to replace is back in its place.
    """
    with target_lock(folder_of(dataset_id), f"writing dataset {dataset_id!r}"):
        target, previous = folder_of(dataset_id), _previous(dataset_id)
        if previous.exists() and not target.exists():
            previous.rename(target)
        yield


def restore(dataset_id: str) -> None:
    """Put a dataset back that a killed process was about to replace, if there is one."""
    if _previous(dataset_id).exists() and not folder_of(dataset_id).exists():
        with sole_writer(dataset_id):
            return


def add_dataset(made: Path, dataset_id: str, replace: bool = False) -> Path | None:
    """Put a finished dataset in the place of its id, and add its namespace to Minari's.

    Its files must be closed, and the caller be the `sole_writer`. With `replace`, an earlier
    dataset is removed once the new one is in its place; one that was not downloaded is kept in
    the folder that is returned. Raises ValueError where there is one and `replace` is not set, and
    OSError, and leaves the earlier one as it was, where a folder cannot be renamed: Windows
    renames no folder with an open file.
    """
    target, previous = folder_of(dataset_id), _previous(dataset_id)
    if target.exists() and not replace:
        raise ValueError(f"dataset {dataset_id!r} was created in {target} while it was written")
    namespace = parse_dataset_id(dataset_id)[0]
    if namespace is not None and namespace not in list_local_namespaces():
        try:
            create_namespace(namespace)
        except ValueError:  # another process was faster
            if namespace not in list_local_namespaces():
                raise
    target.parent.mkdir(parents=True, exist_ok=True)
    _retire(previous)  # left by a process that was killed after it had replaced it
    if target.exists():
        target.rename(previous)
    try:
        made.rename(target)
    except OSError:
        if previous.exists() and not target.exists():
            previous.rename(target)
        raise
    return _retire(previous)


def _retire(previous: Path) -> Path | None:
    """Remove a dataset that was replaced; keep it under another name if it was not downloaded."""
    if not previous.exists() or (previous / RECORD).exists():
        shutil.rmtree(previous, ignore_errors=True)
        return None
    name = previous.name.replace("previous", "replaced", 1)
    return previous.rename(previous.with_name(f"{name}-{secrets.token_hex(4)}"))


def _previous(dataset_id: str) -> Path:
    """Where a dataset is while another takes its place."""
    target = folder_of(dataset_id)
    return target.with_name(f".qgpo-previous-{target.name}")


@contextlib.contextmanager
def new_dataset(dataset_id: str, bundled: bool = False) -> Iterator[None]:
    """Let Minari write a dataset into a hidden folder; add it when the block ends without error.

    An interrupted run leaves nothing under the id. Raises ValueError where `check_new_id` does.
    """
    check_new_id(dataset_id, bundled)
    root = folder_of("")
    with sole_writer(dataset_id), scratch_folder(root, SCRATCH) as scratch:
        check_new_id(dataset_id, bundled)  # another process may have written it meanwhile
        try:
            with datasets_root(scratch):
                yield
                made = folder_of(dataset_id)
            add_dataset(made, dataset_id)
        except disk.DiskFullError:
            raise
        except OSError as error:
            what = f"dataset {dataset_id!r} could not be written"
            raise disk.not_written(error, what, root, ADVICE) from error


def check_episodes(
    dataset_id: str, episodes: Sequence[EpisodeBuffer], env: gym.Env[Any, Any]
) -> None:
    """Raise ValueError where an episode does not fit the environment that it is said to be from."""
    if not episodes:
        raise ValueError(f"dataset {dataset_id!r}: no episodes to write, expected at least one")
    for index, episode in enumerate(episodes):
        of, length = f"dataset {dataset_id!r}, episode {index}", len(episode.rewards)
        why = f" ({length} steps of {env.spec.id if env.spec else env})"
        _check_part(
            of, "observations", episode.observations, env.observation_space, length + 1, why
        )
        _check_part(of, "actions", episode.actions, env.action_space, length, why)
        _check_finite(of, "rewards", numbers(of, "rewards", episode.rewards, (length,)))
        flags(of, "terminations", episode.terminations, (length,))
        flags(of, "truncations", episode.truncations, (length,))


def _check_part(
    of: str, name: str, values: Any, space: gym.Space[Any], rows: int, why: str
) -> None:
    if isinstance(space, spaces.Dict):
        if not isinstance(values, Mapping) or set(values) != set(space.spaces):
            raise ValueError(f"{of}: {name} has other parts than {sorted(space.spaces)}{why}")
        for key, part in space.spaces.items():
            _check_part(of, f"{name}/{key}", values[key], part, rows, why)
    elif isinstance(space, spaces.Box | spaces.Discrete):
        shape: Any = space.shape
        _check_finite(of, name, numbers(of, name, values, (rows, *shape), why))


def _check_finite(of: str, name: str, values: NDArray[np.float32]) -> None:
    odd = np.argwhere(~np.isfinite(values))
    if len(odd) > 0:
        raise ValueError(
            f"{of}, step {odd[0][0]}: {name} has value {values[tuple(odd[0])]}, expected finite "
            "numbers; remove that episode"
        )


def write_minari(
    dataset_id: str,
    episodes: OfflineDataset | Sequence[EpisodeBuffer],
    env_id: str | EnvSpec | None = None,
    algorithm_name: str = "recorded",
    description: str = "Recorded data.",
    eval_env: EnvSpec | None = None,
    bundled: bool = False,
) -> None:
    """Store a dataset, or recorded episodes, as a local Minari dataset, complete or not at all.

    An OfflineDataset is stored with its reference returns, and with the environment that it names
    unless `env_id` is given; it needs none. Episodes, as `collect` returns them, need one.
    `eval_env` is the environment in which agents play, if it is another than the recorded one.

    Raises ValueError where `check_new_id` does, and for data that do not fit the environment;
    OSError where the disk does not take the dataset (DiskFullError where it has too little space):
    the episodes are then as they were.
    """
    if not isinstance(dataset_id, str):
        swapped = isinstance(episodes, str)
        raise TypeError(
            f"write_minari() was given a {type(dataset_id).__name__} as dataset_id"
            + (f" and the id {episodes!r} as episodes, which are exchanged" if swapped else "")
            + ", expected the id first: write_minari('mine/arm-v0', dataset)"
        )
    spaces_of_data, reference = dict[str, spaces.Box](), None
    if isinstance(episodes, OfflineDataset):
        if episodes.window is not None:
            raise ValueError(
                f"dataset {dataset_id!r}: these data were loaded with {episodes.window}; load them "
                "with history=1 and chunk=1 to store them"
            )
        dataset, episodes = episodes, _episodes_of(episodes)
        env_id, reference = env_id or dataset.env_spec, dataset.reference
        spaces_of_data = {
            "observation_space": dataset.observation_space,
            "action_space": dataset.action_space,
        }
    elif env_id is None:
        raise ValueError(
            f"dataset {dataset_id!r}: env_id=None, expected the environment of the episodes; only "
            "an OfflineDataset knows its spaces without one"
        )
    env = None if env_id is None else make_env(as_played(env_id))
    if env is not None:
        _check_spec(dataset_id, env)
        _check_actions(dataset_id, spaces_of_data.get("action_space"), env)
        check_episodes(dataset_id, episodes, env)
        spaces_of_data = {}  # the environment's
        family = find_family(env_id=env.spec.id if env.spec else None)
        if reference is None and family.episodes == "recorded":
            reference = family.scores({}, env.spec)
    check_space(dataset_id, size_of(episodes))
    with new_dataset(dataset_id, bundled), quiet_mujoco(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`eval_env` is set to None|env_spec is None")
        made = minari.create_dataset_from_buffers(
            dataset_id,
            [],
            env=env,
            eval_env=eval_env,
            algorithm_name=algorithm_name,
            author="qgpo",
            author_email="none",
            code_permalink="none",
            description=description,
            **spaces_of_data,
        )
        if reference is not None:  # Minari notes it where an environment is named alone
            scale = {"ref_min_score": reference.minimum, "ref_max_score": reference.maximum}
            made.storage.update_metadata(scale)
        store_episodes(made.storage, episodes)


def _episodes_of(dataset: OfflineDataset) -> list[EpisodeBuffer]:
    """The episodes of a dataset of vectors, for Minari; views of its arrays."""
    if dataset.adapter is not None:
        raise ValueError(
            f"dataset {dataset.id!r}: its observations are vectors made of parts, which the data "
            "that it was read from still have; store those"
        )
    buffers = []
    for k, (start, length) in enumerate(
        zip(dataset.episode_starts, dataset.episode_lengths, strict=True)
    ):
        rows, states = slice(start, start + length), slice(start + k, start + k + length + 1)
        columns: dict[str, Any] = {
            name: getattr(dataset, name)[rows]
            for name in ("actions", "rewards", "terminations", "truncations")
        }
        buffers.append(EpisodeBuffer(id=k, observations=dataset.states[states], **columns))
    return buffers


def _check_spec(dataset_id: str, env: gym.Env[Any, Any]) -> None:
    """Raise ValueError where no file can say how the environment is made."""
    try:
        env.spec.to_json() if env.spec else None
    except ValueError as error:
        raise ValueError(
            f"dataset {dataset_id!r}: a file cannot hold how its environment is made ({error}). "
            'Register it by name, gymnasium.register(id, entry_point="module:Class"), and give it '
            "plain arguments"
        ) from error


def _check_actions(dataset_id: str, of_data: spaces.Box | None, env: gym.Env[Any, Any]) -> None:
    """Raise ValueError where a dataset has other bounds of actions than its environment."""
    of_env = env.action_space
    if of_data is None or not isinstance(of_env, spaces.Box) or same_box(of_data, of_env):
        return
    raise ValueError(
        f"dataset {dataset_id!r}: its actions are of {of_data}, those of "
        f"{env.spec.id if env.spec else env} of {of_env}: make it with action_space= of the "
        "environment"
    )
