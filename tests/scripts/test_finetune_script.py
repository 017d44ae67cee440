"""scripts/finetune.py: on from a run, on again after a stop, and what it refuses."""

from __future__ import annotations

import signal
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from factory import STACKED, same_parameters
from gymnasium import spaces
from gymnasium.envs.classic_control import PendulumEnv

from qgpo import BC, QGPO, OfflineDataset, load_agent, load_dataset
from qgpo.agents.core import collected
from qgpo.agents.core.callbacks import SaveCheckpoint
from qgpo.envs.store.writing import write_minari
from qgpo.experiments.folder import RunFolder
from qgpo.scripts import evaluate, finetune

DATASET = "mine/short/p-v0"
SHORT = ("--eval-every", "10", "--n-episodes", "2", "--checkpoint-every", "7")
ONLINE = ("--online.play-first", "4", "--online.learn-every", "5", "--online.no-try-scales")


@pytest.fixture
def run(short_pendulum):
    """A run folder of an agent that was trained on five steps of Pendulum at a time."""
    rng = np.random.default_rng(0)
    data = OfflineDataset.from_arrays(
        rng.normal(size=(48, 3)).astype(np.float32),
        rng.uniform(-2.0, 2.0, (40, 1)).astype(np.float32),
        rewards=rng.normal(size=40),
        terminations=np.zeros(40, bool),
        truncations=np.arange(40) % 5 == 4,
        action_space=spaces.Box(-2.0, 2.0, (1,)),
        env_spec=gym.spec("Pendulum-v1"),
        id=DATASET,
    )
    write_minari(DATASET, data)
    QGPO(STACKED, device="cpu").learn(load_dataset(DATASET)).save("runs/one/checkpoint")


def call(*words, timesteps=22):
    given = ["--run", "runs/one", "--timesteps", str(timesteps), *SHORT, *ONLINE, *words]
    finetune.main(finetune.tyro.cli(finetune.Args, args=given), given)


def test_it_learns_evaluates_and_saves(run, capsys):
    call()
    assert "22 steps in the environment: runs/one-online/checkpoint.zip" in capsys.readouterr().out
    agent = load_agent("runs/one-online/checkpoint.zip", device="cpu")
    assert agent.num_timesteps == 22
    assert agent.online_config.learn_every == 5
    assert collected.collected_rows(agent.training) == (27, 22)
    evaluations = np.load("runs/one-online/evaluations.npz")
    assert evaluations["timesteps"].tolist() == [10, 20]
    assert evaluations["results"].shape == (2, 2)
    words = ["--run", "runs/one-online", "--n-episodes", "1", "--env-id", "Pendulum-v1"]
    evaluate.main(evaluate.tyro.cli(evaluate.Args, args=words))
    assert "QGPO from runs/one-online" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="exists: go on from it with --resume"):
        call()


def test_one_that_was_stopped_before_it_saved_cannot_go_on(run, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("qgpo.scripts.finetune.to_play", stop)
    with pytest.raises(SystemExit) as stopped:
        call("--output", "nothing")
    assert str(stopped.value) == "\nstopped"


def test_a_stopped_one_goes_on_as_if_it_had_not_stopped(run, monkeypatch):
    call("--output", "whole")
    saves = SaveCheckpoint.after_step

    def stop(self, n):
        saves(self, n)
        if n == 13:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(SaveCheckpoint, "after_step", stop)
    with pytest.raises(SystemExit, match=r"stopped after step 13 .*continue with: .*--resume"):
        call("--output", "stopped")
    monkeypatch.setattr(SaveCheckpoint, "after_step", saves)
    call("--output", "stopped", "--resume")
    parameters = [
        load_agent(f"{name}/checkpoint.zip", device="cpu").get_parameters()
        for name in ("whole", "stopped")
    ]
    assert same_parameters(*parameters)
    evaluations = [np.load(f"{name}/evaluations.npz") for name in ("whole", "stopped")]
    for name in ("timesteps", "results"):
        np.testing.assert_array_equal(*(found[name] for found in evaluations))


class Failing(PendulumEnv):
    """Pendulum, which fails in its 13th step."""

    steps = 0

    def step(self, action):
        Failing.steps += 1
        if Failing.steps == 13:
            raise ConnectionResetError("the robot went away")
        return super().step(action)


def test_an_environment_that_fails_loses_no_episode(run, monkeypatch):
    call("--output", "whole", "--n-episodes", "0")
    Failing.steps = 0
    gym.register("Failing-v0", Failing, max_episode_steps=5)
    try:
        words = ("--n-episodes", "0", "--env-id", "Failing-v0", "--checkpoint-every", "100")
        with pytest.raises(SystemExit, match=r"went away\. 10 steps.* are in .*--resume"):
            call("--output", "failed", *words)
    finally:
        del gym.registry["Failing-v0"]
    agent = load_agent("failed/checkpoint.zip", device="cpu")
    assert collected.collected_rows(agent.training)[1] == 10
    call("--output", "failed", "--n-episodes", "0", "--resume")
    both = [load_agent(f"{name}/checkpoint.zip", device="cpu") for name in ("whole", "failed")]
    assert same_parameters(*(agent.get_parameters() for agent in both))


def test_the_folder_of_a_file_is_named_after_it(run):
    assert finetune.Args(Path("a/b/checkpoint.zip")).folder == Path("a/b-online")
    assert finetune.Args(Path("a/b/one.zip")).folder == Path("a/b/one-online")
    assert finetune.Args(Path("a/v1.0")).folder == Path("a/v1.0-online")
    here = Path.cwd()
    for name in (".", "checkpoint.zip"):
        assert finetune.Args(Path(name)).folder == here.with_name(f"{here.name}-online")


def test_two_do_not_write_into_one_folder(run):
    with (
        RunFolder(Path("runs/one-online")).locked(),
        pytest.raises(SystemExit, match=r"another process is training in runs/one-online"),
    ):
        call()


def test_a_resumed_one_began_as_the_run(run):
    call(timesteps=6)
    QGPO(STACKED, seed=9, device="cpu").learn(load_dataset(DATASET)).save("runs/two/checkpoint")
    with pytest.raises(SystemExit, match="its seed is 9, and the agent in runs/one-online"):
        call("--run", "runs/two", "--output", "runs/one-online", "--resume")


def test_what_cannot_be_resumed_is_named(run):
    with pytest.raises(SystemExit, match=r"--output runs/one-online: no checkpoint\.zip in it"):
        call("--resume")
    with pytest.raises(SystemExit, match=r"runs/one/checkpoint\.zip has not learned online"):
        call("--output", "runs/one", "--resume")
    call(timesteps=6)
    other = QGPO(STACKED, device="cpu", energy_steps=1).learn(load_dataset(DATASET))
    other.save("runs/two/checkpoint")
    with pytest.raises(SystemExit, match="its energy_steps is 1, and the agent"):
        call("--run", "runs/two", "--output", "runs/one-online", "--resume")
    call("--run", "runs/gone", "--output", "runs/one-online", "--resume", timesteps=8)
    with pytest.raises(SystemExit, match="learn_every=7, but this online training began with"):
        call("--resume", "--online.learn-every", "7", timesteps=8)
    usual = ["--online.learn-every", "1000"], ["--online.learn_every=1000"], ["--online.try-scales"]
    for flag in usual:
        with pytest.raises(SystemExit, match=r"=(1000|True), but this online training began with"):
            call("--resume", *flag, timesteps=8)
    call("--resume", "--online.learn-every", "5", timesteps=8)  # as it began


def test_half_of_the_updates_are_not_saved(run, monkeypatch):
    call("--output", "good", timesteps=6)
    before = Path("good/checkpoint.zip").read_bytes()
    made = []

    def fails(self, data, step, factor):
        made.append(step)
        if len(made) == 2:
            raise MemoryError("no memory")
        return {}

    monkeypatch.setattr(QGPO, "_follow", fails)
    with pytest.raises(MemoryError):
        call("--output", "good", "--resume", "--checkpoint-every", "1000")
    assert Path("good/checkpoint.zip").read_bytes() == before


def test_what_it_refuses(run):
    config = BC.choose_config("laptop")
    BC(config, env="Pendulum-v1", device="cpu").save("runs/bc/checkpoint")
    with pytest.raises(SystemExit, match="a BC agent learns from data alone"):
        call("--run", "runs/bc")
    with pytest.raises(SystemExit, match="the environment has observations"):
        call("--env-id", "MountainCarContinuous-v0")
    with pytest.raises(SystemExit, match="--run nowhere: does not exist"):
        call("--run", "nowhere")
