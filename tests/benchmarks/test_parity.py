"""The parts of benchmarks/parity.py that need neither JAX nor the authors' code."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from factory import ROOT

from qgpo.networks import gelu_mlp, gelu_twin_q


@pytest.fixture
def part(monkeypatch):
    """Imports a module of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def flax_dense(rng, fan_in, fan_out):
    return {"kernel": rng.normal(size=(fan_in, fan_out)), "bias": rng.normal(size=fan_out)}


def forward(net, x):
    """Dense, GELU by tanh, LayerNorm, Dense, as Flax lays out the arrays."""
    x = x @ net["Dense_0"]["kernel"] + net["Dense_0"]["bias"]
    x = 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    if "LayerNorm_0" in net:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = x * net["LayerNorm_0"]["scale"] + net["LayerNorm_0"]["bias"]
    return x @ net["Dense_1"]["kernel"] + net["Dense_1"]["bias"]


def test_copied_weights_give_the_same_network(part):
    rng = np.random.default_rng(0)
    norm = {"scale": rng.normal(size=4), "bias": rng.normal(size=4)}
    net = {"Dense_0": flax_dense(rng, 3, 4), "Dense_1": flax_dense(rng, 4, 2), "LayerNorm_0": norm}
    x = rng.normal(size=(5, 3))
    ours = gelu_mlp([3, 4, 2], layer_norm=True)
    part("parity_losses").copy_weights({"value_net": net}, ours)
    found = ours(torch.tensor(x, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(found, forward(net, x), rtol=1e-4, atol=1e-5)
    del net["LayerNorm_0"]  # and a policy, whose last layer has a name of its own
    ours = gelu_mlp([3, 4, 2])
    policy = {"actor_net": {"Dense_0": net["Dense_0"]}, "mean_net": net["Dense_1"]}
    part("parity_losses").copy_weights(policy, ours)
    found = ours(torch.tensor(x, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(found, forward(net, x), rtol=1e-4, atol=1e-5)


def test_copied_weights_of_two_heads(part):
    rng = np.random.default_rng(0)
    sizes = ((3, 4), (4, 1))
    heads = [{f"Dense_{i}": flax_dense(rng, *sizes[i]) for i in range(2)} for _ in range(2)]
    both = {
        layer: {name: np.stack([head[layer][name] for head in heads]) for name in first}
        for layer, first in heads[0].items()
    }
    critic, x = gelu_twin_q(2, 1, (4,), layer_norm=False), rng.normal(size=(5, 3))
    part("parity_losses").copy_weights({"value_net": both}, critic)
    seen = torch.tensor(x, dtype=torch.float32)
    found = critic.both(seen[:, :2], seen[:, 2:]).detach().numpy()
    expected = [forward(head, x)[:, 0] for head in heads]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="parameters"):
        part("parity_losses").copy_weights({"value_net": both}, gelu_twin_q(2, 2, (4,), False))


def test_differences_are_relative_to_theirs(part):
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([0.1])]
    expected = [np.array([3.0, 4.0]), np.array([0.1])]
    found = part("parity_losses").difference(1.5, 2.0, gradients, expected)
    assert found.loss == pytest.approx(0.25)
    assert found.gradient == pytest.approx(4.0 / math.sqrt(25.01))
    assert found.tensor == pytest.approx(0.8)


def test_newcombe_s_own_example(part):
    # 56 of 70 and 48 of 80: 0.0524 to 0.3339 by method 10 (Newcombe 1998, table II)
    newcombe = part("parity_training").newcombe
    first, second = ([i < won for i in range(n)] for won, n in ((56, 70), (48, 80)))
    assert newcombe(first, second) == pytest.approx((5.24, 33.39), abs=5e-3)
    low, high = newcombe([False] * 10, [False] * 10)
    assert low == pytest.approx(-high)
    assert 20.0 < high < 30.0
    assert newcombe([True] * 10, [False] * 10)[1] == pytest.approx(100.0)
