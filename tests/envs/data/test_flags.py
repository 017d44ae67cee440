"""Flags and rows that cannot be meant, said of arrays whose next observations are not recorded."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from gymnasium import spaces

from qgpo import OfflineDataset
from qgpo.envs.data.figure import summary
from qgpo.envs.data.jumps import jump_doubts

LIMIT = 40


def walks(lengths, seed=0, restart=True):
    """Smooth episodes of that many rows, each from a start of its own, and the flagged last rows.

    Without `restart` an episode begins where the one before ended.
    """
    rng = np.random.default_rng(seed)
    n, last = sum(lengths), np.cumsum(lengths) - 1
    steps = 0.05 * rng.normal(size=(n, 4))
    if restart:
        places = rng.normal(size=(len(lengths), 4))
        steps[last[:-1] + 1] += np.diff(places, axis=0)
    return steps.cumsum(axis=0), np.isin(np.arange(n), last)


def said(observations, terminations, truncations=None, **more):
    """The warnings of from_arrays, and the dataset."""
    n = len(terminations)
    rng = np.random.default_rng(1)
    columns = {"actions": rng.uniform(-1, 1, (n, 1)), "rewards": rng.normal(size=n)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = OfflineDataset.from_arrays(
            observations,
            **{**columns, "next_observations": "shift", **more},
            terminations=terminations,
            truncations=truncations,
        )
    return [str(one.message).removeprefix("dataset 'arrays': ") for one in caught], dataset


REAL = tuple(range(7, 31))
"""24 lengths of episodes that the task ended"""
MERGED = REAL + (LIMIT,) * 36


def test_one_flag_for_ends_and_time_limit_is_said_and_the_way_out_works():
    states, done = walks(MERGED)
    texts, _ = said(states, done)
    assert len(texts) == 1
    assert texts[0].startswith(
        "36 of 60 terminated episodes have exactly 40 steps, as many as the longest, and the "
        "others 30 at most"
    )
    assert "truncations = done & (length == 40)" in texts[0]
    truncations = done & (np.repeat(MERGED, MERGED) == LIMIT)
    texts, dataset = said(states, done & ~truncations, truncations)
    assert texts == []
    assert dataset.ends == "24 terminated, 36 truncated"
    assert "60 episodes (24 terminated, 36 truncated)" in repr(dataset)
    assert dict(summary(dataset))["ends"] == "24 terminated, 36 truncated"


@pytest.mark.parametrize(
    "lengths",
    [
        REAL * 3,  # three at the longest
        (*REAL, 30, 29, 29, 28, 28, 30, 30, 30),  # many are nearly as long
        (3, 4, 5) * 20,  # short ones, by chance as long
        REAL + (LIMIT,) * 4,
    ],
)
def test_ends_that_the_task_may_have_made_are_not_doubted(lengths):
    assert said(*walks(lengths))[0] == []


def test_a_recording_that_tells_limits_from_ends_is_not_doubted():
    states, done = walks(REAL + (LIMIT,) * 16)
    cut = done & (np.cumsum(done) > len(REAL) + 6)  # six ended in the very step of the limit
    assert said(states, done & ~cut, cut)[0] == []


LENGTHS = (12, 9, 14, 11, 10, 13, 25, 8, 17, 30)
STATES, ENDS = walks(LENGTHS)
NO = np.zeros(len(ENDS), np.bool_)


@pytest.mark.parametrize("whole", [False, True])
def test_flags_one_row_off_are_said_with_their_direction(whole):
    """Of rows alone, and of rows with the final observation of every episode."""
    for by, word in ((1, "late"), (-1, "early")):
        flags = np.roll(ENDS, by)
        flags[-1] = True
        if not whole:
            texts = said(STATES, NO, flags)[0]
        else:
            lengths = np.diff(np.flatnonzero(ENDS), prepend=-1) + 1  # rows with the final one
            states, finals = walks(lengths.tolist())
            off = np.roll(finals, by)
            off[-1] = True
            texts = [*jump_doubts(states, off)]
        assert len(texts) == 1
        assert f"one row {word}" in texts[0]


def test_shuffled_rows_are_said():
    order = np.random.default_rng(2).permutation(len(ENDS))
    texts, _ = said(STATES[order], NO, ENDS[order])
    assert len(texts) == 1
    assert "as if rows were shuffled" in texts[0]


@pytest.mark.parametrize("form", ["shift", None])
def test_missing_flags_are_said_where_observations_jump(form):
    states = np.append(STATES, STATES[-1:], axis=0) if form is None else STATES
    texts, _ = said(states, NO, next_observations=form)
    assert len(texts) == 1
    number = f"no step of {len(states)} rows is flagged as an end, and observations jump after "
    assert texts[0].startswith(number)
    first = int(texts[0].partition("first after row ")[2].partition(",")[0])
    assert first in np.flatnonzero(ENDS)


@pytest.mark.parametrize("form", ["shift", "full"])
def test_inverted_flags_are_said_in_every_form(form):
    following = "shift" if form == "shift" else np.roll(STATES, -1, axis=0)
    texts, _ = said(STATES, ~ENDS, next_observations=following)
    assert len(texts) == 1
    share = f"{(~ENDS).sum()} of {len(ENDS)} rows are flagged as an end"
    assert texts[0].startswith(share)
    assert "inverted" in texts[0]


def test_what_is_smooth_is_not_doubted():
    """Episodes that begin where the last one ended, one long log, and a goal that changes."""
    states, ends = walks((40,) * 12, restart=False)
    assert said(states, NO[:0].tolist() + [False] * len(ends), ends)[0] == []
    assert said(states, np.zeros(len(ends)))[0] == []
    goals = np.repeat(np.random.default_rng(3).normal(size=(12, 2)), 40, axis=0)
    assert said(np.hstack([states, goals]), np.zeros(len(ends)))[0] == []
    blows = states.copy()
    blows[100:, 0] += 2.0  # one column alone
    blows[200:, 1] -= 2.0
    blows[300:, 0] += 2.0
    assert said(blows, np.zeros(len(ends)))[0] == []


def test_equal_rewards_are_said_unless_ends_make_a_difference():
    n = len(ENDS)
    zeros, ones = np.zeros(n), np.ones(n)
    nothing = f"all {n} rewards are 0: there is nothing to learn from"
    assert [text[: len(nothing)] for text in said(STATES, ENDS, rewards=zeros)[0]] == [nothing]
    assert said(STATES, ENDS, rewards=ones)[0] == []  # how long it lasts is the return
    assert (
        "rewards are 1: there is nothing"
        in said(STATES[:140], NO[:140], ENDS[:140], rewards=ones[:140])[0][0]
    )


def test_spaces_of_other_columns_and_exchanged_ones_are_named():
    box = spaces.Box(-2.0, 2.0, (1,))
    with pytest.raises(ValueError, match=r"has shape \(1,\), the data have 4 observation columns"):
        said(STATES, ENDS, observation_space=box)
    wide = spaces.Box(-np.inf, np.inf, (4,))
    with pytest.raises(ValueError, match="Are the two spaces exchanged"):
        said(STATES, ENDS, observation_space=box, action_space=wide)
