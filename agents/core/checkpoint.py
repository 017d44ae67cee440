"""Checkpoints: one zip of JSON and safetensors. Reading one cannot run code.

checkpoint.json          format version, library versions, agent, configuration, spaces, counters
modules.safetensors      every network, target, EMA and normaliser
optimizers.safetensors   the tensors of every optimizer's state
tables.safetensors       what stages hand to each other (support actions, targets), RNG states
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

FORMAT_VERSION = 1
TENSOR_FILES = ("modules", "optimizers", "tables")
_HEADER = "checkpoint.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or not by this agent."""


class CheckpointWriteError(OSError):
    """A checkpoint that cannot be written; the former one is as it was."""


@dataclass
class Checkpoint:
    """Everything that training needs to go on."""

    header: dict[str, Any]
    modules: dict[str, Tensor]
    optimizers: dict[str, Tensor]
    tables: dict[str, Tensor]


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: a temporary file beside it, fsync, rename; the old one stays until then.

    Raises CheckpointWriteError where that fails, on a full disk say.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    existed = False
    try:
        existed = path.is_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(scratch, "wb") as file:
                _write(file, checkpoint)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        former = "the former one there is as it was" if existed else "there is none yet"
        raise CheckpointWriteError(
            error.errno,
            f"checkpoint {str(path)!r} could not be written ({error}); {former}. Free some space "
            "or choose another folder, then go on from the last checkpoint",
        ) from error


def _write(file: BinaryIO, checkpoint: Checkpoint) -> None:
    header = {"format_version": FORMAT_VERSION, **checkpoint.header}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_HEADER, json.dumps(header, indent=2))
        for name in TENSOR_FILES:
            tensors = {
                key: value.detach().cpu().contiguous()
                for key, value in getattr(checkpoint, name).items()
            }
            archive.writestr(f"{name}.safetensors", save(tensors))


def read_header(path: Path) -> dict[str, Any]:
    """Only the JSON of a checkpoint, without its tensors. Raises CheckpointError."""
    return _read(path, ()).header


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint. Raises CheckpointError with what is wrong."""
    return _read(path, TENSOR_FILES)


def _read(path: Path, tensor_files: tuple[str, ...]) -> Checkpoint:
    if not path.is_file():
        inside = path.with_suffix("") / "checkpoint.zip"
        hint = f"; that of the run folder is {str(inside)!r}" if inside.is_file() else ""
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist{hint}")
    try:
        with zipfile.ZipFile(path) as archive:
            expected = {_HEADER, *(f"{name}.safetensors" for name in TENSOR_FILES)}
            found = sorted(archive.namelist())
            if found != sorted(expected):
                raise CheckpointError(
                    f"{str(path)!r} is no qgpo checkpoint: it holds {found}, expected "
                    f"{sorted(expected)}"
                )
            if not _holds_nothing_else(archive, path.stat().st_size):
                raise CheckpointError(
                    f"{str(path)!r} is no qgpo checkpoint: there is something before, between or "
                    "after its members; use a copy from save()"
                )
            header = json.loads(archive.read(_HEADER))
            version = header.get("format_version") if isinstance(header, dict) else None
            if not isinstance(version, int) or version > FORMAT_VERSION:
                raise CheckpointError(
                    f"{str(path)!r} has format version {version!r}, this qgpo reads up to "
                    f"{FORMAT_VERSION}: upgrade qgpo"
                )
            tensors: dict[str, dict[str, Tensor]] = {name: {} for name in TENSOR_FILES}
            for name in tensor_files:
                tensors[name] = load(archive.read(f"{name}.safetensors"))
    except CheckpointError:
        raise
    except (
        zipfile.BadZipFile,
        SafetensorError,
        EOFError,
        OSError,
        ValueError,
        RuntimeError,
        zlib.error,
    ) as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} is damaged ({error}); use an earlier copy"
        ) from error
    return Checkpoint(header, **tensors)


def _holds_nothing_else(archive: zipfile.ZipFile, size: int) -> bool:
    """Whether every byte belongs to a member or to the directory of what we write."""
    end = directory = 0
    for info in archive.infolist():
        name = len(info.filename.encode())
        if info.header_offset != end or info.compress_type != zipfile.ZIP_STORED or info.comment:
            return False
        if info.file_size < zipfile.ZIP64_LIMIT and info.extra:
            return False
        end += 30 + name + len(info.extra) + info.file_size
        directory += 46 + name + len(info.extra)
        if end >= zipfile.ZIP64_LIMIT:  # lengths of ZIP64 records are zipfile's own business
            return True
    return archive.start_dir == end and end + directory + 22 == size and not archive.comment


def pack_optimizer(name: str, state: dict[str, Any]) -> tuple[dict[str, Tensor], list[Any]]:
    """An optimizer's state_dict as named tensors and JSON-able parameter groups."""
    tensors = {
        f"{name}/{index}/{key}": value
        for index, entry in state["state"].items()
        for key, value in entry.items()
    }
    return tensors, state["param_groups"]


def unpack_optimizer(name: str, tensors: dict[str, Tensor], groups: list[Any]) -> dict[str, Any]:
    """The inverse of `pack_optimizer`. Raises CheckpointError where tensors are missing."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        owner, index, field = key.split("/")
        if owner == name:
            state.setdefault(int(index), {})[field] = value
    complete = {
        index: set().union(*state.values()) for group in groups for index in group["params"]
    }
    if state and {index: set(fields) for index, fields in state.items()} != complete:
        raise CheckpointError(f"tensors of the {name} optimizer are missing")
    return {"state": state, "param_groups": groups}
