"""Parameters of an agent by name, as Stable-Baselines3 takes and gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from qgpo.agents.core.parsing import CheckpointError
from qgpo.agents.core.registers import check_state_of
from qgpo.agents.core.training import set_state

Part = nn.Module | torch.optim.Optimizer


class ParameterError(ValueError, RuntimeError):
    """Parameters that do not fit: SB3 raises either kind."""


class HasParts(Protocol):
    """What has networks and optimizers."""

    networks: nn.ModuleDict
    optimizers: dict[str, torch.optim.Optimizer]


def parts_of(agent: HasParts) -> dict[str, Part]:
    """What has parameters, by the names of SB3."""
    networks = {name: part for name, part in agent.networks.items() if part.state_dict()}
    optimizers = {f"{name}.optimizer": part for name, part in agent.optimizers.items()}
    return {**networks, **optimizers}


def load_parameters(agent: HasParts, parameters: Mapping[str, Any], exact_match: bool) -> None:
    """Load what `get_parameters` returned; nothing is loaded where a part does not fit."""
    if not isinstance(parameters, dict):
        raise TypeError(
            f"parameters is a {type(parameters).__name__}, expected the result of "
            "get_parameters(); use load(path) to read a file"
        )
    known = parts_of(agent)
    wrong = set(map(str, parameters)) - set(known)
    missing = set(known) - set(parameters) if exact_match else set()
    if wrong or missing:
        raise ParameterError(
            f"parameters: unknown {sorted(wrong)}, missing {sorted(missing)}, expected "
            f"{sorted(known)}"
        )
    for name, state in parameters.items():
        part = known[name]
        if isinstance(part, nn.Module):
            check_state(name, state, part.state_dict(), exact_match)
        else:
            check_optimizer_state(name, state, part)
    for name, state in parameters.items():
        part = known[name]
        if isinstance(part, nn.Module):
            part.load_state_dict(state, strict=exact_match)
        else:  # its settings are those of this configuration
            groups = part.state_dict()["param_groups"]
            set_state(part, {"state": state["state"], "param_groups": groups})


def check_optimizer_state(name: str, state: Any, optimizer: torch.optim.Optimizer) -> None:
    """Refuse what is no state of that optimizer, or none that a file could hold."""
    try:
        check_state_of(name.removesuffix(".optimizer"), optimizer, state)
    except CheckpointError as error:
        why = "" if error.__cause__ else f" ({error})"
        n = sum(len(group["params"]) for group in optimizer.param_groups)
        raise ParameterError(
            f"parameters of {name!r} are not a state of that optimizer{why}, expected 'state' "
            f"and 'param_groups' for its {n} parameters, as get_parameters() returns them"
        ) from error


def check_state(name: str, state: Any, expected: Mapping[str, Any], exact_match: bool) -> None:
    """Refuse a module's parameters before any is loaded; some may be left out if not exact."""
    if not isinstance(state, Mapping) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        raise ParameterError(
            f"parameters of {name!r} are a {type(state).__name__}, expected tensors by name, as "
            "get_parameters() returns them"
        )
    wrong = set(state) - set(expected)
    wrong |= set(expected) - set(state) if exact_match else set()
    wrong |= {k for k in set(state) & set(expected) if state[k].shape != expected[k].shape}
    if wrong:
        first = sorted(wrong)[0]
        found = tuple(state[first].shape) if first in state else "missing"
        wanted = tuple(expected[first].shape) if first in expected else "not there"
        raise ParameterError(
            f"parameters of {name!r} do not fit: {first} is {found}, expected {wanted} (wrong: "
            f"{sorted(wrong)})"
        )
