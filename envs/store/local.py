"""The local datasets: their ids, their folders, and whether each of them is complete."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from minari import MinariDataset
from minari.dataset.minari_dataset import gen_dataset_id, parse_dataset_id
from minari.storage.datasets_root_dir import get_dataset_path

from qgpo.envs.store.metadata import open_folder
from qgpo.envs.tasks.arguments import SpecError

ROOT_VARIABLE = "MINARI_DATASETS_PATH"


class DamagedDatasetError(ValueError):
    """A dataset that has a folder but not all of its data."""


def split_version(dataset_id: str) -> tuple[str, int | None]:
    """`a/b-v3` is `a/b` and 3; an id without a version has None. ValueError if malformed."""
    try:
        namespace, name, version = parse_dataset_id(dataset_id)
    except TypeError:  # Minari's answer to an id without a version
        return dataset_id, None
    except ValueError as error:
        raise ValueError(
            f"dataset id {dataset_id!r} is malformed ({error}); expected 'namespace/name-vN', "
            "for example 'mujoco/hopper/medium-v0'"
        ) from error
    return gen_dataset_id(namespace, name), version


def folder_of(dataset_id: str) -> Path:
    """The folder of a dataset, which need not exist; that of all datasets for an empty id."""
    return Path(get_dataset_path(dataset_id))


def local_ids() -> list[str]:
    """The ids of all folders with data, damaged ones too, sorted; hidden folders are skipped."""
    root = folder_of("")
    ids: list[str] = []
    for folder, names, _ in os.walk(root):
        if "data" in names and Path(folder) != root:
            ids.append(Path(folder).relative_to(root).as_posix())
            names.clear()
        names[:] = [name for name in names if not name.startswith(".")]
    return sorted(ids)


def local_versions(stem: str) -> list[int]:
    """The local versions of `namespace/name`, sorted."""
    folder = folder_of(stem)
    pattern = re.compile(re.escape(folder.name) + r"-v(\d+)")
    names = [path.name for path in folder.parent.glob(f"{folder.name}-v*") if path.is_dir()]
    return sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)


def files_in(folder: Path) -> dict[str, Path]:
    """All files below a folder, by their name relative to it, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}


def open_local(dataset_id: str) -> MinariDataset:
    """Open a local dataset that has all of its episodes.

    Raises FileNotFoundError without a folder, DamagedDatasetError where the folder cannot be
    opened or holds fewer steps than its metadata state, and ImportError where a package to read
    it is missing; SpecError for an environment that no dataset may name.
    """
    if not folder_of(dataset_id).exists():
        raise FileNotFoundError(f"dataset {dataset_id!r} is not in {folder_of('')}")
    try:
        opened = open_folder(folder_of(dataset_id) / "data")
        metadata = opened.storage.get_episode_metadata(range(opened.total_episodes))
        steps = sum(int(episode["total_steps"]) for episode in metadata)
        if opened.total_episodes > 0:
            len(opened[0].rewards)
            len(opened[-1].rewards)
    except (ImportError, SpecError):
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
    previous = os.environ.get(ROOT_VARIABLE)
    os.environ[ROOT_VARIABLE] = str(folder)
    try:
        yield
    finally:
        del os.environ[ROOT_VARIABLE]
        if previous is not None:
            os.environ[ROOT_VARIABLE] = previous
