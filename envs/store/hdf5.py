"""Episodes in Minari's HDF5 files: every column is judged before its numbers are read.

HDF5 files can name other files (external links, external storage, virtual datasets), hold types
that are no numbers, and state sizes far beyond their own. Minari writes none of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium import spaces
from h5py import h5d, h5g, h5l, h5o, h5s, h5t
from minari import EpisodeData

from qgpo.envs.store.chunks import PIPELINE, Stored

FILE = "main_data.hdf5"
COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")
DEEPEST, MOST_PARTS = 16, 10_000
"""levels of groups in an episode, and columns"""
TYPES = {
    h5t.TIME: "a time",
    h5t.STRING: "text",
    h5t.BITFIELD: "a bit field",
    h5t.OPAQUE: "opaque bytes",
    h5t.COMPOUND: "a compound (complex numbers are one)",
    h5t.REFERENCE: "a reference",
    h5t.ENUM: "an enumeration",
    h5t.VLEN: "of variable length",
    h5t.ARRAY: "an array",
}


class ColumnError(ValueError):
    """A column that does not hold numbers of its own."""


def _judged(
    path: Path, indices: Iterable[int], of: str, names: Iterable[str] = COLUMNS
) -> Iterator[tuple[int, dict[str, Stored]]]:
    """(index, columns) of each episode, whose sizes are checked. Raises ColumnError."""
    declared = 0
    seen: set[int] = set()
    with h5py.File(path, "r") as file:
        cache = file.id.get_mdc_config()
        cache.incr_mode = 0  # what is asked once needs no larger cache, which HDF5 would make
        file.id.set_mdc_config(cache)
        for index in map(int, indices):
            columns = _columns_of(file.id, index, of, names, seen)
            declared += sum(column.memory_bytes for column in columns.values())
            check_size(of, declared, path)
            for name, column in columns.items():
                short = column.short_chunk()
                if short is not None:
                    raise ColumnError(
                        f"{of}, episode {index}: {name} has a chunk at {short} that does not hold "
                        f"its {column.chunk_bytes} bytes"
                    )
            yield index, columns


def _columns_of(
    file: h5g.GroupID, index: int, of: str, names: Iterable[str], seen: set[int]
) -> dict[str, Stored]:
    """The judged columns of an episode by their path, "observations/position" for example.

    `seen` are the addresses of the groups in the file's episodes. Raises ColumnError, which names
    dataset, episode and column, before anything is read.
    """
    of = f"{of}, episode {index}"
    group = _open(file, f"episode_{index}", of, "its group")
    if not isinstance(group, h5g.GroupID):
        raise ColumnError(f"{of} is not a group")
    columns: dict[str, Stored] = {}
    for name in names:
        if name == "infos" and name.encode() not in group:
            continue
        for path, column in _leaves(group, name, name, of, seen):
            if len(columns) == MOST_PARTS:
                raise ColumnError(f"{of}: {name} has more than {MOST_PARTS} parts")
            stored = Stored(column)
            try:
                problem = _fault(stored, is_info=name == "infos")
            except RuntimeError as error:  # HDF5's, of an index of chunks
                problem = f"is damaged: {error}"
            if problem is not None:
                raise ColumnError(f"{of}: {path} {problem}")
            columns[path] = stored
        if name in COLUMNS[1:] and name not in columns:
            raise ColumnError(f"{of}: {name} is a group, expected a column")
    return columns


def lengths(
    path: Path, indices: Iterable[int], of: str, names: Iterable[str] = COLUMNS
) -> list[int]:
    """The steps of these episodes, whose columns of those names are judged and not kept."""
    judged = _judged(path, indices, of, names)
    return [columns["rewards"].shape[0] for _, columns in judged]


def check_size(of: str, declared: int, path: Path) -> None:
    """Raise ColumnError where the numbers would take far more memory than the file has bytes."""
    size = path.stat().st_size
    if declared > 64 * 2**20 + 100 * size:
        raise ColumnError(
            f"{of}: {path.name} states {declared / 1e6:.0f} MB of numbers in "
            f"{size / 1e6:.3g} MB, which compression cannot explain"
        )


def read(
    path: Path, indices: Iterable[int], space: spaces.Space[Any], of: str, infos: Iterable[str] = ()
) -> Iterator[EpisodeData]:
    """Those episodes, one after the other; of their infos, the columns of those names: numbers."""
    wanted = {f"infos/{name}": name for name in infos}
    for index, columns in _judged(path, indices, of, (*COLUMNS, *(["infos"] if wanted else []))):
        observations = _assembled(columns, space, "observations", f"{of}, episode {index}")
        others = {name: _numbers(columns[name]) for name in COLUMNS[1:]}
        known = {name: columns[path] for path, name in wanted.items() if path in columns}
        for name, column in known.items():
            if column.type_class == h5t.STRING:  # HDF5 may follow its references without end
                raise ColumnError(f"{of}, episode {index}: infos/{name} is text, expected numbers")
        found = {name: _numbers(column) for name, column in known.items()}
        yield EpisodeData(id=index, observations=observations, infos=found, **others)


def _numbers(stored: Stored) -> Any:
    """All of a column. h5py reads what is no array of numbers: it knows what to make of it."""
    column = stored.column
    dtype = column.dtype
    if dtype.kind not in "biuf" or not stored.shape or 0 in stored.shape:
        return h5py.Dataset(column)[()]
    values = np.zeros(stored.shape, dtype)  # HDF5 leaves what was never written as it is
    column.read(h5s.ALL, h5s.ALL, values)
    return values


def _assembled(columns: dict[str, Stored], space: spaces.Space[Any], path: str, of: str) -> Any:
    """The observations below a path, nested as their space is."""
    if isinstance(space, spaces.Dict):
        parts = space.spaces.items()
        return {key: _assembled(columns, part, f"{path}/{key}", of) for key, part in parts}
    if path not in columns:
        raise ColumnError(f"{of}: {path} is missing, expected {space}")
    return _numbers(columns[path])


def _leaves(
    group: h5g.GroupID, name: str, path: str, of: str, seen: set[int], depth: int = 0
) -> Iterator[tuple[str, h5d.DatasetID]]:
    """Every column at or below a name, whose links all stay in the file.

    No group is visited twice: groups that hold each other many times have paths without end.
    """
    found = _open(group, name, of, path)
    if isinstance(found, h5d.DatasetID):
        yield path, found
    elif isinstance(found, h5g.GroupID) and depth < DEEPEST:
        address = int(h5o.get_info(found).addr)
        if address in seen:
            raise ColumnError(f"{of}: {path} is a group that is in others too, or nested in itself")
        seen.add(address)
        for part in found:
            inner = part.decode("utf-8", "replace")
            if inner.encode() != part or not inner.isprintable() or "/" in inner or inner == ".":
                raise ColumnError(
                    f"{of}: {path} has a part named {part!r}, which is no printable name"
                )
            yield from _leaves(found, inner, f"{path}/{inner}", of, seen, depth + 1)
    else:
        raise ColumnError(f"{of}: {path} is a type or nested without end, expected a column")


def _open(group: h5g.GroupID, name: str, of: str, path: str) -> Any:
    """What the group holds under a name. Raises ColumnError for nothing, and for soft links."""
    encoded = name.encode()
    try:
        kind = group.links.get_info(encoded).type
    except (KeyError, RuntimeError):
        raise ColumnError(f"{of}: {path} is missing") from None
    if kind in (h5l.TYPE_SOFT, h5l.TYPE_EXTERNAL):
        target = group.links.get_val(encoded)  # bytes, or (file, path)
        whole = target if isinstance(target, bytes) else b":".join(target)
        shown = whole.decode("utf-8", "replace")
        raise ColumnError(f"{of}: {path} is a link to {shown!a:.100}, expected numbers")
    if kind != h5l.TYPE_HARD:
        raise ColumnError(f"{of}: {path} is a link of a kind of its own, expected numbers")
    return h5o.open(group, encoded)


def _fault(stored: Stored, is_info: bool = False) -> str | None:
    """The reason why a column does not hold all of its numbers itself, if there is one."""
    if stored.layout == h5d.VIRTUAL:
        return "is a virtual dataset, whose numbers are in other files"
    if stored.external_files > 0:
        return "has its numbers in other files (external storage)"
    kind = stored.type_class
    is_bool = kind == h5t.ENUM and stored.column.dtype == np.bool_
    is_number = kind in (h5t.INTEGER, h5t.FLOAT) or is_bool
    if not is_number and not (is_info and kind == h5t.STRING):
        return f"contains no numbers, its type is {TYPES.get(kind, f'of class {kind}')}"
    if not stored.shape and not is_info:
        return "is a single value, expected one for each step"
    unusual = stored.unusual_filter() if stored.is_chunked else None
    if unusual is not None:
        return f"is packed by {unusual}, expected {', '.join(PIPELINE.values())}"
    if not stored.is_whole:
        return f"states the shape {stored.shape}, of which not all was written"
    return None
