"""What every command prints, on any terminal."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, get_origin, get_type_hints

from qgpo.commands import INSTALLED, command

_COMMANDS = re.compile(
    rf"(?P<example>\n*^python )?scripts/({'|'.join(INSTALLED)})\.py(?(example) +(.*))", re.MULTILINE
)
"""in a script's docstring: examples, each a line of its own, and mentions within a sentence"""
_CORNERS = dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼", "+")
PLAIN = str.maketrans({**_CORNERS, **{"│": "|", "─": "-", "•": "*", "±": "+-", "\u2212": "-"}})
"""in place of characters that a terminal does not have, where Unicode knows no simpler ones"""


def description(text: str) -> str:
    """A script's docstring for `--help`: each example on a line, commands as the user calls them.

    tyro joins the lines of a paragraph that begin with a letter, so examples are indented.
    """
    return _COMMANDS.sub(_as_called, text)


def _as_called(found: re.Match[str]) -> str:
    _, script, arguments = found.groups()
    if arguments is None:
        return command(script)
    return f"\n  {command(script)} {' '.join(arguments.split())}"


def refuse_repeated(kind: Any, arguments: list[str]) -> None:
    """Exit where a flag of several values is given twice: only the last one would count.

    `kind` is the dataclass of the flags, or the function that takes them. One that has a single
    value may be given again, as on other command lines.
    """
    several = {
        f"--{name.replace('_', '-')}"
        for name, of in get_type_hints(kind).items()
        if get_origin(of) is tuple
    }
    given = [argument.partition("=")[0].replace("_", "-") for argument in arguments]
    flags = [flag.removesuffix("s") for flag in given]  # --guidance-scale is --guidance-scales
    for flag in several:
        if flags.count(flag.removesuffix("s")) > 1:
            raise SystemExit(f"error: {flag} is given twice, expected once, with all its values")


@contextlib.contextmanager
def any_terminal() -> Iterator[None]:
    """Characters that the terminal lacks are printed as others; a pipe may end early (`| head`).

    A decorator, too.
    """
    codecs.register_error("qgpo.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        # a stream that cannot be told to, such as a terminal opened for both ways, stays as it is
        with contextlib.suppress(OSError, ValueError):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="qgpo.plain")
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush
        raise SystemExit(1) from None


def _plain(error: UnicodeError) -> tuple[str, int]:
    """ASCII that stands for what cannot be encoded: a handler for `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(PLAIN)
    parts = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(parts).encode("ascii", "replace").decode("ascii"), error.end
