"""Arguments of environments from files: plain data that name no file and no code."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

FILE_OR_CODE = re.compile(r"[/\\:~]|\.\.|[A-Za-z_]\w*\.\w")
"""paths, `module:name`, `package.module` and `name.extension`, but no `0.5`"""


COUNT = re.compile(r"(?:.*_)?(?:(?:frame_?)?skip|repeats?|substeps|stack_size|duration)")
"""names of arguments that say how often something is done in each step"""
MOST_TIMES, LARGEST = 1000, 10**6
"""of such arguments, and of other integers"""


class SpecError(ValueError):
    """An environment that a file describes, and that cannot be made from that."""


def check_arguments(
    of: str, arguments: Mapping[str, Any], registered: Mapping[str, Any] | None = None
) -> None:
    """Raise SpecError for texts that may name a file or code, and for numbers without end.

    An environment may open or import what its arguments name, and steps or takes memory as often
    as they say. What the environment is registered with is that of installed code.
    """
    installed = set(_texts(registered or {}))
    for name, value in arguments.items():
        if registered is None or repr(registered.get(name)) != repr(value):
            _check_numbers(of, name, value)
        named = (text for text in _texts(value) if FILE_OR_CODE.search(text))
        text = next((text for text in named if text not in installed), None)
        if text is not None:
            raise SpecError(
                f"environment {of!r} has the argument {name}={value!r}, and {text!r} may name a "
                "file or code, which is never taken from a dataset or a checkpoint. Register "
                "an environment that has this argument (gymnasium.register) and name it with "
                "--env-id, or pass an environment object to evaluate()"
            )


def _check_numbers(of: str, name: str, value: Any) -> None:
    """Raise SpecError, which names the argument, for a count or a number out of any reason."""
    for number in _leaves(value):
        if isinstance(number, float) and math.isnan(number):  # ranges may have no end
            raise SpecError(f"environment {of!r} has the argument {name}={value!r}: not a number")
        if isinstance(number, bool) or not isinstance(number, int):
            continue
        least, most = (1, MOST_TIMES) if COUNT.fullmatch(name) else (-LARGEST, LARGEST)
        if not least <= number <= most:
            raise SpecError(
                f"environment {of!r} has the argument {name}={number!s:.60}, expected an integer "
                f"from {least} to {most}"
            )


def _leaves(value: Any) -> Iterator[Any]:
    """All values in plain data that hold no others."""
    if isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(inner)
    else:
        yield value


def _texts(value: Any) -> Iterator[str]:
    """All texts in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (*_texts(key), *_texts(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
