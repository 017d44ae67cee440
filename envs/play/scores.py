"""What episodes gave: returns and successes, with their means, intervals and scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qgpo.envs.play.intervals import bootstrap_interval, success_interval, success_rate
from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.envs.text import counted, readable, with_interval

NO_INTERVAL = "no interval"
"""what tables say of a single episode"""


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Every episode's return, length and success; means with 95 % intervals."""

    env_id: str
    returns: list[float]
    lengths: list[int]
    seeds: list[int]
    """seed of each episode's reset (a VectorEnv seeds the first of each slot only)"""
    cut: int
    """episodes stopped by our step limit because the environment did not end them"""
    mean: float
    """of the returns"""
    interval: tuple[float, float] | None
    """of the mean return, by bootstrap; None for a single episode, which says nothing about the
    spread"""
    score: float | None
    """the percentage of successes where episodes are scored by that, else the mean normalised
    score, 0 to 100 between the reference returns; None where it compares with no other's"""
    score_interval: tuple[float, float] | None
    reference: dict[str, Any] | None = None
    successes: list[bool] | None = None
    """whether each episode succeeded; None where episodes are scored by their returns"""

    def __str__(self) -> str:
        n = len(self.returns)
        episodes = "in one episode" if n == 1 else f"over {n} episodes"
        if self.successes is not None:
            return (
                f"success {self.success_text} (95 %) {episodes} (mean return {readable(self.mean)})"
            )
        text = self.mean_text
        if self.interval is not None:
            text += f" {self.interval_text} (95 %)"
        if self.score is not None:
            text += f", normalised {self.score:.1f} ({self.scale_text})"
        return f"{text} {episodes}" + ("" if self.interval else f" ({NO_INTERVAL})")

    @property
    def scale_text(self) -> str:
        """The returns that count as 0 and as 100; empty where returns are not normalised."""
        if self.reference is None:
            return ""
        low, high = (readable(self.reference[name]) for name in ("minimum", "maximum"))
        return f"0 is {low}, 100 is {high}"

    @property
    def success(self) -> float | None:
        """Percent of the episodes that succeeded; None where they are scored by their returns."""
        return None if self.successes is None else success_rate(self.successes)

    @property
    def success_interval(self) -> tuple[float, float] | None:
        """Wilson's interval of that; a single episode has one, too."""
        return None if self.successes is None else success_interval(self.successes)

    @property
    def success_text(self) -> str:
        """Both: "64.0 % [50.1, 75.9]"; "-" where episodes are scored by their returns."""
        if self.success is None or self.success_interval is None:
            return "-"
        low, high = self.success_interval
        return f"{self.success:.1f} % [{low:.1f}, {high:.1f}]"

    @property
    def interval_text(self) -> str:
        """The interval of returns for tables: "[low, high]", or that there is none."""
        return with_interval(self.mean, self.interval)[1] or NO_INTERVAL

    @property
    def mean_text(self) -> str:
        """The mean return, with as many decimals as its interval."""
        return with_interval(self.mean, self.interval)[0]

    def __repr__(self) -> str:
        return f"Evaluation({self.env_id}: {self})"

    def to_json(self) -> str:
        """All fields as JSON."""
        return json.dumps(asdict(self), indent=2)


def summarize(
    env_id: str,
    returns: list[float],
    lengths: list[int],
    seeds: list[int],
    cut: int,
    reference: ReferenceScores | None,
    successes: list[bool] | None = None,
    compares: bool = True,
) -> Evaluation:
    """Means, intervals and score of raw episodes.

    The score is the rate of success where there are `successes`, else the normalised mean return;
    there is none if it `compares` with no other's.
    """
    values = np.asarray(returns, dtype=np.float64)
    interval = bootstrap_interval(values)
    score = score_interval = None
    if successes is not None and compares:
        score, score_interval = success_rate(successes), success_interval(successes)
    elif reference is not None and compares:
        score = float(reference.normalize(float(values.mean())))
        if interval is not None:
            low, high = (float(reference.normalize(bound)) for bound in interval)
            score_interval = low, high
    return Evaluation(
        env_id=env_id,
        returns=[float(r) for r in returns],
        lengths=[int(n) for n in lengths],
        seeds=seeds,
        cut=cut,
        mean=float(values.mean()),
        interval=interval,
        score=score,
        score_interval=score_interval,
        reference=asdict(reference) if reference is not None else None,
        successes=successes,
    )


class EvaluationError(RuntimeError, ValueError):
    """An environment or an agent that failed while episodes were played.

    A ValueError, too, as what it stands for often is. `evaluation` holds the episodes that had
    ended by then; None where there are none.
    """

    def __init__(self, message: str, evaluation: Evaluation | None = None) -> None:
        super().__init__(message)
        self.evaluation = evaluation


def scale_label(scale: float | Sequence[float] | None) -> str:
    """What was evaluated, for tables and pictures."""
    if scale is None:
        return "agent"
    if isinstance(scale, Sequence):
        return f"w = {', '.join(f'{own:g}' for own in scale)}"
    return f"w = {scale:g} ({'guided' if scale else 'imitation'})"


def score_table(rows: Sequence[tuple[str, Evaluation]]) -> str:
    """Labelled evaluations, or data (`summarize`), as lines with 95 % intervals.

    Where episodes are scored by success, that comes first, and returns have no interval.
    """
    if any(e.successes is not None for _, e in rows):
        lines = [f"{'':22s}{'success [95 % interval]':26s}{'return':>10s}{'episodes':>10s}"]
        for label, e in rows:
            numbers = f"{readable(e.mean):>10s}{len(e.returns):>10d}"
            lines.append(f"{label:22s}{e.success_text:26s}{numbers}")
    else:
        lines = [
            f"{'':22s}{'return':>8s}   {'95 % interval':16s}{'normalised':>10s}{'episodes':>10s}"
        ]
        for label, e in rows:
            score = "-" if e.score is None else f"{e.score:.1f}"
            returns = f"{e.mean_text:>8s}   {e.interval_text:16s}"
            lines.append(f"{label:22s}{returns}{score:>10s}{len(e.returns):>10d}")
        scales = (f"{e.scale_text}: {e.reference['source']}" for _, e in rows if e.reference)
        lines += [f"normalised: {text}" for text in dict.fromkeys(scales)]
    cut = sum(e.cut for _, e in rows)
    if cut:
        ends = "by itself and was" if cut == 1 else "by themselves and were"
        lines.append(f"{counted(cut, 'episode')} did not end {ends} cut at the step limit")
    return "\n".join(lines)
