"""Windows on a stream of steps: several observations seen at once, several actions decided at once.

With a history of H an agent sees the last H observations, the oldest first. With chunks of k it
decides k actions, which are executed one after the other before it sees the next ones (action
chunking, Zhao et al. 2023, arXiv 2304.13705, without its averaging of overlapping chunks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from qgpo.fields import is_integer

LONGEST = 1000
"""of a history and of a chunk"""
Memory = tuple[NDArray[Any], ...]
"""what `predict` hands on: the histories, the chunks, and how much of each is left"""


@dataclass(frozen=True)
class Window:
    """How many observations are seen, and how many actions are decided, at once."""

    history: int = 1
    """H"""
    chunk: int = 1
    """k"""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not is_integer(value) or not 1 <= value <= LONGEST:
                raise ValueError(f"{name}={value!r:.40}, expected an integer from 1 to {LONGEST}")
            object.__setattr__(self, name, int(value))

    @classmethod
    def of(cls, history: int, chunk: int) -> Window | None:
        """None where single observations are seen and single actions decided."""
        window = cls(history, chunk)
        return None if window == cls() else window

    def __str__(self) -> str:
        return f"history {self.history}, chunk {self.chunk}"

    def seen(self, box: spaces.Box) -> spaces.Box:
        """The space of what is seen, (H S,), from that of one observation (S,)."""
        return _repeated(box, self.history)

    def decided(self, box: spaces.Box) -> spaces.Box:
        """The space of a chunk, (k A,), from that of one action (A,)."""
        return _repeated(box, self.chunk)

    def one_observation(self, box: spaces.Box) -> spaces.Box:
        """The space of one observation, (S,), from that of what is seen."""
        return _first(box, self.history)

    def one_action(self, box: spaces.Box) -> spaces.Box:
        """The space of one action, (A,), from that of a chunk."""
        return _first(box, self.chunk)

    def histories(self, observations: NDArray[Any]) -> NDArray[Any]:
        """What is seen at every row of an episode, (T, S) to (T, H S).

        Before its first row stands the first one again.
        """
        rows = np.arange(len(observations))[:, None] + np.arange(1 - self.history, 1)
        seen: NDArray[Any] = observations[np.maximum(rows, 0)].reshape(len(observations), -1)
        return seen

    def begin(self, n: int, observation: int, action: int) -> Memory:
        """The memory of n streams at the start of an episode, S and A numbers each."""
        return (
            np.zeros((n, self.history, observation), np.float32),
            np.zeros((n, self.chunk, action), np.float32),
            np.zeros(n, np.int64),
        )

    def check(self, memory: Any, n: int, observation: int, action: int) -> Memory:
        """The memory that `predict` returned. Raises ValueError for anything else."""
        expected = [part.shape for part in self.begin(n, observation, action)]
        found = [np.shape(part) for part in memory] if isinstance(memory, tuple) else memory
        if found != expected:
            raise ValueError(
                f"state is {found!r:.200}, expected what predict() returned for as many "
                f"observations, {expected}; at the start of an episode None"
            )
        return tuple(np.array(part) for part in memory)

    def to_json(self) -> dict[str, int]:
        """Plain numbers, for a file."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Window:
        """What `to_json` wrote. Raises ValueError for anything else."""
        if not isinstance(data, Mapping) or set(data) != {"history", "chunk"}:
            raise ValueError(f"window={data!r:.100}, expected history and chunk")
        return cls(data["history"], data["chunk"])


def _repeated(box: spaces.Box, times: int) -> spaces.Box:
    dtype: Any = box.dtype
    return spaces.Box(np.tile(box.low, times), np.tile(box.high, times), dtype=dtype.type)


def _first(box: spaces.Box, parts: int) -> spaces.Box:
    size, dtype = box.shape[0] // parts, box.dtype
    kind: Any = dtype
    return spaces.Box(box.low[:size], box.high[:size], dtype=kind.type)
