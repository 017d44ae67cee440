"""Write tables and pictures of the results of scripts/benchmark.py, as Markdown and HTML.

python scripts/report.py --results benchmarks/locomotion --plan benchmarks/locomotion.toml
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from qgpo.commands import command
from qgpo.experiments.measured_exactness import find_exactness
from qgpo.experiments.packing import ResultError, pack
from qgpo.experiments.plan import read_plan
from qgpo.experiments.report import write_report
from qgpo.experiments.results import Results
from qgpo.scripts._refusals import one_line
from qgpo.scripts._terminal import any_terminal, description, refuse_repeated


@dataclass
class Args:
    """Report a benchmark."""

    results: tuple[Path, ...]
    """folders with results: one JSON file per cell, packed tables, or both"""
    plan: Path | None = None
    """plan that lists the expected cells; default all combinations of agents, datasets and seeds in
    the results"""
    output: Path | None = None
    """folder for report.md, report.html and pictures; default report/ in the first folder of
    --results"""
    runs: tuple[Path, ...] = ()
    """run folders, or folders of runs: the report shows how exact the guidance of those is where
    evaluate.py --exactness measured it"""
    title: str | None = None
    """title of the report; default the names of the folders"""
    pack: bool = False
    """first move the JSON files of the cells into the packed tables of their folder,
    episodes.csv.xz and provenance.json"""


@one_line()
def main(args: Args) -> None:
    """Read, draw, write."""
    cells = [] if args.plan is None else read_plan(args.plan)
    exactness = find_exactness(args.runs)
    unpacked = []
    for folder in args.results if args.pack else ():
        try:
            print(f"{folder}: {len(pack(folder))} cells packed")
        except ResultError as error:
            unpacked.append(f"{folder} is not packed: {error}")
    results = Results.read(args.results, [cell.key for cell in cells], skip=True)
    output = args.output or args.results[0] / "report"
    title = args.title or f"Benchmark: {', '.join(folder.name for folder in args.results)}"
    write_report(output, results, title, exactness=exactness)
    n, missing = len(results.expected), len(results.missing)
    print(f"{n - missing} of {n} cells have results; report: {output / 'report.html'}")
    if wrong := [*unpacked, *(f"left out: {why}" for why in results.skipped)]:
        raise SystemExit("error: " + "\n".join(wrong))


@any_terminal()
def cli() -> None:
    """Entry point."""
    refuse_repeated(Args, sys.argv[1:])
    main(tyro.cli(Args, prog=command("report"), description=description(__doc__)))


if __name__ == "__main__":
    cli()
