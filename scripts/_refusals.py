"""How every command line ends where it cannot go on: with one line and exit code 1."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence


@contextlib.contextmanager
def one_line(*more: type[Exception], stopped: str | Callable[[], str] = "") -> Iterator[None]:
    """Exit with the text of a ValueError, an OSError or one of `more`; a decorator, too.

    After Ctrl-C the line is what the interruption says, or "stopped", and then `stopped`: a text,
    or what gives one at that time.
    """
    refused: tuple[type[Exception], ...] = (ValueError, OSError, *more)
    try:
        yield
    except BrokenPipeError:  # whoever read the output has ended, as `| head` does
        raise
    except refused as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt as stop:
        then = stopped if isinstance(stopped, str) else stopped()
        raise SystemExit(f"\n{str(stop) or 'stopped'}{then}") from None


def check_several(flag: str, values: Sequence[object]) -> None:
    """Raise ValueError for no values, and for values that are written alike."""
    written = [str(value) for value in values]
    if not written:
        raise ValueError(f"{flag} has no values, expected at least one")
    repeated = next((value for value in written if written.count(value) > 1), None)
    if repeated is not None:
        raise ValueError(f"{flag} has {repeated} more than once, expected different values")
