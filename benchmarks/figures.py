"""Pictures of what was measured: pages.py writes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cube_tables
import numpy as np
from broad_tables import COLUMNS, HALVES, Broad, score
from laptop_tables import SUMMARY, of_laptop
from matplotlib.figure import Figure
from measured import (
    BASELINES,
    DATASETS,
    LONGER,
    MINUTES,
    OURS,
    TUNED,
    Column,
    Group,
    Measurements,
    Scale,
)
from tables import FIXED, GROUPS, POWERS, SCALES

from qgpo.envs.data.figure import BLUE, GRAY, GREEN, ORANGE
from qgpo.experiments.result_figures import tidy
from qgpo.experiments.statistics import hierarchical_bootstrap

WIDTH = 6.8
"""inches: a page of a telephone shows this width"""
LINES: tuple[tuple[str, str, Scale, str, str], ...] = (
    ("BC", "BC", None, GRAY, ":"),
    ("TD3+BC", "TD3+BC", None, GRAY, "--"),
    ("IQL", "IQL", None, GRAY, "-"),
    ("QGPO, w = 1", "QGPO", 1.0, BLUE, "-"),
    ("QGPO, tuned", "QGPO", "tuned", ORANGE, "-"),
)
"""name, label, guidance scale, color and dashes"""
APART = 0.07
"""between the points of two agents"""
STYLES: dict[str, tuple[str, str]] = {
    "data": ("black", "|"),
    "BC": ("#a0aec0", "o"),
    "TD3+BC": ("#718096", "s"),
    "IQL": ("#2d3748", "^"),
    "QGPO, w = 0": (GREEN, "o"),
    "**QGPO, w = 1**": (BLUE, "D"),
    "**QGPO, tuned**": (ORANGE, "D"),
}
"""color and marker of an agent"""


def draw_headline(measurements: Measurements) -> Figure:
    """Normalised mean by kind of dataset, a marker per agent."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axis = figure.subplots()
    choose = of_laptop(measurements)
    shown: tuple[Column, ...] = (("data", "", None), *SUMMARY)
    for i, (name, label, scale) in enumerate(shown):
        means = [
            choose(label, dataset, scale).mean if label else measurements.data[dataset]
            for dataset in DATASETS
        ]
        scores = [measurements.score(d, mean) for d, mean in zip(DATASETS, means, strict=True)]
        x = [np.mean(scores[part]) for part in GROUPS.values()]
        color, marker = STYLES[name]
        style: dict[str, Any] = {"color": color, "s": 130 if marker == "|" else 60, "zorder": 3}
        heights = np.arange(len(GROUPS)) + 0.11 * (i - 2.0)
        axis.scatter(x, heights, marker=marker, label=name.strip("*"), **style)
    counts = [len(DATASETS[part]) for part in GROUPS.values()]
    names = [f"{name} ({n})" for name, n in zip(GROUPS, counts, strict=True)]
    axis.set_yticks(range(len(GROUPS)), names, fontsize=10)
    axis.invert_yaxis()
    axis.axhline(len(GROUPS) - 1.5, color=GRAY, lw=0.6)
    tidy(axis, "both", "normalised score (0: random actions, 100: expert)")
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": 6}
    figure.legend(fontsize=9, frameon=False, handletextpad=0.1, columnspacing=0.9, **place)
    return figure


def draw_together(measurements: Measurements) -> Figure:
    """Mean return and interval of each agent, a panel per dataset."""
    figure = Figure(figsize=(WIDTH, 10.5), layout="constrained")
    grid = figure.subplots(5, 2, sharey=True)
    for axis, (dataset, mean) in zip(grid.flat, measurements.data.items(), strict=True):
        lines = [(name, measurements.best_group(name, dataset), GRAY) for name, _, _ in BASELINES]
        for (name, label, scale), color in zip((*OURS, *TUNED), (BLUE, BLUE, ORANGE), strict=True):
            lines.append((name.strip("*"), measurements.group(True, label, dataset, scale), color))
        lines.reverse()  # from below
        for y, (_, group, color) in enumerate(lines):
            axis.plot(group.interval, [y, y], color=color, lw=7, alpha=0.35, solid_capstyle="butt")
            axis.plot([group.mean] * 2, [y - 0.3, y + 0.3], color=color, lw=2.5)
            note = {"textcoords": "offset points", "va": "center", "fontsize": 7, "color": GRAY}
            axis.annotate(f"n = {len(group)}", (group.interval[1], y), (4, 0), **note)
        axis.axvline(mean, color="black", ls=":", lw=1.2)
        axis.set_title(dataset.removesuffix("-v0"), fontsize=9)
        axis.margins(x=0.09)
        axis.set_yticks(range(len(lines)), [name for name, _, _ in lines])
        tidy(axis, "x")
    figure.suptitle(
        "Ten minutes on two cores, each baseline used in its best way:\nmean return, 95 % interval "
        "(n agents or ensembles; dotted: mean of the data)",
        fontsize=10,
    )
    return figure


def draw_minutes(measurements: Measurements) -> Figure:
    """Mean return and interval by training time, a panel per dataset."""
    names = [
        dataset
        for dataset in measurements.data
        if ("QGPO" + LONGER, dataset) in measurements.together
    ]
    figure = Figure(figsize=(WIDTH, 6.2), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    for axis, dataset in zip(axes, names, strict=True):
        for i, (legend, label, scale, color, dashes) in enumerate(LINES):
            groups = [
                measurements.in_minutes(minutes, label, dataset, scale) for minutes in MINUTES
            ]
            points = {x + APART * (i - 2): group for x, group in enumerate(groups) if group}
            for x, group in points.items():
                axis.plot([x, x], group.interval, color=color, lw=5, alpha=0.35)
            means = [group.mean for group in points.values()]
            style: dict[str, Any] = {"color": color, "ls": dashes, "marker": "o", "ms": 4}
            axis.plot(points.keys(), means, lw=1.8, label=legend, **style)
        axis.axhline(measurements.data[dataset], color="black", ls=":", lw=1.2, label="the data")
        axis.set_title(dataset.removesuffix("-v0"), fontsize=9)
        axis.set_xticks(range(len(MINUTES)), [f"{minutes}" for minutes in MINUTES])
        axis.set_xlim(-0.4, len(MINUTES) - 0.6)
        tidy(axis, "y", "minutes on two cores (approximate)", "mean return")
    handles, legends = axes[0].get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": 3}
    figure.legend(handles, legends, fontsize=8, frameon=False, **place)
    figure.suptitle(
        "One training, ensemble of three, ensemble of three with four times the steps:\n"
        "mean return and 95 % interval",
        fontsize=10,
    )
    return figure


def draw_scales(measurements: Measurements, datasets: tuple[str, ...] = DATASETS) -> Figure:
    """Return over the guidance scale, a panel per dataset, a line per ensemble of three."""
    rows = len(datasets) // 2
    figure = Figure(figsize=(WIDTH, 0.8 + 2.1 * rows), layout="constrained")
    for axis, dataset in zip(figure.subplots(rows, 2).flat, datasets, strict=True):
        for agent in measurements.together["QGPO", dataset]:
            played = {w: agent.at(w) for w in SCALES}
            means = {w: returns.mean() for w, returns in played.items() if returns is not None}
            axis.plot(means.keys(), means.values(), color=BLUE, lw=1.2, marker=".", alpha=0.7)
            style: dict[str, Any] = {"ms": 9, "mfc": "none", "color": ORANGE, "mew": 1.8}
            axis.plot(agent.tuned, means[float(agent.tuned or 0.0)], "o", **style)
        axis.axhline(measurements.data[dataset], color="black", ls=":", lw=1.2)
        axis.set_title(dataset.removesuffix("-v0"), fontsize=10)
        tidy(axis, "both", "guidance scale w", "mean return")
    figure.suptitle(
        "Each line: one ensemble of three (circle: the scale that tuning chose,\n"
        "dotted: mean of the data)",
        fontsize=10,
    )
    return figure


def draw_harm(measurements: Measurements) -> Figure:
    """The same on the two sets on which the best scale is small."""
    return draw_scales(measurements, ("qgpo/hopper/medium-v0", "qgpo/hopper/mixed-v0"))


def draw_row(measurements: Measurements) -> Figure:
    """Return over the guidance scale on halfcheetah medium-expert, a line per power."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axis = figure.subplots()
    scales = (0.0, *FIXED)
    for i, (power, color) in enumerate(zip(POWERS, (GRAY, GREEN, BLUE), strict=True)):
        groups = [measurements.group(True, POWERS[power], DATASETS[0], w) for w in scales]
        x = np.array(scales) + 0.02 * (i - 1)
        for place, group in zip(x, groups, strict=True):
            axis.plot([place] * 2, group.interval, color=color, lw=5, alpha=0.35)
        label = f"power {power}, {len(groups[0])} ensembles"
        axis.plot(x, [group.mean for group in groups], "o-", color=color, lw=2, ms=4, label=label)
    axis.axhline(measurements.data[DATASETS[0]], color="black", ls=":", lw=1.2, label="the data")
    axis.legend(fontsize=9, frameon=False)
    tidy(axis, "both", "guidance scale w", "mean return and 95 % interval")
    return figure


def draw_speed(measurements: Measurements) -> Figure:
    """Milliseconds for one action, a bar per agent."""
    path = Path(__file__).parent / "speed.json"
    measured = json.loads(path.read_text(encoding="utf-8"))["agents"]["1"]
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    axis = figure.subplots()
    for y, (_, row) in enumerate(measured.items()):
        axis.barh(y, row["milliseconds"], color=BLUE, alpha=0.8, height=0.6)
        axis.text(row["milliseconds"], y, f" {row['milliseconds']:.1f}", va="center", fontsize=9)
    axis.set_yticks(range(len(measured)), list(measured), fontsize=10)
    axis.invert_yaxis()
    tidy(axis, "x", "milliseconds for one sampled action, one thread")
    return figure


def draw_ogbench(_: Measurements) -> Figure:
    """Successes on the five tasks of cube-single, a row per agent."""
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    of = cube_tables.trainings()
    rows = [row for row in cube_tables.ROWS if "cube_together" not in row[1]]
    names = [title.strip("*") for title, *_ in rows]
    panels = figure.subplots(1, len(cube_tables.TASKS), sharey=True)
    for axis, task in zip(panels, cube_tables.TASKS, strict=True):
        for y, (title, _, _, scale) in enumerate(rows):
            if (title, task) not in of:
                continue
            group = Group(of[title, task], scale)
            color = BLUE if title.startswith("**") else GREEN if "QGPO" in title else GRAY
            axis.plot(group.interval, [y, y], color=color, lw=8, alpha=0.35, solid_capstyle="butt")
            means = [won.mean() for won in group.returns]
            axis.scatter(means, [y] * len(means), s=10, color=color, zorder=3)
            axis.plot([group.mean] * 2, [y - 0.3, y + 0.3], color=color, lw=2.5)
        axis.set_yticks(range(len(rows)), names)
        axis.set_title(f"task {task}", fontsize=10)
        axis.set_xlim(-4.0, 104.0)
        axis.set_xticks([0, 50, 100])
        tidy(axis, "x")
    panels[0].invert_yaxis()
    figure.supxlabel(
        "success, %: trainings (dots), their mean (bar) and its 95 % interval", fontsize=8
    )
    return figure


def played_task(dataset_id: str) -> str:
    """The task that an OGBench id names."""
    return re.sub(r".*-task(\d)-v0$", r"task \1", dataset_id)


def draw_broad(_: Measurements) -> Figure:
    """Scores on one set of every task, a panel per half of the suite."""
    played = Broad()
    drawn = [column for column in played.columns if column[0] in STYLES]
    sets = {half: played.sets(half) for half in HALVES}
    rows = [len(sets[half]) for half in HALVES]
    figure = Figure(figsize=(WIDTH, 0.34 * sum(rows) + 1.4), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True, height_ratios=rows)
    for axis, half in zip(panels, HALVES, strict=True):
        for i, one in enumerate(sets[half]):
            if one.id in played.data:
                x = score(one, played.data[one.id], False)
                axis.scatter([x], [i], color="black", marker="|", s=130, label="data", zorder=2)
            for j, (title, label, scale) in enumerate(drawn):
                group = played.group(one, label, scale)
                if group is None:
                    continue
                color, marker = STYLES[title]
                place = i + 0.13 * (j - (len(drawn) - 1) / 2)
                low, high = (score(one, x, group.by_success) for x in group.interval)
                axis.plot([low, high], [place, place], color=color, linewidth=1)
                x, name = score(one, group.mean, group.by_success), title.strip("*")
                axis.scatter([x], [place], color=color, marker=marker, s=26, label=name, zorder=3)
        labels = [re.sub(r"tasks .*", played_task(one.id), one.task) for one in sets[half]]
        axis.set_yticks(range(len(labels)), labels)
        axis.invert_yaxis()
        axis.set_title(half, loc="left", fontsize=9)
        tidy(axis, "x")
    panels[-1].set_xlabel("normalised score, or success in percent", fontsize=8)
    unique: dict[str, Any] = {}
    for axis in panels:
        handles, labels = axis.get_legend_handles_labels()
        unique |= dict(zip(labels, handles, strict=True))
    shown = [name for name in ("data", *(c[0].strip("*") for c in COLUMNS)) if name in unique]
    handles = [unique[name] for name in shown]
    figure.legend(handles, shown, ncols=6, loc="outside lower center", frameon=False, fontsize=8)
    return figure


def draw_demo(measurements: Measurements) -> Figure:
    """Every episode of `make demo` and of its data."""
    path = Path(__file__).parent / "demo.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    names = {0.0: "w = 0: imitation", 1.0: "w = 1: exact guidance"}
    rows = [("the data", np.array(document["dataset"]["returns"]), "black")]
    for e in document["evaluations"]:
        w = e["guidance_scale"]
        rows.append((names.get(w, f"w = {w:g}"), np.array(e["returns"]), ORANGE if w else GREEN))
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axis = figure.subplots()
    rng = np.random.default_rng(0)
    for y, (_, returns, color) in enumerate(rows):
        jitter = y + rng.uniform(-0.25, 0.25, len(returns))
        axis.scatter(returns, jitter, s=10, color=color, alpha=0.4, lw=0)
        axis.plot([returns.mean()] * 2, [y - 0.36, y + 0.36], color=color, lw=3)
        axis.plot(hierarchical_bootstrap([returns]), [y, y], color=color, lw=1.2)
    axis.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=10)
    axis.invert_yaxis()
    tidy(axis, "x", "return of an episode (dots), mean (bar) and its 95 % interval")
    return figure
