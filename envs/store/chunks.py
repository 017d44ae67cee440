"""The chunks of a column in an HDF5 file: each of them must hold all of its numbers.

HDF5 itself reads a chunk that is shorter than it states, and leaves in the rest of the numbers
what was in memory before.
"""

from __future__ import annotations

import math
import zlib

import h5py
from h5py import h5z

LZF = 32000
PIPELINE = {
    h5z.FILTER_SHUFFLE: "shuffle",
    h5z.FILTER_DEFLATE: "gzip",
    LZF: "lzf",
    h5z.FILTER_FLETCHER32: "fletcher32",
}
"""what h5py packs chunks with, in its order"""
CHECKSUM_BYTES = 4


def chunk_bytes(column: h5py.Dataset) -> int:
    """Of each chunk in memory."""
    chunk: tuple[int, ...] = column.id.get_create_plist().get_chunk()
    return math.prod(chunk) * int(column.id.get_type().get_size())


def count(column: h5py.Dataset) -> int:
    """The chunks that its shape takes, or that there are, whichever are more."""
    return max(needed(column), int(column.id.get_num_chunks()))


def needed(column: h5py.Dataset) -> int:
    """The chunks that its shape takes."""
    sizes = zip(column.id.shape, column.id.get_create_plist().get_chunk(), strict=True)
    return math.prod(-(-n // m) for n, m in sizes)


def unusual_filter(column: h5py.Dataset) -> str | None:
    """What a chunk is packed with that h5py does not write by itself, if there is anything."""
    codes = filters(column)
    places = [list(PIPELINE).index(code) for code in codes if code in PIPELINE]
    in_order = places == sorted(set(places)) and not {h5z.FILTER_DEFLATE, LZF} <= set(codes)
    if len(places) == len(codes) and in_order:
        return None
    return ", ".join(PIPELINE.get(code, f"filter {code}") for code in codes)


def filters(column: h5py.Dataset) -> list[int]:
    """The codes of what each chunk is packed with, in the order of writing."""
    made = column.id.get_create_plist()
    return [int(made.get_filter(i)[0]) for i in range(made.get_nfilters())]


def short_chunk(column: h5py.Dataset) -> tuple[int, ...] | None:
    """The place of a chunk that does not have as many bytes as its shape, if there is one.

    Those that are packed are unpacked to be counted, and not kept.
    """
    expected, codes = chunk_bytes(column), filters(column)
    stored: list[tuple[tuple[int, ...], int, int]] = []
    column.id.chunk_iter(lambda at: stored.append((at.chunk_offset, at.filter_mask, at.size)))
    for place, mask, size in stored:
        used = [code for i, code in enumerate(codes) if not mask >> i & 1]
        if h5z.FILTER_FLETCHER32 in used:
            size -= CHECKSUM_BYTES
        if {h5z.FILTER_DEFLATE, LZF} & set(used):
            _, content = column.id.read_direct_chunk(place)
            is_gzip = h5z.FILTER_DEFLATE in used
            size = (_inflated if is_gzip else _lzf)(content[:size], expected)
        if size != expected:
            return place
    return None


def _inflated(content: bytes, most: int) -> int:
    """The bytes that zlib unpacks, counted up to one more than the most."""
    try:
        return len(zlib.decompressobj().decompress(content, most + 1))
    except zlib.error:
        return -1


def _lzf(content: bytes, most: int) -> int:
    """The bytes that LZF unpacks, by its control bytes: literals, or a copy of earlier bytes.

    Source: Lehmann, liblzf, lzf_d.c.
    """
    at, size = 0, 0
    while at < len(content) and size <= most:
        control = content[at]
        if control < 32:
            at, size = at + control + 2, size + control + 1
            continue
        is_long = control >> 5 == 7
        extra = content[at + 1] if is_long and at + 1 < len(content) else 0
        at, size = at + 2 + is_long, size + (control >> 5) + 2 + extra
    return size if at == len(content) else -1
