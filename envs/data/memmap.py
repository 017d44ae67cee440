"""Datasets larger than memory: their arrays as memory-mapped files, written once.

A folder holds one raw file per array and `index.json`: the format version, the shape of each
array, the dataset's fingerprint, how the arrays were made, and hashes of all blocks of the arrays'
files and of the files that they were made from. It appears complete or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from qgpo.envs.data.blocks import BlockHash, Contents, differing
from qgpo.envs.data.disk import allocate, check_space
from qgpo.envs.text_files import read_json
from qgpo.files import write_whole

FORMAT_VERSION = 2
"""1 had no hashes: its folders are made anew"""
DTYPES = {
    "states": "float32",
    "actions": "float32",
    "rewards": "float32",
    "terminations": "bool",
    "truncations": "bool",
    "last_steps": "bool",
    "state_index": "int64",
    "episode_starts": "int64",
}
INDEX, STARTS = "index.json", "episode_starts"
ROWS_AT_ONCE = 2**20
UNFINISHED = re.compile(rf"\.{re.escape(INDEX)}\.\d+(-[0-9a-f]{{8}})?\.tmp")
"""an index that a killed process was writing"""
ADVICE = "use storage='memory'"
Episode = dict[str, NDArray[Any]]
"""states (T + 1, S), actions (T, A), rewards, terminations and truncations (T,)"""
Index = dict[str, Any]
"""shapes, fingerprints, made (how), source and arrays (contents by file name)"""


class _ArrayFile:
    """The file of one array: its space is reserved, what is written is hashed and counted."""

    def __init__(self, path: Path, size: int, what: str) -> None:
        self.path = path
        self.hash = BlockHash()
        self.shape: tuple[int, ...] = (0,)
        self.file = open(path, "wb")  # noqa: SIM115
        try:
            allocate(self.file, size, path.parent, what, ADVICE)
        except BaseException:
            self.file.close()
            raise

    def append(self, array: NDArray[Any]) -> None:
        """Write rows; unlike `ndarray.tofile`, raise OSError where the disk takes only a part."""
        data = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        self.file.write(data)
        self.hash.update(data)
        self.shape = (self.shape[0] + len(array), *array.shape[1:])

    def finish(self) -> Contents:
        """Cut off what was reserved in vain, and wait until the file is on the disk."""
        with self.file:
            self.file.truncate()
            _sync(self.file)
        contents = self.hash.contents(self.path)
        if self.path.stat().st_size != contents["size"]:
            raise OSError(
                f"{self.path} has {self.path.stat().st_size} bytes, {contents['size']} "
                "were written: the disk is full or damaged"
            )
        return contents


def expected_sizes(steps: int, episodes: int, states: int, actions: int) -> dict[str, int]:
    """Bytes of each file for so many steps in episodes, with S and A numbers per row."""
    rows = dict.fromkeys(DTYPES, steps)
    rows.update(states=(steps + episodes) * states, actions=steps * actions)
    rows["episode_starts"] = episodes
    return {name: n * np.dtype(DTYPES[name]).itemsize for name, n in rows.items()}


def write_arrays(
    folder: Path, episodes: Iterable[Episode], sizes: dict[str, int], of: str
) -> Index:
    """Append episode after episode to one file per array; returns `shapes` and `arrays`.

    `sizes` are the expected bytes of each file; they are reserved first. `of` names the dataset.
    Raises OSError where anything of it is not on the disk, DiskFullError where space is missing.
    """
    what = f"{of} as memory-mapped files"
    check_space(folder, sum(sizes.values()), what, ADVICE)
    with contextlib.ExitStack() as stack:
        files: dict[str, _ArrayFile] = {}
        for name in DTYPES:
            files[name] = _ArrayFile(folder / f"{name}.bin", sizes[name], f"{what}: {name}.bin")
            stack.callback(files[name].file.close)
        n = row = 0
        for episode in episodes:
            length = len(episode["rewards"])
            arrays = {
                **episode,
                "last_steps": np.arange(length) == length - 1,
                "state_index": row + np.arange(length),
                "episode_starts": np.array([n]),
            }
            for name, dtype in DTYPES.items():
                files[name].append(np.asarray(arrays[name], dtype=dtype))
            n, row = n + length, row + length + 1
        contents = {f"{name}.bin": file.finish() for name, file in files.items()}
    return {"shapes": {name: file.shape for name, file in files.items()}, "arrays": contents}


def map_arrays(folder: Path, shapes: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """The arrays of a folder, read from disk when used; writing to them changes no file.

    A process that reads from a map whose file another process cuts short is ended by the system
    (SIGBUS), which no program can catch: sizes are checked before, not while, files are used.
    """
    return {
        name: np.memmap(folder / f"{name}.bin", dtype, mode="c", shape=tuple(shapes[name]))
        for name, dtype in DTYPES.items()
    }


def write_index(folder: Path, index: Index) -> None:
    """Write the index, which makes the folder complete; an earlier one is replaced.

    One process at a time does that in a folder: what others left unfinished is removed.
    """
    whole = {"format_version": FORMAT_VERSION, **index}
    for path in folder.iterdir():
        if UNFINISHED.fullmatch(path.name):
            path.unlink()
    write_whole(folder / INDEX, json.dumps({"checksum": _checksum(whole), **whole}).encode())


def read_index(folder: Path, made: dict[str, Any] | None = None) -> Index | None:
    """The index of a complete folder, made in that way, else None."""
    try:
        index = read_json(folder / INDEX)
        is_complete = index.pop("checksum") == _checksum(index)
        is_complete = is_complete and index.pop("format_version") == FORMAT_VERSION
        is_complete = is_complete and made in (None, index["made"]) and _is_whole(index)
        for name, dtype in DTYPES.items():
            size = int(np.prod(index["shapes"][name])) * np.dtype(dtype).itemsize
            is_complete = is_complete and (folder / f"{name}.bin").stat().st_size == size
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return index if is_complete else None


def _is_whole(index: Index) -> bool:
    """Whether the shapes are those of one dataset, and the texts are texts."""
    shapes = {name: tuple(index["shapes"][name]) for name in DTYPES}
    (rows, _), (steps, _), (episodes,) = (
        shapes[name] for name in ("states", "actions", "episode_starts")
    )
    others = all(shapes[n] == (steps,) for n in DTYPES if n not in ("states", "actions", STARTS))
    numbers = all(type(n) is int and n >= 0 for shape in shapes.values() for n in shape)
    texts = [index["fingerprint"], index.get("trajectory_fingerprint", "")]
    texts += index.get("doubts", [])
    return numbers and others and rows == steps + episodes and all(type(t) is str for t in texts)


def are_rows(folder: Path, index: Index) -> bool:
    """Whether the arrays of row numbers in a complete folder are those that `write_arrays` writes.

    Row t of episode e is row t + e of the states, since each episode has one more of these.
    """
    arrays = map_arrays(folder, index["shapes"])
    rows, starts = arrays["state_index"], np.asarray(arrays[STARTS])
    steps = len(rows)
    if len(starts) and (starts[0] != 0 or starts[-1] >= steps or np.any(np.diff(starts) < 1)):
        return False
    for first in range(0, steps, ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, steps)
        episode = np.zeros(last - first, dtype=np.int64)
        begun = starts[np.searchsorted(starts, first + 1) : np.searchsorted(starts, last)]
        episode[begun - first] = 1
        offset = np.searchsorted(starts, first, side="right") - 1
        if not np.array_equal(rows[first:last], np.arange(first, last) + offset + episode.cumsum()):
            return False
    return True


def share(folder: Path, index: Index, others: Iterable[Path]) -> Index:
    """Make each file that another map has too a link to that one's (a hard link); the new index.

    So do the tasks of one set of trajectories share states and actions. A file is compared with
    what was written here, by the hash of every block, before it takes its place. Where the system
    has no such links nothing changes.
    """
    for other in others:
        theirs = read_index(other)
        if theirs is None:
            continue
        for name, contents in index["arrays"].items():
            if theirs["arrays"].get(name, {}).get("blocks") == contents["blocks"]:
                with contextlib.suppress(OSError):
                    _link(other / name, folder / name, contents)
    write_index(folder, index)
    return index


def _link(source: Path, target: Path, contents: Contents) -> None:
    """Replace the target by a link to the source, if that has these contents."""
    if source.samefile(target):
        return
    aside = target.with_name(f"{target.name}.link")
    try:
        os.link(source, aside)
        if not differing({target.name: aside}, {target.name: contents}, in_full=True):
            aside.replace(target)
            contents["mtime_ns"] = target.stat().st_mtime_ns
    finally:
        aside.unlink(missing_ok=True)


def check_replaceable(folder: Path) -> None:
    """Raise ValueError where a new map would replace anything but a map, or a link to one."""
    if not folder.exists():
        return
    own = {f"{name}.bin" for name in DTYPES} | {INDEX}
    others = [folder.name]
    if folder.is_dir():
        names = sorted(path.name for path in folder.iterdir())
        others = [name for name in names if name not in own and not UNFINISHED.fullmatch(name)]
    if others and not folder.is_symlink():
        raise ValueError(
            f"{folder} holds {', '.join(others)}, which no conversion wrote: move it away, or "
            f"{ADVICE}"
        )


def damage(folder: Path, index: Index, source: dict[str, Path], in_full: bool = False) -> list[str]:
    """Files of the source and of the map that are not what they were at the conversion.

    What is read, and what that can miss: see `blocks.differing`. Where only times have changed,
    the index gets them, so that the next reading is short; `in_full` changes nothing.
    """
    arrays = {f"{name}.bin": folder / f"{name}.bin" for name in DTYPES}
    files = {"source": source, "arrays": arrays}
    try:
        # before they are read: what changes meanwhile is read in full the next time
        times = {k: {n: path.stat().st_mtime_ns for n, path in files[k].items()} for k in files}
        wrong = [name for part in files for name in differing(files[part], index[part], in_full)]
        if not wrong and not in_full:
            _take_times(index, times)
    except (OSError, LookupError, TypeError, AttributeError) as error:
        return [f"{folder / INDEX} ({error})"]
    return wrong


def _take_times(index: Index, times: dict[str, dict[str, int]]) -> None:
    for part in times:
        for name, time in times[part].items():
            index[part][name]["mtime_ns"] = time


def _checksum(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _sync(file: IO[Any]) -> None:
    """Wait until the contents are on disk."""
    file.flush()
    os.fsync(file.fileno())
