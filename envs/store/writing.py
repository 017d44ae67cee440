"""New local datasets, complete or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import minari
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.namespace import create_namespace, list_local_namespaces

from qgpo.envs.store.local import datasets_root, folder_of, split_version
from qgpo.envs.tasks.families import find_family
from qgpo.envs.tasks.making import as_played, make_env, quiet_mujoco


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
    """Raise OSError where the local folder has less free space than the bytes needed."""
    root = folder_of("")
    free = shutil.disk_usage(root).free
    if needed > free:
        raise OSError(
            f"dataset {dataset_id!r} takes {needed / 1e6:.0f} MB, {root} has {free / 1e6:.0f} MB "
            "free: free some space, or set MINARI_DATASETS_PATH"
        )


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
    # On Windows, the folder survives an error while one of its files is open.
    with tempfile.TemporaryDirectory(
        prefix=".qgpo-", dir=folder_of(""), ignore_cleanup_errors=True
    ) as scratch:
        with datasets_root(Path(scratch)):
            yield
            made = folder_of(dataset_id)
        add_dataset(made, dataset_id)


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
    Raises ValueError where `check_new_id` does.
    """
    env = make_env(as_played(env_id))
    family = find_family(env_id=env.spec.id if env.spec else None)
    reference = family.scores({}, env.spec) if family.episodes == "recorded" else None
    with new_dataset(dataset_id, bundled), quiet_mujoco(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`eval_env` is set to None")
        minari.create_dataset_from_buffers(
            dataset_id,
            episodes,
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
