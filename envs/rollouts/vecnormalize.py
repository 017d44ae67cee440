"""SB3's VecNormalize: its statistics, read from its pickle without running any of its code.

`VecNormalize.save` writes a pickle, which could run any code when it is loaded. Here every object
in it becomes an inert record of its name, arguments and state; the numbers are read from those.
"""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorWrapper
from gymnasium.wrappers.vector import NormalizeObservation
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize


@dataclass
class Normalization:
    """What VecNormalize does to an observation: scaled by mean and var (S,), then clipped."""

    mean: NDArray[np.float64]
    var: NDArray[np.float64]
    epsilon: float
    clip: float

    def __call__(self, observations: NDArray[np.floating]) -> NDArray[np.float64]:
        """(B, S) to (B, S)."""
        scaled = (observations - self.mean) / np.sqrt(self.var + self.epsilon)
        return np.clip(scaled, -self.clip, self.clip)


def normalizer_of(env: Any) -> str | None:
    """The name of the wrapper, if any, that normalizes an environment's observations.

    In a gymnasium.Env, a VectorEnv or an SB3 VecEnv.
    """
    if isinstance(env, VecEnv):
        outer = unwrap_vec_normalize(env)
        if outer is not None and outer.norm_obs:
            return "VecNormalize"
        inner = any(env.env_is_wrapped(gym.wrappers.NormalizeObservation))
        return "NormalizeObservation" if inner else None
    while isinstance(env, gym.Wrapper | VectorWrapper):
        if isinstance(env, gym.wrappers.NormalizeObservation | NormalizeObservation):
            return "NormalizeObservation"
        env = env.env
    return normalizer_of(env.envs[0]) if isinstance(env, SyncVectorEnv) else None


def warn_of_normalized(env: Any) -> None:
    """Warn that an agent which learned from a dataset would see normalized observations."""
    name = normalizer_of(env)
    if name is not None:
        warnings.warn(
            f"the environment normalizes its observations ({name}); the agent learned from those "
            "of its dataset and never saw these statistics, so that its actions and returns mean "
            "little. Give it the environment without that wrapper",
            stacklevel=3,
        )


class _Inert:
    """Stands for an object of the pickle: keeps what the object is made from, and does nothing."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *arguments: Any) -> _Inert:
        made = object.__new__(cls)
        made.arguments = arguments
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Parts of a mapping are not needed."""

    def append(self, value: Any) -> None:
        """Parts of a sequence are not needed."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return type(name, (_Inert,), {"name": f"{module}.{name}"})


def read_vecnormalize(path: str | Path) -> Normalization:
    """The observation statistics that `VecNormalize.save(path)` wrote.

    Raises ValueError for other files, and for statistics of Dict observations.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"statistics file {str(path)!r} does not exist")
    try:
        with path.open("rb") as file:
            state = _Reader(file).load().state
        rms = state["obs_rms"].state
        mean, var = _array(rms["mean"]), _array(rms["var"])
        result = Normalization(mean, var, float(state["epsilon"]), float(state["clip_obs"]))
        numbers = [*mean, *var, result.epsilon, result.clip]
        is_valid = mean.shape == var.shape and np.isfinite(numbers).all() and min(var) >= 0.0
    except Exception as error:  # a pickle may contain anything
        raise ValueError(
            f"{str(path)!r} holds no observation statistics of a VecNormalize with a vector of "
            f"observations ({type(error).__name__}: {error}); expected the file that "
            "VecNormalize.save() writes"
        ) from error
    if not is_valid:
        raise ValueError(
            f"{str(path)!r} holds statistics that are not finite, or negative variances"
        )
    return result


def _array(record: _Inert) -> NDArray[np.float64]:
    """A vector of doubles, as numpy pickles it."""
    if record.name.endswith("_frombuffer"):  # from protocol 5 on
        data, dtype, shape, _ = record.arguments
    else:
        _, shape, dtype, _, data = record.state
    if isinstance(data, _Inert):  # _codecs.encode(text, "latin1"), up to protocol 2
        data = data.arguments[0].encode("latin1")
    if dtype.arguments[0] not in ("f8", "<f8") or len(shape) != 1:
        raise ValueError(f"{dtype.arguments[0]!r} numbers of shape {shape}, expected a vector")
    return np.frombuffer(data, dtype="<f8").copy()
