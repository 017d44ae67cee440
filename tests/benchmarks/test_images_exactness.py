"""benchmarks/images_exactness.py: the exact f* beside what random colorings say."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from factory import ROOT

pytest.importorskip("diffusers", reason="the images extra is not installed")

from qgpo.envs.images import Images, color
from qgpo.images.colors import hue_energies
from qgpo.schedule import make_schedule


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("images_exactness")


def test_f_is_the_mean_over_colorings(benchmark):
    gray = np.array([[[0, 200], [220, 90]], [[255, 30], [10, 240]]], np.uint8)
    schedule, beta = make_schedule("cosine"), 8.0
    level = torch.as_tensor(gray).flatten(1) / 255.0
    exact = benchmark.ColoredDigits(level, schedule, beta, hues=60, saturations=3)
    colored = color(Images(gray[:, None], np.array([0, 1]), ("a", "b")), 60_000, seed=1).pixels
    pixels = torch.as_tensor(colored) / 255.0
    x_0 = 2.0 * pixels.flatten(1) - 1.0
    x_t = 0.5 * torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.5, 0.6, 0.8])
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    for i in range(3):
        distance = (x_t[i] - alpha[i] * x_0).square().sum(dim=1) / sigma[i] ** 2
        posterior = torch.log_softmax(-0.5 * distance, dim=0)
        for hue in (0, 4):
            expected = torch.logsumexp(posterior - beta * hue_energies(pixels)[:, hue], dim=0)
            found = exact.f(x_t[i : i + 1], t[i : i + 1], torch.tensor([hue]))
            assert float(found) == pytest.approx(float(expected), abs=0.06)


def test_its_gradient_is_that_of_each_image(benchmark):
    schedule = make_schedule("cosine")
    exact = benchmark.ColoredDigits(torch.rand(3, 4).round(), schedule, 8.0, 12, 1)
    x_t, t = torch.randn(8, 12), torch.full((8,), 0.6)
    target = torch.arange(8) % 6
    whole = exact.gradient(x_t, t, target)
    alone = exact.gradient(x_t[6:7], t[6:7], target[6:7])
    torch.testing.assert_close(whole[6:7], alone, atol=1e-4, rtol=1e-4)
    step = 1e-2 * whole[0] / whole[0].norm()
    up, down = (exact.f(x_t[:1] + s * step, t[:1], target[:1]) for s in (1, -1))
    slope = float((up - down) / (2 * 1e-2))
    assert slope == pytest.approx(float(whole[0].norm()), rel=0.05)
