"""Pictures of images: grids of samples with numbers under them, and curves of two measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from qgpo.envs.data.figure import BLUE, GRAY, GREEN, ORANGE
from qgpo.experiments.image_study import EXACT, UNGUIDED, Outcome, Task, error_at, mean_at, mean_of

LIGHT_BLUE = "#63b3ed"
COLORS = {
    "CEP": BLUE,
    "CEP, plain": LIGHT_BLUE,
    "classifier": ORANGE,
    "MSE": ORANGE,
    "DPS": GREEN,
    UNGUIDED: GRAY,
}
LEVELS = (0.9, 0.88, 0.86, 0.84, 0.82)
"""diversities at which hue errors are compared"""
SIDE = 3
"""images along a panel's edge"""


def tile(images: Tensor, columns: int) -> NDArray[np.float32]:
    """Images (N, C, H, W) in rows of `columns`, one pixel apart: (height, width, 3)."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    canvas = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), np.float32)
    pixels = images.expand(-1, 3, -1, -1) if channels == 1 else images
    for i, image in enumerate(pixels.permute(0, 2, 3, 1).cpu().numpy()):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        canvas[top : top + height, left : left + width] = image
    return canvas


def panel(axis: Any, images: Tensor, columns: int, text: str = "") -> None:
    """Draw a grid of images with a line under it."""
    axis.imshow(tile(images, columns), vmin=0.0, vmax=1.0, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(text, fontsize=7, labelpad=2)
    for spine in axis.spines.values():
        spine.set_visible(False)


def draw_samples(task: Task, outcome: Outcome, shown: Sequence[tuple[str, float]]) -> Figure:
    """One row per method and scale, one column per target, the row's numbers under it."""
    names, n = outcome.targets, SIDE * SIDE
    size = (1.02 * len(names) + 1.1, 1.22 * len(shown) + 0.35)
    figure = Figure(size, layout="constrained")
    grid = figure.subplots(len(shown), len(names), squeeze=False)
    for axes, (method, scale) in zip(grid, shown, strict=True):
        samples = outcome.samples[method, scale]
        for i, (axis, name) in enumerate(zip(axes, names, strict=True)):
            panel(axis, samples[i :: len(names)][:n], SIDE)
            if (method, scale) == shown[0]:
                axis.set_title(name, fontsize=8)
        (row,) = [r for r in outcome.rows if (r["method"], r["scale"]) == (method, scale)]
        axes[0].set_ylabel(method if scale == 0.0 else f"{method}\nw = {scale:g}", fontsize=8)
        axes[len(names) // 2].set_xlabel(numbers(task, row), fontsize=8, labelpad=3)
    return figure


def draw_rows(rows: Mapping[str, Tensor]) -> Figure:
    """A row of images (N, C, H, W) under each title."""
    n = max(len(images) for images in rows.values())
    figure = Figure((0.45 * n + 1.0, 0.55 * len(rows) + 0.2), layout="constrained")
    for axis, (title, images) in zip(
        figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True
    ):
        panel(axis, images, n)
        axis.set_ylabel(title, fontsize=8, rotation=0, ha="right", va="center")
    return figure


def numbers(task: Task, row: dict[str, Any]) -> str:
    """The measures of one row of panels."""
    first = (
        f"hue error {row['hue_error']:.3f}"
        if task.name == "hues"
        else f"accuracy {100.0 * row['accuracy']:.0f} %"
    )
    return f"{first}, Fréchet {row['frechet']:.3g}, diversity {row['diversity']:.2f}"


def draw_curves(task: Task, rows: Sequence[dict[str, Any]]) -> Figure:
    """Error against diversity, a curve per method over its scales: means and intervals."""
    figure = Figure((5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    key, label = ("hue_error", "hue error") if task.name == "hues" else ("accuracy", "accuracy")
    for method in task.methods:
        points = [(UNGUIDED, 0.0), *((method, scale) for scale in task.scales)]
        x = [mean_at(rows, "diversity", *point) for point in points]
        y = [mean_at(rows, key, *point) for point in points]
        color = COLORS.get(method, GRAY)
        axis.errorbar(
            [m.mean for m in x],
            [m.mean for m in y],
            xerr=[m.half for m in x],
            yerr=[m.half for m in y],
            fmt="o-",
            markersize=4,
            elinewidth=0.8,
            color=color,
            label=method,
        )
        for a, b, (_, scale) in zip(x, y, points, strict=True):
            if scale:
                axis.annotate(f"{scale:g}", (a.mean, b.mean), fontsize=7, xytext=(3, 3),
                              textcoords="offset points", color=color)  # fmt: skip
    exact = [mean_at(rows, measure, EXACT, 1.0).mean for measure in ("diversity", key)]
    axis.plot(*[[value] for value in exact], "*", ms=11, color="black", label="exact p")
    if task.name == "hues":
        axis.set_yscale("log")
    axis.set(xlabel="diversity within a target (data: 1)", ylabel=label)
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    return figure


def equal_diversity(
    task: Task, rows: Sequence[dict[str, Any]], levels: Sequence[float]
) -> list[list[str]]:
    """Hue error of each method at the same diversity, a row per level; "-" where not reached."""
    seeds = sorted({row["seed"] for row in rows})
    table = []
    for level in levels:
        cells = [f"{level:g}"]
        for method in task.methods:
            errors = [error_at(rows, method, seed, level) for seed in seeds]
            reached = [error for error in errors if error is not None]
            cells.append(str(mean_of(reached)) if len(reached) == len(seeds) else "-")
        table.append(cells)
    return table
