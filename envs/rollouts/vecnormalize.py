"""SB3's VecNormalize: its statistics, read from its pickle without running any of its code.

`VecNormalize.save` writes a pickle, which could run any code when it is loaded; the numbers are
read from inert records of its objects.
"""

from __future__ import annotations

import reprlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorWrapper
from gymnasium.wrappers import vector
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from qgpo.envs.rollouts.inert import Inert, read_pickle

OBSERVATIONS = (gym.wrappers.NormalizeObservation, vector.NormalizeObservation)
REWARDS = (gym.wrappers.NormalizeReward, vector.NormalizeReward)
"""wrappers of Gymnasium that normalize them"""


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


def normalizer_of(env: Any, of_rewards: bool = False) -> str | None:
    """The name of the wrapper, if any, that normalizes an environment's observations.

    With `of_rewards`, one that normalizes rewards counts, too. `env` is a gymnasium.Env, a
    VectorEnv or an SB3 VecEnv.
    """
    kinds = (*OBSERVATIONS, *(REWARDS if of_rewards else ()))
    if isinstance(env, VecEnv):
        outer = unwrap_vec_normalize(env)
        if outer is not None and (outer.norm_obs or (of_rewards and outer.norm_reward)):
            return "VecNormalize"
        inner = (kind for kind in kinds if issubclass(kind, gym.Wrapper))
        return next((kind.__name__ for kind in inner if any(env.env_is_wrapped(kind))), None)
    while isinstance(env, gym.Wrapper | VectorWrapper):
        if isinstance(env, kinds):
            return type(env).__name__
        env = env.env
    return normalizer_of(env.envs[0], of_rewards) if isinstance(env, SyncVectorEnv) else None


def warn_of_normalized(env: Any) -> None:
    """Warn that an agent which learned from a dataset would see normalized observations."""
    name = normalizer_of(env)
    if name is not None:
        warnings.warn(
            f"the environment normalizes its observations ({name}); the agent was trained on "
            "the observations of its dataset, without these statistics, so its actions and "
            "returns are not meaningful. Pass the environment without that wrapper",
            stacklevel=3,
        )


def read_vecnormalize(path: str | Path) -> Normalization:
    """The observation statistics that `VecNormalize.save(path)` wrote.

    Raises ValueError for other files, and for statistics of Dict observations.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"statistics file {str(path)!r} does not exist")
    try:
        state = read_pickle(path.read_bytes()).state
        if state.get("norm_obs", True) is not True:
            raise ValueError("it was made with norm_obs=False")
        rms = state["obs_rms"].state
        mean, var = _array(rms["mean"]), _array(rms["var"])
        result = Normalization(mean, var, float(state["epsilon"]), float(state["clip_obs"]))
        numbers = [*mean, *var, result.epsilon, result.clip]
        is_valid = mean.shape == var.shape and np.isfinite(numbers).all() and min(var) >= 0.0
        is_valid = is_valid and min(var) + result.epsilon > 0.0 < result.clip and len(var) > 0
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


def _array(record: Inert) -> NDArray[np.float64]:
    """A vector of doubles, as numpy pickles it."""
    if record.name.endswith("_frombuffer"):  # from protocol 5 on
        data, dtype, shape, _ = record.arguments
    else:
        _, shape, dtype, _, data = record.state
    if isinstance(data, Inert):  # _codecs.encode(text, "latin1"), up to protocol 2
        data = data.arguments[0].encode("latin1")
    kind, order = dtype.arguments[0], dtype.state[1]
    if kind not in ("f8", "<f8") or order not in ("<", "=") or len(shape) != 1:
        found = reprlib.repr((kind, order, shape))  # cut short: parts may hold parts without end
        raise ValueError(f"numbers of {found}, expected a vector of doubles")
    if type(shape[0]) is not int or len(data) != 8 * shape[0]:
        raise ValueError(f"{len(data)} bytes for {shape[0]} numbers")
    return np.frombuffer(data, dtype="<f8").copy()
