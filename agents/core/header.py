"""What an agent's file says beside its registers: spaces, data, and how it reports."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable
from typing import Any, ClassVar, Protocol

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from stable_baselines3.common.utils import get_system_info

from qgpo.agents.core.configured import ConfigT, Configured
from qgpo.agents.core.parsing import brief
from qgpo.envs.tasks.actions import ActionScale
from qgpo.envs.tasks.making import spec_from_json, spec_to_json
from qgpo.envs.tasks.observations import ObservationAdapter
from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.envs.tasks.window import Window
from qgpo.fields import is_integer

OPTIONAL: dict[str, tuple[type, ...]] = {
    "verbose": (int, bool),
    "tensorboard_log": (str, type(None)),
}
"""what a file may leave out, by its name in the header and in the constructor, and its types; a
file leaves out what is 0 or None"""


def check_verbose(verbose: object) -> int:
    """SB3's level of output, for which True is 1. Raises ValueError for what is no integer."""
    if not isinstance(verbose, int | np.bool_) and not is_integer(verbose):
        raise ValueError(f"verbose={brief(verbose)}, expected an integer, such as 0 or 1")
    return int(verbose)


def check_log_folder(folder: object) -> str | None:
    """The path of a folder as text, or None. Raises ValueError for other values."""
    path = os.fspath(folder) if isinstance(folder, str | os.PathLike) else folder
    if not isinstance(path, str | None):
        raise ValueError(f"tensorboard_log={brief(folder)}, expected a folder's path or None")
    return path


class Described(Protocol):
    """What of an agent is in the header."""

    name: ClassVar[str]

    @property
    def verbose(self) -> int:
        """SB3's level of output."""

    @property
    def tensorboard_log(self) -> str | None:
        """The folder of TensorBoard's events."""

    observation_space: spaces.Box | None
    action_space: spaces.Box | None
    action_scale: ActionScale | None
    adapter: ObservationAdapter | None
    window: Window | None
    dataset_id: str | None
    dataset_fingerprint: str | None
    trajectory_fingerprint: str | None
    env_spec: EnvSpec | None
    reference: ReferenceScores | None

    @property
    def online(self) -> dict[str, Any] | None:
        """How it goes on in an environment, for JSON; None where it does not."""


def describe(
    agent: Described, exclude: Iterable[str] | None, include: Iterable[str] | None
) -> dict[str, Any]:
    """The header's fields. Raises RuntimeError for an agent without spaces.

    Names in `exclude` and not in `include` are left out; warns of names that cannot be.
    """
    if agent.observation_space is None or agent.action_space is None:
        raise RuntimeError(
            "nothing to save: this agent has no spaces yet; call learn(dataset) or set_env"
        )
    excluded = set(exclude or ()) - set(include or ())
    if unknown := sorted(excluded - set(OPTIONAL)):
        warnings.warn(
            f"exclude: {unknown} have no effect, expected {' or '.join(OPTIONAL)}: a file "
            "always holds everything that acting and further training need, and never the "
            "environment or the data",
            stacklevel=3,
        )
    header: dict[str, Any] = {
        "agent": agent.name,
        "observation_space": space_to_json(agent.observation_space),
        "action_space": space_to_json(agent.action_space),
        "dataset": {
            "id": agent.dataset_id,
            "fingerprint": agent.dataset_fingerprint,
            "trajectory_fingerprint": agent.trajectory_fingerprint,
            "env_spec": spec_to_json(agent.env_spec) if agent.env_spec else None,
            "reference": dataclasses.asdict(agent.reference) if agent.reference else None,
        },
    }
    if agent.adapter is not None:
        header["observation_adapter"] = agent.adapter.to_json()
    if agent.window is not None:
        header["window"] = agent.window.to_json()
    if agent.action_scale is not None and not agent.action_scale.is_declared:
        header["action_scale"] = agent.action_scale.to_json()
    if agent.online is not None:
        header["online"] = agent.online
    reports = {"verbose": agent.verbose, "tensorboard_log": agent.tensorboard_log}
    return header | {
        name: value for name, value in reports.items() if value and name not in excluded
    }


def set_data(agent: Described, data: dict[str, Any]) -> None:
    """Give an agent what the header's `dataset` says."""
    agent.dataset_id, agent.dataset_fingerprint = data["id"], data["fingerprint"]
    agent.trajectory_fingerprint = data.get("trajectory_fingerprint")  # later than the others
    agent.env_spec = spec_from_json(data["env_spec"]) if data["env_spec"] else None
    reference = data["reference"]
    agent.reference = ReferenceScores(**reference) if reference else None


def optional_arguments(header: dict[str, Any]) -> dict[str, Any]:
    """The constructor's arguments that the header has. Raises ValueError for other types."""
    found = {name: header[name] for name in OPTIONAL if name in header}
    for name, value in found.items():
        if type(value) not in OPTIONAL[name]:
            kinds = " or ".join(kind.__name__ for kind in OPTIONAL[name])
            raise ValueError(f"{name}={brief(value)}, expected {kinds}")
    return found


def replaced(
    of: type[Configured[ConfigT]],
    config: ConfigT,
    optional: dict[str, Any],
    custom_objects: dict[str, Any],
) -> tuple[ConfigT, dict[str, Any]]:
    """Both with SB3's `custom_objects` in place of their own; warns of names that neither has."""
    fields, named = of.setting_names(), of.by_field(custom_objects)
    if unknown := sorted(set(map(str, named)) - fields - set(OPTIONAL)):
        warnings.warn(
            f"custom_objects: {unknown} are neither fields of {of.config_class.__name__} "
            f"nor {' or '.join(OPTIONAL)}; they have no effect",
            stacklevel=3,
        )
    own = {name: value for name, value in named.items() if name in fields}
    config = dataclasses.replace(config, **own)  # type: ignore[type-var]
    given = {name: value for name, value in named.items() if name in OPTIONAL}
    check_verbose(given.get("verbose", 0))
    check_log_folder(given.get("tensorboard_log"))
    return config, {**optional, **given}


def print_system_info(header: dict[str, Any]) -> None:
    """Print the versions here, and those that wrote the file."""
    print("== CURRENT SYSTEM INFO ==")
    get_system_info()
    print("== SAVED MODEL SYSTEM INFO ==")
    for name, version in header.get("versions", {}).items():
        print(f"- {name}: {version}")


DTYPES = (
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
"""of the spaces that files can hold"""


def space_to_json(space: spaces.Box) -> dict[str, Any]:
    """Bounds and dtype of a Box, exactly. Raises ValueError for a dtype that files cannot hold."""
    if str(space.dtype) not in DTYPES:
        raise ValueError(f"{space} has dtype {space.dtype}, expected one of {sorted(DTYPES)}")
    return {"low": space.low.tolist(), "high": space.high.tolist(), "dtype": str(space.dtype)}


def check_storable(space: spaces.Box) -> None:
    """Raise ValueError for a space that could not be read from a file again."""
    if space_from_json(space_to_json(space)) != space:
        raise ValueError(f"{space} could not be read back from a file")


def space_from_json(data: dict[str, Any]) -> spaces.Box:
    """The Box that `space_to_json` described. Raises ValueError or LookupError for others."""
    name, low, high = data["dtype"], data["low"], data["high"]
    if set(data) != {"low", "high", "dtype"} or name not in DTYPES:
        raise ValueError(f"a space has dtype {brief(name)}, expected one of {sorted(DTYPES)}")
    dtype: Any = np.dtype(name).type
    if not isinstance(low, list) or not isinstance(high, list) or len(low) != len(high):
        raise ValueError(f"a space has bounds {brief(low)} and {brief(high)}, expected two lists")
    bounds = _bounds(low, dtype), _bounds(high, dtype)
    if bool((bounds[0] > bounds[1]).any()):
        raise ValueError(f"a space has bounds {brief(low)} above {brief(high)}")
    return spaces.Box(*bounds, dtype=dtype)


def _bounds(values: list[Any], dtype: Any) -> NDArray[Any]:
    """Numbers in that dtype, none of which changes by it.

    Earlier versions wrote the largest integers as the next double, which is one too large.
    """
    kinds = {type(value) for value in values}
    if not kinds <= ({bool, float} if dtype is np.bool_ else {int, float}):
        raise ValueError(f"a space has bounds {brief(values)}, expected numbers")
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        least, most = int(limits.min), int(limits.max)
        largest = [isinstance(value, float) and value == float(most) for value in values]
        values = [most if at_end else value for value, at_end in zip(values, largest, strict=True)]
        if not all(least <= value <= most and value == int(value) for value in values):
            raise ValueError(f"a space has bounds {brief(values)} that {dtype.__name__} lacks")
    with np.errstate(over="ignore"):
        bounds = np.array(values, dtype)
    if np.isnan(bounds.astype(float)).any() or bounds.tolist() != values:
        raise ValueError(f"a space has bounds {brief(values)} that {dtype.__name__} lacks")
    return bounds
