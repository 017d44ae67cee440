"""An agent to a checkpoint and back."""

from __future__ import annotations

import dataclasses
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from qgpo.agents.core.batches import choose_device
from qgpo.agents.core.checkpoint import (
    Checkpoint,
    CheckpointError,
    pack_optimizer,
    read_checkpoint,
    unpack_optimizer,
)
from qgpo.envs.tasks.making import spec_from_json, spec_to_json
from qgpo.envs.tasks.observations import ObservationAdapter
from qgpo.envs.tasks.reference import ReferenceScores

if TYPE_CHECKING:
    from qgpo.agents.core.agent import OfflineAgent

VERSIONS_OF = (
    "python",
    "qgpo",
    "torch",
    "numpy",
    "safetensors",
    "gymnasium",
    "mujoco",
    "minari",
    "stable-baselines3",
)


def versions() -> dict[str, str]:
    """Versions of the libraries that had a part in a file, for a reader who wonders."""
    found = {"python": platform.python_version()}
    for name in VERSIONS_OF[1:]:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor calls itself where the system tells, else its architecture.

    With the same seed another processor makes another agent: it rounds sums differently.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, [*names, platform.processor()]), platform.machine())


def with_suffix(path: str | Path) -> Path:
    """The path, ending in .zip. Raises ValueError where it names no file."""
    path = Path(path)
    if not path.name:
        raise ValueError(f"path={str(path)!r} names no file, expected one such as 'agent.zip'")
    return path if path.suffix == ".zip" else path.with_name(path.name + ".zip")


def config_from_json(
    config_class: type[Any], data: dict[str, Any], younger: frozenset[str] = frozenset()
) -> Any:
    """The configuration that `dataclasses.asdict` and JSON made of it.

    Fields named in `younger` may be missing: their defaults are what was done before.
    """
    names = {field.name for field in dataclasses.fields(config_class)}
    unknown, missing = set(data) - names, names - set(data) - younger
    if unknown or missing:
        raise CheckpointError(
            f"configuration fields differ: unknown {sorted(unknown)}, missing {sorted(missing)}"
        )
    return config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def pack(agent: OfflineAgent[Any]) -> Checkpoint:
    """Everything that acting and further training need."""
    if agent.observation_space is None or agent.action_space is None:
        raise RuntimeError("nothing to save: this agent has not seen a dataset yet")
    optimizer_tensors: dict[str, Tensor] = {}
    groups = {}
    for name, optimizer in agent.optimizers.items():
        tensors, groups[name] = pack_optimizer(name, optimizer.state_dict())
        optimizer_tensors.update(tensors)
    header = {
        "agent": agent.name,
        "versions": versions(),
        "config": dataclasses.asdict(agent.config),
        "seed": agent.seed,
        "observation_space": _space_to_json(agent.observation_space),
        "action_space": _space_to_json(agent.action_space),
        "stage": agent.stage,
        "progress": agent.progress,
        "num_timesteps": agent.num_timesteps,
        "dataset": {
            "id": agent.dataset_id,
            "fingerprint": agent.dataset_fingerprint,
            "env_spec": spec_to_json(agent.env_spec) if agent.env_spec else None,
            "reference": dataclasses.asdict(agent.reference) if agent.reference else None,
        },
        "optimizers": groups,
    }
    if agent.adapter is not None:
        header["observation_adapter"] = agent.adapter.to_json()
    generators = {
        "generator/training": agent.generator.get_state(),
        "generator/prediction": agent.prediction_generator.get_state(),
    }
    tables = {**agent.tables_to_save(), **generators}
    return Checkpoint(header, agent.networks.state_dict(), optimizer_tensors, tables)


def unpack(
    agent_class: type[OfflineAgent[Any]], path: Path, device: torch.device | str
) -> OfflineAgent[Any]:
    """The agent of a checkpoint. Raises CheckpointError where the file is of no use."""
    device = choose_device(device)  # not the file's fault
    checkpoint = read_checkpoint(path)
    header = checkpoint.header
    if header.get("agent") != agent_class.name:
        raise CheckpointError(
            f"{str(path)!r} holds a {header.get('agent')!r} agent, load it with that class "
            f"(this is {agent_class.name!r})"
        )
    try:
        younger = agent_class.younger_fields
        config = config_from_json(agent_class.config_class, header["config"], younger)
        agent = agent_class(config, seed=header["seed"], device=device)
        adapter = header.get("observation_adapter")
        agent.set_spaces(
            _space_from_json(header["observation_space"]),
            _space_from_json(header["action_space"]),
            f"checkpoint {str(path)!r}",
            ObservationAdapter.from_json(adapter) if adapter else None,
        )
        _restore(agent, checkpoint)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be used: {reason}") from error
    return agent


def _restore(agent: OfflineAgent[Any], checkpoint: Checkpoint) -> None:
    header = checkpoint.header
    expected = agent.networks.state_dict()
    missing = sorted(set(expected) - set(checkpoint.modules))
    surplus = sorted(set(checkpoint.modules) - set(expected))
    wrong = [
        f"{name} {tuple(checkpoint.modules[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in checkpoint.modules and checkpoint.modules[name].shape != value.shape
    ]
    if missing or surplus or wrong:
        raise CheckpointError(
            f"it does not fit its configuration: missing tensors {missing}, unknown "
            f"{surplus}, of wrong shape {wrong}"
        )
    agent.networks.load_state_dict(checkpoint.modules)
    for name, optimizer in agent.optimizers.items():
        optimizer.load_state_dict(
            unpack_optimizer(name, checkpoint.optimizers, header["optimizers"][name])
        )
    if set(header["progress"]) != set(agent.stages):
        raise CheckpointError(f"its stages are {header['progress']}, not {agent.stages}")
    agent.progress = header["progress"]
    agent.stage, agent.num_timesteps = header["stage"], header["num_timesteps"]
    tables = dict(checkpoint.tables)
    for name in ("training", "prediction"):
        generator = agent.generator if name == "training" else agent.prediction_generator
        state = tables.pop(f"generator/{name}")
        if len(state) == len(generator.get_state()):
            generator.set_state(state)
        else:  # written on another kind of device: go on with a new seed
            generator.manual_seed(agent.seed + agent.num_timesteps)
    agent.tables = {
        k: v if k.startswith("generator/") else v.to(agent.device) for k, v in tables.items()
    }
    data = header["dataset"]
    agent.dataset_id, agent.dataset_fingerprint = data["id"], data["fingerprint"]
    agent.env_spec = spec_from_json(data["env_spec"]) if data["env_spec"] else None
    agent.reference = ReferenceScores(**data["reference"]) if data["reference"] else None


def _space_to_json(space: spaces.Box) -> dict[str, Any]:
    return {
        "low": [float(x) for x in space.low],
        "high": [float(x) for x in space.high],
        "dtype": str(space.dtype),
    }


def _space_from_json(data: dict[str, Any]) -> spaces.Box:
    dtype = np.dtype(data["dtype"]).type
    return spaces.Box(np.array(data["low"], dtype), np.array(data["high"], dtype), dtype=dtype)
