"""Dict observations as the vectors that agents see, and back where all parts are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from qgpo.envs.tasks.families import find_family

Path = tuple[str, ...]
ENCODE = (
    "Encode the images first (with a pretrained network, say), and build the dataset from the "
    "codes with OfflineDataset.from_arrays"
)


@dataclass(frozen=True)
class ObservationAdapter:
    """The parts of a Dict observation that make up the vector, in order."""

    parts: tuple[tuple[Path, tuple[int, ...]], ...]
    """(keys from the outside in, shape) of each part"""
    complete: bool
    """whether the observation has no other parts, so that the vector can be turned back"""

    @classmethod
    def choose(cls, space: spaces.Dict, keys: Sequence[str] | None, of: str) -> ObservationAdapter:
        """The parts under `keys`, in that order; None takes all parts, sorted by name.

        Raises ValueError for a missing key, for parts that are not a Box, and for images.
        """
        missing = [key for key in keys or () if key not in space.spaces]
        if missing:
            raise ValueError(
                f"{of} has observation parts {sorted(space.spaces)}, expected {list(keys or ())} "
                "among them"
            )
        chosen = sorted(space.spaces) if keys is None else keys
        boxes = [part for key in chosen for part in _boxes(space.spaces[key], (key,), of)]
        parts = tuple((path, box.shape) for path, box in boxes)
        return cls(parts, complete=set(chosen) == set(space.spaces))

    @property
    def size(self) -> int:
        """S, the length of the vector."""
        return sum(int(np.prod(shape)) for _, shape in self.parts)

    def box(self, space: spaces.Dict, of: str) -> spaces.Box:
        """The space of the vectors of a Dict space. Raises ValueError where a part differs."""
        boxes: list[spaces.Box] = []
        for path, shape in self.parts:
            part: Any = space
            for key in path:
                part = part.spaces.get(key) if isinstance(part, spaces.Dict) else None
            if not isinstance(part, spaces.Box) or part.shape != shape:
                raise ValueError(
                    f"{of} has observation space {space}; expected {'/'.join(path)} to be a Box "
                    f"of shape {shape}"
                )
            boxes.append(part)
        low = np.concatenate([box.low.ravel() for box in boxes], dtype=np.float64)
        high = np.concatenate([box.high.ravel() for box in boxes], dtype=np.float64)
        return spaces.Box(low, high, dtype=np.float64)

    def flatten(self, observation: Mapping[str, Any]) -> NDArray[Any]:
        """One Dict observation to (S,), or a batch of B (arrays with a leading axis) to (B, S).

        Raises ValueError where a part is missing or has another shape.
        """
        columns: list[NDArray[Any]] = []
        batch: tuple[int, ...] | None = None
        for path, shape in self.parts:
            value = _numbers(path, _get(observation, path))
            leading = value.shape[: max(value.ndim - len(shape), 0)]
            batch = leading if batch is None else batch
            if len(leading) > 1 or value.shape != (*leading, *shape) or leading != batch:
                raise ValueError(
                    f"observation part {'/'.join(path)} has shape {value.shape}, expected "
                    f"{shape} or {('n', *shape)}"
                )
            columns.append(value.reshape(*leading, int(np.prod(shape))))
        return np.concatenate(columns, axis=-1)

    def unflatten(self, vector: NDArray[Any]) -> dict[str, Any]:
        """(S,) or (B, S) back to the Dict observation.

        Raises ValueError where the observation has parts that are not in the vector.
        """
        if not self.complete:
            raise ValueError(f"the vector holds {self} only: the other parts were left out")
        observation: dict[str, Any] = {}
        ends = np.cumsum([int(np.prod(shape)) for _, shape in self.parts])
        for (path, shape), values in zip(
            self.parts, np.split(vector, ends[:-1], axis=-1), strict=True
        ):
            inner = observation
            for key in path[:-1]:
                inner = inner.setdefault(key, {})
            inner[path[-1]] = values.reshape((*vector.shape[:-1], *shape))
        return observation

    def to_json(self) -> dict[str, Any]:
        """Plain lists, for a file."""
        return {
            "parts": [[list(path), list(shape)] for path, shape in self.parts],
            "complete": self.complete,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ObservationAdapter:
        """What `to_json` wrote."""
        parts = tuple((tuple(map(str, p)), tuple(map(int, s))) for p, s in data["parts"])
        return cls(parts, bool(data["complete"]))

    def __str__(self) -> str:
        return ", ".join(f"{'/'.join(path)} {shape}" for path, shape in self.parts)


def _numbers(path: Sequence[str], value: Any) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or np.ma.is_masked(value):
        what = "masked values" if np.ma.is_masked(value) else f"the type {array.dtype}"
        raise ValueError(f"observation part {'/'.join(path)} has {what}, expected numbers")
    return array


class FlatObservations(gym.ObservationWrapper[Any, Any, Any]):
    """An environment whose observations are an adapter's vectors, for code that needs a Box.

    Stable-Baselines3's vector environments refuse Dicts in Dicts, such as the kitchen's.
    """

    def __init__(self, env: gym.Env[Any, Any], adapter: ObservationAdapter) -> None:
        super().__init__(env)
        if not isinstance(env.observation_space, spaces.Dict):
            raise ValueError(f"{env} has observations {env.observation_space}, expected a Dict")
        self.adapter = adapter
        self.observation_space = adapter.box(env.observation_space, str(env))

    def observation(self, observation: Any) -> NDArray[Any]:
        """The vector, (S,)."""
        return self.adapter.flatten(observation)


def flat(env: gym.Env[Any, Any], adapter: ObservationAdapter | None = None) -> gym.Env[Any, Any]:
    """The environment with vectors for observations: itself, unless they are Dicts.

    Without an adapter they are read as `load_dataset` reads them in data of that environment.
    """
    if not isinstance(env.observation_space, spaces.Dict):
        return env
    if adapter is None:
        env_id = env.spec.id if env.spec is not None else str(env)
        keys = find_family(env_id=env_id).observation
        adapter = ObservationAdapter.choose(env.observation_space, keys, env_id)
    return FlatObservations(env, adapter)


def stack(observations: Sequence[Any]) -> Any:
    """Observations of single environments as a batch: arrays, or Dicts of arrays."""
    if isinstance(observations[0], Mapping):
        return {key: stack([o[key] for o in observations]) for key in observations[0]}
    return np.stack(observations)


def refuse_images(space: gym.Space[Any], of: str) -> None:
    """Raise ValueError for (height, width, channels), and for bytes of two dimensions."""
    n = len(space.shape) if isinstance(space, spaces.Box) else 0
    if n == 3 or (n == 2 and space.dtype == np.uint8):
        raise ValueError(
            f"{of} has observations {space}, which are images; only vectors are supported. {ENCODE}"
        )


def _boxes(space: gym.Space[Any], path: Path, of: str) -> Iterator[tuple[Path, spaces.Box]]:
    """Every Box in a space with the keys that lead to it, sorted."""
    if isinstance(space, spaces.Dict):
        for key in sorted(space.spaces):
            yield from _boxes(space.spaces[key], (*path, key), of)
    elif isinstance(space, spaces.Box):
        refuse_images(space, f"{of}: {'/'.join(path)}")
        yield path, space
    else:
        raise ValueError(
            f"{of} has observation part {'/'.join(path)} of {space}; only Box parts are "
            "supported. Convert it to numbers before recording"
        )


def _get(observation: Mapping[str, Any], path: Path) -> Any:
    value: Any = observation
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(
                f"observation has parts {sorted(observation)}, expected {'/'.join(path)} among them"
            )
        value = value[key]
    return value
