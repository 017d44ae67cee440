"""Recordings against closed forms: gradients, sizes of the batch, what cannot be recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper  # noqa: E402

from qgpo.agents.core.export.graph import Graph  # noqa: E402
from qgpo.agents.core.export.operators import OPERATORS, Translation  # noqa: E402
from qgpo.agents.core.export.policy import open_session  # noqa: E402
from qgpo.agents.core.export.recording import (  # noqa: E402
    Constant,
    ExportError,
    Size,
    record,
)
from qgpo.density import first_quartile, mode_of_samples  # noqa: E402
from qgpo.networks import FlowNetwork, GaussianPolicy, TwinQ, mlp  # noqa: E402


def recorded(function, width=3):
    return record(lambda batch: {"x": torch.randn(batch, width)}, function)


def run(function, x):
    """The function of rows (B, 3) by ONNX Runtime."""
    graph = Graph("x")
    steps = recorded(function, x.shape[1])
    value = Translation(steps, graph).run(steps)
    graph.nodes.append(helper.make_node("Identity", [value.name], ["y"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", x.shape[1]])]
    shape = ["b" if isinstance(size, Size) else size for size in value.shape]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
    model = graph.model(inputs, outputs, {})
    return open_session(model.SerializeToString()).run(None, {"x": x.numpy()})[0]


def agrees(function, rows=7, width=3, atol=2e-6):
    for batch in (1, rows):
        x = torch.randn(batch, width, generator=torch.Generator().manual_seed(batch))
        np.testing.assert_allclose(run(function, x), function(x).detach(), atol=atol, rtol=1e-5)


def gradient_of(network):
    def gradient(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(network(x).sum(), x)[0]

    return gradient


def test_the_gradient_of_a_square_is_written_out():
    x = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, 1.0]])
    found = run(gradient_of(lambda x: (x**2).sum(dim=-1)), x)
    np.testing.assert_array_equal(found, 2.0 * x)


@pytest.mark.parametrize("activation", ["relu", "silu", "tanh", "mish", "gelu_tanh"])
def test_networks_and_their_gradients(activation):
    network = mlp([3, 8, 8, 1], activation, layer_norm=activation in ("relu", "mish"))
    agrees(lambda x: network(x))
    agrees(gradient_of(network))


def test_gradients_of_both_orders_and_of_the_smaller_of_two():
    network = mlp([3, 8, 1], "silu")

    def slope_of_slope(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            g = torch.autograd.grad(network(x).sum(), x, create_graph=True)[0]
            return torch.autograd.grad((g**2).sum(), x)[0]

    agrees(slope_of_slope)
    critic = TwinQ(2, 1, (8,), layer_norm=True, baseline=True)
    agrees(gradient_of(lambda x: critic(x[:, :2], x[:, 2:])))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.softmax(x, dim=-1) * x.std(dim=-1, keepdim=True),
        lambda x: x.repeat_interleave(4, dim=0).reshape(-1, 4, 3).mean(dim=1),
        lambda x: torch.take_along_dim(x, x.argmax(dim=-1, keepdim=True), dim=1),
        lambda x: torch.cat([x, torch.ones(len(x), 2), 2.0 * x], dim=-1),
        lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True),
        lambda x: first_quartile(x)[:, None],
        lambda x: torch.special.log_ndtr(8.0 * x) / (1.0 + x.abs() ** 2 * 32.0),
        lambda x: -torch.log(-torch.special.log_ndtr(x.abs())),
        lambda x: torch.where(x > 0.0, x, 0.5).clamp(-0.7, 0.7) - x.amin(dim=-1, keepdim=True),
        lambda x: mode_of_samples(x[:, None] * torch.linspace(-1.0, 2.0, 5)[:, None]),
        lambda x: GAUSSIAN.moments(x)[0] + GAUSSIAN.moments(x)[1],
        lambda x: FLOW(x, x.new_full((len(x),), 0.25), x),
    ],
)
def test_functions_of_rows(function):
    agrees(function)


torch.manual_seed(0)
GAUSSIAN = GaussianPolicy(3, 2, (8,), state_dependent_std=True)
FLOW = FlowNetwork(3, 3, (8,))


def test_noise_that_all_members_share_is_stored_once():
    noise = torch.randn(4, 3)

    def noisy(x):
        return (noise.repeat(len(x), 1) + x.repeat_interleave(4, dim=0)).reshape(len(x), 4, 3)[:, 1]

    agrees(noisy)
    constants = [a for s in recorded(noisy).steps for a in s.args if isinstance(a, Constant)]
    assert [(c.shape, tuple(c.value.shape)) for c in constants] == [((Size(4), 3), (4, 3))]


def test_what_changes_no_output_is_left_out():
    network = nn.Linear(3, 3)

    def wasteful(x):
        network(x)
        return x + 1.0

    assert [step.name for step in recorded(wasteful).steps] == ["add.Tensor"]


def test_in_place_operators_are_recorded_where_nobody_else_sees_them():
    def fresh(x):
        y = x * 2.0
        y += x
        y.clamp_(-1.0, 1.0)
        return y

    agrees(fresh)

    def shared(x):
        y = x * 2.0
        y[:, 0] += 1.0
        return y

    with pytest.raises(ExportError, match="in place that others share"):
        recorded(shared)


def test_what_holds_for_one_batch_alone_is_refused():
    with pytest.raises(ExportError, match="known only while acting"):
        recorded(lambda x: x if x.sum() > 0.0 else -x)
    with pytest.raises(ExportError, match="place in the batch"):
        recorded(lambda x: x + torch.arange(len(x))[:, None])
    with pytest.raises(ExportError, match="do not depend on the observations"):
        recorded(lambda x: torch.zeros_like(x))
    with pytest.raises(ExportError, match="a size is 4 and 5"):
        recorded(lambda x: torch.cat([x, x[:1], x[:1]]))
    with pytest.raises(ExportError, match=r"operator aten\.linalg_eig"):
        recorded(lambda x: torch.linalg.eigvals(x[:, :, None] * x[:, None]).real)
    with pytest.raises(ExportError, match=r"operator cumprod\.default has no translation"):
        run(lambda x: x.cumprod(dim=-1), torch.ones(1, 3))
    assert "cumprod.default" not in OPERATORS
