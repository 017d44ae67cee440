"""Datasets whose files hold something else than Minari writes are refused before they are read."""

from __future__ import annotations

import json
import os
import struct
import warnings
import zlib
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest
from factory import numbered_episodes, write_buffers

from qgpo import load_dataset
from qgpo.envs import check_dataset
from qgpo.envs.store.chunks import Stored
from qgpo.envs.store.combining import combine
from qgpo.envs.store.hdf5 import FILE, _numbers, read
from qgpo.envs.store.local import folder_of

ID = "test/numbered-v0"


@pytest.fixture
def data():
    write_buffers(numbered_episodes((2, 3), (True, True)))
    return folder_of(ID) / "data"


def replace(group, name, *args, **more):
    del group[name]
    return group.create_dataset(name, *args, **more)


def external_storage(group, name):
    Path("other").write_bytes(bytes(64))
    replace(group, name, (3,), "f8", external=[("other", 0, 24)])


def virtual(group, name):
    with h5py.File("other.hdf5", "w") as other:
        other["secret"] = np.zeros(3)
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource("other.hdf5", "secret", (3,))
    del group[name]
    group.create_virtual_dataset(name, layout)


def external_link(group, name):
    with h5py.File("other.hdf5", "w") as other:
        other["secret"] = np.zeros(3)
    del group[name]
    group[name] = h5py.ExternalLink("other.hdf5", "/secret")


def soft_link(group, name):
    del group[name]
    group[name] = h5py.SoftLink("/episode_0/rewards")


def a_group(group, name):
    del group[name]
    group.create_group(name)


def of_class(type_id):
    def make(group, name):
        del group[name]
        space = h5py.h5s.create_simple((3,))
        h5py.h5d.create(group.id, name.encode(), type_id, space)

    return make


def of(values, **more):
    return lambda group, name: replace(group, name, data=values, **more)


ENUM = h5py.enum_dtype({"no": 0, "yes": 1}, basetype="i4")
SPOILERS = {
    "external storage": (external_storage, "external storage"),
    "virtual": (virtual, "virtual dataset"),
    "external link": (external_link, r"link to 'other.hdf5:/secret'"),
    "soft link": (soft_link, "link to '/episode_0/rewards'"),
    "gone": (lambda group, name: group.__delitem__(name), "is missing"),
    "a group": (a_group, "is a group"),
    "bytes": (of(np.array([b"False"] * 3)), "text"),
    "strings": (of(["0"] * 3, dtype=h5py.string_dtype()), "text"),
    "complex": (of(np.ones(3, "c16")), "contains no numbers"),
    "compound": (of(np.zeros(3, [("a", "f8")])), "compound"),
    "references": (of([h5py.Reference()] * 3, dtype=h5py.ref_dtype), "reference"),
    "variable length": (lambda g, n: replace(g, n, (3,), h5py.vlen_dtype("f8")), "variable"),
    "an enumeration": (of(np.ones(3, "i4"), dtype=ENUM), "enumeration"),
    "opaque": (of(np.zeros(3, "V4")), "opaque"),
    "a bit field": (of_class(h5py.h5t.STD_B8LE), "bit field"),
    "arrays": (of_class(h5py.h5t.array_create(h5py.h5t.NATIVE_DOUBLE, (2,))), "an array"),
    "scalar": (of(1.0), "single value"),
    "nothing": (lambda g, n: replace(g, n, data=h5py.Empty("f8")), "single value"),
    "huge": (lambda g, n: replace(g, n, (10**12,), "f8", chunks=(1024,)), "not all was written"),
    "huge, contiguous": (lambda g, n: replace(g, n, (10**9,), "f8"), "not all was written"),
}


@pytest.mark.parametrize("spoiler", SPOILERS)
@pytest.mark.parametrize("name", ["rewards", "terminations", "observations"])
def test_a_column_that_holds_no_numbers_of_its_own_is_refused_by_name(data, spoiler, name):
    change, message = SPOILERS[spoiler]
    with h5py.File(data / FILE, "r+") as file:
        change(file["episode_1"], name)
    if spoiler == "a group" and name == "observations":
        message = "observations is missing"
    with pytest.raises(ValueError, match=rf"'{ID}', episode 1: .*{message}"):
        load_dataset(ID, download=False)
    assert not check_dataset(ID).ok
    with pytest.raises(ValueError, match=f"episode 1.*{name}"):  # opened by Minari itself
        load_dataset(minari.load_dataset(ID))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("terminations", [0.0, np.nan, 1.0], "has value np.float64.nan., expected False or True"),
        ("truncations", [0, 2, 1], "has value np.int64.2., expected"),
        ("terminations", [[False], [False], [True]], r"has shape \(3, 1\), expected \(3,\)"),
        ("rewards", [[0.0], [0.0], [1.0]], r"has shape \(3, 1\), expected \(3,\)"),
        ("rewards", [0.0, 1e39, 1.0], "has value 1e.39, which is larger than float32 holds"),
        ("observations", np.zeros((3, 2)), r"has shape \(3, 2\), expected \(4, 2\)"),
    ],
)
def test_values_that_a_column_cannot_have_are_refused_by_name(data, name, values, message):
    with h5py.File(data / FILE, "r+") as file:
        replace(file["episode_1"], name, data=np.array(values))
    with pytest.raises(ValueError, match=rf"'{ID}', episode 1: {name} {message}"):
        load_dataset(ID, download=False)


def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(data):
    rows = 30_000_000
    with h5py.File(data / FILE, "r+") as file:
        many = {"compression": "gzip", "compression_opts": 1, "chunks": (10_000_000,)}
        replace(file["episode_1"], "rewards", data=np.zeros(rows, "i1"), **many)
    about = data / "metadata.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "total_steps": rows + 2}))
    with h5py.File(data / FILE, "r+") as file:  # an attack would repeat this
        for name in ("terminations", "truncations", "actions"):
            del file["episode_1"][name]
            file["episode_1"][name] = file["episode_1/rewards"]
    with pytest.raises(
        ValueError, match=r"states 120 MB of numbers in .* compression cannot explain"
    ):
        load_dataset(ID, download=False)


@pytest.mark.parametrize("part", ["observations", "infos"])
@pytest.mark.parametrize("empty", [True, False])
def test_groups_that_are_in_each_other_many_times_end(data, part, empty):
    write_buffers(numbered_episodes((2,), (True,)), "test/other-v0")
    with h5py.File(data / FILE, "r+") as file:
        inner = file.create_group("leaf")
        if not empty:
            inner["numbers"] = np.zeros(3)
        for level in range(14):
            outer = file.create_group(f"level{level}")
            for link in "abcdefghijkl":
                outer[link] = inner
            inner = outer
        if part in file["episode_1"]:
            del file["episode_1"][part]
        file["episode_1"][part] = inner
    with pytest.raises(ValueError, match="in others too, or nested in itself"):
        combine((ID, "test/other-v0"), "test/both-v0", progress_bar=False)


def packed(shape=(3,), chunk=(3,), content=None, mask=0, gzip=True, filters=()):
    """A column of doubles whose chunk has that content."""

    def make(group, name):
        del group[name]
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk(chunk)
        if gzip:
            made.set_deflate(1)
        for code in filters:
            made.set_filter(code, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED,) * len(shape))
        double = h5py.h5t.IEEE_F64LE
        column = h5py.h5d.create(group.id, name.encode(), double, space, made)
        column.write_direct_chunk((0,) * len(shape), content, filter_mask=mask)

    return make


TWO = np.ones(2).tobytes()
CHUNKS = {
    "far larger than the column": (
        packed(chunk=(400_000_000,), content=zlib.compress(bytes(8))),
        "states 3200 MB of numbers",
    ),
    "shorter than it states": (packed(content=TWO, gzip=False), "chunk at .0,."),
    "shorter, packed": (packed(content=zlib.compress(TWO)), "does not hold its 24 bytes"),
    "longer, packed": (packed(content=zlib.compress(2 * TWO)), "does not hold its 24 bytes"),
    "broken": (packed(content=b"no zlib"), "does not hold its 24 bytes"),
    "shorter, a filter left out": (packed(content=TWO, mask=1), "does not hold its 24 bytes"),
    "a filter that nobody has": (
        packed(content=3 * b"abc", gzip=False, filters=(307,)),
        "is packed by filter 307, expected shuffle",
    ),
    "unpacked twice": (
        packed(content=zlib.compress(zlib.compress(TWO)), filters=(h5py.h5z.FILTER_DEFLATE,)),
        "is packed by gzip, gzip, expected",
    ),
    "scaled": (
        lambda g, n: replace(g, n, data=np.ones(3), chunks=(3,), scaleoffset=1),
        "is packed by filter 6, expected",
    ),
}


@pytest.mark.parametrize("name", ["rewards", "observations"])
@pytest.mark.parametrize("kind", CHUNKS)
def test_a_chunk_that_does_not_hold_what_it_states_is_refused(data, kind, name):
    change, message = CHUNKS[kind]
    with h5py.File(data / FILE, "r+") as file:
        change(file["episode_1"], name)
    with pytest.raises(ValueError, match=rf"'{ID}'.*{message}"):
        load_dataset(ID, download=False)


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("draw", [np.zeros, np.random.default_rng(0).random])
def test_chunks_as_h5py_packs_them_are_read(data, compression, checked, draw):
    values = draw(30_000)
    with h5py.File(data / FILE, "r+") as file:
        column = replace(
            file["episode_1"],
            "rewards",
            data=values,
            chunks=(7000,),
            shuffle=checked,
            fletcher32=checked,
            compression=compression,
        )
        stored = Stored(column.id)
        assert stored.short_chunk() is None
        assert stored.unusual_filter() is None


def test_a_chunk_beyond_the_shape_does_not_stand_for_one_that_is_missing():
    n = 6000
    write_buffers(numbered_episodes((n, 3), (True, True)))
    path = folder_of(ID) / "data" / FILE
    with h5py.File(path, "r+") as file:
        group = file["episode_0"]
        del group["rewards"]
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((n // 2,))
        made.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((3 * n // 2,), (h5py.h5s.UNLIMITED,))
        column = h5py.h5d.create(group.id, b"rewards", h5py.h5t.STD_I8LE, space, made)
        for place in (n // 2, n):  # none at 0
            column.write_direct_chunk((place,), bytes(n // 2))
    sizes = [struct.pack("<QQ", size, 2**64 - 1) for size in (3 * n // 2, n)]
    assert path.read_bytes().count(sizes[0]) == 1
    path.write_bytes(path.read_bytes().replace(*sizes))
    with pytest.raises(ValueError, match=r"rewards states the shape \(6000,\), of which not all"):
        load_dataset(ID, download=False)


def test_numbers_that_were_never_written_are_zeros_and_no_memory():
    with h5py.File("x.hdf5", "w") as file:
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((50_000,))
        made.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((100_000,))
        column = h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_DOUBLE, space, made)
        for _ in range(3):
            full = np.full(100_000, 7.0)
            del full
            assert not _numbers(Stored(column)).any()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"/evil/secret", "/evil/secret"),
        (b"\xff", r"\\xff"),
        (b"\x1b[31m", r"\\x1b"),
        (b".", r"'\.'"),
    ],
)
def test_a_name_that_is_a_path_or_not_printable_is_refused(data, name, shown):
    """HDF5 follows links within a path: that of another file, for example."""
    with h5py.File("other.hdf5", "w") as other:
        other["secret"] = np.zeros((4, 3), "f4")
    place = b"Q" * len(name)
    with h5py.File(data / FILE, "r+") as file:
        file["evil"] = h5py.ExternalLink("other.hdf5", "/")
        group = file["episode_1"]
        del group["observations"]
        group.create_group("observations")[place.decode()] = np.zeros((4, 3), "f4")
    content = (data / FILE).read_bytes()
    assert content.count(place) >= 1
    (data / FILE).write_bytes(content.replace(place + bytes(1), name + bytes(1)))
    with pytest.raises(
        ValueError, match=f"observations has a part named b'?.*{shown}.*no printable name"
    ):
        load_dataset(ID, download=False)


def test_a_link_of_a_kind_that_is_not_known_is_refused(data):
    with h5py.File(data / FILE, "r+") as file:
        del file["episode_1"]["rewards"]
        file["episode_1"]["rewards"] = h5py.ExternalLink("other.hdf5", "/ZZ")
    content = bytearray((data / FILE).read_bytes())
    at = content.rindex(b"rewards")
    for i in range(at - 8, at):
        content[i] = 70 if content[i] == 64 else content[i]
    (data / FILE).write_bytes(content)
    with pytest.raises(ValueError, match="episode 1: rewards is a link of a kind of its own"):
        load_dataset(ID, download=False)


@pytest.mark.parametrize("dtype", ["f8", "i2"])
def test_a_single_info_that_was_never_written_is_copied(data, dtype):
    write_buffers(numbered_episodes((2,), (True,)), "test/other-v0")
    with h5py.File(data / FILE, "r+") as file:
        file["episode_1"].require_group("infos").create_dataset("x", (), dtype)
    assert combine((ID, "test/other-v0"), "test/both-v0", progress_bar=False).total_steps == 7


def test_an_info_that_is_read_is_a_number(data):
    with h5py.File(data / FILE, "r+") as file:
        infos = file["episode_1"].require_group("infos")
        infos["x"], infos["text"] = np.arange(3.0), ["a"] * 3
    space = minari.load_dataset(ID).observation_space
    [episode] = read(data / FILE, [1], space, "it", ["x", "none"])
    assert episode.infos["x"].tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="it, episode 1: infos/text is text, expected numbers"):
        list(read(data / FILE, [1], space, "it", ["text"]))


def test_groups_in_themselves_end(data):
    with h5py.File(data / FILE, "r+") as file:
        inner = file["episode_1"].create_group("inner")
        inner["again"] = inner
        del file["episode_1/observations"]
        file["episode_1"]["observations"] = inner
    with pytest.raises(ValueError, match="in others too, or nested in itself"):
        load_dataset(ID, download=False)


def test_what_an_episode_says_beside_its_columns_is_copied_only_if_it_is_its_own(data):
    write_buffers(numbered_episodes((2,), (True,)), "test/other-v0")
    with h5py.File(data / FILE, "r+") as file:
        infos = file["episode_1"].require_group("infos")
        infos["secret"] = h5py.ExternalLink("/etc/hostname", "/")
    assert len(load_dataset(ID, download=False)) == 5  # they are not read
    with pytest.raises(ValueError, match="infos/secret is a link to '/etc/hostname:/'"):
        combine((ID, "test/other-v0"), "test/both-v0", progress_bar=False)


BOX = {"type": "Box", "shape": [2], "low": [-1.0] * 2, "high": [1.0] * 2}
INNER = {**BOX, "dtype": "S700000000"}
NESTED = BOX
for _ in range(40):
    NESTED = {"type": "Tuple", "subspaces": [NESTED]}


@pytest.mark.parametrize(
    "space",
    [
        INNER,
        {**BOX, "dtype": "U250000000"},
        {**BOX, "dtype": "V9"},
        {**BOX, "dtype": "object"},
        {**BOX, "dtype": "(9,9)f8"},
        {**BOX, "dtype": ["f8"]},
        {"type": "MultiDiscrete", "nvec": [2], "start": [0], "dtype": "S700000000"},
        {"type": "Dict", "subspaces": {"a": INNER}},
        {"type": "Tuple", "subspaces": [INNER]},
        {"type": "Tuple", "subspaces": 5},
        NESTED,
        [BOX],
        5,
    ],
    ids=lambda space: str(space)[:60],
)
@pytest.mark.parametrize("name", ["observation_space", "action_space"])
def test_a_space_without_numbers_is_refused_before_it_is_made(data, name, space):
    about = data / "metadata.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), name: json.dumps(space)}))
    with pytest.raises(ValueError, match=ID):
        load_dataset(ID, download=False)


@pytest.mark.parametrize("kind", ["pipe", "link out", "folder", "socket"])
@pytest.mark.parametrize("name", [FILE, "metadata.json"])
def test_what_is_no_file_of_the_folder_is_not_opened(data, kind, name):
    path = data / name
    moved = path.rename(Path("moved").absolute())
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link out":
        path.symlink_to(moved)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mknod(path, 0o140600)
    with pytest.raises(ValueError, match=f"{name}|{path}"):
        load_dataset(ID, download=False)


@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
@pytest.mark.parametrize("kind", ["text", "null", "other length", "complex"])
def test_arrow_columns_are_judged_too(data_format, kind):
    pa = pytest.importorskip("pyarrow")

    write_buffers(numbered_episodes((2, 3), (True, True)), "test/a-v0", data_format=data_format)
    folder = folder_of("test/a-v0") / "data" / "1"
    table = pa.dataset.dataset(
        str(folder), format=data_format, ignore_prefixes=["metadata.json"]
    ).to_table()
    column = {
        "text": pa.array(["False"] * 4),
        "null": pa.array([False, None, True, False]),
        "other length": pa.array([0.5] * 4),
        "complex": pa.array([[0.0, 1.0]] * 4),
    }[kind]
    place = table.schema.names.index("terminations")
    changed = table.set_column(place, "terminations", column)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pa.dataset.write_dataset(
            changed, folder, format=data_format, existing_data_behavior="delete_matching"
        )
    (folder / "metadata.json").write_text(json.dumps({"id": 1, "total_steps": 3}))
    with pytest.raises(ValueError, match="'test/a-v0', episode 1: terminations"):
        load_dataset("test/a-v0", download=False)
