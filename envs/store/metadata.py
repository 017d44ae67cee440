"""What a dataset's metadata say of its spaces and environments, read without running code."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from minari import MinariDataset
from minari.dataset._storages import get_minari_storage
from minari.dataset.minari_storage import MinariStorage
from minari.serialization import deserialize_space

from qgpo.envs.tasks.arguments import SpecError
from qgpo.envs.tasks.making import limit_doubts, make_env
from qgpo.envs.tasks.specs import spec_from_json
from qgpo.envs.tasks.wrappers import names

DEEPEST = 16
"""levels of spaces within spaces"""
DTYPE = re.compile(r"\|?[<>=]?(bool|b1|u?int(8|16|32|64)|float(16|32|64|128)|[iuf](1|2|4|8|16))")
SPACES = ("observation_space", "action_space")
NO_REWARDS = "rewards_are_unknown"
"""true of recordings without rewards, whose zeros stand for nothing"""


def open_folder(folder: Path) -> MinariDataset:
    """The Minari dataset whose data are in that folder.

    Minari itself would build the environment, by the entry point in the file, of a dataset without
    spaces. Here they come from the metadata, else from the registered environment of that id.
    Raises SpecError where there are neither, and what Minari raises.
    """
    metadata = MinariStorage.read_raw_metadata(folder)
    of = f"dataset {metadata['dataset_id']!r}"
    environments(metadata, of)  # refuses what is no spec
    stated = [name for name in SPACES if name in metadata]
    found = {} if len(stated) == len(SPACES) else _spaces_of_environment(metadata, of)
    own = {name: space_from_text(metadata[name], f"{of}: {name}") for name in stated}
    spaces = {**found, **own}
    storage = get_minari_storage(metadata["data_format"])
    jpeg_encoding = bool(metadata.get("jpeg_encoding", True))
    return MinariDataset(storage(folder, **spaces, jpeg_encoding=jpeg_encoding))


def space_from_text(text: str, of: str) -> gym.Space[Any]:
    """The space that Minari wrote. Raises ValueError for one that is not of numbers.

    Minari makes arrays of whatever dtype is named, and a text may take any number of bytes each.
    """
    _check_space(json.loads(text), of, DEEPEST)
    space: gym.Space[Any] = deserialize_space(text)
    return space


def _check_space(plain: Any, of: str, levels: int) -> None:
    if not isinstance(plain, dict) or levels == 0:
        raise ValueError(
            f"{of} is {reprlib.repr(plain)}, expected a space in at most {DEEPEST} levels"
        )
    dtype = plain.get("dtype", "float32")
    if not isinstance(dtype, str) or not DTYPE.fullmatch(dtype):
        raise ValueError(f"{of} has dtype={reprlib.repr(dtype)}, expected a type of numbers")
    inner = plain.get("subspaces", [])
    for part in inner.values() if isinstance(inner, dict) else inner:
        _check_space(part, of, levels - 1)


def environments(metadata: Mapping[str, Any], of: str) -> tuple[EnvSpec | None, EnvSpec | None]:
    """Where the data were recorded, and where they say that agents are evaluated.

    Raises SpecError for what is no spec.
    """
    recorded, evaluated = (
        spec_from_json(metadata[name], f"{of}: {name}") if metadata.get(name) else None
        for name in ("env_spec", "eval_env_spec")
    )
    return recorded, evaluated


def differences(recorded: EnvSpec | None, played: EnvSpec | None) -> Iterator[str]:
    """What is to be said of the environment in which agents play."""
    if played is None:
        return
    yield from limit_doubts(played)
    if recorded is not None:
        without = [n for n in names(recorded.additional_wrappers) if n not in _names(played)]
        if without:
            yield (
                f"it was recorded with {', '.join(without)}, but the evaluation environment is "
                "not wrapped in the same way: observations, actions and rewards may differ "
                "there"
            )


def _names(spec: EnvSpec) -> list[str]:
    return names(spec.additional_wrappers)


def _spaces_of_environment(metadata: Mapping[str, Any], of: str) -> dict[str, gym.Space[Any]]:
    recorded, _ = environments(metadata, of)
    if recorded is None:
        raise SpecError(f"{of} states neither its spaces nor an environment that has them")
    try:
        env = make_env(recorded, own_modules=False)
    except ValueError as error:
        raise SpecError(f"{of} does not state its spaces, and {error}") from error
    spaces = {name: getattr(env, name) for name in SPACES}
    env.close()
    return spaces
