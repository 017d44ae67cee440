"""SIR and BestOfN on behaviors and values that are given: what they choose is known.

The behavior is a function of its noise, one number: three actions with known probabilities, or
N(0, s^2). mu exp(beta Q) and the chances of the best of N follow by hand.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from factory import BEST_OF_N_CONFIGS, SHARED, SIR_CONFIGS, WHITENED, make_dataset
from torch import nn

from qgpo import QGPO, SIR, BestOfN, SIRConfig

ACTIONS = torch.tensor([-0.5, 0.1, 0.8])
CHANCES = torch.tensor([0.5, 0.3, 0.2])
VALUES = torch.tensor([0.0, 2.0, 1.0])
SPREAD = 0.2
PLAIN = {"beta": 1.0, "q_unit": "reward", "tilt_limit": None, "whitening_steps": 0}
N_DRAWS = 4000
CONFIGS = {SIR: SIR_CONFIGS["mean"], BestOfN: BEST_OF_N_CONFIGS["whitened"]}


class Given(nn.Module):
    """A behavior that makes actions of noise, (B, 1) to (B, 1)."""

    def __init__(self, actions):
        super().__init__()
        self.actions = actions

    def sample(self, noise, condition, **_):
        return self.actions(noise)


class Value(nn.Module):
    """Q as a function of the action, and of the state's first number."""

    def __init__(self, q):
        super().__init__()
        self.q = q

    def forward(self, condition, z):
        return self.q(condition[..., 0], z[..., 0])


def three(noise):
    quantiles = torch.special.ndtr(noise)
    return ACTIONS[torch.bucketize(quantiles, CHANCES.cumsum(0)[:2])]


def gaussian(noise):
    return SPREAD * noise


def value_of_three(state, action):
    return VALUES[torch.bucketize(action, torch.tensor([-0.2, 0.4]))]


def linear(state, action):
    return action + 0.0 * state


def made(agent_class, behavior, q, n, **changes):
    """An agent at its first step, with the behavior and the critic given."""
    kinds = {SIR: SIR_CONFIGS["ode"], BestOfN: BEST_OF_N_CONFIGS["whitened"]}
    config = replace(kinds[agent_class], **{**PLAIN, "num_samples": n, **changes})
    agent = agent_class(config, seed=3, device="cpu")
    agent.prepare(make_dataset())
    agent.behavior.average, agent.critic._target = Given(behavior), Value(q)
    return agent


def drawn(agent, n=N_DRAWS):
    agent.seed_predictions(0)
    return torch.as_tensor(agent.predict(np.zeros((n, 3)))[0][:, 0])


def frequencies(actions):
    return torch.stack([(actions - a).abs().lt(1e-6).float().mean() for a in ACTIONS])


def tilted(exponents):
    return torch.softmax(CHANCES.log() + exponents, dim=0)


@pytest.mark.parametrize(("beta", "scale"), [(1.0, 1.0), (1.0, 0.5), (0.5, 3.0)])
def test_sir_of_many_draws_from_mu_exp_beta_q(beta, scale):
    agent = made(SIR, three, value_of_three, 400, beta=beta)
    agent.guidance_scale = scale
    expected = tilted(beta * scale * VALUES)
    torch.testing.assert_close(frequencies(drawn(agent)), expected, atol=0.03, rtol=0.0)
    assert (expected - CHANCES).abs().max() > 0.1


def test_sir_of_two_by_enumeration():
    expected = torch.zeros(3)
    for first, second in product(range(3), repeat=2):
        pair = torch.tensor([first, second])
        expected.index_add_(0, pair, CHANCES[pair].prod() * torch.softmax(VALUES[pair], dim=0))
    found = frequencies(drawn(made(SIR, three, value_of_three, 2), 20_000))
    torch.testing.assert_close(found, expected, atol=0.015, rtol=0.0)
    assert (expected - tilted(VALUES)).abs().max() > 0.1  # two are too few


@pytest.mark.parametrize("limit", [None, 0.5])
def test_sir_of_a_gaussian_is_a_gaussian_whose_tilt_is_limited(limit):
    # N(0, s^2) exp(beta a) has mean beta s^2; a limit k on the spread beta s makes it k s
    agent = made(SIR, gaussian, linear, 500, beta=5.0, tilt_limit=limit)
    actions = drawn(agent)
    expected = 5.0 * SPREAD**2 if limit is None else limit * SPREAD
    assert float(actions.mean()) == pytest.approx(expected, abs=0.015)
    assert float(actions.std()) == pytest.approx(SPREAD, abs=0.015)


def test_the_deterministic_action_of_mean_is_that_of_the_tilted_policy():
    agent = made(SIR, three, value_of_three, 20_000, deterministic_action="mean")
    found = agent.predict(np.zeros(3), deterministic=True)[0].item()
    assert found == pytest.approx(float((tilted(VALUES) * ACTIONS).sum()), abs=0.01)


def test_the_deterministic_action_of_mode_is_where_the_tilted_policy_is_densest():
    # exp(Q) makes the second of the three actions the most frequent one, 0.69 of all
    agent = made(SIR, three, value_of_three, 400, deterministic_action="mode")
    found = agent.predict(np.zeros((2, 3)), deterministic=True)[0][:, 0]
    assert found.tolist() == pytest.approx([0.1, 0.1], abs=0.05)


@pytest.mark.parametrize("n", [2, 7, 32])
def test_fixed_noise_leans_to_no_side(n):
    # without a tilt the mean action of a symmetric behavior is 0; the last of 7 has no opposite
    agent = made(SIR, gaussian, linear, n, beta=0.0, deterministic_action="mean")
    found = abs(agent.predict(np.zeros(3), deterministic=True)[0].item())
    assert found == pytest.approx(0.0, abs=1e-6) if n % 2 == 0 else 0.0 < found < SPREAD / 2


def test_the_unit_of_q_is_that_of_qgpo():
    config = {
        **SHARED,
        "q_unit": "spread",
        "beta": 2.0,
        "tilt_limit": None,
        "reward_tuning": "none",
    }
    sir = SIR(SIRConfig(**config), seed=1, device="cpu").learn(make_dataset())
    qgpo = QGPO(replace(WHITENED, **config), seed=1, device="cpu").learn(make_dataset())
    assert torch.equal(sir.temperature.beta, qgpo.temperature.beta)
    assert float(sir.temperature.beta) != 2.0


class Half(nn.Module):
    def forward(self, states):
        return states.new_full((len(states),), 0.5)


def test_sir_draws_less_where_the_critic_is_trusted_less():
    agent = made(SIR, three, value_of_three, 400)
    agent.trust = Half()
    torch.testing.assert_close(frequencies(drawn(agent)), tilted(0.5 * VALUES), atol=0.03, rtol=0.0)


def test_trust_is_that_of_qgpo():
    sir = SIR(SIRConfig(**SHARED, trust_power=3.0), seed=1, device="cpu").learn(make_dataset())
    config = replace(WHITENED, trust_power=3.0)
    qgpo = QGPO(config, seed=1, device="cpu").learn(make_dataset())
    states = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 3.0
    assert torch.equal(sir.trust(states), qgpo.trust(states))
    assert float(sir.trust(states).min()) < 1.0


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("scale", [0.3, 7.0])
def test_the_best_of_n_by_hand(n, scale):
    # the best is there unless all miss it, the worst comes where all are the worst
    agent = made(BestOfN, three, value_of_three, n)
    agent.guidance_scale = scale
    best, worst = 1.0 - (1.0 - 0.3) ** n, 0.5**n
    expected = torch.tensor([worst, best, 1.0 - best - worst])
    torch.testing.assert_close(frequencies(drawn(agent, 20_000)), expected, atol=0.015, rtol=0.0)


def test_the_best_and_the_worst_of_two_gaussians():
    # the larger of two N(0, 1) has mean 1 / sqrt(pi)
    agent = made(BestOfN, gaussian, linear, 2)
    expected = SPREAD / math.sqrt(math.pi)
    assert float(drawn(agent, 20_000).mean()) == pytest.approx(expected, abs=0.005)
    agent = made(BestOfN, gaussian, lambda state, action: -linear(state, action), 2)
    assert float(drawn(agent, 20_000).mean()) == pytest.approx(-expected, abs=0.005)


@pytest.mark.parametrize("deterministic", [True, False])
def test_each_observation_has_its_own_best_action(deterministic):
    agent = made(BestOfN, gaussian, lambda state, action: -((action - state) ** 2), 2000)
    observations = torch.zeros(3, 3)
    observations[:, 0] = torch.tensor([-0.3, 0.0, 0.25])
    agent.behavior.normalizer = nn.Identity()
    actions = agent.act(observations, deterministic)
    torch.testing.assert_close(actions[:, 0], observations[:, 0], atol=0.02, rtol=0.0)


def test_sir_of_a_large_beta_is_the_best_of_n():
    best = made(BestOfN, gaussian, linear, 50)
    for kind in ("mean", "ode", "mode"):
        sir = made(SIR, gaussian, linear, 50, beta=1e6, deterministic_action=kind)
        found, expected = (a.act(torch.zeros(2, 3), deterministic=True) for a in (sir, best))
        torch.testing.assert_close(found, expected)


@pytest.fixture(scope="module")
def family():
    """QGPO, and the others with its behavior and critic."""
    torch.set_num_threads(1)
    data = make_dataset()
    qgpo = QGPO(WHITENED, seed=2, device="cpu").learn(data)
    others = [
        SIR(SIR_CONFIGS["mean"], seed=2, device="cpu"),
        BestOfN(BEST_OF_N_CONFIGS["whitened"], seed=2, device="cpu"),
    ]
    return qgpo, [a.adopt(qgpo, data).learn(data, reset_num_timesteps=False) for a in others]


@pytest.mark.parametrize(
    ("scale", "n", "deterministic"), [(0.0, 4, True), (0.0, 4, False), (1.0, 1, False)]
)
def test_without_a_choice_both_act_as_the_behavior(scale, n, deterministic, family):
    qgpo, others = family
    observations = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))

    def act(agent):
        agent.seed_predictions(4)
        return agent.act(observations, deterministic)

    qgpo.guidance_scale = 0.0
    for agent in others:
        agent.guidance_scale, agent.num_samples = scale, n
        torch.testing.assert_close(act(agent), act(qgpo), atol=1e-6, rtol=0.0)
        agent.guidance_scale, agent.num_samples = 1.0, 32
        assert not torch.allclose(act(agent), act(qgpo), atol=1e-4)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("agent_class", [SIR, BestOfN])
def test_without_a_ranking_they_act_as_the_behavior_at_every_scale(agent_class, deterministic):
    kind = replace(CONFIGS[agent_class], critic="stacked", q_unit="spread")
    agent = agent_class(kind, device="cpu").learn(make_dataset((3,) * 12))
    agent.num_samples = 8

    def actions(scale):
        agent.guidance_scale = scale
        agent.seed_predictions(4)
        return agent.act(torch.ones(1, 3) * torch.arange(5.0)[:, None], deterministic)

    for weights in ([0.5, 0.0], [0.0, 0.0]):
        agent.critic.stack.weights.copy_(torch.tensor(weights))
        assert agent.guidance_is_off == torch.equal(actions(0.0), actions(1.0))
        assert agent.guidance_is_off == torch.equal(actions(0.0), actions(4.0))


@pytest.mark.parametrize("agent_class", [SIR, BestOfN])
@pytest.mark.parametrize("kind", ["mean", "ode", "mode"])
def test_deterministic_actions_depend_on_the_observation_and_the_seed_alone(agent_class, kind):
    agent = made(agent_class, gaussian, linear, 3, deterministic_action=kind)
    observations = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    found = agent.act(observations, deterministic=True)
    agent.act(observations, deterministic=False)
    alone = torch.cat([agent.act(row[None], deterministic=True) for row in observations])
    torch.testing.assert_close(found, alone, atol=1e-6, rtol=0.0)
    agent.training.seed = 4
    assert not torch.allclose(agent.act(observations, deterministic=True), found, atol=1e-3)


@pytest.mark.parametrize("agent_class", [SIR, BestOfN])
@pytest.mark.parametrize("number", [0, -1, 2.5, True, "many"])
def test_a_number_of_samples_that_is_none_is_refused(agent_class, number):
    agent = made(agent_class, gaussian, linear, 2)
    with pytest.raises(ValueError, match=r"num_samples=.*, expected"):
        agent.num_samples = number
    assert agent.num_samples == 2
    with pytest.raises(ValueError, match=r"num_samples=.*, expected"):
        replace(agent.config, num_samples=number)


def test_metrics_of_the_choice_by_hand():
    # two support actions whose Q differ by 1: weights softmax(beta Q), deviation 1 / sqrt(2)
    q = torch.tensor([[0.0, 1.0], [5.0, 4.0]])
    better = 1.0 / (1.0 + math.exp(-2.0))
    agent = made(SIR, gaussian, linear, 2, beta=2.0)
    found = {name: float(value) for name, value in agent._measure(q).items()}
    effective = 1.0 / (better**2 + (1.0 - better) ** 2)
    expected = {"effective_samples": effective, "gain": (better - 0.5) * math.sqrt(2.0)}
    assert found == pytest.approx(expected)
    best = made(BestOfN, gaussian, linear, 2)._measure(q)
    assert float(best["gain"]) == pytest.approx(0.5 * math.sqrt(2.0))
