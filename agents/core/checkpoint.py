"""Checkpoints: one zip of JSON and safetensors. Reading one cannot run code.

checkpoint.json          format version, library versions, agent, configuration, spaces, counters
modules.safetensors      every network, target, EMA and normaliser
optimizers.safetensors   the tensors of every optimizer's state
tables.safetensors       what stages hand to each other (support actions, targets), RNG states
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from qgpo.agents.core.files import replacing
from qgpo.agents.core.provenance import versions
from qgpo.agents.core.training import LIKELY_CAUSES, NonFiniteError, Training, set_generator
from qgpo.agents.core.upgrade import FORMAT_VERSION, upgrade

TENSOR_FILES = ("modules", "optimizers", "tables")
_HEADER = "checkpoint.json"

ConfigT = TypeVar("ConfigT")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or not by this agent."""


class CheckpointWriteError(OSError):
    """A checkpoint that cannot be written; the previous one is unchanged."""


@dataclass
class Checkpoint:
    """Everything that training needs to continue."""

    header: dict[str, Any]
    modules: dict[str, Tensor] = field(repr=False)
    optimizers: dict[str, Tensor] = field(repr=False)
    tables: dict[str, Tensor] = field(repr=False)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: the previous file stays until the new one is complete.

    Raises NonFiniteError where parameters are not finite, so that a good file is never replaced by
    a useless one; CheckpointWriteError where writing fails, on a full disk for example.
    """
    for name, value in checkpoint.modules.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise NonFiniteError(
                f"not saved: {name} has NaN or infinite values at timestep "
                f"{checkpoint.header['num_timesteps']}; {str(path)!r} is as it was. {LIKELY_CAUSES}"
            )
    existed = False
    try:
        existed = path.is_file()
        with replacing(path) as file:
            header = {"format_version": FORMAT_VERSION, **checkpoint.header}
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                archive.writestr(_HEADER, json.dumps(header, indent=2))
                for name in TENSOR_FILES:
                    tensors: dict[str, Tensor] = getattr(checkpoint, name)
                    whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
                    archive.writestr(f"{name}.safetensors", save(whole))
    except OSError as error:
        previous = "the previous one there is unchanged" if existed else "there is none yet"
        raise CheckpointWriteError(
            error.errno,
            f"checkpoint {str(path)!r} could not be written ({error}); {previous}. Free some space "
            "or choose another folder, then go on from the last checkpoint",
        ) from error


def read_header(path: Path) -> dict[str, Any]:
    """Only the JSON of a checkpoint, without its tensors. Raises CheckpointError."""
    return read_checkpoint(path, ()).header


def read_checkpoint(path: Path, tensor_files: tuple[str, ...] = TENSOR_FILES) -> Checkpoint:
    """Read and check a checkpoint, or some of it. Raises CheckpointError with what is wrong."""
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
            tensors = {
                name: load(archive.read(f"{name}.safetensors")) if name in tensor_files else {}
                for name in TENSOR_FILES
            }
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
    with using(path):
        return Checkpoint(upgrade(header), **tensors)


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
        if end >= zipfile.ZIP64_LIMIT:  # zipfile checks the lengths of ZIP64 records
            return True
    return archive.start_dir == end and end + directory + 22 == size and not archive.comment


def with_suffix(path: str | Path) -> Path:
    """The path, ending in .zip. Raises ValueError where it names no file."""
    path = Path(path)
    if not path.name:
        raise ValueError(f"path={str(path)!r} names no file, expected one such as 'agent.zip'")
    return path if path.suffix == ".zip" else path.with_name(path.name + ".zip")


def config_from_json(config_class: type[ConfigT], data: dict[str, Any]) -> ConfigT:
    """The configuration that `dataclasses.asdict` and JSON made of it. Raises CheckpointError."""
    names = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    unknown, missing = sorted(set(data) - names), sorted(names - set(data))
    if unknown or missing:
        raise CheckpointError(f"configuration fields differ: unknown {unknown}, missing {missing}")
    return config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


@contextlib.contextmanager
def using(path: Path) -> Iterator[None]:
    """Turn what a checkpoint's content may raise into a CheckpointError that names the file."""
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be used: {reason}") from error


def pack(
    training: Training,
    config: Any,
    generators: dict[str, torch.Generator],
    tables: dict[str, Tensor] | None = None,
    **more: Any,
) -> Checkpoint:
    """The registers of a training as a checkpoint, with what else its header says.

    `tables` are those to write where not all are. `generators` are written beside training's own.
    """
    optimizers: dict[str, Tensor] = {}
    groups = {}
    for name, optimizer in training.optimizers.items():
        state = optimizer.state_dict()
        groups[name] = state["param_groups"]
        for index, entry in state["state"].items():
            optimizers |= {f"{name}/{index}/{key}": value for key, value in entry.items()}
    header = {
        "versions": versions(),
        "config": dataclasses.asdict(config),
        "seed": training.seed,
        "stage": training.stage,
        "progress": training.progress,
        "num_timesteps": training.num_timesteps,
        "optimizers": groups,
        **more,
    }
    states = {
        f"generator/{name}": generator.get_state()
        for name, generator in {"training": training.generator, **generators}.items()
    }
    kept = {**(training.tables if tables is None else tables), **states}
    return Checkpoint(header, training.networks.state_dict(), optimizers, kept)


def restore(
    training: Training, checkpoint: Checkpoint, generators: dict[str, torch.Generator]
) -> None:
    """Fill the registers of a training whose modules are built. Raises CheckpointError."""
    header = checkpoint.header
    _check_modules(training.networks.state_dict(), checkpoint.modules)
    training.networks.load_state_dict(checkpoint.modules)
    for name, optimizer in training.optimizers.items():
        optimizer.load_state_dict(
            _optimizer_state(name, checkpoint.optimizers, header["optimizers"][name])
        )
    if set(header["progress"]) != set(training.stages):
        raise CheckpointError(f"its stages are {header['progress']}, not {training.stages}")
    training.progress.update(header["progress"])
    training.stage, training.num_timesteps = header["stage"], header["num_timesteps"]
    tables = dict(checkpoint.tables)
    seed = training.seed + training.num_timesteps  # for states of another kind of device
    for name, generator in {"training": training.generator, **generators}.items():
        set_generator(generator, tables.pop(f"generator/{name}"), seed)
    training.tables.clear()
    for name, table in tables.items():
        state = name.startswith("generator/")
        training.tables[name] = table if state else table.to(training.device)


def _check_modules(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless names and shapes agree."""
    missing, surplus = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    wrong = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    if missing or surplus or wrong:
        raise CheckpointError(
            f"it does not fit its configuration: missing tensors {missing}, unknown {surplus}, of "
            f"wrong shape {wrong}"
        )


def _optimizer_state(name: str, tensors: dict[str, Tensor], groups: list[Any]) -> dict[str, Any]:
    """What an optimizer's `state_dict` was. Raises CheckpointError where tensors are missing."""
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
