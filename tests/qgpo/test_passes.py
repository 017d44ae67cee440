from __future__ import annotations

import pytest
import torch

from qgpo import passes
from qgpo.networks import BatchedMLP, HeadsOfQ
from qgpo.passes import ROWS, plainly


def results(network, inputs, weights):
    """Outputs with and without a graph, and the gradients of a weighted sum of squares."""
    network.zero_grad()
    outputs = network(inputs)
    (weights * outputs**2).sum().backward()
    with torch.no_grad():
        alone = network(inputs)
    return [outputs.detach(), alone, *(p.grad.clone() for p in network.parameters())]


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("activation", ["relu", "silu", "tanh"])
@pytest.mark.parametrize(("rows", "inputs"), [(5, 1), (ROWS + 3, 4)])
def test_values_and_gradients_are_those_of_the_operators(layer_norm, activation, rows, inputs):
    torch.manual_seed(0)
    network = BatchedMLP(3, [inputs, 16, 8, 2], activation, layer_norm)
    for parameter in (*network.gains, *network.shifts):
        torch.nn.init.normal_(parameter)
    x, weights = torch.randn(3, rows, inputs), torch.randn(3, rows, 2)
    fast = results(network, x, weights)
    with plainly():
        slow = results(network, x, weights)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_one_layer_by_hand():
    network = BatchedMLP(1, [2, 2, 1])
    values = [[[1.0, -1.0], [0.0, 2.0]]], [[[0.5, 0.5]]], [[[1.0], [3.0]]], [[[0.25]]]
    hidden, bias, last, last_bias = map(torch.tensor, values)
    for parameter, value in zip(network.parameters(), (hidden, last, bias, last_bias), strict=True):
        parameter.data.copy_(value)
    outputs = network(torch.tensor([[[1.0, 1.0], [2.0, 0.0]]]))
    # hidden (1.5, 1.5) and (2.5, -1.5)
    assert outputs.tolist() == [[[1.5 + 4.5 + 0.25], [2.5 + 0.25]]]
    outputs.sum().backward()
    assert network.weights[0].grad.tolist() == [[[3.0, 3.0], [1.0, 3.0]]]
    assert network.weights[1].grad.tolist() == [[[4.0], [1.5]]]
    assert network.biases[0].grad.tolist() == [[[2.0, 3.0]]]


def test_inputs_that_need_a_gradient_get_it():
    network = HeadsOfQ(2, 3, 2, (8, 8), layer_norm=True)
    states, actions = torch.randn(2, 4, 3), torch.randn(2, 4, 1, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(network.every(states, actions).sum(), actions)
    assert gradient.abs().max() > 0.0


def test_frozen_parameters_get_no_graph():
    network = BatchedMLP(2, [3, 4, 1], layer_norm=True).requires_grad_(False)
    assert not network(torch.randn(2, 5, 3)).requires_grad


def test_written_out_where_it_can_be(monkeypatch):
    calls = []
    monkeypatch.setattr(passes, "_forward", lambda *a: calls.append(1) or torch.zeros(2, 5, 1))
    network = BatchedMLP(2, [3, 4, 1])
    network(torch.randn(2, 5, 3))
    assert calls == [1]
    with plainly():
        network(torch.randn(2, 5, 3))
    network.double()(torch.randn(2, 5, 3, dtype=torch.float64))
    assert calls == [1]
