"""Pictures of a benchmark's results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from qgpo.experiments import statistics
from qgpo.experiments.results import RESAMPLES, Results
from qgpo.experiments.run_figure import BLUE, GRAY, GREEN, ORANGE

COLORS = (
    *(BLUE, ORANGE, GREEN, "#805ad5", "#c53030", "#b7791f", "#0987a0", "#b83280"),
    *("#63b3ed", "#f6ad55", "#68d391", "#b794f4", "#fc8181", "#2d3748", "#4fd1c5", "#f687b3"),
)
NOTE: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "color": GRAY}


def short(dataset: str) -> str:
    """A dataset's id on two lines at most."""
    return dataset if len(dataset) < 36 else "/\n".join(dataset.rsplit("/", 1))


def color(results: Results, label: str) -> str:
    """An agent has one color in all pictures."""
    return COLORS[results.labels.index(label) % len(COLORS)]


def draw_scores(path: Path, results: Results) -> None:
    """Per dataset: every seed of every agent at its headline scale, the mean, and the data's."""
    n = len(results.labels)
    figure, grid = _panels(len(results.datasets), width=4.6, height=0.9 + 0.42 * n)
    for axis, dataset in zip(grid, results.datasets, strict=False):
        for y, label in enumerate(reversed(results.labels)):
            means = [run.mean(run.headline_scale) for run in results.of(dataset, label)]
            if not means:
                says = "missing" if results.planned(dataset, label) else "not planned"
                axis.annotate(says, (0.5, y), xycoords=("axes fraction", "data"), **NOTE)
                continue
            shade = color(results, label)
            axis.barh(y, np.mean(means), height=0.55, color=shade, alpha=0.3, lw=0)
            axis.plot([np.mean(means)] * 2, [y - 0.28, y + 0.28], color=shade, lw=2.5)
            axis.scatter(means, [y] * len(means), s=16, color=shade, zorder=3, lw=0)
        run = results.data(dataset)
        if run is not None:
            axis.axvline(run.data_returns.mean(), color=GRAY, ls="--", lw=1.2)
        axis.set_yticks(range(n), reversed(results.labels), fontsize=8)
        axis.set_ylim(-0.6, n - 0.4)
        axis.set_title(short(dataset), fontsize=9)
        axis.set_xlabel("mean return", fontsize=8)
        _plain(axis, "x")
    _save(figure, path, "Last checkpoint (dots: seeds, bar: their mean, dashed: mean of the data)")


def draw_aggregate(path: Path, results: Results) -> None:
    """Interquartile mean of normalised scores with its interval."""
    labels = [label for label in results.labels if results.covered(label)]
    figure, axis = _single(0.45 * len(labels) + 1.1)
    for y, label in enumerate(reversed(labels)):
        tasks = results.tasks(label)
        low, high = statistics.stratified_bootstrap(tasks, resamples=RESAMPLES)
        shade, middle = color(results, label), statistics.iqm(tasks)
        axis.plot([low, high], [y, y], color=shade, lw=9, alpha=0.35, solid_capstyle="butt")
        axis.plot([middle] * 2, [y - 0.25, y + 0.25], color=shade, lw=3)
    names = [_covering(results, label) for label in reversed(labels)]
    axis.set_yticks(range(len(labels)), names, fontsize=9)
    axis.set_ylim(-0.6, len(labels) - 0.4)
    axis.set_xlabel("normalised score")
    _plain(axis, "x")
    _save(figure, path, "Interquartile mean over runs, 95 % stratified bootstrap interval")


def draw_improvement(path: Path, results: Results) -> None:
    """P(a run of the row's agent beats one of the column's); bold where the interval is clear."""
    found = results.improvements
    labels = [x for x in results.labels if any(x in (pair.first, pair.second) for pair in found)]
    n = len(labels)
    size = 0.55 * n
    figure, axis = _pyplot().subplots(figsize=(size + 2.6, size + 1.9), layout="constrained")
    table = np.full((n, n), np.nan)
    for pair in found:
        i, j = labels.index(pair.first), labels.index(pair.second)
        table[i, j], table[j, i] = pair.probability, 1.0 - pair.probability
        weight = "bold" if pair.is_clear else "normal"
        for y, x in ((i, j), (j, i)):
            note = {**NOTE, "color": "black", "fontweight": weight}
            axis.text(x, y, f"{table[y, x]:.2f}", **note)
    axis.imshow(table, cmap="RdBu", vmin=-0.1, vmax=1.1)
    axis.set_xticks(range(n), labels, fontsize=8, rotation=45, ha="right")
    axis.set_yticks(range(n), labels, fontsize=8)
    axis.spines[:].set_visible(False)
    _save(figure, path, "Probability that a run of the row\nbeats one of the column")


def draw_profiles(path: Path, results: Results) -> None:
    """Share of runs above each normalised score."""
    labels = [label for label in results.labels if results.covered(label)]
    every = np.concatenate([scores for label in labels for scores in results.tasks(label)])
    margin = 0.04 * max(float(np.ptp(every)), 1.0)
    thresholds = np.linspace(every.min() - margin, every.max() + margin, 201)
    figure, axis = _single(3.8)
    for label in labels:
        tasks, shade = results.tasks(label), color(results, label)
        profile = statistics.performance_profile(tasks, thresholds)
        low, high = statistics.profile_band(tasks, thresholds, resamples=RESAMPLES // 4)
        axis.step(thresholds, profile, color=shade, lw=2, label=_covering(results, label))
        axis.fill_between(thresholds, low, high, color=shade, alpha=0.12, lw=0, step="pre")
    axis.set_xlabel("normalised score τ")
    axis.set_ylabel("share of runs above τ")
    axis.set_ylim(-0.02, 1.02)
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _plain(axis, "both")
    _save(figure, path, "Performance profiles (band: 95 % pointwise)")


def draw_time(path: Path, results: Results) -> None:
    """Normalised score against training time, one point per run; means over datasets.

    CPU time where it says enough: other work on the machine lengthens the wall clock.
    """
    figure, axis = _single(3.8)
    for label in results.labels:
        shade = color(results, label)
        for dataset in results.covered(label):
            minutes = [results.minutes(run) for run in results.of(dataset, label)]
            scores = results.scores(dataset, label)
            axis.scatter(minutes, scores, s=22, color=shade, alpha=0.6, lw=0)
        if results.covered(label):
            center, name = results.center(label), _covering(results, label)
            axis.scatter(*center, s=150, color=shade, marker="D", label=name)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    axis.xaxis.set_minor_formatter(mpl.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    axis.tick_params(axis="x", which="minor", labelsize=7)
    clock = "CPU time" if results.trained_on_cpu else "wall clock"
    axis.set_xlabel(f"minutes of training ({clock})")
    axis.set_ylabel("normalised score")
    axis.legend(
        fontsize=8, frameon=False, markerscale=0.5, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
    _plain(axis, "both")
    _save(figure, path, "Score against training time (dots: runs, diamonds: means over datasets)")


def draw_scales(path: Path, results: Results) -> None:
    """Return over the guidance scale, per dataset: seeds thin, their mean bold."""
    guided = [
        label
        for label in results.labels
        if any(results.best_scale(d, label) is not None for d in results.datasets)
    ]
    figure, grid = _panels(len(results.datasets), width=4.6, height=3.0)
    for axis, dataset in zip(grid, results.datasets, strict=False):
        for label in guided:
            runs = results.of(dataset, label)
            best = results.best_scale(dataset, label)
            headline = runs[0].headline_scale if runs else None
            if best is None or headline is None:
                continue
            scales = sorted(s for s in runs[0].returns if s is not None)
            means = [[run.mean(s) if s in run.returns else np.nan for s in scales] for run in runs]
            shade = color(results, label)
            axis.plot(scales, np.transpose(means), color=shade, lw=0.8, alpha=0.4)
            middle = np.mean(means, axis=0)
            axis.plot(scales, middle, color=shade, lw=2.2, marker=".", label=label)
            if len(scales) > 1:
                axis.plot(best, middle[scales.index(best)], "*", ms=19, mfc="white", mec=shade)
            axis.plot(headline, middle[scales.index(headline)], "o", ms=7, color=shade)
        run = results.data(dataset)
        if run is not None:
            axis.axhline(run.data_returns.mean(), color=GRAY, ls="--", lw=1.2)
        axis.set_title(short(dataset), fontsize=9)
        axis.set_xlabel("guidance scale w", fontsize=8)
        axis.set_ylabel("mean return", fontsize=8)
        _plain(axis, "both")
    if len(guided) > 1:
        grid[0].legend(fontsize=7, frameon=False)
    title = "Guidance scale (circle: headline, star: best w online, not a headline, dashed: data)"
    _save(figure, path, title)


Draw = Callable[[Path, Results], None]


def _covering(results: Results, label: str) -> str:
    """The label, with how many datasets it covers unless it is all."""
    covered, total = len(results.covered(label)), len(results.datasets)
    return label if covered == total else f"{label} ({covered} of {total} datasets)"


def _panels(n: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure with n axes, at most three in a row."""
    plt = _pyplot()
    columns = min(n, 2 if n in (2, 4) else 3)
    rows = -(-n // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows + 0.5),
        layout="constrained",
        squeeze=False,
    )
    axes = list(grid.flat)
    for axis in axes[n:]:
        axis.set_visible(False)
    return figure, axes


def _single(height: float) -> tuple[Any, Any]:
    figure, axis = _pyplot().subplots(figsize=(8.0, height + 0.4), layout="constrained")
    return figure, axis


def _pyplot() -> Any:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _plain(axis: Any, grid: str) -> None:
    axis.grid(axis=grid, alpha=0.25)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
    _pyplot().close(figure)
