"""The zip of a checkpoint, read by where its bytes are: nothing in it can be larger than it is.

A zip says sizes and offsets twice, before each member and in its directory; either may lie. Here
the members follow each other from the first byte on, the directory has to say the same, and it
ends where the file does.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import BinaryIO, NamedTuple

_LOCAL = struct.Struct("<4s5H3I2H")
_ZIP64 = struct.Struct("<HHQQ")
_DIRECTORY_ENTRY, _END, _END_ZIP64 = 46, 22, 76
_MOST_OF_A_DIRECTORY = 4096
"""bytes; a few entries have far fewer"""
_BESIDE = "there is something before, between or after its members; use a copy from save()"


class ArchiveError(ValueError):
    """A zip that is damaged, or none."""


class ForeignArchiveError(ArchiveError):
    """A zip with other members, or with something beside them."""


class Member(NamedTuple):
    """Where a member's bytes are."""

    start: int
    size: int
    checksum: int
    """CRC-32"""


def write_members(file: BinaryIO, members: Sequence[tuple[str, bytes]]) -> None:
    """Write names and contents to the beginning of a file."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            archive.writestr(name, content)


def find_members(file: BinaryIO, names: Sequence[str]) -> dict[str, Member]:
    """The members of a zip that holds those and nothing else. Raises ArchiveError."""
    length = file.seek(0, os.SEEK_END)
    found: dict[str, Member] = {}
    end = 0
    while len(found) <= len(names) and (next_one := _local(file, end, length)) is not None:
        name, member = next_one
        if name in found:
            raise ForeignArchiveError(f"it holds {name!r} twice")
        found[name] = member
        end = member.start + member.size
    if sorted(found) != sorted(names):
        raise ForeignArchiveError(f"it holds {sorted(found)}, expected {sorted(names)}")
    if length - end > _MOST_OF_A_DIRECTORY:
        raise ForeignArchiveError(_BESIDE)
    try:
        _check_directory(file, found, length)
    except ArchiveError:
        raise
    except (zipfile.BadZipFile, struct.error, ValueError, RuntimeError) as error:
        raise ArchiveError(str(error)) from error
    return found


def read_member(file: BinaryIO, member: Member) -> bytes:
    """The content. Raises ArchiveError where its checksum is another."""
    file.seek(member.start)
    content = file.read(member.size)
    if len(content) != member.size or zlib.crc32(content) != member.checksum:
        raise ArchiveError("a checksum differs")
    return content


def _local(file: BinaryIO, offset: int, length: int) -> tuple[str, Member] | None:
    """Name and place of the member whose record begins at `offset`; None at the directory."""
    file.seek(offset)
    record = file.read(_LOCAL.size)
    if offset and record[:4] == b"PK\1\2":
        return None
    if len(record) < _LOCAL.size or record[:4] != b"PK\3\4":
        raise ArchiveError("it is truncated, or not a zip file")
    _, _, flags, method, *_, checksum, packed, size, name_size, extra_size = _LOCAL.unpack(record)
    name, extra = file.read(name_size), file.read(extra_size)
    if len(extra) == _ZIP64.size and size == packed == 0xFFFFFFFF:
        kind, said, size, packed = _ZIP64.unpack(extra)
        extra = b"" if (kind, said) == (1, 16) and 1.05 * size > zipfile.ZIP64_LIMIT else extra
    start = file.tell()
    if flags or method != zipfile.ZIP_STORED or extra or size != packed or start + size > length:
        raise ArchiveError("a member is compressed, encrypted or longer than the file")
    return name.decode("latin1"), Member(start, size, checksum)


def _check_directory(file: BinaryIO, members: Mapping[str, Member], length: int) -> None:
    """Raise an error unless the directory says the same, and is all that follows."""
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        entries, start, comment = archive.infolist(), archive.start_dir, archive.comment
    if [entry.filename for entry in entries] != list(members):
        names = sorted(entry.filename for entry in entries)
        raise ForeignArchiveError(f"it holds {names}, expected {sorted(members)}")
    end = size = 0
    for entry, (name, member) in zip(entries, members.items(), strict=True):
        said = entry.header_offset, entry.CRC, entry.file_size, entry.compress_size
        plain = not (entry.compress_type or entry.flag_bits or entry.comment)
        long = max(end, member.size) > zipfile.ZIP64_LIMIT
        if said != (end, member.checksum, member.size, member.size) or not plain:
            raise ArchiveError(f"its directory does not describe {name}")
        if entry.extra and not long:
            raise ForeignArchiveError(_BESIDE)
        end = member.start + member.size
        size += _DIRECTORY_ENTRY + len(name) + len(entry.extra)
    tail = _END + (_END_ZIP64 if start > zipfile.ZIP64_LIMIT else 0)
    if start != end or comment or start + size + tail != length:
        raise ForeignArchiveError(_BESIDE)
