"""Adopting the first stages of another agent equals training them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import AEPO_CONFIGS, QIPO_CONFIGS, WHITENED, make_dataset, mapped, same_parameters

from qgpo import AEPO, BC, QGPO, QIPO
from qgpo.agents.adoption import LAST_STATE, SUPPORT_STATE

pytestmark = pytest.mark.usefixtures("small_chunks")

AGENTS = {
    "cep": lambda: QGPO(WHITENED, seed=2, device="cpu"),
    "mse": lambda: QGPO(WHITENED, guidance="mse", seed=2, device="cpu"),
    "dps": lambda: QGPO(WHITENED, guidance="dps", seed=2, device="cpu"),
    "AEPO": lambda: AEPO(AEPO_CONFIGS["aepo"], seed=2, device="cpu"),
    "QIPO": lambda: QIPO(QIPO_CONFIGS["diffusion"], seed=2, device="cpu"),
}


@pytest.fixture(scope="module")
def scratch():
    """Every agent, trained from scratch."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qgpo.agents.support_critic.ROWS_PER_CHUNK", 12)
        return {name: make().learn(make_dataset()) for name, make in AGENTS.items()}


def until(stage, step):
    """A callback that stops there."""
    return lambda scope, _: scope["self"].progress[stage] < step


def same_agents(first, second):
    """Parameters, optimizers, counters and what a checkpoint keeps of the generator."""
    return (
        same_parameters(first.get_parameters(), second.get_parameters())
        and (first.progress, first.num_timesteps) == (second.progress, second.num_timesteps)
        and torch.equal(first.generator.get_state(), second.generator.get_state())
        and same_parameters(first.tables, second.tables)
    )


@pytest.mark.parametrize(
    ("donor", "name"),
    [("cep", "mse"), ("cep", "dps"), ("cep", "AEPO"), ("cep", "QIPO"), ("QIPO", "cep")],
)
def test_adopting_equals_training_from_scratch(donor, name, scratch):
    scratch[donor].save("donor")
    agent = AGENTS[name]().adopt(type(scratch[donor]).load("donor", device="cpu"), make_dataset())
    assert agent.num_timesteps == agent.shared_timesteps == 3 + 5 + 6
    assert agent.progress[agent.stages[-1]] == 0
    steps = []
    agent.learn(make_dataset(), lambda s, _: not steps.append(0), reset_num_timesteps=False)
    assert len(steps) == agent.last_steps
    assert same_agents(agent, scratch[name])


def test_memory_mapped_data_a_chain_and_an_interruption_change_nothing(scratch):
    data = mapped(make_dataset())
    donor = QGPO(WHITENED, seed=2, device="cpu").learn(data)
    middle = AGENTS["QIPO"]().adopt(donor, data)
    middle.learn(data, until("policy", 3), reset_num_timesteps=False)
    middle.save("middle")
    middle = QIPO.load("middle", device="cpu").learn(data, reset_num_timesteps=False)
    assert same_parameters(middle.get_parameters(), scratch["QIPO"].get_parameters())
    agent = AGENTS["mse"]().adopt(middle, data)
    agent.save("adopted")
    agent = QGPO.load("adopted", device="cpu").learn(data, reset_num_timesteps=False)
    assert same_agents(agent, scratch["mse"])


def test_an_agent_may_adopt_what_it_learned_itself(scratch):
    agent = AGENTS["cep"]().learn(make_dataset())
    expected = agent.get_parameters()
    agent.adopt(agent, make_dataset()).learn(make_dataset(), reset_num_timesteps=False)
    assert same_parameters(agent.get_parameters(), expected)


@pytest.mark.parametrize(
    ("changes", "seed", "message"),
    [
        ({"critic_lambda": 0.5}, 2, r"critic_lambda=0.9, this QGPO has critic_lambda=0.5, which "),
        ({"solver": "ddim"}, 2, "solver='dpm_solver_2m', this QGPO has solver='ddim'"),
        ({}, 3, "trained with seed=2, this QGPO has seed=3; adopt from one of the same seed"),
    ],
)
def test_other_first_stages_are_refused(changes, seed, message, scratch):
    agent = QGPO(replace(WHITENED, **changes), seed=seed, device="cpu")
    with pytest.raises(ValueError, match=message):
        agent.adopt(scratch["cep"], make_dataset())
    assert agent.num_timesteps == 0


def test_what_only_the_last_stage_and_acting_read_may_differ(scratch):
    changes = {"beta": 1.0, "tilt_limit": None, "guidance_scale": 2.0, "guidance_bound": 0.5}
    more = {"deterministic_action": "ode", "solver_steps": 5, "energy_steps": 2}
    config = replace(WHITENED, **changes, **more)
    agent = QGPO(config, seed=2, device="cpu").adopt(scratch["cep"], make_dataset())
    agent.learn(make_dataset(), reset_num_timesteps=False)
    expected = QGPO(config, seed=2, device="cpu").learn(make_dataset())
    assert same_parameters(agent.get_parameters(), expected.get_parameters())


def test_other_data_are_refused(scratch):
    other = make_dataset(seed=1)
    fingerprints = f"{make_dataset().fingerprint}, dataset '{other.id}' has {other.fingerprint}"
    with pytest.raises(ValueError, match=f"fingerprint {fingerprints}"):
        AGENTS["mse"]().adopt(scratch["cep"], other)


def test_a_donor_of_two_datasets_is_refused():
    donor = AGENTS["cep"]()
    donor.learn(make_dataset(seed=1), until("behavior", 2))
    donor.learn(make_dataset(), reset_num_timesteps=False, allow_other_dataset=True)
    donor.save("donor")
    with pytest.raises(ValueError, match="went on with other data than it began with"):
        AGENTS["mse"]().adopt(QGPO.load("donor", device="cpu"), make_dataset())


def test_an_unfinished_critic_is_refused():
    donor = AGENTS["cep"]()
    donor.learn(make_dataset(), until("critic", 2))
    with pytest.raises(ValueError, match="critic has 2 of 6 steps; train it to the end first"):
        AGENTS["mse"]().adopt(donor, make_dataset())


@pytest.mark.parametrize("name", [SUPPORT_STATE, LAST_STATE])
def test_a_file_without_the_states_is_refused(name, scratch):
    scratch["cep"].save("donor")
    donor = QGPO.load("donor", device="cpu")
    del donor.tables[name]
    with pytest.raises(ValueError, match=f"it has no '{name}'.*files of former versions"):
        AGENTS["mse"]().adopt(donor, make_dataset())


def test_agents_outside_the_family_are_refused():
    with pytest.raises(TypeError, match="cannot adopt from a BC, expected a QGPO, AEPO or QIPO"):
        AGENTS["cep"]().adopt(BC(device="cpu"), make_dataset())
