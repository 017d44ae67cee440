"""Every fault of a recording is found, and a sound one has none."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from recordings import STEP, sound

from qgpo.envs.logs.checks import check_log, gaps
from qgpo.envs.logs.columns import LogError
from qgpo.envs.logs.log import Log


def texts(log: Log, ok: bool | None, **options) -> list[str]:
    return [f"{f.what}: {f.text}" for f in check_log(log, **options) if f.ok is ok]


def change(name: str, index, value) -> Log:
    log = sound()
    array = np.array(getattr(log, name))
    array[index] = value
    return dataclasses.replace(log, **{name: array})


def test_a_sound_recording_has_no_faults():
    log = sound()
    assert texts(log, False) == texts(log, None) == []
    good = texts(log, True)
    assert good[0] == "size: 70 rows in 2 episodes, observations 3, actions 2"
    assert any(text == "time: rows are 0.02 s apart (50 per second)" for text in good)
    assert any(text == "ends: 1 episode terminated, 1 truncated" for text in good)


def shifted(start: int, by: float) -> Log:
    log = sound()
    times = log.times + by * ((np.arange(len(log)) >= start) & (log.episodes == 1))
    return dataclasses.replace(log, times=times)


BAD = {
    "NaN": (
        change("observations", (33, 1), np.nan),
        r"values: observations have NaN or infinite values in 1 rows of 1 episodes, first in "
        r"episode 1, row 3, columns 'dq': .*--skip-episodes 1\)",
    ),
    "infinite action": (change("actions", (2, 0), np.inf), "actions have NaN.*columns 'u0'"),
    "too large": (
        change("observations", (33, 1), 1e299),
        r"observations have numbers beyond 3\.4e\+38, which float32 does not hold, in 1 rows of 1 "
        r"episodes, first in episode 1, row 3, columns 'dq'",
    ),
    "gap": (
        shifted(50, 0.5),
        r"time: 1 gaps: rows are 0\.02 s apart, 0\.52 s at most, in episode 1, row 19.*"
        "--split-gaps",
    ),
    "backward": (shifted(50, -0.5), r"time goes backward 1 times, by 0\.48 s at most, in ep.* 19"),
    "no time": (change("times", 7, np.nan), "no time stamp in episode 0, row 7"),
    "one time": (change("times", slice(None), 1.0), "68 rows have the time of the row before"),
    "interleaved": (
        change("episodes", slice(10, 20), 1),
        "2 episode numbers come back after other episodes, first 0: rows of several episodes",
    ),
    "one row each": (change("episodes", slice(None), np.arange(70)), "most episodes have one row"),
    "flag inside": (
        change("terminations", 5, True),
        "ends: 1 rows are terminated and others of their episode follow, first in episode 0, row 5",
    ),
    "empty": (sound().rows(np.zeros(70, np.bool_)), "it is empty"),
}


@pytest.mark.parametrize("fault", sorted(BAD))
def test_what_makes_the_data_wrong_is_bad(fault):
    log, said = BAD[fault]
    found = texts(log, False)
    assert len(found) == 1
    assert re.search(said, found[0]), found


def clipped() -> Log:
    log = sound()
    return dataclasses.replace(log, actions=np.clip(log.actions * 3, [-9, -1], [9, 1]))


def held() -> Log:
    log = sound()
    return dataclasses.replace(log, observations=log.observations[np.arange(70) // 2 * 2])


def jittery() -> Log:
    log = sound()
    noise = np.random.default_rng(1).uniform(-0.24, 0.24, 70) * STEP
    return dataclasses.replace(log, times=log.times + noise * (np.arange(70) % 2) * 1.9)


DOUBTFUL = {
    "constant": (change("observations", (slice(None), 2), 4.0), "one value in all rows: 'load'"),
    "idle": (change("actions", (slice(None), 1), 0.0), "'u1'. An agent cannot learn what they do"),
    "clipped": (clipped(), r"actions: rows at the end of an action's range: u1 \(\d+%\)"),
    "held": (held(), r"columns: 5\d% of the rows repeat the observation before"),
    "jitter": (jittery(), r"half of them off by \d\d% and more"),
    "no rewards": (dataclasses.replace(sound(), rewards=None), "only imitation"),
    "same rewards": (change("rewards", slice(None), 1.0), "rewards: all are 1: they say nothing"),
    "no time stamps": (dataclasses.replace(sound(), times=None), "gaps cannot be seen"),
    "no end": (
        dataclasses.replace(sound(), terminations=None, truncations=None),
        r"0 episodes terminated, 0 truncated, 2 with neither flag: taken as truncated",
    ),
    "discrete": (
        dataclasses.replace(sound(), actions=np.arange(70.0)[:, None] % 4, action_names=("u",)),
        r"actions are 4 whole numbers \(0 to 3\)",
    ),
}


@pytest.mark.parametrize("doubt", sorted(DOUBTFUL))
def test_what_only_its_owner_knows_is_a_doubt(doubt):
    log, said = DOUBTFUL[doubt]
    assert texts(log, False) == []
    found = texts(log, None)
    assert len(found) == 1
    assert re.search(said, found[0]), found


def test_terminations_that_look_like_a_time_limit_are_said():
    log = sound([20] * 6)
    last = np.isin(np.arange(120), log.ends)
    log = dataclasses.replace(log, terminations=last, truncations=None)
    assert texts(log, None) == [
        "ends: all 6 terminated episodes have 20 rows: a time limit perhaps, which is a "
        "truncation. Make two columns of the flag: --truncation names the one that is true there, "
        "--termination the other"
    ]


def test_a_log_without_gaps_is_split_nowhere_and_one_with_gaps_there():
    assert not gaps(sound()).any()
    log = shifted(50, 0.5)
    assert np.flatnonzero(gaps(log)).tolist() == [49]
    parted = log.split(gaps(log))
    assert parted.lengths.tolist() == [30, 20, 20]
    assert not gaps(parted).any()


def test_episodes_are_left_out_by_their_number():
    assert sound().without([0]).lengths.tolist() == [40]
    with pytest.raises(LogError, match=r"has no episodes \[7\]"):
        sound().without([7])


def costing(at_end: float, **changes) -> Log:
    log = sound()
    rewards = np.full(len(log), -1.0)
    rewards[np.flatnonzero(log.flagged("terminations"))] = at_end
    return dataclasses.replace(log, rewards=rewards, **changes)


def test_an_end_that_saves_costs_is_doubted_unless_it_is_paid_or_charged():
    assert any("ending early is a gain" in text for text in texts(costing(-1.0), None))
    for log in (costing(5.0), costing(-1.0, terminations=np.zeros(len(sound()), bool))):
        assert not any("ending early" in text for text in texts(log, None))


def test_recordings_that_all_end_for_good_are_doubted():
    log = sound()
    many = {"episodes": np.arange(len(log)) // 5, "times": None, "truncations": None}
    ends = np.arange(len(log)) % 5 == 4
    text = "14 episodes terminated, 0 truncated. Every episode ends for good"
    log = dataclasses.replace(log, terminations=ends, **many)
    assert any(text in found for found in texts(log, None))
    some = dataclasses.replace(log, terminations=ends & (np.arange(len(log)) > 5))
    assert not any("ends for good" in found for found in [*texts(some, None), *texts(some, True)])
