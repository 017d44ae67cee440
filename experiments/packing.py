"""Results on disk: one JSON document per cell, packed into two tables per folder.

A cell that has just been measured is a single file, `<cell>.json`. `pack` moves these files,
without loss, into

episodes.csv.xz   one row per evaluation episode: cell, guidance scale, seed, return, length, and
                  success where that is the score of any episode in the table
provenance.json   one line per cell with everything else. What cells share (configurations, datasets
                  with their episode returns, versions, machines) is stored once, on a separate
                  line, and `{"shared": name}` refers to it.

A single file takes precedence over the rows of its cell in the tables.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import lzma
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from qgpo.agents.core.parsing import brief
from qgpo.envs.text_files import LARGEST, read_bytes, read_json
from qgpo.files import replacing

Document = dict[str, Any]
EPISODES, PROVENANCE = "episodes.csv.xz", "provenance.json"
FORMAT_VERSION = 2
"""of the tables, with successes; without them it is 1. Each document has another one"""
PLACE = ["cell", "guidance_scale"]
LISTS = {"seeds": "seed", "returns": "return", "lengths": "length"}
"""lists of an evaluation, and the columns of the table of episodes that hold them"""
SUCCESSES, SUCCESS = "successes", "success"
"""the list that only some evaluations have, and its column; in other evaluations' rows it is
empty"""
SHARED = ("config", "dataset", "machine", "reference", "versions")
"""keys whose objects are stored once"""
MOST_IN_TABLES = 2**30
"""letters of all cells in the tables of a folder, with what they share; a cell has LARGEST"""
SLACK, MOST_TIMES = 2**25, 200
"""bytes that a table may have unpacked, and how many more for each that is packed"""
MOST_MEMORY = 2**28
"""bytes for unpacking; the strongest compression takes a quarter of them"""


class ResultError(ValueError):
    """A file that is not a cell's result."""


@contextlib.contextmanager
def refused(message: str) -> Iterator[None]:
    """Raise ResultError with that message for contents that cannot be read."""
    try:
        yield
    except (
        *(LookupError, TypeError, ValueError, AttributeError, RecursionError),
        *(OSError, EOFError, lzma.LZMAError, csv.Error, ArithmeticError),
    ) as error:
        raise ResultError(f"{message}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What is wrong, in words."""
    if isinstance(error, KeyError):
        return f"it has no {brief(error.args[0])}"
    return str(error) if isinstance(error, ValueError) else repr(error)


def read_documents(folder: Path) -> dict[str, Document]:
    """The documents of all cells of a results folder by name, from tables and from single files.

    Raises ResultError for a file that cannot be read.
    """
    documents, errors = read_what_can_be(folder)
    for error in errors.values():
        raise error
    return documents


def read_what_can_be(folder: Path) -> tuple[dict[str, Document], dict[str, ResultError]]:
    """As `read_documents`, and what cannot be read: its error by name (the cell's, or the table's).

    A cell whose own file cannot be read has no document: its rows in the tables are older.
    """
    documents: dict[str, Document] = {}
    errors: dict[str, ResultError] = {}
    try:
        documents = _read_tables(folder)
    except ResultError as error:
        errors[PROVENANCE] = error
    for path in _single_files(folder):
        documents.pop(path.stem, None)
        try:
            documents[path.stem] = _read_file(path)
        except ResultError as error:
            errors[path.stem] = error
    return dict(sorted(documents.items())), errors


def read_document(folder: Path, cell: str) -> Document | None:
    """The document of one cell, None where there is none. Raises ResultError as above.

    Reads the tables of the whole folder: use `read_documents` for many cells.
    """
    path = folder / f"{cell}.json"
    return _read_file(path) if path.exists() else _read_tables(folder).get(cell)


def write_document(folder: Path, cell: str, document: Document) -> None:
    """Write the file of a single cell, atomically."""
    with replacing(folder / f"{cell}.json") as file:
        file.write(json.dumps(document).encode())


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
    with refused(f"the files in {folder} cannot be packed"):
        episodes, provenance = (text.encode() for text in _to_tables(documents))
        packed = lzma.compress(episodes)
        if max(len(packed), len(provenance)) > LARGEST:
            raise ValueError(f"a table would have more than {LARGEST} bytes: use several folders")
        restored = _from_tables(_unpacked(packed), json.loads(provenance))
    for name, document in documents.items():
        if _canonical(restored[name]) != _canonical(document):
            raise ResultError(f"{folder / name}.json cannot be packed without loss: move it away")
    with replacing(folder / EPISODES) as file:
        file.write(packed)
    with replacing(folder / PROVENANCE) as file:
        file.write(provenance)
    for path in paths:
        path.unlink()
    return [path.stem for path in paths]


def _single_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if path.name != PROVENANCE)


def _read_file(path: Path) -> Document:
    with refused(f"{path} is not a cell's result"):
        document: Document = read_json(path)
        for evaluation in document["evaluations"]:
            evaluation["guidance_scale"]
    return document


def _read_tables(folder: Path) -> dict[str, Document]:
    """The documents in the tables."""
    if not (folder / PROVENANCE).exists():
        return {}
    with refused(f"{EPISODES} and {PROVENANCE} in {folder} cannot be read"):
        documents = _from_tables(
            _unpacked(read_bytes(folder / EPISODES)), read_json(folder / PROVENANCE)
        )
    return documents


def _unpacked(packed: bytes) -> str:
    """The table of episodes. Raises LZMAError, or ValueError where it unpacks to too much."""
    most = SLACK + MOST_TIMES * len(packed)
    stream = lzma.LZMADecompressor(memlimit=MOST_MEMORY)
    content = stream.decompress(packed, max_length=most)
    if not stream.eof or stream.unused_data:
        raise ValueError(f"{EPISODES} is not a single table, or unpacks to more than {most} bytes")
    return content.decode()


def _to_tables(documents: dict[str, Document]) -> tuple[str, str]:
    """The text of the table of episodes, and that of the table of provenance."""
    episodes = io.StringIO()
    writer = csv.writer(episodes, lineterminator="\n")
    by_success = any(
        isinstance(evaluation.get(SUCCESSES), list)
        for document in documents.values()
        for evaluation in document["evaluations"]
    )
    writer.writerow([*PLACE, *LISTS.values(), *([SUCCESS] if by_success else [])])
    shared: dict[str, Any] = {}
    cells = {}
    for name, document in documents.items():
        cells[name] = json.loads(json.dumps(document), object_hook=partial(_share, shared))
        for evaluation in cells[name]["evaluations"]:
            scale = json.dumps(evaluation["guidance_scale"])
            columns = [[*map(json.dumps, evaluation.pop(key))] for key in LISTS]
            if isinstance(evaluation.get(SUCCESSES), list):
                columns.append([*map(json.dumps, evaluation.pop(SUCCESSES))])
            elif by_success:
                columns.append([""] * len(columns[0]))
            writer.writerows([name, scale, *row] for row in zip(*columns, strict=True))
    return episodes.getvalue(), (
        f'{{"format_version":{FORMAT_VERSION if by_success else 1},\n'
        f'"shared":{_line_each(shared)},\n"cells":{_line_each(cells)}}}\n'
    )


def _from_tables(episodes: str, tables: Document) -> dict[str, Document]:
    """The inverse of `_to_tables`, with the provenance read from its JSON.

    An evaluation without rows stays without lists: packing was interrupted, and the cell's single
    file still exists.
    """
    if tables["format_version"] > FORMAT_VERSION:
        raise ValueError(f"format {tables['format_version']} is newer than {FORMAT_VERSION}")
    lists: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {}
    reader = csv.reader(io.StringIO(episodes))
    header = next(reader, [])
    names = [*LISTS, SUCCESSES] if SUCCESS in header else [*LISTS]
    if header not in ([*PLACE, *LISTS.values()], [*PLACE, *LISTS.values(), SUCCESS]):
        raise ValueError(f"{EPISODES} has the columns {brief(header)}")
    for key, rows in groupby(reader, itemgetter(0, 1)):
        if key in lists:
            raise ValueError(f"rows of cell {key[0]!r} at scale {key[1]} are in two places")
        _, _, *columns = zip(*rows, strict=True)
        lists[key] = dict(zip(names, columns, strict=True))
        if not any(lists[key].get(SUCCESSES, ())):
            lists[key].pop(SUCCESSES, None)
    shared = _Shared(tables["shared"])
    documents = {}
    for name, cell in tables["cells"].items():
        documents[name] = shared.read_cell(cell)
        for evaluation in documents[name]["evaluations"]:
            texts = lists.get((name, json.dumps(evaluation["guidance_scale"])), {})
            evaluation |= {key: json.loads(f"[{','.join(texts[key])}]") for key in texts}
    return documents


def _share(shared: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """The part of a document with references in place of objects, which are added to `shared`."""
    for key in SHARED:
        if isinstance(part.get(key), dict):
            digest = hashlib.sha256(_canonical(part[key]).encode()).hexdigest()
            name = f"{key}-{digest[:8]}"
            shared[name], part[key] = part[key], {"shared": name}
    return part


class _Shared:
    """What cells share: each part is read once, and counted as often as it is referred to."""

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = parts
        self.read: dict[str, tuple[Any, int]] = {}
        """a part by name, and its letters with those of the parts in it"""
        self.letters = self.of_all = 0
        """of what is being read, and of all cells"""

    def read_cell(self, cell: Document) -> Document:
        """The cell with the parts that it refers to. Raises ValueError where it is too large."""
        document, letters = self._read(cell)
        self.of_all += letters
        if self.of_all > MOST_IN_TABLES:
            raise ValueError(f"its cells have more than {MOST_IN_TABLES} letters")
        return document  # type: ignore[no-any-return]

    def _read(self, part: Any) -> tuple[Any, int]:
        text = json.dumps(part)
        outer, self.letters = self.letters, len(text)
        value = json.loads(text, object_hook=self._resolve)
        letters, self.letters = self.letters, outer
        return value, letters

    def _resolve(self, part: dict[str, Any]) -> Any:
        """The object that a part refers to, or the part itself where it is no reference."""
        if part.keys() != {"shared"}:
            return part
        name = part["shared"]
        if name not in self.read:
            self.read[name] = self._read(self.parts[name])
        value, letters = self.read[name]
        self.letters += letters
        if self.letters > LARGEST:
            raise ValueError(f"a cell has more than {LARGEST} letters with what it shares")
        return value


def _line_each(entries: dict[str, Any]) -> str:
    """A JSON object with each of its entries on a line."""
    lines = [json.dumps({key: entries[key]}, separators=(",", ":")) for key in sorted(entries)]
    return "{\n" + ",\n".join(line[1:-1] for line in lines) + "\n}"


def _canonical(document: Document) -> str:
    """The same text for equal documents only; 1 and 1.0 differ."""
    return json.dumps(document, sort_keys=True)
