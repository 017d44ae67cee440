"""Small datasets of gymnasium-robotics, laid out as the remote ones: ids, spaces, specs, infos."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer

from qgpo.envs.rollouts.scripted_policies import WaypointPolicy
from qgpo.envs.store.writing import write_minari
from qgpo.envs.tasks.making import make_env
from qgpo.envs.tasks.observations import stack

R, G = "r", "g"
U_WITH_GOAL = [[1, 1, 1, 1, 1], [1, G, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
MEDIUM_WITH_ENDS = [
    [1, 1, 1, 1, 1, 1, 1, 1],
    [1, R, 0, 1, 1, 0, 0, 1],
    [1, 0, 0, 1, 0, 0, 0, 1],
    [1, 1, 0, 0, 0, 1, 1, 1],
    [1, 0, 0, 1, 0, 0, 0, 1],
    [1, 0, 1, 0, 0, 1, 0, 1],
    [1, 0, 0, 0, 1, 0, G, 1],
    [1, 1, 1, 1, 1, 1, 1, 1],
]
KITCHEN_TASKS = ["microwave", "kettle", "light switch", "slide cabinet"]


def needs_robotics() -> None:
    pytest.importorskip(
        "gymnasium_robotics", reason="needs gymnasium-robotics: pip install gymnasium-robotics"
    )


def with_arguments(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """The environment with these arguments; max_episode_steps is one of the spec."""
    made = make_env(env_id)
    limit = kwargs.pop("max_episode_steps", made.spec.max_episode_steps)
    kwargs = {**made.spec.kwargs, **kwargs}
    return make_env(dataclasses.replace(made.spec, kwargs=kwargs, max_episode_steps=limit))


class Recorder:
    """Episodes as they are played, cut wherever the caller says."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env, self.episodes = env, []

    def begin(self, observation: Any, info: dict[str, Any]) -> None:
        self.observations, self.infos = [observation], [bool(info.get("success", False))]
        self.actions, self.rewards = [], []

    def step(self, action: Any) -> tuple[Any, dict[str, Any], bool]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.observations.append(observation)
        self.infos.append(bool(info.get("success", False)))
        self.actions.append(action)
        self.rewards.append(float(reward))
        return observation, info, terminated or truncated

    def end(self, terminated: bool = False) -> None:
        last = np.arange(len(self.rewards)) == len(self.rewards) - 1
        self.episodes.append(
            EpisodeBuffer(
                observations=stack(self.observations),
                actions=np.asarray(self.actions),
                rewards=self.rewards,
                terminations=list(last & terminated),
                truncations=list(last & (not terminated)),
                infos={"success": np.asarray(self.infos)},
            )
        )


def write_pointmaze(dataset_id: str = "D4RL/pointmaze/umaze-v2", n_episodes: int = 2) -> Recorder:
    """A new goal whenever one is reached, which ends the episode; the next one goes on from there.

    Its first observation is the last one of the episode before, with that one's goal.
    """
    env = with_arguments(
        "PointMaze_UMaze-v3", continuing_task=True, reset_target=True, max_episode_steps=10**6
    )
    recorder, policy = Recorder(env), WaypointPolicy(env)
    generator = torch.Generator().manual_seed(0)
    observation, info = env.reset(seed=123)
    recorder.begin(observation, info)
    while len(recorder.episodes) < n_episodes:
        batch = stack([observation])
        observation, info, _ = recorder.step(policy.act(batch, generator)[0])
        if info["success"]:
            recorder.end()
            recorder.begin(observation, info)
    played = with_arguments(
        "PointMaze_UMaze-v3", maze_map=U_WITH_GOAL, continuing_task=True, reset_target=False
    )
    write(dataset_id, recorder, played.spec)
    return recorder


def write_antmaze(dataset_id: str = "D4RL/antmaze/medium-play-v1") -> Recorder:
    """Random actions for 30 steps; in every second episode the goal lies where the ant starts.

    As in the remote data, nothing ends when the goal is reached, and rewards go on.
    """
    env = with_arguments(
        "AntMaze_Medium-v4", continuing_task=True, reset_target=False, max_episode_steps=30
    )
    recorder = Recorder(env)
    env.action_space.seed(0)
    for k in range(4):
        observation, info = env.reset(seed=k)
        if k % 2 == 1:
            env.unwrapped.goal = observation["achieved_goal"] + 0.1
            observation["desired_goal"] = env.unwrapped.goal.copy()
        recorder.begin(observation, info)
        over = False
        while not over:
            *_, over = recorder.step(env.action_space.sample())
        recorder.end()
    eval_spec = dataclasses.replace(
        env.spec, kwargs={**env.spec.kwargs, "maze_map": MEDIUM_WITH_ENDS}, max_episode_steps=1000
    )
    write(dataset_id, recorder, eval_spec)
    return recorder


def write_kitchen(dataset_id: str = "D4RL/kitchen/partial-v2") -> Recorder:
    """Random actions for 20 steps; doors are moved by hand: episode k completes k of four tasks.

    As in the remote data, the reward is the number of tasks that are done at that step.
    """
    from gymnasium_robotics.envs.franka_kitchen.kitchen_env import (
        OBS_ELEMENT_GOALS,
        OBS_ELEMENT_INDICES,
    )

    env = with_arguments(
        "FrankaKitchen-v1",
        tasks_to_complete=KITCHEN_TASKS,
        remove_task_when_completed=False,
        terminate_on_tasks_completed=False,
        max_episode_steps=20,
    )
    recorder = Recorder(env)
    env.action_space.seed(0)
    for k in range(5):
        recorder.begin(*env.reset(seed=k))
        for step in range(20):
            for task in KITCHEN_TASKS[: k if step >= 10 else 0]:
                env.unwrapped.data.qpos[OBS_ELEMENT_INDICES[task]] = OBS_ELEMENT_GOALS[task]
            recorder.step(env.action_space.sample())
        recorder.end()
    write(dataset_id, recorder, dataclasses.replace(env.spec, max_episode_steps=280))
    return recorder


def write_adroit(task: str, dataset_id: str) -> Recorder:
    """Random actions for 25 steps."""
    env = with_arguments(f"AdroitHand{task}-v1", max_episode_steps=200)
    recorder = Recorder(env)
    env.action_space.seed(0)
    for k in range(3):
        recorder.begin(*env.reset(seed=k))
        for _ in range(25):
            recorder.step(env.action_space.sample())
        recorder.end()
    write(dataset_id, recorder)
    return recorder


def write(dataset_id: str, recorder: Recorder, eval_spec: EnvSpec | None = None) -> None:
    env_spec = recorder.env.spec
    write_minari(dataset_id, recorder.episodes, env_spec, "by hand", "tiny", eval_spec)
