"""FQL and IFQL: one update as their authors' code does it, known answers, and how they act."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from bandits import CRITIC, act, coin, sampled, train, two_modes
from factory import make_dataset, same_parameters

from qgpo import FQL, IFQL, DiffusionQL
from qgpo.agents.core.batches import Transitions
from qgpo.flow import ACTION_BOUND, flow_actions

AGENTS = (FQL, IFQL)
NO_STATE = torch.zeros(1, 1)


def small(agent_class, **changes):
    """An agent of small networks that has seen data, at its first step."""
    config = replace(agent_class.presets["paper"], hidden=(8, 8), **changes)
    agent = agent_class(config, seed=3, device="cpu")
    agent.prepare(make_dataset())
    return agent


def batch(n=16):
    generator = torch.Generator().manual_seed(5)
    return Transitions(
        observations=torch.randn(n, 3, generator=generator),
        actions=(3.0 * torch.randn(n, 1, generator=generator)).clamp(-1.0, 1.0),
        rewards=torch.randn(n, generator=generator),
        next_observations=torch.randn(n, 3, generator=generator),
        terminations=(torch.rand(n, generator=generator) < 0.3).float(),
    )


def flow_loss(agent, b, generator):
    """The mean squared error of the velocity on straight paths."""
    a = b.actions.clamp(-ACTION_BOUND, ACTION_BOUND)
    z = torch.randn(a.shape, generator=generator)
    t = torch.rand(len(a), generator=generator)[:, None]
    inputs = torch.cat([b.observations, (1.0 - t) * z + t * a, t], dim=-1)
    return ((agent.flow.net(inputs) - (a - z)) ** 2).mean()


def fql_losses(agent, b, generator):
    """The sum of FQL's three losses, all at the parameters as they are."""
    c, a = agent.config, b.actions.clamp(-ACTION_BOUND, ACTION_BOUND)
    s, next_s = b.observations, b.next_observations
    with torch.no_grad():
        z = torch.randn(a.shape, generator=generator)
        next_a = agent.actor.net(torch.cat([next_s, z], dim=-1)).clamp(-1.0, 1.0)
        next_q = agent.critic_target.both(next_s, next_a)
        next_q = next_q.mean(0) if c.q_agg == "mean" else next_q.min(0).values
        y = b.rewards + c.gamma * (1.0 - b.terminations) * next_q
    total = ((agent.critic.both(s, a) - y) ** 2).mean() + flow_loss(agent, b, generator)
    z = torch.randn(a.shape, generator=generator)
    with torch.no_grad():
        x = z
        for i in range(c.flow_steps):
            t = torch.full((len(a), 1), i / c.flow_steps)
            x = x + agent.flow.net(torch.cat([s, x, t], dim=-1)) / c.flow_steps
    frozen = copy.deepcopy(agent.critic).requires_grad_(False)
    mu = agent.actor.net(torch.cat([s, z], dim=-1))
    q = frozen.both(s, mu.clamp(-1.0, 1.0)).mean(0)
    scale = q.abs().mean().item() if c.normalize_q_loss else 1.0
    return total + c.alpha * ((mu - x.clamp(-1.0, 1.0)) ** 2).mean() - q.mean() / scale


def ifql_losses(agent, b, generator):
    """The sum of IFQL's three losses; the critic's is summed over its heads."""
    c, a = agent.config, b.actions.clamp(-ACTION_BOUND, ACTION_BOUND)
    s, next_s = b.observations, b.next_observations
    with torch.no_grad():
        q = agent.critic_target.both(s, a).min(0).values
        y = b.rewards + c.gamma * (1.0 - b.terminations) * agent.value(next_s).squeeze(-1)
    u = q - agent.value(s).squeeze(-1)
    value_loss = (torch.where(u >= 0, c.expectile, 1.0 - c.expectile) * u**2).mean()
    critic_loss = ((agent.critic.both(s, a) - y) ** 2).sum(0).mean()
    return value_loss + critic_loss + flow_loss(agent, b, generator)


LOSSES = {FQL: fql_losses, IFQL: ifql_losses}
OPTIONS = [
    (FQL, {}),
    (FQL, {"q_agg": "min", "normalize_q_loss": True, "alpha": 0.3}),
    (FQL, {"alpha": 0.0}),
    (IFQL, {}),
    (IFQL, {"expectile": 0.5}),
]


@pytest.mark.parametrize(("agent_class", "changes"), OPTIONS)
def test_an_update_is_one_joint_step_on_the_sum_of_the_losses(agent_class, changes):
    rate = 0.03  # so large that a gradient at other parameters shows
    agent = small(agent_class, learning_rate=rate, **changes)
    twin = copy.deepcopy(agent)
    generator = torch.Generator()
    generator.set_state(agent.generator.get_state())
    joint = torch.optim.Adam([p for p in twin.networks.parameters() if p.requires_grad], lr=rate)
    for step in range(3):
        before = copy.deepcopy(twin.critic.state_dict())
        loss = LOSSES[agent_class](twin, batch(), generator)
        joint.zero_grad()
        loss.backward()
        joint.step()
        for name, value in twin.critic_target.state_dict().items():
            value.copy_(0.995 * value + 0.005 * before[name])  # Q before the step
        agent.update(batch(), step)
    for name, value in agent.networks.state_dict().items():
        found = twin.networks.state_dict()[name]
        assert torch.allclose(value, found, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("agent_class", AGENTS)
def test_the_target_follows_the_critic_of_one_step_earlier(agent_class):
    agent = small(agent_class)
    start = copy.deepcopy(agent.critic.state_dict())
    agent.update(batch(), 0)
    assert not same_parameters(dict(agent.critic.state_dict()), dict(start))
    assert same_parameters(dict(agent.critic_target.state_dict()), dict(start))


@pytest.mark.parametrize(("q_agg", "expected"), [("mean", 2.0), ("min", 1.0)])
def test_fql_s_target_takes_mean_or_minimum(q_agg, expected):
    agent = small(FQL, q_agg=q_agg)
    for head, value in zip(agent.critic_target.heads, (1.0, 3.0), strict=True):
        head[-1].weight.data.zero_()
        head[-1].bias.data.fill_(value)
    values = agent._next_values(torch.randn(4, 3))
    assert values.tolist() == [expected] * 4


@pytest.mark.parametrize("agent_class", AGENTS)
def test_the_dataset_s_actions_are_clipped_just_inside(agent_class, monkeypatch):
    seen = []

    def spy(critic, observations, actions, targets):
        seen.append(actions)
        loss = critic.both(observations, actions).mean()
        return loss, {}

    monkeypatch.setattr(f"qgpo.agents.{agent_class.name.lower()}.critic_loss", spy)
    small(agent_class).update(batch(), 0)
    assert seen[0].max().item() == pytest.approx(1.0 - 1e-5, abs=1e-7)
    assert seen[0].min().item() == pytest.approx(-1.0 + 1e-5, abs=1e-7)


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_fql_settles_between_the_flow_and_the_best_action(alpha):
    # per noise z: alpha (mu - F(z))^2 - 1 + (mu - 1/2)^2 is least at (alpha F + 1/2) / (alpha + 1)
    agent = train(FQL, two_modes(), 600, alpha=alpha, **CRITIC)
    noise = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
    states = torch.zeros(2000, 1)
    with torch.no_grad():
        found = agent.actor(noise, None, states)
        flow = flow_actions(agent.flow, states, noise, 10)
    expected = (alpha * flow + 0.5) / (alpha + 1.0)
    assert (found - expected).abs().mean().item() < 0.08
    assert found.mean().item() == pytest.approx(0.5 / (alpha + 1.0), abs=0.06)


def test_fql_picks_the_better_mode_where_alpha_is_small():
    found = sampled(train(FQL, two_modes(), 330, alpha=0.03, normalize_q_loss=True, **CRITIC))
    assert (found > 0.0).mean() > 0.98
    assert found.mean() == pytest.approx(0.5, abs=0.1)


def test_fql_imitates_both_modes_where_alpha_is_large():
    found = sampled(train(FQL, two_modes(), 330, alpha=1000.0, **CRITIC))
    assert (found > 0.0).mean() == pytest.approx(0.5, abs=0.1)
    assert found.std() == pytest.approx(0.5, abs=0.1)


def test_ifql_takes_the_better_mode_and_one_sample_imitates():
    agent = train(IFQL, two_modes(), 330, **CRITIC)
    assert act(agent) == pytest.approx(0.5, abs=0.15)
    best = sampled(agent, 500)
    assert (best > 0.0).all()
    assert best.mean() == pytest.approx(0.5, abs=0.15)
    agent.num_samples = 1
    found = sampled(agent)
    assert (found > 0.0).mean() == pytest.approx(0.5, abs=0.1)
    assert found.std() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("number", [0, -1, 2.5, True, "many"])
@pytest.mark.parametrize(("agent", "name"), [(IFQL, "num_samples"), (DiffusionQL, "candidates")])
def test_a_number_of_samples_that_is_none_is_refused(agent, name, number):
    config = replace(agent.presets["laptop"], steps=2, hidden=(8, 8), **{name: 2})
    agent = agent(config, device="cpu").learn(make_dataset())
    with pytest.raises(ValueError, match=rf"{name}=.*, expected"):
        setattr(agent, name, number)
    assert getattr(agent, name) == 2


@pytest.mark.parametrize("expectile", [0.5, 0.9])
def test_ifql_s_value_is_the_expectile(expectile):
    # of a fair coin it is the expectile itself
    agent = train(IFQL, coin(), 600, expectile=expectile, **CRITIC)
    with torch.no_grad():
        assert agent.value(NO_STATE).item() == pytest.approx(expectile, abs=0.06)
        q = agent.critic(torch.zeros(2, 1), torch.tensor([[-0.5], [0.5]]))
    assert q.tolist() == pytest.approx([0.0, 1.0], abs=0.05)


class Nearest(torch.nn.Module):
    """Q(s, a) = -(a - s_1)^2: every observation has a best action of its own."""

    def forward(self, observations, actions):
        return -((actions[:, 0] - observations[:, 0]) ** 2)


@pytest.mark.parametrize("deterministic", [True, False])
def test_ifql_takes_each_observation_s_own_best_sample(deterministic):
    agent = small(IFQL, num_samples=2000)
    agent.critic = Nearest()
    observations = np.zeros((3, 3), np.float32)
    observations[:, 0] = [-0.5, 0.0, 0.4]
    actions, _ = agent.predict(observations, deterministic=deterministic)
    assert actions[:, 0].tolist() == pytest.approx([-0.5, 0.0, 0.4], abs=0.02)


def test_one_sample_of_ifql_is_the_flow_s():
    agent = small(IFQL, num_samples=1)
    observations = torch.randn(5, 3)
    agent.seed_predictions(7)
    found = agent.act(observations, deterministic=False)
    noise = torch.randn(5, 1, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        assert torch.equal(found, flow_actions(agent.flow, observations, noise, 10))


def test_a_sampled_action_of_fql_is_the_policy_s_for_fresh_noise():
    agent = small(FQL)
    observations = torch.randn(5, 3)
    agent.seed_predictions(7)
    found = agent.act(observations, deterministic=False)
    noise = torch.randn(5, 1, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = agent.actor.net(torch.cat([observations, noise], dim=-1)).clamp(-1.0, 1.0)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("agent_class", AGENTS)
def test_deterministic_actions_depend_on_the_observation_and_the_seed_alone(agent_class):
    # the best of several samples may be the same bound for every noise
    agent = small(agent_class, **({"num_samples": 1} if agent_class is IFQL else {}))
    observations = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    found = agent.act(observations, deterministic=True)
    agent.act(observations, deterministic=False)
    alone = torch.cat([agent.act(row[None], deterministic=True) for row in observations])
    assert torch.allclose(found, alone, atol=1e-6)
    others = []
    for seed in range(4, 12):
        agent.training.seed = seed
        others.append(agent.act(observations, deterministic=True))
    assert not all(torch.allclose(found, other, atol=1e-3) for other in others)


@pytest.mark.parametrize("agent_class", AGENTS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 1_000_000),
        ("batch_size", 256),
        ("learning_rate", 3e-4),
        ("learning_rate_decay", False),
        ("hidden", (512, 512, 512, 512)),
        ("normalize_observations", False),
        ("gamma", 0.99),
        ("tau", 0.005),
        ("reward_tuning", "none"),
        ("flow_steps", 10),
    ],
)
def test_paper_presets_are_the_authors_defaults(agent_class, field, value):
    assert getattr(agent_class.presets["paper"], field) == value


def test_paper_presets_of_each():
    fql, ifql = FQL.presets["paper"], IFQL.presets["paper"]
    assert (fql.alpha, fql.normalize_q_loss, fql.q_agg) == (10.0, False, "mean")
    assert (ifql.expectile, ifql.num_samples) == (0.9, 32)


@pytest.mark.parametrize(
    ("agent_class", "changes", "message"),
    [
        (FQL, {"q_agg": "max"}, r"q_agg='max', expected one of \['mean', 'min'\]"),
        (FQL, {"alpha": -1.0}, r"alpha=-1.0, expected in \[0, 1e\+09\]"),
        (FQL, {"flow_steps": 0}, r"flow_steps=0, expected in \[1, 1000\]"),
        (IFQL, {"num_samples": 0}, r"num_samples=0, expected in \[1, 100000\]"),
        (IFQL, {"expectile": 1.0}, r"expectile=1.0, expected in"),
    ],
)
def test_values_out_of_range_are_refused(agent_class, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(agent_class.presets["paper"], **changes)
