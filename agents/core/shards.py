"""One training on several processes, which share the work of the networks.

Every process has the same seed and the same data, so it draws the same batches and the same noise.
A shared network computes a process's own part of a batch and gathers the parts of all: whatever
follows, such as the contrast over K samples, sees the whole batch. Gradients are those of the own
part until `add_gradients` adds them. A training on P processes therefore is the one on a single
process, in other sums. Start them with torchrun or `accelerate launch`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@contextlib.contextmanager
def joined() -> Iterator[torch.device | str]:
    """Join the processes that the launcher has started, if any; gives the device of this one.

    GPUs talk by NCCL, CPUs by gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield "auto"
        return
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("gloo" if device.type == "cpu" else "nccl")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def n_processes() -> int:
    """How many processes share the work."""
    started = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if started else 1


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return n_processes() == 1 or distributed.get_rank() == 0


def share(network: ModuleT) -> ModuleT:
    """The network, which from now on computes its part of every batch; alone, it stays as it is.

    Its inputs are tensors (B, ...) or None, its output is a tensor (B, ...).
    """
    if n_processes() > 1:
        network.register_forward_pre_hook(_take_own)
        network.register_forward_hook(_gather)
    return network


def _take_own(network: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    network.rows_of_all = len(inputs[0])
    return tuple(x if x is None else _Own.apply(x) for x in inputs)  # type: ignore[no-untyped-call]


def _gather(network: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    whole: Tensor = _Whole.apply(output)  # type: ignore[no-untyped-call]
    return whole[: network.rows_of_all]


class _Own(torch.autograd.Function):
    """The own part of (B, ...); backwards, the parts of all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return x[_own_rows(len(x), x.device)]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _all_parts(gradients[0])[: ctx.rows]


class _Whole(torch.autograd.Function):
    """The parts of all; backwards, the own part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return _all_parts(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (whole,) = gradients
        return whole.chunk(n_processes())[distributed.get_rank()].contiguous()


def _own_rows(n: int, device: torch.device) -> Tensor:
    """Rows of this process: as many for each, so the last row may come several times."""
    each = -(-n // n_processes())
    first = distributed.get_rank() * each
    return torch.arange(first, first + each, device=device).clamp(max=n - 1)


def _all_parts(part: Tensor) -> Tensor:
    parts = part.new_empty(n_processes() * len(part), *part.shape[1:])
    distributed.all_gather_into_tensor(parts, part.contiguous())
    return parts


def add_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the sum of the gradients of all."""
    if n_processes() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, total in zip(gradients, flat.split(sizes), strict=True):
        gradient.copy_(total.view_as(gradient))


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in one of the processes: they stop together."""
    if n_processes() == 1:
        return flag
    flags = torch.tensor(int(flag), device=device)
    distributed.all_reduce(flags, distributed.ReduceOp.MAX)
    return bool(flags)
