"""Pieces of Stable-Baselines3's contract: callbacks and environments as SB3 hands them over."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from qgpo.envs.rollouts.vecnormalize import warn_of_normalized
from qgpo.envs.tasks.making import as_played, make_env
from qgpo.envs.tasks.observations import ObservationAdapter, flat


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
) -> VecEnv:
    """A VecEnv from an id, an environment or a VecEnv.

    Dict observations of a single environment become vectors: SB3 takes no Dicts in Dicts.
    Warns of an environment that normalizes its observations.
    """
    warn_of_normalized(env)
    if isinstance(env, VecEnv):
        return env
    single = make_env(as_played(env)) if isinstance(env, str) else env
    if not isinstance(single, gym.Env):
        raise TypeError(
            f"env is a {type(env).__name__}, expected a Gymnasium id, a gymnasium.Env or an SB3 "
            "VecEnv"
        )
    vectors = flat(single, adapter)
    return DummyVecEnv([lambda: Monitor(vectors)])


def space_to_json(space: spaces.Box) -> dict[str, Any]:
    """Bounds and dtype of a Box."""
    low, high = space.low.astype(float).tolist(), space.high.astype(float).tolist()
    return {"low": low, "high": high, "dtype": str(space.dtype)}


def space_from_json(data: dict[str, Any]) -> spaces.Box:
    """The Box that `space_to_json` described."""
    dtype = np.dtype(data["dtype"]).type
    return spaces.Box(np.array(data["low"], dtype), np.array(data["high"], dtype), dtype=dtype)


ADAM = {"step", "exp_avg", "exp_avg_sq"}
"""the state of a parameter in Adam, the only optimizer of the package"""


def check_optimizer_state(name: str, state: Any, optimizer: torch.optim.Optimizer) -> None:
    """Refuse what is no state of that optimizer before anything is loaded."""
    expected = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        groups = [(len(group["params"]), set(group)) for group in state["param_groups"]]
        fits = groups == [(len(group["params"]), set(group)) for group in expected["param_groups"]]
        known = [i for group in state["param_groups"] for i in group["params"]]
        for index, moments in state["state"].items():
            shape = parameters[known.index(index)].shape
            fits = fits and set(moments) >= ADAM and moments["exp_avg"].shape == shape
    except (AttributeError, LookupError, TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            f"parameters of {name!r} are no state of that optimizer, expected 'state' and "
            f"'param_groups' for its {len(parameters)} parameters, as get_parameters() returns them"
        )


def check_state(name: str, state: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a module's parameters before any is loaded."""
    wrong = set(state).symmetric_difference(expected)
    wrong |= {k for k in set(state) & set(expected) if state[k].shape != expected[k].shape}
    if wrong:
        first = sorted(wrong)[0]
        found = tuple(state[first].shape) if first in state else "missing"
        wanted = tuple(expected[first].shape) if first in expected else "not there"
        raise ValueError(
            f"parameters of {name!r} do not fit: {first} is {found}, expected {wanted} (wrong: "
            f"{sorted(wrong)})"
        )
