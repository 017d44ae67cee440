"""Pictures of a benchmark's results."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from qgpo.envs.data.figure import BLUE, GRAY, GREEN, ORANGE
from qgpo.envs.data.figure import save as save
from qgpo.envs.text import wrap
from qgpo.experiments import statistics
from qgpo.experiments.results import RESAMPLES, Results

COLORS = (
    *(BLUE, ORANGE, GREEN, "#805ad5", "#c53030", "#b7791f", "#0987a0", "#b83280"),
    *("#63b3ed", "#f6ad55", "#68d391", "#b794f4", "#fc8181", "#2d3748", "#4fd1c5", "#f687b3"),
)
DATA: dict[str, Any] = {"color": GRAY, "ls": "--", "lw": 1.2}
"""the line at the mean return of the data"""
NOTE: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
OUTSIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
"""a legend on the right of the axes"""
CHARACTERS = 11
"""of a title per inch"""
LABEL = 30
"""characters in a line of an agent's name"""


class Look(NamedTuple):
    """How an agent is drawn in all pictures: no two agents have the same."""

    color: str
    marker: Any
    line: Any
    """matplotlib's marker and line style"""


def look(index: int) -> Look:
    """Of the agent of that number: a color; where colors repeat, another marker and line.

    Further rounds of colors have polygons of 3, 4, 5, … corners and 1, 2, 3, … dots between dashes.
    """
    round_, place = divmod(index, len(COLORS))
    if round_ == 0:
        return Look(COLORS[place], "D", "-")
    return Look(COLORS[place], (round_ + 2, 0, 0), (0, (5, 1.5, *(1, 1.5) * round_)))


def draw_scores(results: Results) -> Figure:
    """Per dataset: every seed of every agent at its headline scale, the mean, and the data's.

    Successes also have their interval.
    """
    labels = results.labels[::-1]
    title = "Last checkpoint (dots: seeds, bar: their mean, dashed: mean of the data)"
    if results.scored_by_success:
        title = title.replace(")", ", line: 95 % interval of successes)")
    beside = 0.08 * min(LABEL, max(map(len, labels)))
    figure, axes = _panels(results.datasets, 0.9 + 0.42 * len(labels), title, 3.8 + beside)
    for dataset, axis in axes.items():
        for y, label in enumerate(labels):
            means = [run.headline for run in results.of(dataset, label)]
            if not means:
                text = "missing" if results.planned(dataset, label) else "not planned"
                across = axis.get_yaxis_transform()
                axis.text(0.5, y, text, transform=across, color=GRAY, **NOTE)
                continue
            color = _look(results, label).color
            axis.barh(y, np.mean(means), height=0.55, color=color, alpha=0.3, lw=0)
            axis.plot([np.mean(means)] * 2, [y - 0.28, y + 0.28], color=color, lw=2.5)
            axis.scatter(means, [y] * len(means), s=16, color=color, zorder=3, lw=0)
            if results.by_success(dataset):
                axis.plot(results.interval(dataset, label), [y, y], color=color, lw=1.2)
        axis.axvline(results.data_mean(dataset), **DATA)
        _label_rows(axis, labels, outcome(results, dataset))
    return figure


def draw_aggregate(results: Results) -> Figure:
    """Interquartile mean of scores with its interval."""
    labels = results.scored_labels[::-1]
    title = "Interquartile mean over runs, 95 % stratified bootstrap interval"
    figure, axis = _single(0.45 * len(labels) + 1.5, title + _apart(results, "hollow"))
    axis.use_sticky_edges = False  # a bar without width is as visible at the border
    for y, label in enumerate(labels):
        tasks, color = results.tasks(label), _look(results, label).color
        low, high = results.iqm_interval(label)
        whole = results.is_complete(label)
        filled = {"color": color, "alpha": 0.35, "lw": 0} if whole else {"fill": False, "ec": color}
        axis.barh(y, high - low, left=low, height=0.35, **filled)
        width = 3 if whole else 1
        axis.plot([statistics.iqm(tasks)] * 2, [y - 0.25, y + 0.25], color=color, lw=width)
    _label_rows(axis, [_with_coverage(results, label) for label in labels], scores(results))
    return figure


def draw_improvement(results: Results) -> Figure:
    """P(a run of the row's agent beats one of the column's); bold where the interval is clear."""
    pairs = results.improvements
    labels = results.scored_labels
    n = len(labels)
    title = "Probability that a run of the row beats one of the column"
    figure, axis = _single(0.55 * n + 3.2, title, width=0.55 * n + 3.9)
    table = np.full((n, n), np.nan)
    for pair in pairs:
        i, j = labels.index(pair.first), labels.index(pair.second)
        table[i, j], table[j, i] = pair.probability, 1.0 - pair.probability
        weight = "bold" if pair.is_clear else "normal"
        for y, x in ((i, j), (j, i)):
            color = "black" if 0.12 < table[y, x] < 0.88 else "white"
            axis.text(x, y, f"{table[y, x]:.2f}", fontweight=weight, color=color, **NOTE)
    axis.imshow(table, cmap="RdBu", vmin=-0.1, vmax=1.1)
    names = [_entry(results, label) for label in labels]
    axis.set_xticks(range(n), names, fontsize=8, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(n), names, fontsize=8)
    axis.spines[:].set_visible(False)
    return figure


def draw_profiles(results: Results) -> Figure:
    """Share of runs above each score."""
    labels = results.scored_labels
    of_all = np.concatenate([task for label in labels for task in results.tasks(label)])
    margin = 0.04 * max(float(np.ptp(of_all)), 1.0)
    thresholds = np.linspace(of_all.min() - margin, of_all.max() + margin, 201)
    profile = partial(statistics.performance_profile, thresholds=thresholds)
    title = "Performance profiles (band: 95 % pointwise)" + _apart(results, "thin")
    figure, axis = _single(max(4.2, 0.22 * len(labels)), title)
    for label in labels:
        tasks, (color, _, line) = results.tasks(label), _look(results, label)
        whole = results.is_complete(label)
        style: dict[str, Any] = {"color": color, "ls": line, "lw": 2 if whole else 0.8}
        axis.step(thresholds, profile(tasks), label=_entry(results, label), **style)
        if whole:
            band = statistics.stratified_bootstrap(tasks, profile, resamples=RESAMPLES // 4)
            axis.fill_between(thresholds, *band, color=color, alpha=0.12, lw=0, step="pre")
    axis.set_ylim(-0.02, 1.02)
    axis.legend(fontsize=8, frameon=False, **OUTSIDE)
    tidy(axis, "both", xlabel=f"{scores(results)} τ", ylabel="share of runs above τ")
    return figure


def draw_time(results: Results) -> Figure:
    """Score against training time, one point per run; means over datasets.

    CPU time where all runs have it: other work on the machine lengthens the wall clock.
    """
    title = "Score against training time (small: runs, large: means over datasets)"
    height = max(4.2, 0.22 * len(results.scored_labels))
    figure, axis = _single(height, title + _apart(results, "hollow"))
    for label in results.scored_labels:
        color, marker, _ = _look(results, label)
        for dataset in results.covered(label):
            minutes = [results.minutes(run) for run in results.of(dataset, label)]
            axis.scatter(
                minutes,
                results.scores(dataset, label),
                s=22,
                color=color,
                marker=marker,
                alpha=0.6,
                lw=0,
            )
        face = color if results.is_complete(label) else "none"
        style: dict[str, Any] = {"marker": marker, "fc": face, "ec": color, "zorder": 3}
        axis.scatter(*results.center(label), s=150, label=_entry(results, label), **style)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="x", which="minor", labelsize=7)
    axis.legend(fontsize=8, frameon=False, markerscale=0.5, **OUTSIDE)
    clock = "CPU time" if results.trained_on_cpu else "wall clock"
    tidy(axis, "both", xlabel=f"minutes of training ({clock})", ylabel=scores(results))
    return figure


def draw_scales(results: Results) -> Figure:
    """Return or success over the guidance scale, per dataset: seeds thin, their mean bold."""
    title = "Guidance scale (circle: configured w, star: best w by online returns, dashed: data)"
    figure, axes = _panels(results.datasets, 3.0, title)
    for dataset, axis in axes.items():
        for label in results.labels:
            runs, (color, marker, line) = results.of(dataset, label), _look(results, label)
            if (best := results.best_scale(dataset, label)) is None:
                continue
            scales = sorted(s for s in runs[0].returns if s is not None)
            means = [[run.mean(s) if s in run.returns else np.nan for s in scales] for run in runs]
            middle = np.mean(means, axis=0)
            axis.plot(scales, np.transpose(means), color=color, ls=line, lw=0.8, alpha=0.4)
            name = wrap(label, LABEL)
            axis.plot(scales, middle, color=color, ls=line, lw=2.2, marker=marker, ms=4, label=name)
            if len(scales) > 1:
                axis.plot(best, middle[scales.index(best)], "*", ms=19, mfc="white", mec=color)
            if (headline := runs[0].headline_scale) is not None:
                axis.plot(
                    headline, middle[scales.index(headline)], "o", ms=9, mfc="none", mec=color
                )
        axis.axhline(results.data_mean(dataset), **DATA)
        tidy(axis, "both", xlabel="guidance scale w", ylabel=outcome(results, dataset))
    _legend_below(figure, min(len(axes), 3))
    return figure


def outcome(results: Results, dataset: str) -> str:
    """What the numbers of runs on a dataset are, for an axis."""
    return "success, %" if results.by_success(dataset) else "mean return"


def scores(results: Results) -> str:
    """What the scores of runs are, for an axis."""
    by_success = {results.by_success(dataset) for dataset in results.scored_datasets}
    if by_success == {True}:
        return "success, %"
    return "normalised score" + (" or success, %" if True in by_success else "")


def tidy(axis: Any, grid: str, xlabel: str = "", ylabel: str = "") -> None:
    """Small labels, a light grid along x, y or both, no frame above and on the right."""
    axis.grid(axis=grid, alpha=0.25)
    axis.set_xlabel(xlabel, fontsize=8)
    axis.set_ylabel(ylabel, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _panels(
    datasets: list[str], height: float, title: str, width: float = 4.6
) -> tuple[Figure, dict[str, Any]]:
    """A figure with axes of that size for each dataset, at most three in a row."""
    columns = min(len(datasets), 2 if len(datasets) in (2, 4) else 3)
    rows = -(-len(datasets) // columns)
    figure = _titled(width * columns, height * rows + 0.5, title)
    axes = {}
    for i, dataset in enumerate(datasets):
        axes[dataset] = figure.add_subplot(rows, columns, i + 1)
        axes[dataset].set_title(wrap(dataset, 44), fontsize=9)
    return figure, axes


def _single(height: float, title: str, width: float = 8.0) -> tuple[Figure, Any]:
    figure = _titled(width, height, title)
    return figure, figure.subplots()


def _titled(width: float, height: float, title: str) -> Figure:
    """A figure of that size in inches, with a title in as many lines as it needs."""
    text = wrap(title, int(CHARACTERS * width))
    figure = Figure((width, height + 0.2 * text.count("\n")), layout="constrained")
    figure.suptitle(text, fontsize=11)
    return figure


def _legend_below(figure: Figure, columns: int) -> None:
    """Every agent that is drawn in any of the panels, if there are two or more."""
    drawn = [axis.get_legend_handles_labels() for axis in figure.axes]
    entries = {name: handle for some in drawn for handle, name in zip(*some, strict=True)}
    if len(entries) > 1:
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": columns}
        figure.legend(entries.values(), entries.keys(), fontsize=8, frameon=False, **place)
        figure.set_figheight(figure.get_figheight() + 0.3 * -(-len(entries) // columns))


def _label_rows(axis: Any, labels: list[str], xlabel: str) -> None:
    """A label at y = 0, 1, … and half a row of space at both ends; `xlabel` says what x is."""
    names = [wrap(label, LABEL) for label in labels]
    axis.set(yticks=range(len(labels)), yticklabels=names, ylim=(-0.6, len(labels) - 0.4))
    tidy(axis, "x", xlabel=xlabel)


def _look(results: Results, label: str) -> Look:
    """An agent looks the same in all pictures."""
    return look(results.labels.index(label))


def _apart(results: Results, how: str) -> str:
    """For titles: how agents are drawn whose means are over some of the datasets only."""
    whole = all(map(results.is_complete, results.scored_labels))
    return "" if whole else f". Last, {how}: agents on some of the datasets only"


def _entry(results: Results, label: str) -> str:
    """An agent in a legend."""
    return wrap(_with_coverage(results, label), LABEL)


def _with_coverage(results: Results, label: str) -> str:
    """The label, with the number of datasets that it covers unless it is all."""
    covered, total = len(results.covered(label)), len(results.scored_datasets)
    return label if results.is_complete(label) else f"{label} ({covered} of {total} datasets)"
