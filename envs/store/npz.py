"""NumPy's npz archives, judged before they are read, and read row by row.

An archive may be larger than memory, and its members are packed, so that none can be mapped. Each
one is unpacked as it is read: memory holds the rows that were asked for.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""what a damaged archive may raise; some of these are zipfile's, some are NumPy's"""
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""how NumPy writes members"""
LONGEST_HEADER = 10_000
"""bytes, as NumPy has it"""
LEAST_BYTES, MOST_UNPACKED = 64 * 2**20, 100
"""an archive may state so many bytes of numbers, and so many times its own size"""


class NpzError(ValueError):
    """An archive that does not hold what it should, or not all of it."""


class Member:
    """One array of an archive, (N, …), as a stream of its rows."""

    def __init__(self, name: str, size: int, stream: IO[bytes]) -> None:
        self.name, self.stream = name, stream
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise NpzError(f"{name} has version {version} of its format, expected 1 or 2")
        read: Any = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, self.by_column, dtype = read(stream, max_header_size=LONGEST_HEADER)
        self.shape: tuple[int, ...] = shape
        self.dtype: np.dtype[Any] = dtype
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            raise NpzError(f"{name} contains no numbers, its type is {dtype}")
        if not shape or min(shape) < 0:
            raise NpzError(f"{name} has shape {shape}, expected rows")
        self.nbytes = math.prod(shape) * dtype.itemsize
        if size != stream.tell() + self.nbytes:
            raise NpzError(f"{name} states the shape {shape}, of which not all is there")

    def rows(self, number: int) -> NDArray[Any]:
        """The next rows. Raises NpzError where there are fewer.

        Of an array that is stored column by column (`by_column`) only all rows at once can be read.
        """
        shape = (number, *self.shape[1:])
        by_column = self.by_column and len(shape) > 1
        if by_column and number != self.shape[0]:
            raise NpzError(
                f"{self.name} is stored column by column, expected rows: write it with "
                "np.ascontiguousarray"
            )
        content = self.stream.read(math.prod(shape) * self.dtype.itemsize)
        if len(content) != math.prod(shape) * self.dtype.itemsize:
            raise NpzError(f"{self.name} ends before its {self.shape[0]} rows")
        return np.frombuffer(content, self.dtype).reshape(shape, order="F" if by_column else "C")

    def finish(self) -> None:
        """Read to the end, where the archive's checksum is compared."""
        if self.stream.read(1):
            raise NpzError(f"{self.name} has more than its {self.shape[0]} rows")


class Archive:
    """An open archive of arrays with one number of rows; other members are not looked at.

    Raises NpzError, on opening and on reading, where it is no such archive.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        self.members: dict[str, Member] = {}
        with self._errors(), contextlib.ExitStack() as stack:
            file = stack.enter_context(zipfile.ZipFile(path))
            infos = {info.filename: info for info in file.infolist()}
            missing = [name for name in names if f"{name}.npy" not in infos]
            if missing:
                raise NpzError(f"it has no {', '.join(missing)}")
            for name in names:
                self.members[name] = _open(file, name, infos[f"{name}.npy"], stack)
            self._check()
            self._stack = stack.pop_all()

    def _check(self) -> None:
        most = LEAST_BYTES + MOST_UNPACKED * self.path.stat().st_size
        if self.nbytes > most:
            raise NpzError(
                f"it states {self.nbytes / 1e6:.0f} MB of numbers, which its size cannot contain"
            )
        for name, member in self.members.items():
            if member.shape[0] != self.rows:
                raise NpzError(f"{name} has {member.shape[0]} rows, others have {self.rows}")

    @property
    def rows(self) -> int:
        """N, of every array."""
        return next(iter(self.members.values())).shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, unpacked."""
        return sum(member.nbytes for member in self.members.values())

    def read(self, name: str, number: int) -> NDArray[Any]:
        """The next rows of an array."""
        with self._errors():
            return self.members[name].rows(number)

    def finish(self) -> None:
        """Compare the checksums of arrays that have been read."""
        with self._errors():
            for member in self.members.values():
                member.finish()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Around everything that reads: what it may raise becomes an NpzError with the file."""
        try:
            yield
        except UNREADABLE as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise NpzError(f"{self.path} cannot be read ({reason})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _open(
    file: zipfile.ZipFile, name: str, info: zipfile.ZipInfo, stack: contextlib.ExitStack
) -> Member:
    """A member, whose stream the stack closes."""
    if info.compress_type not in PACKED:
        raise NpzError(f"{name} is packed by method {info.compress_type}, which NumPy never uses")
    return Member(name, info.file_size, stack.enter_context(file.open(info)))
