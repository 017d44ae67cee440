from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from factory import CONFIGS, PAPER_LIKE, WHITENED, make_dataset, same_parameters
from gymnasium import spaces

from qgpo import QGPO
from qgpo.agents.core.config import longer
from qgpo.agents.core.training import NonFiniteError, average, half_cosine
from qgpo.agents.guided.support_critic import SupportCritic

UNEVEN = spaces.Box(
    np.array([-2.0, 0.0], np.float32), np.array([0.5, 3.0], np.float32), dtype=np.float32
)


def train(config, dataset=None, seed=0, **more):
    return QGPO(config, seed=seed, device="cpu").learn(dataset or make_dataset(), **more)


def gradient_steps(config):
    return (
        config.whitening_steps + config.behavior_steps + config.critic_steps + config.energy_steps
    )


def test_learns_through_all_stages(config):
    agent = train(config)
    assert agent.num_timesteps == gradient_steps(config)
    assert agent.progress == {
        "whitening": config.whitening_steps,
        "behavior": config.behavior_steps,
        "support": 1,
        "critic": config.critic_steps,
        "dynamics": 0,
        "energy": config.energy_steps,
    }
    action, state = agent.predict(np.zeros(3))
    assert action.shape == (1,)
    assert state is None


def test_stages_change_their_own_networks_only(config):
    dataset = make_dataset()
    agent = QGPO(config, device="cpu")
    agent.prepare(dataset)
    changed = {
        agent.train_behavior: {"behavior", "behavior_ema"}
        | ({"whitening"} if config.whitening_steps else set()),
        agent.generate_support: set(),
        agent.train_critic: {"critic", "critic_target"},
        agent.train_energy: {"energy"} | ({"trust"} if config.trust_power else set()),
    }
    for stage, expected in changed.items():
        before = {
            k: {n: v.clone() for n, v in m.state_dict().items()} for k, m in agent.networks.items()
        }
        stage(dataset)
        after = {k: m.state_dict() for k, m in agent.networks.items()}
        assert {k for k in after if not same_parameters(before[k], after[k])} == expected


@pytest.mark.parametrize("stage", ["train_critic", "train_energy"])
def test_stages_out_of_order_are_refused(stage):
    with pytest.raises(RuntimeError, match="generate_support"):
        getattr(QGPO(WHITENED, device="cpu"), stage)(make_dataset())


def test_other_seed_other_parameters(config):
    first, second = train(config, seed=3), train(config, seed=4)
    for name in ("behavior", "critic", "energy"):
        assert not same_parameters(
            first.networks[name].state_dict(), second.networks[name].state_dict()
        )


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 50.0])
@pytest.mark.parametrize(
    "box", [UNEVEN, spaces.Box(-0.4, 0.4, (3,), np.float32)], ids=["uneven", "narrow"]
)
def test_actions_have_the_space_s_shape_and_bounds(config, box, guidance_scale, deterministic):
    agent = train(config, make_dataset(action_space=box))
    agent.guidance_scale = guidance_scale
    observations = np.random.default_rng(0).normal(size=(64, 3)) * 3.0
    actions, _ = agent.predict(observations, deterministic=deterministic)
    assert actions.shape == (64, *box.shape)
    assert actions.dtype == np.float32
    assert all(box.contains(action) for action in actions)
    single, _ = agent.predict(observations[0], deterministic=deterministic)
    assert single.shape == box.shape
    assert box.contains(single)


def test_behavior_scale_survives_the_action_space():
    actions = np.tile(np.array([[-1.9, 2.8]], np.float32), (40, 1))
    config = replace(WHITENED, whitening_steps=400)
    dataset = make_dataset((20, 20), action_space=UNEVEN, actions=actions)
    agent = train(config, dataset)
    agent.guidance_scale = 0.0
    found, _ = agent.predict(dataset.observations, deterministic=True)
    np.testing.assert_allclose(found.mean(axis=0), [-1.9, 2.8], atol=0.2)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ((np.zeros(3), {}), "tuple"),
        (np.zeros(4), r"shape \(4,\), expected \(3,\)"),
        (np.zeros((2, 2)), r"shape \(2, 2\)"),
        (np.zeros((1, 2, 3)), r"shape \(1, 2, 3\)"),
        (np.float64(1.0), r"shape \(\)"),
        (np.array([0.0, np.nan, 0.0]), "NaN"),
        (np.array([[0.0, 0.0, 0.0], [0.0, np.inf, 0.0]]), "infinite"),
    ],
)
def test_wrong_observations_are_refused(observation, message):
    with pytest.raises(ValueError, match=message):
        train(PAPER_LIKE).predict(observation)


def test_untrained_agent_says_so():
    with pytest.raises(RuntimeError, match="not been trained"):
        QGPO(PAPER_LIKE, device="cpu").predict(np.zeros(3))
    with pytest.raises(RuntimeError, match="nothing to save"):
        QGPO(PAPER_LIKE, device="cpu").save("agent")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "cubic"}, "'cubic'.*linear"),
        ({"prediction": "score"}, "'score'.*noise"),
        ({"solver": "leapfrog"}, "'leapfrog'.*ddim"),
        ({"spacing": "odd"}, "'odd'.*time"),
        ({"solver_steps": 0}, "steps=0"),
        ({"reward_tuning": "odd"}, "'odd'.*locomotion"),
        ({"q_unit": "odd"}, "'odd'.*spread"),
    ],
)
def test_wrong_settings_are_refused_with_the_choices(change, message):
    with pytest.raises(ValueError, match=message):
        train(replace(PAPER_LIKE, **change))


def test_wrong_preset_lists_the_choices():
    with pytest.raises(ValueError, match=r"'huge'.*laptop.*paper"):
        QGPO("huge")
    with pytest.raises(TypeError, match="QGPOConfig"):
        QGPO({"beta": 3.0})


def test_guidance_network_is_not_called_at_scale_zero(config, monkeypatch):
    agent = train(config)
    agent.guidance_scale = 0.0
    monkeypatch.setattr(agent.energy, "network", None)
    assert agent.predict(np.zeros((2, 3)))[0].shape == (2, 1)


def test_solver_attributes_may_be_set_at_any_time():
    agent = train(WHITENED)
    seen = []
    for agent.solver, agent.solver_steps in (("dpm_solver_2m", 3), ("ddim", 3), ("ddim", 1)):
        agent.seed_predictions(0)
        seen.append(agent.predict(np.zeros((8, 3)))[0].tobytes())
    assert len(set(seen)) == 3


def test_the_guidance_scale_may_be_set_before_there_are_data():
    agent = QGPO(WHITENED, device="cpu")
    assert agent.guidance_scale == 1.0
    agent.guidance_scale = np.float32(0.5)
    assert agent.learn(make_dataset()).guidance_scale == 0.5
    assert agent.config.guidance_scale == 1.0
    agent.configure_guidance(2.0)
    assert agent.guidance_scale == agent.config.guidance_scale == 2.0
    for wrong in (math.nan, "1", None):
        with pytest.raises(ValueError, match="expected a finite number"):
            agent.guidance_scale = wrong
    assert agent.guidance_scale == 2.0


@pytest.mark.parametrize(("choice", "answers"), [("mean", 1), ("ode", 3), ("mode", 3)])
def test_the_deterministic_action_is_the_solver_s_or_the_mean(choice, answers):
    agent = train(replace(WHITENED, deterministic_action=choice))
    seen = set()
    for agent.solver_steps in (1, 3, 8):
        seen.add(agent.predict(np.ones((8, 3)), deterministic=True)[0].tobytes())
    assert len(seen) == answers


def test_the_mode_is_a_deterministic_action_of_the_observation_and_the_seed():
    agent = train(replace(WHITENED, deterministic_action="mode"))
    observations = np.random.default_rng(0).normal(size=(4, 3))
    found = agent.predict(observations, deterministic=True)[0]
    agent.predict(observations)
    alone = [agent.predict(row, deterministic=True)[0] for row in observations]
    np.testing.assert_allclose(found, alone, atol=1e-6)


def test_a_nan_loss_stops_with_stage_and_step():
    agent = QGPO(replace(PAPER_LIKE, critic_learning_rate=math.inf), device="cpu")
    with pytest.raises(NonFiniteError, match=r"critic/\w+ is (nan|inf).*stage 'critic'"):
        agent.learn(make_dataset(), log_interval=1)


@pytest.mark.parametrize(
    ("critic", "terminated"),
    [
        ({"critic_lambda": 0.0}, True),
        ({"critic_lambda": 0.1}, True),
        ({"critic_lambda": 0.1}, False),
        ({"critic": "implicit"}, True),
        ({"critic": "implicit"}, False),
        ({"critic": "implicit", "implicit_actions": 2}, False),
    ],
    ids=str,
)
def test_critic_learns_the_known_values_of_two_states(terminated, critic):
    # state -1, reward 0, state 0, reward 1, end in state 1 (never left, so never learned)
    n, gamma = 100, 0.5
    dataset = make_dataset(
        (2,) * n,
        observation_dim=1,
        terminated=[terminated] * n,
        states=np.tile(np.array([[-1.0], [0.0], [1.0]], np.float32), (n, 1)),
        rewards=np.tile(np.array([0.0, 1.0], np.float32), n),
    )
    config = replace(
        WHITENED,
        critic_hidden=(32, 32),
        critic_steps=500,
        critic_batch_size=64,
        critic_learning_rate=3e-3,
        target_every=25,
        tau=0.1,
        gamma=gamma,
        reward_tuning="none",
        **critic,
    )
    agent = train(config, dataset)
    states = agent.behavior.normalizer(torch.tensor([[-1.0], [0.0], [1.0]]))
    with torch.no_grad():
        first, second, last = agent.critic.target(states, torch.zeros(3, 1)).tolist()
    expected = 1.0 if terminated else 1.0 + gamma * last
    assert second == pytest.approx(expected, abs=0.08)
    assert first == pytest.approx(gamma * expected, abs=0.08)
    assert terminated or abs(last) > 0.25


def test_parameters_can_be_taken_and_given(config):
    agent, other = train(config, seed=0), train(config, seed=1)
    other.set_parameters(agent.get_parameters())
    assert same_parameters(agent.get_parameters(), other.get_parameters())
    with pytest.raises(ValueError, match=r"unknown \['actor'\]"):
        other.set_parameters({"actor": {}}, exact_match=False)
    with pytest.raises(ValueError, match="missing"):
        other.set_parameters({})


def test_beta_in_units_of_spread_is_what_typical_actions_differ_by():
    dataset = make_dataset()
    tables = []
    for unit in ("reward", "spread"):
        config = replace(WHITENED, tilt_limit=None, beta=2.0, beta_q=5.0, q_unit=unit)
        agent = QGPO(config, seed=2, device="cpu")
        for stage in (agent.train_behavior, agent.generate_support, agent.train_critic):
            stage(dataset)
        tables.append(agent.critic.table_of_q(agent.prepare(dataset)))
        typical = tables[-1].std(dim=-1).mean()
        expected = 2.0 if unit == "reward" else 2.0 / float(typical)
        assert float(agent.inverse_temperature(tables[-1])) == pytest.approx(expected)
    assert torch.equal(*tables)  # the unit is beta's, not that of the critic's beta_q


def of_sgd(state):
    """The state of SGD with momentum for the same parameters."""
    [group] = state["param_groups"]
    moments = {i: {"momentum_buffer": m["exp_avg"]} for i, m in state["state"].items()}
    names = ("lr", "params")
    return {"state": moments, "param_groups": [{name: group[name] for name in names}]}


WRONG_STATES = {
    "another stage's": lambda states: states["behavior.optimizer"],
    "another optimizer's": lambda states: of_sgd(states["critic.optimizer"]),
    "without hyperparameters": lambda states: {
        **states["critic.optimizer"],
        "param_groups": [{"params": states["critic.optimizer"]["param_groups"][0]["params"]}],
    },
    "half of each moment": lambda states: {
        **states["critic.optimizer"],
        "state": {i: {"step": m["step"]} for i, m in states["critic.optimizer"]["state"].items()},
    },
}


@pytest.mark.parametrize("wrong", WRONG_STATES)
def test_parameters_that_do_not_fit_leave_all_as_they_were(config, wrong):
    agent, other = train(config, seed=0), train(config, seed=1)
    before = copy.deepcopy(other.get_parameters())
    parameters = copy.deepcopy(agent.get_parameters())
    parameters["critic.optimizer"] = WRONG_STATES[wrong](parameters)
    with pytest.raises(ValueError, match=r"'critic\.optimizer' are not a state of that optimizer"):
        other.set_parameters(parameters)
    assert same_parameters(other.get_parameters(), before)


def test_targets_are_returns_first_and_then_renewed_with_the_critics_own_values(monkeypatch):
    renewed = []
    original = SupportCritic._lambda_targets

    def spy(critic, data, lambda_, first):
        renewed.append((critic.training.progress["critic"], lambda_))
        return original(critic, data, lambda_, first)

    monkeypatch.setattr(SupportCritic, "_lambda_targets", spy)
    train(replace(WHITENED, critic_steps=9))
    assert renewed == [(0, 1.0), (4, 0.9), (8, 0.9)]
    renewed.clear()
    train(longer(replace(WHITENED, critic_steps=9), 2))
    assert renewed == [(0, 1.0), (8, 0.9), (16, 0.9)]


def test_both_configurations_are_really_different():
    assert CONFIGS["whitened"].critic_lambda > 0 == CONFIGS["paper-like"].critic_lambda
    assert CONFIGS["whitened"].whitening_steps > 0 == CONFIGS["paper-like"].whitening_steps


def test_the_tilt_limit_lowers_beta_where_q_spreads():
    q = torch.tensor([[1.0, 3.0], [5.0, 5.2]])
    beta = torch.tensor(2.0)
    unlimited = train(replace(WHITENED, tilt_limit=None)).critic.scaled_energies(q.clone(), beta)
    torch.testing.assert_close(unlimited, torch.tensor([[-2.0, 2.0], [-0.2, 0.2]]))
    # standard deviations sqrt(8) and sqrt(0.08): the first is brought down to 1
    limited = train(replace(WHITENED, tilt_limit=1.0)).critic.scaled_energies(q.clone(), beta)
    half = math.sqrt(0.5)
    torch.testing.assert_close(limited, torch.tensor([[-half, half], [-0.2, 0.2]]))
    shared = train(replace(WHITENED, tilt_limit=1.0)).critic.scaled_energies(q.clone(), beta, 4)
    torch.testing.assert_close(shared, torch.tensor([[-half, half], [-half, half]]) / 4)


@pytest.mark.parametrize(
    ("decay", "step", "kept"), [(0.9, 0, 0.1), (0.9, 1000, 0.9), (0.0, 5, 0.0)]
)
def test_the_average_forgets_the_first_steps_sooner(decay, step, kept):
    source, target = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    for module, value in ((source, 0.0), (target, 1.0)):
        torch.nn.init.constant_(module.weight, value)
    average(source, target, decay, step)
    assert float(target.weight.detach()) == pytest.approx(kept)


def test_the_learning_rate_falls_along_half_a_cosine():
    assert [half_cosine(2.0, step, 4) for step in (0, 2, 4)] == pytest.approx([2.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("changes", "is_flat"),
    [({}, True), ({"critic_activation": "silu"}, False), ({"critic_layer_norm": True}, False)],
)
def test_second_order_guidance_says_where_the_critic_has_no_curvature(changes, is_flat):
    flat = replace(WHITENED, critic_activation="relu", critic_layer_norm=False)
    second = {"guidance": "analytic", "guidance_options": {"order": 2}}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        QGPO(replace(flat, **second, **changes), device="cpu").prepare(make_dataset())
    assert any("no curvature" in str(w.message) for w in said) == is_flat
