"""One agent for the same words, from Python and from the command line."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, replace

import pytest
from factory import SHARED, WHITENED, make_dataset

from qgpo import PRESETS, QGPO
from qgpo.agents import AGENTS
from qgpo.scripts.train import parse

ANTMAZE = "D4RL/antmaze/umaze-v1"
SETTINGS = {"support_actions": 32, "reward_tuning": "antmaze", "beta_q": 20.0}


@pytest.mark.parametrize("agent", sorted(AGENTS))
@pytest.mark.parametrize(
    "dataset_id",
    ["mine/halfcheetah/medium-expert-v0", ANTMAZE, "qgpo/hopper/mixed-v0", "mine/a-v0"],
)
def test_python_and_the_command_line_agree(agent, dataset_id):
    for preset in AGENTS[agent].presets:
        config = AGENTS[agent].settings_for(dataset_id, preset)
        args = parse(["--agent", agent, "--preset", preset, "--dataset-id", dataset_id])
        assert args.config == config


def test_a_family_changes_a_preset():
    assert QGPO.settings_for(ANTMAZE, "paper") == replace(PRESETS["paper"], **SETTINGS)
    assert PRESETS["paper"].beta_q != 20.0


@pytest.mark.parametrize("dataset_id", [ANTMAZE, "zoo/halfcheetah/medium-expert-v0"])
def test_laptop_is_one_recipe_for_all_datasets(dataset_id):
    assert QGPO.settings_for(dataset_id, "laptop") == PRESETS["laptop"]


@pytest.fixture
def tiny(monkeypatch):
    """Presets that train in no time, with the real names."""
    monkeypatch.setattr(QGPO, "presets", {"paper": WHITENED})
    return WHITENED


def test_a_preset_by_name_gets_the_family_s_settings_and_a_configuration_does_not(tiny):
    dataset = make_dataset(id=ANTMAZE)
    assert QGPO("paper", device="cpu").learn(dataset).config == replace(tiny, **SETTINGS)
    assert QGPO(tiny, device="cpu").learn(dataset).config == tiny


def test_what_the_caller_changes_stays_changed(tiny):
    dataset = make_dataset(id=ANTMAZE)
    agent = QGPO("paper", guidance="mse", device="cpu")
    agent.configure_guidance(2.0)
    agent.learn(dataset)
    changes = {"guidance": "mse", "guidance_scale": 2.0, **SETTINGS}
    assert agent.config == replace(tiny, **changes)


def test_settings_by_name_go_before_preset_and_family(tiny):
    agent = QGPO("paper", support_actions=3, learning_rate=0.5, device="cpu")
    assert (agent.config.support_actions, agent.learning_rate) == (3, 0.5)
    agent.learn(make_dataset(id=ANTMAZE))
    changes = {"support_actions": 3, "behavior_learning_rate": 0.5}
    assert agent.config == replace(tiny, **{**SETTINGS, **changes})
    assert QGPO(tiny, beta=3.0, device="cpu").config == replace(tiny, beta=3.0)


@pytest.mark.parametrize("agent", sorted(AGENTS))
def test_settings_that_do_not_exist_are_refused(agent):
    message = rf"{re.escape(agent)} has no setting 'learning_rates' \(nearest: .*learning_rate"
    with pytest.raises(TypeError, match=message):
        AGENTS[agent](learning_rates=0.9)
    with pytest.raises(ValueError, match="learning_rate"):
        AGENTS[agent](learning_rate=-2.0)
    named = {field.name for field in fields(AGENTS[agent].config_class)}
    assert not named & inspect.signature(AGENTS[agent]).parameters.keys()


def test_another_dataset_brings_its_own_settings(tiny):
    agent = QGPO("paper", device="cpu").learn(make_dataset(id=ANTMAZE))
    assert agent.learn(make_dataset(seed=1)).config == tiny
    loaded = agent.save("agent") or QGPO.load("agent", device="cpu")
    assert loaded.learn(make_dataset(id=ANTMAZE, seed=2)).config == tiny


def test_the_family_s_agents_share_their_settings():
    assert set(SHARED) <= set(vars(QGPO.settings_for("mine/a-v0")))


def test_a_trained_agent_keeps_its_settings_when_it_cannot_adopt(tiny):
    dataset, other = make_dataset(id=ANTMAZE), make_dataset((7, 6), id="mine/a-v0")
    agent = QGPO("paper", device="cpu").learn(dataset)
    before = agent.config
    with pytest.raises(ValueError, match=r"it was trained on .*antmaze"):
        agent.adopt(QGPO("paper", device="cpu").learn(dataset), other)
    assert agent.config == before != tiny
