"""The baselines learn what is known: small bandits, and a state that returns to itself."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from bandits import CRITIC, act, bandit, coin, loop, sampled, train, two_modes
from factory import make_dataset, same_parameters

from qgpo import BC, FQL, IFQL, IQL, TD3BC, DiffusionQL, ReBRAC

DQL = {"diffusion_steps": 5, "ema_start": 0, "max_grad_norm": 10.0}


def test_bc_imitates_mean_and_spread():
    # three times -1/2 and once 1/2: mean -1/4, standard deviation sqrt(1/4 - 1/16)
    agent = train(BC, bandit(np.tile([-0.5, -0.5, -0.5, 0.5], 100), np.zeros(400)), 500)
    assert act(agent) == pytest.approx(-0.25, abs=0.03)
    mean, std = agent.actor.moments(torch.zeros(1, 1))
    assert std.item() == pytest.approx(math.sqrt(3) / 4, rel=0.05)
    assert sampled(agent).mean() == pytest.approx(mean.item(), abs=0.04)


@pytest.mark.parametrize("alpha", [0.0, 2.5])
def test_td3_bc_balances_q_and_imitation(alpha):
    # lambda Q' = 2 (a - 0) with Q = 1 - (a - 1/2)^2 and lambda = alpha / Q: solved by iteration
    expected = 0.0
    for _ in range(50):
        weight = alpha / (1.0 - (expected - 0.5) ** 2)
        expected = 0.5 * weight / (weight + 1.0)
    agent = train(TD3BC, two_modes(), 800, alpha=alpha, **CRITIC)
    assert act(agent) == pytest.approx(expected, abs=0.08)


def test_rebrac_balances_q_and_imitation():
    # 2 alpha a = 2 lambda (1/2 - a) with Q = 1 - (a - 1/2)^2 and lambda = 1 / Q: by iteration
    expected, alpha = 0.0, 0.4
    for _ in range(50):
        weight = 1.0 / (1.0 - (expected - 0.5) ** 2)
        expected = 0.5 * weight / (weight + alpha)
    agent = train(ReBRAC, two_modes(), 520, alpha_actor=alpha, **CRITIC)
    assert act(agent) == pytest.approx(expected, abs=0.08)


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 1.0), (4.0, 0.5)])
def test_rebrac_penalises_the_next_action_but_not_where_an_episode_ends(alpha, expected):
    # From state 0 to state 1 without reward, then from 1 to 1 with reward 1, cut there. In 1 the
    # data act by -1/2 or 1/2 and the policy by their mean, at a squared distance of 1/4. The last
    # step has no next action: Q(1) = 1 / (1 - 1/2) = 2, and Q(0) = (2 - alpha / 4) / 2.
    n = 200
    dataset = make_dataset(
        (2,) * n,
        observation_dim=1,
        terminated=[False] * n,
        states=np.tile([0.0, 1.0, 1.0], n).astype(np.float32)[:, None],
        actions=np.tile([0.0, -0.5, 0.0, 0.5], n // 2).astype(np.float32)[:, None],
        rewards=np.tile([0.0, 1.0], n).astype(np.float32),
    )
    changes = {"alpha_actor": 1e3, "alpha_critic": alpha, "policy_noise": 0.0, "layer_norm": False}
    agent = train(ReBRAC, dataset, 330, **CRITIC, **changes)
    with torch.no_grad():
        q = agent.critic(torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([[0.0], [-0.5], [0.5]]))
    assert q.tolist() == pytest.approx([expected, 2.0, 2.0], abs=0.1)


@pytest.mark.parametrize("expectile", [0.5, 0.7])
def test_iql_finds_the_expectile_and_the_weighted_mean(expectile):
    # V is the expectile of a fair coin, which is the expectile itself; the policy's mean follows
    # from weights exp(3 (1 - V)) for 1/2 and exp(-3 V) for -1/2: tanh(3 / 2) / 2 whatever V
    agent = train(IQL, coin(), 260, expectile=expectile, **CRITIC)
    with torch.no_grad():
        assert agent.value(torch.zeros(1, 1)).item() == pytest.approx(expectile, abs=0.05)
        q = agent.critic_target(torch.zeros(2, 1), torch.tensor([[-0.5], [0.5]]))
    assert q.tolist() == pytest.approx([0.0, 1.0], abs=0.05)
    assert act(agent) == pytest.approx(0.5 * math.tanh(1.5), abs=0.04)


def test_iql_without_weights_is_imitation():
    assert act(train(IQL, coin(), 200, beta=0.0, **CRITIC)) == pytest.approx(0.0, abs=0.04)


def test_diffusion_ql_finds_the_better_mode():
    agent = train(DiffusionQL, two_modes(), 330, **DQL, **CRITIC)
    assert act(agent) == pytest.approx(0.5, abs=0.12)  # the best of 50
    agent.candidates = 1
    found = sampled(agent)
    assert (found > 0).mean() > 0.85
    assert found.mean() == pytest.approx(0.42, abs=0.15)


def test_diffusion_ql_without_q_imitates_both_modes():
    agent = train(DiffusionQL, two_modes(), 330, eta=0.0, candidates=1, **DQL, **CRITIC)
    found = sampled(agent)
    assert (found > 0).mean() == pytest.approx(0.5, abs=0.1)
    # what five steps make of the two modes even with the true noise (tests/qgpo/test_policies.py)
    assert np.abs(found).mean() == pytest.approx(0.31, abs=0.1)


@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("agent_class", [TD3BC, ReBRAC, IQL, DiffusionQL, FQL, IFQL])
def test_termination_cuts_the_bootstrap_and_truncation_does_not(agent_class, terminated):
    more = DQL if agent_class is DiffusionQL else {}
    agent = train(agent_class, loop(terminated), 170, **{**CRITIC, "tau": 0.1}, **more)
    with torch.no_grad():
        q = agent.critic(torch.zeros(3, 1), torch.tensor([[-0.5], [0.0], [0.5]]))
    expected = 1.0 if terminated else 2.0
    assert q.tolist() == pytest.approx([expected] * 3, abs=0.1)


@pytest.mark.parametrize("agent_class", [TD3BC, ReBRAC])
def test_the_policy_and_the_targets_wait_for_the_delay(agent_class):
    preset = agent_class.presets["paper"]
    config = replace(preset, hidden=(4,), batch_size=4, steps=3, policy_delay=3)
    agent = agent_class(config, device="cpu")
    seen = []

    def note(scope, _):
        seen.append({n: {k: v.clone() for k, v in s.items()} for n, s in networks(agent).items()})
        return True

    agent.learn(make_dataset(), callback=note)
    for name in ("policy", "policy_target", "critic_target"):
        assert same_parameters(seen[0][name], seen[1][name])
        assert not same_parameters(seen[1][name], seen[2][name])
    assert not same_parameters(seen[0]["critic"], seen[1]["critic"])


def networks(agent):
    return {name: module.state_dict() for name, module in agent.networks.items()}


def test_the_averaged_policy_starts_late_and_follows_now_and_then():
    config = replace(
        DiffusionQL.presets["paper"],
        **{"hidden": (4,), "batch_size": 4, "steps": 5, "ema_start": 2, "ema_every": 2},
    )
    agent = DiffusionQL(config, device="cpu")
    seen = []

    def note(scope, _):
        seen.append({k: v.clone() for k, v in networks(agent)["policy_ema"].items()})
        return True

    agent.learn(make_dataset(), callback=note)
    changes = [not same_parameters(a, b) for a, b in pairwise(seen)]
    assert changes == [False, True, False, True]  # at steps 2 and 4, counted from 0


def test_metrics_that_come_now_and_then_are_averaged_over_their_own_steps(monkeypatch):
    config = replace(TD3BC.presets["paper"], hidden=(4,), batch_size=4, steps=4, alpha=0.0)
    agent = TD3BC(config, device="cpu")
    rows = []
    agent.training._log = lambda stage, metrics: rows.append(metrics)
    monkeypatch.setattr("qgpo.agents.core.training.FEWEST_ROWS", 1)
    agent.learn(make_dataset(), log_interval=4)
    assert rows[0]["actor_loss"] == pytest.approx(rows[0]["mse"])
    assert rows[0]["mse"] > 0.1  # random actions on [-1, 1] against an untrained policy


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("none", 1.0), ("antmaze", 0.0), ("unit", math.sqrt(11 / 12))],
)
def test_rewards_are_tuned_as_asked(rule, expected):
    # two episodes of one step with rewards 1 and 3, ...
    dataset = bandit(np.zeros(12), [1.0] * 6 + [3.0] * 6)
    agent = IQL(replace(IQL.presets["paper"], reward_tuning=rule, hidden=(4,)), device="cpu")
    # ... whose returns deviate by 1 from their mean: variance 12 / 11
    assert agent.prepare(dataset).rewards[0].item() == pytest.approx(expected)


def test_locomotion_is_the_default_of_iql_alone():
    tunings = {c.__name__: c.presets["paper"].reward_tuning for c in (TD3BC, IQL, DiffusionQL)}
    assert tunings == {"TD3BC": "none", "IQL": "locomotion", "DiffusionQL": "none"}
    dataset = bandit(np.zeros(2), [1.0, 3.0])
    rewards = IQL("paper", device="cpu").prepare(dataset).rewards
    assert rewards.tolist() == pytest.approx([500.0, 1500.0])


def test_long_gradients_are_shortened():
    agent = DiffusionQL(replace(DiffusionQL.presets["paper"], hidden=(4,)), device="cpu")
    agent.prepare(make_dataset())
    parameters = list(agent.critic.parameters())
    agent.optimizers["critic"] = torch.optim.SGD(parameters, lr=1.0)
    before = torch.cat([p.detach().flatten().clone() for p in parameters])
    loss = 100.0 * sum(p.sum() for p in parameters)
    norm = agent.training.optimize("critic", loss, 1.0, max_norm=5.0)
    after = torch.cat([p.detach().flatten() for p in parameters])
    assert norm.item() == pytest.approx(100.0 * math.sqrt(len(before)), rel=1e-5)
    assert (after - before).norm().item() == pytest.approx(5.0, rel=1e-4)
