"""The parts of benchmarks/speed.py that measure nothing."""

from __future__ import annotations

import importlib

import pytest
import torch
from factory import ROOT
from torch import nn

from qgpo.networks import BatchedMLP


@pytest.fixture(scope="module")
def speed():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("speed")


def test_products_of_a_step_are_counted_with_their_layouts(speed):
    layer = nn.Linear(3, 5)
    x = torch.randn(7, 3, requires_grad=True)
    with speed.Products() as products:
        layer(x).sum().backward()
    forward = speed.Product((1, 7, 3, 5), (False, True))
    assert products.counts[forward] == 1
    assert sum(products.counts.values()) == 3  # and the gradients of x and of the weight
    assert products.operations == 3 * 2 * 7 * 3 * 5


def test_products_that_are_written_out_are_counted_too(speed):
    network, x = BatchedMLP(2, [3, 4, 1], layer_norm=True), torch.randn(2, 6, 3)
    with speed.Products() as products:
        network(x).sum().backward()
    first, last = 2 * 6 * 3 * 4, 2 * 6 * 4 * 1
    # forwards, the weights' gradients, and that of the hidden layer; two heads
    assert products.operations == 2 * (first + last + first + last + last)


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("heads", [1, 3])
def test_a_product_is_computed_in_its_own_shape_and_layout(speed, heads, turned):
    product = speed.Product((heads, 4, 2, 5), turned)
    with speed.Products() as products:
        result = product.function()()
    assert result.shape[-2:] == (4, 5)
    assert dict(products.counts) == {product: 1}


def presets(*quotients):
    stages = {f"{i}": {"times_the_products": q} for i, q in enumerate(quotients)}
    return {"laptop": {"stages": stages}}


def test_what_has_become_slower_is_named(speed):
    committed = presets(2.0, 3.0)
    assert speed.slower(speed.growth(presets(2.2, 1.0), committed)) == []
    assert speed.slower(speed.growth(presets(2.4, 1.0), committed)) == [
        "laptop, 0: 2.40 times its products, was 2.00"
    ]
    assert speed.growth({"other": presets(9.0)["laptop"]}, committed) == {}


def test_what_all_have_grown_by_is_of_the_machine(speed):
    committed = presets(2.0, 2.0, 2.0, 2.0, 2.0)
    pairs = speed.growth(presets(3.0, 3.0, 3.0, 3.3, 3.6), committed)
    assert speed.usual_growth(pairs) == 1.5
    assert speed.slower(pairs) == ["laptop, 4: 3.60 times its products, was 2.00"]
    faster = speed.growth(presets(1.0, 1.0, 1.0, 1.0, 2.2), committed)
    assert speed.slower(faster) == []


def test_a_row_has_rates_and_ratios(speed):
    rows = {"step": [2.0, 4.0, 3.0], "products": [1.0, 1.0, 2.0], "theirs": [2.0, 2.0, 9.0]}
    row = speed.row(rows, operations=6e9, units=2.0)
    assert row["milliseconds"] == 3000.0
    assert row["gigaflop_per_second"] == 2.0
    assert row["of_the_products_alone"] == 6.0
    assert row["times_the_products"] == 2.0
    assert row["outside"] == 0.5
    assert row["reference_milliseconds"] == 4000.0
    assert row["reference_over_ours"] == 2.0


def test_a_wrong_clone_is_refused(speed, tmp_path):
    with pytest.raises(SystemExit, match="--reference must be a clone of"):
        speed.Authors(tmp_path, None)
