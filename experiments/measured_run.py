"""One run of a benchmark: what its document says, checked before a report counts it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgpo.agents.core.parsing import brief
from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.experiments.packing import Document, refused

MACHINE = ("processor", "cpus", "device", "threads")
"""what a report says of it"""

LARGEST = 1e100
"""number in a result: sums and squares of such numbers are finite"""
MOST_LETTERS = 200
"""of a label or another text"""

Key = tuple[str, str, int]
"""dataset, label, seed"""


SHARED = ("agent", "deterministic", "env_id")
"""of what was measured, beside configuration and window"""


@dataclass(frozen=True)
class Run:
    """One training and its evaluations."""

    dataset: str
    label: str
    seed: int
    headline_scale: float | None
    """guidance scale that was configured before any evaluation; None for agents without one"""
    returns: dict[float | None, NDArray[np.float64]] = field(repr=False)
    """every episode's return, by guidance scale"""
    reference: ReferenceScores | None
    data_returns: NDArray[np.float64] = field(repr=False)
    """of the episodes in the dataset"""
    fingerprint: str
    """of the dataset"""
    wall_seconds: float
    cpu_seconds: float | None
    """of training; None where it was not measured"""
    environment_steps: int
    """0 for agents that learn from the data alone"""
    versions: dict[str, str]
    machine: dict[str, str]
    """processor, cores, torch device and threads"""
    successes: dict[float | None, NDArray[np.bool_]] = field(default_factory=dict, repr=False)
    """whether every episode succeeded, by guidance scale; empty where returns are scored"""
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    """what runs of one label share: agent, configuration, and how it was played"""

    @property
    def key(self) -> Key:
        """Which run it is."""
        return self.dataset, self.label, self.seed

    @property
    def by_success(self) -> bool:
        """Whether episodes are scored by success, in percent, and not by their returns."""
        return bool(self.successes)

    @property
    def outcomes(self) -> dict[float | None, NDArray[np.float64]]:
        """What of every episode is scored, by guidance scale: 100 or 0 for success, or the return.

        Their mean is in percent, or a return.
        """
        if self.by_success:
            return {scale: np.where(won, 100.0, 0.0) for scale, won in self.successes.items()}
        return self.returns

    def mean(self, scale: float | None) -> float:
        """Percentage of successes, or mean return, at that guidance scale."""
        return float(self.outcomes[scale].mean())

    @property
    def headline(self) -> float:
        """The same at the headline scale."""
        return self.mean(self.headline_scale)

    @property
    def limits(self) -> tuple[float, float] | None:
        """The returns whose scores are 0 and 100; None without reference returns."""
        return (self.reference.minimum, self.reference.maximum) if self.reference else None

    @property
    def score(self) -> float | None:
        """That percentage, or the normalised headline; None without reference returns."""
        if self.by_success:
            return self.headline
        return None if self.reference is None else float(self.reference.normalize(self.headline))


def read_run(document: Document, source: str) -> Run:
    """The run of a cell's document of any version.

    Raises ResultError, which names the source, for a document of something else.
    """
    with refused(f"{source} is not a cell's result"):
        data, training = document["dataset"], document["training"]
        cpu_seconds = training["cpu_seconds"]
        run = Run(
            dataset=_name(data["id"]),
            label=_name(document["label"]),
            seed=_count(document.get("measured", document)["seed"]),
            headline_scale=_scale(document["headline_scale"]),
            returns=_by_scale(document["evaluations"]),
            successes=_successes(document["evaluations"]),
            reference=_reference(document),
            data_returns=_returns(data["returns"]),
            fingerprint=_name(data["fingerprint"]),
            wall_seconds=_seconds(training["wall_seconds"]),
            cpu_seconds=None if cpu_seconds is None else _seconds(cpu_seconds),
            environment_steps=_count(document["environment_steps"]),
            versions={_text(n): _text(version) for n, version in document["versions"].items()},
            machine={n: _text(document["machine"].get(n, "unknown")) for n in MACHINE},
            settings=_settings(document),
        )
        if run.headline_scale not in run.returns:
            raise ValueError(f"nothing was evaluated at its headline scale {run.headline_scale}")
        with np.errstate(over="ignore", invalid="ignore"):
            score = run.score
        if score is not None:
            _number(score, "normalised score")
    return run


def _reference(document: Document) -> ReferenceScores | None:
    """The reference returns of the environment in which the headline was played.

    Documents of earlier versions have those of the data alone.
    """
    found = document["dataset"]["reference"]
    for evaluation in document["evaluations"]:
        if evaluation["guidance_scale"] == document["headline_scale"]:
            found = evaluation.get("reference", found)
    return ReferenceScores(**found) if found else None


def _settings(document: Document) -> dict[str, Any]:
    """By name. Documents of earlier versions lack some."""
    measured = document.get("measured", document)
    about = {name: measured[name] for name in SHARED if name in measured}
    windows = {name: measured.get(name, 1) for name in ("history", "chunk")}
    scale = {"configured guidance scale": document["headline_scale"]}
    return {**about, **windows, **scale, **measured.get("config", {})}


def _text(value: Any) -> str:
    """A name, a version or a number on one line. Raises ValueError for other values."""
    text = " ".join(str(value).split()) if isinstance(value, str | int | float | None) else ""
    if not isinstance(value, str | int | float | None) or not text.isprintable():
        raise ValueError(f"{brief(value)} is not printable text")
    if len(text) > MOST_LETTERS:
        raise ValueError(f"{brief(value)} has {len(text)} letters, at most {MOST_LETTERS}")
    return text


def _name(value: Any) -> str:
    """A text that is not empty. Raises ValueError."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{brief(value)} is not a name")
    return _text(value)


def _number(value: Any, of: str, low: float = -LARGEST, high: float = LARGEST) -> float:
    """A number between these. Raises ValueError."""
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"{of} {brief(value)}, expected a number between {low:g} and {high:g}")
    return float(value)


def _seconds(value: Any) -> float:
    return _number(value, "seconds of training", 0.0)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**64:
        raise ValueError(f"{brief(value)} is neither a seed nor a number of steps")
    return value


def _scale(value: Any) -> float | None:
    return None if value is None else _number(value, "guidance scale")


def _by_scale(evaluations: list[Document]) -> dict[float | None, NDArray[np.float64]]:
    """Every episode's return by guidance scale. Raises ValueError where a scale is there twice."""
    returns: dict[float | None, NDArray[np.float64]] = {}
    for evaluation in evaluations:
        scale = _scale(evaluation["guidance_scale"])
        if scale in returns:
            raise ValueError(f"there are two evaluations at guidance scale {scale}")
        returns[scale] = _returns(evaluation["returns"])
        if not len(returns[scale]):
            raise ValueError("an evaluation has no episodes")
    return returns


def check_successes(flags: Any, n: int) -> None:
    """Raise ValueError for what is no list of n flags."""
    if not isinstance(flags, list) or [type(flag) for flag in flags] != [bool] * n:
        raise ValueError(f"successes {brief(flags)}, expected a flag for each of {n} returns")


def _successes(evaluations: list[Document]) -> dict[float | None, NDArray[np.bool_]]:
    """Every episode's success by guidance scale, empty where returns are scored.

    Raises ValueError where only some of the episodes have one.
    """
    said = [evaluation.get("successes") for evaluation in evaluations]
    if all(successes is None for successes in said):
        return {}
    successes = {}
    for evaluation, flags in zip(evaluations, said, strict=True):
        check_successes(flags, len(evaluation["returns"]))
        successes[_scale(evaluation["guidance_scale"])] = np.array(flags, dtype=np.bool_)
    return successes


def _returns(values: Any) -> NDArray[np.float64]:
    """Returns (n,) that are finite. Raises ValueError."""
    if not isinstance(values, list):
        raise ValueError(f"returns {brief(values)} are not a list of numbers")
    return np.array([_number(value, "return") for value in values], dtype=np.float64)
