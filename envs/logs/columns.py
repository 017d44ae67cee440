"""Columns of numbers by their names, out of NumPy's, CSV and Parquet files.

Only the columns that are asked for are read, and they are held in memory. Nothing is unpickled.
"""

from __future__ import annotations

import csv
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgpo.envs.store.npz import UNREADABLE, Archive, NpzError

Columns = dict[str, NDArray[Any]]
"""(N,) or (N, k) by name, all with the same N"""

TRUTH = {"true": 1.0, "false": 0.0, "": np.nan, "none": np.nan, "null": np.nan}
"""what cells may hold beside numbers, in lower case"""
DELIMITERS = ",;\t|"
INSTALL = "pip install 'qgpo[arrow]'"
SHOWN = 30


class LogError(ValueError):
    """A recording that cannot be read, or lacks what was asked for."""


def expand(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that match, in the patterns' order and then the file's, each once.

    A pattern is a name, or has `*` and `?`. Raises LogError for one that matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        matching = [n for n in names if n == pattern] or [
            n for n in names if fnmatch.fnmatchcase(n, pattern)
        ]
        if not matching:
            raise LogError(f"no column is called {pattern!r}; there are {listed(names)}")
        found.update(dict.fromkeys(matching))
    return list(found)


def listed(names: Iterable[str]) -> str:
    """The names for messages; not all where there are many."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(map(repr, names[:SHOWN]))}{more}" if names else "none"


def names_in(path: Path) -> list[str]:
    """The names of the columns of a file, in its order. Raises LogError."""
    return list(_reader(path)[0](path))


def read_columns(path: Path, names: Sequence[str]) -> Columns:
    """Those columns of a file. Raises LogError, which names the file and the column."""
    columns = _reader(path)[1](path, names)
    for name, column in columns.items():
        if column.dtype.kind not in "biuf":
            raise LogError(f"{path}: column {name!r} holds no numbers, its type is {column.dtype}")
    return columns


def _reader(path: Path) -> tuple[Callable[[Path], list[str]], Callable[..., Columns]]:
    if path.suffix not in READERS:
        raise LogError(f"{path}: expected a name that ends in one of {sorted(READERS)}")
    if not path.is_file():
        raise LogError(f"{path} {'is no file' if path.exists() else 'does not exist'}")
    return READERS[path.suffix]


# NumPy ------------------------------------------------------------------------------------


def _names_in_npz(path: Path) -> list[str]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return list(archive.files)
    except (*UNREADABLE, OSError) as error:
        raise LogError(f"{path} cannot be read ({error})") from error


def _read_npz(path: Path, names: Sequence[str]) -> Columns:
    columns: Columns = {}
    for name in names:  # one by one: observations may have more rows than the others
        try:
            with Archive(path, [name]) as archive:
                columns[name] = archive.read(name, archive.rows).copy()
                archive.finish()
        except (NpzError, OSError) as error:
            raise LogError(str(error)) from error
    return columns


# CSV --------------------------------------------------------------------------------------


def _header(path: Path) -> tuple[list[str], str]:
    """The names in the first line, and what stands between them."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            line = file.readline(2**20)
    except (OSError, UnicodeDecodeError) as error:
        raise LogError(f"{path} cannot be read ({error})") from error
    delimiter = max(DELIMITERS, key=line.count)
    names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        raise LogError(
            f"{path}: its first line names {listed(twice) if twice else 'no'} columns"
            f"{' twice' if twice else ''}"
        )
    try:
        float(names[0])
    except ValueError:
        return names, delimiter
    raise LogError(f"{path}: its first line holds numbers, expected the names of the columns")


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line below the first one, without empty lines. Raises LogError."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
            next(lines, None)
            for cells in lines:
                if cells:
                    yield lines.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LogError(f"{path} cannot be read ({error})") from error
    finally:
        csv.field_size_limit(before)


def _check_widths(path: Path, names: Sequence[str], delimiter: str) -> None:
    """Raise LogError for a line that has not as many cells as the first one, or for none at all.

    An empty cell at the end of a line counts as none, and so does an empty name.
    """
    width, rows = len(names) - (not names[-1]), 0
    for line, cells in _rows(path, delimiter):
        ends_empty = len(cells) == width + 1 and not cells[-1].strip()
        if len(cells) != width and not ends_empty:
            raise LogError(
                f"{path}: line {line} has {len(cells)} cells, the first line names {width} columns"
            )
        rows += 1
    if rows == 0:
        raise LogError(f"{path} has no rows below the names of its columns")


def _check_cells(path: Path, names: Sequence[str], columns: Sequence[int], delimiter: str) -> None:
    """Raise LogError, which names the line, for a cell of those columns that is no number."""
    for line, cells in _rows(path, delimiter):
        for k in (k for k in columns if k < len(cells)):
            try:
                _number(cells[k])
            except ValueError:
                raise LogError(
                    f"{path}: line {line}: column {names[k]!r} has {cells[k].strip()[:40]!r}, "
                    "expected numbers; write time stamps in seconds, and leave out columns of words"
                ) from None


def _read_csv(path: Path, names: Sequence[str]) -> Columns:
    header, delimiter = _header(path)
    _check_widths(path, header, delimiter)
    places = [header.index(name) for name in names]
    options: dict[str, Any] = {
        "delimiter": delimiter,
        "skiprows": 1,
        "usecols": places,
        "ndmin": 2,
        "encoding": "utf-8-sig",
        "comments": None,
        "quotechar": '"',
    }
    try:
        try:
            rows = np.loadtxt(path, **options)
        except ValueError:  # truth values or empty cells, ten times as slow
            rows = np.loadtxt(path, converters=dict.fromkeys(places, _number), **options)
    except (ValueError, OSError) as error:
        _check_cells(path, header, places, delimiter)
        raise LogError(f"{path} cannot be read ({error})") from error
    return {name: rows[:, k] for k, name in enumerate(names)}


def _number(text: str) -> float:
    """A cell as a number. Raises ValueError for other text."""
    text = text.strip()
    truth = TRUTH.get(text.lower())
    return float(text) if truth is None else truth


# Parquet ----------------------------------------------------------------------------------


def _parquet() -> Any:
    try:
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise LogError(f"Parquet files need pyarrow ({error}): {INSTALL}") from error
    return pyarrow.parquet


def _names_in_parquet(path: Path) -> list[str]:
    try:
        return list(_parquet().read_schema(path).names)
    except LogError:
        raise
    except Exception as error:  # Arrow's errors are of many types
        raise LogError(f"{path} cannot be read ({_line(error)})") from error


def _read_parquet(path: Path, names: Sequence[str]) -> Columns:
    parquet = _parquet()
    try:
        table = parquet.ParquetFile(path).read(columns=list(names)).combine_chunks()
        table.validate(full=True)
        return {name: _values(path, name, table.column(name)) for name in names}
    except LogError:
        raise
    except Exception as error:  # Arrow's errors are of many types
        raise LogError(f"{path} cannot be read ({_line(error)})") from error


def _values(path: Path, name: str, column: Any) -> NDArray[Any]:
    """A column of numbers, (N,), or of lists of the same length, (N, k)."""
    if "list" not in str(column.type):
        return np.asarray(column.to_numpy())
    rows = column.to_pylist()
    sizes = {len(row) if row is not None else 0 for row in rows}
    if len(sizes) != 1:
        raise LogError(f"{path}: column {name!r} has lists of {sorted(sizes)} numbers")
    return np.array(rows)


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


READERS: dict[str, tuple[Callable[[Path], list[str]], Callable[..., Columns]]] = {
    ".npz": (_names_in_npz, _read_npz),
    ".csv": (lambda path: _header(path)[0], _read_csv),
    ".tsv": (lambda path: _header(path)[0], _read_csv),
    ".parquet": (_names_in_parquet, _read_parquet),
}
