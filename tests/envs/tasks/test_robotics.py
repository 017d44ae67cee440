"""Every family of gymnasium-robotics in its real environments, from data to score."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from commands import QUICK, TINY, run
from factory import WHITENED, same_parameters
from gymnasium.vector import SyncVectorEnv
from robotics_data import (
    KITCHEN_TASKS,
    needs_robotics,
    with_arguments,
    write_adroit,
    write_antmaze,
    write_kitchen,
    write_pointmaze,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from qgpo import QGPO, evaluate, load_dataset
from qgpo.agents.core.callbacks import EvaluationCallback
from qgpo.envs.rollouts.scripted_policies import UniformPolicy, WaypointPolicy
from qgpo.envs.tasks.making import make_env
from qgpo.envs.tasks.observations import flat

needs_robotics()


def round_trip(dataset, tmp_path):
    """A tiny agent, trained, saved and loaded."""
    agent = QGPO(WHITENED, seed=0, device="cpu").learn(dataset)
    agent.save(tmp_path / "agent")
    loaded = QGPO.load(tmp_path / "agent", device="cpu")
    assert loaded.adapter == agent.adapter == dataset.adapter
    assert same_parameters(agent.get_parameters(), loaded.get_parameters())
    return loaded


def short(dataset):
    """Settings of an evaluation that takes few steps and is scored all the same."""
    return {"max_episode_steps": 5, "reference": dataset.reference}


class Controller:
    """A scripted policy with the agents' predict, noise included unless deterministic."""

    def __init__(self, policy):
        self.policy, self.generator = policy, torch.Generator().manual_seed(0)

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return self.policy.act(observation, self.generator, deterministic), state


def test_pointmaze(tmp_path):
    recorder = write_pointmaze(n_episodes=4)
    dataset = load_dataset("D4RL/pointmaze/umaze-v2")
    assert dataset.observation_space.shape == (6,)
    # the first step of every episode but the first shows the goal of the one before
    lengths = [len(e.rewards) - (i > 0) for i, e in enumerate(recorder.episodes)]
    assert np.diff([*dataset.episode_starts, len(dataset)]).tolist() == lengths
    goals = np.split(dataset.observations[:, 4:], dataset.episode_starts[1:])
    assert all(len(np.unique(g, axis=0)) == 1 for g in goals)
    assert dataset.episode_returns.tolist() == [1.0] * len(lengths)
    assert dataset.terminations.sum() == len(lengths)
    assert dataset.normalized_score(0.75) == pytest.approx(75.0)
    assert dataset.env_spec.kwargs["continuing_task"] is False
    agent = round_trip(dataset, tmp_path)
    assert evaluate(agent, dataset, 2, **short(dataset)).score in (0.0, 50.0, 100.0)


@pytest.mark.parametrize("maze", ["UMaze", "Medium", "Large"])
def test_the_waypoint_controller_reaches_every_goal(maze):
    env_id = f"PointMaze_{maze}-v3"
    controller = Controller(WaypointPolicy(make_env(env_id)))
    result = evaluate(controller, env_id, 8, deterministic=False)
    assert result.score == pytest.approx(100.0)
    assert result.cut == 0


def test_antmaze(tmp_path):
    recorder = write_antmaze()
    dataset = load_dataset("D4RL/antmaze/medium-play-v1")
    assert dataset.observation_space.shape == (2 + 27 + 2,)
    first = recorder.episodes[0].observations
    expected = [first["achieved_goal"][0], first["observation"][0], first["desired_goal"][0]]
    np.testing.assert_allclose(dataset.states[0], np.concatenate(expected), rtol=1e-6)
    for key, value in dataset.adapter.unflatten(dataset.states[:5]).items():
        np.testing.assert_allclose(value, first[key][:5], rtol=1e-6)
    assert [sum(e.rewards) > 1 for e in recorder.episodes] == [False, True, False, True]
    assert dataset.episode_returns.tolist() == [0.0, 1.0, 0.0, 1.0]
    assert np.diff([*dataset.episode_starts, len(dataset)]).tolist() == [30, 1, 30, 1]
    assert np.flatnonzero(dataset.terminations).tolist() == [30, 61]
    assert dataset.normalized_score(dataset.episode_returns.mean()) == pytest.approx(50.0)
    assert dataset.env_spec.kwargs["maze_map"][1][1] == "r"
    agent = round_trip(dataset, tmp_path)
    result = evaluate(agent, dataset, 3, n_envs=2, **short(dataset))
    assert result.score == pytest.approx(100.0 * result.mean)


def test_antmaze_ends_at_the_goal_with_a_return_of_one(tmp_path):
    write_antmaze("D4RL/antmaze/umaze-v1")
    dataset = load_dataset("D4RL/antmaze/umaze-v1")
    env = make_env(dataset.env_spec)
    env.reset(seed=0)
    assert env.unwrapped.maze.maze_map[1][1] == "g"
    env.unwrapped.goal = env.unwrapped.data.qpos[:2].copy()
    _, reward, terminated, *_ = env.step(np.zeros(8))
    assert (reward, terminated) == (1.0, True)
    result = evaluate(round_trip(dataset, tmp_path), dataset, 2, **short(dataset))
    assert result.score == pytest.approx(100.0 * result.mean)


def test_kitchen(tmp_path):
    recorder = write_kitchen()
    assert max(recorder.episodes[3].rewards) == 3.0
    assert sum(recorder.episodes[3].rewards) > 4.0
    dataset = load_dataset("D4RL/kitchen/partial-v2")
    assert dataset.observation_space.shape == (59,)
    assert dataset.episode_returns.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    lengths = np.diff([*dataset.episode_starts, len(dataset)]).tolist()
    assert lengths == [20, 20, 20, 20, 11]  # all four tasks done after eleven steps
    assert np.flatnonzero(dataset.terminations).tolist() == [90]
    assert dataset.normalized_score(3.0) == pytest.approx(75.0)
    agent = round_trip(dataset, tmp_path)
    assert evaluate(agent, dataset, 2, **short(dataset)).score == 0.0


def test_kitchen_is_played_for_first_completions():
    write_kitchen()
    env = make_env(load_dataset("D4RL/kitchen/partial-v2").env_spec)
    from gymnasium_robotics.envs.franka_kitchen.kitchen_env import (
        OBS_ELEMENT_GOALS,
        OBS_ELEMENT_INDICES,
    )

    env.reset(seed=0)
    for task in KITCHEN_TASKS:
        env.unwrapped.data.qpos[OBS_ELEMENT_INDICES[task]] = OBS_ELEMENT_GOALS[task]
    _, reward, terminated, *_ = env.step(np.zeros(9))
    assert (reward, terminated) == (4.0, True)


@pytest.mark.parametrize(
    ("task", "dataset_id", "dimensions", "limit", "half"),
    [
        ("Pen", "D4RL/pen/human-v2", 45, 100, (96.262799 + 3076.8331) / 2),
        ("Door", "D4RL/door/cloned-v2", 39, 200, (-56.512833 + 2880.5693) / 2),
        ("Hammer", "D4RL/hammer/expert-v2", 46, 200, (-274.856578 + 12794.1348) / 2),
        ("Relocate", "D4RL/relocate/human-v2", 39, 200, (-6.425911 + 4233.8778) / 2),
    ],
)
def test_adroit(task, dataset_id, dimensions, limit, half, tmp_path):
    recorder = write_adroit(task, dataset_id)
    dataset = load_dataset(dataset_id)
    assert dataset.observation_space.shape == (dimensions,)
    returns = [sum(e.rewards) for e in recorder.episodes]
    np.testing.assert_allclose(dataset.episode_returns, returns, rtol=1e-5)
    assert dataset.normalized_score(half) == pytest.approx(50.0)
    assert dataset.env_spec.max_episode_steps == limit
    agent = round_trip(dataset, tmp_path)
    assert np.isfinite(evaluate(agent, dataset, 2, **short(dataset)).score)


def test_predict_takes_dicts_vectors_and_batches(tmp_path):
    write_antmaze()
    dataset = load_dataset("D4RL/antmaze/medium-play-v1")
    agent = round_trip(dataset, tmp_path)
    dataset.env_spec.max_episode_steps = 5
    env = make_env(dataset.env_spec)
    observation, _ = env.reset(seed=0)
    vector = dataset.adapter.flatten(observation)
    single = agent.predict(observation, deterministic=True)[0]
    assert single.shape == (8,)
    np.testing.assert_array_equal(single, agent.predict(vector, deterministic=True)[0])
    batch = {key: np.stack([value, value]) for key, value in observation.items()}
    both = agent.predict(batch, deterministic=True)[0]
    np.testing.assert_allclose(both, np.stack([single, single]), atol=1e-6)
    vectors = DummyVecEnv([lambda: make_env(dataset.env_spec)] * 2)
    assert agent.predict(vectors.reset())[0].shape == (2, 8)
    envs = SyncVectorEnv([lambda: make_env(dataset.env_spec)] * 2)
    assert len(evaluate(agent, envs, 2, max_episode_steps=9).returns) == 2
    with pytest.raises(ValueError, match="desired_goal"):
        agent.predict({key: v for key, v in observation.items() if key != "desired_goal"})


@pytest.mark.parametrize("write", [write_pointmaze, write_kitchen])
def test_stable_baselines_plays_dict_environments(write, tmp_path):
    write()
    recorded = {
        write_pointmaze: "D4RL/pointmaze/umaze-v2",
        write_kitchen: "D4RL/kitchen/partial-v2",
    }
    dataset = load_dataset(recorded[write])
    callback = EvaluationCallback(
        dataset, n_eval_episodes=2, eval_freq=10, log_path=str(tmp_path / "e"), max_episode_steps=4
    )
    agent = QGPO(WHITENED, seed=0, device="cpu").learn(dataset, callback)
    assert np.load(tmp_path / "e" / "evaluations.npz")["ep_lengths"].max() <= 4
    env = flat(make_env(dataset.env_spec))
    assert env.adapter == dataset.adapter
    agent.set_env(make_env(dataset.env_spec))
    assert agent.get_env().observation_space.shape == dataset.observation_space.shape
    assert len(evaluate_policy(agent, env, 1, return_episode_rewards=True, warn=False)[0]) == 1


def test_another_environment_s_parts_are_refused():
    write_pointmaze()
    agent = QGPO(WHITENED, seed=0, device="cpu")
    agent.learn(load_dataset("D4RL/pointmaze/umaze-v2"), lambda *_: False)
    with pytest.raises(ValueError, match=r"expected observation to be a Box of shape \(4,\)"):
        agent.set_env("AntMaze_Medium-v4")


def test_mapped_data_are_the_same():
    write_antmaze()
    source = "D4RL/antmaze/medium-play-v1"
    mapped = load_dataset(source, storage="memmap", progress_bar=False)
    assert mapped.fingerprint == load_dataset(source).fingerprint
    assert mapped.adapter is not None


def test_a_continuing_environment_has_no_success_rate():
    env = with_arguments("PointMaze_UMaze-v3", continuing_task=True)
    result = evaluate(Controller(WaypointPolicy(env)), env.spec, 2, max_episode_steps=200)
    assert result.mean > 1.0
    assert result.score is None


def test_waypoints_refuse_other_environments():
    with pytest.raises(ValueError, match="waypoints need a PointMaze environment, not Pendulum"):
        WaypointPolicy(make_env("Pendulum-v1"))


def test_uniform_actions_fill_the_space():
    env = make_env("AntMaze_Medium-v4")
    batch = {"observation": np.zeros((500, 27))}
    actions = UniformPolicy(env.action_space).act(batch, torch.Generator().manual_seed(0))
    assert actions.shape == (500, 8)
    assert -1.0 <= actions.min() < -0.9 < 0.9 < actions.max() <= 1.0
    middle = UniformPolicy(env.action_space).act(batch, torch.Generator(), deterministic=True)
    assert not middle.any()


def test_command_lines_from_data_to_score(tmp_path):
    data = tmp_path / "minari"
    name = "mine/pointmaze/umaze-v0"
    flags = ["--env-id", "PointMaze_UMaze-v3", "--policy", "waypoints", "--dataset-id", name]
    run("collect", *flags, "--n-steps", "50", cwd=tmp_path, data=data)
    steps = [f"--config.{stage}-steps=2" for stage in ("behavior", "critic", "energy")]
    flags = ["--dataset-id", name, "--run-dir", "run", "--n-episodes", "0", *QUICK, *TINY, *steps]
    run("train", *flags, cwd=tmp_path, data=data)
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert about["dataset"]["family"] == "pointmaze"
    flags = ["--run", "run", "--n-episodes", "2", "--max-episode-steps", "2", "--output", "e.json"]
    run("evaluate", *flags, cwd=tmp_path, data=data)
    evaluation = json.loads((tmp_path / "e.json").read_text())["evaluations"][0]
    assert len(evaluation["returns"]) == 2
    assert evaluation["env_id"] == "PointMaze_UMaze-v3"
    assert evaluation["reference"] is None  # the episodes were too short for it
