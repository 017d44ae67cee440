from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qgpo.agents.core.training import adam_step, total_norm


def step_by_both(make, change=lambda optimizer: None, steps=4):
    """Parameters and states of two copies, by `adam_step` and by the optimizer itself."""
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    found = []
    for take_step in (adam_step, lambda optimizer: optimizer.step()):
        network = copy.deepcopy(start)
        optimizer = make(network.parameters())
        change(optimizer)
        generator = torch.Generator().manual_seed(1)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (step + 1)
            for parameter in network.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            take_step(optimizer)
        states = [optimizer.state[p] for p in network.parameters()]
        found.append(([*network.parameters()], states))
    return found


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, fused=True),
        lambda p: torch.optim.Adam(p, fused=True, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, fused=True, amsgrad=True),
        lambda p: torch.optim.Adam(p),
        lambda p: torch.optim.AdamW(p, fused=True),
    ],
)
def test_steps_are_the_optimizers_own_bit_for_bit(make):
    (ours, our_states), (theirs, their_states) = step_by_both(make)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for one, other in zip(our_states, their_states, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_hooks_are_called():
    calls = []
    step_by_both(
        lambda p: torch.optim.Adam(p, fused=True),
        lambda optimizer: optimizer.register_step_post_hook(lambda *_: calls.append(1)),
        steps=2,
    )
    assert len(calls) == 4


def test_parameters_without_a_gradient_stay():
    network = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1.0, fused=True)
    before = network.bias.detach().clone()
    for _ in range(2):
        network.weight.grad = torch.ones(2, 2)
        adam_step(optimizer)
    assert torch.equal(network.bias, before)


def test_norm_of_all():
    assert float(total_norm([torch.tensor([[3.0]]), torch.tensor([0.0, 4.0])])) == 5.0
    assert float(total_norm([])) == 0.0
