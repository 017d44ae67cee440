"""Put what was measured into the pages: tables, single numbers and pictures.

    python benchmarks/pages.py             # writes them
    python benchmarks/pages.py --check     # names the pages that differ, exit code 1
    python benchmarks/pages.py --show      # prints every table with its name

A page has a table between `<!-- table: NAME -->` and `<!-- end -->`, and a number between
`<!-- number: NAME; ROW; COLUMN -->` and `<!-- end -->`: the mean of that cell. With
`; interval` behind the column the interval follows it. Names of rows and columns are written
without `*` and backticks. Each picture holds the digest of the tables that it shows.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import exactness_report
import figures
import tyro
from matplotlib.figure import Figure
from measured import Measurements, Source
from page_tables import SUPPORT, VALIDATION, measured_tasks, more_sections, read_json
from PIL import Image
from tables import sections

from qgpo.experiments.image_figure import draw_curves
from qgpo.experiments.image_study import Task
from qgpo.files import replacing

ROOT = Path(__file__).parent.parent
MARK = re.compile(r"<!-- (table|number): (.+?) -->(.*?)<!-- end -->", re.DOTALL)
DIGEST = "tables"
"""entry in the metadata of a picture"""


@dataclass
class Args:
    """Write or check."""

    check: bool = False
    """change nothing, and fail where a page or a picture differs"""
    show: bool = False
    """print the tables, and write nothing"""
    source: Source = field(default_factory=Source)
    """the measurements"""
    root: Path = ROOT
    """folder with README.md and docs/"""


def documents(root: Path) -> list[Path]:
    """The pages that may have marks."""
    return sorted([root / "README.md", *root.glob("docs/**/*.md"), root / "benchmarks/README.md"])


def plain(text: str) -> str:
    """Without emphasis and spaces around."""
    return re.sub(r"[*`]", "", text).strip()


def cells(table: str) -> dict[str, dict[str, str]]:
    """The cells of a Markdown table by the names of their row and column."""
    lines = [line.strip().strip("|").split("|") for line in table.splitlines()]
    header, _, *rows = [[plain(cell) for cell in line] for line in lines]
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def number(tables: dict[str, str], key: str) -> str:
    """The number that a mark asks for. Raises ValueError for names that do not exist."""
    name, row, column, *rest = [part.strip() for part in f"{key};;".split(";")]
    if name not in tables:
        raise ValueError(f"number: {key!r}: no table {name!r}, expected one of {sorted(tables)}")
    here = cells(tables[name])
    if row not in here or column not in here[row]:
        columns = list(next(iter(here.values())))
        raise ValueError(f"number: {key!r}: expected a row of {list(here)}, a column of {columns}")
    mean, bracket, interval = here[row][column].partition(" [")
    if rest[0] == "interval":
        return mean + bracket + interval.partition("]")[0] + "]"
    return mean


def filled(text: str, tables: dict[str, str]) -> str:
    """A page with today's tables and numbers. Raises ValueError for names that do not exist."""

    def fill(match: re.Match[str]) -> str:
        kind, key, _ = match.groups()
        if kind == "number":
            return f"<!-- number: {key} -->{number(tables, key)}<!-- end -->"
        if key not in tables:
            raise ValueError(f"table: {key!r}, expected one of {sorted(tables)}")
        return f"<!-- table: {key} -->\n\n{tables[key]}\n\n<!-- end -->"

    return MARK.sub(fill, text)


@dataclass(frozen=True)
class Picture:
    """A picture of a page, and the tables that it shows."""

    path: str
    shows: tuple[str, ...]
    draw: Callable[[], Figure]

    def digest(self, tables: dict[str, str]) -> str:
        """Of what it shows."""
        text = "\n\n".join(tables[name] for name in self.shows)
        return hashlib.sha256(text.encode()).hexdigest()


def pictures(measurements: Measurements) -> list[Picture]:
    """Every picture that is drawn from committed results."""

    def exactness() -> Figure:
        return exactness_report.draw(read_json("results/exactness_2d.json.xz"))

    every: tuple[tuple[str, tuple[str, ...], Any], ...] = (
        ("docs/demo.png", ("demo",), figures.draw_demo),
        ("docs/headline.png", ("laptop-summary",), figures.draw_headline),
        ("docs/together.png", ("ten-minutes",), figures.draw_together),
        ("docs/minutes.png", ("by-time",), figures.draw_minutes),
        ("docs/scales.png", ("three-together-scales", "each-ensemble"), figures.draw_scales),
        ("docs/harm.png", ("three-together-scales", "each-ensemble"), figures.draw_harm),
        ("docs/rare_states.png", ("with-and-without-row",), figures.draw_row),
        ("docs/speed.png", ("latency",), figures.draw_speed),
        ("docs/ogbench.png", ("cube",), figures.draw_ogbench),
        ("docs/broad.png", ("broad-development", "broad-validation"), figures.draw_broad),
    )
    drawn = [Picture(path, shows, partial(draw, measurements)) for path, shows, draw in every]
    drawn += [
        Picture(f"docs/images_{t.name}_curves.png", (f"images-{t.name}",), partial(curves_of, t))
        for t in measured_tasks()
    ]

    def drawn_problems() -> Figure:
        return exactness_report.draw_drawn(read_json(VALIDATION))

    def support() -> Figure:
        return exactness_report.draw_support(read_json(SUPPORT))

    shown = ("exactness-2d", "exactness-times")
    return [
        *drawn,
        Picture("docs/exactness_curves.png", shown, exactness),
        Picture("docs/exactness_drawn.png", ("exactness-drawn",), drawn_problems),
        Picture("docs/exactness_support.png", ("exactness-support-times",), support),
    ]


def curves_of(task: Task) -> Figure:
    """What was measured of guided images, a curve per method."""
    return draw_curves(task, read_json("images.json")["tasks"][task.name]["rows"])


def recorded(path: Path) -> str | None:
    """The digest in a picture's metadata."""
    if not path.exists():
        return None
    with Image.open(path) as image:
        return image.info.get(DIGEST)


def differing(args: Args, write: bool) -> list[Path]:
    """Pages and pictures that are not what the results make them; with `write` they become so."""
    measurements = Measurements(args.source)
    tables = sections(measurements) | more_sections(measurements)
    found = []
    for page in documents(args.root):
        text = page.read_text(encoding="utf-8")
        try:
            new = filled(text, tables)
        except ValueError as error:
            raise SystemExit(f"{page}: {error}") from error
        if new != text:
            found.append(page)
            if write:
                with replacing(page) as file:
                    file.write(new.encode())
    for picture in pictures(measurements):
        path, digest = args.root / picture.path, picture.digest(tables)
        if recorded(path) != digest:
            found.append(path)
            if write:
                with replacing(path) as file:
                    picture.draw().savefig(file, format="png", dpi=130, metadata={DIGEST: digest})
    return found


def main(args: Args) -> None:
    """Write, check or show."""
    if args.show:
        measurements = Measurements(args.source)
        for name, text in (sections(measurements) | more_sections(measurements)).items():
            print(f"## {name}\n\n{text}\n")
        return
    found = differing(args, write=not args.check)
    for path in found:
        print(f"{path}: {'differs from the results' if args.check else 'written'}")
    if args.check and found:
        sys.exit("python benchmarks/pages.py writes them")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
