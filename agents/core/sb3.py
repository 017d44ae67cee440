"""Pieces of Stable-Baselines3's contract: callbacks, environments, policy and logger."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import HumanOutputFormat, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor, nn

from qgpo.agents.core.acting import Acts
from qgpo.envs.rollouts.vecnormalize import warn_of_normalized
from qgpo.envs.tasks.making import as_played, make_env
from qgpo.envs.tasks.observations import FlatObservations, ObservationAdapter, flat
from qgpo.fields import is_integer


class Policy(nn.Module):
    """An agent's networks as one module that acts: what SB3's callbacks know as `model.policy`."""

    def __init__(self, agent: Acts, networks: nn.ModuleDict) -> None:
        super().__init__()
        self.networks = networks
        self.agent = agent

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.agent.device

    @property
    def observation_space(self) -> spaces.Box | None:
        """The agent's."""
        return self.agent.observation_space

    @property
    def action_space(self) -> spaces.Box | None:
        """The agent's."""
        return self.agent.action_space

    def forward(self, observations: Tensor, deterministic: bool = False) -> Tensor:
        """(B, S) to actions (B, A) in [-1, 1]."""
        return self.agent.act(observations, deterministic)

    def predict(
        self,
        observation: NDArray[Any] | dict[str, Any],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """What the agent predicts."""
        return self.agent.predict(observation, state, episode_start, deterministic)


def check_reports(log_interval: object, tb_log_name: object) -> None:
    """Raise ValueError for an interval or a name that a log cannot have."""
    if not is_integer(log_interval) or log_interval < 1:
        raise ValueError(f"log_interval={log_interval!r}, expected an integer of at least 1")
    if not isinstance(tb_log_name, str | None):
        raise ValueError(f"tb_log_name={tb_log_name!r}, expected text")


def make_logger(
    verbose: int, tensorboard_log: str | None, name: str, reset_num_timesteps: bool
) -> Logger:
    """The logger that SB3 would configure, without its folder where nothing is written into one."""
    if tensorboard_log is not None:
        return configure_logger(verbose, tensorboard_log, name, reset_num_timesteps)
    formats: list[Any] = [HumanOutputFormat(sys.stdout)] if verbose else []
    return Logger(folder=None, output_formats=formats)


def as_callback(callback: MaybeCallback) -> BaseCallback:
    """A callback object from whatever `learn` accepts."""
    if callback is None or isinstance(callback, list):
        return CallbackList([as_callback(one) for one in callback or []])
    if isinstance(callback, BaseCallback):
        return callback
    if not callable(callback) or isinstance(callback, type):
        kind = "class" if isinstance(callback, type) else type(callback).__name__
        raise TypeError(
            f"callback is a {kind}, expected an SB3 callback, a list of them, "
            "or a function of (locals, globals)"
        )
    return ConvertCallback(callback)


def as_vec_env(
    env: gym.Env[Any, Any] | VecEnv | str, adapter: ObservationAdapter | None = None
) -> tuple[VecEnv, ObservationAdapter | None]:
    """A VecEnv from an id, an environment or a VecEnv; what makes vectors of its Dicts.

    Dict observations of a single environment become vectors: SB3 takes no Dicts in Dicts.
    Warns of an environment that normalizes its observations.
    """
    warn_of_normalized(env)
    if isinstance(env, VecEnv):
        return env, adapter
    single = make_env(as_played(env)) if isinstance(env, str) else env
    if not isinstance(single, gym.Env):
        raise TypeError(
            f"env is a {type(env).__name__}, expected a Gymnasium id, a gymnasium.Env or an SB3 "
            "VecEnv"
        )
    vectors = flat(single, adapter)
    if isinstance(vectors, FlatObservations):
        adapter = vectors.adapter
    return DummyVecEnv([lambda: Monitor(vectors)]), adapter
