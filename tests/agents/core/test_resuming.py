from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from agent_tester import StopAfter
from factory import CONFIGS, STACKED, WHITENED, make_dataset, same_parameters
from stable_baselines3.common.callbacks import BaseCallback

from qgpo import QGPO
from qgpo.agents.core.training import on_signals, until_done

OBSERVATIONS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
# 20 rows of states, 3 support actions, chunks of 12 rows of actions: 5 steps of 4 states
SUPPORT_STEPS = 5


def stage_ends(config):
    sizes = {
        "whitening": config.whitening_steps,
        "behavior": config.behavior_steps,
        "support": SUPPORT_STEPS,
        "critic": config.critic_steps,
        "energy": config.energy_steps,
    }
    return dict(zip(sizes, np.cumsum(list(sizes.values())).tolist(), strict=True))


def interruptions():
    """After the first step, in the middle and after the last step of every stage."""
    for name, config in sorted(CONFIGS.items()):
        begin = 0
        for stage, end in stage_ends(config).items():
            for step in sorted({begin + 1, (begin + end) // 2, end}):
                if begin < step <= end:
                    yield pytest.param(name, step, id=f"{name}-{stage}-{step - begin}")
            begin = end


@pytest.fixture(scope="module")
def uninterrupted():
    """Parameters of undisturbed runs, by configuration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qgpo.agents.guided.support.ROWS_PER_CHUNK", 12)
        return {
            name: QGPO(config, seed=2, device="cpu").learn(make_dataset())
            for name, config in CONFIGS.items()
        }


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("name", "stop"), list(interruptions()))
def test_resumed_training_equals_uninterrupted_training(name, stop, uninterrupted):
    agent = QGPO(CONFIGS[name], seed=2, device="cpu")
    agent.learn(make_dataset(), callback=StopAfter(stop))
    assert sum(agent.progress.values()) == stop
    agent.save("interrupted")
    resumed = QGPO.load("interrupted", device="cpu")
    assert resumed.progress == agent.progress
    resumed.learn(make_dataset(), reset_num_timesteps=False)
    expected = uninterrupted[name]
    assert resumed.num_timesteps == expected.num_timesteps
    assert same_parameters(resumed.get_parameters(), expected.get_parameters())
    assert torch.equal(resumed.generator.get_state(), expected.generator.get_state())
    np.testing.assert_array_equal(
        resumed.predict(OBSERVATIONS, deterministic=True)[0],
        expected.predict(OBSERVATIONS, deterministic=True)[0],
    )


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_two_critics_resume_as_one_does(steps):
    config = STACKED
    whole = QGPO(config, seed=2, device="cpu").learn(make_dataset())
    agent = QGPO(config, seed=2, device="cpu")
    agent.learn(make_dataset(), lambda scope, _: scope["self"].progress["critic"] < steps)
    agent.save("interrupted")
    resumed = QGPO.load("interrupted", device="cpu")
    resumed.learn(make_dataset(), reset_num_timesteps=False)
    assert same_parameters(resumed.get_parameters(), whole.get_parameters())


@pytest.mark.usefixtures("small_chunks")
def test_stopped_twice_and_continued_in_memory(uninterrupted):
    agent = QGPO(WHITENED, seed=2, device="cpu")
    for stop in (4, 8, 100):
        agent.learn(make_dataset(), callback=StopAfter(stop), reset_num_timesteps=False)
    assert same_parameters(agent.get_parameters(), uninterrupted["whitened"].get_parameters())


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_the_step_and_leaves_a_fit_agent(number, uninterrupted):
    agent = QGPO(WHITENED, seed=2, device="cpu")
    former = signal.getsignal(number)

    def send(scope, _):
        if sum(scope["self"].progress.values()) == 15:
            os.kill(os.getpid(), number)
        return True

    with pytest.raises(KeyboardInterrupt):
        agent.learn(make_dataset(), callback=send)
    assert signal.getsignal(number) is former
    assert sum(agent.progress.values()) == 15
    agent.save("interrupted")
    resumed = QGPO.load("interrupted", device="cpu")
    resumed.learn(make_dataset(), reset_num_timesteps=False)
    assert same_parameters(resumed.get_parameters(), uninterrupted["whitened"].get_parameters())


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_modules_are_built_leaves_a_whole_agent(number, uninterrupted, monkeypatch):
    agent = QGPO(WHITENED, seed=2, device="cpu")
    build = agent._build_last

    def send(*dims):
        os.kill(os.getpid(), number)
        build(*dims)

    monkeypatch.setattr(agent, "_build_last", send)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(make_dataset())
    assert sum(agent.progress.values()) == 0
    agent.save("interrupted")
    resumed = QGPO.load("interrupted", device="cpu")
    resumed.learn(make_dataset(), reset_num_timesteps=False)
    assert same_parameters(resumed.get_parameters(), uninterrupted["whitened"].get_parameters())


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_half_built_modules_are_no_agent(error, monkeypatch, uninterrupted):
    agent = QGPO(WHITENED, seed=2, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(agent, "_build_last", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(error):
            agent.train_behavior(make_dataset())
    with pytest.raises(RuntimeError, match="nothing to save"):
        agent.save("half")
    monkeypatch.setattr("qgpo.agents.guided.support.ROWS_PER_CHUNK", 12)
    agent.learn(make_dataset())
    assert same_parameters(agent.get_parameters(), uninterrupted["whitened"].get_parameters())


def test_preparing_that_was_interrupted_is_done_again(monkeypatch, uninterrupted):
    agent = QGPO(WHITENED, seed=2, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr("qgpo.agents.guided.policy.tuned_rewards", lambda *_: [][0])
        with pytest.raises(IndexError):
            agent.train_behavior(make_dataset())
    monkeypatch.setattr("qgpo.agents.guided.support.ROWS_PER_CHUNK", 12)
    agent.learn(make_dataset(), reset_num_timesteps=False)
    assert same_parameters(agent.get_parameters(), uninterrupted["whitened"].get_parameters())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_after_the_last_step_is_seen(number):
    class AtTheEnd(BaseCallback):
        def _on_step(self):
            return True

        def _on_training_end(self):
            os.kill(os.getpid(), number)

    agent = QGPO(WHITENED, seed=2, device="cpu")
    with pytest.raises(KeyboardInterrupt, match="after the last step"):
        agent.learn(make_dataset(), AtTheEnd())
    assert agent.is_trained


def test_a_terminal_that_goes_does_not_stop_what_nohup_started():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with on_signals(lambda *_: None):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, former)


def test_what_is_being_written_is_written_whatever_signals_come():
    done = []
    with pytest.raises(KeyboardInterrupt), until_done():  # noqa: PT012
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            os.kill(os.getpid(), number)
            done.append(number)
    assert len(done) == 4
