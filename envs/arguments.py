"""Numbers that a caller gives, checked before they are used."""

from __future__ import annotations

import operator
from typing import Any


def whole(name: str, value: Any, least: int = 1) -> int:
    """The value as an int. Raises ValueError for no whole number, a flag, and one below `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ValueError(f"{name}={value!r}, expected a whole number of at least {least}")
    if number < least:
        raise ValueError(f"{name}={number}, expected at least {least}")
    return number
