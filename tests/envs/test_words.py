"""Numbers, durations and intervals as text."""

from __future__ import annotations

import pytest

from qgpo.envs.tasks.families import looks_adapted
from qgpo.envs.text import counted, in_time, with_interval


@pytest.mark.parametrize(
    ("mean", "interval", "shown"),
    [
        (-105.0, (-121.0, -88.73), ("-105", "[-121, -89]")),
        (88.734, (80.0, 99.0), ("88.7", "[80.0, 99.0]")),
        (0.5, (0.25, 1.0), ("0.50", "[0.25, 1.00]")),
        (0.5, (0.25, 0.75), ("0.500", "[0.250, 0.750]")),
        (0.02, (0.0, 0.04), ("0.020", "[0.000, 0.040]")),
        (0.00031, (0.00012, 0.00049), ("0.000310", "[0.000120, 0.000490]")),
        (0.0, (0.0, 0.0), ("0.000", "[0.000, 0.000]")),
        (0.5, None, ("0.5", "")),
    ],
)
def test_a_mean_and_its_interval_have_the_same_decimals(mean, interval, shown):
    assert with_interval(mean, interval) == shown


def test_counts_and_durations_are_words():
    assert [counted(n, "episode") for n in (0, 1, 1200)] == [
        "0 episodes",
        "1 episode",
        "1,200 episodes",
    ]
    assert [in_time(s) for s in (0.492, 244.0, 1150.0, 9000.0)] == [
        "0.492 s",
        "244 s",
        "19.2 min",
        "2.5 h",
    ]


@pytest.mark.parametrize(
    ("id", "adapted"),
    [
        ("mine/arm-v0", False),
        ("mine/hopper/medium-v0", False),
        ("mine/AntMaze-big-v0", True),
        ("D4RL/kitchen/new-v9", True),
        ("ogbench/cube-octuple-play-v0", True),
    ],
)
def test_only_ids_like_those_of_adapted_data_are_warned_of(id, adapted):
    assert looks_adapted(id) is adapted
