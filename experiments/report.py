"""A benchmark's results as one document, in Markdown and in self-contained HTML.

What the document says is in `report_template.md`; the rows of its tables are made here.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import jinja2
import markdown
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from qgpo.envs.progress import progress
from qgpo.envs.text import code, literal, readable, with_interval
from qgpo.experiments import result_figures as figures
from qgpo.experiments import statistics
from qgpo.experiments.measured_exactness import MeasuredExactness
from qgpo.experiments.results import Results, Run
from qgpo.files import write_whole

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=jinja2.select_autoescape(),
    trim_blocks=True,
    keep_trailing_newline=True,
    undefined=jinja2.StrictUndefined,
)
Row = list[str]


def write_report(
    folder: Path,
    results: Results,
    title: str,
    progress_bar: bool | None = None,
    exactness: Sequence[MeasuredExactness] = (),
) -> None:
    """`report.md` with its pictures and `report.html`, which contains them, in the folder.

    With what was measured of the guidance's exactness, if anything. A bar counts tables and
    pictures, by default where stderr is a terminal.
    """
    with progress(len(TABLES) + PICTURES, "report", progress_bar, leave=False) as bar:
        text = _write_text(folder, results, title, exactness, bar)
    write_whole(folder / "report.md", text.encode())
    write_whole(folder / "report.html", to_html(text, folder, title).encode())


def _write_text(
    folder: Path,
    results: Results,
    title: str,
    exactness: Sequence[MeasuredExactness],
    bar: tqdm[Any],
) -> str:
    """The document, in Markdown; its pictures are written into the folder."""

    def picture(name: str, draw: Callable[[Results], Figure]) -> str:
        with matplotlib.rc_context({"text.parse_math": False}):  # a $ in a label is a $
            figure = draw(results)
            figures.save(figure, folder / name)
        bar.update()
        return f"![{literal(figure.get_suptitle())}]({name})"

    rows = {}
    for make_rows in TABLES:
        rows[make_rows.__name__] = list(make_rows(results))
        bar.update()
    return TEMPLATES.get_template("report_template.md").render(
        title=literal(title),
        results=results,
        rows=rows,
        exactness=[exactness_row(measured) for measured in exactness],
        episodes=sorted({len(run.returns[run.headline_scale]) for run in results.runs.values()}),
        missing=_missing(results),
        titles=[_titled(results, label) for label in results.labels],
        machines=sorted({_made_with(run) for run in results.runs.values()}),
        figures=figures,
        picture=picture,
        table=table,
    )


def to_html(text: str, folder: Path, title: str) -> str:
    """The Markdown text as one page that contains the folder's pictures."""
    # escaped first, so that a label is never read as HTML
    escaped = html.escape(text.replace("\\<", "<"), quote=False)
    body = markdown.markdown(escaped, extensions=["tables"])
    for picture in folder.glob("*.png"):
        source = f'src="{picture.name}"'
        if source in body:
            data = base64.b64encode(picture.read_bytes()).decode()
            body = body.replace(source, f'src="data:image/png;base64,{data}"')
    return TEMPLATES.get_template("report_template.html").render(title=title, body=body)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    escaped = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def spread(values: Sequence[float] | NDArray[np.float64], digits: int | None = None) -> str:
    """Mean ± sample standard deviation; one value has no deviation.

    With so many decimals, or as many as numbers of that size need.
    """
    numbers = [float(np.mean(values))]
    if len(values) > 1:
        numbers.append(float(np.std(values, ddof=1)))
    return " ± ".join(readable(x) if digits is None else f"{x:.{digits}f}" for x in numbers)


def headline(results: Results) -> Iterator[Row]:
    """Dataset, mean return of its data, and of each agent; or each agent's successes."""
    for dataset in results.datasets:
        mean = results.data_mean(dataset)
        data = "missing" if np.isnan(mean) else readable(mean)
        if results.by_success(dataset):
            data = "success"
        yield [code(dataset), data, *(_cell(results, dataset, a) for a in results.labels)]


def _cell(results: Results, dataset: str, label: str) -> str:
    """Mean ± deviation (score ± deviation), and the number of seeds unless it is all.

    For successes, percentage ± deviation.
    """
    expected, runs = results.planned(dataset, label), results.of(dataset, label)
    if not runs:
        return "missing" if expected else "not planned"
    scores = results.scores(dataset, label)
    if results.by_success(dataset):
        text = f"{spread(scores, 1)} %"
    else:
        text = spread([run.headline for run in runs])
        text += f" ({spread(scores, 1)})" if len(scores) else ""
    return text if len(runs) == len(expected) else f"{text}, {len(runs)} of {len(expected)} seeds"


def _titled(results: Results, label: str) -> str:
    """The label in Markdown; of an online agent, with its environment steps."""
    steps = max((run.environment_steps for run in results.labelled(label)), default=0)
    shown = literal(label)
    return f"{shown} (online: {steps:,} environment steps)" if steps else shown


def _missing(results: Results) -> list[str]:
    """Which runs are not measured yet."""
    places: dict[str, list[str]] = {}
    for dataset, label, seed in results.missing:
        places.setdefault(f"{literal(label)} on {code(dataset)}", []).append(str(seed))
    return [f"{place} (seeds {', '.join(seeds)})" for place, seeds in places.items()]


def intervals(results: Results) -> Iterator[Row]:
    """Dataset, agent, mean return or percentage of successes with its interval, seeds."""
    for dataset, label in product(results.datasets, results.labels):
        if runs := results.of(dataset, label):
            low, high = results.interval(dataset, label)
            mean = float(np.mean([run.headline for run in runs]))
            interval = " ".join(with_interval(mean, (low, high)))
            if results.by_success(dataset):
                interval = f"{mean:.1f} % [{low:.1f}, {high:.1f}]"
            yield [code(dataset), literal(label), interval, f"{len(runs)}"]


def references(results: Results) -> Iterator[Row]:
    """Dataset, returns of scores 0 and 100, and where they are from."""
    for dataset in results.datasets:
        columns = ["missing"] * 3
        if (run := results.data(dataset)) is not None:
            columns = ["none", "none", "its runs are in no aggregate"]
            if run.by_success:
                columns = ["0 %", "100 %", "the percentage of episodes that succeed"]
            elif (reference := run.reference) is not None:
                columns = [f"{reference.minimum:g}", f"{reference.maximum:g}"]
                columns.append(literal(reference.source))
        yield [code(dataset), *columns]


def aggregate(results: Results) -> Iterator[Row]:
    """Agent, datasets and runs with a score, interquartile mean with its interval, mean."""
    for label in results.scored_labels:
        tasks = results.tasks(label)
        low, high = results.iqm_interval(label)
        covered, runs = f"{len(tasks)} of {len(results.scored_datasets)}", f"{sum(map(len, tasks))}"
        interval = f"{statistics.iqm(tasks):.1f} [{low:.1f}, {high:.1f}]"
        yield [_titled(results, label), covered, runs, interval, f"{statistics.mean(tasks):.1f}"]


def improvement(results: Results) -> Iterator[Row]:
    """Two agents, how probably the first is better, common datasets."""
    for pair in results.improvements:
        low, high = pair.interval
        probability = f"{pair.probability:.2f} [{low:.2f}, {high:.2f}]"
        yield [literal(pair.first), literal(pair.second), probability, f"{pair.datasets}"]


def scales(results: Results) -> Iterator[Row]:
    """Dataset, agent, returns or successes at the headline scale and at the best one."""
    for dataset, label in product(results.datasets, results.labels):
        best = results.best_scale(dataset, label)
        if best is not None:
            runs = results.of(dataset, label)
            scales = [scale for scale in (runs[0].headline_scale, best) if scale is not None]
            digits, unit = (1, " %") if results.by_success(dataset) else (None, "")
            shown = [
                f"{spread([run.mean(w) for run in runs], digits)}{unit} (w = {w:g})" for w in scales
            ]
            yield [code(dataset), literal(label), *shown]


def time(results: Results) -> Iterator[Row]:
    """Agent, number of runs, mean seconds of wall clock and of CPU."""
    for label in results.labels:
        if runs := results.labelled(label):
            cpu = [run.cpu_seconds for run in runs if run.cpu_seconds is not None]
            measured = f"{np.mean(cpu):.0f} ({len(cpu)} runs)" if cpu else "not measured"
            wall = f"{np.mean([run.wall_seconds for run in runs]):.0f}"
            yield [literal(label), f"{len(runs)}", wall, measured]


def fingerprints(results: Results) -> Iterator[Row]:
    """Dataset and the digest of its arrays."""
    for dataset in results.datasets:
        if (run := results.data(dataset)) is not None:
            yield [code(dataset), code(run.fingerprint)]


def exactness_row(measured: MeasuredExactness) -> Row:
    """Run, dataset, states, guidance error, distance and effective share with intervals."""

    def percent(values: tuple[float, float, float]) -> str:
        return "{:.1f} % [{:.1f}, {:.1f}]".format(*(100.0 * value for value in values))

    return [
        code(measured.run),
        code(measured.dataset),
        f"{measured.states}",
        percent(measured.guidance_error),
        "{:.2f} [{:.2f}, {:.2f}]".format(*measured.distance),
        percent(measured.effective_share),
    ]


def _made_with(run: Run) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return literal(
        f"Measured with {versions}, on {run.machine['cpus']} {run.machine['processor']} cores, "
        f"device {run.machine['device']}, {run.machine['threads']} torch thread(s) per run."
    )


TABLES = (headline, intervals, references, aggregate, improvement, scales, time, fingerprints)
"""each makes the rows of the template's table of its name"""
PICTURES = 6
"""in the template, at most"""
