"""The stacked critic: what each learner says, and how much the other half believes it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from bandits import bandit
from factory import STACKED, make_dataset

from qgpo import QGPO
from qgpo.agents.guided import stacked_critic
from qgpo.stacking import grouped_slope

UNIFORM = np.random.default_rng(0).permutation(np.linspace(-1.0, 1.0, 400))
LEARNING = replace(
    STACKED,
    critic_hidden=(32, 32),
    critic_steps=300,
    critic_batch_size=128,
    critic_learning_rate=3e-3,
    target_every=100,
    expectile=0.5,
    tau=0.05,
    reward_tuning="none",
    support_actions=16,
)


def trained(data, config=LEARNING, seed=0):
    """An agent that has been trained up to its critic."""
    agent = QGPO(config, seed=seed, device="cpu")
    agent.train_behavior(data)
    agent.generate_support(data)
    agent.train_critic(data)
    return agent


def with_rewards(rewards):
    return bandit(UNIFORM, rewards)


@pytest.fixture(scope="module")
def confident():
    """Reward 2a with noise."""
    noise = np.random.default_rng(1).normal(size=400)
    return trained(with_rewards(2.0 * UNIFORM + 0.5 * noise))


def test_q_is_calibrated_where_the_other_half_confirms_it(confident):
    stack = confident.critic.stack
    assert float(stack.slopes[-1] / stack.errors[-1]) > 10.0
    assert float(stack.correlations[-1]) == pytest.approx(2 / math.sqrt(3) / 1.258, abs=0.05)
    condition = torch.zeros(5, 1)
    actions = torch.linspace(-0.8, 0.8, 5)[:, None]
    z = confident.behavior.whitening.encode(condition, actions)
    with torch.no_grad():
        q = confident.critic.target(condition, z)
    torch.testing.assert_close(q - q.mean(), 2.0 * actions[:, 0], atol=0.25, rtol=0.0)


def test_several_heads_of_each_half_rank_at_least_as_well_as_one(confident):
    noise = np.random.default_rng(1).normal(size=400)
    agent = trained(with_rewards(2.0 * UNIFORM + 0.5 * noise), replace(LEARNING, critic_heads=4))
    critic, data = agent.critic, agent._batches
    for learner in critic.learners.values():  # layers of 32 / sqrt(4)
        assert [len(w) for w in learner.network.advantage.weights] == [8, 8, 8]
        assert learner.network.advantage.weights[1].shape == (8, 16, 16)
    assert agent.tables["returns"].shape == (400, 2)
    alone = confident.critic.stack
    assert float(critic.stack.correlations[-1]) > float(alone.correlations[-1]) - 0.02
    table = critic.table_of_q(data)
    condition = critic.behavior.condition(data, torch.arange(len(table)))[:, None]
    with torch.no_grad():
        q = critic.target(condition, agent.tables["support"])
    torch.testing.assert_close(table, q - q.mean(-1, keepdim=True), atol=1e-5, rtol=1e-5)


def test_the_table_is_q_of_the_support_less_its_mean(confident):
    data = confident._batches
    table = confident.critic.table_of_q(data)
    condition = confident.behavior.condition(data, torch.arange(len(table)))[:, None]
    with torch.no_grad():
        q = confident.critic.target(condition, confident.tables["support"])
    torch.testing.assert_close(table, q - q.mean(-1, keepdim=True), atol=1e-5, rtol=1e-5)


def test_what_is_not_confirmed_tilts_less(confident):
    q = confident.critic.table_of_q(confident._batches)
    full = confident.critic.scale(q)
    stack = confident.critic.stack
    weights = stack.weights.clone()
    assert 0.9 < confident.critic.reliability <= 1.0
    try:
        stack.weights *= 0.25 / weights.sum()
        assert confident.critic.reliability == pytest.approx(0.25)
        torch.testing.assert_close(confident.critic.scale(q), q.std(-1).mean() / 0.25)
    finally:
        stack.weights.copy_(weights)
    torch.testing.assert_close(full * confident.critic.reliability, q.std(-1).mean())


def test_noise_has_no_weight_and_guides_nobody():
    noise = with_rewards(np.random.default_rng(2).normal(size=400))
    agent = trained(noise)
    stack = agent.critic.stack
    assert float(stack.measured) == 1.0
    assert stack.weights.tolist() == [0.0, 0.0]
    assert not bool(agent.critic.table_of_q(agent._batches).any())
    agent.train_energy(noise)
    agent.guidance_scale = 5.0
    guided = agent.predict(np.zeros((4, 1)), deterministic=True)[0]
    agent.guidance_scale = 0.0
    imitated = agent.predict(np.zeros((4, 1)), deterministic=True)[0]
    np.testing.assert_array_equal(guided, imitated)


@pytest.mark.parametrize("heads", [1, 3])
def test_a_head_has_not_seen_the_other_half(heads):
    rewards, config = 2.0 * UNIFORM, replace(LEARNING, critic_steps=20, critic_heads=heads)
    first = trained(with_rewards(rewards), config)
    fold = first.critic.folds(first._batches).fold.numpy()
    changed = np.where(fold == 0, rewards, np.random.default_rng(3).normal(size=400))
    second = trained(with_rewards(changed), config)
    assert np.array_equal(fold, second.critic.folds(second._batches).fold.numpy())
    for name in ("critic", "critic_target", "implicit_critic", "implicit_critic_value"):
        pairs = list(
            zip(first.networks[name].parameters(), second.networks[name].parameters(), strict=True)
        )
        assert all(torch.equal(a[::2], b[::2]) for a, b in pairs)
        assert not any(torch.equal(a[1::2], b[1::2]) for a, b in pairs[-1:])


def test_a_transition_is_judged_by_the_heads_of_the_other_half(monkeypatch):
    data = with_rewards(2.0 * UNIFORM)
    agent = trained(data, replace(LEARNING, critic_steps=2, critic_heads=2))
    critic, batches, seen = agent.critic, agent._batches, []
    for learner in critic.learners.values():  # heads of fold f say f + 1 of the action taken

        def q(condition, z):
            of_taken = torch.zeros(4, *z.shape[:2])
            of_taken[:, :, 0] = torch.tensor([1.0, 2.0, 1.0, 2.0])[:, None]
            return of_taken

        monkeypatch.setattr(learner, "q", q)

    def slope(advantages, outcomes, groups):
        seen.append(advantages)
        return grouped_slope(advantages, outcomes, groups)

    monkeypatch.setattr(stacked_critic, "grouped_slope", slope)
    monkeypatch.setattr(critic, "_outcomes", lambda data, index, fold: fold.double())
    critic.weigh(batches)
    fold = critic.folds(batches).fold[critic._judges(critic.folds(batches))]
    assert torch.equal(seen[0], torch.where(fold == 0, 2.0, 1.0))


def test_a_head_learns_from_the_returns_of_its_half_and_its_share_of_the_batch(monkeypatch):
    agent = trained(with_rewards(0.0 * UNIFORM), replace(LEARNING, critic_steps=2, critic_heads=4))
    critic, batches, drawn = agent.critic, agent._batches, []
    agent.tables["returns"][:] = torch.tensor([-1.0, 1.0])
    folds = critic.folds(batches)
    draw = folds.draw

    def counted(*args):
        drawn.append(draw(*args))
        return drawn[-1]

    monkeypatch.setattr(folds, "draw", counted)
    for step in range(1, 100):
        critic.update(batches, step, 1e-2)
    with torch.no_grad():
        values = critic.outcomes.network.baseline(torch.zeros(8, 1, 1))[:, 0]
    assert values.sign().tolist() == [-1.0, 1.0] * 4
    assert drawn[0].transitions.shape == (8, 64)  # 128 / sqrt(4)


@pytest.mark.parametrize(("slope", "alone"), [(0.6, False), (0.7, True), (1.8, True)])
def test_the_implicit_critic_guides_alone_where_it_is_confirmed(
    confident, monkeypatch, slope, alone
):
    """Although the critic of the returns predicts the outcomes better."""
    critic, data = confident.critic, confident._batches
    draw = torch.Generator().manual_seed(0)
    signal, noise, other = torch.randn(3, 400, generator=draw).double()
    returns = signal + 0.2 * other
    implicit = signal + 2.0 * noise
    implicit = implicit * grouped_slope(implicit, signal, torch.arange(400)).slope / slope
    monkeypatch.setattr(critic, "_held_out", lambda *_: torch.stack([returns, implicit]))
    monkeypatch.setattr(critic, "_outcomes", lambda *_: signal)
    weights, slopes = critic.weigh(data)
    assert slopes[1].slope == pytest.approx(slope)
    assert slopes[0].correlation > slopes[1].correlation + 0.3
    if alone:
        assert weights.tolist() == pytest.approx([0.0, slope * 2.0 / (1.0 + min(slope, 1.0))])
        assert slopes[-1].correlation == pytest.approx(slopes[1].correlation)
    else:
        assert float(weights[0]) > 0.5


def test_a_learner_that_says_nothing_is_left_out(confident):
    learners = confident.critic.learners
    held_out = confident.critic._held_out
    confident.critic._held_out = lambda *args: held_out(*args) * torch.tensor([[1.0], [-1.0]])
    try:
        weights, slopes = confident.critic.weigh(confident._batches)
    finally:
        del confident.critic._held_out
    assert len(slopes) == len(learners) + 1
    assert weights[1] == 0.0 < weights[0]
    assert slopes[-1].slope == pytest.approx(1.0)


def test_weights_are_measured_once_training_has_ended_and_are_kept(tmp_path):
    data = make_dataset()
    agent = QGPO(STACKED, device="cpu")
    agent.learn(data, lambda scope, _: scope["self"].progress["critic"] < 3)
    assert float(agent.critic.stack.measured) == 0.0
    agent.learn(data, reset_num_timesteps=False)
    assert float(agent.critic.stack.measured) == 1.0
    agent.save(tmp_path / "agent.zip")
    loaded = QGPO.load(tmp_path / "agent.zip", device="cpu")
    for name, value in agent.critic.stack.state_dict().items():
        assert torch.equal(loaded.critic.stack.state_dict()[name], value)


def test_both_learners_say_how_they_learn():
    agent = QGPO(STACKED, device="cpu")
    agent.training.history = {stage: [] for stage in agent.stages}
    agent.learn(make_dataset(), log_interval=1)
    row = agent.training.history["critic"][-1]
    assert {"loss", "value_loss", "implicit_loss", "implicit_expectile_loss"} <= set(row)
    assert all(math.isfinite(number) for number in row.values())


def test_copies_of_an_agent_have_no_data(confident):
    assert confident.critic._folds is not None
    copied = copy.deepcopy(confident)
    assert copied.critic._folds is copied._batches is None
    assert confident.critic._folds is not None
