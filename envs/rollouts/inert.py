"""Pickles read without running any of their code: every object in them becomes a record.

A record keeps the name of what the object would be made by, and what with. Who reads a pickle
takes the numbers from those.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

MOST_INSTRUCTIONS = 100_000
"""of a pickle: each may make an object, however few bytes it has"""
_REMEMBER = {"PUT", "LONG_BINPUT"}


class Inert:
    """Stands for an object of the pickle and does nothing."""

    name: str
    """module and name of what would make it"""
    arguments: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any]
    """what a mapping holds"""

    def __new__(cls, *arguments: Any) -> Inert:
        """Keep what the object would be made with."""
        made = object.__new__(cls)
        made.arguments = arguments
        made.items = {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        """Parts of a sequence are not needed."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return type("Inert", (Inert,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        made = Inert(pid)
        made.name = "persistent"
        return made


def read_pickle(content: bytes) -> Any:
    """What a pickle holds, in records. Raises many errors for bytes that are none.

    Its instructions are looked through first. An unpickler makes room for as many remembered
    objects as the largest number among them says.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        far = opcode.name in _REMEMBER and not 0 <= int(argument or 0) <= MOST_INSTRUCTIONS
        if far or count > MOST_INSTRUCTIONS:
            raise ValueError(f"a pickle of more than {MOST_INSTRUCTIONS} objects")
    return _Reader(io.BytesIO(content)).load()
