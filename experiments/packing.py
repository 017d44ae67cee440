"""Results on disk: one JSON document per cell, packed into two tables per folder.

A cell that has just been measured is a single file, `<cell>.json`. `pack` moves these files,
without loss, into

episodes.csv.xz   one row per evaluation episode: cell, guidance scale, seed, return, length
provenance.json   one line per cell with everything else. What cells share (configurations, datasets
                  with their episode returns, versions, machines) is stored once, on a separate
                  line, and `{"shared": name}` refers to it.

A single file takes precedence over the rows of its cell in the tables.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import lzma
import os
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

Document = dict[str, Any]
EPISODES, PROVENANCE = "episodes.csv.xz", "provenance.json"
FORMAT_VERSION = 1
"""of the tables; each document has another one"""
LISTS = {"seeds": "seed", "returns": "return", "lengths": "length"}
"""lists of an evaluation, and the columns of the table of episodes that hold them"""
SHARED = ("config", "dataset", "machine", "reference", "versions")
"""keys whose objects are stored once"""


class ResultError(ValueError):
    """A file that is not a cell's result."""


def read_documents(folder: Path) -> dict[str, Document]:
    """The documents of all cells of a results folder by name, from tables and from single files.

    Raises ResultError for a file that cannot be read.
    """
    single = {path.stem: _read_file(path) for path in _single_files(folder)}
    return dict(sorted({**_read_tables(folder), **single}.items()))


def read_document(folder: Path, cell: str) -> Document | None:
    """The document of one cell, None where there is none. Raises ResultError as above.

    Reads the tables of the whole folder: use `read_documents` for many cells.
    """
    path = folder / f"{cell}.json"
    return _read_file(path) if path.exists() else _read_tables(folder).get(cell)


def write_document(folder: Path, cell: str, document: Document) -> None:
    """Write the file of a single cell, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{cell}.json", json.dumps(document).encode())


def pack(folder: Path) -> list[str]:
    """Move the files of single cells into the tables; returns the names of these cells.

    The files are deleted after both tables are on the disk, so that an interruption loses nothing.
    The tables depend on the documents alone. Raises ResultError, and changes nothing, where a
    document could not be read back from the tables exactly.
    """
    paths = _single_files(folder)
    if not paths:
        return []
    documents = read_documents(folder)
    try:
        episodes, provenance = _to_tables(documents)
        restored = _from_tables(episodes, provenance)
    except (LookupError, TypeError, ValueError) as error:
        raise ResultError(f"the files in {folder} cannot be packed: {error!r}") from error
    for name, document in documents.items():
        if _canonical(restored[name]) != _canonical(document):
            raise ResultError(f"{folder / name}.json cannot be packed without loss: move it away")
    _write(folder / EPISODES, lzma.compress(episodes.encode()))
    _write(folder / PROVENANCE, provenance.encode())
    for path in paths:
        path.unlink()
    return [path.stem for path in paths]


def _single_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if path.name != PROVENANCE)


def _read_file(path: Path) -> Document:
    try:
        document: Document = json.loads(path.read_text())
        document["evaluations"]
    except (LookupError, TypeError, ValueError) as error:
        raise ResultError(f"{path} is not a cell's result: {error!r}") from error
    return document


def _read_tables(folder: Path) -> dict[str, Document]:
    """The documents in the tables."""
    if not (folder / PROVENANCE).exists():
        return {}
    try:
        episodes = lzma.decompress((folder / EPISODES).read_bytes()).decode()
        return _from_tables(episodes, (folder / PROVENANCE).read_text())
    except (LookupError, TypeError, ValueError, OSError, lzma.LZMAError) as error:
        raise ResultError(
            f"{EPISODES} and {PROVENANCE} in {folder} cannot be read: {error!r}"
        ) from error


def _to_tables(documents: dict[str, Document]) -> tuple[str, str]:
    """The text of the table of episodes, and that of the table of provenance."""
    episodes = io.StringIO()
    writer = csv.writer(episodes, lineterminator="\n")
    writer.writerow(["cell", "guidance_scale", *LISTS.values()])
    shared: dict[str, Any] = {}
    cells = {}
    for name, document in documents.items():
        for evaluation in document["evaluations"]:
            scale = json.dumps(evaluation["guidance_scale"])
            for row in zip(*(evaluation[key] for key in LISTS), strict=True):
                writer.writerow([name, scale, *map(json.dumps, row)])
        rest = [
            {key: value for key, value in evaluation.items() if key not in LISTS}
            for evaluation in document["evaluations"]
        ]
        cells[name] = _share({**document, "evaluations": rest}, shared)
    return episodes.getvalue(), (
        f'{{"format_version":{FORMAT_VERSION},\n'
        f'"shared":{_line_each(shared)},\n"cells":{_line_each(cells)}}}\n'
    )


def _from_tables(episodes: str, provenance: str) -> dict[str, Document]:
    """The inverse of `_to_tables`.

    An evaluation without rows stays without lists: packing was interrupted, and the cell's single
    file still exists.
    """
    tables = json.loads(provenance)
    if tables["format_version"] > FORMAT_VERSION:
        raise ValueError(f"format {tables['format_version']} is newer than {FORMAT_VERSION}")
    lists = {}
    for key, rows in groupby(csv.reader(io.StringIO(episodes)), itemgetter(0, 1)):
        _, _, *columns = zip(*rows, strict=True)
        lists[key] = dict(zip(LISTS, columns, strict=True))
    documents = {}
    for name, cell in tables["cells"].items():
        documents[name] = _resolve(cell, tables["shared"])
        for evaluation in documents[name]["evaluations"]:
            texts = lists.get((name, json.dumps(evaluation["guidance_scale"])), {})
            evaluation |= {key: json.loads(f"[{','.join(texts[key])}]") for key in texts}
    return documents


def _share(document: Document, shared: dict[str, Any]) -> Document:
    """The document with references in place of objects, which are added to `shared`."""

    def replace(part: dict[str, Any]) -> dict[str, Any]:
        for key in SHARED:
            if isinstance(part.get(key), dict):
                digest = hashlib.sha256(_canonical(part[key]).encode()).hexdigest()
                name = f"{key}-{digest[:8]}"
                shared[name], part[key] = part[key], {"shared": name}
        return part

    copy: Document = json.loads(json.dumps(document), object_hook=replace)
    return copy


def _resolve(part: Any, shared: dict[str, Any]) -> Any:
    """The part with objects in place of references."""
    if isinstance(part, list):
        return [_resolve(value, shared) for value in part]
    if not isinstance(part, dict):
        return part
    if part.keys() == {"shared"}:
        return _resolve(shared[part["shared"]], shared)
    return {key: _resolve(value, shared) for key, value in part.items()}


def _line_each(entries: dict[str, Any]) -> str:
    """A JSON object with each of its entries on a line."""
    lines = [json.dumps({key: entries[key]}, separators=(",", ":")) for key in sorted(entries)]
    return "{\n" + ",\n".join(line[1:-1] for line in lines) + "\n}"


def _canonical(document: Document) -> str:
    """The same text for equal documents only; 1 and 1.0 differ."""
    return json.dumps(document, sort_keys=True)


def _write(path: Path, content: bytes) -> None:
    """Write aside, sync, rename."""
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with open(scratch, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
