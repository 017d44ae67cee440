"""Arguments of environments from files: plain data that name no file and no code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

FILE_OR_CODE = re.compile(r"[/\\:~]|\.\.|[A-Za-z_]\w*\.\w")
"""paths, `module:name`, `package.module` and `name.extension`, but no `0.5`"""


class SpecError(ValueError):
    """An environment that a file describes, and that cannot be made from that."""


def check_arguments(
    of: str, arguments: Mapping[str, Any], registered: Mapping[str, Any] | None = None
) -> None:
    """Raise SpecError for texts that may name a file or code.

    An environment may open or import what its arguments name. Texts with which the environment
    is registered are those of installed code, whatever they name.
    """
    installed = set(_texts(registered or {}))
    for name, value in arguments.items():
        named = (text for text in _texts(value) if FILE_OR_CODE.search(text))
        text = next((text for text in named if text not in installed), None)
        if text is not None:
            raise SpecError(
                f"environment {of!r} has the argument {name}={value!r}, and {text!r} may name a "
                "file or code, which is taken from no dataset and no checkpoint. Register an "
                "environment that has it (gymnasium.register) and name that with --env-id, or "
                "pass a made environment to evaluate()"
            )


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
