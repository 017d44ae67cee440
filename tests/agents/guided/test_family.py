"""Every agent of the family on a bandit whose answer is known in closed form.

One state, actions ~ N(0, s^2), a Q that is given: Q = a makes mu exp(beta Q) a Gaussian of mean
beta s^2 and standard deviation s; Q = -a^2 / 2 one of mean 0 and variance s^2 / (1 + beta s^2).
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from bandits import bandit
from factory import (
    AEPO_CONFIGS,
    QIPO_CONFIGS,
    WHITENED,
    make_dataset,
    mapped,
    same_parameters,
)
from torch import nn

from qgpo import AEPO, QGPO, QIPO, SIR, SIRConfig
from qgpo.agents.guided.config import GuidedPolicyConfig
from qgpo.agents.guided.support import Support

SPREAD = 0.25
LEARNING = replace(
    WHITENED,
    behavior_hidden=(64, 64),
    behavior_steps=700,
    behavior_batch_size=256,
    whitening_steps=200,
    ema_decay=0.99,
    support_actions=16,
    support_solver_steps=15,
    critic_hidden=(32, 32),
    critic_steps=350,
    critic_batch_size=128,
    tau=0.05,
    energy_hidden=(64, 64),
    energy_steps=350,
    energy_batch_size=32,
    reward_tuning="none",
    q_unit="reward",
    beta=3.0,
    tilt_limit=None,
    solver_steps=20,
)
SHARED = {field.name: getattr(LEARNING, field.name) for field in fields(GuidedPolicyConfig)}
FLOW = {"schedule": "ot", "prediction": "flow"}


def gaussian_bandit():
    """Quantiles of N(0, SPREAD^2), so that the data have no sampling error."""
    levels = (torch.arange(600).double() + 0.5) / 600
    actions = SPREAD * torch.special.ndtri(levels).numpy()
    actions = actions[np.random.default_rng(0).permutation(600)]
    return bandit(actions, actions)


class GivenQ(nn.Module):
    """A function of the action in place of the critic."""

    def __init__(self, agent, q):
        super().__init__()
        self.decode, self.q = agent.behavior.whitening.decode, q

    def forward(self, condition, z):
        return self.q(self.decode(condition, z).squeeze(-1))


@pytest.fixture(scope="module")
def behaviors():
    """The stages before the critic, trained once per path."""
    torch.set_num_threads(1)
    trained = {}
    for path, changes in (("diffusion", {}), ("flow", FLOW)):
        agent = QGPO(replace(LEARNING, **changes), device="cpu")
        agent.train_whitening(gaussian_bandit())
        agent.train_behavior(gaussian_bandit())
        agent.generate_support(gaussian_bandit())
        trained[path] = agent
    return trained


def with_behavior(agent, behavior, q):
    """The agent with that behavior and support and the given Q."""
    agent.prepare(gaussian_bandit())
    parameters = behavior.get_parameters()
    names = ("normalizer", "whitening", "behavior", "behavior_ema")
    agent.set_parameters({name: parameters[name] for name in names}, exact_match=False)
    agent.tables.update({name: table.clone() for name, table in behavior.tables.items()})
    agent.progress.update(behavior.progress)
    agent.critic._target = GivenQ(agent, q)
    return agent


def acts(agent, scale=1.0):
    agent.guidance_scale = scale
    agent.seed_predictions(0)
    actions = agent.predict(np.zeros((2000, 1)))[0]
    return float(actions.mean()), float(actions.std())


def mean_action(agent):
    return agent.predict(np.zeros(1), deterministic=True)[0].item()


def linear_q(a):
    return a


def test_qgpo_with_all_its_stages_on_a_uniform_behavior():
    # uniform times exp(3 a) on [-1, 1] has mean coth(3) - 1/3 = 0.672
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, 1000)
    agent = QGPO(LEARNING, device="cpu").learn(bandit(actions, actions))
    assert acts(agent, 0.0)[0] == pytest.approx(0.0, abs=0.12)
    assert acts(agent, 1.0)[0] == pytest.approx(1 / math.tanh(3.0) - 1 / 3.0, abs=0.1)


@pytest.mark.parametrize("guidance", ["cep", "mse", "emse", "dps", "analytic", "aepo"])
def test_every_guidance_is_right_for_a_gaussian_behavior_and_a_linear_q(guidance, behaviors):
    agent = QGPO(LEARNING, guidance=guidance, device="cpu")
    agent = with_behavior(agent, behaviors["diffusion"], lambda a: a)
    agent.train_energy(gaussian_bandit())
    mean, spread = acts(agent)
    assert mean == pytest.approx(3.0 * SPREAD**2, abs=0.04)
    assert mean_action(agent) == pytest.approx(mean, abs=0.05)
    assert spread == pytest.approx(SPREAD, abs=0.04)


def test_qgf_goes_farther_than_the_exact_guidance(behaviors):
    # sqrt(2) asinh(1) times as far in coordinates in which the behavior is N(0, 1); its one-step
    # mean is the behavior's moved by beta Q's slope there, the exact one
    agent = with_behavior(
        QGPO(LEARNING, guidance="qgf", device="cpu"), behaviors["diffusion"], linear_q
    )
    agent.train_energy(gaussian_bandit())
    mean, spread = acts(agent)
    exact = 3.0 * SPREAD**2
    assert mean == pytest.approx(math.sqrt(2.0) * math.asinh(1.0) * exact, abs=0.025)
    assert mean_action(agent) == pytest.approx(exact, abs=0.03)
    assert spread == pytest.approx(SPREAD, abs=0.04)
    assert acts(agent, 0.5)[0] == pytest.approx(mean / 2, abs=0.02)


@pytest.mark.parametrize("path", ["diffusion", "flow"])
def test_sir_samples_what_exact_guidance_does(path, behaviors):
    changes = {"num_samples": 64, "deterministic_action": "mean"}
    config = SIRConfig(**{**SHARED, **(FLOW if path == "flow" else {}), **changes})
    agent = with_behavior(SIR(config, device="cpu"), behaviors[path], linear_q)
    agent.train_choice(gaussian_bandit())
    mean, spread = acts(agent)
    assert mean == pytest.approx(3.0 * SPREAD**2, abs=0.04)
    assert spread == pytest.approx(SPREAD, abs=0.04)
    agent.num_samples = 2000
    assert mean_action(agent) == pytest.approx(mean, abs=0.05)


@pytest.mark.parametrize("guidance", ["aepo", "analytic"])
def test_aepo_of_second_order_is_right_for_a_quadratic_q(guidance, behaviors):
    config = replace(AEPO_CONFIGS[guidance], **asdict(replace(LEARNING, guidance=guidance)))
    config = replace(config, beta=16.0, guidance_options={"order": 2})
    agent = AEPO(config, device="cpu")
    agent = with_behavior(agent, behaviors["diffusion"], lambda a: -0.5 * a**2)
    agent.train_energy(gaussian_bandit())
    mean, spread = acts(agent)
    assert mean == pytest.approx(0.0, abs=0.03)
    assert spread == pytest.approx(SPREAD / math.sqrt(1.0 + 16.0 * SPREAD**2), abs=0.03)


@pytest.mark.parametrize(("path", "renewals"), [("diffusion", 0), ("diffusion", 1), ("flow", 1)])
def test_qipo_s_iterate_has_the_effective_inverse_temperature(path, renewals, behaviors):
    config = replace(
        QIPO_CONFIGS[path],
        **{**SHARED, "beta": 2.0, **(FLOW if path == "flow" else {})},
        policy_steps=250 * (renewals + 2),
        policy_batch_size=32,
        policy_learning_rate=1e-3,
        renew_every=250,
        largest_beta=2.0 * (renewals + 1),
    )
    agent = with_behavior(QIPO(config, device="cpu"), behaviors[path], lambda a: a)
    agent.train_policy(gaussian_bandit())
    assert agent.most_renewals == renewals
    mean, _ = acts(agent)
    assert mean == pytest.approx(2.0 * (renewals + 1) * SPREAD**2, abs=0.05)
    assert mean_action(agent) == pytest.approx(mean, abs=0.05)
    assert acts(agent, 0.0)[0] == pytest.approx(0.0, abs=0.04)
    assert acts(agent, 0.5)[0] == pytest.approx(mean / 2, abs=0.04)


def test_other_guidances_are_refused_by_name():
    with pytest.raises(ValueError, match=r"guidance='cep', expected one of \['aepo', 'analytic'\]"):
        replace(AEPO_CONFIGS["aepo"], guidance="cep")
    with pytest.raises(ValueError, match="guidance='weighted', expected one of"):
        QGPO("laptop", guidance="weighted")


@pytest.mark.parametrize("path", sorted(QIPO_CONFIGS))
@pytest.mark.parametrize("renewal", [2, 4])
@pytest.mark.parametrize("scratch", [None, "memmap"])
def test_ctrl_c_while_the_support_is_renewed_loses_nothing(
    path, renewal, scratch, small_chunks, monkeypatch
):
    dataset = mapped(make_dataset()) if scratch else make_dataset()
    config = QIPO_CONFIGS[path]
    whole = QIPO(config, device="cpu").learn(dataset)
    agent = QIPO(config, device="cpu")
    draw = Support._draw

    def draw_and_stop(support, data, chunk):
        metrics = draw(support, data, chunk)
        if agent.progress["policy"] == renewal and chunk == 1:
            agent.training.interrupt()
        return metrics

    monkeypatch.setattr(Support, "_draw", draw_and_stop)
    with pytest.raises(KeyboardInterrupt, match="while the support was being regenerated"):
        agent.learn(dataset)
    assert agent.progress["policy"] == renewal
    agent.save("stopped")
    monkeypatch.setattr(Support, "_draw", draw)
    for one in (agent, QIPO.load("stopped", device="cpu")):
        one.learn(dataset, reset_num_timesteps=False)
        assert same_parameters(one.get_parameters(), whole.get_parameters())
        assert torch.equal(one.generator.get_state(), whole.generator.get_state())
