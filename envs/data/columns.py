"""Columns of recorded numbers and flags: what they may hold, and what float32 loses of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LOSS = 1e-3
"""rounding errors above this part of a column's standard deviation are reported"""
LOSS_OF_STEPS = 0.5
"""and those above this part of the root mean square of its change from step to step"""
NOISE = 1e-12
"""reals that vary by less than this part of their largest value are constant, up to rounding"""
ROWS_AT_ONCE = 4096
LEAST_EXPONENT = -1073
"""of a double's"""


def check_type(of: str, name: str, dtype: np.dtype[Any]) -> None:
    """Raise ValueError for a type that is neither real numbers nor booleans.

    Text, bytes, objects, complex numbers, dates and compounds have no place in a column.
    """
    if dtype.kind not in "biuf":
        raise ValueError(f"{of}: {name} are not numbers (their type is {dtype})")


def numbers(
    of: str, name: str, values: ArrayLike, shape: tuple[int, ...] | None = None, why: str = ""
) -> NDArray[np.float32]:
    """The values as contiguous float32.

    Raises ValueError, which starts with `of`, for other types and shapes (`why` explains the
    expected one), for masked values, and for numbers that float32 does not hold.
    """
    array = recorded(of, name, values, shape, why)
    with np.errstate(over="ignore", under="ignore"):
        converted = np.ascontiguousarray(array, dtype=np.float32).reshape(array.shape)
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:
        lost = np.isinf(converted) & np.isfinite(array)
        if lost.any():
            raise ValueError(
                f"{of}: {name} has value {array[lost][0]:g}, which is larger than float32 holds; "
                "scale it before recording"
            )
    return converted


def flags(
    of: str, name: str, values: ArrayLike, shape: tuple[int, ...], why: str = ""
) -> NDArray[np.bool_]:
    """The values, all 0 or 1, as booleans. Raises ValueError for others, NaN and text too."""
    array = recorded(of, name, values, shape, why)
    wrong = array[(array != 0) & (array != 1)]
    if len(wrong) > 0:
        raise ValueError(f"{of}: {name} has value {wrong[0]!r}, expected False or True")
    return array.astype(np.bool_)


def without_gradient(values: Any) -> Any:
    """Tensors of torch as NumPy reads them: without a gradient, in main memory. Others as is."""
    return values.detach().cpu() if hasattr(values, "detach") else values


def centred(values: NDArray[Any]) -> NDArray[np.float64]:
    """Differences of (N,) from their mean, taken before anything is rounded."""
    offsets = _difference(values, values[:1])
    return offsets - np.mean(offsets, dtype=np.float64)


def recorded(
    of: str, name: str, values: ArrayLike, shape: tuple[int, ...] | None = None, why: str = ""
) -> NDArray[Any]:
    """The values as they are. Raises ValueError for other types and shapes and masked values."""
    try:
        array = np.asarray(without_gradient(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{of}: {name} are not numbers ({error})") from error
    check_type(of, name, array.dtype)
    if isinstance(values, np.ma.MaskedArray) and values.mask.any():
        raise ValueError(f"{of}: {name} has masked values, expected a number everywhere")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{of}: {name} has shape {array.shape}, expected {shape}{why}")
    return array


@dataclass
class Rounding:
    """What the columns of a dataset lose in float32, gathered episode by episode."""

    columns: dict[str, _Column] = field(default_factory=dict)

    def add(self, name: str, values: ArrayLike, converted: NDArray[np.float32]) -> None:
        """Rows before and after the conversion; types that float32 holds exactly cost nothing."""
        array = np.asarray(without_gradient(values))
        exact = array.dtype.itemsize <= (4 if array.dtype.kind == "f" else 2)
        if len(array) == 0 or exact or array.dtype.kind == "b":
            return
        rows = array.reshape(len(array), -1)
        if name not in self.columns:
            self.columns[name] = _Column(rows[0].copy())
        if rows.shape[1] == len(self.columns[name].origin):  # else refused by its shape
            for begin in range(0, len(rows), ROWS_AT_ONCE):
                chunk = slice(begin, begin + ROWS_AT_ONCE)
                self.columns[name].add(rows[chunk], converted.reshape(rows.shape)[chunk])

    def faults(self, of: str) -> Iterator[str]:
        """One message for each array with columns that lose what tells their values apart.

        Raises ValueError where all rewards become the same number.
        """
        for name, column in self.columns.items():
            lossy = column.lossy
            if not lossy.any():
                continue
            first = int(np.flatnonzero(lossy)[0])
            where = f" column {first}" if len(lossy) > 1 else ""
            more = f" (and {lossy.sum() - 1} other columns)" if lossy.sum() > 1 else ""
            text = (
                f"{of}: {name}{where}{more} loses digits in float32: values up to "
                f"{column.largest[first]:.3g} with a standard deviation of "
                f"{column.deviation[first]:.3g} and steps of {column.step[first]:.3g} are rounded "
                f"by up to {column.error[first]:.3g}. "
                "Subtract an offset or change the unit before recording"
            )
            if name == "rewards" and column.low[first] == column.high[first]:
                raise ValueError(f"{text}: all rewards become {column.low[first]:.9g}")
            yield text


class _Column:
    """Moments of rows of D numbers about their first row, and the largest rounding errors, (D,).

    Moments are in a unit of 2 ** `exponent`, above the largest number so far, because squares of
    small numbers vanish.
    """

    def __init__(self, origin: NDArray[Any]) -> None:
        self.origin = origin
        self.n = self.n_steps = 0
        zeros = np.zeros(len(origin))
        self.total, self.squares, self.steps = zeros.copy(), zeros.copy(), zeros.copy()
        self.error, self.largest = zeros.copy(), zeros.copy()
        self.exponent = np.full(len(origin), LEAST_EXPONENT)
        self.low, self.high = zeros + np.inf, zeros - np.inf

    def add(self, rows: NDArray[Any], converted: NDArray[np.float32]) -> None:
        """Rows (T, D) and their float32."""
        with np.errstate(all="ignore"):  # values that are not finite are refused elsewhere
            offsets = self._in_units(_difference(rows, self.origin.astype(rows.dtype)))
            error = np.abs(_difference(converted.astype(rows.dtype), rows))
            self.n += len(rows)
            self.total += offsets.sum(axis=0)
            self.squares += (offsets * offsets).sum(axis=0)
            self.n_steps += len(rows) - 1
            self.steps += (np.diff(offsets, axis=0) ** 2).sum(axis=0)
            self.error = np.maximum(self.error, error.max(axis=0))
            self.largest = np.maximum(self.largest, np.abs(rows.astype(np.float64)).max(axis=0))
            self.low = np.minimum(self.low, converted.min(axis=0))
            self.high = np.maximum(self.high, converted.max(axis=0))

    def _in_units(self, offsets: NDArray[np.float64]) -> NDArray[np.float64]:
        """The offsets (T, D) in the unit, which grows with them."""
        largest = np.abs(offsets).max(axis=0)
        needed = np.where(largest > 0.0, np.frexp(largest)[1], LEAST_EXPONENT)
        exponent = np.maximum(self.exponent, needed)
        shift = self.exponent - exponent
        self.total = _scaled(self.total, shift)
        self.squares, self.steps = (_scaled(m, 2 * shift) for m in (self.squares, self.steps))
        self.exponent = exponent
        return _scaled(offsets, -exponent)

    @property
    def deviation(self) -> NDArray[np.float64]:
        """(D,) standard deviations."""
        with np.errstate(all="ignore"):
            variance = self.squares / self.n - (self.total / self.n) ** 2
            return _scaled(np.sqrt(np.maximum(variance, 0.0)), self.exponent)

    @property
    def step(self) -> NDArray[np.float64]:
        """(D,) root mean squares of the changes from one row to the next."""
        return _scaled(np.sqrt(self.steps / max(self.n_steps, 1)), self.exponent)

    @property
    def lossy(self) -> NDArray[np.bool_]:
        """(D,) whether a column is rounded by a noticeable part of what it varies by.

        Integers stand for exact values: every one that is rounded counts.
        """
        if self.origin.dtype.kind in "iu":
            return self.error > 0.0
        deviation, step, noise = self.deviation, self.step, NOISE * self.largest
        return ((deviation > noise) & (self.error > LOSS * deviation)) | (
            (step > noise) & (self.error > LOSS_OF_STEPS * step)
        )


def _difference(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """The difference, exact for integers of 64 bits that are close together."""
    if first.dtype.kind == "u":
        difference = np.subtract(first, second, dtype=np.uint64).view(np.int64)
    elif first.dtype.kind == "i":
        difference = np.subtract(first, second, dtype=np.int64)
    else:
        difference = np.subtract(first, second)
    return np.asarray(difference, dtype=np.float64)


def _scaled(values: NDArray[np.float64], exponent: NDArray[np.int64]) -> NDArray[np.float64]:
    """The values times 2 ** exponent, exactly."""
    return np.asarray(np.ldexp(values, exponent), dtype=np.float64)


class Rows:
    """Rows that are appended to one array, which has room for as many as are expected.

    A list of parts that is concatenated in the end takes twice the memory.
    """

    def __init__(self, expected: int, like: NDArray[Any]) -> None:
        self._array = np.empty((expected, *like.shape[1:]), like.dtype)
        self._rows = 0

    def append(self, part: NDArray[Any]) -> None:
        """More rows."""
        end = self._rows + len(part)
        if end > len(self._array):
            larger = np.empty((2 * end, *part.shape[1:]), self._array.dtype)
            larger[: self._rows] = self._array[: self._rows]
            self._array = larger
        self._array[self._rows : end] = part
        self._rows = end

    @property
    def whole(self) -> NDArray[Any]:
        """All of them; without the room that is left, where there is some."""
        rows = self._array[: self._rows]
        return rows if len(rows) == len(self._array) else rows.copy()
