"""Values from data alone, against values that are known."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from bandits import loop
from factory import WHITENED, make_dataset, mapped, same_parameters
from gymnasium import spaces

from qgpo import BC, IQL, QGPO, BCConfig, Ensemble, OfflineDataset, evaluate_offline, learn_model
from qgpo.agents.core.fitted_q import FittedQConfig
from qgpo.envs.data.windows import windowed
from qgpo.envs.tasks.actions import ActionScale
from qgpo.scripts import evaluate

SMALL = FittedQConfig(
    steps=500, first_steps=100, batch_size=64, hidden=(32, 32), learning_rate=5e-3
)
TINY = FittedQConfig(steps=3, first_steps=2, batch_size=8, hidden=(4,))
NO_MODEL = {"model_steps": 0, "progress_bar": False}


def policy(dataset, act):
    """An agent in the spaces of the data that acts as the function says, (B, S) to (B, A)."""
    agent = BC(BCConfig(steps=1, batch_size=4, hidden=(4,)), device="cpu").learn(dataset)
    agent.act = act
    return agent


# A chain of four states whose values are a linear system ---------------------------------------

GAMMA = 0.8
LEFT, RIGHT = -1.0, 1.0


def chain_step(state, right):
    """The next state, the reward, and whether the task ends: at the right end, with reward 1.

    Going left costs ten times as much as going right.
    """
    following = min(state + 1, 3) if right else max(state - 1, 0)
    ends = state == 3 and right
    return following, (1.0 if ends else -0.1 if right else -1.0), ends


def chain_values(p_right):
    """The value of the four states where the probabilities of going right are these."""
    transition, reward = np.zeros((4, 4)), np.zeros(4)
    for state in range(4):
        for right, p in ((True, p_right[state]), (False, 1.0 - p_right[state])):
            following, r, ends = chain_step(state, right)
            reward[state] += p * r
            transition[state, following] += p * (not ends)
    return np.linalg.solve(np.eye(4) - GAMMA * transition, reward)


def chain(n=1500) -> OfflineDataset:
    """Episodes of a walk that goes right and left as often, cut after six steps."""
    rng = np.random.default_rng(0)
    rows, actions, rewards, ends, cuts, after = [], [], [], [], [], []
    while len(rows) < n:
        state = int(rng.integers(4))
        for step in range(6):
            right = bool(rng.random() < 0.5)
            following, reward, over = chain_step(state, right)
            rows.append(np.eye(4)[state])
            after.append(np.eye(4)[following])
            actions.append([RIGHT if right else LEFT])
            rewards.append(reward)
            ends.append(over)
            cuts.append(step == 5 and not over)
            if over:
                break
            state = following
    cuts[-1] = not ends[-1]
    return OfflineDataset.from_arrays(
        np.array(rows), actions, rewards, ends, cuts, next_observations=np.array(after)
    )


@pytest.fixture(scope="module")
def walk():
    return chain()


def at_starts(walk, values):
    return values[walk.observations[walk.episode_starts].argmax(axis=1)]


@pytest.mark.parametrize("p_right", [(1, 1, 1, 1), (1, 0, 1, 1)])
def test_the_value_of_a_deterministic_policy_on_a_chain(walk, p_right):
    """To the end from everywhere; or to and fro between the first two states for ever."""
    actions = torch.tensor([[RIGHT if right else LEFT] for right in p_right])
    agent = policy(walk, lambda observations, _: actions[observations.argmax(dim=-1)])
    found = evaluate_offline(agent, walk, gamma=GAMMA, config=SMALL, **NO_MODEL)
    exact = at_starts(walk, chain_values(p_right))
    assert found.values == pytest.approx(exact, abs=0.1)
    assert found.value == pytest.approx(exact.mean(), abs=0.05)
    assert found.interval[0] < found.value < found.interval[1]
    assert len(found.values) == walk.n_episodes


def test_the_value_of_a_policy_that_is_sampled(walk):
    """Right three times out of four; the other way its mean action would be between both."""

    def act(observations, deterministic):
        right = torch.rand(len(observations), 1, generator=agent.prediction_generator) < 0.75
        return torch.where(right, RIGHT, LEFT)

    agent = policy(walk, act)
    config = dataclasses.replace(SMALL, samples=16)
    found = evaluate_offline(
        agent, walk, gamma=GAMMA, config=config, deterministic=False, **NO_MODEL
    )
    exact = at_starts(walk, chain_values([0.75] * 4)).mean()
    assert found.value == pytest.approx(exact, abs=0.1)
    assert abs(exact - at_starts(walk, chain_values([1.0] * 4)).mean()) > 0.3  # of the mean action


def test_a_termination_ends_value_and_a_cut_does_not():
    for terminated, exact in ((True, 1.0), (False, 5.0)):
        data = loop(terminated)
        agent = policy(data, lambda observations, _: torch.zeros(len(observations), 1))
        found = evaluate_offline(agent, data, gamma=0.8, config=SMALL, **NO_MODEL)
        assert found.value == pytest.approx(exact, rel=0.02)
        assert found.data_values == pytest.approx(1.0)


# A linear system with quadratic costs ----------------------------------------------------------

A, B, COST, NOISE = 0.9, 0.5, 0.1, 0.1


def quadratic_value(gain, gamma):
    """V(s) = -(p s^2 + c) of the action -gain s, by its own equations."""
    closed = A - B * gain
    p = (1.0 + COST * gain**2) / (1.0 - gamma * closed**2)
    return p, gamma * p * NOISE**2 / (1.0 - gamma)


def linear_system(episodes=150, steps=20) -> OfflineDataset:
    rng = np.random.default_rng(1)
    states = np.zeros((episodes, steps + 1))
    states[:, 0] = rng.uniform(-1, 1, episodes)
    actions = rng.uniform(-1, 1, (episodes, steps))
    for t in range(steps):
        noise = NOISE * rng.normal(size=episodes)
        states[:, t + 1] = A * states[:, t] + B * actions[:, t] + noise
    rewards = -(states[:, :-1] ** 2 + COST * actions**2)
    cuts = np.tile(np.arange(steps) == steps - 1, episodes)
    return OfflineDataset.from_arrays(
        states.reshape(-1, 1),
        actions.reshape(-1, 1),
        rewards.ravel(),
        np.zeros(len(cuts)),
        cuts,
        observation_space=spaces.Box(-np.inf, np.inf, (1,)),
    )


def test_the_value_of_a_linear_policy_has_its_closed_form():
    data, gamma, gain = linear_system(), 0.9, 0.6
    agent = policy(data, lambda observations, _: -gain * observations)
    config = dataclasses.replace(SMALL, steps=900, tau=0.15)
    found = evaluate_offline(agent, data, gamma=gamma, config=config, **NO_MODEL)
    p, c = quadratic_value(gain, gamma)
    starts = data.observations[data.episode_starts][:, 0]
    exact = -(p * starts**2 + c)
    assert found.value == pytest.approx(exact.mean(), rel=0.1)
    assert np.corrcoef(found.values, exact)[0, 1] > 0.97
    assert found.gain > 0.0  # than actions by chance


def test_the_model_s_return_stands_beside_it():
    """Of the linear system without noise: rewards of twenty steps add up, nothing is left."""
    data, gain = linear_system(), 0.6
    agent = policy(data, lambda observations, _: -gain * observations)
    found = evaluate_offline(
        agent, data, gamma=0.9, config=TINY, model_steps=150, rollouts=16, progress_bar=False
    )
    assert found.horizon == 20
    assert not found.left_data.any()
    per_step = (1.0 + COST * gain**2) / (1.0 - (A - B * gain) ** 2)
    starts = data.observations[data.episode_starts][:, 0]
    assert found.imagined_return == pytest.approx(-per_step * (starts**2).mean(), rel=0.5)
    assert "left the data" in str(found)
    assert found.as_dict()["imagined_return"] == found.imagined_return


# What it leaves alone, and what it refuses ------------------------------------------------------


def test_the_same_seed_gives_the_same_and_the_agent_stays_as_it_was():
    data = make_dataset((9, 8, 7, 9))
    agent = BC(BCConfig(steps=3, batch_size=4, hidden=(4,)), device="cpu").learn(data)
    before, noise = agent.get_parameters(), agent.prediction_generator.get_state()
    options = {"config": TINY, "model_steps": 3, "rollouts": 2, "progress_bar": False}
    one, two = (evaluate_offline(agent, data, deterministic=False, **options) for _ in range(2))
    assert np.array_equal(one.values, two.values)
    assert np.array_equal(one.imagined, two.imagined)
    other = evaluate_offline(agent, data, deterministic=False, seed=1, **options)
    assert not np.array_equal(one.values, other.values)
    same = evaluate_offline(agent, mapped(data), deterministic=False, **options)
    assert np.allclose(one.values, same.values)
    assert same_parameters(before, agent.get_parameters())
    assert torch.equal(noise, agent.prediction_generator.get_state())
    assert one.gamma == 0.99
    assert evaluate_offline(Ensemble([agent, agent]), data, **options).values.shape == (4,)


def test_an_ensemble_has_the_discount_of_its_members():
    data = make_dataset()
    small = {"steps": 2, "batch_size": 4, "hidden": (4,)}
    agents = [IQL(seed=k, device="cpu", gamma=0.9, **small).learn(data) for k in range(2)]
    agents.append(BC(device="cpu", **small).learn(data))  # which has none
    assert evaluate_offline(Ensemble(agents), data, config=TINY, **NO_MODEL).gamma == 0.9
    agents.append(IQL(device="cpu", gamma=0.5, **small).learn(data))
    with pytest.raises(ValueError, match=r"members have the discounts \[0\.5, 0\.9\]"):
        evaluate_offline(Ensemble(agents), data, config=TINY, **NO_MODEL)
    assert evaluate_offline(Ensemble(agents), data, gamma=0.8, config=TINY, **NO_MODEL).gamma == 0.8


def test_of_windows_only_recorded_starts_count():
    data = windowed(make_dataset((9, 8, 7)), history=2, chunk=2)
    agent = BC(BCConfig(steps=3, batch_size=4, hidden=(4,)), device="cpu").learn(data)
    assert data.n_episodes == 6
    assert len(evaluate_offline(agent, data, config=TINY, **NO_MODEL).values) == 3


def test_what_cannot_be_is_refused():
    data = make_dataset()
    agent = BC(BCConfig(steps=1, batch_size=4, hidden=(4,)), device="cpu")
    with pytest.raises(RuntimeError, match="has not been trained"):
        evaluate_offline(agent, data)
    agent.learn(data)
    other = BC(BCConfig(steps=1, batch_size=4, hidden=(4,)), device="cpu")
    others_data = make_dataset(observation_dim=4)
    of_others = learn_model(other.learn(others_data), others_data, steps=1, rollouts=1)
    longer = make_dataset((7, 9, 8))  # the same spaces
    of_longer = learn_model(agent, longer, steps=1, rollouts=1)
    assert evaluate_offline(agent, longer, model=of_longer, config=TINY).horizon == 9
    own = learn_model(agent, data, steps=1, rollouts=1)
    half = np.full(agent.action_space.shape, 0.5)
    halved = dataclasses.replace(
        own, action_scale=ActionScale.between(agent.action_space, -half, half)
    )
    elsewhere = dataclasses.replace(own, starts=own.starts.to("meta"))
    for wrong, error, said in [
        ({"gamma": 1.0}, ValueError, r"gamma=1.0, expected a number in \[0, 1\)"),
        ({"rollouts": 0}, ValueError, "rollouts=0, expected at least 1"),
        ({"deterministic": "no"}, ValueError, "deterministic='no'"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"model": "mine"}, TypeError, "model is a str, expected what learn_model returns"),
        ({"model": of_others}, ValueError, "model was learned from other data than dataset"),
        ({"model": of_longer}, ValueError, "model was learned from other data than dataset"),
        ({"model": halved}, ValueError, r"from -1 to 1 are .*0\.5.*, those of this BC are .*1\.0"),
        ({"model": elsewhere}, ValueError, "model is on meta, this BC on cpu"),
    ]:
        with pytest.raises(error, match=said):
            evaluate_offline(agent, data, **wrong)
    with pytest.raises(ValueError, match="was made for"):
        evaluate_offline(agent, make_dataset(observation_dim=4))
    for estimate in (evaluate_offline, learn_model):
        with pytest.raises(TypeError, match="dataset is a str, expected an OfflineDataset"):
            estimate(agent, "mine/arm-v0")
        with pytest.raises(
            TypeError, match="agent is a NoneType, expected an agent or an Ensemble"
        ):
            estimate(None, data)
    with pytest.raises(ValueError, match="tau=2"):
        FittedQConfig(tau=2.0)


def test_the_command_needs_no_environment(tmp_path, monkeypatch, capsys):
    """The run's dataset names none; one scale after the other, and nothing is played."""
    data = make_dataset((9, 8, 7))
    agent = QGPO(WHITENED, device="cpu").learn(data)
    (tmp_path / "run").mkdir()
    agent.save(tmp_path / "run" / "checkpoint.zip")
    learned = []

    def learn(*args, **more):
        learned.append(learn_model(*args, rollouts=2, **more))
        return learned[-1]

    monkeypatch.setattr(evaluate, "learn_model", learn)
    monkeypatch.setattr(evaluate, "load_dataset", lambda name, **_: data)
    args = evaluate.Args(
        run=(tmp_path / "run",),
        offline=True,
        guidance_scale=(0.0, 1.0),
        progress_bar=False,
        fitted_q=TINY,
        model_steps=3,
    )
    evaluate.main(args)
    assert len(learned) == 1
    [written] = (tmp_path / "run").glob("offline-*.json")
    found = json.loads(written.read_text(encoding="utf-8"))["offline"]
    assert [one["guidance_scale"] for one in found] == [0.0, 1.0]
    assert all(len(one["values"]) == 3 for one in found)
    assert all(len(one["imagined"]) == 2 for one in found)
    agent.guidance_scale = 1.0
    more = {"config": TINY, "seed": args.seed, "progress_bar": False}
    alone = evaluate_offline(agent, data, model_steps=3, rollouts=2, **more)
    assert found[1]["imagined"] == alone.imagined.tolist()
    said = capsys.readouterr().out
    assert said.count("expected value") == 2
    for flag in ({"video": tmp_path / "a.gif"}, {"env_id": "Pendulum-v1"}, {"picture": True}):
        with pytest.raises(SystemExit, match="--offline plays nothing: leave --"):
            evaluate.main(dataclasses.replace(args, **flag))
    with pytest.raises(SystemExit, match="--offline and --exactness: give only one of them"):
        evaluate.main(dataclasses.replace(args, exactness=True))


def test_too_few_steps_are_said(walk):
    agent = policy(walk, lambda observations, _: torch.full((len(observations), 1), RIGHT))
    few = FittedQConfig(steps=20, first_steps=1, hidden=(4,), batch_size=4)
    with pytest.warns(UserWarning, match="leaves about 99% of the errors .* More steps"):
        evaluate_offline(agent, walk, gamma=0.99, config=few, model_steps=0)


def test_the_command_refuses_other_data_than_those_of_the_training(tmp_path, monkeypatch):
    """Those under the name have changed since."""
    agent = QGPO(WHITENED, device="cpu").learn(make_dataset((9, 8, 7)))
    (tmp_path / "run").mkdir()
    agent.save(tmp_path / "run" / "checkpoint.zip")
    monkeypatch.setattr(evaluate, "load_dataset", lambda name, **_: make_dataset(seed=5))
    args = evaluate.Args(run=(tmp_path / "run",), offline=True, progress_bar=False)
    with pytest.raises(SystemExit, match="learned from other data than the present 'test/made"):
        evaluate.main(args)
    assert not list((tmp_path / "run").glob("offline-*.json"))


def test_an_evaluation_that_was_not_completed_replaces_none(tmp_path, capsys):
    whole = tmp_path / "whole.json"
    evaluate.keep_in(whole, True, {"n": 1}, [], {})
    evaluate.keep_in(whole, True, {"n": 2}, [], {"interrupted": True})
    assert json.loads(whole.read_text(encoding="utf-8"))["n"] == 1
    [beside] = (path for path in tmp_path.iterdir() if path != whole)
    assert json.loads(beside.read_text(encoding="utf-8"))["n"] == 2
    evaluate.keep_in(whole, True, {"n": 3}, [], {})
    assert json.loads(whole.read_text(encoding="utf-8"))["n"] == 3
