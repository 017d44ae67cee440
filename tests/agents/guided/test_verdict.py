"""What a critic was found to be worth, in one line."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings

import pytest
import torch
from factory import QIPO_CONFIGS, STACKED, WHITENED, make_dataset

from qgpo import QGPO, QIPO, Ensemble
from qgpo.agents.guided import GuidanceOffWarning, Verdict
from qgpo.agents.guided.imagination import Imagination
from qgpo.stacking import Slope


def trained(config):
    return QGPO(config, device="cpu").learn(make_dataset((3,) * 12))


@pytest.mark.parametrize(
    ("weights", "slope", "confirmed", "text"),
    [
        ([0.0, 0.0], Slope(0.0, 0.0, 0.0), False, "do not confirm .* imitates"),
        ([0.2, 0.0], Slope(0.2, 0.07, 0.01), True, "hardly confirm .*2.9 standard .*environment"),
        ([0.2, 0.4], Slope(0.6, 0.05, 0.1), True, r"episodes confirm .*correlation 0.100, 12.0"),
    ],
)
def test_what_was_measured_is_said(weights, slope, confirmed, text):
    agent = trained(STACKED)
    stack = agent.critic.stack
    stack.set(stack.weights.new_tensor(weights), [slope, slope, slope])
    verdict = agent.verdict
    assert isinstance(verdict, Verdict)
    assert verdict.confirmed is confirmed
    assert list(verdict.weights.values()) == pytest.approx(weights)
    assert re.search(text, str(verdict))
    assert json.loads(json.dumps(verdict.as_dict()))["text"] == str(verdict)


def confirming(monkeypatch, confirmed):
    weights = {"returns": 0.5 if confirmed else 0.0, "implicit": 0.0}
    monkeypatch.setattr(QGPO, "verdict", Verdict(0.1, 5.0, weights))


@pytest.mark.parametrize("confirmed", [False, True])
def test_an_agent_that_only_imitates_says_so(monkeypatch, confirmed):
    confirming(monkeypatch, confirmed)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        agent = trained(STACKED)
        agent.learn(make_dataset((3,) * 12), reset_num_timesteps=False)  # nothing is left to do
    said = [str(w.message) for w in said if issubclass(w.category, GuidanceOffWarning)]
    assert len(said) == (0 if confirmed else 1)
    assert confirmed or "guidance is off" in said[0]


@pytest.mark.parametrize("name", QIPO_CONFIGS)
def test_a_policy_learned_without_a_ranking_acts_as_the_behavior(name):
    config = dataclasses.replace(QIPO_CONFIGS[name], critic="stacked", q_unit="spread")
    data = make_dataset((3,) * 12)
    agent = QIPO(config, device="cpu").learn(data)

    def actions(scale):
        agent.guidance_scale = scale
        return torch.tensor(agent.predict(data.observations, deterministic=True)[0])

    for weights in ([0.5, 0.0], [0.0, 0.0]):
        agent.critic.stack.weights.copy_(torch.tensor(weights))
        assert agent.guidance_is_off == torch.equal(actions(0.0), actions(1.0))
        assert agent.guidance_is_off == torch.equal(actions(0.0), actions(4.0))


def test_tuning_plays_such_an_agent_once(monkeypatch):
    dataset = make_dataset((3,) * 12)
    agents, played = [trained(STACKED), trained(STACKED)], []
    play = Imagination.play

    def counted(self, agent, *rest):
        played.append(agent.guidance_scale)
        return play(self, agent, *rest)

    monkeypatch.setattr(Imagination, "play", counted)
    settings = {"scales": (0.0, 1.0, 2.0), "rollouts": 2, "steps": 2}
    for confirmed in (True, False):
        confirming(monkeypatch, confirmed)
        for agent in (agents[0], Ensemble(agents)):
            played.clear()
            tuning = agent.tune_guidance(dataset, **settings)
            assert played == ([0.0, 1.0, 2.0] if confirmed else [0.0])
            assert tuning.returns.shape == tuning.left_data.shape == (3, 2)
            assert ("imitates at every scale" in str(tuning)) is not confirmed
    assert (tuning.best, (tuning.returns == tuning.returns[0]).all()) == (1.0, True)
    assert agents[1].config.guidance_scale == 1.0


def test_there_is_none_before_the_end_and_of_other_critics():
    assert trained(WHITENED).verdict is None
    agent = QGPO(STACKED, device="cpu")
    agent.learn(make_dataset(), lambda scope, _: scope["self"].progress["critic"] < 3)
    assert agent.verdict is None
