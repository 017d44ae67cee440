"""How exact the guidance of runs was found to be, from what `evaluate.py --exactness` left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgpo.envs.text_files import read_json
from qgpo.experiments.packing import ResultError, refused


@dataclass(frozen=True)
class MeasuredExactness:
    """Estimates of one run, each with the ends of its 95 % interval."""

    run: str
    """name of its folder"""
    dataset: str
    states: int
    guidance_error: tuple[float, float, float]
    distance: tuple[float, float, float]
    """of guided actions, over that of two resampled sets"""
    effective_share: tuple[float, float, float]


def find_exactness(folders: Sequence[Path]) -> list[MeasuredExactness]:
    """The latest measurement of every run folder, and of those in a folder of runs.

    Runs in which nothing was measured are left out. Raises ResultError for a folder that does not
    exist and for a file that cannot be read.
    """
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise ResultError(f"{folder} is no folder: expected one of a run, or of several runs")
        runs = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
        measured = map(_latest, runs)
        found += [one for one in measured if one is not None]
    return found


def _latest(run: Path) -> MeasuredExactness | None:
    found = {path: path.read_text(encoding="utf-8") for path in run.glob("evaluation*.json")}
    paths = [path for path, text in found.items() if '"exactness"' in text]
    if not paths:
        return None
    path = max(paths, key=lambda path: (path.stat().st_mtime, path.name))
    with refused(f"{path} does not say how exact the guidance is"):
        document = read_json(path)
        about = document["exactness"]
        names = ("guidance_error", "distance", "effective_share")
        return MeasuredExactness(
            run.resolve().name,
            str(document["dataset"]["id"]),
            len(about["effective"]),
            *(_interval(about[name]) for name in names),
        )


def _interval(values: Any) -> tuple[float, float, float]:
    """An estimate with its interval. Raises ValueError for other values."""
    if not isinstance(values, list) or [type(x) for x in values] != [float] * 3:
        raise ValueError(f"{values!r:.100}, expected an estimate and its interval")
    value, low, high = values
    return value, low, high
