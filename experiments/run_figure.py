"""Pictures of a run."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qgpo.envs.data.figure import BLUE, GRAY, GREEN, ORANGE, save
from qgpo.envs.play.scores import Evaluation
from qgpo.envs.text import readable, wrap

CURVES = {
    "behavior/loss": "behavior: denoising loss",
    "critic/loss": "critic: TD loss",
    "critic/q": "critic: mean Q",
    "energy/excess": "energy: excess cross entropy",
    "training/loss": "critic: TD loss",
    "training/q": "critic: mean Q",
    "training/actor_loss": "policy: loss",
    "training/mse": "policy: squared error on the data",
    "training/denoising_loss": "policy: denoising loss",
}
"""metrics that are drawn where they were logged, and the titles of their panels"""

Series = tuple[list[float], list[float]]
"""timesteps and values of a metric"""


def read_metrics(path: Path) -> dict[str, Series]:
    """Each metric of a metrics.csv that was logged in its own stage."""
    series: dict[str, Series] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name.split("/")[0] == row["time/stage"]:
                    steps, values = series.setdefault(name, ([], []))
                    steps.append(float(row["time/total_timesteps"]))
                    values.append(float(value))
    return series


def draw_run(
    path: Path,
    title: str,
    metrics: dict[str, Series],
    behavior_returns: NDArray[np.float64],
    evaluations: Sequence[tuple[str, Evaluation]],
) -> None:
    """Learning curves per stage above, and below what each agent reached.

    That is the returns of the data and of the agents, or the agents' successes.
    """
    curves = [name for name in CURVES if name in metrics]
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    grid = figure.add_gridspec(2, max(1, len(curves)), height_ratios=(1, 1.6))
    for column, name in enumerate(curves):
        axis = figure.add_subplot(grid[0, column])
        steps, values = metrics[name]
        axis.plot(np.asarray(steps) / 1000, values, color=BLUE, lw=1.5, marker=".", ms=4)
        axis.set_title(CURVES[name], fontsize=8)
        axis.set_xlabel("gradient steps / 1000", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
    axis = figure.add_subplot(grid[1, :])
    if any(evaluation.successes is not None for _, evaluation in evaluations):
        _draw_successes(axis, evaluations)
    else:
        _draw_returns(axis, behavior_returns, evaluations)
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(wrap(title, 110), fontsize=11)
    save(figure, path)


def _draw_returns(
    axis: Any,
    behavior_returns: NDArray[np.float64],
    evaluations: Sequence[tuple[str, Evaluation]],
) -> None:
    """A row for the data and for each evaluation: every episode's return, and their mean."""
    names = ["data (behavior policies)", *(name for name, _ in evaluations)]
    played = [behavior_returns, *(np.asarray(e.returns) for _, e in evaluations)]
    colors = [GRAY, *_colors(len(evaluations))]
    rng = np.random.default_rng(0)
    for y, returns in enumerate(played):
        mean, color = returns.mean(), colors[y]
        jitter = y + rng.uniform(-0.22, 0.22, len(returns))
        axis.scatter(returns, jitter, s=9, color=color, alpha=0.35, lw=0)
        axis.plot([mean, mean], [y - 0.32, y + 0.32], color=color, lw=3)
        _write_above(axis, mean, y, readable(float(mean)), color)
    _label_rows(axis, names)
    axis.set_xlabel("episode return (dots: episodes, bar: mean)")


def _draw_successes(axis: Any, evaluations: Sequence[tuple[str, Evaluation]]) -> None:
    """A row for each evaluation: the percentage of successes, and its interval."""
    for y, ((_, played), color) in enumerate(
        zip(evaluations, _colors(len(evaluations)), strict=True)
    ):
        if played.success is None:
            continue
        axis.plot(played.success_interval, [y, y], color=color, lw=8, alpha=0.35)
        axis.plot([played.success] * 2, [y - 0.2, y + 0.2], color=color, lw=3)
        _write_above(axis, played.success, y, f"{played.success:.1f} %", color)
    _label_rows(axis, [name for name, _ in evaluations])
    axis.set_xlim(-2.0, 102.0)
    axis.set_xlabel("episodes that succeed, % (bar: of those played, line: 95 % interval)")


def _colors(n: int) -> list[str]:
    """Of n evaluations: of several, the first one, which imitates the data, stands out."""
    return [*([ORANGE] if n > 1 else []), *[GREEN] * n][:n]


def _write_above(axis: Any, x: float, y: float, text: str, color: str) -> None:
    axis.text(x, y + 0.34, text, ha="center", fontsize=9, color=color, weight="bold")


def _label_rows(axis: Any, names: list[str]) -> None:
    labels = [wrap(name, 30) for name in names]
    axis.set(yticks=range(len(names)), yticklabels=labels, ylim=(-0.6, len(names) - 0.3))
