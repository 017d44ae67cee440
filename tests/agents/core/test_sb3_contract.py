"""What users of Stable-Baselines3 expect of an agent: before data, in files, copies and logs."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_tester import Count, Recorder, StopAfter, Walk, same_agents
from checkpoint_files import change_header, rewrite
from factory import WHITENED, make_dataset, same_parameters
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from qgpo import BC, QGPO
from qgpo.agents import AGENTS, EvaluationCallback, load_agent
from qgpo.agents.bc import BC_PRESETS
from qgpo.agents.core.checkpoint import CheckpointError
from qgpo.agents.core.parameters import ParameterError

TINY = replace(BC_PRESETS["laptop"], steps=8, hidden=(4, 4), batch_size=4)
ZEROS = np.zeros(3)


class Goals(Walk):
    """Walk, whose observation is in two parts."""

    observation_space = spaces.Dict(
        {"goal": spaces.Box(-1.0, 1.0, (1,)), "at": spaces.Box(-9.0, 9.0, (2,))}
    )

    def _parts(self, o):
        return {"at": o[:2], "goal": np.tanh(o[2:])}

    def reset(self, *, seed=None, options=None):
        return self._parts(super().reset(seed=seed)[0]), {}

    def step(self, action):
        observation, *rest = super().step(action)
        return self._parts(observation), *rest


def bc(**more):
    return BC(TINY, device="cpu", **more)


# Before data --------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [Walk, lambda: DummyVecEnv([Walk, Walk]), lambda: "Pendulum-v1"])
@pytest.mark.parametrize(("make", "config"), [(BC, TINY), (QGPO, WHITENED)])
def test_an_agent_with_an_environment_acts_and_is_saved(make, config, env):
    agent = make(config, env=env(), device="cpu")
    action = agent.predict(ZEROS, deterministic=True)[0]
    assert agent.action_space.contains(action)
    assert agent.policy.predict(ZEROS, deterministic=True)[0] == action
    assert agent.policy.device == agent.device
    assert agent.policy.observation_space == agent.observation_space
    agent.save("before")
    loaded = load_agent("before", device="cpu")
    assert same_agents(agent, loaded)
    assert loaded.predict(ZEROS, deterministic=True)[0] == action
    later = make(config, device="cpu")
    assert later.policy is None
    later.set_env(env(), force_reset=True)
    assert later.predict(ZEROS, deterministic=True)[0] == action
    with pytest.raises(RuntimeError, match="has no spaces yet"):
        make(config, device="cpu").save("nothing")


@pytest.mark.parametrize("reset", [True, False])
def test_an_environment_changes_nothing_of_what_is_learned(reset):
    expected = QGPO(WHITENED, device="cpu").learn(make_dataset())
    agent = QGPO(WHITENED, env=Walk(), device="cpu")
    agent.predict(ZEROS)
    agent.learn(make_dataset(), reset_num_timesteps=reset)
    assert same_agents(agent, expected)


def test_a_preset_still_takes_what_the_dataset_s_family_changes():
    data = make_dataset(id="D4RL/antmaze/umaze-v1")
    agent = QGPO("paper", env=Walk(), device="cpu")
    row = agent.config
    agent.prepare(data)
    assert agent.config == QGPO.settings_for(data, "paper") != row


def test_dicts_are_read_before_and_after_data():
    agent = bc(env=Goals())
    observation = {"goal": np.zeros(1), "at": np.ones(2)}
    action = agent.predict(observation, deterministic=True)[0]
    assert action == agent.predict(np.array([1.0, 1.0, 0.0]), deterministic=True)[0]
    agent.save("dicts")
    assert bc().load("dicts", device="cpu").predict(observation, deterministic=True)[0] == action
    vectors = bc(env=DummyVecEnv([Goals]))  # the data say which parts
    with pytest.raises(RuntimeError, match="has not been trained"):
        vectors.predict(observation)
    assert agent.learn(make_dataset(adapter=agent.adapter)).predict(observation)[0].shape == (1,)


def test_another_environment_may_be_given_before_data():
    agent = bc(env="Pendulum-v1")
    agent.set_env(Walk())
    assert agent.action_space == Walk.action_space
    agent.learn(make_dataset())
    with pytest.raises(ValueError, match="this agent was made for"):
        agent.set_env("Pendulum-v1")


def test_parameters_that_were_set_are_trained_on():
    donor, agent = bc(env=Walk(), seed=1), bc(env=Walk())
    agent.set_parameters(donor.get_parameters())
    agent.learn(make_dataset(), StopAfter(1), reset_num_timesteps=False)
    moved = [
        float((new - old).detach().abs().max())
        for new, old in zip(agent.actor.parameters(), donor.actor.parameters(), strict=True)
    ]
    assert 0.0 < max(moved) < 0.01


def test_the_seed_is_the_environment_s():
    first, same, other = (bc(env=Walk(), seed=seed).env.reset() for seed in (3, 3, 4))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    agent = bc(env=DummyVecEnv([Walk]), seed=4)
    agent.set_random_seed(3)
    assert np.array_equal(agent.get_env().reset(), first)


# Names that callbacks read -----------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_documented_callbacks_find_their_names(name):
    agent = AGENTS[name](env=None, device="cpu")
    assert agent.learning_rate > 0.0
    assert (agent.gamma is None) == (name == "BC")
    assert agent.policy is agent.env is agent.get_env() is agent.get_vec_normalize_env() is None


class Documented(BaseCallback):
    """Hyperparameters to TensorBoard and a look at every gradient, as documented callbacks do."""

    def _on_training_start(self):
        about = {"algorithm": type(self.model).__name__, "rate": self.model.learning_rate}
        exclude = ("stdout", "log", "json", "csv")
        hparam = HParam({**about, "gamma": self.model.gamma}, {"time/fps": 0})
        self.logger.record("hparams", hparam, exclude=exclude)
        self.seen = []
        for _, parameter in self.model.policy.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient: self.seen.append(gradient.shape))

    def _on_step(self):
        return True


@pytest.mark.parametrize(("make", "config"), [(BC, TINY), (QGPO, WHITENED)])
def test_hyperparameters_and_gradients_reach_callbacks(make, config):
    callback = Documented()
    agent = make(config, device="cpu", tensorboard_log="log").learn(make_dataset(), callback)
    assert callback.seen
    assert agent.policy is agent.policy
    states = torch.zeros(2, 3)
    assert agent.policy(states, deterministic=True).shape == (2, 1)


def test_frames_per_second_are_those_of_this_training():
    recorder = Recorder()
    agent = bc()
    agent.set_logger(Logger(None, [recorder]))
    agent.learn(make_dataset(), StopAfter(4), log_interval=2)
    assert recorder.rows[-1][1]["time/fps"] > 0
    agent.training.start_clock()
    assert agent.training.started_at == agent.num_timesteps == 4


# Logs -------------------------------------------------------------------------------------


def test_every_training_has_a_folder_of_events_and_a_continued_one_has_none():
    agent = bc(tensorboard_log=Path("log"))
    agent.learn(make_dataset(), StopAfter(2))
    agent.learn(make_dataset(), reset_num_timesteps=False)
    assert [p.name for p in Path("log").iterdir()] == ["BC_1"]
    agent.learn(make_dataset(), tb_log_name="other")
    agent.learn(make_dataset(), tb_log_name="other")
    agent.learn(make_dataset())
    agent.save("agent")
    BC.load("agent", device="cpu").learn(make_dataset())
    names = ["BC_1", "BC_2", "BC_3", "other_1", "other_2"]
    assert sorted(p.name for p in Path("log").iterdir()) == names
    agent.set_logger(Logger(None, []))
    agent.learn(make_dataset())
    assert len(list(Path("log").iterdir())) == len(names)


@pytest.mark.parametrize("verbose", [0, 1])
def test_training_leaves_no_folder_of_logs(verbose, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    Path(tempfile.gettempdir()).mkdir()
    bc(verbose=verbose, env=Walk()).learn(make_dataset())
    assert list(Path(tempfile.gettempdir()).iterdir()) == []
    assert ("time/" in capsys.readouterr().out) == bool(verbose)


# Files ------------------------------------------------------------------------------------


def test_verbosity_and_log_survive_the_file_and_may_be_left_out_or_replaced():
    agent = bc(verbose=2, tensorboard_log="log").learn(make_dataset())
    agent.save("agent")
    loaded = BC.load("agent", device="cpu")
    assert (loaded.verbose, loaded.tensorboard_log) == (2, "log")
    other = BC.load("agent", device="cpu", verbose=0, tensorboard_log="elsewhere")
    assert (other.verbose, other.tensorboard_log) == (0, "elsewhere")
    agent.save("agent", exclude=["verbose"])
    assert BC.load("agent", device="cpu").verbose == 0
    agent.save("agent", exclude=["verbose", "tensorboard_log"], include=["verbose"])
    loaded = BC.load("agent", device="cpu")
    assert (loaded.verbose, loaded.tensorboard_log) == (2, None)
    with pytest.warns(UserWarning, match=r"exclude: \['replay_buffer'\] have no effect"):
        agent.save("agent", exclude=["replay_buffer"])
    assert same_agents(BC.load("agent", device="cpu"), agent)


def test_custom_objects_replace_what_the_file_says(capsys):
    agent = QGPO(WHITENED, device="cpu").learn(make_dataset(), StopAfter(2))
    agent.save("agent")
    given = {"learning_rate": 2e-5, "gamma": 0.5, "verbose": 3, "dummy": 1.0}
    with pytest.warns(UserWarning, match=r"custom_objects: \['dummy'\] are neither fields"):
        loaded = QGPO.load(
            "agent", device="cpu", custom_objects=given, print_system_info=True, force_reset=False
        )
    assert (loaded.learning_rate, loaded.gamma, loaded.verbose) == (2e-5, 0.5, 3)
    assert loaded.config.behavior_learning_rate == 2e-5
    assert not hasattr(loaded, "dummy")
    assert "SAVED MODEL SYSTEM INFO" in capsys.readouterr().out
    with pytest.raises(ValueError, match="gamma=7"):
        QGPO.load("agent", device="cpu", custom_objects={"gamma": 7.0})
    with pytest.raises(CheckpointError, match="does not fit"):
        QGPO.load("agent", device="cpu", custom_objects={"critic_hidden": (9, 9)})


@pytest.mark.parametrize(
    ("field", "value"),
    [("verbose", "loud"), ("verbose", 2.5), ("tensorboard_log", 3), ("tensorboard_log", ["a"])],
)
def test_neither_agent_nor_file_has_a_setting_of_another_type(field, value):
    agent = bc(env=Walk())
    with pytest.raises(ValueError, match=f"^{field}="):
        setattr(agent, field, value)
    with pytest.raises(ValueError, match=f"^{field}="):
        bc(**{field: value})
    agent.save("agent")
    with pytest.raises(ValueError, match=f"^{field}="):
        BC.load("agent", device="cpu", **{field: value})
    rewrite("agent.zip", change_header(**{field: value}))
    with pytest.raises(CheckpointError, match=f"cannot be used: {field}="):
        BC.load("agent", device="cpu")


@pytest.mark.parametrize("verbose", [True, np.int64(1), np.True_])
def test_settings_are_kept_as_the_kind_that_files_have(verbose):
    agent = bc(env=Walk(), verbose=verbose, tensorboard_log=Path("logs"))
    agent.save("agent")
    loaded = BC.load("agent", device="cpu")
    assert (loaded.verbose, loaded.tensorboard_log) == (1, "logs")


def test_open_files_are_written_and_read_and_stay_open():
    agent = bc().learn(make_dataset())
    with tempfile.TemporaryFile() as on_disk, io.BytesIO() as in_memory:
        for file in (on_disk, in_memory):
            for _ in range(2):
                agent.save(file)
            for read in (BC.load, load_agent):
                assert same_agents(read(file, device="cpu"), agent)
            assert not file.closed
    agent.save(Path("folder.with.dots/agent"))
    with Path("folder.with.dots/agent.zip").open("rb") as file:
        assert same_agents(BC.load(file, device="cpu"), agent)
    with pytest.raises(ValueError, match="seekable file in binary mode"):
        agent.save(io.StringIO())


def test_some_parameters_may_be_set_alone():
    agent = bc().learn(make_dataset())
    whole = copy.deepcopy(agent.get_parameters())
    name, *_ = whole["policy"]
    part = {"policy": {name: whole["policy"][name] + 1.0}}
    with pytest.raises(ParameterError, match="missing"):
        agent.set_parameters({**whole, **part})
    with pytest.raises(RuntimeError, match="missing"):  # the kind that SB3 raises
        agent.set_parameters(part)
    assert same_parameters(agent.get_parameters(), whole)
    agent.set_parameters(part, exact_match=False)
    now = agent.get_parameters()["policy"]
    assert torch.equal(now.pop(name), part["policy"][name])
    assert all(torch.equal(now[key], whole["policy"][key]) for key in now)


@pytest.mark.parametrize(
    "wrong",
    [
        {"actor": {}},
        {"policy": "weights"},
        {"policy": {"more": torch.zeros(1)}},
        {"policy": {"mean.weight": None}},
        {"policy.optimizer": {"state": {}}},
    ],
)
def test_what_fits_nowhere_is_refused_also_in_parts(wrong):
    agent = bc(env=Walk())
    before = copy.deepcopy(agent.get_parameters())
    for exact in (True, False):
        with pytest.raises(ParameterError, match="parameters"):
            agent.set_parameters({**before, **wrong}, exact_match=exact)
    assert same_parameters(agent.get_parameters(), before)


# Copies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [copy.deepcopy, lambda agent: pickle.loads(pickle.dumps(agent))])
@pytest.mark.parametrize("stop", [5, 12, None])
def test_a_copy_goes_on_by_itself(how, stop):
    expected = QGPO(WHITENED, device="cpu").learn(make_dataset())
    agent = QGPO(WHITENED, env=Walk(), device="cpu", tensorboard_log="log", verbose=1)
    agent.learn(make_dataset(), StopAfter(stop or 10**6))
    before = copy.deepcopy(agent.get_parameters())
    copied = how(agent)
    assert copied.env is None
    copied.learn(make_dataset(), reset_num_timesteps=False)
    assert same_agents(copied, expected)
    assert same_parameters(agent.get_parameters(), before)
    agent.learn(make_dataset(), reset_num_timesteps=False)
    assert same_agents(agent, expected)
    for one in (agent, copied):
        one.seed_predictions(5)
    assert np.array_equal(agent.predict(ZEROS)[0], copied.predict(ZEROS)[0])
    assert copied.policy.agent is copied


# Callbacks --------------------------------------------------------------------------------


def test_callbacks_count_gradient_steps_also_where_a_stage_has_none():
    count = Count()
    config = replace(WHITENED, guidance="dps", beta=0.1, guidance_bound=1.0)
    agent = QGPO(config, device="cpu").learn(make_dataset(), count)
    assert count.n_calls == count.num_timesteps == agent.num_timesteps == agent.total_timesteps
    assert sum(agent.progress.values()) > agent.num_timesteps


def evaluation(n=2, log="log/evaluations", freq=4, env=None):
    made = env or DummyVecEnv([Walk])
    return EvaluationCallback(made, n_eval_episodes=n, eval_freq=freq, log_path=str(log))


def evaluated(log="log/evaluations/evaluations.npz"):
    with np.load(log, allow_pickle=False) as file:
        return {name: file[name].tolist() for name in file.files}


@pytest.mark.filterwarnings("ignore:Evaluation environment")
def test_a_resumed_training_is_evaluated_at_the_same_timesteps():
    whole = QGPO(WHITENED, device="cpu")
    whole.learn(make_dataset(), evaluation())
    expected = evaluated()
    assert expected["timesteps"] == list(range(4, whole.total_timesteps + 1, 4))
    Path("log/evaluations/evaluations.npz").unlink()
    for stop in (6, 5):
        whole.learn(make_dataset(), [evaluation(), StopAfter(stop)], reset_num_timesteps=stop == 5)
    whole.learn(make_dataset(), evaluation(), reset_num_timesteps=False)
    assert evaluated() == expected


class Succeeds(Walk):
    """Says at the end that it was a success."""

    def step(self, action):
        observation, reward, over, cut, _ = super().step(action)
        return observation, reward, over, cut, {"is_success": True}


@pytest.mark.filterwarnings("ignore:Evaluation environment")
def test_evaluations_that_cannot_be_continued_are_refused_before_training():
    agent = bc()
    env = DummyVecEnv([Succeeds])
    agent.learn(make_dataset(), [evaluation(env=env), StopAfter(5)])
    file = Path("log/evaluations/evaluations.npz")
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"n_eval_episodes=3, but .* has 2 episodes"):
        agent.learn(make_dataset(), evaluation(3), reset_num_timesteps=False)
    assert (agent.num_timesteps, file.read_bytes()) == (5, before)
    for content in (b"", before[: len(before) // 2], b"text"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="holds no evaluations"):
            agent.learn(make_dataset(), evaluation(), reset_num_timesteps=False)
        assert agent.num_timesteps == 5
    np.savez(file, timesteps=[4], results=[1.0], ep_lengths=[1.0])
    with pytest.raises(ValueError, match="holds no evaluations"):
        agent.learn(make_dataset(), evaluation(), reset_num_timesteps=False)
    file.write_bytes(before)
    agent.learn(make_dataset(), evaluation(env=env), reset_num_timesteps=False)
    assert evaluated()["successes"] == [[True, True], [True, True]]
    assert zipfile.is_zipfile(file)


def test_gym_environments_and_ids_are_monitored():
    for env in (Walk(), "Pendulum-v1", gym.make("Pendulum-v1")):
        assert type(bc(env=env).env.envs[0]).__name__ == "Monitor"
