"""Progress bars: who shows them when nobody said."""

from __future__ import annotations

import sys
from typing import Any, Protocol

from tqdm import tqdm


def on_terminal() -> bool:
    """Whether a bar would be drawn on a terminal; commands show none elsewhere unless asked to."""
    return sys.stderr is not None and sys.stderr.isatty()


class Bar(Protocol):
    """What counts steps."""

    def update(self, n: float | None = 1) -> Any:
        """So many steps more."""


def progress(total: int, what: str, shown: bool | None, **settings: Any) -> tqdm[Any]:
    """A bar on stderr with settings of tqdm's; `shown` None: where stderr is a terminal."""
    hidden = None if shown is None else not shown  # tqdm's None is that rule
    return tqdm(total=total, desc=what, disable=hidden, **settings)
