"""Trajectories that go on where their task is done (OGBench): everything stops at that step.

Two trajectories of 5 and 2 steps; the task is done at the third step of the first one, whose
reward is 0, as all others' is -1. Numbers are worked out by hand for a discount of 0.5.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from factory import WHITENED, make_dataset, mapped

from qgpo import IQL, QGPO, TD3BC, Ensemble, OfflineDataset
from qgpo.agents.core.batches import Batches, tuned_rewards
from qgpo.agents.diffusion_ql import DiffusionQL
from qgpo.agents.guided import imagination
from qgpo.agents.sb3_baselines import transitions
from qgpo.critic import lambda_returns, td_target

GAMMA = 0.5
LENGTHS = (5, 2)
DONE = 2
TEN = 10.0
"""the value of every next state"""
ONE_STEP = [4.0, 4.0, 0.0, 4.0, 4.0, 4.0, 4.0]
"""-1 + 0.5 * 10; 0 where the task is done"""
HALF = [1.875, 1.5, 0.0, 2.5, 4.0, 2.5, 4.0]
"""lambda = 0.5, from the last step: 4; -1 + 0.5 (5 + 2) = 2.5; 0; -1 + 0.5 (5 + 0) = 1.5; …"""
WHOLE = [-1.5, -1.0, 0.0, 1.0, 4.0, 1.0, 4.0]
"""lambda = 1: -1 + 0.5 * 10 = 4; -1 + 0.5 * 4 = 1; 0; -1 + 0.5 * 0 = -1; -1 + 0.5 * -1 = -1.5"""


def labelled():
    n = sum(LENGTHS)
    done, last = np.arange(n) == DONE, np.zeros(n, np.bool_)
    last[np.cumsum(LENGTHS) - 1] = True
    return make_dataset(
        LENGTHS,
        rewards=np.where(done, 0.0, -1.0).astype(np.float32),
        terminations=done,
        truncations=last,
        details={"labels": "test/made/by-hand-v0"},
    )


SOURCES = {
    "memory": labelled,
    "memory map": lambda: mapped(labelled()),
    "joined": lambda: OfflineDataset.concatenate([labelled()]),
}


@pytest.fixture(params=sorted(SOURCES))
def dataset(request):
    if request.param == "memory map":
        with pytest.warns(UserWarning, match="1 terminations are inside an episode"):
            return SOURCES[request.param]()
    return SOURCES[request.param]()


@pytest.fixture
def data(dataset):
    return Batches.of(dataset, torch.device("cpu"))


def test_a_one_step_target_stops_where_the_task_is_done(data):
    batch = data.transitions(torch.arange(len(data)))
    values = torch.full((len(data),), TEN)
    assert td_target(batch.rewards, batch.terminations, values, GAMMA).tolist() == ONE_STEP
    drawn = transitions(data, torch.arange(len(data)))  # as SB3's critics see them
    targets = drawn.rewards + (1.0 - drawn.dones) * GAMMA * values[:, None]
    assert targets.squeeze(-1).tolist() == ONE_STEP


@pytest.mark.parametrize(("lambda_", "expected"), [(0.0, ONE_STEP), (0.5, HALF), (1.0, WHOLE)])
def test_returns_stop_there_and_at_the_end_of_a_trajectory(data, lambda_, expected):
    values = torch.full((len(data),), TEN)
    flags = data.terminations, data.last_steps
    assert lambda_returns(data.rewards, *flags, values, GAMMA, lambda_).tolist() == expected


def test_a_last_step_ends_in_the_last_row_of_its_own_trajectory(dataset, data):
    batch = data.transitions(torch.arange(len(data)))
    rows = [1, 2, 3, 4, 5, 7, 8]  # of 6 and 3 observations
    np.testing.assert_array_equal(batch.next_observations, dataset.states[rows])
    np.testing.assert_array_equal(dataset.next_observations, dataset.states[rows])
    assert data.last_steps.tolist() == [False] * 4 + [True, False, True]
    assert data.episodes().tolist() == [0] * 6 + [1] * 3
    assert dataset.episode_returns.tolist() == [-4.0, -2.0]


def test_unit_rewards_have_returns_that_stop_there(dataset, data):
    """Returns -1.5, -1, 0, -1.5, -1, -1.5, -1 have the variance 2/7."""
    tuned = tuned_rewards(dataset, data, "unit", GAMMA)
    expected = math.sqrt(3.5) * dataset.rewards
    np.testing.assert_allclose(tuned, expected, rtol=1e-6)


def test_the_support_critic_regresses_on_such_returns(monkeypatch):
    config = dataclasses.replace(
        WHITENED, gamma=GAMMA, critic_lambda=0.5, reward_tuning="none", target_every=2
    )
    found = []
    agent = QGPO(config, device="cpu")

    def values(q):
        return torch.full(q.shape[:-1], TEN)

    def note(scope, _):
        if scope["self"].progress["critic"] > 0:
            found.append(scope["self"].tables["returns"].tolist())
        return len(found) < 3

    monkeypatch.setattr(
        "qgpo.agents.guided.support_critic.SupportCritic._value", lambda _, q: values(q)
    )
    agent.learn(labelled(), note)
    assert found == [WHOLE, WHOLE, HALF]


SHORT = {"steps": 2, "batch_size": 64, "reward_tuning": "none"}
ONE_STEP_AGENTS = {
    QGPO: dataclasses.replace(
        WHITENED, critic_lambda=0.0, critic_batch_size=64, reward_tuning="none"
    ),
    **{
        agent: dataclasses.replace(agent.presets["laptop"], **SHORT)
        for agent in (IQL, TD3BC, DiffusionQL)
    },
}


@pytest.mark.parametrize("agent_class", ONE_STEP_AGENTS)
def test_every_agent_bootstraps_by_such_targets(agent_class, monkeypatch):
    module = "qgpo.agents.guided.support_critic" if agent_class is QGPO else agent_class.__module__
    seen = set()

    def target(rewards, terminations, next_values, gamma):
        targets = td_target(rewards, terminations, torch.full_like(next_values, TEN), GAMMA)
        columns = rewards, terminations, targets
        seen.update(zip(*(column.tolist() for column in columns), strict=True))
        return targets

    monkeypatch.setattr(f"{module}.td_target", target)
    agent_class(ONE_STEP_AGENTS[agent_class], device="cpu").learn(labelled())
    assert seen == {(-1.0, 0.0, 4.0), (0.0, 1.0, 0.0)}


def test_the_model_learns_that_the_task_is_done_and_whole_trajectories_are_held_out(monkeypatch):
    """Ten trajectories, of which the last one is held out: all of its steps, and no others."""
    one = labelled()
    dataset = OfflineDataset.concatenate([one] * 5)
    data = Batches.of(dataset, torch.device("cpu"))
    drawn, seen = [], []
    whole = Batches.transitions

    def noted(self, index):
        (drawn if index.dim() > 1 else seen).append(index)
        return whole(self, index)

    monkeypatch.setattr(Batches, "transitions", noted)
    bar = type("Bar", (), {"update": lambda self: None})()
    model = imagination.fit_dynamics(dataset, data, torch.Generator().manual_seed(0), 3, bar)
    imagination.Episodes(dataset, data).most_disagreement(model)
    trained = set(torch.cat([index.flatten() for index in drawn]).tolist())
    assert trained == set(range(33))
    assert seen[-1].tolist() == [33, 34]
    assert whole(data, torch.tensor([2, 9, 10])).terminations.tolist() == [1.0, 1.0, 0.0]


def test_ensembles_and_tuning_take_such_data():
    config = dataclasses.replace(WHITENED, gamma=GAMMA)
    members = [QGPO(config, seed=seed, device="cpu").learn(labelled()) for seed in (0, 1)]
    found = Ensemble(members).tune_guidance(labelled(), (0.0, 1.0), rollouts=2, steps=2)
    assert np.isfinite(found.returns).all()
    assert found.returns.min() >= -5.0  # at most 5 steps of -1
