"""An environment's whole state, saved and restored, so that one state is played many times.

What can change is saved in every layer, from the outermost wrapper to the environments inside:

- attributes that are plain: numbers, text, arrays, generators, and collections of these. The step
  counter of TimeLimit, a goal, the state of a button and `np_random` are among them.
- every `mujoco.MjData` as a whole. Positions and velocities alone do not suffice: OGBench's control
  reads sites, and Ant's observation reads forces, that the last step left behind.
- of its model, what environments change: parts of bodies, geoms, joints and so on.

Whatever else an environment keeps is unknown here. So `check_restorable` plays, and refuses the
environment by its name where a restored state goes on in another way.
"""

from __future__ import annotations

import copy
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

MODEL_PARTS = (
    "actuator_", "body_", "cam_", "dof_", "eq_", "geom_", "jnt_", "light_", "mat_", "site_",
    "tendon_",
)  # fmt: skip
"""beginnings of the names of a MuJoCo model's arrays that an environment may change; meshes and
textures are large and stay"""
GENERATORS = (np.random.Generator, np.random.RandomState)
SINGLE = (type(None), bool, int, float, complex, str, bytes, np.generic)
STEPS_TO_CHECK = 12
"""steps that two environments play from the same state before it is trusted"""


@dataclass(frozen=True)
class Simulation:
    """A MuJoCo simulation as it was."""

    data: Any
    """a copy of the MjData"""
    model: dict[str, NDArray[Any]]
    """copies of its model's arrays"""


@dataclass(frozen=True)
class Snapshot:
    """An environment as it was; it is restored into that environment, or one made alike."""

    kinds: tuple[str, ...]
    """class of every layer, from the outside in; OGBench makes a class anew for every maze"""
    attributes: list[dict[str, Any]]
    """the plain attributes of each"""
    simulations: list[Simulation]


def take_snapshot(env: gym.Env[Any, Any]) -> Snapshot:
    """The environment's state now. Nothing is shared with it."""
    layers = _layers(env)
    plain = [{name: v for name, v in vars(layer).items() if _is_plain(v)} for layer in layers]
    simulations = [_copied(data) for data in _simulations(layers)]
    return Snapshot(_kinds(layers), copy.deepcopy(plain), simulations)


def restore(env: gym.Env[Any, Any], snapshot: Snapshot, seed: int | None = None) -> None:
    """Put the environment into that state.

    With a seed its generators start from the seed instead of where they stood: from one state,
    several futures, and the same future for the same seed. Raises ValueError for an environment
    that was made in another way.
    """
    layers = _layers(env)
    if _kinds(layers) != snapshot.kinds:
        raise ValueError(
            f"a state of {' of '.join(snapshot.kinds)} cannot be restored in "
            f"{' of '.join(_kinds(layers))}"
        )
    attributes = copy.deepcopy(snapshot.attributes)  # in one go: what layers share stays shared
    if seed is not None:
        _seed(attributes, seed)
    for layer, values in zip(layers, attributes, strict=True):
        vars(layer).update(values)
    for data, saved in zip(_simulations(layers), snapshot.simulations, strict=True):
        _mujoco().mj_copyData(data, data.model, saved.data)
        for name, array in saved.model.items():
            now = getattr(data.model, name)
            if not np.array_equal(now, array):
                now[...] = array


def check_restorable(env: gym.Env[Any, Any], other: gym.Env[Any, Any], seed: int = 0) -> None:
    """Raise ValueError, with its name, for an environment whose restored state goes on otherwise.

    `other` is made in the same way. Both are reset and played with random actions: a few steps
    before the state is saved, and a few from it: in the one, restored in the other, and restored in
    the one. Observations, rewards and ends have to be equal bit for bit.
    """
    space = copy.deepcopy(env.action_space)
    space.seed(seed)
    actions = [space.sample() for _ in range(20)]
    env.reset(seed=seed)
    for action in actions[STEPS_TO_CHECK:]:
        if _ends(env.step(action)):
            env.reset(seed=seed)
    snapshot = take_snapshot(env)
    expected = list(_played(env, actions[:STEPS_TO_CHECK]))
    other.reset(seed=seed + 1)
    for one in (other, env):
        restore(one, snapshot)
        found = list(_played(one, actions[:STEPS_TO_CHECK]))
        for step, (a, b) in enumerate(zip(expected, found, strict=False)):
            if not _same(a, b) or len(expected) != len(found):
                name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
                raise ValueError(
                    f"environment {name!r} cannot be set to a state: step {step + 1} after "
                    "restoring differs. Part of its state is neither a plain attribute nor in "
                    "a MuJoCo simulation (supported are MuJoCo, classic control, "
                    "Gymnasium-Robotics' and OGBench's environments)"
                )


def _played(env: gym.Env[Any, Any], actions: list[NDArray[Any]]) -> Iterator[Any]:
    """What the steps gave, without the infos, up to the end of the episode."""
    for action in actions:
        step = env.step(action)
        yield copy.deepcopy(step[:4])
        if _ends(step):
            return


def _ends(step: Any) -> bool:
    return bool(step[2] or step[3])


def _same(first: Any, second: Any) -> bool:
    """Whether two values are equal bit for bit: arrays, numbers, and collections of them."""
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(_same(v, second[k]) for k, v in first.items())
    if isinstance(first, tuple):
        return all(_same(a, b) for a, b in zip(first, second, strict=True))
    return np.array_equal(first, second, equal_nan=True)


# Parts of an environment ------------------------------------------------------------------


def _layers(env: gym.Env[Any, Any]) -> list[gym.Env[Any, Any]]:
    """The environment and all environments in its attributes, wrapped or used, each once."""
    found: list[gym.Env[Any, Any]] = []
    left = [env]
    while left:
        layer = left.pop(0)
        if not any(layer is one for one in found):
            found.append(layer)
            left += [value for value in vars(layer).values() if isinstance(value, gym.Env)]
    return found


def _kinds(layers: list[gym.Env[Any, Any]]) -> tuple[str, ...]:
    """Their classes by name."""
    return tuple(type(layer).__name__ for layer in layers)


def _simulations(layers: list[gym.Env[Any, Any]]) -> list[Any]:
    """Every MjData in the layers, each once."""
    if "mujoco" not in sys.modules:  # then no environment has one
        return []
    kind = _mujoco().MjData
    values = [value for layer in layers for value in vars(layer).values()]
    return list({id(value): value for value in values if isinstance(value, kind)}.values())


def _mujoco() -> Any:
    return sys.modules["mujoco"]


def _copied(data: Any) -> Simulation:
    model = data.model
    twin = _mujoco().MjData(model)
    _mujoco().mj_copyData(twin, model, data)
    arrays = {name: np.array(getattr(model, name)) for name in _model_names()}
    return Simulation(twin, {n: a for n, a in arrays.items() if a.dtype.kind in "biuf"})


@lru_cache(maxsize=1)
def _model_names() -> tuple[str, ...]:
    """The attributes of a MjModel that environments may change."""
    return tuple(name for name in dir(_mujoco().MjModel) if name.startswith(MODEL_PARTS))


def _is_plain(value: Any) -> bool:
    """Whether a copy of it is worth as much as the value itself."""
    if isinstance(value, (*SINGLE, *GENERATORS)):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufcSU" and _owns_memory(value)
    if isinstance(value, dict):
        return all(isinstance(k, (*SINGLE, tuple)) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return all(map(_is_plain, value))
    return False


def _owns_memory(array: NDArray[Any]) -> bool:
    """Whether it is no window into a simulation, which is saved as a whole."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base is None


def _seed(attributes: list[dict[str, Any]], seed: int) -> None:
    """Replace every generator that is an attribute by one that begins at the seed.

    One that several layers share is replaced by one that they share.
    """
    fresh: dict[int, Any] = {}
    for values in attributes:
        for name, value in values.items():
            if not isinstance(value, GENERATORS):
                continue
            if id(value) not in fresh:
                own = np.random.SeedSequence([seed, len(fresh)])
                fresh[id(value)] = (
                    np.random.default_rng(own)
                    if isinstance(value, np.random.Generator)
                    else np.random.RandomState(np.random.MT19937(own))
                )
            values[name] = fresh[id(value)]
