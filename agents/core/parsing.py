"""The members of a checkpoint as Python values: JSON and tensors that are what they should be."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from torch.overrides import TorchFunctionMode

ConfigT = TypeVar("ConfigT")

UNREADABLE = (
    SafetensorError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""what content that is not ours may raise"""
MOST_JSON = 1 << 24
MOST_NAMES = 1 << 22
"""bytes of text in a file; Python needs many times as many for what they say"""
MOST_LETTERS = 100
"""in the name of an agent"""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or not by this agent."""


def read_json(content: bytes) -> dict[str, Any]:
    """An object without NaN and without a name that is there twice. Raises ValueError."""
    if len(content) > MOST_JSON:
        raise ValueError(f"its JSON has {len(content)} bytes, expected at most {MOST_JSON}")
    found = json.loads(content.decode(), object_pairs_hook=_object, parse_constant=_constant)
    if not isinstance(found, dict):
        raise ValueError("its JSON is not an object")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its JSON has a name twice")
    return found


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("its JSON has a NaN")
    return math.inf if name == "Infinity" else -math.inf


def read_tensors(content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors member. Raises one of UNREADABLE."""
    names = int.from_bytes(content[:8], "little")
    if names > MOST_NAMES:
        raise ValueError(f"names of tensors in {names} bytes, expected at most {MOST_NAMES}")
    return load(content)


HEADER: dict[str, type] = {
    "agent": str,
    "config": dict,
    "progress": dict,
    "optimizers": dict,
    "seed": int,
}


def check_header(header: dict[str, Any]) -> None:
    """Raise LookupError or ValueError where a part of every header is missing or of another kind.

    What only some headers have is checked where it is there.
    """
    for name, kind in HEADER.items():
        if type(header[name]) is not kind:
            raise ValueError(f"{name}={brief(header[name])}, expected a {kind.__name__}")
    if len(header["agent"]) > MOST_LETTERS:
        raise ValueError(f"agent={brief(header['agent'])}, expected a name")
    counters = {"num_timesteps": header.get("num_timesteps", 0), **header["progress"]}
    for name, value in counters.items():
        if type(value) is not int or not 0 <= value < 2**62:
            raise ValueError(f"{name}={brief(value)}, expected a number of steps")
    if not isinstance(header.get("stage"), str | None):
        raise ValueError(f"stage={brief(header['stage'])}, expected a name or null")
    if "dataset" in header:
        _check_dataset(header["dataset"])
    if header.get("observation_adapter") is not None:
        _check_adapter(header["observation_adapter"], len(header["observation_space"]["low"]))


def _check_dataset(about: dict[str, Any]) -> None:
    """Raise an error unless these are the id, fingerprint, environment and scores of a dataset."""
    about = {"trajectory_fingerprint": None, **about}
    for name in ("id", "fingerprint", "trajectory_fingerprint", "env_spec"):
        if not isinstance(about[name], str | None):
            raise ValueError(f"dataset: {name}={brief(about[name])}, expected text or null")
    if (reference := about["reference"]) is None:
        return
    ends = reference["minimum"], reference["maximum"]
    numbers = all(type(end) in (int, float) and abs(end) < math.inf for end in ends)
    if not numbers or ends[0] == ends[1] or not isinstance(reference["source"], str):
        raise ValueError(f"dataset: reference={brief(reference)}, expected two returns and a text")


def _check_adapter(adapter: dict[str, Any], size: int) -> None:
    """Raise an error unless the parts of a Dict observation make a vector of that size."""
    found = 0
    for path, shape in adapter["parts"]:
        names = bool(path) and all(isinstance(name, str) for name in path)
        if not names or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
            raise ValueError(f"observation_adapter: part {brief([path, shape])}")
        found += math.prod(shape)
    if found != size or not isinstance(adapter["complete"], bool):
        raise ValueError(f"observation_adapter: parts of {found} numbers, expected {size}")


def config_from_json(config_class: type[ConfigT], data: dict[str, Any]) -> ConfigT:
    """The configuration that `dataclasses.asdict` and JSON made of it. Raises CheckpointError."""
    names = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    unknown, missing = sorted(set(data) - names), sorted(names - set(data))
    if unknown or missing:
        raise CheckpointError(
            f"configuration fields differ: unknown {brief(unknown)}, missing {missing}"
        )
    return config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def brief(value: Any, most: int = 200) -> str:
    """A value for a message, cut short."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


FACTORIES = {
    torch.arange,
    torch.empty,
    torch.eye,
    torch.full,
    torch.linspace,
    torch.logspace,
    torch.ones,
    torch.rand,
    torch.randint,
    torch.randn,
    torch.randperm,
    torch.zeros,
}
SLACK = 1 << 24
LEAST = 1 << 12
"""bytes that a tensor costs however small it is: Python's objects around it"""


class Within(TorchFunctionMode):
    """While it is active, tensors are made up to a number of bytes.

    What a file's settings ask for is then not made unless the file could fill it. Raises
    CheckpointError before the tensor that would be too much is made.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        sizes = [max(tensor.nbytes, LEAST) for tensor in tensors]
        self.left = 2 * sum(sizes) + SLACK

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in FACTORIES:
            shape = {k: v for k, v in kwargs.items() if k not in ("device", "generator", "out")}
            self.left -= max(func(*args, **shape, device="meta").nbytes, LEAST)
            if self.left < 0:
                raise CheckpointError(
                    "its configuration and spaces need larger networks than the file holds"
                )
        return func(*args, **kwargs)
