"""One way to create environments, quietly."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec


@contextlib.contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Keep MuJoCo's deprecation notes about Gymnasium's own models from the user.

    MuJoCo 4 prints one at every creation of HalfCheetah-v5 and leaves a MUJOCO_LOG.TXT in the
    working folder. Other MuJoCo warnings become Python warnings.
    """
    try:
        import mujoco
    except ImportError:
        yield
        return
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(_forward_warning)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(previous)


def _forward_warning(message: str) -> None:
    if "deprecated" not in message:
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=2)


def make_env(env: str | EnvSpec, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """`gymnasium.make` for an id or a spec, with the collector's own wrappers left out.

    Dataset specs may carry wrappers that only made sense while recording (SB3's Monitor).
    """
    if isinstance(env, EnvSpec):
        env = EnvSpec.from_json(env.to_json())
        env.additional_wrappers = ()
    kwargs: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        with quiet_mujoco():
            return gym.make(env, **kwargs)
    except gym.error.Error as error:
        name = env.id if isinstance(env, EnvSpec) else env
        raise ValueError(
            f"environment {name!r} cannot be made: {error}. Registered ids are listed by "
            "gymnasium.pprint_registry(); packages such as gymnasium-robotics must be imported"
        ) from error
