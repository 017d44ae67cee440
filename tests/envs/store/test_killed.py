"""SIGKILL at each step of a conversion and of writing: the next one finishes, nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from factory import make_dataset, mapped, numbered_episodes, write_buffers
from minari.data_collector import EpisodeBuffer

from qgpo import load_dataset
from qgpo.envs import write_minari
from qgpo.envs.data import memmap
from qgpo.envs.store import loading, writing
from qgpo.envs.store.local import folder_of

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]


def killed_at(owner, name, work, monkeypatch, after: bool) -> None:
    """Do the work in a process that is killed before, or after, its first call of that name."""
    original = getattr(owner, name)

    def kill(*args, **more):
        if after:
            original(*args, **more)
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(owner, name, kill)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"{name} was not reached"


def convert():
    return load_dataset("test/numbered-v0", False, "memmap", progress_bar=False)


@pytest.mark.parametrize(
    ("owner", "name", "after", "stale"),
    [
        (memmap, "write_arrays", False, False),
        (memmap._ArrayFile, "append", True, True),
        (memmap, "write_index", False, True),
        (memmap, "write_index", True, False),
        (loading, "hash_files", False, False),
        (Path, "rename", False, False),
        (Path, "rename", True, False),
        (Path, "rename", True, True),
        (shutil, "rmtree", False, False),
        (shutil, "rmtree", True, True),
    ],
)
def test_a_killed_conversion(owner, name, after, stale, monkeypatch):
    source = write_buffers(numbered_episodes((3, 2), (True, False)))
    expected = load_dataset(source).fingerprint
    if stale:
        convert()
        with open(Path(source.storage.data_path) / "metadata.json", "a") as file:
            file.write(" ")
    killed_at(owner, name, convert, monkeypatch, after)
    assert convert().fingerprint == expected
    assert sorted(path.name for path in folder_of(source.id).iterdir()) == ["data", "memmap"]


@pytest.mark.parametrize(
    ("name", "after"),
    [("store_episodes", False), ("store_episodes", True), ("add_dataset", True)],
)
def test_a_killed_writer(name, after, monkeypatch):
    still = EpisodeBuffer(
        observations=np.tile([1.0, 0.0, 0.0], (3, 1)),
        actions=np.zeros((2, 1)),
        rewards=[0.0, 0.0],
        terminations=[False, False],
        truncations=[False, True],
    )

    def write():
        write_minari("test/still-v0", [still], "Pendulum-v1", "none", "still")

    killed_at(writing, name, write, monkeypatch, after)
    if not folder_of("test/still-v0").exists():
        write()
    assert len(load_dataset("test/still-v0", download=False)) == 2
    hidden = {path.name for path in folder_of("").glob(".*")}
    assert hidden <= {".qgpo-locks"}


def test_a_map_that_is_in_use_outlives_the_next_conversion():
    dataset = mapped(make_dataset())
    with open(folder_of(dataset.id) / "data" / "metadata.json", "a") as file:
        file.write(" ")
    load_dataset(dataset.id, False, "memmap", progress_bar=False)
    np.testing.assert_array_equal(dataset.states, make_dataset().states)
