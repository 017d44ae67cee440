"""From files to a Log: which column is what."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgpo.envs.data.columns import flags, recorded
from qgpo.envs.logs.columns import Columns, LogError, expand, listed, names_in, read_columns
from qgpo.envs.logs.log import Log


@dataclass(frozen=True)
class Names:
    """Which columns are what: names, or patterns with `*` for those of several columns.

    What is not named is guessed, and "" says that there is no such column.
    """

    observations: tuple[str, ...] = ()
    """in the order in which the agent sees them"""
    actions: tuple[str, ...] = ()
    reward: str | None = None
    termination: str | None = None
    """true where the task ended: nothing comes after"""
    truncation: str | None = None
    """true where the recording was cut, by a time limit for example"""
    episode: str | None = None
    """a number that is the same in all rows of an episode; without it an episode ends at a flag,
    and each file begins one"""
    time: str | None = None
    next_observations: tuple[str, ...] = ()
    """where the rows of an episode do not follow each other"""


GUESSES: dict[str, tuple[str, ...]] = {
    "observations": ("observations", "obs", "observation", "observation*", "obs*", "state*"),
    "actions": ("actions", "action", "action*", "act_*"),
    "reward": ("rewards", "reward"),
    "termination": ("terminations", "terminals", "terminated", "termination"),
    "truncation": ("truncations", "timeouts", "truncated", "truncation"),
    "episode": ("episode", "episodes", "episode_index", "episode_id"),
    "time": ("timestamp", "timestamps", "time"),
    "next_observations": (
        "next_observations",
        "next_obs",
        "next_observation*",
        "next_obs*",
        "next_state*",
    ),
}
"""what columns are taken for where nothing is said, the first one that is there"""
SEVERAL = ("observations", "actions", "next_observations")
NEEDED = ("observations", "actions")
NO_COLUMN = ("", ("",))
"""as a name: none of the columns has this role, whatever they are called"""


def choose(names: Names, there: Sequence[str], of: str) -> dict[str, list[str]]:
    """The columns of each role, as stated or guessed. Raises LogError for what is not there."""
    chosen: dict[str, list[str]] = {}
    for role, guesses in GUESSES.items():
        stated = getattr(names, role)
        if stated in NO_COLUMN:
            continue
        if stated:
            try:
                chosen[role] = expand(stated if role in SEVERAL else (stated,), there)
            except LogError as error:
                raise LogError(f"{of}: {error} (--{role.replace('_', '-')})") from None
            continue
        taken = {name for found in chosen.values() for name in found}
        for guess in guesses:
            left = [name for name in there if name not in taken]
            try:
                found = expand((guess,), left)
            except LogError:
                continue
            chosen[role] = found if role in SEVERAL else found[:1]
            break
    for role in NEEDED:
        if role not in chosen:
            raise LogError(
                f"{of}: which columns are the {role}? Say it with --{role} NAME … (patterns such "
                f"as 'q*' too); there are {listed(there)}"
            )
    return chosen


def read_log(paths: Sequence[Path], names: Names | None = None, seconds: float = 1.0) -> Log:
    """The rows of files of one kind (.npz, .csv, .parquet), in their order; each begins an episode.

    `seconds` is the unit of the time column. Raises LogError for files that lack what was named,
    and for columns that hold no numbers.
    """
    names = names or Names()
    if not paths:
        raise LogError("no file is given, expected at least one")
    logs = []
    for path in paths:
        chosen = choose(names, names_in(path), str(path))
        columns = _read(path, chosen, time_is_guessed=names.time is None)
        logs.append(as_log(columns, chosen, str(path), seconds))
    log = join(logs)
    unused = [name for name in names_in(paths[0]) if name not in columns]
    notes = (f"columns that are not used: {listed(unused)}",) if unused else ()
    return dataclasses.replace(log, notes=notes)


def _read(path: Path, chosen: dict[str, list[str]], time_is_guessed: bool) -> Columns:
    """The columns that are chosen.

    A column of time that was guessed, and is no column of numbers but of dates, is taken out.
    """
    wanted = list(dict.fromkeys(name for found in chosen.values() for name in found))
    try:
        return read_columns(path, wanted)
    except LogError:
        if not (time_is_guessed and "time" in chosen):
            raise
        columns = read_columns(path, [name for name in wanted if name not in chosen["time"]])
    del chosen["time"]
    return columns


def as_log(
    columns: Columns,
    chosen: Mapping[str, list[str]],
    of: str,
    seconds: float = 1.0,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> Log:
    """A Log of columns whose roles are chosen; `labels` name the parts of a column (N, k)."""
    parts = {role: _matrix(columns, chosen[role], labels or {}, of) for role in NEEDED}
    (observations, observation_names), (actions, action_names) = parts.values()
    n = len(actions)
    single = {
        role: recorded(of, role, columns[chosen[role][0]]).reshape(-1)
        for role in ("reward", "termination", "truncation", "episode", "time")
        if role in chosen
    }
    if "reward" in single and single["reward"].dtype == np.bool_:
        single["reward"] = single["reward"].astype(np.float32)
    odd = {role: len(values) for role, values in single.items() if len(values) != n}
    if odd:
        raise LogError(f"{of}: actions has {n} rows, {odd} others")
    ends: dict[str, Any] = {
        f"{role}s": flags(of, role, single[role], (n,))
        for role in ("termination", "truncation")
        if role in single
    }
    following = None
    if "next_observations" in chosen:
        following, _ = _matrix(columns, chosen["next_observations"], labels or {}, of)
        if following.shape != (n, observations.shape[1]):
            raise LogError(
                f"{of}: next_observations have shape {following.shape}, expected "
                f"{(n, observations.shape[1])}"
            )
    log = Log(
        of=of,
        observations=observations[:n],
        actions=actions,
        episodes=_episodes(of, single.get("episode"), ends, n),
        observation_names=observation_names,
        action_names=action_names,
        rewards=single.get("reward"),
        times=single["time"].astype(np.float64) * seconds if "time" in single else None,
        next_observations=following,
        is_numbered="episode" in single,
        **ends,
    )
    return _with_last_observations(log, observations)


def join(logs: Sequence[Log]) -> Log:
    """The rows of several, one after the other; episodes of different files are different ones.

    A file whose episodes have numbers of former ones gets others. Raises LogError where columns
    differ.
    """
    first = logs[0]
    taken = set[int]()
    numbered = []
    ambiguous = False
    for log in logs:
        for name in ("observation_names", "action_names"):
            ours, theirs = getattr(first, name), getattr(log, name)
            if ours != theirs:
                raise LogError(f"{log.of} has the columns {theirs}, {first.of} has {ours}")
        if taken & set(log.episodes.tolist()):
            ambiguous |= log.is_numbered
            shift = max(taken) + 1 - int(log.episodes.min())
            log = dataclasses.replace(log, episodes=log.episodes + shift)
        numbered.append(log)
        taken |= set(log.episodes.tolist())
    arrays: dict[str, Any] = {}
    for field in dataclasses.fields(Log):
        values = [getattr(log, field.name) for log in numbered]
        if any(isinstance(value, np.ndarray) for value in values):
            if not all(isinstance(value, np.ndarray) for value in values):
                raise LogError(f"some files have {field.name}, others have none")
            arrays[field.name] = np.concatenate(values)
    of = first.of if len(logs) == 1 else f"{first.of} and {len(logs) - 1} more"
    return dataclasses.replace(first, of=of, is_ambiguous=ambiguous, **arrays)


def _matrix(
    columns: Columns, names: Sequence[str], labels: Mapping[str, Sequence[str]], of: str
) -> tuple[NDArray[Any], tuple[str, ...]]:
    """The columns side by side, (N, k), and a name for each."""
    arrays, said = [], []
    for name in names:
        if len(columns[name]) == 0:
            raise LogError(f"{of} has no rows: {name} is empty")
        array = recorded(of, name, columns[name])
        if array.ndim > 2:
            raise LogError(
                f"{of}: {name} has shape {array.shape}, images perhaps; vectors are supported. "
                "Encode images first, and import the codes"
            )
        array = array.reshape(len(array), -1)
        array = array.astype(np.float32) if array.dtype == np.bool_ else array
        given = list(labels.get(name, ()))
        parts = given if len(given) == array.shape[1] else map(str, range(array.shape[1]))
        said += [name] if array.shape[1] == 1 else [f"{name}[{part}]" for part in parts]
        arrays.append(array)
    if len({len(array) for array in arrays}) > 1:
        raise LogError(f"{of}: columns have { {n: len(columns[n]) for n in names} } rows")
    return np.concatenate(arrays, axis=1), tuple(said)


def _episodes(
    of: str, numbers: NDArray[Any] | None, ends: Mapping[str, NDArray[np.bool_]], n: int
) -> NDArray[np.int64]:
    """(N,) numbers of episodes: as recorded, else counted at the flags."""
    if numbers is not None:
        whole = numbers.dtype.kind != "f" or (
            np.isfinite(numbers).all() and np.array_equal(numbers, np.round(numbers))
        )
        if not whole:
            raise LogError(f"{of}: the episode column has values that are no whole numbers")
        return numbers.astype(np.int64)
    over = np.zeros(n, np.bool_)
    for flag in ends.values():
        over |= flag
    return np.cumsum(np.concatenate([[False], over[:-1]])[:n]).astype(np.int64)


def _with_last_observations(log: Log, observations: NDArray[Any]) -> Log:
    """Where observations have a row more per episode, that of its end, take them apart."""
    n, more = len(log), len(observations) - len(log)
    if more == 0:
        if log.next_observations is not None and len(log.next_observations) != n:
            raise LogError(
                f"{log.of}: next_observations has {len(log.next_observations)} rows, actions {n}"
            )
        return log
    if more != len(log.starts):
        raise LogError(
            f"{log.of}: observations has {len(observations)} rows, actions {n} in "
            f"{len(log.starts)} episodes; expected as many, or one more for each episode's end"
        )
    number = np.cumsum(np.isin(np.arange(n), log.starts)) - 1
    rows = np.arange(n) + number
    return dataclasses.replace(
        log, observations=observations[rows], next_observations=observations[rows + 1]
    )
