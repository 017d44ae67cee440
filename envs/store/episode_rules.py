"""Rules that change recorded episodes to match the environment in which agents are scored.

Some datasets were recorded in a variant of an environment that continues after the task is done.
A rule turns such an episode into the one that the evaluated variant would have produced for the
same actions, so that values, returns of the data and scores belong to the same task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qgpo.envs.data.memmap import Episode

COMPLETED = 0.3
"""distance below which a kitchen task is done (BONUS_THRESH of D4RL and gymnasium-robotics)"""


def recorded(episode: Episode, observations: Any) -> Episode:
    """The episode, unchanged."""
    return episode


def until_success(episode: Episode, observations: Mapping[str, Any]) -> Episode:
    """End and terminate at the first rewarded step; later steps are dropped.

    For sparse rewards that are 1 at the goal. The recorder of PointMaze starts an episode with the
    last observation of the previous one, which still shows the previous goal: that step is dropped.
    """
    goals = np.asarray(observations["desired_goal"])
    if len(goals) > 1 and not np.array_equal(goals[0], goals[1]):
        episode = {name: rows[1:] for name, rows in episode.items()}
    reached = np.flatnonzero(episode["rewards"] > 0.0)
    return episode if len(reached) == 0 else _end(episode, int(reached[0]) + 1)


def first_completions(episode: Episode, observations: Mapping[str, Any]) -> Episode:
    """Reward 1 for each task when it is first done; end and terminate when all are done.

    The rewards in the kitchen's data are the number of tasks that are done at each step instead.
    """
    achieved, desired = observations["achieved_goal"], observations["desired_goal"]
    distances = np.stack(
        [np.linalg.norm(np.subtract(achieved[t], desired[t]), axis=-1) for t in sorted(desired)],
        axis=1,
    )
    done = np.logical_or.accumulate(distances[1:] < COMPLETED, axis=0)
    count = done.sum(axis=1)
    episode = {**episode, "rewards": np.diff(count, prepend=0).astype(np.float32)}
    every = np.flatnonzero(done.all(axis=1))
    return episode if len(every) == 0 else _end(episode, int(every[0]) + 1)


RULES: dict[str, Callable[[Episode, Any], Episode]] = {
    "recorded": recorded,
    "until_success": until_success,
    "first_completions": first_completions,
}


def _end(episode: Episode, length: int) -> Episode:
    """The first `length` steps, the last of which terminates."""
    cut = {name: rows[: length + (name == "states")] for name, rows in episode.items()}
    last = np.arange(length) == length - 1
    cut["terminations"], cut["truncations"] = last, np.zeros(length, np.bool_)
    return cut
