"""Early stopping: few data keep averaged weights that held-out episodes prefer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from agent_tester import StopAfter, same_agents
from factory import PAPER_LIKE, WHITENED, make_dataset

from qgpo import QGPO
from qgpo.agents.guided import held_out
from qgpo.agents.guided.held_out import EarlyStopping

STAGES = ("whitening", "behavior")
LONG = replace(WHITENED, whitening_steps=30, behavior_steps=250)
DATA = make_dataset((2,) * 12)


def stopping(data, steps=100, batch_size=256, network=None, judge=None, seed=3, **more):
    agent = QGPO(WHITENED, seed=seed, device="cpu")
    batches = agent.prepare(data)
    network = torch.nn.Linear(1, 1, bias=False) if network is None else network
    early = EarlyStopping(
        agent.training, "whitening", network, judge, batches, steps, batch_size, **more
    )
    return early, agent.training


def test_a_tenth_of_the_episodes_is_held_out_whole():
    lengths = (3, 1, 4, 2, 5, 6, 2, 1, 1, 2, 3)
    early, _ = stopping(make_dataset(lengths))
    episodes = torch.arange(11).repeat_interleave(torch.tensor(lengths))
    held, learned = (set(episodes[rows].tolist()) for rows in (early.held_out, early.learned))
    assert len(held) == 2
    assert held | learned == set(range(11))
    assert not held & learned
    assert len(early.held_out) + len(early.learned) == sum(lengths)


def test_few_episodes_are_held_out_in_stretches():
    early, _ = stopping(make_dataset((40,)))
    assert len(early.held_out) == 4
    assert len(early.learned) == 36


@pytest.mark.parametrize("length", [2, 3, 7, 11])
def test_of_a_few_transitions_some_are_held_out_and_some_learned(length):
    """A tenth of them, whatever numbers stretches have that hold none."""
    for seed in range(20):
        early, _ = stopping(make_dataset((length,)), seed=seed)
        assert len(early.held_out) == math.ceil(length / 10)
        assert len(early.learned) == length - len(early.held_out)


@pytest.mark.parametrize("data", [make_dataset((1,)), make_dataset((2,) * 500)])
def test_one_transition_and_many_are_learned_whole(data):
    early, training = stopping(data)
    assert early.learned.tolist() == list(range(len(data)))
    early.after(0)
    assert not early.finish()
    assert not training.tables


def test_without_averages_nothing_is_held_out():
    early, _ = stopping(DATA, averages=False)
    assert len(early.learned) == len(DATA)


def test_the_last_average_that_is_not_clearly_worse_than_the_best_is_kept(monkeypatch):
    monkeypatch.setattr(held_out, "DECAY", 0.5)
    network = torch.nn.Linear(1, 1, bias=False)
    judged, noise = [], torch.tensor([-0.3, 0.3, 0.0])

    def judge(average, rows):
        weight = average.weight.detach().squeeze()
        judged.append(float(weight))
        return (weight - 2.0).abs() + weight * noise  # differences of 0.3 |difference of weights|

    early, training = stopping(DATA, 7, 10_000, network, judge)
    weights, average = [0.0, 1.0, 2.0, 2.6, 2.5, 6.0, 9.0], 0.0
    expected = []
    for step, weight in enumerate(weights):
        with torch.no_grad():
            network.weight.fill_(weight)
        decay = min(0.5, (1.0 + step) / (10.0 + step))
        average = weight if step == 0 else decay * average + (1.0 - decay) * weight
        expected.append(average)
        early.after(step)
        assert not early.finish()  # the stage has not ended
    assert judged == pytest.approx(expected)
    best, kept = expected[0], expected[0]
    for weight in expected[1:]:
        worse = abs(weight - 2.0) - abs(best - 2.0) + (weight - best) * noise
        if worse.mean() < 0.0:
            best = kept = weight
        elif worse.mean() <= worse.std() / math.sqrt(3.0):
            kept = weight
    assert best != kept != expected[-1]
    training.progress["whitening"] = 7
    assert early.finish()
    assert float(network.weight.detach()) == pytest.approx(kept)
    assert not training.tables
    assert not early.finish()


def test_losses_that_are_not_finite_are_never_kept():
    losses = iter([float("inf"), float("nan"), 3.0, float("nan")])
    early, training = stopping(DATA, 4, 10_000, judge=lambda *_: torch.tensor([1.0, next(losses)]))
    for step in range(4):
        early.after(step)
        assert ("whitening_kept" in training.tables) == (step >= 2)
    assert training.tables["whitening_losses"].tolist() == [1.0, 3.0]


def test_weights_learned_by_heart_are_left_out():
    data = make_dataset((2,) * 12, observation_dim=6)
    config = replace(LONG, whitening_steps=250, sparsity_power=0.0)
    agent = QGPO(config, seed=0, device="cpu")
    agent.train_whitening(data)
    batches = agent.prepare(data)

    @torch.no_grad()
    def nll(whitening, rows):
        condition = agent.behavior.condition(batches, batches.state_index[rows])
        return float(whitening.loss(condition, batches.scaled_actions(rows))[1]["nll"])

    kept = agent.behavior.whitening
    heart = QGPO(config, seed=0, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EarlyStopping, "finish", lambda self: False)  # the last weights stay
        heart.train_whitening(data)
    early = EarlyStopping(agent.training, "whitening", kept, None, batches, 250, 256)
    assert nll(kept, early.held_out) < nll(heart.behavior.whitening, early.held_out) - 1.0
    assert nll(heart.behavior.whitening, early.learned) < nll(kept, early.learned) - 1.0


def test_both_stages_end_with_what_was_kept_and_leave_no_table(monkeypatch):
    monkeypatch.setattr(held_out, "DECAY", 0.5)  # another average than the behavior's own
    agent = QGPO(LONG, seed=0, device="cpu")
    agent.train_behavior(DATA)
    assert not [name for name in agent.tables if name.startswith(STAGES)]
    model, average = agent.behavior.model.state_dict(), agent.behavior.average.state_dict()
    assert all(torch.equal(model[name], average[name]) for name in model)


def test_many_data_and_the_paper_are_trained_as_they_were(monkeypatch):
    few, many = make_dataset((2,) * 12), make_dataset((2,) * 60)
    for config, data in ((PAPER_LIKE, few), (WHITENED, many)):
        trained = []
        for epochs in (held_out.MOST_EPOCHS, 10**9):
            monkeypatch.setattr(held_out, "MOST_EPOCHS", epochs)
            trained.append(QGPO(config, seed=0, device="cpu").learn(data))
        assert same_agents(*trained)


@pytest.fixture(scope="module")
def whole():
    return QGPO(LONG, seed=0, device="cpu").learn(DATA)


@pytest.mark.parametrize("stop", [1, 29, 30, 150, 280])
def test_resuming_within_a_stage_equals_not_stopping(stop, whole, tmp_path):
    agent = QGPO(LONG, seed=0, device="cpu").learn(DATA, callback=StopAfter(stop))
    agent.save(tmp_path / "stopped")
    resumed = QGPO.load(tmp_path / "stopped.zip", device="cpu")
    assert same_agents(whole, resumed.learn(DATA, reset_num_timesteps=False))
