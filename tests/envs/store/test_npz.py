"""Archives are judged before they are read, and read a few rows at a time."""

from __future__ import annotations

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from qgpo.envs.store import npz
from qgpo.envs.store.npz import Archive, NpzError

ROWS = {"a": np.arange(12.0).reshape(6, 2), "b": np.arange(6) > 2}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.npz"


def as_npy(array, **more):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), **more)
    return file.getvalue()


def write(path, **members):
    """Members of these bytes, or the arrays of ROWS."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in ROWS.items():
            file.writestr(f"{name}.npy", members.get(name, as_npy(array)))


def read(path):
    with Archive(path, ["a", "b"]) as archive:
        first = archive.read("a", 2)
        flags = archive.read("b", 6)
        rest = archive.read("a", 4)
        archive.finish()
    return first, rest, flags


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", [">f4", "<f8", "<f2", "|i1", "<u8"])
def test_arrays_are_read_row_by_row_beside_each_other(save, kind, path):
    save(path, a=ROWS["a"].astype(kind), b=ROWS["b"], c=np.array([{}]))
    first, rest, flags = read(path)
    np.testing.assert_array_equal(np.concatenate([first, rest]), ROWS["a"])
    np.testing.assert_array_equal(flags, ROWS["b"])
    assert rest.dtype == np.dtype(kind)


def test_memory_holds_the_rows_that_are_asked_for(path):
    np.savez_compressed(
        path, a=np.random.default_rng(0).normal(size=(200_000, 10)), b=[0] * 200_000
    )
    tracemalloc.start()
    with Archive(path, ["a", "b"]) as archive:
        for _ in range(20):
            archive.read("a", 100)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert archive.nbytes == 200_000 * (10 * 8 + 8)
    assert peak < 1_000_000


def test_columns_are_read_where_all_rows_are_asked_for(path):
    write(path, a=as_npy(np.asfortranarray(ROWS["a"])))
    with Archive(path, ["a"]) as archive:
        np.testing.assert_array_equal(archive.read("a", 6), ROWS["a"])
        archive.finish()


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def header(text):
    """A member with that header and no numbers."""
    raw = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw


STATED = "{'descr': '%s', 'fortran_order': %s, 'shape': %s}"
BAD = {
    "pickles": (
        as_npy(np.array([Trap()] * 6, object)),
        "a contains no numbers, its type is object",
    ),
    "text": (as_npy(np.array(["x"] * 6)), "a contains no numbers, its type is <U1"),
    "compounds": (as_npy(np.zeros(6, "f4,f4")), "a contains no numbers"),
    "complex numbers": (as_npy(np.zeros(6, complex)), "a contains no numbers"),
    "long doubles": (as_npy(np.zeros(6, np.longdouble)), "a contains no numbers"),
    "a single value": (as_npy(np.float64(1.0)), r"a has shape \(\), expected rows"),
    "columns": (as_npy(np.asfortranarray(ROWS["a"])), "a is stored column by column"),
    "other rows": (as_npy(ROWS["a"][:5]), "b has 6 rows, others have 5"),
    "no header": (b"", "reading magic string"),
    "no numpy": (b"PK" * 50, "magic string"),
    "a future version": (b"\x93NUMPY\x03\x00" + as_npy(ROWS["a"])[8:], r"version \(3, 0\)"),
    "fewer numbers than stated": (as_npy(ROWS["a"])[:-8], "of which not all is there"),
    "more numbers than stated": (as_npy(ROWS["a"]) + b"12345678", "of which not all is there"),
    "a negative shape": (header(STATED % ("<f8", False, "(6, -2)")), r"shape \(6, -2\)"),
    "a huge shape": (header(STATED % ("<f8", False, f"(6, {2**60})")), "of which not all is there"),
    "code in its header": (header("__import__('os').getcwd()"), "malformed node"),
    "a long header": (header(" " * 20_000), r"large and may not be safe to load securely\.\)"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_holds_no_rows_of_numbers_is_refused(what, path):
    content, message = BAD[what]
    write(path, a=content)
    with pytest.raises(NpzError, match=rf"rows\.npz cannot be read \(.*({message})"):
        read(path)


def test_numbers_that_no_file_of_that_size_holds_are_refused(path, monkeypatch):
    monkeypatch.setattr(npz, "LEAST_BYTES", 10_000)
    np.savez_compressed(path, a=np.zeros((300_000, 2)), b=np.zeros(300_000))
    with pytest.raises(NpzError, match="states 7 MB of numbers, which its size cannot contain"):
        read(path)


@pytest.mark.parametrize("part", [0.3, 0.9, 0.99])
def test_half_an_archive_is_refused(part, path):
    np.savez_compressed(path, **ROWS)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(NpzError, match="cannot be read"):
        read(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_changed_bytes_are_found_by_their_checksum(save, path):
    save(path, a=np.random.default_rng(0).normal(size=(6, 200)), b=ROWS["b"])
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(NpzError, match="cannot be read"):
        read(path)


def test_other_ways_to_pack_are_refused(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        for name, array in ROWS.items():
            file.writestr(f"{name}.npy", as_npy(array))
    with pytest.raises(NpzError, match="a is packed by method 14, which NumPy never uses"):
        read(path)


def test_missing_members_and_rows_are_named(path):
    np.savez(path, a=ROWS["a"])
    with pytest.raises(NpzError, match="it has no b"):
        read(path)
    with Archive(path, ["a"]) as archive:
        archive.read("a", 4)
        with pytest.raises(NpzError, match="a ends before its 6 rows"):
            archive.read("a", 3)
    with pytest.raises(FileNotFoundError):
        read(path.with_name("gone.npz"))
