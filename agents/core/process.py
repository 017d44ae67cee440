"""What a process's threads share, and agents must not: torch's defaults, its generator, an agent.

The same seed gives the same agent whatever the process has set, and whatever its other threads do.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

import torch

_DTYPE, _GENERATOR = threading.Lock(), threading.RLock()


class _Float32:
    """Makes float32 torch's default, which all threads share, from the first user to the last."""

    users = 0
    before = torch.float32

    def __enter__(self) -> None:
        with _DTYPE:
            if _Float32.users == 0:
                _Float32.before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            _Float32.users += 1

    def __exit__(self, *_: object) -> None:
        with _DTYPE:
            _Float32.users -= 1
            if _Float32.users == 0 and _Float32.before != torch.float32:
                torch.set_default_dtype(_Float32.before)


@contextlib.contextmanager
def usual_torch() -> Iterator[None]:
    """Around what builds, trains, reads or acts: float32, tensors on the CPU, and gradients.

    These are torch's own defaults. A process may have others, by `set_default_dtype`,
    `set_default_device`, `no_grad`, `inference_mode` or `autocast`; they are its again afterwards.
    """
    with _Float32(), torch.inference_mode(False), torch.enable_grad():
        autocast = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
        if _makes_on_cpu() and not autocast:  # as a rule, and acting is quick
            yield
            return
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.device("cpu"))
            for kind in autocast:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield


def _makes_on_cpu() -> bool:
    try:
        return torch.get_default_device().type == "cpu"
    except (AssertionError, RuntimeError):  # a device that is not there
        return False


@contextlib.contextmanager
def seeded(seed: int, devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Around what draws from torch's global generator: it is seeded, and restored afterwards.

    One thread at a time. `devices` are the GPUs whose generators are restored, too.
    """
    with _GENERATOR, torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


class Turn:
    """Who may change an agent: one training at a time, and in it one stage.

    A copy or a pickle of an agent has a turn of its own, which is free.
    """

    def __init__(self) -> None:
        self._training, self._stage = threading.Lock(), threading.Lock()
        self._thread: int | None = None

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Around a whole training. Raises RuntimeError within another one, in any thread."""
        with _held(self._training):
            self._thread = threading.get_ident()
            try:
                yield
            finally:
                self._thread = None

    @contextlib.contextmanager
    def stage(self) -> Iterator[None]:
        """Around a stage, of the thread's training or alone. Raises RuntimeError within another."""
        own = self._thread == threading.get_ident()
        with contextlib.nullcontext() if own else self.training(), _held(self._stage):
            yield


@contextlib.contextmanager
def _held(lock: threading.Lock) -> Iterator[None]:
    if not lock.acquire(blocking=False):
        raise RuntimeError(
            "this agent is already being trained, in another thread or by the learn() that "
            "runs this callback: wait until it has finished, or train a copy (copy.deepcopy)"
        )
    try:
        yield
    finally:
        lock.release()
