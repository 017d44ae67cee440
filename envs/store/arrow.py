"""Episodes in Minari's Arrow and Parquet files, judged and validated before they are used.

The reader of Arrow trusts the sizes that a file states; `validate` compares them with the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from minari import EpisodeData

from qgpo.envs.store.hdf5 import COLUMNS, ColumnError, check_size


def lengths(data: Path, indices: Iterable[int], file_format: str, of: str) -> list[int]:
    """The steps of these episodes, by what their files state; nothing is read."""
    return [
        _opened(data, int(index), file_format, f"{of}, episode {index}").count_rows() - 1
        for index in indices
    ]


def read(
    data: Path, indices: Iterable[int], file_format: str, space: spaces.Space[Any], of: str
) -> Iterator[EpisodeData]:
    """Those episodes, one after the other, without their infos."""
    for index in indices:
        episode = f"{of}, episode {index}"
        stored = _opened(data, int(index), file_format, episode)
        table = stored.to_table(columns=list(COLUMNS)).combine_chunks()
        table.validate(full=True)
        parts = {name: _values(table[name], f"{episode}: {name}") for name in COLUMNS[1:]}
        observations = _assembled(table["observations"], space, f"{episode}: observations")
        yield EpisodeData(
            id=int(index),
            observations=observations,
            infos={},
            **{name: values[:-1] for name, values in parts.items()},
        )


def _opened(data: Path, index: int, file_format: str, of: str) -> Any:
    """The files of an episode, whose columns have types of a fixed size that they can have."""
    import pyarrow.dataset  # type: ignore[import-untyped]

    folder = data / str(index)
    if not folder.is_dir():
        raise ColumnError(f"{of} is missing")
    stored = pyarrow.dataset.dataset(
        str(folder), format=file_format, ignore_prefixes=["_", ".", "metadata.json"]
    )
    bits = 0
    for name in COLUMNS:
        if name not in stored.schema.names:
            raise ColumnError(f"{of}: {name} is missing")
        bits += _bits(stored.schema.field(name).type, f"{of}: {name}")
    declared = stored.count_rows() * bits // 8
    for path in map(Path, stored.files):
        check_size(of, declared // len(stored.files), path)
    return stored


def _bits(kind: Any, of: str) -> int:
    """Bits a row. Raises ColumnError for types other than numbers and booleans, nested or not."""
    from pyarrow import types

    if types.is_struct(kind):
        return sum(_bits(part.type, f"{of}/{part.name}") for part in kind)
    if types.is_fixed_size_list(kind):
        return int(kind.list_size) * _bits(kind.value_type, of)
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
        return int(kind.bit_width)
    raise ColumnError(f"{of} contains no numbers, its type is {kind}")


def _assembled(column: Any, space: spaces.Space[Any], of: str) -> Any:
    """The observations, nested as their space is."""
    import pyarrow

    if not isinstance(space, spaces.Dict):
        return _values(column, of)
    whole = column.combine_chunks() if isinstance(column, pyarrow.ChunkedArray) else column
    if not pyarrow.types.is_struct(whole.type):
        raise ColumnError(f"{of} has no parts, expected {sorted(space.spaces)}")
    names = [part.name for part in whole.type]
    missing = [key for key in space.spaces if key not in names]
    if missing or whole.null_count:
        raise ColumnError(f"{of} has parts {names}, expected {sorted(space.spaces)} everywhere")
    return {
        key: _assembled(whole.field(key), part, f"{of}/{key}") for key, part in space.spaces.items()
    }


def _values(column: Any, of: str) -> np.ndarray[Any, Any]:
    """The numbers, with an axis for lists. Raises ColumnError for rows without a number."""
    import pyarrow

    values = column.combine_chunks() if isinstance(column, pyarrow.ChunkedArray) else column
    shape = [len(values)]
    while pyarrow.types.is_fixed_size_list(values.type):
        shape.append(values.type.list_size)
        if values.null_count:
            raise ColumnError(f"{of} has {values.null_count} rows without numbers")
        values = values.flatten()
    if values.null_count:
        raise ColumnError(f"{of} has {values.null_count} rows without a number")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)
