"""A recording as a new local Minari dataset, complete or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import minari
import numpy as np
from gymnasium import spaces
from minari import MinariDataset
from minari.dataset.minari_storage import MinariStorage

from qgpo.envs.logs.checks import check_log, gaps
from qgpo.envs.logs.columns import LogError
from qgpo.envs.logs.log import Ends, Log, episodes_of
from qgpo.envs.store.checking import Finding
from qgpo.envs.store.local import folder_of, open_local
from qgpo.envs.store.metadata import NO_REWARDS
from qgpo.envs.store.storing import size_of, store_episodes
from qgpo.envs.store.writing import check_new_id, check_space, new_dataset, write_minari
from qgpo.envs.tasks.actions import outside
from qgpo.envs.tasks.making import as_played, make_env
from qgpo.envs.tasks.one_hot import one_hot

ALGORITHM = "recorded"


def action_box(
    log: Log, low: Sequence[float] = (), high: Sequence[float] = (), env_id: str | None = None
) -> tuple[spaces.Box, str]:
    """The space of a recording's actions, and where its bounds are from.

    Of the environment, or as stated (one number, or one per action), else [-1, 1] where all actions
    are inside, else the range of the data. Raises LogError for bounds that do not fit.
    """
    size = log.actions.shape[1]
    if env_id is not None:
        return _box_of(env_id, log, [*low, *high])
    if bool(low) != bool(high):
        raise LogError("one of --low and --high is given, expected both or none")
    if low and high:
        for name, bound in (("low", low), ("high", high)):
            if len(bound) not in (1, size):
                raise LogError(f"--{name} has {len(bound)} numbers, expected 1 or {size}")
        ends = [np.broadcast_to(np.asarray(b, np.float64), (size,)) for b in (low, high)]
        if not (np.isfinite(ends).all() and (ends[0] < ends[1]).all()):
            raise LogError(f"--low {list(low)} --high {list(high)}: expected low below high")
        box = spaces.Box(ends[0].astype(np.float32), ends[1].astype(np.float32))
        wrong = outside(log.actions.astype(np.float32), box)
        if wrong.any():
            names = [log.action_names[int(k)] for k in np.flatnonzero(wrong.any(axis=0))]
            raise LogError(
                f"{int(wrong.any(axis=1).sum())} actions lie outside --low and --high, columns "
                f"{names}: state wider ones, or clip what was executed"
            )
        return box, "as stated"
    if log.is_one_hot:
        return spaces.Box(0.0, 1.0, (size,), np.float32), "one number per choice"
    actions = log.actions.astype(np.float64)  # of integers -2^n has no absolute value
    if float(np.abs(actions).max()) <= 1.0:
        return spaces.Box(-1.0, 1.0, (size,), np.float32), "all actions are inside"
    smallest, largest = actions.min(axis=0), actions.max(axis=0)
    constant = smallest == largest
    radius = np.maximum(1.0, np.abs(smallest))
    smallest = np.where(constant, smallest - radius, smallest)
    largest = np.where(constant, largest + radius, largest)
    box = spaces.Box(smallest.astype(np.float32), largest.astype(np.float32))
    return box, "the range of the data; --low and --high state others"


def _box_of(env_id: str, log: Log, stated: Sequence[float]) -> tuple[spaces.Box, str]:
    """The environment's space of actions. Raises LogError where the recorded ones do not fit."""
    with make_env(as_played(env_id)) as env:
        space, what = env.action_space, f"actions of {env_id}"
    if stated:
        raise LogError(f"--low and --high: the bounds are those of the {what}, {space}: say one")
    if not isinstance(space, spaces.Box) or space.shape != log.actions.shape[1:]:
        raise LogError(f"{log.of}: {log.actions.shape[1]} action columns, the {what} are {space}")
    wrong = outside(log.actions.astype(np.float32), space).any(axis=1)
    if wrong.any():
        raise LogError(
            f"{log.of}: {int(wrong.sum())} of {len(log)} actions lie outside the {what}, {space}: "
            "clip what was executed, or leave --env-id away"
        )
    reach = f"the recorded ones from {log.actions.min():.4g} to {log.actions.max():.4g}"
    return space, f"those of {env_id}; {reach}"


def prepare(
    log: Log, skip: Sequence[int] = (), split_gaps: bool = False, discrete: bool = False
) -> Log:
    """Without some episodes, with others ended where time stamps have a gap.

    The choices in a `discrete` action become vectors of 0 and 1. Raises LogError for other numbers.
    """
    log = log.without(skip) if skip else log
    if discrete:
        try:
            actions = one_hot(log.actions)
        except ValueError as error:
            raise LogError(f"{log.of}: --one-hot: {error}") from error
        name = log.action_names[0]
        names = tuple(f"{name} is {k}" for k in range(actions.shape[1]))
        log = dataclasses.replace(log, actions=actions, action_names=names)
    return log.split(gaps(log)).cut() if split_gaps else log.cut()


def findings(
    log: Log,
    ends: Ends = "truncated",
    low: Sequence[float] = (),
    high: Sequence[float] = (),
    env_id: str | None = None,
) -> list[Finding]:
    """What `check_log` finds, and the bounds of the actions."""
    found = check_log(log, ends)
    if any(finding.ok is False for finding in found):
        return found
    box, source = action_box(log, low, high, env_id)
    text = f"[{box.low.min():.4g}, {box.high.max():.4g}]: {source}"
    return [*found, Finding("bounds", True, text)]


def import_log(
    log: Log,
    dataset_id: str,
    *,
    env_id: str | None = None,
    ends: Ends = "truncated",
    low: Sequence[float] = (),
    high: Sequence[float] = (),
    description: str = "",
) -> MinariDataset:
    """Store a recording under a new id; with `env_id` as one of that environment.

    Raises LogError where `check_log` finds what is bad, ValueError for an id that is taken or data
    that do not fit the environment, OSError where the disk does not take them.
    """
    check_new_id(dataset_id)
    log = log.cut()
    bad = [finding for finding in check_log(log, ends) if finding.ok is False]
    if bad:
        raise LogError(f"{log.of}: {bad[0].what}: {bad[0].text}")
    episodes = list(episodes_of(log, ends))
    if not episodes:
        raise LogError(
            f"{log.of}: no transition is there: every episode has one row, which leads nowhere"
        )
    description = description or f"Recorded data from {log.of}."
    box, _ = action_box(log, low, high, env_id)
    if env_id is not None:
        write_minari(dataset_id, episodes, env_id, ALGORITHM, description)
        made = open_local(dataset_id)
        made.storage.update_metadata({NO_REWARDS: log.rewards is None})
        return made
    dtype = np.float32 if log.observations.dtype == np.float32 else np.float64
    check_space(dataset_id, size_of(episodes))
    with new_dataset(dataset_id):
        data = folder_of(dataset_id) / "data"
        data.parent.mkdir(parents=True)
        storage = MinariStorage.new(
            data,
            observation_space=spaces.Box(-np.inf, np.inf, (log.observations.shape[1],), dtype),
            action_space=box,
        )
        store_episodes(storage, episodes)
        storage.update_metadata(
            {
                "dataset_id": dataset_id,
                "minari_version": minari.__version__,
                "author": {"none"},
                "author_email": {"none"},
                "code_permalink": "none",
                "algorithm_name": ALGORITHM,
                "description": description,
                "observation_names": list(log.observation_names),
                "action_names": list(log.action_names),
                NO_REWARDS: log.rewards is None,
            }
        )
        open_local(dataset_id)
    return open_local(dataset_id)
