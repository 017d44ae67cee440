"""The states of generators that a checkpoint may hold: those that torch writes, and no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qgpo.agents.core.parsing import CheckpointError
from qgpo.agents.core.registers import CPU_LAYOUT, CPU_STATE, GeneratorState, check_tables

KINDS = {"generator/x": GeneratorState()}


def state_after(draws, normals=0):
    generator = torch.Generator().manual_seed(2**64 - 1)
    for _ in range(draws):
        torch.rand((), generator=generator)
    torch.randn(normals, generator=generator)
    return generator.get_state()


@pytest.mark.parametrize("normals", [0, 1, 2, 16, 17])
@pytest.mark.parametrize("draws", [0, 1, 2, 623, 624, 625, 1247, 1248, 10_000])
def test_every_state_of_a_generator_is_taken(draws, normals):
    assert CPU_LAYOUT.itemsize == CPU_STATE
    check_tables({"generator/x": state_after(draws, normals)}, KINDS)


@pytest.mark.parametrize(
    "changes",
    [
        {"left": 624, "next": 624},
        {"left": 620, "next": 6},
        {"left": 1, "next": 623},
        {"left": 0, "next": 625},
        {"left": -1, "next": 626},
        {"left": 625, "next": 0},
        {"next": 2**63},
        {"seeded": 0},
        {"has_normal": 2},
        {"has_normal": 1, "normals": (0.0, 1e300, 0.0)},
        {"normals": (0.0, np.nan, 0.0)},
        {"has_float_normal": 1, "float_normal": np.inf},
        {"has_float_normal": 2},
        {"words": 2**32},
        {"words": 0},
        {"padding": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("draws", [0, 5])
def test_a_state_that_torch_does_not_write_is_refused_before_it_is_tried(draws, changes):
    fields = np.frombuffer(state_after(draws, 1).numpy().tobytes(), CPU_LAYOUT).copy()
    for name, value in changes.items():
        fields[name] = value
    state = torch.frombuffer(bytearray(fields.tobytes()), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="not a generator state"):
        check_tables({"generator/x": state}, KINDS)
