"""The tensors of a file that torch.save wrote, taken from its bytes without torch.load.

torch.load with `weights_only` runs no code, but makes tensors as large as the file says, and reads
behind the end of a storage that says it is longer than it is.
"""

from __future__ import annotations

import io
import math
import zipfile
from typing import Any

import torch
from torch import Tensor

from qgpo.envs.rollouts.inert import Inert, read_pickle

DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.BoolStorage": torch.bool,
}
SHARED = 4
"""tensors of a state may be parts of the same storage, as a feature extractor's are"""


def read_member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """The content of a member, of at most so many bytes. Raises ValueError beyond, or for two."""
    if archive.namelist().count(name) != 1:
        count = archive.namelist().count(name)
        raise ValueError(f"it holds {count} members {name!a:.120}, expected 1")
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise ValueError(f"{name!r} is encrypted, or compressed in an unusual way")
    with archive.open(info) as member:
        content = member.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{name!r} is larger than {most} bytes")
    return content


def read_state(content: bytes) -> dict[str, Tensor]:
    """The tensors by name of a file with a state dictionary (zip format, torch 1.6 and later).

    Raises many errors for bytes that are none.
    """
    if not content.startswith(b"PK"):
        raise ValueError("its weights are not a file of torch 1.6 or later: save the model again")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError("its weights are not a file of torch.save")
        root = names[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist():
            order = read_member(archive, f"{root}byteorder", 10)
            if order != b"little":
                raise ValueError(f"its numbers have the byte order {order!r}")
        found = read_pickle(read_member(archive, names[0], len(content)))
        records = found.items if isinstance(found, Inert) else found
        if not isinstance(records, dict) or not all(isinstance(name, str) for name in records):
            raise ValueError("its weights are not a table of tensors")
        reader = _Storages(archive, f"{root}data/", len(content))
        return {name: reader.tensor(record) for name, record in records.items()}


class _Storages:
    """The numbers of a file, each storage read once."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, size: int) -> None:
        self.archive, self.folder, self.size = archive, folder, size
        self.left = SHARED * size
        self.read: dict[tuple[str, str], Tensor] = {}

    def tensor(self, record: Any) -> Tensor:
        """A tensor from the record of what would rebuild it."""
        if not isinstance(record, Inert) or record.name != "torch._utils._rebuild_tensor_v2":
            raise ValueError("it holds objects other than tensors, which are never loaded")
        storage, offset, shape, stride = record.arguments[:4]
        numbers = self._storage(*storage.arguments[0][:3])
        whole = all(type(n) is int and n >= 0 for n in (offset, *shape, *stride))
        if not whole or len(shape) != len(stride) or len(shape) > 8:
            raise ValueError("a tensor has no shape")
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        self.left -= math.prod(shape) * numbers.element_size()
        if (math.prod(shape) and last >= len(numbers)) or self.left < 0:
            raise ValueError("a tensor is larger than its numbers")
        return numbers.as_strided(shape, stride, offset)

    def _storage(self, kind: str, of: Any, key: str) -> Tensor:
        if kind != "storage" or type(key) is not str or of.name not in DTYPES:
            raise ValueError(f"a tensor of {str(of.name)[:60]!r}, expected numbers")
        if (of.name, key) not in self.read:
            content = read_member(self.archive, self.folder + key, self.size)
            self.left -= len(content)
            dtype = DTYPES[of.name]
            numbers = torch.zeros(0, dtype=dtype)
            if content:
                numbers = torch.frombuffer(bytearray(content), dtype=dtype)
            self.read[of.name, key] = numbers
        return self.read[of.name, key]
