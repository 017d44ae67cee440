"""One battery that every agent passes: fit, predict, files, resume, callbacks, devices.

Each check is a function of a `Subject`; `test_battery.py` runs them over AGENTS.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from factory import make_dataset, mapped, same_parameters
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from qgpo import OfflineDataset
from qgpo.agents import OfflineAgent, load_agent
from qgpo.agents.core.callbacks import EvaluationCallback, EveryStep
from qgpo.agents.core.export.policy import open_session, scale_of
from qgpo.agents.core.training import TrainingStoppedError
from qgpo.agents.guided import support

OBSERVATIONS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
UNEVEN = spaces.Box(
    np.array([-2.0, 0.0], np.float32), np.array([0.5, 3.0], np.float32), dtype=np.float32
)
NARROW = spaces.Box(-0.4, 0.4, (3,), np.float32)


@dataclass(frozen=True)
class Subject:
    """An agent and a configuration with which it trains in a moment."""

    agent_class: type[OfflineAgent[Any]]
    config: Any

    def make(self, seed: int = 0, device: str = "cpu") -> OfflineAgent[Any]:
        return self.agent_class(self.config, seed=seed, device=device)

    def trained(
        self, dataset: OfflineDataset | None = None, seed: int = 0, **more: Any
    ) -> OfflineAgent[Any]:
        return self.make(seed).learn(dataset or make_dataset(), **more)

    def copied(self, seed: int = 0, dataset: OfflineDataset | None = None) -> OfflineAgent[Any]:
        """What `trained` gives, trained once for all tests and copied for each."""
        data = make_dataset() if dataset is None else dataset
        who = self.agent_class, repr(self.config), seed
        key = *who, data.fingerprint, repr(data.action_space), support.ROWS_PER_CHUNK
        if key not in _TRAINED:
            _TRAINED[key] = self.trained(data, seed=seed)
        return copy.deepcopy(_TRAINED[key])


_TRAINED: dict[tuple[Any, ...], OfflineAgent[Any]] = {}


class Walk(gym.Env):
    """Three numbers, actions of the made datasets, three steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 3
        return self.np_random.normal(size=3).astype(np.float32), {}

    def step(self, action):
        self.left -= 1
        observation = self.np_random.normal(size=3).astype(np.float32)
        return observation, float(action[0]), self.left == 0, False, {}


class Count(BaseCallback):
    """Notes the timestep of every call."""

    def __init__(self):
        super().__init__()
        self.steps, self.started, self.ended = [], 0, 0

    def _on_training_start(self):
        self.started += 1

    def _on_step(self):
        self.steps.append(self.num_timesteps)
        return True

    def _on_training_end(self):
        self.ended += 1


class StopAfter(EveryStep):
    """Ends training at the n-th step of whatever stage, with a gradient or not."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def after_step(self, n):
        if n == self.n:
            raise TrainingStoppedError


class Recorder(KVWriter):
    def __init__(self):
        self.rows = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append((step, dict(key_values)))

    def close(self):
        pass


def same_agents(first: OfflineAgent[Any], second: OfflineAgent[Any]) -> bool:
    """Parameters, optimizers, counters and randomness, bit by bit."""
    return (
        same_parameters(first.get_parameters(), second.get_parameters())
        and torch.equal(first.generator.get_state(), second.generator.get_state())
        and (first.progress, first.num_timesteps) == (second.progress, second.num_timesteps)
    )


def stopped_after(
    stops: Iterable[int], agent: OfflineAgent[Any], data: OfflineDataset
) -> OfflineAgent[Any]:
    """One training that is stopped, written and read after each of those steps.

    What one of the files has lost is not there in the end.
    """
    done = 0
    for stop in sorted(set(stops)):
        agent.learn(data, StopAfter(stop - done), reset_num_timesteps=False)
        agent.save("interrupted")
        agent = type(agent).load("interrupted", device="cpu")
        done = sum(agent.progress.values())
        assert done == stop
    return agent.learn(data, reset_num_timesteps=False)


def check_fit(subject: Subject) -> None:
    agent = subject.trained()
    assert agent.num_timesteps == agent.total_timesteps > 0
    assert agent.stage == agent.stages[-1]
    assert set(agent.progress) == set(agent.stages)
    action, state = agent.predict(np.zeros(3))
    assert action.shape == (1,)
    assert state is None


def check_actions_have_the_space_s_shape_and_bounds(subject: Subject) -> None:
    for box in (UNEVEN, NARROW):
        agent = subject.trained(make_dataset(action_space=box))
        observations = np.random.default_rng(0).normal(size=(64, 3)) * 3.0
        for deterministic in (True, False):
            actions, _ = agent.predict(observations, deterministic=deterministic)
            assert actions.shape == (64, *box.shape)
            assert actions.dtype == np.float32
            assert all(box.contains(action) for action in actions)
            single, _ = agent.predict(observations[0], deterministic=deterministic)
            assert single.shape == box.shape
            assert box.contains(single)


def check_single_and_batched_observations_agree(subject: Subject) -> None:
    agent = subject.copied()
    batch, _ = agent.predict(OBSERVATIONS, deterministic=True)
    for observation, action in zip(OBSERVATIONS, batch, strict=True):
        found = agent.predict(observation, deterministic=True)[0]
        np.testing.assert_allclose(found, action, atol=1e-5)
    assert agent.predict(np.zeros((0, 3)))[0].shape == (0, 1)


def check_deterministic_prediction_repeats_and_sampled_varies(subject: Subject) -> None:
    agent = subject.copied()
    observations = np.zeros((8, 3))
    central = agent.predict(observations, deterministic=True)[0]
    assert np.array_equal(central, agent.predict(observations, deterministic=True)[0])
    sampled = agent.predict(observations)[0]
    assert len(np.unique(sampled)) > 1
    assert not np.array_equal(sampled, agent.predict(observations)[0])
    agent.seed_predictions(5)
    first = agent.predict(observations)[0]
    agent.seed_predictions(5)
    assert np.array_equal(first, agent.predict(observations)[0])


def check_predictions_survive_the_file(subject: Subject) -> None:
    agent = subject.copied()
    agent.save("agent")
    for loaded in (
        subject.agent_class.load("agent", device="cpu"),
        load_agent("agent.zip", device="cpu"),
    ):
        assert same_agents(agent, loaded)
        assert loaded.config == agent.config
        assert loaded.observation_space == agent.observation_space
        assert loaded.action_space == agent.action_space
        assert loaded.dataset_id == agent.dataset_id
        for deterministic in (True, False):
            for one in (agent, loaded):
                one.seed_predictions(7)
            np.testing.assert_array_equal(
                loaded.predict(OBSERVATIONS, deterministic=deterministic)[0],
                agent.predict(OBSERVATIONS, deterministic=deterministic)[0],
            )


def check_resumed_equals_uninterrupted(subject: Subject) -> None:
    expected = subject.copied(seed=2)
    steps = sum(expected.progress.values())
    stops = [1, steps // 4, steps // 2, 3 * steps // 4, steps - 1, steps]
    assert same_agents(stopped_after(stops, subject.make(2), make_dataset()), expected)


def check_mapped_data_give_the_same(subject: Subject) -> None:
    data = make_dataset()
    expected = subject.copied(seed=2)
    from_files = mapped(data)
    assert from_files.fingerprint == data.fingerprint
    assert same_agents(subject.trained(from_files, seed=2), expected)
    steps = sum(expected.progress.values())
    stops = range(1, steps, max(1, steps // 3))
    assert same_agents(stopped_after(stops, subject.make(2), from_files), expected)


def check_same_seed_same_parameters(subject: Subject) -> None:
    first = subject.copied(seed=2)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    second = subject.trained(seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert same_agents(first, second)
    assert np.array_equal(first.predict(OBSERVATIONS)[0], second.predict(OBSERVATIONS)[0])
    other = subject.copied()
    assert not same_parameters(first.get_parameters(), other.get_parameters())


def check_learning_anew_repeats_the_first_time(subject: Subject) -> None:
    agent = subject.copied()
    agent.learn(make_dataset())
    assert same_agents(agent, subject.copied())


def check_parameters_can_be_taken_and_given(subject: Subject) -> None:
    agent, other = subject.copied(seed=0), subject.copied(seed=2)
    other.set_parameters(agent.get_parameters())
    assert same_parameters(agent.get_parameters(), other.get_parameters())
    assert not places(agent) & places(other)  # training one does not change the other


def check_a_scale_is_set_where_there_is_one(subject: Subject) -> None:
    agent = subject.copied(seed=0)
    if not hasattr(agent, "guidance_scale"):
        with pytest.raises(AttributeError, match=r"guidance_scale=2.0: .* have no guidance_scale"):
            agent.guidance_scale = 2.0
    elif not agent.fixed_scale:
        agent.guidance_scale = 2.0
        assert agent.guidance_scale == 2.0


def places(agent: OfflineAgent[Any]) -> set[int]:
    """Where the numbers of its networks and optimizers are."""
    states = [s for optimizer in agent.optimizers.values() for s in optimizer.state.values()]
    tensors = [t for state in states for t in state.values() if isinstance(t, torch.Tensor)]
    tensors += agent.networks.state_dict().values()
    return {tensor.data_ptr() for tensor in tensors if tensor.numel()}


def check_metrics_carry_stage_timestep_and_gradient_norm(subject: Subject) -> None:
    recorder = Recorder()
    agent = subject.make()
    agent.set_logger(Logger(None, [recorder]))
    agent.learn(make_dataset(), log_interval=2)
    energy = getattr(agent, "energy", None)
    without_gradients = {"support", "choice", "answers"} | (
        {"energy"} if energy and not energy.trainable else set()
    )
    for step, row in recorder.rows:
        assert row["time/total_timesteps"] == step
        names = [n for n in row if not n.startswith("time/")]
        assert all(n.startswith(row["time/stage"] + "/") for n in names)
        assert all(math.isfinite(row[n]) for n in names)
        has_norm = f"{row['time/stage']}/grad_norm" in names
        assert has_norm == (row["time/stage"] not in without_gradients)
    assert recorder.rows[-1][0] == agent.total_timesteps


def check_checkpoint_callback(subject: Subject) -> None:
    agent = subject.trained(callback=CheckpointCallback(save_freq=5, save_path="saved"))
    found = [subject.agent_class.load(f, device="cpu") for f in Path("saved").glob("*.zip")]
    assert len(found) >= 2
    assert len({a.num_timesteps for a in found}) == len(found)
    assert max(a.num_timesteps for a in found) <= agent.num_timesteps


def check_callback_lists_and_every_n_timesteps(subject: Subject) -> None:
    for wrap in (CallbackList, list):
        counts, fourth = [Count(), Count()], Count()
        agent = subject.trained(callback=wrap([*counts, EveryNTimesteps(4, fourth)]))
        for count in counts:
            assert (count.started, count.ended) == (1, 1)
            assert count.steps == list(range(1, agent.total_timesteps + 1))
            assert count.n_calls == agent.num_timesteps
            assert count.model is agent
        assert fourth.steps == list(range(4, agent.total_timesteps + 1, 4))


def check_functions_in_a_list_and_logging_by_callback(subject: Subject) -> None:
    recorder, seen = Recorder(), []
    agent = subject.make(seed=np.int64(3))
    agent.set_logger(Logger(None, [recorder]))

    def note(scope: dict[str, Any], _: dict[str, Any]) -> bool:
        seen.append(scope["self"].num_timesteps)
        scope["self"].logger.record("noted", seen[-1])
        return True

    agent.learn(make_dataset(), [note, LogEveryNTimesteps(4)], log_interval=10**6)
    assert seen[-1] == agent.total_timesteps
    noted = [row["noted"] for _, row in recorder.rows if "noted" in row]
    assert set(range(4, agent.total_timesteps, 4)) <= set(noted)


def check_a_callback_ends_training_quietly(subject: Subject) -> None:
    agent = subject.trained(callback=lambda scope, _: scope["self"].num_timesteps < 4)
    assert agent.num_timesteps == 4


def evaluations(callback: BaseCallback) -> dict[str, list[Any]]:
    with np.load("log/evaluations.npz", allow_pickle=False) as file:
        return {name: file[name].tolist() for name in file.files}


def check_sb3_s_evaluation_with_an_environment(subject: Subject) -> None:
    agent = subject.agent_class(subject.config, env=Walk(), device="cpu")
    evaluate = EvalCallback(
        DummyVecEnv([Walk]), n_eval_episodes=2, eval_freq=5, log_path="log", verbose=0, warn=False
    )
    agent.learn(make_dataset(), [evaluate, ProgressBarCallback()])
    found = evaluations(evaluate)
    assert set(found) == {"timesteps", "results", "ep_lengths"}
    assert np.shape(found["results"]) == (len(found["timesteps"]), 2)


def check_our_evaluation_without_an_environment(subject: Subject) -> None:
    def callback(threshold: float) -> EvaluationCallback:
        stop = StopTrainingOnRewardThreshold(reward_threshold=threshold)
        return EvaluationCallback(DummyVecEnv([Walk]), stop, None, 2, 5, "log", "best", verbose=0)

    agent = subject.trained(callback=callback(1e9))
    found = evaluations(callback)
    assert set(found) == {"timesteps", "results", "ep_lengths"}
    assert found["timesteps"] == sorted(found["timesteps"])
    assert np.shape(found["results"]) == (len(found["timesteps"]), 2)
    assert set(np.ravel(found["ep_lengths"])) == {3}
    assert subject.agent_class.load("best/best_model", device="cpu").num_timesteps > 0
    assert agent.num_timesteps == agent.total_timesteps
    stopped = subject.trained(callback=callback(-1e9))
    assert stopped.num_timesteps < agent.num_timesteps
    stopped.learn(make_dataset(), callback(1e9), reset_num_timesteps=False)
    again = evaluations(callback)["timesteps"]
    assert again == sorted(set(again))
    assert len(again) >= len(found["timesteps"]) - 1
    resumed = callback(1e9)
    agent.learn(make_dataset(), resumed, reset_num_timesteps=False)
    assert resumed.best_mean_reward == np.mean(evaluations(callback)["results"], axis=1).max()


def check_sb3_s_evaluate_policy(subject: Subject) -> None:
    agent = subject.copied()
    rewards, lengths = evaluate_policy(
        agent, DummyVecEnv([Walk, Walk]), 4, return_episode_rewards=True, warn=False
    )
    assert len(rewards) == 4
    assert set(lengths) == {3}


def check_the_exported_file_acts_alike(subject: Subject) -> None:
    pytest.importorskip("onnxruntime")
    agent = subject.copied()
    for deterministic in (True, False):
        path = agent.export_onnx("policy", deterministic, overwrite=True)
        session = open_session(str(path))
        observations = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
        for rows in (observations[:1], observations):
            agent.seed_predictions(3)
            expected = agent.predict(rows, deterministic=deterministic)[0]
            agent.seed_predictions(3)
            inputs = {"observation": rows, **noise_of(agent, rows, deterministic)}
            assert {entry.name for entry in session.get_inputs()} == set(inputs)
            (found,) = session.run(None, inputs)
            assert found.dtype == expected.dtype
            near = np.abs(found - expected).max(axis=-1) < 1e-5
            assert near.mean() >= 1.0 if deterministic else near.mean() >= 0.95


def noise_of(agent: Any, rows: np.ndarray, deterministic: bool) -> dict[str, np.ndarray]:
    """What `predict` draws for those observations from here, as an exported file takes it."""
    drawn = []

    def draw(*shape: int) -> torch.Tensor:
        noise = torch.randn(shape, generator=agent.prediction_generator)
        axis = max(len(shape) - 2, 0)
        own = (*shape[:axis], len(rows), shape[axis] // len(rows), *shape[axis + 1 :])
        drawn.append(noise.reshape(own).movedim(axis, 0).flatten(1))
        return noise

    scale = scale_of(agent)
    given = None if scale is None else torch.tensor(scale.tolist())
    agent.acting_on(draw, given).act(torch.as_tensor(rows), deterministic)
    return {"noise": torch.cat(drawn, dim=1).numpy()} if drawn else {}


def check_moves_between_devices(subject: Subject) -> None:
    agent = subject.copied()
    agent.save("agent")
    expected = agent.predict(OBSERVATIONS, deterministic=True)[0]
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        moved = subject.agent_class.load("agent", device=device)
        assert moved.device.type == device
        found = moved.predict(OBSERVATIONS, deterministic=True)[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        moved.learn(make_dataset(), reset_num_timesteps=False)
        moved.save("moved")
        back = subject.agent_class.load("moved", device="cpu")
        np.testing.assert_allclose(
            back.predict(OBSERVATIONS, deterministic=True)[0], expected, atol=1e-4
        )


CHECKS: dict[str, Callable[[Subject], None]] = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}
