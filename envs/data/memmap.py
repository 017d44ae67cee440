"""Datasets larger than memory: their arrays as memory-mapped files, written once.

A folder holds one raw file per array and `index.json`: the format version, the source, the shape
of each array, and the dataset's fingerprint. It appears complete or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 1
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
Episode = dict[str, NDArray[Any]]
"""states (T + 1, S), actions (T, A), rewards, terminations and truncations (T,)"""


def write_arrays(folder: Path, episodes: Iterable[Episode]) -> dict[str, Any]:
    """Append episode after episode to one file per array; returns the shapes by name."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(DTYPES, (0,))
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / f"{name}.bin", "wb")) for name in DTYPES}
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
                array = np.ascontiguousarray(arrays[name], dtype=dtype)
                array.tofile(files[name])
                shapes[name] = (shapes[name][0] + len(array), *array.shape[1:])
            n, row = n + length, row + length + 1
        for file in files.values():
            _sync(file)
    return shapes


def map_arrays(folder: Path, shapes: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """The arrays of a folder, read from disk when used; writing to them changes no file."""
    return {
        name: np.memmap(folder / f"{name}.bin", dtype, mode="c", shape=tuple(shapes[name]))
        for name, dtype in DTYPES.items()
    }


def write_index(folder: Path, shapes: dict[str, Any], about: dict[str, Any]) -> None:
    """Write the index, which makes the folder complete."""
    with open(folder / "index.json", "w", encoding="utf-8") as file:
        json.dump({"format_version": FORMAT_VERSION, "shapes": shapes, **about}, file, indent=2)
        _sync(file)


def _sync(file: IO[Any]) -> None:
    """Wait until the contents are on disk."""
    file.flush()
    os.fsync(file.fileno())


def read_index(folder: Path, source: dict[str, Any]) -> dict[str, Any] | None:
    """The index of a complete folder made from that source, else None."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        is_complete = index["format_version"] == FORMAT_VERSION and index["source"] == source
        for name, dtype in DTYPES.items():
            size = int(np.prod(index["shapes"][name])) * np.dtype(dtype).itemsize
            is_complete = is_complete and (folder / f"{name}.bin").stat().st_size == size
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return index if is_complete else None
