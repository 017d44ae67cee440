"""A dataset as seen through a window: histories for observations, chunks for actions.

A transition is a decision: k actions, the sum of their rewards, and what is seen k steps later. It
is what an environment would give whose step executes a chunk. Every episode is read k times, from
its first, second, … k-th step on, so that every step begins a chunk once.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgpo.envs.data.dataset import ARRAYS, OfflineDataset, episode_starts
from qgpo.envs.tasks.window import Window

Episode = dict[str, NDArray[Any]]


def windowed(dataset: OfflineDataset, history: int = 1, chunk: int = 1) -> OfflineDataset:
    """The dataset of the same recordings with `history` observations and `chunk` actions at once.

    A chunk in which the task ends is filled up with its last action; one that the recording cuts
    is left out. `details["episode"]`, `details["first_step"]` and `details["return"]` (E,) say
    which recorded episode an episode is of, from which of its steps on, and what the recorded one
    returned. The arrays are in memory.

    Raises ValueError for numbers outside 1 to 1000, for a dataset that is windowed already, and
    where no episode is as long as a chunk.
    """
    window = Window.of(history, chunk)
    if window is None:
        return dataset
    if dataset.window is not None:
        raise ValueError(
            f"dataset {dataset.id!r} has {dataset.window} already: load it again without"
        )
    made: dict[str, list[NDArray[Any]]] = {name: [] for name in ARRAYS}
    numbers: list[tuple[int, int]] = []
    for number, start in enumerate(dataset.episode_starts):
        length = int(dataset.episode_lengths[number])
        steps, rows = (
            slice(start, start + length),
            slice(start + number, start + number + length + 1),
        )
        recorded = {
            name: np.asarray(getattr(dataset, name)[rows if name == "states" else steps])
            for name in ARRAYS
        }
        seen = window.histories(recorded["states"])
        for first in range(min(window.chunk, length)):
            episode = _decisions({**recorded, "states": seen}, first, window.chunk)
            if episode is not None:
                numbers.append((number, first))
                for name, rows_of_it in episode.items():
                    made[name].append(rows_of_it)
    if not numbers:
        raise ValueError(
            f"dataset {dataset.id!r}: chunk={chunk}, and no episode has so many steps (the longest "
            f"has {dataset.episode_lengths.max()})"
        )
    arrays: dict[str, Any] = {name: np.concatenate(parts) for name, parts in made.items()}
    of, first_steps = np.array(numbers).T
    return dataclasses.replace(
        dataset,
        **arrays,
        episode_starts=episode_starts([len(part) for part in made["rewards"]]),
        observation_space=window.seen(dataset.observation_space),
        action_space=window.decided(dataset.action_space),
        details={
            **dataset.details,
            "episode": of,
            "first_step": first_steps,
            "return": dataset.episode_returns[of],
        },
        folder=None,
        window=window,
    )


def _decisions(recorded: Episode, first: int, chunk: int) -> Episode | None:
    """The decisions of an episode from its step `first` on; None where there are none."""
    length = len(recorded["rewards"])
    starts = np.arange(first, length, chunk)
    steps = starts[:, None] + np.arange(chunk)
    inside = steps < length
    steps = np.minimum(steps, length - 1)  # the last action again, where there are fewer
    ended = np.cumsum(recorded["terminations"][steps] & inside, axis=1) > 0
    counted = inside & ~np.concatenate([np.zeros((len(ended), 1), np.bool_), ended[:, :-1]], axis=1)
    over = ended[:, -1]
    whole = inside[:, -1] | over
    if not whole.any():
        return None
    n = int(whole.sum())  # all, or all but the last one
    rewards = np.where(counted, recorded["rewards"][steps], np.float32(0)).sum(axis=1)
    follows = np.minimum(starts + chunk, length)
    terminations = over[:n]
    return {
        "states": recorded["states"][np.append(starts[:n], follows[n - 1])],
        "actions": recorded["actions"][steps[:n]].reshape(n, -1),
        "rewards": rewards[:n].astype(np.float32),
        "terminations": terminations,
        "truncations": (np.arange(n) == n - 1) & ~terminations,
    }
