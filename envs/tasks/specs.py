"""Environment specs to and from files: every spec from outside passes `spec_from_json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, WrapperSpec

from qgpo.envs.tasks.arguments import SpecError
from qgpo.envs.tasks.wrappers import effective, names

KEPT = ("id", "reward_threshold", "nondeterministic", "max_episode_steps", "kwargs")
"""of a file's spec, beside its wrappers; the rest is the registered environment's"""


def spec_from_json(text: Any, of: str = "environment spec") -> EnvSpec:
    """The spec that `spec_to_json`, Gymnasium or Minari wrote. Raises SpecError for other text.

    Names of code in the text are dropped, and how the recording was watched (render_mode, SB3's
    Monitor) with them. Wrappers stay as data: `make_env` looks their names up in a table.
    """
    try:
        plain = json.loads(text)
        known = {name: plain[name] for name in KEPT if plain.get(name) is not None}
        _check(known)
        wrappers = tuple(_wrapper(one) for one in plain.get("additional_wrappers") or ())
        return _as_data(EnvSpec(**known, additional_wrappers=wrappers))
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        gym.error.Error,
    ) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise SpecError(f"{of} {str(text)[:80]!r} cannot be read ({reason})") from error


def spec_to_json(spec: EnvSpec) -> str:
    """The spec as JSON, without names of code to import.

    Raises SpecError, which names it, for an argument that JSON cannot hold.
    """
    spec = _as_data(spec)
    for of, kwargs in ((spec.id, spec.kwargs), *_arguments(spec)):
        for name, value in kwargs.items():
            try:
                json.dumps({name: value})
            except (TypeError, ValueError, RecursionError) as error:
                raise SpecError(
                    f"environment {of!r} has the argument {name}={value!r}, which cannot be "
                    f"stored in a file ({error}): register an environment that has this "
                    "argument (gymnasium.register), and use its spec"
                ) from error
    fields = {field.name for field in dataclasses.fields(EnvSpec) if field.init}
    plain = {name: value for name, value in dataclasses.asdict(spec).items() if name in fields}
    return json.dumps(plain)


def check_spec(spec: EnvSpec, of: str) -> None:
    """Raise SpecError where a file cannot hold the spec, so that an agent could not be saved."""
    try:
        spec_to_json(spec)
    except SpecError as error:
        raise SpecError(f"{of}: {error}") from error


def check_file_id(env_id: Any, of: str, instead: str) -> None:
    """Raise SpecError for an id in a file that is no text or wants a module to be imported."""
    if not isinstance(env_id, str):
        raise SpecError(f"{of}: env_id={env_id!r}, expected an id such as 'Hopper-v5'")
    if ":" in env_id:
        raise SpecError(
            f"{of}: env_id={env_id!r} names a module, and modules named in files are never "
            f"imported: {instead}"
        )


def in_words(env: str | EnvSpec | None) -> str:
    """The environment's id, and what differs from how it is registered."""
    if not isinstance(env, EnvSpec):
        return env or "an environment that they do not name"
    registered = gym.registry.get(env.id, EnvSpec(env.id))
    kwargs = without_rendering(env.kwargs)
    others = {
        name: value
        for name, value in kwargs.items()
        if name not in registered.kwargs or repr(value) != repr(registered.kwargs[name])
    }
    said = [f"with {others}"] if others else []
    if env.max_episode_steps != registered.max_episode_steps:
        said.append(f"with a step limit of {env.max_episode_steps}")
    said += [f"under {name}" for name in names(env.additional_wrappers)]
    return " ".join([env.id, *said])


def _as_data(spec: EnvSpec) -> EnvSpec:
    """The spec without code, and without what only watched the recording."""
    return dataclasses.replace(
        spec,
        entry_point=None,
        vector_entry_point=None,
        kwargs=without_rendering(spec.kwargs),
        additional_wrappers=effective(spec.additional_wrappers),
    )


def without_rendering(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without `render_mode`: "human" opens a window for every copy."""
    return {name: value for name, value in kwargs.items() if name != "render_mode"}


def _arguments(spec: EnvSpec) -> list[tuple[str, Mapping[str, Any]]]:
    """By name, the arguments of the spec's wrappers."""
    return [(f"{spec.id}'s {one.name}", one.kwargs or {}) for one in spec.additional_wrappers]


def _check(known: dict[str, Any]) -> None:
    """Raise TypeError or ValueError for values of another type than Gymnasium writes."""
    if not isinstance(known["id"], str):
        raise TypeError(f"id={known['id']!r}, expected a string")
    if not isinstance(known.get("kwargs", {}), dict):
        raise TypeError(f"kwargs={known['kwargs']!r}, expected an object")
    limit = known.get("max_episode_steps", 1)
    if type(limit) is not int or limit < 1:
        raise ValueError(f"max_episode_steps={limit!r}, expected an integer of at least 1")


def _wrapper(plain: dict[str, Any]) -> WrapperSpec:
    name, entry_point, kwargs = plain["name"], plain["entry_point"], plain["kwargs"]
    if not (isinstance(name, str) and isinstance(entry_point, str)):
        raise TypeError(f"wrapper {plain!r}, expected its name and its entry point")
    if not (kwargs is None or isinstance(kwargs, dict)):
        raise TypeError(f"wrapper {name}: kwargs={kwargs!r}, expected an object")
    return WrapperSpec(name, entry_point, kwargs)
