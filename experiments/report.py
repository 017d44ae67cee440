"""A benchmark's results as one document, in Markdown and in self-contained HTML."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import markdown
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qgpo.experiments import result_figures as figures
from qgpo.experiments import statistics
from qgpo.experiments.results import RESAMPLES, Results, Run

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a202c; max-width: 1100px; margin: 2em auto;
       padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #cbd5e0; padding: .35em .8em; text-align: left }
th { border-bottom: 2px solid #718096 }
img { max-width: 100%; margin: 1em 0 }
code { font-size: 90%; background: #edf2f7; padding: .1em .3em; border-radius: 3px }
"""


def write_report(folder: Path, results: Results, title: str) -> None:
    """`report.md` with its pictures and `report.html`, which contains them, in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [
        f"# {title}",
        *_headline(folder, results),
        *_intervals(results),
        *_references(results),
        *_aggregate(folder, results),
        *_improvement(folder, results),
        *_scales(folder, results),
        *_time(folder, results),
        *_provenance(results),
    ]
    text = "\n\n".join(blocks) + "\n"
    (folder / "report.md").write_text(text)
    (folder / "report.html").write_text(to_html(text, folder, title))


def to_html(text: str, folder: Path, title: str) -> str:
    """The Markdown text as one page that contains the folder's pictures."""
    # escaped first, so that a label is never read as HTML
    body = markdown.markdown(html.escape(text, quote=False), extensions=["tables"])
    for picture in folder.glob("*.png"):
        data = base64.b64encode(picture.read_bytes()).decode()
        body = body.replace(f'src="{picture.name}"', f'src="data:image/png;base64,{data}"')
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>'
        f"{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n"
        "</body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def spread(values: Sequence[float] | NDArray[np.float64], digits: int) -> str:
    """Mean ± sample standard deviation; one value has no deviation."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def _picture(path: Path, figure: Figure) -> str:
    figures.save(figure, path)
    return f"![{' '.join(figure.get_suptitle().split())}]({path.name})"


# Sections, as lists of Markdown blocks ----------------------------------------------------------


def _headline(folder: Path, results: Results) -> list[str]:
    episodes = sorted({len(run.returns[run.headline_scale]) for run in results.runs.values()})
    rows = []
    for dataset in results.datasets:
        mean = results.data_mean(dataset)
        data = "missing" if np.isnan(mean) else f"{mean:.0f}"
        rows.append([f"`{dataset}`", data, *(_cell(results, dataset, a) for a in results.labels)])
    return [
        "## Headline",
        "Mean return of the last checkpoint ± standard deviation over seeds, and in brackets the "
        f"normalised score; {' or '.join(map(str, episodes))} episodes per seed; where an agent "
        "has a guidance scale, at the one that was configured before anything was evaluated.",
        *_missing(results),
        table(["dataset", "data", *(_titled(results, a) for a in results.labels)], rows),
        _picture(folder / "scores.png", figures.draw_scores(results)),
    ]


def _missing(results: Results) -> list[str]:
    """Which runs are not measured yet."""
    places: dict[str, list[str]] = {}
    for dataset, label, seed in results.missing:
        places.setdefault(f"{label} on `{dataset}`", []).append(str(seed))
    if not places:
        return []
    listed = [f"{place} (seeds {', '.join(seeds)})" for place, seeds in places.items()]
    return [
        f"**{len(results.missing)} of {len(results.expected)} runs are missing**, and nothing "
        f"stands in for them: {'; '.join(listed)}."
    ]


def _cell(results: Results, dataset: str, label: str) -> str:
    """Mean ± deviation (score ± deviation), and the number of seeds unless it is all."""
    expected, runs = results.planned(dataset, label), results.of(dataset, label)
    if not runs:
        return "missing" if expected else "not planned"
    text = spread([run.headline for run in runs], 0)
    scores = results.scores(dataset, label)
    if len(scores):
        text += f" ({spread(scores, 1)})"
    return text if len(runs) == len(expected) else f"{text}, {len(runs)} of {len(expected)} seeds"


def _titled(results: Results, label: str) -> str:
    """The label; of an online agent, with its environment steps."""
    steps = max((run.environment_steps for run in results.labelled(label)), default=0)
    return f"{label} (online: {steps:,} environment steps)" if steps else label


def _intervals(results: Results) -> list[str]:
    rows = []
    for dataset in results.datasets:
        for label in results.labels:
            seeds = [run.returns[run.headline_scale] for run in results.of(dataset, label)]
            if seeds:
                low, high = statistics.hierarchical_bootstrap(seeds)
                mean = np.mean([returns.mean() for returns in seeds])
                interval = f"{mean:.0f} [{low:.0f}, {high:.0f}]"
                rows.append([f"`{dataset}`", label, interval, f"{len(seeds)}"])
    return [
        "The same with 95 % bootstrap intervals over seeds and episodes; the interval of a single "
        "seed does not contain what differs between seeds.",
        table(["dataset", "agent", "mean return", "seeds"], rows),
    ]


def _references(results: Results) -> list[str]:
    rows = []
    for dataset in results.datasets:
        columns = ["missing"] * 3
        if (run := results.data(dataset)) is not None:
            columns = ["none", "none", "its runs are in no aggregate"]
            if (reference := run.reference) is not None:
                columns = [f"{reference.minimum:g}", f"{reference.maximum:g}", reference.source]
        rows.append([f"`{dataset}`", *columns])
    return [
        "Normalised scores are 100 (return - minimum) / (maximum - minimum), with",
        table(["dataset", "minimum", "maximum", "source"], rows),
    ]


def _aggregate(folder: Path, results: Results) -> list[str]:
    rows = []
    for label in results.scored_labels:
        tasks = results.tasks(label)
        low, high = statistics.stratified_bootstrap(tasks, resamples=RESAMPLES)
        covered, runs = f"{len(tasks)} of {len(results.datasets)}", f"{sum(map(len, tasks))}"
        interval = f"{statistics.iqm(tasks):.1f} [{low:.1f}, {high:.1f}]"
        mean = f"{statistics.mean(tasks):.1f}"
        rows.append([_titled(results, label), covered, runs, interval, mean])
    if not rows:
        return []
    return [
        "## Over all datasets",
        "Interquartile mean of normalised headline scores with its 95 % stratified bootstrap "
        "interval (Agarwal et al. 2021, arXiv 2108.13264): runs are resampled within each "
        "dataset. It does not compare agents that cover different datasets.",
        table(["agent", "datasets", "runs", "IQM", "mean"], rows),
        _picture(folder / "iqm.png", figures.draw_aggregate(results)),
        _picture(folder / "profiles.png", figures.draw_profiles(results)),
    ]


def _improvement(folder: Path, results: Results) -> list[str]:
    rows = []
    for pair in results.improvements:
        low, high = pair.interval
        probability = f"{pair.probability:.2f} [{low:.2f}, {high:.2f}]"
        rows.append([pair.first, pair.second, probability, f"{pair.datasets}"])
    if not rows:
        return []
    return [
        "Probability that a run of one agent beats one of another, on the datasets that both "
        "cover; bold in the picture where the interval excludes 1/2. Where an agent has a single "
        "run on a dataset, the interval does not contain what differs between seeds.",
        table(["agent", "better than", "probability", "datasets"], rows),
        _picture(folder / "improvement.png", figures.draw_improvement(results)),
    ]


def _scales(folder: Path, results: Results) -> list[str]:
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
        "## Guidance scale",
        "The best scale is chosen after seeing returns in the environment: it is an upper bound "
        "for choosing w, not a result of offline learning.",
        table(["dataset", "agent", "headline", "best w online, not a headline"], rows),
        _picture(folder / "scales.png", figures.draw_scales(results)),
    ]


def _time(folder: Path, results: Results) -> list[str]:
    rows = []
    for label in results.labels:
        runs = results.labelled(label)
        if not runs:
            continue
        cpu = [run.cpu_seconds for run in runs if run.cpu_seconds is not None]
        measured = f"{np.mean(cpu):.0f} ({len(cpu)} runs)" if cpu else "not measured"
        wall = f"{np.mean([run.wall_seconds for run in runs]):.0f}"
        rows.append([label, f"{len(runs)}", wall, measured])
    blocks = [
        "## Training time",
        "Means over runs, in seconds, without evaluation.",
        table(["agent", "runs", "wall clock", "CPU"], rows),
    ]
    if results.scored_labels:
        blocks.append(_picture(folder / "time.png", figures.draw_time(results)))
    return blocks


def _provenance(results: Results) -> list[str]:
    data = [results.data(dataset) for dataset in results.datasets]
    rows = [[f"`{run.dataset}`", f"`{run.fingerprint}`"] for run in data if run is not None]
    sentences = {_made_with(run) for run in results.runs.values()}
    header = ["dataset", "SHA-256 of its arrays"]
    return ["## Data and versions", table(header, rows), *sorted(sentences)]


def _made_with(run: Run) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    machine = run.machine
    return (
        f"Measured with {versions}, on {machine['cpus']} {machine['processor']} cores, device "
        f"{machine['device']}, {machine['threads']} torch thread(s) per run."
    )
