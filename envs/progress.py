"""Progress bars: who shows them when nobody said."""

from __future__ import annotations

from typing import Any, Protocol

from tqdm import tqdm


class Bar(Protocol):
    """What counts steps."""

    def update(self, n: float | None = 1) -> Any:
        """So many steps more."""


def progress(total: int, what: str, shown: bool | None, **settings: Any) -> tqdm[Any]:
    """A bar on stderr with settings of tqdm's; `shown` None: where stderr is a terminal."""
    hidden = None if shown is None else not shown  # tqdm's None is that rule
    return tqdm(total=total, desc=what, disable=hidden, **settings)
