"""A benchmark's results as one document, in Markdown and in self-contained HTML."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qgpo.experiments import result_figures as figures
from qgpo.experiments import statistics
from qgpo.experiments.results import RESAMPLES, Results, Run


@dataclass(frozen=True)
class Heading:
    """Of a section; level 1 is the document's title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of text under a header."""

    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG beside the document."""

    path: Path
    caption: str


Block = Heading | Text | Table | Picture


def write_report(folder: Path, results: Results, title: str) -> None:
    """`report.md` with its pictures and `report.html`, which holds them, in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [
        Heading(title, 1),
        *_headline(folder, results),
        *_aggregate(folder, results),
        *_scales(folder, results),
        *_time(folder, results),
        *_provenance(results),
    ]
    (folder / "report.md").write_text(to_markdown(blocks))
    (folder / "report.html").write_text(to_html(blocks, title))


def _draw(folder: Path, name: str, draw: figures.Draw, results: Results, says: str) -> Picture:
    path = folder / f"{name}.png"
    draw(path, results)
    return Picture(path, says)


# Sections -------------------------------------------------------------------------------------


def _headline(folder: Path, results: Results) -> list[Block]:
    rows = []
    for dataset in results.datasets:
        run = results.data(dataset)
        data = "missing" if run is None else f"{run.data_returns.mean():.0f}"
        rows.append([f"`{dataset}`", data, *(_cell(results, dataset, a) for a in results.labels)])
    n = sorted({len(run.returns[run.headline_scale]) for run in results.runs.values()})
    episodes = " or ".join(map(str, n))
    blocks: list[Block] = [
        Heading("Headline"),
        Text(
            "Mean return of the last checkpoint ± standard deviation over seeds, and in brackets "
            f"the normalised score; {episodes} episodes per seed; where an agent has a guidance "
            "scale, at the one that was configured before anything was evaluated."
        ),
        Table(["dataset", "data", *(_titled(results, a) for a in results.labels)], rows),
        _draw(folder, "scores", figures.draw_scores, results, "Headline returns of every seed"),
    ]
    if results.missing:
        blocks.insert(2, Text(_missing(results)))
    return [*blocks, *_intervals(results), *_references(results)]


def _intervals(results: Results) -> list[Block]:
    rows = []
    for dataset in results.datasets:
        for label in results.labels:
            seeds = [run.returns[run.headline_scale] for run in results.of(dataset, label)]
            if seeds:
                low, high = statistics.hierarchical_bootstrap(seeds)
                middle = np.mean([returns.mean() for returns in seeds])
                found = f"{middle:.0f} [{low:.0f}, {high:.0f}]"
                rows.append([f"`{dataset}`", label, found, str(len(seeds))])
    return [
        Text(
            "The same with 95 % bootstrap intervals over seeds and episodes; with one seed they "
            "say nothing of another."
        ),
        Table(["dataset", "agent", "mean return", "seeds"], rows),
    ]


def _missing(results: Results) -> str:
    """Which runs are not there yet."""
    places: dict[str, list[str]] = {}
    for dataset, label, seed in results.missing:
        places.setdefault(f"{label} on `{dataset}`", []).append(str(seed))
    listed = [f"{place} (seeds {', '.join(seeds)})" for place, seeds in places.items()]
    return (
        f"**{len(results.missing)} of {len(results.expected)} runs are missing**, and filled in "
        f"nowhere: {'; '.join(listed)}."
    )


def _references(results: Results) -> list[Block]:
    rows = []
    for dataset in results.datasets:
        run = results.data(dataset)
        if run is None:
            rows.append([f"`{dataset}`", "missing", "missing", "missing"])
        elif run.reference is None:
            rows.append([f"`{dataset}`", "none", "none", "its runs are in no aggregate"])
        else:
            r = run.reference
            rows.append([f"`{dataset}`", f"{r.minimum:g}", f"{r.maximum:g}", r.source])
    return [
        Text("Normalised scores are 100 (return - minimum) / (maximum - minimum), with"),
        Table(["dataset", "minimum", "maximum", "source"], rows),
    ]


def _cell(results: Results, dataset: str, label: str) -> str:
    """Mean ± deviation (score ± deviation), and how many seeds if not all."""
    expected, runs = results.planned(dataset, label), results.of(dataset, label)
    if not expected:
        return "not planned"
    if not runs:
        return "missing"
    text = spread([run.mean(run.headline_scale) for run in runs], 0)
    scores = results.scores(dataset, label)
    if len(scores):
        text += f" ({spread(scores, 1)})"
    return text if len(runs) == len(expected) else f"{text}, {len(runs)} of {len(expected)} seeds"


def spread(values: Sequence[float] | NDArray[np.float64], n: int) -> str:
    """Mean ± sample standard deviation to n digits; one value has no deviation."""
    mean = f"{np.mean(values):.{n}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{n}f}"


def _titled(results: Results, label: str) -> str:
    """The label, with the environment steps that an online agent spends."""
    runs = [run for run in results.runs.values() if run.label == label]
    steps = max((run.environment_steps for run in runs), default=0)
    return f"{label} (online: {steps:,} environment steps)" if steps else label


def _aggregate(folder: Path, results: Results) -> list[Block]:
    labels = [label for label in results.labels if results.covered(label)]
    if not labels:
        return []
    rows = []
    for label in labels:
        tasks = results.tasks(label)
        low, high = statistics.stratified_bootstrap(tasks, resamples=RESAMPLES)
        covered = f"{len(results.covered(label))} of {len(results.datasets)}"
        runs = sum(map(len, tasks))
        interval = f"{statistics.iqm(tasks):.1f} [{low:.1f}, {high:.1f}]"
        rows.append([_titled(results, label), covered, str(runs), interval])
        rows[-1].append(f"{statistics.mean(tasks):.1f}")
    blocks: list[Block] = [
        Heading("Over all datasets"),
        Text(
            "Interquartile mean of normalised headline scores with its 95 % stratified bootstrap "
            "interval (Agarwal et al. 2021, arXiv 2108.13264): runs are drawn again within each "
            "dataset. Agents that cover different datasets cannot be compared by it."
        ),
        Table(["agent", "datasets", "runs", "IQM", "mean"], rows),
        _draw(folder, "iqm", figures.draw_aggregate, results, "Interquartile means"),
        _draw(folder, "profiles", figures.draw_profiles, results, "Performance profiles"),
    ]
    return [*blocks, *_improvement(folder, results)]


def _improvement(folder: Path, results: Results) -> list[Block]:
    rows = [
        [
            pair.first,
            pair.second,
            f"{pair.probability:.2f} [{pair.interval[0]:.2f}, {pair.interval[1]:.2f}]",
            str(pair.datasets),
        ]
        for pair in results.improvements
    ]
    if not rows:
        return []
    return [
        Text(
            "Probability that a run of one agent beats one of another, on what both cover; bold in "
            "the picture where the interval excludes a half. Where an agent has a single run on "
            "some dataset, the interval says nothing of what another seed would give."
        ),
        Table(["agent", "better than", "probability", "datasets"], rows),
        _draw(folder, "improvement", figures.draw_improvement, results, "Pairs of agents"),
    ]


def _scales(folder: Path, results: Results) -> list[Block]:
    rows = []
    for dataset in results.datasets:
        for label in results.labels:
            best = results.best_scale(dataset, label)
            if best is None:
                continue
            runs = results.of(dataset, label)
            scales = [scale for scale in (runs[0].headline_scale, best) if scale is not None]
            shown = [f"{spread([run.mean(w) for run in runs], 0)} (w = {w:g})" for w in scales]
            rows.append([f"`{dataset}`", label, *shown])
    if not rows:
        return []
    return [
        Heading("Guidance scale"),
        Text(
            "The best scale is chosen after seeing returns in the environment: it is an upper "
            "bound for choosing w, not a result of offline learning."
        ),
        Table(["dataset", "agent", "headline", "best w online, not a headline"], rows),
        _draw(folder, "scales", figures.draw_scales, results, "Return over the guidance scale"),
    ]


def _time(folder: Path, results: Results) -> list[Block]:
    rows = []
    for label in results.labels:
        runs = [run for run in results.runs.values() if run.label == label]
        if not runs:
            continue
        cpu = [run.cpu_seconds for run in runs if run.cpu_seconds is not None]
        measured = f"{np.mean(cpu):.0f} ({len(cpu)} runs)" if cpu else "not measured"
        wall = f"{np.mean([run.wall_seconds for run in runs]):.0f}"
        rows.append([label, str(len(runs)), wall, measured])
    blocks: list[Block] = [
        Heading("Training time"),
        Text("Means over runs, in seconds; evaluation is not in them."),
        Table(["agent", "runs", "wall clock", "CPU"], rows),
    ]
    if any(results.covered(label) for label in results.labels):
        says = "Score against training time"
        blocks.append(_draw(folder, "time", figures.draw_time, results, says))
    return blocks


def _provenance(results: Results) -> list[Block]:
    data = [results.data(dataset) for dataset in results.datasets]
    rows = [[f"`{run.dataset}`", f"`{run.fingerprint}`"] for run in data if run is not None]
    facts = sorted({_made_with(run) for run in results.runs.values()})
    return [
        Heading("Data and versions"),
        Table(["dataset", "SHA-256 of its arrays"], rows),
        *(Text(fact) for fact in facts),
    ]


def _made_with(run: Run) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in run.about["versions"].items())
    machine = run.about["machine"]
    return (
        f"Measured with {versions}, on {machine['cpus']} {machine['processor']} cores, device "
        f"{machine['device']}, {machine['threads']} torch thread(s) per run."
    )


# Two renderings -------------------------------------------------------------------------------


def to_markdown(blocks: Sequence[Block]) -> str:
    """GitHub's Markdown; pictures are linked."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"{'#' * level} {text}")
            case Text(text):
                parts.append(text)
            case Table(header, rows):
                lines = [header, ["---"] * len(header), *rows]
                escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in escaped))
            case Picture(path, caption):
                parts.append(f"![{caption}]({path.name})")
    return "\n\n".join(parts) + "\n"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a202c; max-width: 1100px; margin: 2em auto;
       padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #cbd5e0; padding: .35em .8em; text-align: left }
th { border-bottom: 2px solid #718096 }
img { max-width: 100%; margin: 1em 0 }
code { font-size: 90%; background: #edf2f7; padding: .1em .3em; border-radius: 3px }
"""


def to_html(blocks: Sequence[Block], title: str) -> str:
    """One file, pictures included."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"<h{level}>{_inline(text)}</h{level}>")
            case Text(text):
                parts.append(f"<p>{_inline(text)}</p>")
            case Table(header, rows):
                head = "".join(f"<th>{_inline(cell)}</th>" for cell in header)
                body = "".join(
                    "<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>"
                    for row in rows
                )
                parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
            case Picture(path, caption):
                data = base64.b64encode(path.read_bytes()).decode()
                source = f"data:image/png;base64,{data}"
                parts.append(f'<img src="{source}" alt="{html.escape(caption)}">')
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>'
        f"{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _inline(text: str) -> str:
    """Escaped, with Markdown's `code` and **strong**."""
    pieces = html.escape(text).split("`")
    text = "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces))
    pieces = text.split("**")
    return "".join(f"<strong>{p}</strong>" if i % 2 else p for i, p in enumerate(pieces))
