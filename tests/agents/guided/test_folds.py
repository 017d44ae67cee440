"""The two halves of the episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factory import make_dataset

from qgpo import QGPO
from qgpo.agents.guided.folds import Folds, by_fold, fold_of
from qgpo.envs.data.windows import windowed


def folds(lengths, seed=0):
    agent = QGPO(seed=seed, device="cpu")
    data = agent.prepare(make_dataset(lengths))
    return Folds(data, agent.behavior, seed), agent


def test_every_episode_is_in_one_half():
    lengths = (3, 1, 4, 2, 5, 6, 2, 1, 1, 2, 3)
    found, _ = folds(lengths)
    episodes = torch.arange(11).repeat_interleave(torch.tensor(lengths))
    assert torch.equal(found.groups, episodes)
    sides = [set(episodes[m].tolist()) for m in found.members]
    assert sides[0] | sides[1] == set(range(11))
    assert not sides[0] & sides[1]
    assert {len(side) for side in sides} == {5, 6}


def test_the_halves_depend_on_the_seed_alone():
    lengths = (2,) * 40
    first, again, other = folds(lengths)[0], folds(lengths)[0], folds(lengths, seed=1)[0]
    assert torch.equal(first.fold, again.fold)
    assert not torch.equal(first.fold, other.fold)


@pytest.mark.parametrize("lengths", [(50,), (30, 30, 3)])
def test_few_episodes_are_cut_into_stretches(lengths):
    found, _ = folds(lengths)
    assert int(found.groups.max()) == 19
    assert bool((found.groups.diff() >= 0).all())
    assert abs(len(found.members[0]) - len(found.members[1])) < 10


def test_one_transition_is_in_both():
    found, agent = folds((1,))
    assert found.draw(agent.training, 2, 3).transitions.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_each_head_draws_from_its_half():
    found, agent = folds((5,) * 10)
    drawn = found.draw(agent.training, 2, 500).transitions
    assert [set(row.tolist()) for row in drawn] == [set(m.tolist()) for m in found.members]


def test_heads_take_turns_at_the_folds():
    found, agent = folds((4,) * 20)
    drawn = found.draw(agent.training, 6, 50).transitions
    assert found.fold[drawn].tolist() == [[head % 2] * 50 for head in range(6)]
    assert fold_of(6).tolist() == [0, 1] * 3
    assert not torch.equal(drawn[0], drawn[2])
    of_heads = torch.tensor([1.0, 10.0, 3.0, 30.0, 5.0, 50.0])
    assert by_fold(of_heads).tolist() == [3.0, 30.0]
    assert by_fold(of_heads[:, None]).shape == (2, 1)


@pytest.mark.parametrize(("lengths", "chunk"), [((9,) * 12, 3), ((400, 350), 4), ((600,), 3)])
def test_readings_of_one_step_are_in_one_half(lengths, chunk):
    data = windowed(make_dataset(lengths), chunk=chunk)
    agent = QGPO(device="cpu")
    found = Folds(agent.prepare(data), agent.behavior, 0)
    of = data.recorded_episodes.repeat(data.episode_lengths)
    sides = found.fold.numpy()
    assert set(sides) == {0, 1}
    if len(lengths) >= 10:  # whole recorded episodes
        assert all(len(set(sides[of == number])) == 1 for number in range(len(lengths)))
        return
    readings = zip(data.details["first_step"], data.episode_lengths, strict=True)
    steps = np.concatenate([first + chunk * np.arange(n) for first, n in readings])
    apart = 0  # neighbors in time, in different halves: only at the ends of stretches
    for number in range(len(lengths)):
        own = np.argsort(steps[of == number], kind="stable")
        apart += np.count_nonzero(np.diff(sides[of == number][own]))
    assert 0 < apart < 0.2 * len(of)
