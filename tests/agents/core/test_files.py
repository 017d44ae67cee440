"""Files are whole or not there, and no writer takes another one's."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from qgpo.envs.data.figure import save
from qgpo.envs.play.video import write_clip
from qgpo.files import (
    check_writable,
    is_scratch_of,
    replacing,
    scratch_of,
    write_beside,
    write_whole,
)


def test_two_writers_at_once_tear_nothing(tmp_path):
    path = tmp_path / "a.json"
    with replacing(path) as first:
        first.write(b"first, ")
        with replacing(path) as second:
            second.write(b"second, whole")
        first.write(b"whole")
    assert path.read_bytes() == b"first, whole"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_is_named_with_the_file_and_leaves_the_former_one(where, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_bytes(b"former")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "fsync":
        monkeypatch.setattr("os.fsync", full)
    if where == "replace":
        monkeypatch.setattr(Path, "replace", full)
    named = pytest.raises(OSError, match=r"No space left on device: '.*a\.json'")
    with named, replacing(path):
        if where == "write":
            full()
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


def test_a_renaming_that_fails_names_one_file(tmp_path, monkeypatch):
    def refused(source, target):
        raise OSError(errno.EXDEV, "Invalid link", str(source), None, str(target))

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(OSError, match=r"link: '[^']*a\.json'$"):
        write_whole(tmp_path / "a.json", b"")


def draw_picture(path: Path) -> None:
    save(Figure(figsize=(1, 1)), path)


def draw_clip(path: Path) -> None:
    write_clip(path, [np.zeros((16, 16, 3), np.uint8)] * 2, 10.0)


@pytest.mark.parametrize(
    ("name", "draw"), [("a.png", draw_picture), ("a.svg", draw_picture), ("a.gif", draw_clip)]
)
def test_a_picture_is_whole_or_not_there_and_never_written_through_a_link(
    name, draw, tmp_path, monkeypatch
):
    path, foreign = tmp_path / name, tmp_path / "foreign"
    foreign.write_text("precious")
    path.symlink_to(foreign)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space left"):
            draw(path)
    assert path.read_text() == "precious"
    draw(path)
    assert path.stat().st_size > 40
    assert foreign.read_text() == "precious"
    assert not path.is_symlink()


def test_many_writers_of_new_files_lose_none(tmp_path):
    path, together = tmp_path / "evaluation-now.json", threading.Barrier(8)

    def write(number: int) -> Path:
        together.wait()
        return write_beside(path, str(number).encode())

    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(write, range(8)))
    assert {p.read_text() for p in written} == {str(number) for number in range(8)}
    assert sorted(tmp_path.iterdir()) == sorted(written)
    assert path in written
    assert tmp_path / "evaluation-now-8.json" in written


def test_a_new_file_that_cannot_be_written_takes_no_name(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_beside(tmp_path / "a.json", b"content")
    with pytest.raises(OSError, match="No space"):
        check_writable(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_told_from_what_others_write(tmp_path):
    names = {"config.json", "checkpoint.zip"}
    assert is_scratch_of(names, scratch_of(tmp_path / "config.json"))
    assert is_scratch_of(names, tmp_path / ".checkpoint.zip.123.tmp")  # of former versions
    for other in (".notes.tmp", ".evaluation-1.json.5-0123abcd.tmp", "config.json.1.tmp"):
        assert not is_scratch_of(names, tmp_path / other)


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, "a" * 250 + ".json"])
def test_the_longest_names_can_be_written(name, tmp_path):
    check_writable(tmp_path / name)
    with replacing(tmp_path / name) as file:
        file.write(b"whole")
    assert (tmp_path / name).read_bytes() == b"whole"
