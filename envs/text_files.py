"""Files of text that others may have made: read up to a size, and refused by one named error."""

from __future__ import annotations

import json
import math
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

LARGEST = 64 * 2**20
"""bytes; spaces with many dimensions take some megabytes"""
MOST_PARTS = 32
"""of a dotted key: the time to read one grows with the square of their number"""
_PART = r"""(?:[\w-]{1,200}+|"(?:[^"\\\n]|\\.){0,200}+"|'[^'\n]{0,200}+')[ \t]*+"""
_DOTTED = re.compile(rf"(?:{_PART}\.[ \t]*+){{{MOST_PARTS}}}")


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """The content of a regular file of at most so many bytes.

    Raises FileNotFoundError where there is none, and ValueError, which says what is odd.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for ever
            raise ValueError(f"{path.name} is not a regular file")
        with open(path, "rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from error
    if len(content) > most:
        raise ValueError(f"{path.name} has more than {most} bytes")
    return content


def read_utf8(path: Path, most: int = LARGEST) -> str:
    """The text of a regular file in UTF-8. Raises as `read_bytes` does."""
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8: {error}") from error


def read_json(path: Path, most: int = LARGEST, strict: bool = True) -> Any:
    """The content of a JSON file. Raises as `read_bytes` does.

    Where it is `strict`, a name that an object has twice and NaN are refused, too.
    """
    text = read_utf8(path, most)
    try:
        if strict:
            return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error


def read_toml(path: Path, most: int = LARGEST) -> dict[str, Any]:
    """The content of a TOML file. Raises as `read_bytes` does."""
    text = read_utf8(path, most)
    if found := _DOTTED.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise ValueError(f"{path.name} has a key of more than {MOST_PARTS} parts in line {line}")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not TOML: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"an object has the name {twice!a:.60} twice")
    return found


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is not a number")
    return math.inf if name == "Infinity" else -math.inf
