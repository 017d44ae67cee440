"""Trained agents that come with the package: what acting needs, in few bits.

A file is safetensors. Its metadata hold the header of a checkpoint as JSON, and the names of
networks that acting does not use, which are left out. Large tensors are float16, or int8 with one
factor per row; small ones (means, scales) are float32. Reading one runs no code, as with
checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from qgpo.agents.core.parsing import UNREADABLE, CheckpointError, check_header, read_json
from qgpo.agents.core.upgrade import upgrade

FOLDER = Path(__file__).resolve().parents[1] / "pretrained"
FORMAT_VERSION = 1
LARGE = 1024
"""numbers, from which on a tensor is stored in few bits"""
FACTOR = "/factor"
"""behind the name of a tensor in int8, that of the factors of its rows"""
NOT_STORED = ("optimizers", "verbose", "tensorboard_log", "format_version")
"""of a checkpoint's header"""


@dataclass
class Stored:
    """The content of a file."""

    header: dict[str, Any]
    tensors: dict[str, Tensor]
    """float32, by the name in `agent.networks`"""
    left_out: tuple[str, ...]
    """networks of which nothing is stored"""
    same_as: dict[str, str]
    """networks that are stored as another one"""

    def fill(self, built: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tensors of networks with these shapes; zeros for what is left out.

        Raises CheckpointError, as for a checkpoint, where the rest does not fit.
        """
        full = dict(self.tensors)
        for name, like in built.items():
            network, _, rest = name.partition(".")
            if network in self.left_out:
                full[name] = torch.zeros(like.shape, dtype=like.dtype)
            elif network in self.same_as:
                full[name] = self.tensors[f"{self.same_as[network]}.{rest}"].clone()
        return full


def choices(agent: str) -> list[str]:
    """The names of the trained agents of that class in the package, such as halfcheetah/mixed."""
    names = [path.stem for path in FOLDER.glob("*.safetensors")]
    found = [name.split("-", 2)[1:] for name in names if name.startswith(f"{agent}-")]
    return sorted("/".join(parts) for parts in found)


def path_of(agent: str, name: str) -> Path:
    """The file of a trained agent. Raises ValueError, with the choices, where there is none."""
    if not isinstance(name, str) or name not in choices(agent):
        known = choices(agent)
        raise ValueError(
            f"name={name!r}, expected one of {known}, trained {agent} agents in the package"
            if known
            else f"name={name!r}: the package holds no trained {agent} agents"
        )
    return FOLDER / f"{agent}-{name.replace('/', '-')}.safetensors"


def pack(
    header: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    left_out: Collection[str] = (),
    same_as: Mapping[str, str] | None = None,
    bits: int = 16,
) -> bytes:
    """The file of a trained agent, from the header of its checkpoint and its networks' tensors.

    Large tensors have 16 or 8 `bits` per number. Raises ValueError for numbers that half
    precision does not hold.
    """
    same_as = dict(same_as or {})
    kept = {
        name: tensor.detach().cpu()
        for name, tensor in tensors.items()
        if name.partition(".")[0] not in {*left_out, *same_as}
    }
    if bits not in (8, 16):
        raise ValueError(f"bits={bits!r}, expected 8 or 16")
    small: dict[str, Tensor] = {}
    for name, tensor in kept.items():
        if tensor.numel() < LARGE or not tensor.is_floating_point():
            small[name] = tensor.contiguous()
        elif bits == 16:
            small[name] = _half(name, tensor)
        else:
            small[name], small[name + FACTOR] = _in_bytes(name, tensor)
    about = {
        "header": {name: value for name, value in header.items() if name not in NOT_STORED},
        "checkpoint_version": header["format_version"],
        "left_out": sorted(left_out),
        "same_as": same_as,
    }
    return save(small, {"qgpo_pretrained": str(FORMAT_VERSION), "about": json.dumps(about)})


def _half(name: str, tensor: Tensor) -> Tensor:
    half = tensor.half()
    if not bool(half.isfinite().all()):
        raise ValueError(
            f"{name} has values up to {float(tensor.abs().max()):g}, which float16 does not hold"
        )
    return half.contiguous()


def _in_bytes(name: str, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127, and the factor of each row (…, 1), float16."""
    factor = _half(f"{name}'s rows", tensor.abs().amax(dim=-1, keepdim=True) / 127.0)
    factor = factor.clamp(min=torch.finfo(torch.float16).tiny)
    return (tensor / factor.float()).round().clamp(-127, 127).to(torch.int8), factor


def read(path: Path) -> Stored:
    """The content of a file that `pack` made. Raises CheckpointError for any other."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("qgpo_pretrained") != str(FORMAT_VERSION):
                raise ValueError("it is of another format")
            about = read_json(metadata["about"].encode())
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = {
            **about["header"],
            "optimizers": {},
            "format_version": about["checkpoint_version"],
        }
        check_header(header)
        tensors = {
            name: _whole(tensor, stored.get(name + FACTOR))
            for name, tensor in stored.items()
            if not name.endswith(FACTOR)
        }
        left_out, same_as = tuple(about["left_out"]), dict(about["same_as"])
        return Stored(upgrade(header), tensors, left_out, same_as)
    except UNREADABLE as error:
        raise CheckpointError(f"{str(path)!r} is no trained agent of qgpo ({error})") from error


def _whole(tensor: Tensor, factor: Tensor | None) -> Tensor:
    if factor is not None:
        return tensor.float() * factor.float()
    return tensor.float() if tensor.dtype == torch.float16 else tensor
