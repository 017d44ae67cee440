"""How the numbers of a column lie in an HDF5 file: each chunk must hold all of its numbers.

HDF5 itself reads a chunk that is shorter than it states, and leaves in the rest of the numbers
what was in memory before.
"""

from __future__ import annotations

import math
import zlib
from functools import cached_property
from operator import lt

from h5py import h5d, h5z

LZF = 32000
PIPELINE = {
    h5z.FILTER_SHUFFLE: "shuffle",
    h5z.FILTER_DEFLATE: "gzip",
    LZF: "lzf",
    h5z.FILTER_FLETCHER32: "fletcher32",
}
"""what h5py packs chunks with, in its order"""
CHECKSUM_BYTES = 4


class Stored:
    """What a column's file says about it, asked once."""

    def __init__(self, column: h5d.DatasetID) -> None:
        self.column = column
        made, kind = column.get_create_plist(), column.get_type()
        self.layout = made.get_layout()
        self.external_files = int(made.get_external_count())
        self.shape: tuple[int, ...] = column.shape or ()
        self.type_class = kind.get_class()
        self.item_bytes = int(kind.get_size())
        self.is_chunked = self.layout == h5d.CHUNKED
        self.chunk: tuple[int, ...] = made.get_chunk() if self.is_chunked else ()
        self.filters = [int(made.get_filter(i)[0]) for i in range(made.get_nfilters())]
        """the codes of what each chunk is packed with, in the order of writing"""

    @cached_property
    def chunks(self) -> list[tuple[tuple[int, ...], int, int]]:
        """Those that there are: place, filters that were skipped, bytes in the file.

        Raises RuntimeError where their index is damaged.
        """
        found: list[tuple[tuple[int, ...], int, int]] = []
        if self.is_chunked:
            self.column.chunk_iter(
                lambda at: found.append((at.chunk_offset, at.filter_mask, at.size))
            )
        return found

    @property
    def chunk_bytes(self) -> int:
        """Of each chunk in memory."""
        return math.prod(self.chunk) * self.item_bytes

    @property
    def chunks_needed(self) -> int:
        """The chunks that its shape takes."""
        return math.prod(-(-n // m) for n, m in zip(self.shape, self.chunk, strict=True))

    @property
    def memory_bytes(self) -> int:
        """What its numbers take to be read, as whole chunks where there are any."""
        if self.is_chunked:
            return max(self.chunks_needed, len(self.chunks)) * self.chunk_bytes
        rows = 0 if self.column.shape is None else math.prod(self.shape)
        return rows * self.item_bytes

    @property
    def is_whole(self) -> bool:
        """Whether all of its numbers were written; a single value need not be."""
        if self.is_chunked:
            inside = {at for at, _, _ in self.chunks if all(map(lt, at, self.shape))}
            return len(inside) == self.chunks_needed
        if not self.shape:
            return True
        written: int = self.column.get_storage_size()
        return self.layout == h5d.COMPACT or written >= self.memory_bytes

    def unusual_filter(self) -> str | None:
        """What a chunk is packed with that h5py does not write by itself, if there is anything."""
        codes = self.filters
        places = [list(PIPELINE).index(code) for code in codes if code in PIPELINE]
        in_order = places == sorted(set(places)) and not {h5z.FILTER_DEFLATE, LZF} <= set(codes)
        if len(places) == len(codes) and in_order:
            return None
        return ", ".join(PIPELINE.get(code, f"filter {code}") for code in codes)

    def short_chunk(self) -> tuple[int, ...] | None:
        """The place of a chunk that does not have as many bytes as its shape, if there is one.

        Those that are packed are unpacked to be counted, and not kept.
        """
        expected = self.chunk_bytes
        for place, mask, size in self.chunks:
            used = [code for i, code in enumerate(self.filters) if not mask >> i & 1]
            if h5z.FILTER_FLETCHER32 in used:
                size -= CHECKSUM_BYTES
            if {h5z.FILTER_DEFLATE, LZF} & set(used):
                _, content = self.column.read_direct_chunk(place)
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
