"""Adopting the first stages of another agent equals training them."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from agent_tester import places
from factory import (
    AEPO_CONFIGS,
    BEST_OF_N_CONFIGS,
    QIPO_CONFIGS,
    SIR_CONFIGS,
    STACKED,
    WHITENED,
    make_dataset,
    mapped,
    same_parameters,
)

from qgpo import AEPO, QGPO, QIPO, SIR, BestOfN, QGPOConfig
from qgpo.agents.core.callbacks import EveryStep
from qgpo.agents.guided.config import AFTER_BEHAVIOR, LAST_STAGE
from qgpo.fields import marked

pytestmark = pytest.mark.usefixtures("small_chunks")

AGENTS = {
    "cep": lambda: QGPO(WHITENED, seed=2, device="cpu"),
    "mse": lambda: QGPO(WHITENED, guidance="mse", seed=2, device="cpu"),
    "dps": lambda: QGPO(WHITENED, guidance="dps", seed=2, device="cpu"),
    "qgf": lambda: QGPO(WHITENED, guidance="qgf", seed=2, device="cpu"),
    "stacked": lambda: QGPO(STACKED, seed=2, device="cpu"),
    "stacked mse": lambda: QGPO(STACKED, guidance="mse", seed=2, device="cpu"),
    "AEPO": lambda: AEPO(AEPO_CONFIGS["aepo"], seed=2, device="cpu"),
    "QIPO": lambda: QIPO(QIPO_CONFIGS["diffusion"], seed=2, device="cpu"),
    "SIR": lambda: SIR(SIR_CONFIGS["mean"], seed=2, device="cpu"),
    "BestOfN": lambda: BestOfN(BEST_OF_N_CONFIGS["whitened"], seed=2, device="cpu"),
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
    [
        ("cep", "mse"),
        ("cep", "dps"),
        ("cep", "qgf"),
        ("cep", "AEPO"),
        ("cep", "QIPO"),
        ("QIPO", "cep"),
        ("cep", "SIR"),
        ("SIR", "BestOfN"),
        ("BestOfN", "cep"),
        ("stacked", "stacked mse"),
    ],
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


def test_what_is_adopted_is_a_copy(scratch):
    agent = AGENTS["SIR"]().adopt(scratch["cep"], make_dataset())
    assert not places(agent) & places(scratch["cep"])


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


OTHER_CRITICS = {
    "another kind": {"critic": "implicit"},
    "two critics": {"critic": "stacked", "q_unit": "spread", "beta": 1.0},
    "another target": {"critic_lambda": 0.5, "gamma": 0.9},
    "other rewards": {"reward_tuning": "none"},
    "another support": {"support_actions": 4, "solver": "ddim"},
}


@pytest.mark.parametrize("changes", OTHER_CRITICS)
def test_another_critic_is_trained_on_the_behavior_that_is_adopted(changes, scratch):
    config = replace(WHITENED, **OTHER_CRITICS[changes])
    scratch["cep"].save("donor")
    agent = QGPO(config, seed=2, device="cpu")
    agent.adopt(QGPO.load("donor", device="cpu"), make_dataset())
    assert [*agent.progress.values()] == [3, 5, *[0] * (len(agent.stages) - 2)]
    agent.save("adopted")
    agent = QGPO.load("adopted", device="cpu").learn(make_dataset(), reset_num_timesteps=False)
    assert same_agents(agent, QGPO(config, seed=2, device="cpu").learn(make_dataset()))


READ: set[str] = set()


class Watched(QGPOConfig):
    """A configuration that notes which of its fields are read."""

    def __getattribute__(self, name):
        READ.add(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("changes", [{}, *OTHER_CRITICS.values()], ids=str)
def test_no_stage_reads_a_field_that_is_said_to_matter_only_later(changes):
    config = replace(WHITENED, **changes)
    agent = QGPO(Watched(**{f.name: getattr(config, f.name) for f in fields(config)}), device="cpu")
    data = make_dataset()
    agent.prepare(data)
    late = set(marked(QGPOConfig, LAST_STAGE))
    later = late | set(marked(QGPOConfig, AFTER_BEHAVIOR))
    READ.clear()
    agent.train_whitening(data)
    agent.train_behavior(data)
    assert "behavior_steps" in READ
    assert later & READ == set()
    agent.generate_support(data)
    agent.train_critic(data)
    assert {"support_actions", "tau"} <= READ
    assert late & READ == set()


def test_the_message_says_which_data_are_whose(scratch):
    other = make_dataset(seed=1)
    fingerprints = f"{make_dataset().fingerprint}, dataset '{other.id}' has {other.fingerprint}"
    with pytest.raises(ValueError, match=f"fingerprint {fingerprints}"):
        AGENTS["mse"]().adopt(scratch["cep"], other)


# Other tasks of the same trajectories --------------------------------------------------------


def other_task():
    """The same states and actions with other rewards, done at other steps."""
    done = np.arange(16) % 5 == 2
    rewards = done.astype(np.float32) - 1.0
    return make_dataset(rewards=rewards, terminations=done, id="test/made/other-task-v0")


@pytest.mark.parametrize("name", ["cep", "AEPO", "QIPO", "SIR"])
def test_another_task_adopts_what_needs_no_rewards(name, scratch):
    scratch["cep"].save("donor")
    agent = AGENTS[name]().adopt(QGPO.load("donor", device="cpu"), other_task())
    assert agent.num_timesteps == agent.behavior_timesteps == 3 + 5
    assert [*agent.progress.values()] == [3, 5, *[0] * (len(agent.stages) - 2)]
    agent.save("adopted")  # before its first step, as a run folder has it
    agent = type(agent).load("adopted", device="cpu")
    steps = Steps()
    agent.learn(other_task(), steps, reset_num_timesteps=False)
    assert steps.done == 5 + 6 + agent.last_steps  # chunks of the support, and the critic
    assert same_agents(agent, AGENTS[name]().learn(other_task()))
    assert not same_parameters(agent.get_parameters(), scratch[name].get_parameters())


@pytest.mark.filterwarnings("ignore:.* terminations are inside an episode")
def test_it_does_so_from_memory_mapped_data_and_hands_all_on(scratch):
    data = mapped(other_task())
    first = AGENTS["cep"]().adopt(scratch["QIPO"], data)
    first.learn(data, until("critic", 2), reset_num_timesteps=False)
    first.save("first")
    first = QGPO.load("first", device="cpu").learn(data, reset_num_timesteps=False)
    expected = AGENTS["cep"]().learn(other_task())
    assert same_agents(first, expected)
    second = AGENTS["mse"]().adopt(first, other_task())  # of the same task: the critic, too
    assert second.num_timesteps == second.shared_timesteps
    second.learn(other_task(), reset_num_timesteps=False)
    assert same_agents(second, AGENTS["mse"]().learn(other_task()))


def test_a_file_that_does_not_say_on_which_states_it_learned_is_refused(scratch):
    scratch["cep"].save("donor")
    donor = QGPO.load("donor", device="cpu")
    assert donor.trajectory_fingerprint == make_dataset().trajectory_fingerprint
    donor.trajectory_fingerprint = None  # as files of earlier versions are read
    message = "does not say whether states and actions are the same"
    with pytest.raises(ValueError, match=message):
        AGENTS["cep"]().adopt(donor, other_task())
    donor.save("again")
    again = QGPO.load("again", device="cpu")
    assert again.trajectory_fingerprint is None
    agent = AGENTS["mse"]().adopt(again, make_dataset())  # the same data need no such word
    assert agent.num_timesteps == agent.shared_timesteps
