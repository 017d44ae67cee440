"""Run all agents x datasets x seeds of a plan; finished cells are skipped, others are resumed.

python scripts/benchmark.py --plan benchmarks/locomotion.toml --workers 2
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from qgpo.commands import command
from qgpo.experiments.benchmark import Benchmark, Standing, headline
from qgpo.experiments.plan import in_turn, read_plan
from qgpo.experiments.settings import AT_LEAST_1, check_types
from qgpo.experiments.workers import Outcome
from qgpo.scripts._refusals import one_line
from qgpo.scripts._terminal import any_terminal, description, refuse_repeated


@dataclass
class Args:
    """Run what a plan lists."""

    plan: Path
    """TOML file with agents, datasets, seeds and guidance scales"""
    workers: Annotated[int, AT_LEAST_1] = 2
    """number of cells that run in parallel on this machine, with one torch thread each"""
    ray_address: str | None = None
    """run on a Ray cluster instead: auto, the address of the cluster, or local for a cluster on
    this machine"""
    runs: Path | None = None
    """folder for run folders (checkpoints, logs); default runs/<plan>"""
    results: Path | None = None
    """folder for raw returns, one JSON file per cell; default the plan's path without .toml"""
    dry_run: bool = False
    """only print which cells would run"""


def table(standings: list[Standing], workers: int) -> str:
    """The plan: every cell with its state and time, and the whole."""
    width = max(len(s.cell.name) for s in standings)
    lines = [f"{'cell':{width}s}  {'state':20s}  {'minutes':>7s}  from"]
    for s in standings:
        minutes = "?" if s.seconds is None else f"{s.seconds / 60:.1f}"
        lines.append(f"{s.cell.name:{width}s}  {s.state:20s}  {minutes:>7s}  {s.source}")
    left = [s for s in standings if s.result is None]
    known = [s.seconds for s in left if s.seconds is not None]
    total = f"{sum(known) / 60 / workers:.0f} minutes with {workers} in parallel"
    if len(known) < len(left):
        total += f", plus {len(left) - len(known)} cells of unknown duration"
    lines.append(f"{len(standings) - len(left)} finished, {len(left)} to run: {total}")
    return "\n".join(lines)


@one_line()
def main(args: Args) -> None:
    """Print the plan, run it, print what failed."""
    check_types(args)
    runs = args.runs or Path("runs") / args.plan.stem
    results = args.results or args.plan.with_suffix("")
    benchmark = Benchmark(in_turn(read_plan(args.plan)), runs, results)
    standings = benchmark.standings()
    print(table(standings, args.workers), flush=True)
    cells = [s.cell for s in standings if s.result is None]
    if args.dry_run or not cells:
        return
    began, ended = time.monotonic(), 0

    def report(outcome: Outcome) -> None:
        nonlocal ended
        ended += 1
        said = f"FAILED: {outcome.error}" if outcome.result is None else headline(outcome.result)
        minutes = (time.monotonic() - began) / 60
        print(f"[{ended}/{len(cells)}, {minutes:.1f} min] {outcome.cell.name}: {said}", flush=True)

    try:
        failed = benchmark.run(cells, report, args.workers, args.ray_address)
    except KeyboardInterrupt:
        again = f"continue with: {command('benchmark', *sys.argv[1:])}"
        at = f"{ended} of {len(cells)} cells ended"
        raise KeyboardInterrupt(f"stopped with checkpoints, {at}; {again}") from None
    print(f"results: {results}")
    if failed:
        lines = [f"{o.cell.name}: {o.error}\n    log: {o.log}" for o in failed]
        raise SystemExit(f"{len(failed)} of {len(cells)} cells failed\n" + "\n".join(lines))


@any_terminal()
def cli() -> None:
    """Entry point."""
    refuse_repeated(Args, sys.argv[1:])
    main(tyro.cli(Args, prog=command("benchmark"), description=description(__doc__)))


if __name__ == "__main__":
    cli()
