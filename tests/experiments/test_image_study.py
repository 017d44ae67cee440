"""Curves and intervals of the study by hand; the study itself runs as a command."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="the images extra is not installed")

from qgpo.envs.images import Images
from qgpo.experiments.image_figure import tile
from qgpo.experiments.image_study import (
    TASKS,
    UNGUIDED,
    class_energies,
    error_at,
    exact_rows,
    mean_of,
)


def rows(method, seed, *points):
    return [
        {"method": method, "scale": scale, "seed": seed, "diversity": d, "hue_error": e}
        for scale, d, e in points
    ]


CURVE = [
    *rows(UNGUIDED, 0, (0.0, 1.0, 0.25)),
    *rows("CEP", 0, (1.0, 0.8, 0.04), (2.0, 0.6, 0.01)),
    *rows("DPS", 0, (1.0, 0.5, 0.02)),
    *rows("CEP", 1, (1.0, 0.2, 0.5)),
]


def test_the_error_at_equal_diversity_lies_on_the_curve():
    assert error_at(CURVE, "CEP", 0, 0.8) == pytest.approx(0.04)
    assert error_at(CURVE, "CEP", 0, 0.7) == pytest.approx(0.02)  # the geometric middle
    assert error_at(CURVE, "CEP", 0, 0.9) == pytest.approx(0.1)
    assert error_at(CURVE, "CEP", 0, 0.5) is None
    assert error_at(CURVE, "DPS", 0, 0.75) == pytest.approx((0.25 * 0.02) ** 0.5)


def test_intervals_are_student_s():
    mean, low, high = mean_of([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert high - mean == pytest.approx(4.3027 / 3.0**0.5, rel=1e-4)
    assert low == pytest.approx(4.0 - high)
    assert mean_of([5.0]) == (5.0, None, None)
    assert str(mean_of([5.0])) == "5"


def test_class_energies_are_zero_for_the_own_class():
    found = class_energies(torch.tensor([2, 0]).numpy(), 3)
    assert found.tolist() == [[30.0, 30.0, 0.0], [0.0, 30.0, 30.0]]
    for labels, message in (([0, 3], "up to 3"), ([-1, 0], "from -1"), ([0.5, 1.0], "float64")):
        with pytest.raises(ValueError, match=f"labels .*{message}"):
            class_energies(np.array(labels), 3)


def test_images_are_tiled_row_by_row():
    images = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 2, 2) / 2.0
    tiled = tile(images, columns=2)
    assert tiled.shape == (5, 5, 3)
    assert tiled[0, 0, 0] == 0.0
    assert tiled[0, 3, 1] == 0.5
    assert tiled[3, 0, 2] == 1.0
    assert tiled[2].min() == 1.0  # between the rows


def test_exact_samples_are_drawn_by_the_energy():
    pixels = np.full((300, 3, 2, 2), 255, np.uint8)
    pixels[::3, 1:] = pixels[1::3, ::2] = pixels[2::3, :2] = 0  # red, green and blue in turn
    images = Images(pixels, np.arange(300) % 2, ("even", "odd"))
    targets = np.arange(60) % 6
    rows = exact_rows(TASKS["hues"], images, targets, seed=0)
    assert len(set(rows[targets == 0])) == 10
    expected = {0: {0}, 1: {0, 1}, 2: {1}, 3: {1, 2}, 4: {2}, 5: {0, 2}}
    for target, hues in expected.items():
        assert set(rows[targets == target] % 3) == hues
    with pytest.raises(ValueError, match=r"160 images of target 0, of which the data have 150"):
        exact_rows(TASKS["classes"], images, np.arange(320) % 2, seed=0)
    of_class = exact_rows(TASKS["classes"], images, targets % 2, seed=0)
    assert (images.labels[of_class] == targets % 2).all()


def test_a_judge_of_hues_sees_brightness_alone():
    task, generator = TASKS["hues"], torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, 4, 4, generator=generator)
    turned = images.roll(1, dims=1)
    assert task.seen(images).shape == (5, 1, 4, 4)
    torch.testing.assert_close(task.seen(images), task.seen(turned))
    np.testing.assert_array_equal(task.seen(images.numpy()), task.seen(images).numpy())
    assert TASKS["classes"].seen(images) is images
