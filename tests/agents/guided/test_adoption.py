"""Adopting the first stages of another agent equals training them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from factory import AEPO_CONFIGS, QIPO_CONFIGS, WHITENED, make_dataset, mapped, same_parameters

from qgpo import AEPO, QGPO, QIPO
from qgpo.agents.core.callbacks import EveryStep

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
        patch.setattr("qgpo.agents.guided.support.ROWS_PER_CHUNK", 12)
        return {name: make().learn(make_dataset()) for name, make in AGENTS.items()}


class Steps(EveryStep):
    def after_step(self, n):
        pass


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
    steps = Steps()
    agent.learn(make_dataset(), steps, reset_num_timesteps=False)
    assert steps.done == agent.last_steps
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


def test_what_only_the_last_stage_and_acting_read_may_differ(scratch):
    changes = {"beta": 1.0, "tilt_limit": None, "guidance_scale": 2.0, "guidance_bound": 0.5}
    more = {"deterministic_action": "ode", "solver_steps": 5, "energy_steps": 2}
    config = replace(WHITENED, **changes, **more)
    agent = QGPO(config, seed=2, device="cpu").adopt(scratch["cep"], make_dataset())
    agent.learn(make_dataset(), reset_num_timesteps=False)
    expected = QGPO(config, seed=2, device="cpu").learn(make_dataset())
    assert same_parameters(agent.get_parameters(), expected.get_parameters())


def test_the_message_says_which_data_are_whose(scratch):
    other = make_dataset(seed=1)
    fingerprints = f"{make_dataset().fingerprint}, dataset '{other.id}' has {other.fingerprint}"
    with pytest.raises(ValueError, match=f"fingerprint {fingerprints}"):
        AGENTS["mse"]().adopt(scratch["cep"], other)
