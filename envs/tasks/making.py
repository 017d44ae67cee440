"""Creation of environments: registered code alone, without notes that nobody can act on."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import os
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from qgpo.commands import command
from qgpo.envs.tasks import ogbench, robotics
from qgpo.envs.tasks.arguments import SpecError, check_arguments
from qgpo.envs.tasks.families import Family, find_family
from qgpo.envs.tasks.own_modules import import_own
from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.envs.tasks.specs import spec_from_json as spec_from_json  # former place
from qgpo.envs.tasks.specs import spec_to_json as spec_to_json  # former place
from qgpo.envs.tasks.specs import without_rendering
from qgpo.envs.tasks.wrappers import effective, names, steps_per_step, wrap_again

PACKAGES = {
    "gymnasium_robotics": (robotics.register, "pip install gymnasium-robotics"),
    "ogbench": (ogbench.register, ogbench.INSTALL),
}
"""by module: what registers its environments, and how it is installed"""
NOTES = (".*is out of date.*", ".*DISPLAY environment variable is missing.*")
"""regular expressions of warnings on creation that nobody can act on: of Gymnasium for data of
former versions, and of GLFW, which is imported even where nothing is drawn"""


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


def register_package(env_id: str) -> None:
    """Import the package that the environment's family names, where it is installed."""
    with contextlib.suppress(ValueError):
        _register(env_id)


def _register(env_id: str) -> None:
    """Import the package that the environment's family names. Raises ValueError without it."""
    package = find_family(env_id=env_id).package
    if package is None:
        return
    register, install = PACKAGES[package]
    try:
        with quiet_mujoco():
            register()
    except ImportError as error:
        raise ValueError(
            f"environment {env_id!r} needs the package {package}, which cannot be imported "
            f"({error}): {install}"
        ) from error


def import_named(env_id: str) -> str:
    """The id without its module, which is imported; only for ids that a user gave.

    Raises ValueError where the module of `module:Env-v0` cannot be imported.
    """
    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except Exception as error:  # the user's own code
            raise ValueError(
                f"environment {env_id!r} cannot be made: module {module!r} cannot be imported "
                f"({type(error).__name__}: {error}){_path_of(module, error)}"
            ) from error
    return name


def _path_of(module: str, error: Exception) -> str:
    """How a module is found that is not, where that is why it cannot be imported."""
    if not isinstance(error, ModuleNotFoundError) or error.name != module.partition(".")[0]:
        return ""
    return (
        f". The folder of {module}.py must be on PYTHONPATH; where it is this one: "
        f"PYTHONPATH=. {command('train')} --env-id {module}:…"
    )


def as_played(env: str | EnvSpec) -> str | EnvSpec:
    """For an id, the environment by the rules of its family (a maze ends at the goal), if any.

    A spec is returned as it is.
    """
    if not isinstance(env, str):
        return env
    env_id = import_named(env)
    family = find_family(env_id=env_id)
    if not family.evaluation and family.max_episode_steps is None:
        return env_id
    _register(env_id)
    return family.played(gym.spec(env_id)) or env_id


def check_played(env: str | EnvSpec | None) -> None:
    """Raise ValueError where agents do not play in an environment of that id, if it has one."""
    if not isinstance(env, str | EnvSpec):
        return
    env_id = env.id if isinstance(env, EnvSpec) else import_named(env)
    refused = find_family(env_id=env_id).refused
    if refused is not None:
        raise ValueError(f"environment {env_id!r} cannot be used: {refused(env_id)}")


def to_play(
    env_id: str | None, recorded: EnvSpec | None, reference: ReferenceScores | None
) -> tuple[str | EnvSpec | None, ReferenceScores | None]:
    """Where an agent plays by the user's id, if any, and the data's reference returns for that.

    `module:Env-v0` imports the module. If that id is the recorded environment's, the agent plays
    the recorded one, with its arguments, limit and wrappers: the data could name it, but not have
    it imported. The reference returns of the data hold in the recorded environment alone.
    """
    if env_id is None or recorded is None:
        return env_id or recorded, None if env_id else reference
    name = import_named(env_id)
    if name != env_id and name == recorded.id:
        return recorded, reference
    played = as_played(name)
    return name, reference if _same_environment(played, recorded) else None


def _same_environment(played: str | EnvSpec, recorded: EnvSpec) -> bool:
    """Whether ids, arguments, limits and wrappers agree."""
    env_id = played if isinstance(played, str) else played.id
    if env_id != recorded.id:
        return False
    register_package(env_id)
    registered = gym.registry.get(env_id)
    if registered is None:
        return False
    one, other = (
        {
            "kwargs": {**registered.kwargs, **without_rendering(spec.kwargs)},
            "limit": spec.max_episode_steps,
            "wrappers": effective(spec.additional_wrappers),
        }
        for spec in (registered if isinstance(played, str) else played, recorded)
    )
    return one == other


def limit_doubts(spec: EnvSpec) -> Iterator[str]:
    """What is to be said of a spec whose step limit is not the registered one.

    A spec does not say on which side of its wrappers the limit is. `make_env` puts it inside, where
    `gymnasium.make` has it, so that a wrapper that repeats actions leaves fewer steps.
    """
    register_package(spec.id)
    registered = gym.registry.get(spec.id)
    limit, own = spec.max_episode_steps, registered.max_episode_steps if registered else None
    if registered is None or limit == own:
        return
    if own is not None and (limit is None or limit > own):
        stated = "no step limit" if limit is None else f"a limit of {limit} steps"
        yield (
            f"its environment has {stated}, {spec.id} is registered with {own}: episodes may be "
            "longer, and their returns larger, than elsewhere"
        )
    per_step = steps_per_step(spec.additional_wrappers)
    if limit is not None and per_step > 1:
        yield (
            f"its environment has a limit of {limit} steps under "
            f"{', '.join(names(spec.additional_wrappers))}, and the spec does not say whether "
            f"the limit counts the agent's steps or the {per_step} that each of them takes in "
            f"{spec.id}. The latter is assumed, so agents play at most "
            f"{math.ceil(limit / per_step)} steps. If a TimeLimit was the outer wrapper, pass "
            "an environment object to evaluate()"
        )


def make_env(
    env: str | EnvSpec, render_mode: str | None = None, own_modules: bool = True
) -> gym.Env[Any, Any]:
    """`gymnasium.make` for an id or a spec, whose code is always the registered one.

    A spec adds its arguments, its step limit and its wrappers. Wrappers that only watched the
    recording (SB3's Monitor) are left out; Gymnasium's others are made again where they follow
    from their arguments. The spec of a dataset may name an outdated version on purpose. The
    package of the environment's family is imported, of an id `module:Env-v0` the module, and with
    `own_modules` a module of PYTHONPATH that registers the spec's id (see `own_modules.py`). The
    family's wrapper, if any, is the innermost one of all those that a spec adds.

    Raises SpecError for arguments that may name a file or code and for wrappers that cannot be
    made again; ValueError, whatever the environment raised, where it cannot be made.
    """
    if not isinstance(env, str | EnvSpec):
        raise TypeError(
            f"env is a {type(env).__name__}, expected an id such as 'Hopper-v5' or an EnvSpec"
        )
    env_id = env.id if isinstance(env, EnvSpec) else import_named(env)
    _register(env_id)
    kwargs: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    family = find_family(env_id=env_id)
    if family.package is not None:
        kwargs["disable_env_checker"] = True  # its notes are for the authors of the package
    with quiet_mujoco(), warnings.catch_warnings():
        for note in NOTES:
            warnings.filterwarnings("ignore", message=note)
        if isinstance(env, str):
            return _mended(_make(env_id, env_id, kwargs), family)
        if own_modules and env_id not in gym.registry and not callable(env.entry_point):
            _import_own(env_id)
        made = _mended(_make(_with_registered_code(env), env_id, kwargs), family)
        return wrap_again(made, env.additional_wrappers, env_id)


def spaces_of(spec: EnvSpec) -> tuple[gym.Space[Any], gym.Space[Any]] | None:
    """The spaces of observations and actions of one of Gymnasium's own environments.

    None of others: to make somebody's environment may take long, or move a robot. None also where
    it cannot be made here.
    """
    registered = gym.registry.get(spec.id)
    if registered is None or not str(registered.entry_point).startswith("gymnasium.envs."):
        return None
    with contextlib.suppress(ValueError), make_env(spec, own_modules=False) as made:
        return made.observation_space, made.action_space
    return None


def _mended(made: gym.Env[Any, Any], family: Family) -> gym.Env[Any, Any]:
    """The environment in the wrapper of its family, where that has one."""
    return made if family.wrapper is None else family.wrapper(made)


def _with_registered_code(spec: EnvSpec) -> EnvSpec:
    """The registered environment with what the spec says of it.

    A class or a function as entry point is an object of this process, no name from a file.
    """
    registered = gym.registry.get(spec.id, spec if callable(spec.entry_point) else None)
    if registered is None:
        raise SpecError(
            f"environment {spec.id!r} cannot be made: it is not registered, and code that a "
            "dataset or a checkpoint names is never imported. Name the module that registers "
            f"it yourself with --env-id module:{spec.id}, put its folder on PYTHONPATH, import "
            "that module first in Python, or train without evaluation (--n-episodes 0)"
        )
    arguments = without_rendering(spec.kwargs)
    check_arguments(spec.id, arguments, registered.kwargs)
    return dataclasses.replace(
        registered,
        kwargs={**registered.kwargs, **arguments},
        max_episode_steps=spec.max_episode_steps,
    )


def _import_own(env_id: str) -> None:
    """`import_own`. Raises ValueError whatever the user's module raises."""
    try:
        import_own(env_id)
    except Exception as error:
        raise ValueError(
            f"environment {env_id!r} cannot be made: the module of your PYTHONPATH that registers "
            f"it cannot be imported ({type(error).__name__}: {error})"
        ) from error


def _make(env: str | EnvSpec, env_id: str, kwargs: dict[str, Any]) -> gym.Env[Any, Any]:
    """`gymnasium.make`. Raises ValueError whatever it, or the environment, raises."""
    try:
        return gym.make(env, **kwargs)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(
            f"environment {env_id!r} cannot be made: {str(error).rstrip('.')}. Registered ids are "
            "listed by gymnasium.pprint_registry(); packages such as gymnasium-robotics must be "
            f"imported. An environment of your own is named module:{env_id}"
        ) from error
    except Exception as error:  # the environment's own code
        arguments = env.kwargs if isinstance(env, EnvSpec) else {}
        raise ValueError(
            f"environment {env_id!r} cannot be made with the arguments {arguments} "
            f"({type(error).__name__}: {error}). Name another one with --env-id, or train "
            "without evaluation (--n-episodes 0)"
        ) from error
