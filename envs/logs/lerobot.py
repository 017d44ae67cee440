"""Folders in LeRobot's format, versions 2 and 3: parquet files of frames, described by info.json.

meta/info.json                                      version, frames per second, features
data/chunk-000/episode_000000.parquet               version 2: a file per episode
data/chunk-000/file-000.parquet                     version 3: many episodes in a file

A frame has no next observation: the last frame of an episode only ends it. Videos and images are
left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qgpo.envs.logs.columns import LogError, listed, read_columns
from qgpo.envs.logs.log import Log
from qgpo.envs.logs.reading import Names, as_log, choose, join
from qgpo.envs.text_files import read_json

INFO = Path("meta") / "info.json"
VERSIONS = ("v2.", "v3.")
LARGEST_INFO = 2**24
NUMBERS = ("float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64", "uint8")
SUCCESS = "next.success"
RATE_TOLERANCE = 0.05
"""part of the stated rate by which the time stamps may differ from it"""


def is_lerobot(path: Path) -> bool:
    """Whether a folder has LeRobot's layout."""
    return (path / INFO).is_file()


def read_lerobot(folder: Path, names: Names | None = None) -> Log:
    """The frames of all episodes.

    By default observations are `observation.state` and every other vector `observation.*`, actions
    `action`, rewards `next.reward`; an episode terminates where `next.success` is true in its last
    frame. Raises LogError for other versions, and for frames that are missing.
    """
    info = _read_info(folder)
    features: dict[str, dict[str, Any]] = info["features"]
    vectors = [n for n, about in features.items() if about.get("dtype") in NUMBERS and _flat(about)]
    images = [name for name in features if name.startswith("observation.") and name not in vectors]
    files = sorted(folder.glob("data/chunk-*/*.parquet"))
    if not files:
        raise LogError(f"{folder}: no data/chunk-*/*.parquet files are there")
    chosen = choose(_with_defaults(names or Names(), vectors), vectors, str(folder))
    success = SUCCESS in vectors and "termination" not in chosen
    wanted = [*dict.fromkeys(n for found in chosen.values() for n in found)]
    labels = {name: _labels(features[name].get("names")) for name in wanted}
    logs, succeeded = [], []
    for path in files:
        columns = read_columns(path, [*wanted, *([SUCCESS] if success else [])])
        logs.append(as_log(columns, chosen, str(path), labels=labels))
        if success:
            succeeded.append(columns[SUCCESS].reshape(-1).astype(np.bool_))
    log = join([dataclasses.replace(one, of=str(folder)) for one in logs])
    if success:
        at_end = np.isin(np.arange(len(log)), log.ends)
        log = dataclasses.replace(log, terminations=np.concatenate(succeeded) & at_end)
    _check_complete(log, info, folder)
    return dataclasses.replace(log, notes=tuple(_notes(log, info, images, success)))


def _read_info(folder: Path) -> dict[str, Any]:
    try:
        info = read_json(folder / INFO, LARGEST_INFO)
        version, features = info["codebase_version"], info["features"]
        if not isinstance(features, dict) or not all(
            isinstance(f, dict) for f in features.values()
        ):
            raise ValueError("features is no object of objects")
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise LogError(f"{folder / INFO} cannot be used ({error!r})") from error
    if not isinstance(version, str) or not version.startswith(VERSIONS):
        raise LogError(
            f"{folder} has codebase_version {version!r}, expected v2 or v3: convert it with LeRobot"
        )
    return dict(info)


def _flat(about: dict[str, Any]) -> bool:
    """Whether a feature is a number or a vector."""
    shape = about.get("shape")
    return isinstance(shape, list | tuple) and len(shape) <= 1


def _with_defaults(names: Names, vectors: Sequence[str]) -> Names:
    """LeRobot's names where the user states none."""
    state = [n for n in vectors if n == "observation.state"]
    others = [n for n in vectors if n.startswith("observation.") and n not in state]
    defaults: dict[str, Any] = {
        "observations": (*state, *others),
        "actions": ("action",) if "action" in vectors else (),
        "reward": "next.reward" if "next.reward" in vectors else None,
        "episode": "episode_index" if "episode_index" in vectors else None,
        "time": "timestamp" if "timestamp" in vectors else None,
    }
    missing = {
        name: value for name, value in defaults.items() if getattr(names, name) in (None, ())
    }
    return dataclasses.replace(names, **missing)


def _labels(names: Any) -> tuple[str, ...]:
    """The names of a feature's numbers: a list, or a list in an object, or nothing."""
    if isinstance(names, dict) and len(names) == 1:
        names = next(iter(names.values()))
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _check_complete(log: Log, info: dict[str, Any], folder: Path) -> None:
    """Raise LogError where there are fewer or more frames or episodes than stated."""
    found = {"total_frames": len(log), "total_episodes": len(log.starts)}
    for name, number in found.items():
        if info.get(name) not in (None, number):
            raise LogError(
                f"{folder}: {INFO} states {name} = {info[name]}, {number} are there: files are "
                "missing, or damaged"
            )


def _notes(log: Log, info: dict[str, Any], images: list[str], success: bool) -> list[str]:
    notes = []
    if images:
        notes.append(
            f"left out: {listed(images)}. Agents here learn from vectors; encode images first, and "
            "add the codes as a feature observation.…"
        )
    if success:
        notes.append(f"episodes terminate where {SUCCESS} is true in their last frame")
    fps = info.get("fps")
    if log.times is not None and isinstance(fps, int | float) and fps > 0 and len(log) > 1:
        step = float(np.median(np.diff(log.times)))
        if step <= 0.0 or abs(step * fps - 1.0) > RATE_TOLERANCE:
            notes.append(f"{INFO} states {fps} frames per second, time stamps are {step:g} s apart")
    return notes
