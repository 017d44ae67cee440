"""New local datasets, complete or not at all."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import minari
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.namespace import create_namespace, list_local_namespaces

from qgpo.envs.data import disk
from qgpo.envs.store.local import datasets_root, folder_of, split_version
from qgpo.envs.store.scratch import scratch_folder
from qgpo.envs.store.storing import size_of, store_episodes
from qgpo.envs.tasks.families import find_family
from qgpo.envs.tasks.making import as_played, make_env, quiet_mujoco

ADVICE = "set MINARI_DATASETS_PATH to a folder on another disk"
SCRATCH = ".qgpo-"
"""how the folders of unfinished datasets are named"""


def check_new_id(dataset_id: str, bundled: bool = False) -> None:
    """Raise ValueError for a malformed or existing id, and under qgpo/ unless `bundled`."""
    if split_version(dataset_id)[1] is None:
        raise ValueError(
            f"dataset id {dataset_id!r} is malformed (no version); expected 'namespace/name-vN', "
            "for example 'mine/hopper/medium-v0'"
        )
    if dataset_id.startswith("qgpo/") and not bundled:
        raise ValueError(
            f"dataset id {dataset_id!r}: ids under qgpo/ are the bundled datasets'; choose another "
            "namespace, for example mine/"
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


def put_in_place(made: Path, target: Path, replace: bool = False) -> None:
    """Rename a finished folder, whose files are closed, to its name.

    Without `replace`, a target that another process has finished in the meantime is kept.
    Raises OSError, and leaves the target as it was, where a folder cannot be renamed: Windows
    renames no folder with an open file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    previous = target.with_name(f".{target.name}.old")
    shutil.rmtree(previous, ignore_errors=True)
    if replace and target.exists():
        target.rename(previous)
    try:
        made.rename(target)
    except OSError:
        if not target.exists():
            if previous.exists():
                previous.rename(target)
            raise
        shutil.rmtree(made, ignore_errors=True)
    shutil.rmtree(previous, ignore_errors=True)


def add_dataset(made: Path, dataset_id: str, replace: bool = False) -> None:
    """Put a finished dataset in the place of its id, and add its namespace to Minari's."""
    namespace = parse_dataset_id(dataset_id)[0]
    if namespace is not None and namespace not in list_local_namespaces():
        create_namespace(namespace)
    put_in_place(made, folder_of(dataset_id), replace)


@contextlib.contextmanager
def new_dataset(dataset_id: str, bundled: bool = False) -> Iterator[None]:
    """Let Minari write a dataset into a hidden folder; add it when the block ends without error.

    An interrupted run leaves nothing under the id. Raises ValueError where `check_new_id` does.
    """
    check_new_id(dataset_id, bundled)
    root = folder_of("")
    with scratch_folder(root, SCRATCH) as scratch:
        try:
            with datasets_root(scratch):
                yield
                made = folder_of(dataset_id)
            add_dataset(made, dataset_id)
        except disk.DiskFullError:
            raise
        except OSError as error:
            free = disk.megabytes(disk.free_bytes(root))
            raise OSError(
                error.errno,
                f"dataset {dataset_id!r} could not be written in {root} ({error}; {free} free): "
                f"free some space, or {ADVICE}",
            ) from error


def write_minari(
    dataset_id: str,
    episodes: list[EpisodeBuffer],
    env_id: str | EnvSpec,
    algorithm_name: str,
    description: str,
    eval_env: EnvSpec | None = None,
    bundled: bool = False,
) -> None:
    """Store episodes as a local Minari dataset, complete or not at all.

    `eval_env` is the environment in which agents play, if it is another than the recorded one.
    Raises ValueError where `check_new_id` does, and OSError where the disk does not take the
    dataset (DiskFullError where it has too little space): the episodes are then as they were.
    """
    env = make_env(as_played(env_id))
    family = find_family(env_id=env.spec.id if env.spec else None)
    reference = family.reference if family.episodes == "recorded" else None
    check_space(dataset_id, size_of(episodes))
    with new_dataset(dataset_id, bundled), quiet_mujoco(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`eval_env` is set to None")
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
            ref_min_score=reference.minimum if reference else None,
            ref_max_score=reference.maximum if reference else None,
        )
        store_episodes(made.storage, episodes)
