"""Full disks: refused before the work, and no signal, no loss where that comes too late.

A limit on the size of files stands for the full disk: writes fail with an error of the system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from factory import CONFIGS, make_dataset, mapped, numbered_episodes, write_buffers
from minari.data_collector import EpisodeBuffer

from qgpo import QGPO, load_dataset
from qgpo.agents.core.batches import Batches
from qgpo.envs import write_minari
from qgpo.envs.data import disk
from qgpo.envs.store import bundled, storing
from qgpo.envs.store.combining import combine
from qgpo.envs.store.local import folder_of
from qgpo.envs.store.writing import reserved_space
from qgpo.scripts import collect

resource = pytest.importorskip("resource")  # not on Windows
ID = "test/swings-v0"


@contextlib.contextmanager
def files_up_to(size: int):
    """Let no file grow beyond that many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def no_space(monkeypatch):
    """Disks on which 10 bytes are free."""
    usage = type("Usage", (), {"total": 10**9, "used": 10**9, "free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)


def swings(*lengths: int) -> list[EpisodeBuffer]:
    rng = np.random.default_rng(0)
    return [
        EpisodeBuffer(
            observations=rng.uniform(-1, 1, (length + 1, 3)),
            actions=rng.uniform(-1, 1, (length, 1)),
            rewards=list(rng.normal(size=length)),
            terminations=[False] * length,
            truncations=[False] * (length - 1) + [True],
        )
        for length in lengths
    ]


def left() -> list[str]:
    """All files of the datasets' folder, hidden ones too, without those that say who is where."""
    root = folder_of("")
    names = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    return sorted(n for n in names if not n.startswith(".qgpo-locks") and "namespace" not in n)


@pytest.mark.parametrize(
    ("size", "lengths"),
    [(100, (3,)), (3000, (50_000,)), (200_000, (200,) * 20), (50_000, (1,) * 9)],
)
def test_a_dataset_that_does_not_fit_leaves_the_episodes(size, lengths):
    episodes = swings(*lengths)
    refused = pytest.raises(disk.DiskFullError, match=f"'{ID}' could not be written in .*free")
    with files_up_to(size), refused:
        write_minari(ID, episodes, "Pendulum-v1", "none", "swings")
    assert left() == []
    write_minari(ID, episodes, "Pendulum-v1", "none", "swings")
    assert len(load_dataset(ID, download=False)) == sum(lengths)


def test_what_is_combined_does_not_fit():
    for name in ("test/a-v0", "test/b-v0"):
        write_minari(name, swings(200, 200), "Pendulum-v1", "none", "swings")
    before = left()
    with files_up_to(30_000), pytest.raises(OSError, match="'test/both-v0' could not be written"):
        combine(("test/a-v0", "test/b-v0"), "test/both-v0", progress_bar=False)
    assert left() == before
    assert len(load_dataset("test/a-v0", download=False)) == 400


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_conversion_that_does_not_fit(size):
    source = write_buffers(numbered_episodes((300, 400), (True, False)))
    with files_up_to(size), pytest.raises(disk.DiskFullError, match=r"storage='memory'") as caught:
        load_dataset(source, storage="memmap", progress_bar=False)
    assert caught.value.errno == errno.ENOSPC
    assert all(not name.startswith("test/numbered-v0/.") for name in left())
    assert len(load_dataset(source, storage="memmap", progress_bar=False)) == 700


def test_a_conversion_whose_reserve_was_too_small(monkeypatch):
    """As where the metadata count too few steps: `tofile` lost such arrays in silence."""
    source = write_buffers(numbered_episodes((300, 400), (True, False)))
    monkeypatch.setattr("qgpo.envs.data.memmap.allocate", lambda *_: None)
    for size in (1, 699, 2000, 5000):
        with files_up_to(size), pytest.raises(OSError, match="could not be converted"):
            load_dataset(source, storage="memmap", progress_bar=False)
    assert len(load_dataset(source, storage="memmap", progress_bar=False)) == 700


def test_tables_of_a_training_have_no_holes(monkeypatch):
    data = Batches.of(mapped(make_dataset()), torch.device("cpu"))
    with files_up_to(4096), pytest.raises(disk.DiskFullError, match="table of the training"):
        data.table((100, 100))
    allocated = []
    allocate = disk.allocate

    def noted(file, *more):
        allocate(file, *more)
        allocated.append(os.fstat(file.fileno()))

    monkeypatch.setattr("qgpo.agents.core.batches.allocate", noted)
    table = data.table((100, 100))
    assert table.shape == (100, 100)
    assert not table.any()
    assert (allocated[0].st_size, allocated[0].st_blocks >= 79) == (40_000, True)


def test_nothing_is_begun_that_does_not_fit(no_space, monkeypatch):
    dataset = make_dataset()
    monkeypatch.setattr("qgpo.agents.guided.policy.GuidedPolicy.train_whitening", None)
    monkeypatch.setattr(bundled, "collect", None)
    monkeypatch.setattr(collect, "collect", None)
    with pytest.raises(disk.DiskFullError, match=r"^dataset 'test/mapped-v0' as memory-mapped"):
        mapped(dataset)
    with pytest.raises(disk.DiskFullError, match=r"'qgpo/hopper/simple-v0': .*MB are needed"):
        load_dataset("qgpo/hopper/simple-v0", progress_bar=False)
    args = collect.Args("Pendulum-v1", ("uniform",), ID, progress_bar=False)
    with pytest.raises(SystemExit, match=r"error: dataset 'test/swings-v0': [\d.]+ MB are needed"):
        collect.main(args)
    with pytest.raises(disk.DiskFullError, match="MINARI_DATASETS_PATH"):
        write_minari(ID, swings(3), "Pendulum-v1", "none", "swings")
    assert all(name.startswith("test/mapped-v0/data") for name in left())


def test_training_from_a_map_asks_for_its_tables_first(monkeypatch):
    dataset = mapped(make_dataset())
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 10)
    monkeypatch.setattr("qgpo.agents.guided.policy.GuidedPolicy.train_whitening", None)
    with pytest.raises(disk.DiskFullError, match=r"tables of the training.*support_actions"):
        QGPO(CONFIGS["whitened"], device="cpu").learn(dataset)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the free space is compared")
def test_reserved_space_is_taken_until_the_end():
    with reserved_space(ID, 300_000):
        files = list(folder_of("").rglob("reserved"))
        assert [path.stat().st_blocks * 512 >= 300_000 for path in files] == [True]
    assert left() == []


@pytest.mark.parametrize("lengths", [(1000,), (200, 200), (1,) * 10, (10,) * 9])
def test_the_estimate_of_a_dataset_is_enough(lengths):
    episodes = swings(*lengths)
    write_minari(ID, episodes, "Pendulum-v1", "none", "swings")
    size = sum(path.stat().st_size for path in (folder_of(ID) / "data").iterdir())
    assert size < storing.size_of(episodes) < 3 * size + 100_000


@pytest.mark.parametrize("fault", ["full", "taken"])
def test_collected_episodes_are_kept_elsewhere(fault, monkeypatch, tmp_path):
    root = folder_of("")

    def write(dataset_id, episodes, *more):
        if folder_of("") == root and fault == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if folder_of("") == root:
            folder_of(dataset_id).mkdir(parents=True)  # another process was faster
        write_minari(dataset_id, episodes, *more)

    monkeypatch.setattr(collect, "write_minari", write)
    args = collect.Args("Pendulum-v1", ("uniform",), ID, n_steps=1, progress_bar=False)
    with pytest.raises(SystemExit, match=r"The episodes are in .*qgpo-collected-"):
        collect.main(args)
    (kept,) = Path.cwd().glob("qgpo-collected-*")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(kept))
    assert len(load_dataset(ID, download=False)) == 2000
