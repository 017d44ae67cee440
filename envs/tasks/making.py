"""Creation of environments, without notes that the user cannot act on."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from qgpo.envs.tasks import robotics
from qgpo.envs.tasks.families import find_family

PACKAGES = {"gymnasium_robotics": (robotics.register, "pip install gymnasium-robotics")}
"""by module: what registers its environments, and how it is installed"""


@contextlib.contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Hide MuJoCo's deprecation notes about Gymnasium's own models.

    MuJoCo 4 prints one whenever HalfCheetah-v5 is created, and leaves a MUJOCO_LOG.TXT in the
    working folder. Other MuJoCo warnings become Python warnings.
    """
    try:
        import mujoco
    except ImportError:
        yield
        return
    except Exception as error:  # OpenGL's bindings raise errors of many types
        raise ValueError(
            f"MuJoCo cannot be imported with MUJOCO_GL={os.environ.get('MUJOCO_GL')!r} "
            f"({type(error).__name__}: {error}); unset it, or set the one of egl, osmesa and glfw "
            "that works on this machine"
        ) from error
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(_forward_warning)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(previous)


def _forward_warning(message: str) -> None:
    if "deprecated" not in message:
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=2)


def _without_code(spec: EnvSpec) -> EnvSpec:
    """The spec without names of code to import."""
    return dataclasses.replace(
        spec, entry_point=None, vector_entry_point=None, additional_wrappers=()
    )


def spec_to_json(spec: EnvSpec) -> str:
    """The spec as JSON, without the names of code to import (entry points, wrappers)."""
    return _without_code(spec).to_json()


def spec_from_json(text: str) -> EnvSpec:
    """The spec that `spec_to_json` wrote. Raises ValueError where the text is no spec.

    Names of code in the text are dropped: `make_env` runs the registered code, so that a file
    cannot choose what runs.
    """
    try:
        return _without_code(EnvSpec.from_json(text))
    except (ValueError, KeyError, TypeError, AttributeError, gym.error.Error) as error:
        raise ValueError(f"environment spec {text[:80]!r} cannot be read ({error})") from error


def _register(env_id: str) -> None:
    """Import the package that the environment's family names."""
    package = find_family(env_id=env_id).package
    if package is None:
        return
    register, install = PACKAGES[package]
    try:
        register()
    except ImportError as error:
        raise ValueError(
            f"environment {env_id!r} needs the package {package}, which cannot be imported "
            f"({error}): {install}"
        ) from error


def as_played(env: str | EnvSpec) -> str | EnvSpec:
    """For an id, the environment by the rules of its family (a maze ends at the goal), if any.

    A spec is returned as it is.
    """
    if not isinstance(env, str):
        return env
    family = find_family(env_id=env)
    if not family.evaluation and family.max_episode_steps is None:
        return env
    _register(env)
    return family.played(gym.spec(env)) or env


def make_env(env: str | EnvSpec, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """`gymnasium.make` for an id or a spec, without the wrappers that recorded a dataset.

    The spec of a dataset may contain wrappers that are only needed for recording (SB3's Monitor),
    and may name an outdated version on purpose. The package of the environment's family is
    imported. A registered id runs the registered code, whatever entry point a spec has.
    """
    if not isinstance(env, str | EnvSpec):
        raise TypeError(
            f"env is a {type(env).__name__}, expected an id such as 'Hopper-v5' or an EnvSpec"
        )
    if isinstance(env, EnvSpec):
        env = EnvSpec.from_json(env.to_json())
        env.additional_wrappers = ()
    kwargs: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    env_id = env.id if isinstance(env, EnvSpec) else env
    _register(env_id)
    if find_family(env_id=env_id).package is not None:
        kwargs["disable_env_checker"] = True  # its notes are for the authors of the package
    try:
        if isinstance(env, EnvSpec) and env_id in gym.registry:
            env.entry_point = gym.registry[env_id].entry_point
        elif isinstance(env, EnvSpec) and env.entry_point is None:
            raise gym.error.UnregisteredEnv("it is not registered")
        with quiet_mujoco(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is out of date.*")
            return gym.make(env, **kwargs)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(
            f"environment {env_id!r} cannot be made: {error}. Registered ids are listed by "
            "gymnasium.pprint_registry(); packages such as gymnasium-robotics must be imported"
        ) from error
