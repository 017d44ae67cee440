"""The two halves of the episodes."""

from __future__ import annotations

import pytest
import torch
from factory import make_dataset

from qgpo import QGPO
from qgpo.agents.guided.folds import Folds, by_fold, fold_of


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
