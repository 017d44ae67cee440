"""What was played is shown and written, whatever ends it or goes wrong meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from qgpo.agents.core.training import on_signals
from qgpo.envs.play.scores import Evaluation, EvaluationError
from qgpo.experiments.documents import Document, Evaluations, ended_by

T = TypeVar("T")


def show_and_write(show: Callable[[], object], write: Callable[[], T]) -> T:
    """Both, in this order, also where one raises: then its error follows.

    The terminal may be gone or the pipe closed (`| head`), and the disk may be full.
    """
    try:
        show()
    finally:
        written = write()
    return written


class _Stops:
    """What signals that ask to stop do: end what is played, but not what is kept."""

    def __init__(self) -> None:
        self.keeping = self.asked = False

    def __call__(self, *_: object) -> None:
        self.asked = True
        if not self.keeping:
            raise KeyboardInterrupt


def play_and_keep(
    played: Iterable[tuple[float | None, Evaluation]],
    scales: Sequence[float | None],
    keep: Callable[[Evaluations, Document], T],
) -> T:
    """Play every scale, and let `keep` keep them; returns what that returns.

    What ends it early, Ctrl-C or the environment, is raised when `keep` has kept the others, with
    `ended_by` that error. A signal while `keep` runs is raised afterwards as KeyboardInterrupt.
    """
    evaluations: Evaluations = []
    stops = _Stops()
    with on_signals(stops):
        try:
            for each in played:
                evaluations.append(each)
            stops.keeping = True
        except BaseException as error:
            stops.keeping = True  # an assignment: no signal comes between
            if isinstance(error, EvaluationError) and error.evaluation is not None:
                evaluations.append((scales[len(evaluations)], error.evaluation))
            if evaluations:
                keep(evaluations, ended_by(error))
            raise
        kept = keep(evaluations, {})
    if stops.asked:
        raise KeyboardInterrupt("stopped")
    return kept
