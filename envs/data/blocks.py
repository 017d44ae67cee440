"""What files contain: one SHA-256 per block, to be compared in full or in a sample of blocks."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any, TypedDict

BLOCK_BYTES = 2**20
SAMPLED_BLOCKS = 32
"""blocks that are read of all files together where no time has changed: 32 MiB"""


class Contents(TypedDict):
    """A file when it was hashed."""

    size: int
    mtime_ns: int
    blocks: list[str]


class BlockHash:
    """Hashes of the blocks of what is passed to `update`, in order."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.size = 0
        self._state = _new_state()

    def update(self, data: memoryview) -> None:
        """Go on with these bytes."""
        while len(data) > 0:
            part = data[: BLOCK_BYTES - self.size % BLOCK_BYTES]
            self._state.update(part)
            self.size += len(part)
            data = data[len(part) :]
            if self.size % BLOCK_BYTES == 0:
                self._end_block()

    def contents(self, path: Path) -> Contents:
        """What was passed, as the contents of the file that now holds it."""
        if self.size % BLOCK_BYTES != 0:
            self._end_block()
        return {"size": self.size, "mtime_ns": path.stat().st_mtime_ns, "blocks": self.blocks}

    def _end_block(self) -> None:
        self.blocks.append(self._state.hexdigest())
        self._state = _new_state()


def hash_files(files: dict[str, Path]) -> dict[str, Contents]:
    """The contents of all files, each read once."""
    found: dict[str, Contents] = {}
    for name, path in files.items():
        state = BlockHash()
        with open(path, "rb") as file:
            while data := file.read(BLOCK_BYTES):
                state.update(memoryview(data))
        found[name] = state.contents(path)
    return found


def same_contents(first: dict[str, Contents], second: dict[str, Contents]) -> bool:
    """Whether the files have the same names and bytes, whatever their times."""
    return {name: about["blocks"] for name, about in first.items()} == {
        name: about["blocks"] for name, about in second.items()
    }


def differing(
    files: dict[str, Path], recorded: dict[str, Contents], in_full: bool = False
) -> list[str]:
    """Names of files that are missing, new, or have other contents than recorded, sorted.

    A file with another time of change is read in full. Of the files with the recorded size and
    time, SAMPLED_BLOCKS blocks are read together, drawn anew at each call, among them first and
    last blocks; `in_full` reads all. A sample of k out of n blocks misses one changed block with
    probability 1 - k / n, where the time of change was put back too.
    """
    wrong = set(files) ^ set(recorded)
    quick: list[str] = []
    for name in set(files) & set(recorded):
        stat = files[name].stat()
        if stat.st_size != recorded[name]["size"]:
            wrong.add(name)
        elif in_full or stat.st_mtime_ns != recorded[name]["mtime_ns"]:
            if hash_files({name: files[name]})[name]["blocks"] != recorded[name]["blocks"]:
                wrong.add(name)
        else:
            quick.append(name)
    sampled = _sample({name: len(recorded[name]["blocks"]) for name in sorted(quick)})
    wrong.update(n for n, i in sampled if _block(files[n], i) != recorded[n]["blocks"][i])
    return sorted(wrong)


def _sample(counts: dict[str, int]) -> list[tuple[str, int]]:
    """(name, index) of the blocks to read, half of them at the ends of files."""
    ends = [(n, i) for n, count in counts.items() for i in sorted({0, count - 1}) if count > 0]
    inner = [(n, i) for n, count in counts.items() for i in range(1, count - 1)]
    rng = random.SystemRandom()  # other blocks in every process, whatever was seeded
    chosen = ends
    if len(ends) + len(inner) > SAMPLED_BLOCKS:
        chosen = rng.sample(ends, min(len(ends), SAMPLED_BLOCKS // 2))
    return chosen + rng.sample(inner, min(len(inner), SAMPLED_BLOCKS - len(chosen)))


def _block(path: Path, index: int) -> str:
    state = _new_state()
    with open(path, "rb") as file:
        file.seek(index * BLOCK_BYTES)
        state.update(file.read(BLOCK_BYTES))
    return str(state.hexdigest())


def _new_state() -> Any:
    return hashlib.sha256()
