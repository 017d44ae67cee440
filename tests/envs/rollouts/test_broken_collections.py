"""What an environment, a policy or a caller does wrong while episodes are collected."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

from qgpo import load_dataset
from qgpo.envs import collect, collect_vec_env, write_minari
from qgpo.envs.rollouts.collecting import CollectionError
from qgpo.envs.store.local import datasets_root
from qgpo.scripts import collect as script

ENV_ID = "qgpo-tests/Breaks-v0"
HOWS = {
    "raises": "KeyError: 'gone'",
    "none": "its reward is None",
    "nan": "its reward is nan",
    "huge": "its reward is 1e[+]39",
    "two": r"its reward is array\(\[1., 1.\]\)",
    "observation": r"its observation is array\(\[ *nan",
}


class Breaks(gym.Env):
    """Episodes of two steps; the third one fails in its second step."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    begun = 0

    def __init__(self, how="nothing"):
        self.how = how

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.begun, self.t = self.begun + 1, 0
        return np.zeros(1), {}

    def step(self, action):
        self.t += 1
        how = self.how if (self.begun, self.t) == (3, 2) else "nothing"
        if how == "raises":
            raise KeyError("gone")
        rewards = {"none": None, "nan": np.nan, "huge": 1e39, "two": np.ones(2)}
        observation = np.full(1, np.nan if how == "observation" else self.t)
        return observation, rewards.get(how, 1.0), self.t == 2, False, {}


class Zero:
    def predict(self, observation, deterministic=False):
        return np.zeros((len(observation), 1), np.float32), None


@pytest.fixture(autouse=True, params=["nothing"])
def how(request):
    settings = {"max_episode_steps": 9, "disable_env_checker": True}
    kwargs = {"how": request.param}
    gym.register(ENV_ID, entry_point=f"{__name__}:Breaks", kwargs=kwargs, **settings)
    yield request.param
    gym.registry.pop(ENV_ID)


def play(policies=None, **settings):
    settings = {"n_steps": 100, "seed": 0, "progress_bar": False, **settings}
    return collect(ENV_ID, lambda _: [Zero()] if policies is None else policies, **settings)


@pytest.mark.parametrize("how", HOWS, indirect=True)
def test_episodes_that_ended_are_kept(how):
    with pytest.raises(CollectionError, match=rf"Breaks-v0 failed: seed \d+, step 1: {HOWS[how]}"):
        play()
    with pytest.raises(CollectionError, match="20 episodes had ended") as caught:
        play()
    assert [episode.rewards for episode in caught.value.episodes] == [[1.0, 1.0]] * 20


@pytest.mark.parametrize("how", ["raises", "nan", "observation"], indirect=True)
def test_episodes_of_a_vector_environment_are_kept(how):
    envs = DummyVecEnv([lambda: gym.make(ENV_ID)])
    with pytest.raises(CollectionError, match=r"DummyVecEnv failed: .*; 2 episodes") as caught:
        collect_vec_env(Zero(), envs, 50, 0, progress_bar=False)
    assert len(caught.value.episodes) == 2


def test_a_policy_that_fails_later_loses_nothing_and_at_once_raises_its_own():
    class Tires(Zero):
        def __init__(self, left):
            self.left = left

        def predict(self, observation, deterministic=False):
            self.left -= 1
            if self.left < 0:
                raise OSError("tired")
            return super().predict(observation)

    with pytest.raises(OSError, match=r"^tired"):
        play([Tires(0)])
    with pytest.raises(CollectionError, match="OSError: tired; 10 episodes had ended"):
        play([Tires(3)])


@pytest.mark.parametrize("how", ["raises", "none", "observation"], indirect=True)
def test_the_script_keeps_them_in_a_folder_of_their_own(how):
    args = script.Args(ENV_ID, ("uniform",), "mine/breaks-v0", n_steps=100, progress_bar=False)
    with pytest.raises(SystemExit, match=r"error: collecting in .*The episodes are in"):
        script.main(args)
    (kept,) = Path.cwd().glob("qgpo-collected-*")
    with datasets_root(kept):
        assert load_dataset("mine/breaks-v0").n_episodes == 20


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_steps": 0}, "n_steps=0, expected at least 1"),
        ({"n_steps": -1}, "n_steps=-1, expected at least 1"),
        ({"n_steps": float("nan")}, "n_steps=nan, expected an integer"),
        ({"max_episode_steps": 0}, "max_episode_steps=0, expected at least 1"),
        ({"max_episode_steps": 2.5}, "max_episode_steps=2.5, expected an integer"),
        ({"switch_every": 0}, "switch_every=0, expected at least 1"),
        ({"switch_every": float("nan")}, "switch_every=nan, expected an integer"),
        ({"seed": -1}, "seed=-1, expected an integer of at least 0"),
        ({"seed": None}, "seed=None, expected an integer"),
        ({"policies": []}, "returned no policies"),
        ({"policies": Zero()}, "expected a list of policies"),
        ({"policies": [3]}, "3 is not a policy"),
    ],
)
def test_wrong_arguments_are_refused_by_name(settings, said):
    with pytest.raises((ValueError, TypeError), match=said):
        play(**settings)


def test_a_vector_environment_takes_whole_numbers_of_steps():
    envs = DummyVecEnv([lambda: gym.make(ENV_ID)])
    with pytest.raises(ValueError, match="n_steps=nan, expected an integer"):
        collect_vec_env(Zero(), envs, float("nan"), 0)
    assert len(collect_vec_env(Zero(), envs, np.int64(3), np.int64(0), progress_bar=False)) == 2


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
def test_no_dataset_is_written_that_cannot_be_loaded(name):
    arrays = {"observations": np.zeros((4, 1)), "actions": np.zeros((3, 1)), "rewards": [0.0] * 3}
    arrays[name][2] = np.nan
    ends = {"terminations": [False] * 3, "truncations": [False] * 3}
    with pytest.raises(ValueError, match=f"episode 0, step 2: {name} has value nan"):
        write_minari("mine/nan-v0", [EpisodeBuffer(**arrays, **ends)], ENV_ID, "by hand", "tiny")
