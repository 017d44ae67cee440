"""Checkpoints: one zip of JSON and safetensors. Reading one cannot run code.

checkpoint.json          format version, library versions, agent, configuration, spaces, counters
modules.safetensors      every network, target, EMA and normaliser
optimizers.safetensors   the tensors of every optimizer's state
tables.safetensors       what stages hand to each other (support actions, targets), RNG states
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast, overload

import torch
from safetensors.torch import save
from torch import Tensor

from qgpo.agents.core.archive import ForeignArchiveError, find_members, read_member, write_members
from qgpo.agents.core.header import optional_arguments
from qgpo.agents.core.parsing import UNREADABLE, Within, check_header, read_json, read_tensors
from qgpo.agents.core.parsing import CheckpointError as CheckpointError
from qgpo.agents.core.parsing import config_from_json as config_from_json
from qgpo.agents.core.process import usual_torch
from qgpo.agents.core.provenance import versions
from qgpo.agents.core.registers import (
    GeneratorState,
    Kinds,
    check_counters,
    check_modules,
    check_tables,
    is_finite,
    optimizer_states,
)
from qgpo.agents.core.training import LIKELY_CAUSES, NonFiniteError, Training, set_generator
from qgpo.agents.core.upgrade import FORMAT_VERSION, upgrade
from qgpo.files import replacing

TENSOR_FILES = ("modules", "optimizers", "tables")
_HEADER = "checkpoint.json"
STATE = "generator/"
"""before the name of a generator, whose state is among the tables"""

Target: TypeAlias = Path | BinaryIO
"""a path, or a file that is open in binary mode"""


KindsOf: TypeAlias = Callable[[Collection[str]], Kinds]
"""the tables that there may be beside the generators' states, given the names of those there are"""


def no_tables(_: Collection[str]) -> Kinds:
    """Those of a training that hands none on."""
    return {}


class CheckpointWriteError(OSError):
    """A checkpoint that cannot be written; the previous one is unchanged."""


@dataclass
class Checkpoint:
    """Everything that training needs to continue."""

    header: dict[str, Any]
    modules: dict[str, Tensor] = field(repr=False)
    optimizers: dict[str, Tensor] = field(repr=False)
    tables: dict[str, Tensor] = field(repr=False)


@usual_torch()
def write_checkpoint(
    target: Target,
    training: Training,
    config: Any,
    generators: dict[str, torch.Generator],
    kinds: KindsOf = no_tables,
    tables: dict[str, Tensor] | None = None,
    **more: Any,
) -> None:
    """Write a training atomically: the previous file stays until the new one is complete.

    `tables` are those to write where not all are, `generators` are written beside training's own,
    `more` into the header. An open file is written from its beginning.

    Raises NonFiniteError where parameters are not finite, so that a good file is never replaced by
    a useless one; CheckpointError for what `read_checkpoint` or `restore`, with those `kinds`,
    would refuse; CheckpointWriteError where writing fails, on a full disk for example.
    """
    checkpoint = _pack(training, config, generators, tables, more)
    for name, value in {**checkpoint.modules, **checkpoint.optimizers}.items():
        if isinstance(value, Tensor) and not is_finite(value):
            raise NonFiniteError(
                f"not saved: {name} has NaN or infinite values at timestep "
                f"{training.num_timesteps}; {named(target)} is unchanged. {LIKELY_CAUSES}"
            )
    try:
        text = json.dumps({"format_version": FORMAT_VERSION, **checkpoint.header}, indent=2)
        as_read = dataclasses.replace(checkpoint, header=read_json(text.encode()))
        check_header(as_read.header)
        config_from_json(type(config), as_read.header["config"])
        optional_arguments(as_read.header)
        check_registers(training, as_read)
        _check_tables(as_read.tables, generators, kinds)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:1000]
        raise CheckpointError(
            f"not saved, because the file could not be read back: {reason}; {named(target)} is "
            "unchanged"
        ) from error
    _write(target, text, checkpoint)


def _write(target: Target, text: str, checkpoint: Checkpoint) -> None:
    members = [(_HEADER, text.encode())]
    for name in TENSOR_FILES:
        tensors: dict[str, Tensor] = getattr(checkpoint, name)
        whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        members.append((f"{name}.safetensors", save(whole)))
    existed = False
    try:
        if not isinstance(target, Path):
            target.seek(0)
            target.truncate()
            write_members(target, members)
            return
        existed = target.is_file()
        with replacing(target) as file:
            write_members(file, members)
    except OSError as error:
        previous = "the previous one there is unchanged" if existed else "there is none yet"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        instead = "Free some space or choose another folder" if full else "Choose another folder"
        raise CheckpointWriteError(
            error.errno,
            f"checkpoint {named(target)} could not be written ({error}); {previous}. {instead}, "
            "then continue from the last checkpoint",
        ) from error


def read_header(source: Target) -> dict[str, Any]:
    """Only the JSON of a checkpoint, without its tensors. Raises CheckpointError."""
    return read_checkpoint(source, ()).header


@usual_torch()
def read_checkpoint(source: Target, tensor_files: tuple[str, ...] = TENSOR_FILES) -> Checkpoint:
    """Read and check a checkpoint, or some of it. Raises CheckpointError with what is wrong.

    Memory for tensors is at most a few times the file's size: all sizes follow from its length.
    """
    try:
        with _opened(source) as file:
            names = [_HEADER, *(f"{name}.safetensors" for name in TENSOR_FILES)]
            members = find_members(file, names)
            header = read_json(read_member(file, members[_HEADER]))
            version = header.get("format_version")
            if type(version) is not int or version > FORMAT_VERSION:
                raise CheckpointError(
                    f"{named(source)} has format version {version!r}, this qgpo reads up to "
                    f"{FORMAT_VERSION}: upgrade qgpo"
                )
            tensors = {
                name: read_tensors(read_member(file, members[f"{name}.safetensors"]))
                if name in tensor_files
                else {}
                for name in TENSOR_FILES
            }
    except CheckpointError:
        raise
    except ForeignArchiveError as error:
        raise CheckpointError(f"{named(source)} is not a qgpo checkpoint: {error}") from error
    except UNREADABLE as error:
        if _is_of_sb3(source):
            raise CheckpointError(
                f"{named(source)} is a file of Stable-Baselines3, not a qgpo checkpoint: load it "
                "with the algorithm that saved it"
            ) from error
        raise CheckpointError(
            f"checkpoint {named(source)} is damaged ({error}); use an earlier copy"
        ) from error
    try:
        check_header(header)
        return Checkpoint(upgrade(header), **tensors)
    except UNREADABLE as error:
        raise _cannot_be_used(source, error) from error


def _is_of_sb3(source: Target) -> bool:
    """Whether it is a zip with the members of Stable-Baselines3."""
    try:
        with zipfile.ZipFile(source) as archive:
            return "_stable_baselines3_version" in archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


@contextlib.contextmanager
def _opened(source: Target) -> Iterator[BinaryIO]:
    """The file to read, which stays open where it was given so."""
    if not isinstance(source, Path):
        yield source
        return
    if not source.is_file():
        there = "is no file" if source.exists() else "does not exist"
        raise CheckpointError(f"checkpoint {named(source)} {there}")
    with source.open("rb") as file:
        yield file


def _check_open_file(file: BinaryIO) -> None:
    """Raise ValueError for an open file in which one cannot go back, or that holds text."""
    if isinstance(file, io.TextIOBase) or not file.seekable():
        raise ValueError(f"{named(file)} is not a seekable file in binary mode, expected one")


@overload
def with_suffix(path: str | Path) -> Path: ...
@overload
def with_suffix(path: BinaryIO) -> BinaryIO: ...
def with_suffix(path: str | Path | BinaryIO) -> Target:
    """The path, ending in .zip; an open binary file as it is.

    Raises ValueError where the path names no file, TypeError for anything else.
    """
    if isinstance(path, io.IOBase):
        _check_open_file(cast(BinaryIO, path))
        return cast(BinaryIO, path)
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"path is a {type(path).__name__}, expected a path or a file that is open in binary "
            "mode"
        )
    path = Path(path)
    if not path.name:
        raise ValueError(f"path={str(path)!r} is not a file name, expected one such as 'agent.zip'")
    return path if path.suffix == ".zip" else path.with_name(path.name + ".zip")


@overload
def source_of(path: str | Path) -> Path: ...
@overload
def source_of(path: BinaryIO) -> BinaryIO: ...
def source_of(path: str | Path | BinaryIO) -> Target:
    """What to read: of a folder the checkpoint in it, unless a file has its name and .zip.

    A path that ends in a slash is a folder. Raises as `with_suffix` does.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
    if not text or not (folder := Path(text)).is_dir():
        return with_suffix(path)
    beside = folder.with_name(folder.name + ".zip") if folder.name else folder
    is_folder = text.endswith(("/", os.sep)) or not beside.is_file()
    return folder / "checkpoint.zip" if is_folder else beside


def named(target: Target) -> str:
    """The file for messages."""
    return repr(str(target)) if isinstance(target, Path) else f"open file {target!r}"


@contextlib.contextmanager
def using(source: Target, checkpoint: Checkpoint) -> Iterator[None]:
    """Around what is built from a checkpoint: no more than it holds, and one kind of error.

    What its content may raise becomes a CheckpointError that names the file.
    """
    try:
        with usual_torch(), Within(checkpoint.modules.values()):
            yield
    except UNREADABLE as error:
        raise _cannot_be_used(source, error) from error


def _cannot_be_used(source: Target, error: BaseException) -> CheckpointError:
    text = " ".join(str(error).split()) or type(error).__name__
    reason = f"{text} is missing" if isinstance(error, KeyError) else text
    return CheckpointError(f"checkpoint {named(source)} cannot be used: {reason[:1000]}")


def _pack(
    training: Training,
    config: Any,
    generators: dict[str, torch.Generator],
    tables: dict[str, Tensor] | None,
    more: dict[str, Any],
) -> Checkpoint:
    """The registers of a training as a checkpoint, with what else its header says."""
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
        f"{STATE}{name}": generator.get_state()
        for name, generator in {"training": training.generator, **generators}.items()
    }
    kept = {**(training.tables if tables is None else tables), **states}
    return Checkpoint(header, training.networks.state_dict(), optimizers, kept)


def check_registers(training: Training, checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Raise CheckpointError for what does not fit a training whose modules are built.

    Returns what every optimizer's `state_dict` was. Tables: see `check_tables`.
    """
    check_modules(training.built, checkpoint.modules)
    states = optimizer_states(training, checkpoint.optimizers, checkpoint.header)
    check_counters(training, checkpoint.header, states)
    return states


def _check_tables(tables: dict[str, Tensor], generators: Iterable[str], kinds: KindsOf) -> None:
    """Raise CheckpointError unless the tables are of these kinds, beside the generators' states."""
    own = [f"{STATE}{name}" for name in ("training", *generators)]
    check_tables(tables, {**kinds(tables), **dict.fromkeys(own, GeneratorState(needed=True))})


def restore(
    training: Training,
    checkpoint: Checkpoint,
    generators: dict[str, torch.Generator],
    kinds: KindsOf = no_tables,
) -> None:
    """Fill the registers of a training whose modules are built. Raises CheckpointError.

    When `kinds` is asked, the training's progress is known.
    """
    header, tables = checkpoint.header, dict(checkpoint.tables)
    states = check_registers(training, checkpoint)
    training.progress.update(header["progress"])
    training.stage, training.num_timesteps = header["stage"], header["num_timesteps"]
    _check_tables(tables, generators, kinds)

    training.networks.load_state_dict(checkpoint.modules)
    for name, optimizer in training.optimizers.items():
        optimizer.load_state_dict(states[name])
    seed = training.seed + training.num_timesteps  # for states of another kind of device
    for name, generator in {"training": training.generator, **generators}.items():
        set_generator(generator, tables.pop(f"{STATE}{name}"), seed)
    training.tables.clear()
    for name, table in tables.items():
        training.tables[name] = table if name.startswith(STATE) else table.to(training.device)
