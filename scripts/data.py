"""List, download, check, combine and show datasets.

python scripts/data.py list --prefix mujoco/hopper
python scripts/data.py download mujoco/hopper/medium
python scripts/data.py check mujoco/hopper/medium-v0
python scripts/data.py combine mujoco/hopper/medium-v0 mujoco/hopper/expert-v0 \
    --dataset-id mine/hopper/medium-expert-v0
python scripts/data.py show mine/hopper/medium-expert-v0 --output medium-expert.png
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from qgpo.envs.data.figure import draw_dataset, summary
from qgpo.envs.store.catalogue import WHERE, Entry, Where, catalogue
from qgpo.envs.store.checking import check_dataset
from qgpo.envs.store.combining import combine
from qgpo.envs.store.downloading import download
from qgpo.envs.store.loading import load_dataset
from qgpo.envs.store.local import folder_of
from qgpo.envs.store.remote import RemoteError, remote_name

Ids = tyro.conf.Positional[tuple[str, ...]]


@dataclass
class List:
    """Local, bundled and remote datasets, and what is missing to use each."""

    where: tuple[Where, ...] = WHERE
    """places to look in"""
    prefix: str = ""
    """only ids that begin so, for example mujoco/hopper"""
    as_json: bool = False
    """one JSON list instead of tables"""


@dataclass
class Download:
    """Fetch datasets from Minari's remote; damaged ones are replaced, whole ones kept."""

    ids: Ids
    """dataset ids; without version the newest on the remote that can be read here"""
    force: bool = False
    """fetch anew what is here and whole"""
    progress_bar: bool = True
    """show files and bytes"""


@dataclass
class Check:
    """Look at files, episodes, every value, environment and scores; exit code 1 if one is bad."""

    ids: Ids
    """ids of local datasets"""


@dataclass
class Combine:
    """Write all episodes of several datasets into a new local one."""

    ids: Ids
    """at least two dataset ids, in the order of their episodes"""
    dataset_id: str
    """id of the new dataset, for example mine/hopper/medium-expert-v0"""
    progress_bar: bool = True
    """show steps and time left"""


@dataclass
class Show:
    """Summarise a dataset, and draw its returns, lengths, rewards and actions."""

    id: tyro.conf.Positional[str]
    """dataset id"""
    output: Path | None = None
    """the picture (.png, .pdf, .svg); default the id with dashes, in this folder"""
    overwrite: bool = False
    """replace the picture where it exists, instead of refusing"""


Command = List | Download | Check | Combine | Show


def list_datasets(args: List) -> None:
    """Print a table per place; a remote that cannot be reached is said, and no failure."""
    found: dict[Where, list[Entry]] = {}
    for where in args.where:
        try:
            found[where] = catalogue(where, args.prefix)
        except RemoteError as error:
            if args.as_json or len(args.where) == 1:
                raise
            print(f"remote: {error}\n")
    if args.as_json:
        plain = [dataclasses.asdict(entry) for part in found.values() for entry in part]
        print(json.dumps(plain, indent=2))
        return
    titles = {"local": str(folder_of("")), "bundled": "made from policies in the package"}
    for where, entries in found.items():
        title = titles[where] if where in titles else remote_name()
        print(f"{where} ({title}): {len(entries)}")
        print("\n".join(table(entries)), end="\n\n" if entries else "\n")
    print("0 / 100: returns that count so. D4RL: same task and kind (do scores compare?)")


def table(entries: list[Entry]) -> list[str]:
    """A header and a line per dataset, columns as wide as they need to be."""
    header = ("id", "steps", "episodes", "MB", "behavior", "0 / 100", "D4RL", "missing, notes")
    rows = [header, *(row(entry) for entry in entries)]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(header))]
    right = {1, 2, 3}
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
        if entries
    ]


def row(entry: Entry) -> tuple[str, ...]:
    """A dataset's cells."""
    behavior = entry.behavior or "-"
    if entry.where != "bundled" and entry.author:
        behavior += f" ({entry.author})"
    reference = entry.reference
    return (
        entry.id,
        "-" if entry.steps is None else f"{entry.steps:,}",
        "-" if entry.episodes is None else f"{entry.episodes:,}",
        "-" if entry.megabytes is None else f"{entry.megabytes:.0f}",
        behavior if len(behavior) <= 36 else f"{behavior[:35]}…",
        "-" if reference is None else f"{reference.minimum:.0f} / {reference.maximum:.0f}",
        "-" if entry.d4rl is None else f"{entry.d4rl} ({entry.comparable})",
        "; ".join((*entry.missing, *entry.notes)) or "-",
    )


def download_datasets(args: Download) -> None:
    """Fetch one after the other."""
    _some(args.ids, 1)
    for name in args.ids:
        dataset = download(name, force=args.force, progress_bar=args.progress_bar)
        print(
            f"{dataset.id}: {dataset.total_episodes} episodes, {dataset.total_steps} steps in "
            f"{folder_of(dataset.id)}"
        )


def check_datasets(args: Check) -> None:
    """Print every report; exit code 1 where one is bad."""
    _some(args.ids, 1)
    reports = [check_dataset(name) for name in args.ids]
    for report in reports:
        print(report.id)
        for finding in report.findings:
            mark = {True: "ok", False: "BAD", None: "-"}[finding.ok]
            print(f"  {mark:4s}{finding.what:12s}{finding.text}")
    bad = [report.id for report in reports if not report.ok]
    if bad:
        raise SystemExit(f"bad: {', '.join(bad)}")


def combine_datasets(args: Combine) -> None:
    """Write the new dataset, and say how to train on it."""
    dataset = combine(args.ids, args.dataset_id, progress_bar=args.progress_bar)
    print(f"{dataset.id}: {dataset.total_episodes} episodes, {dataset.total_steps} steps")
    print(f"train on it: python scripts/train.py --dataset-id {dataset.id}")


def show_dataset(args: Show) -> None:
    """Print the summary and write the picture."""
    output = args.output or Path(f"{args.id.replace('/', '-')}.png")
    if output.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--output {output}: expected a file that ends in .png, .pdf or .svg")
    if output.exists() and not args.overwrite:
        raise ValueError(f"{output} exists: choose another --output, or replace it by --overwrite")
    dataset = load_dataset(args.id)
    print(dataset.id)
    for name, text in summary(dataset):
        print(f"  {name:12s}{text}")
    output.parent.mkdir(parents=True, exist_ok=True)
    draw_dataset(output, dataset)
    print(f"picture: {output}")


def _some(ids: tuple[str, ...], least: int) -> None:
    if len(ids) < least:
        raise ValueError("no dataset id given, expected at least one")


def main(args: Command) -> None:
    """Run the command; errors are one line."""
    try:
        match args:
            case List():
                list_datasets(args)
            case Download():
                download_datasets(args)
            case Check():
                check_datasets(args)
            case Combine():
                combine_datasets(args)
            case Show():
                show_dataset(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("\nstopped: nothing half-made was left under an id") from None


def cli() -> None:
    """Entry point."""
    main(tyro.cli(Command, description=__doc__))  # type: ignore[arg-type]


if __name__ == "__main__":
    cli()
