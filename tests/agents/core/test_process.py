"""The same agent whatever the process has set and its threads do; files that can be read again."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from agent_tester import StopAfter
from factory import make_dataset, same_parameters
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from qgpo import BC, QGPO, EnergyGuidedConfig, EnergyGuidedDiffusion, OfflineDataset, evaluate
from qgpo.agents import Ensemble, EvaluationCallback
from qgpo.agents.bc import BC_PRESETS
from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.core.process import Turn, usual_torch
from qgpo.agents.guided.tuning import tune_guidance

TINY = replace(BC_PRESETS["laptop"], steps=8, hidden=(4, 4), batch_size=4)
ZEROS = np.zeros(3)
SMALL = EnergyGuidedConfig(
    hidden=(8,), energy_hidden=(8,), data_steps=2, guidance_steps=2, contrast=4, groups=1
)


def bc(**more):
    return BC(TINY, device="cpu", **more)


def same(one, other):
    return same_parameters(one.get_parameters(), other.get_parameters())


@pytest.fixture(scope="module")
def trained():
    return bc().learn(make_dataset())


# Defaults of the process ----------------------------------------------------------------------


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AMBIENT = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("ambient", AMBIENT)
def test_the_agent_is_the_same_whatever_the_process_has_set(ambient, trained):
    data = make_dataset()
    with AMBIENT[ambient]():
        agent = bc().learn(data, StopAfter(4))
        agent.save("agent")
        agent = BC.load("agent", device="cpu").learn(data, reset_num_timesteps=False)
        action, _ = agent.predict(ZEROS, deterministic=True)
    assert same(agent, trained)
    assert np.array_equal(action, trained.predict(ZEROS, deterministic=True)[0])


@pytest.mark.parametrize("ambient", AMBIENT)
def test_so_is_a_model_of_samples(ambient):
    def sampled():
        model = EnergyGuidedDiffusion(SMALL, device="cpu")
        model.fit(np.eye(8, 2), np.arange(8.0)).save("model")
        return EnergyGuidedDiffusion.load("model", device="cpu").sample(3).numpy()

    expected = sampled()
    with AMBIENT[ambient]():
        found = sampled()
    assert np.array_equal(found, expected)


def test_defaults_are_the_process_s_again_when_the_last_thread_is_done():
    with default_dtype(torch.float64):
        with usual_torch():
            with usual_torch():
                pass
            assert torch.get_default_dtype() is torch.float32
        assert torch.get_default_dtype() is torch.float64


# Threads --------------------------------------------------------------------------------------


def in_threads(n, function):
    found = [None] * n
    start = threading.Barrier(n)

    def run(i):
        start.wait()
        try:
            found[i] = function()
        except RuntimeError as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_the_same_seed_is_the_same_agent_in_all_threads(trained):
    data = make_dataset()
    before = torch.get_rng_state()
    assert all(same(agent, trained) for agent in in_threads(4, lambda: bc().learn(data)))
    assert torch.equal(before, torch.get_rng_state())


class Calls(BaseCallback):
    """Calls a function of the agent at the first step."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def _on_step(self):
        if self.n_calls == 1:
            self.function(self.model)
        return True


@pytest.mark.parametrize(
    "again",
    [
        lambda agent: agent.learn(make_dataset()),
        lambda agent: agent.training.run_stage("training", 8, dict),
        lambda agent: in_threads(1, lambda: agent.learn(make_dataset()))[0].missing,
    ],
)
def test_an_agent_in_training_is_not_trained(again, trained):
    agent = bc()
    with pytest.raises((RuntimeError, AttributeError), match=r"already being trained|missing"):
        agent.learn(make_dataset(), Calls(again))
    assert same(agent.learn(make_dataset()), trained)


def test_nor_is_a_model_of_samples():
    model = EnergyGuidedDiffusion(SMALL, device="cpu")
    data = np.eye(8, 2), np.arange(8.0)
    with pytest.raises(RuntimeError, match="already being trained"):
        model.fit(*data, callback=lambda model: model.fit_data(data[0]))
    model.fit(*data)


def test_a_copy_of_an_agent_in_training_may_be_trained(trained):
    copies = []
    bc().learn(make_dataset(), Calls(lambda a: copies.append(copy.deepcopy(a))))
    assert same(copies[0].learn(make_dataset()), trained)
    turn = Turn()
    with turn.training(), pickle.loads(pickle.dumps(turn)).training():
        pass


# Seeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed", [lambda a: setattr(a, "seed", np.int64(7)), lambda a: a.set_random_seed(7)]
)
def test_the_seed_may_be_set_before_a_training_begins(seed, trained):
    expected = bc(seed=7).learn(make_dataset())
    fresh, used = bc(), copy.deepcopy(trained)
    for agent in (fresh, used):
        seed(agent)
    fresh.learn(make_dataset(), reset_num_timesteps=False)
    assert "seed 0" in repr(used)
    used.save("used")
    assert (BC.load("used", device="cpu").seed, used.seed) == (0, 7)
    used.learn(make_dataset())
    assert same(fresh, expected)
    assert same(used, expected)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "7", True])
def test_other_seeds_are_refused(seed):
    agent = bc()
    with pytest.raises(ValueError, match=r"^seed="):
        agent.seed = seed
    with pytest.raises(ValueError, match=r"^seed="):
        agent.set_random_seed(seed)


# Files ----------------------------------------------------------------------------------------


SPOILT = {
    "a learning rate": lambda a: a.optimizers["policy"].param_groups[0].update(lr=0.5),
    "betas": lambda a: a.optimizers["policy"].param_groups[0].update(betas=(0.5, 0.5)),
    "a type": lambda a: a.networks.double(),
    "a layer": lambda a: a.networks.update({"more": torch.nn.Linear(2, 2)}),
    "progress": lambda a: a.progress.update(training=10**6),
    "a table": lambda a: a.tables.update(mine=torch.zeros(3)),
    "a state": lambda a: a.optimizers["policy"].state.popitem(),
    "a fingerprint": lambda a: setattr(a, "dataset_fingerprint", 5),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_no_file_is_written_that_could_not_be_read(spoil, trained, tmp_path):
    agent = copy.deepcopy(trained)
    agent.save("agent")
    before = (tmp_path / "agent.zip").read_bytes()
    SPOILT[spoil](agent)
    with pytest.raises(ValueError, match="not saved, because the file could not be read back"):
        agent.save("agent")
    assert (tmp_path / "agent.zip").read_bytes() == before


def entries(parameters):
    return parameters["policy.optimizer"]["state"]


def group(parameters):
    return parameters["policy.optimizer"]["param_groups"][0]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: group(p).update(lr="x"),
        lambda p: group(p).update(lr=float("nan")),
        lambda p: group(p).update(betas=5),
        lambda p: group(p).update(amsgrad=True),
        lambda p: entries(p)[0].update(more=torch.zeros(3)),
        lambda p: entries(p)[0].update(step="x"),
        lambda p: entries(p)[0].update(exp_avg_sq=-torch.ones_like(entries(p)[0]["exp_avg"])),
        lambda p: entries(p).pop(0),
        lambda p: p.update({5: {}, "x": {}}),
        lambda p: p["policy"].update({5: torch.zeros(1), "a": torch.zeros(1)}),
    ],
)
def test_parameters_that_no_file_could_hold_are_not_set(spoil, trained):
    agent = copy.deepcopy(trained)
    parameters = copy.deepcopy(agent.get_parameters())
    spoil(parameters)
    with pytest.raises(ValueError, match=r"^parameters"):
        agent.set_parameters(parameters)
    assert same(agent, trained)


def test_parameters_of_a_higher_learning_rate_are_taken_without_it(trained):
    fast = BC(replace(TINY, learning_rate=0.02), device="cpu").learn(make_dataset())
    agent = copy.deepcopy(trained)
    agent.set_parameters(fast.get_parameters())
    agent.save("agent")
    assert same(BC.load("agent", device="cpu"), agent)


def test_another_configuration_needs_another_agent():
    with pytest.raises(AttributeError, match="make a new agent"):
        bc().config = TINY
    with pytest.raises(TypeError, match="config is a BCConfig"):
        QGPO(TINY)


# Likely mistakes ------------------------------------------------------------------------------

MISTAKES = {
    "dataset is a str": lambda a: tune_guidance(a, "arrays"),
    "dataset is a NoneType": lambda a: tune_guidance(a, None),
    "config is a str": lambda a: EnergyGuidedDiffusion("laptop"),
    "logger is a NoneType": lambda a: a.set_logger(None),
    "logger is a class": lambda a: a.set_logger(Logger),
    "members is a BC": lambda a: Ensemble(a),
    "members is a NoneType": lambda a: Ensemble(None),
    "tb_log_name=5": lambda a: a.learn(make_dataset(), tb_log_name=5),
    "log_interval=True": lambda a: a.learn(make_dataset(), log_interval=True),
    "seed='x'": lambda a: EvaluationCallback("Pendulum-v1", seed="x"),
    "seed=-1": lambda a: EvaluationCallback("Pendulum-v1", seed=-1),
    "log_path is a int": lambda a: EvaluationCallback("Pendulum-v1", log_path=5),
    "callback_after_eval is a builtin": lambda a: EvaluationCallback(
        "Pendulum-v1", callback_after_eval=print
    ),
    "max_episode_steps=2.5": lambda a: EvaluationCallback("Pendulum-v1", max_episode_steps=2.5),
    "reference is a tuple": lambda a: evaluate(a, "Pendulum-v1", 1, reference=(0, 100)),
    "returned a ndarray": lambda a: evaluate(OnlyActions(), "Pendulum-v1", 1),
}


class OnlyActions:
    """An agent that forgets the state."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.zeros((len(observation), 1), np.float32)


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message, trained):
    agent = copy.deepcopy(trained)
    with pytest.raises((TypeError, ValueError), match=message):
        MISTAKES[message](agent)
    assert same(agent, trained)


def test_files_are_read_by_the_class_that_wrote_them(trained):
    trained.save("agent")
    with pytest.raises(TypeError, match="load_agent"):
        OfflineAgent.load("agent", device="cpu")
    with pytest.raises(TypeError, match="custom_objects is a list"):
        BC.load("agent", device="cpu", custom_objects=["x"])


def test_a_member_that_learned_in_other_spaces_is_seen(trained):
    member = copy.deepcopy(trained)
    ensemble = Ensemble([trained, member])
    n = 4
    member.learn(
        OfflineDataset.from_arrays(np.eye(n + 1, 5), np.zeros((n, 1)), np.ones(n), [0] * n)
    )
    with pytest.raises(RuntimeError, match="member 1 was trained again, in other spaces"):
        ensemble.predict(ZEROS)
