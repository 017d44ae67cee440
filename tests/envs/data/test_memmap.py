"""Memory maps: content decides whether one is current, and a damaged one is never read."""

from __future__ import annotations

import json
import os
import shutil
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from factory import make_dataset, mapped, numbered_episodes, write_buffers
from filelock import FileLock

from qgpo import load_dataset
from qgpo.envs.data import blocks, memmap
from qgpo.envs.store.checking import check_dataset
from qgpo.envs.store.loading import _Reader
from qgpo.envs.store.local import files_in, folder_of
from qgpo.envs.text_files import read_json

ID = "test/mapped-v0"


DEEP: list = []
for _ in range(800):
    DEEP = [DEEP]


def load(dataset_id: str = ID):
    return load_dataset(dataset_id, False, "memmap", progress_bar=False)


def keep_times(path: Path, content: bytes) -> None:
    """Other content under the same size and times, as an attacker or a damaged disk leaves it."""
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def finding(dataset_id: str = ID):
    return next(f for f in check_dataset(dataset_id).findings if f.what == "memory map")


@pytest.fixture
def conversions(monkeypatch):
    """The folders that were written, one for each conversion."""
    written = []
    write = memmap.write_arrays

    def noted(folder, *more):
        written.append(folder)
        return write(folder, *more)

    monkeypatch.setattr(memmap, "write_arrays", noted)
    return written


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    monkeypatch.setattr(blocks, "SAMPLED_BLOCKS", 8)


@pytest.mark.parametrize("name", sorted(memmap.DTYPES))
def test_a_changed_number_in_any_file_is_found_under_the_same_time(name):
    dataset = mapped(make_dataset())
    file = dataset.folder / f"{name}.bin"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    keep_times(file, bytes(content))
    assert finding().ok is False
    assert f"{name}.bin" in finding().text
    again = load()
    np.testing.assert_array_equal(getattr(again, name), getattr(make_dataset(), name))
    assert finding().ok is True


def test_a_map_from_before_there_was_a_fingerprint_of_trajectories_gets_it_once(
    conversions, monkeypatch
):
    dataset = mapped(make_dataset())
    index = memmap.read_index(dataset.folder)
    expected = index.pop("trajectory_fingerprint")
    assert expected == make_dataset().trajectory_fingerprint
    memmap.write_index(dataset.folder, index)
    assert load().trajectory_fingerprint == expected
    assert memmap.read_index(dataset.folder)["trajectory_fingerprint"] == expected
    monkeypatch.setattr("hashlib.sha256", None)
    assert dataset.trajectory_fingerprint == expected
    assert len(conversions) == 1


def test_nan_that_a_writable_map_leaves_is_found(small_blocks):
    """Through a map, times change; then every block is read, however many there are."""
    dataset = mapped(make_dataset())
    array = np.memmap(dataset.folder / "states.bin", np.float32, "r+")
    array[len(array) // 2 - 1] = np.nan
    array.flush()
    os.utime(dataset.folder / "states.bin")  # some file systems note it late
    assert finding().ok is False
    assert np.isfinite(load().states).all()


def test_changed_times_alone_convert_nothing_and_are_noted(conversions):
    dataset = mapped(make_dataset())
    folder = folder_of(ID)
    for path in (*(folder / "data").iterdir(), *dataset.folder.glob("*.bin")):
        os.utime(path, ns=(1, 1))
    load()
    assert len(conversions) == 1
    index = memmap.read_index(dataset.folder)
    assert {a["mtime_ns"] for p in ("source", "arrays") for a in index[p].values()} == {1}
    moved = folder_of("test/moved-v0")
    shutil.copytree(folder, moved)  # other times again
    assert memmap.damage(moved / "memmap", index, files_in(moved / "data")) == []


def test_changed_times_in_a_folder_that_cannot_be_written(conversions, monkeypatch):
    dataset = mapped(make_dataset())
    os.utime(dataset.folder / "states.bin", ns=(1, 1))

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(memmap, "write_index", refused)
    assert load().fingerprint == load().fingerprint == make_dataset().fingerprint
    assert len(conversions) == 1


def test_other_data_under_the_same_size_and_times_are_converted(conversions):
    def source(name, shift):
        episodes = numbered_episodes((3,), (True,))
        episodes[0].observations[:] += shift
        return write_buffers(episodes, name)

    first, second = source("test/a-v0", 0.0), source("test/b-v0", 64.0)
    before = load("test/a-v0").states.copy()
    path, other = (Path(s.storage.data_path) / "main_data.hdf5" for s in (first, second))
    assert path.stat().st_size == other.stat().st_size
    keep_times(path, other.read_bytes())
    assert finding("test/a-v0").ok is None  # of other data, not damaged
    np.testing.assert_array_equal(load("test/a-v0").states, before + 64.0)
    assert len(conversions) == 2


def test_a_source_that_is_replaced_while_it_is_read_is_refused(monkeypatch):
    source = write_buffers(numbered_episodes((3, 2), (True, False)), ID)
    episodes = _Reader.episodes

    def replaced(reader, bar=None):
        for episode in episodes(reader, bar):
            yield episode
            metadata = Path(source.storage.data_path, "metadata.json")
            keep_times(metadata, metadata.read_bytes() + b" ")

    with monkeypatch.context() as patch:
        patch.setattr(_Reader, "episodes", replaced)
        with pytest.raises(ValueError, match="changed while it was converted: load it again"):
            load()
    assert [p.name for p in folder_of(ID).iterdir()] == ["data"]
    assert len(load()) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "0" * 64},
        {"shapes": {name: [1] for name in memmap.DTYPES}},
        {"format_version": 1},
        {"arrays": {}},
        {"source": None},
        {"doubts": 5},
        {"doubts": [{}]},
        {"fingerprint": 5},
        {"made": DEEP},
    ],
    ids=lambda change: str(change)[:40],
)
@pytest.mark.parametrize("sealed", [False, True])
def test_an_odd_index_is_no_index(change, sealed, conversions):
    dataset = mapped(make_dataset())
    path = dataset.folder / "index.json"
    index = {**json.loads(path.read_text()), **change}
    if sealed and change.get("fingerprint") != "0" * 64:  # by someone who knows how, and wrongly
        del index["checksum"]
        index["checksum"] = memmap._checksum(index)
    path.write_text(json.dumps(index))
    assert load().fingerprint == make_dataset().fingerprint
    assert len(conversions) == 2


@pytest.mark.parametrize("kind", ["pipe", "folder", "deep", "huge"])
def test_an_index_that_is_no_json_file_is_no_index(kind, conversions, monkeypatch):
    path = mapped(make_dataset()).folder / "index.json"
    content = path.read_text()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text("[" * 100_000 if kind == "deep" else content)
    if kind == "huge":
        monkeypatch.setattr(memmap, "read_json", partial(read_json, most=1))
        assert memmap.read_index(path.parent) is None
        return
    assert load().fingerprint == make_dataset().fingerprint
    assert len(conversions) == 2


@pytest.mark.parametrize("shape", [[4.0], [-4], "ab", [True], [[1]], [], [2, 2], None])
@pytest.mark.parametrize("name", ["rewards", "states", "episode_starts"])
def test_an_odd_shape_is_no_shape(shape, name):
    folder = mapped(make_dataset()).folder
    index = memmap.read_index(folder)
    memmap.write_index(folder, {**index, "shapes": {**index["shapes"], name: shape}})
    assert memmap.read_index(folder) is None


@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 2**20])
@pytest.mark.parametrize(("name", "value"), [("state_index", 10**12), ("episode_starts", -5)])
def test_row_numbers_that_lead_elsewhere_are_made_anew(
    name, value, rows_at_once, conversions, monkeypatch
):
    monkeypatch.setattr(memmap, "ROWS_AT_ONCE", rows_at_once)
    folder = mapped(make_dataset()).folder
    index = memmap.read_index(folder)
    assert memmap.are_rows(folder, index)
    array = np.fromfile(folder / f"{name}.bin", np.int64)
    array[-1] = value
    array.tofile(folder / f"{name}.bin")
    hashes = blocks.hash_files({f"{name}.bin": folder / f"{name}.bin"})
    memmap.write_index(folder, {**index, "arrays": {**index["arrays"], **hashes}})
    assert load().state_index.max() < 100
    assert len(conversions) == 2


def test_a_sample_holds_first_last_and_other_blocks_each_time_others(small_blocks):
    counts = {"a": 100, "b": 1, "c": 0, "d": 50}
    samples = [set(blocks._sample(counts)) for _ in range(20)]
    assert all(len(sample) == 8 for sample in samples)
    assert {("a", 0), ("a", 99), ("b", 0), ("d", 0), ("d", 49)} <= set.union(*samples)
    assert len(set.union(*samples)) > 30
    assert set(blocks._sample({"a": 3, "b": 2})) == {
        *(("a", i) for i in range(3)),
        ("b", 0),
        ("b", 1),
    }


def test_files_that_are_new_gone_or_longer_differ(tmp_path, small_blocks):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode() * 200)
    recorded = blocks.hash_files(files_in(tmp_path))
    assert blocks.differing(files_in(tmp_path), recorded) == []
    (tmp_path / "a").unlink()
    (tmp_path / "d").touch()
    keep_times(tmp_path / "b", b"b" * 201)
    assert blocks.differing(files_in(tmp_path), recorded) == ["a", "b", "d"]


def test_a_second_conversion_waits_and_takes_the_finished_one(conversions, capsys, monkeypatch):
    write_buffers(numbered_episodes((3, 2), (True, False)), ID)
    writes, go_on = threading.Event(), threading.Event()
    write_index = memmap.write_index

    def slowly(*arguments):
        writes.set()
        assert go_on.wait(20)
        write_index(*arguments)

    monkeypatch.setattr(memmap, "write_index", slowly)
    found = []
    first = threading.Thread(target=lambda: found.append(load()))
    second = threading.Thread(target=lambda: found.append(load()))
    first.start()
    assert writes.wait(20)
    second.start()
    while second.is_alive() and "waiting" not in capsys.readouterr().err:
        second.join(0.01)
    go_on.set()
    first.join(20)
    second.join(20)
    assert [len(dataset) for dataset in found] == [5, 5]
    assert len(conversions) == 1


@pytest.mark.parametrize("kind", ["file", "folder", "among arrays"])
def test_a_memmap_of_somebody_else_is_refused_and_stays(kind, conversions):
    dataset = mapped(make_dataset())
    with open(folder_of(ID) / "data" / "metadata.json", "a") as file:
        file.write(" ")  # the map is to be made anew
    if kind != "among arrays":
        shutil.rmtree(dataset.folder)
    if kind == "file":
        dataset.folder.write_text("mine")
    else:
        dataset.folder.mkdir(exist_ok=True)
        (dataset.folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"memmap holds (memmap|notes\.txt), which no conversion"):
        load()
    kept = dataset.folder if kind == "file" else dataset.folder / "notes.txt"
    assert kept.read_text() == "mine"


def test_an_index_that_a_killed_process_was_writing_is_removed(conversions):
    folder = mapped(make_dataset()).folder
    for name in (".index.json.12.tmp", ".index.json.13-0123abcd.tmp", ".index.json.mine.tmp"):
        (folder / name).touch()
    os.utime(folder / "states.bin", ns=(1, 1))
    load()
    left = {path.name for path in folder.glob(".*")}
    assert left == {".index.json.mine.tmp"}
    assert len(conversions) == 1


def test_scratch_of_gone_processes_is_removed_and_that_of_living_ones_kept(conversions):
    mapped(make_dataset())
    home = folder_of(ID)
    for name in (".memmap-99999999-0123abcd", ".memmap-1-0123abcd", ".memmap-mynotes1"):
        (home / name / "arrays").mkdir(parents=True)
    (home / ".memmap-99999999-0123abcd.lock").touch()
    (home / ".memmap-5-89abcdef.lock").touch()  # killed before its folder was made
    os.utime(home / ".memmap-mynotes1", (0, 0))  # nothing of ours, and long ago
    (home / ".memmap-mine").mkdir()  # nothing of ours
    with FileLock(home / ".memmap-1-0123abcd.lock"):
        load()
    names = sorted(path.name for path in home.iterdir() if not path.name.endswith(".lock"))
    assert names == [".memmap-1-0123abcd", ".memmap-mine", ".memmap-mynotes1", "data", "memmap"]
    load()
    assert sorted(path.name for path in home.iterdir()) == [
        *(".memmap-mine", ".memmap-mynotes1", "data", "memmap")
    ]
    assert len(conversions) == 1
