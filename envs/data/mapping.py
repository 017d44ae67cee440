"""Datasets larger than memory: their arrays as files that are mapped, written once.

A folder holds one raw file per array and `index.json`: format version, what it was made from,
dtype and shape of each array, and the dataset's fingerprint. It appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
    """Append episode after episode to one file per array; returns their shapes by name."""
    rows: dict[str, tuple[int, ...]] = dict.fromkeys(DTYPES, (0,))
    files = {name: open(folder / f"{name}.bin", "wb") for name in DTYPES}  # noqa: SIM115
    try:
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
                rows[name] = (rows[name][0] + len(array), *array.shape[1:])
            n, row = n + length, row + length + 1
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    finally:
        for file in files.values():
            file.close()
    return rows


def map_arrays(folder: Path, shapes: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """The arrays of a folder, read from disk as they are used; writing to them changes no file."""
    return {
        name: np.memmap(folder / f"{name}.bin", dtype, mode="c", shape=tuple(shapes[name]))
        for name, dtype in DTYPES.items()
    }


def finish(scratch: Path, folder: Path, shapes: dict[str, Any], about: dict[str, Any]) -> None:
    """Write the index and give the folder its name, unless another process was faster."""
    index = {"format_version": FORMAT_VERSION, "shapes": shapes, **about}
    with open(scratch / "index.json", "w") as file:
        file.write(json.dumps(index, indent=2))
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    try:
        scratch.rename(folder)
    except OSError:
        if not (folder / "index.json").exists():
            raise


def read_index(folder: Path, source: dict[str, Any]) -> dict[str, Any] | None:
    """The index of a whole folder made from that source, else None: it is to be made anew."""
    try:
        index = json.loads((folder / "index.json").read_text())
        whole = index["format_version"] == FORMAT_VERSION and index["source"] == source
        for name, dtype in DTYPES.items():
            size = int(np.prod(index["shapes"][name])) * np.dtype(dtype).itemsize
            whole = whole and (folder / f"{name}.bin").stat().st_size == size
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return index if whole else None
