"""Datasets are written, converted and fetched where no file may be open that is renamed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from factory import REMOTE_ID, numbered_episodes, write_buffers
from minari.data_collector import EpisodeBuffer

from qgpo import load_dataset
from qgpo.envs import write_minari
from qgpo.envs.store.combining import combine
from qgpo.envs.store.downloading import download

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def open_below(folder):
    """The files at or below a path that this process has open or mapped."""
    paths = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    maps = Path("/proc/self/maps").read_text().splitlines()
    paths += [Path(line.split(maxsplit=5)[5]) for line in maps if len(line.split()) > 5]
    return [path for path in paths if Path(folder).resolve() in (path, *path.parents)]


@pytest.fixture(autouse=True)
def windows(monkeypatch):
    """Renaming as on Windows: no open file, and nothing onto an existing folder."""
    rename, open_file = os.rename, os.open

    def guarded(source, target, **more):
        for path in (source, target):
            if open_below(path):
                raise PermissionError(13, "is being used by another process", str(path))
        if Path(target).exists():
            raise FileExistsError(17, "already exists", str(target))
        rename(source, target, **more)

    def opened(path, *args, **more):
        if not isinstance(path, int) and Path(os.fsdecode(path)).is_dir():
            raise PermissionError(13, "is a directory", str(path))
        return open_file(path, *args, **more)

    monkeypatch.setattr(os, "rename", guarded)
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr("shutil._use_fd_functions", False)  # it would open folders


def change(source):
    """Other contents, here a space at the end of the metadata."""
    with open(Path(source.storage.data_path) / "metadata.json", "a") as file:
        file.write(" ")


def test_written_and_combined():
    still = EpisodeBuffer(
        observations=np.tile([1.0, 0.0, 0.0], (3, 1)),
        actions=np.zeros((2, 1)),
        rewards=[0.0, 0.0],
        terminations=[False, False],
        truncations=[False, True],
    )
    for name in ("test/a-v0", "test/b-v0"):
        write_minari(name, [still], "Pendulum-v1", "none", "still")
    combine(("test/a-v0", "test/b-v0"), "test/both-v0", progress_bar=False)
    assert len(load_dataset("test/both-v0", download=False)) == 4


def test_mapped_and_converted_again_after_a_change():
    for length in (3, 4):
        source = write_buffers(numbered_episodes((length,), (True,)), f"test/a{length}-v0")
        dataset = load_dataset(source, storage="memmap", progress_bar=False)
        assert len(load_dataset(source, storage="memmap", progress_bar=False)) == length
    del dataset
    change(source)
    assert len(load_dataset(source, storage="memmap", progress_bar=False)) == 4


def test_a_folder_in_use_is_kept_and_named():
    source = write_buffers(numbered_episodes((3,), (True,)))
    dataset = load_dataset(source, storage="memmap", progress_bar=False)
    change(source)
    with pytest.raises(OSError, match=r"being used by another process.*storage='memory'"):
        load_dataset(source, storage="memmap", progress_bar=False)
    assert dataset.rewards.tolist() == [0.5, 1.5, 2.5]


def test_fetched_and_repaired(hub):
    dataset = download(REMOTE_ID)
    path = Path(dataset.storage.data_path) / "metadata.json"
    path.write_text(path.read_text().replace('"total_steps": 5', '"total_steps": 6'))
    assert len(load_dataset(REMOTE_ID)) == 5
