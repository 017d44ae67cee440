"""The local datasets: their ids, their folders, and whether what is in them is whole."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import minari
from minari import MinariDataset
from minari.dataset.minari_dataset import gen_dataset_id, parse_dataset_id
from minari.namespace import create_namespace, list_local_namespaces
from minari.storage.datasets_root_dir import get_dataset_path

ROOT_VARIABLE = "MINARI_DATASETS_PATH"


class DamagedDatasetError(ValueError):
    """A dataset whose folder is there and whose data are not, or not all of them."""


def split_version(dataset_id: str) -> tuple[str, int | None]:
    """`a/b-v3` is `a/b` and 3; an id that names no version has None. ValueError if malformed."""
    try:
        namespace, name, version = parse_dataset_id(dataset_id)
    except TypeError:  # Minari's answer to an id without version
        return dataset_id, None
    except ValueError as error:
        raise ValueError(
            f"dataset id {dataset_id!r} is malformed ({error}); expected 'namespace/name-vN', "
            "for example 'mujoco/hopper/medium-v0'"
        ) from error
    return gen_dataset_id(namespace, name), version


def folder_of(dataset_id: str) -> Path:
    """Where the dataset is, or would be."""
    return Path(get_dataset_path(dataset_id))


def local_ids() -> list[str]:
    """Ids of all folders with data, in order; damaged ones too. Hidden folders are nobody's."""
    root = Path(get_dataset_path())
    found: list[str] = []
    for folder, names, _ in os.walk(root):
        if "data" in names and Path(folder) != root:
            found.append(Path(folder).relative_to(root).as_posix())
            names.clear()
        names[:] = [name for name in names if not name.startswith(".")]
    return sorted(found)


def local_versions(stem: str) -> list[int]:
    """The versions of `namespace/name` that are there, in order."""
    folder = folder_of(stem)
    pattern = re.compile(re.escape(folder.name) + r"-v(\d+)")
    names = [path.name for path in folder.parent.glob(f"{folder.name}-v*") if path.is_dir()]
    return sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)


def open_whole(dataset_id: str) -> MinariDataset:
    """Open a local dataset whose every episode is there.

    Raises FileNotFoundError where there is no folder, DamagedDatasetError where it cannot be
    opened or holds fewer steps than its metadata promise, and ImportError where only a package
    to read it is missing.
    """
    folder = folder_of(dataset_id)
    if not folder.exists():
        raise FileNotFoundError(f"dataset {dataset_id!r} is not in {get_dataset_path('')}")
    try:
        opened = minari.load_dataset(dataset_id)
        metadata = opened.storage.get_episode_metadata(range(opened.total_episodes))
        steps = sum(int(episode["total_steps"]) for episode in metadata)
        if opened.total_episodes > 0:
            len(opened[0].rewards)
            len(opened[opened.total_episodes - 1].rewards)
    except ImportError:
        raise
    except Exception as error:
        raise DamagedDatasetError(str(error)) from error
    if steps != opened.total_steps:
        raise DamagedDatasetError(
            f"its episodes have {steps} steps, its metadata say {opened.total_steps}"
        )
    return opened


@contextlib.contextmanager
def datasets_root(folder: Path) -> Iterator[None]:
    """Let Minari work in another folder than the user's."""
    before = os.environ.get(ROOT_VARIABLE)
    os.environ[ROOT_VARIABLE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[ROOT_VARIABLE]
        else:
            os.environ[ROOT_VARIABLE] = before


def new_dataset_path(dataset_id: str, bundled: bool = False) -> Path:
    """The folder of a dataset yet to be written.

    Raises ValueError for ids that are malformed or taken, and for those under qgpo/ unless it is
    one of the `bundled` datasets.
    """
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
    return target


def put_in_place(made: Path, dataset_id: str, replace: bool = False) -> None:
    """Give a finished folder the place of its id.

    Where another process was faster, its dataset stays, unless `replace` is set.
    """
    namespace = parse_dataset_id(dataset_id)[0]
    target = folder_of(dataset_id)
    if namespace is not None and namespace not in list_local_namespaces():
        create_namespace(namespace)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if replace and target.exists():
        target.rename(aside)
    try:
        made.rename(target)
    except OSError:
        if not target.exists():
            if aside.exists():
                aside.rename(target)
            raise
        shutil.rmtree(made, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)
