"""Hue and its energy: against the standard library, and by hand."""

from __future__ import annotations

import colorsys

import pytest
import torch

from qgpo.images.colors import (
    HUES,
    hue_distance,
    hue_energies,
    hue_errors,
    hue_saturation,
    rgb,
)


def random_pixels(n=200, dtype=torch.float64):
    return torch.rand(n, 3, 1, 1, generator=torch.Generator().manual_seed(0), dtype=dtype)


def plain(hue, saturation=1.0, value=1.0, size=2):
    """An image of one color, (1, 3, size, size)."""
    channels = (torch.full((1, size, size), x) for x in (hue, saturation, value))
    return rgb(*channels)


def test_hue_and_saturation_are_colorsys_s():
    pixels = random_pixels()
    hue, saturation = hue_saturation(pixels)
    expected = torch.tensor([colorsys.rgb_to_hsv(*p.flatten().tolist()) for p in pixels])
    torch.testing.assert_close(hue.flatten(), expected[:, 0].double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(saturation.flatten(), expected[:, 1].double(), atol=1e-6, rtol=0)


def test_rgb_is_its_inverse():
    hue, saturation, value = torch.rand(3, 50, 4, 4, generator=torch.Generator().manual_seed(1))
    saturation, value = 0.2 + 0.8 * saturation, 0.2 + 0.8 * value
    found, strength = hue_saturation(rgb(hue, saturation, value))
    assert hue_distance(found, hue).max() < 1e-5
    torch.testing.assert_close(strength, saturation, atol=1e-5, rtol=0)


def test_the_gradient_is_that_of_differences():
    pixels = (0.1 + 0.8 * random_pixels(20)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: hue_energies(x)[:, 1:3], pixels, eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_gray_pixels_have_a_finite_gradient(value):
    image = torch.full((2, 3, 4, 4), value, requires_grad=True)
    (gradient,) = torch.autograd.grad(hue_energies(image).sum(), image)
    assert torch.isfinite(gradient).all()


def test_energies_by_hand():
    # red is 0, 1/6, 1/3, 1/2, 1/3, 1/6 away from the six hues
    expected = torch.tensor([[0.0, 1.0, 2.0, 3.0, 2.0, 1.0]]) / 6.0
    torch.testing.assert_close(hue_energies(plain(0.0)), expected)
    # 3 (0.1 - 0.04) more where the mean saturation is 0.04
    torch.testing.assert_close(hue_energies(plain(0.0, 0.04)), expected + 0.18, atol=1e-4, rtol=0)
    torch.testing.assert_close(hue_energies(plain(0.0, 0.11)), expected, atol=1e-5, rtol=0)
    # half red, half blue
    half = torch.cat([plain(0.0), plain(4 / 6)], dim=-1)
    torch.testing.assert_close(hue_energies(half)[0, [0, 5]], torch.tensor([1 / 6, 1 / 6]))


def test_errors_are_the_distances_to_one_target():
    images = torch.cat([plain(0.0), plain(5.5 / 6)])
    torch.testing.assert_close(
        hue_errors(images, torch.tensor([1, 0])), torch.tensor([2.0, 1.0]) / 12
    )
    targets = torch.arange(HUES)
    many = torch.cat([plain(float(i) / HUES) for i in targets])
    assert hue_errors(many, targets).max() < 1e-6
