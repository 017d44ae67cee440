"""Networks of images: their shapes, their start, and where a foreign U-Net has its noise levels."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="the images extra is not installed")

from qgpo.images.networks import (
    CleanImageEnergy,
    ImageClassifier,
    ImageEnergy,
    ImageNetwork,
    unet_settings,
)
from qgpo.schedule import make_schedule

SHAPE = (3, 8, 4)
SETTINGS = unet_settings(SHAPE, (8, 16), 1, (1,), 4)
COSINE = make_schedule("cosine")


def noisy(n=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 96, generator=generator), torch.rand(n, generator=generator)


def test_a_data_model_s_network_starts_at_zero_and_learns():
    network = ImageNetwork(SHAPE, SETTINGS, COSINE)
    x, t = noisy()
    out = network(x, t, None)
    assert out.shape == x.shape
    assert out.abs().max() == 0.0
    (out - 1.0).square().sum().backward()
    assert network.unet.conv_out.weight.grad.abs().sum() > 0.0


@pytest.mark.parametrize(("outputs", "shape"), [(0, (3,)), (1, (3, 1)), (5, (3, 5))])
def test_energies_see_image_and_time(outputs, shape):
    torch.manual_seed(0)
    network = ImageEnergy(SHAPE, SETTINGS, outputs)
    x, t = noisy()
    f = network(x, t, None)
    assert f.shape == shape
    assert (network(x + 1.0, t, None) - f).abs().min() > 0.0
    assert (network(x, 1.0 - t, None) - f).abs().min() > 0.0


def test_clean_energies_have_any_leading_dimensions():
    network = CleanImageEnergy(SHAPE, SETTINGS, 2)
    x, _ = noisy(6)
    torch.testing.assert_close(network(x.reshape(2, 3, -1)), network(x).reshape(2, 3, 2))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 33, 64)])
def test_the_classifier_takes_any_size(shape):
    network = ImageClassifier(shape, 7, width=4, n_features=5)
    images = torch.rand(2, *shape)
    assert network.features(images).shape == (2, 5)
    assert network(images).shape == (2, 7)


def test_foreign_noise_levels_are_found_by_their_noise():
    network = ImageNetwork(SHAPE, SETTINGS, COSINE, levels=10)
    network.half_log_snr.copy_(torch.linspace(3.0, -6.0, 10))
    level = torch.tensor([3.0, 0.0, -0.5, -6.0, 5.0, -9.0])
    t = COSINE.inverse_half_log_snr(level)
    expected = torch.tensor([0.0, 3.0, 3.5, 9.0, 0.0, 9.0])
    torch.testing.assert_close(network.time_step(t), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SHAPE, (8, 16, 16, 16), 1, (), 4), "expected a height and a width that 8 divides"),
        ((SHAPE, (8, 10), 1, (), 4), "multiples of norm_groups=4"),
        ((SHAPE, (8, 16), 1, (2,), 4), r"attention=\(2,\)"),
    ],
)
def test_sizes_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        unet_settings(*arguments)
