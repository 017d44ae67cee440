"""What a dataset's metadata say of its spaces and environments, read without running code."""

from __future__ import annotations

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

SPACES = ("observation_space", "action_space")


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
    spaces = {**found, **{name: deserialize_space(metadata[name]) for name in stated}}
    storage = get_minari_storage(metadata["data_format"])
    jpeg_encoding = bool(metadata.get("jpeg_encoding", True))
    return MinariDataset(storage(folder, **spaces, jpeg_encoding=jpeg_encoding))


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
                f"it was recorded under {', '.join(without)}, and agents play in an evaluation "
                "environment without: what they see, do and get there may be something else"
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
