"""Pickles read without running any of their code: every object in them becomes a record.

A record keeps the name of what the object would be made by, and what with. Who reads a pickle
takes the numbers from those.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, ClassVar

MOST_INSTRUCTIONS = 100_000
"""of a pickle: each may make an object, however few bytes it has"""
LONGEST_NAME = 200
"""of a module or a class: a long text that is remembered could name thousands of them"""
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


class _Reader(pickle._Unpickler):
    """The unpickler in Python, whose instructions can be changed.

    Only texts and integers become keys and members of sets. What is nested would be hashed, which
    takes 2^n steps for n pairs of which each holds the one before twice.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        whole = f"{module[:LONGEST_NAME]}.{name[:LONGEST_NAME]}"
        return type("Inert", (Inert,), {"name": whole})

    def persistent_load(self, pid: Any) -> Any:
        made = Inert(pid)
        made.name = "persistent"
        return made


def _checked(opcode: bytes, keys: slice) -> None:
    """Let an instruction first look at the keys that it takes from the stack."""
    instruction = pickle._Unpickler.dispatch[opcode[0]]

    def load(reader: Any) -> None:
        for key in reader.stack[keys]:
            is_small = type(key) is int and abs(key) < 2**60  # larger ones can have equal hashes
            if not is_small and type(key) not in (str, bool, type(None)):
                raise ValueError("a pickle with a key that is no text")
        instruction(reader)

    _Reader.dispatch[opcode[0]] = load


_checked(pickle.SETITEM, slice(-2, -1))
_checked(pickle.SETITEMS, slice(None, None, 2))
_checked(pickle.DICT, slice(None, None, 2))
_checked(pickle.ADDITEMS, slice(None))
_checked(pickle.FROZENSET, slice(None))


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
