"""List, download, generate, import, check, combine and show datasets.

python scripts/data.py list --prefix mujoco/hopper
python scripts/data.py download mujoco/hopper/medium
python scripts/data.py generate ogbench/cube-single-play --steps 100000
python scripts/data.py import log.csv --dataset-id mine/arm-v0 --observations 'q*' 'dq*' \
    --actions 'u*' --reward r --episode trial --time t
python scripts/data.py check mujoco/hopper/medium-v0
python scripts/data.py combine mujoco/hopper/medium-v0 mujoco/hopper/expert-v0 \
    --dataset-id mine/hopper/medium-expert-v0
python scripts/data.py show mine/hopper/medium-expert-v0 --output medium-expert.png
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro

from qgpo.commands import command
from qgpo.envs.data.figure import draw_dataset, summary
from qgpo.envs.logs.importing import findings, import_log, prepare
from qgpo.envs.logs.lerobot import is_lerobot, read_lerobot
from qgpo.envs.logs.log import Ends, Log
from qgpo.envs.logs.reading import Names, read_log
from qgpo.envs.store.catalogue import WHERE, Entry, Where, catalogue
from qgpo.envs.store.checking import Finding, check_dataset
from qgpo.envs.store.combining import combine
from qgpo.envs.store.downloading import download
from qgpo.envs.store.generating import generate, name_to_generate
from qgpo.envs.store.loading import load_dataset
from qgpo.envs.store.local import folder_of
from qgpo.envs.store.remote import RemoteError, remote_name
from qgpo.envs.tasks.ogbench import NUMBERS
from qgpo.envs.text import readable
from qgpo.experiments.threads import available_cores
from qgpo.scripts._refusals import one_line
from qgpo.scripts._terminal import any_terminal, description

LONGEST_CELL = 400
Ids = tyro.conf.Positional[tuple[str, ...]]


def list_datasets(
    where: tuple[Where, ...] = WHERE, prefix: str = "", as_json: bool = False
) -> None:
    """Local, bundled and remote datasets, and what is missing to use each.

    Args:
        where: places to look in
        prefix: only ids that start with it, for example mujoco/hopper
        as_json: one JSON list instead of tables
    """
    entries: dict[Where, list[Entry]] = {}
    for place in where:
        try:
            entries[place] = catalogue(place, prefix)
        except RemoteError as error:
            if as_json or len(where) == 1:
                raise
            print(f"remote: {error}\n")
    if as_json:
        plain = [dataclasses.asdict(entry) for part in entries.values() for entry in part]
        print(json.dumps(plain, indent=2))
        return
    titles = {"local": str(folder_of("")), "bundled": "made from policies in the package"}
    for place, listed in entries.items():
        print(f"{place} ({titles.get(place) or remote_name()}): {len(listed)}")
        print("".join(f"{line}\n" for line in table(listed)))
    print("0 / 100: returns that count so. D4RL: same task and kind (do scores compare?)")


def download_datasets(ids: Ids, force: bool = False, progress_bar: bool = True) -> None:
    """Fetch datasets from Minari's remote; damaged ones are replaced, complete ones kept.

    Args:
        ids: dataset ids; without a version the newest on the remote that can be read here.
            OGBench's (ogbench/…) come from its own host
        force: fetch complete local datasets again, too
        progress_bar: show files and bytes
    """
    for name in not_empty(ids):
        dataset = download(name, force=force, progress_bar=progress_bar)
        size = f"{dataset.total_episodes} episodes, {dataset.total_steps} steps"
        print(f"{dataset.id}: {size} in {folder_of(dataset.id)}")


def generate_dataset(
    id: tyro.conf.Positional[str],
    steps: int | None = None,
    seed: int | None = None,
    processes: int | None = None,
    progress_bar: bool = True,
) -> None:
    """Make trajectories of OGBench by its own experts; after a stop, run it again to go on.

    The same seed gives the same dataset with any number of processes. One dataset serves all tasks
    of its environment.

    Args:
        id: which set, for example ogbench/cube-single-play
        steps: transitions, rounded up to whole trajectories; default the id's, else 100000
        seed: of the trajectories; default the id's, else 0
        processes: processes of one thread each; default one for every core that is free to use
        progress_bar: show steps and time left
    """
    name = name_to_generate(id, steps, seed)
    if folder_of(name.id).exists():
        print(f"{name.id} exists already: nothing is generated")
    if processes is None:
        processes = max(1, int(available_cores()))
    try:
        dataset = generate(name, processes, progress_bar=progress_bar)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped; the same command goes on from the trajectories that are finished"
        ) from None
    size = f"{dataset.total_episodes} trajectories, {dataset.total_steps} steps"
    print(f"{name.id}: {size}, {dataset.storage.get_size()} MB in {folder_of(name.id)}")
    for task in (dataclasses.replace(name, task=number).id for number in NUMBERS):
        print(f"train on it: {command('train', '--dataset-id', task)}")


def check_datasets(ids: Ids) -> None:
    """Check files, episodes, every value, environment and scores; exit code 1 if one is bad.

    Args:
        ids: ids of local datasets
    """
    reports = [check_dataset(name) for name in not_empty(ids)]
    for report in reports:
        print(report.id)
        show_findings(report.findings)
    bad = [report.id for report in reports if not report.ok]
    if bad:
        raise SystemExit(f"bad: {', '.join(bad)}")


def show_findings(found: Sequence[Finding]) -> None:
    """A line for each."""
    for finding in found:
        mark = {True: "ok", False: "BAD", None: "-"}[finding.ok]
        print(f"  {mark:4s}{finding.what:12s}{finding.text}")


def import_recording(
    source: tyro.conf.Positional[tuple[Path, ...]],
    dataset_id: str | None = None,
    observations: tuple[str, ...] = (),
    actions: tuple[str, ...] = (),
    reward: str | None = None,
    termination: str | None = None,
    truncation: str | None = None,
    episode: str | None = None,
    time: str | None = None,
    next_observations: tuple[str, ...] = (),
    time_unit: float = 1.0,
    ends: Ends = "truncated",
    split_gaps: bool = False,
    skip_episodes: tuple[int, ...] = (),
    one_hot: bool = False,
    low: tuple[float, ...] = (),
    high: tuple[float, ...] = (),
    env_id: str | None = None,
    no_reward: bool = False,
    dry_run: bool = False,
) -> None:
    """Make a dataset of your own recording, once nothing is wrong with it.

    Args:
        source: files (.npz, .csv, .parquet; each begins an episode), or a folder in LeRobot's
            format
        dataset_id: id of the new dataset, for example mine/arm-v0
        observations: columns that the agent sees, names or patterns such as 'q*', in their order
        actions: columns of what was executed in that row
        reward: column of rewards
        termination: column that is true where the task ended: nothing comes after
        truncation: column that is true where the recording was cut, by a time limit for example
        episode: column with the number of the episode; without it flags and files end episodes
        time: column of time stamps
        next_observations: columns of what followed, where rows do not follow each other
        time_unit: seconds of one unit of the time stamps, for example 1e-9
        ends: what the end of an episode without a flag is
        split_gaps: end episodes where time stamps have a gap
        skip_episodes: numbers of episodes to leave out
        one_hot: the action is the number of a choice; make a vector of each
        low: smallest action, one number or one per column
        high: largest action, likewise
        env_id: environment that was recorded, which agents are to play in
        no_reward: import without rewards, for imitation alone
        dry_run: say what would be wrong, and write nothing
    """
    if dataset_id is None and not dry_run:
        raise ValueError("no --dataset-id is given, for example mine/arm-v0 (or --dry-run)")
    several = (observations, actions)
    names = Names(*several, reward, termination, truncation, episode, time, next_observations)
    log = prepare(read_source(source, names, time_unit), skip_episodes, split_gaps, one_hot)
    if no_reward:
        log = dataclasses.replace(log, rewards=None)
    found = findings(log, ends, low, high)
    print(log.of)
    show_findings(found)
    bad = [finding.what for finding in found if finding.ok is False]
    if bad:
        raise SystemExit(f"bad: {', '.join(dict.fromkeys(bad))}; nothing was written")
    if log.rewards is None and not no_reward and not dry_run:
        raise ValueError(
            f"{log.of}: no reward column: name one with --reward, or say --no-reward and train BC"
        )
    if dry_run or dataset_id is None:
        return
    made = import_log(log, dataset_id, env_id=env_id, ends=ends, low=low, high=high)
    print(f"{made.id}: {made.total_episodes} episodes, {made.total_steps} steps")
    agent = ("--agent", "BC") if log.rewards is None else ()
    unplayed = () if env_id is not None else ("--n-episodes", 0)
    print(f"train on it: {command('train', '--dataset-id', made.id, *agent, *unplayed)}")


def read_source(source: tuple[Path, ...], names: Names, time_unit: float) -> Log:
    """The rows of files, or of a folder in LeRobot's format."""
    folders = [path for path in source if path.is_dir()]
    if not folders:
        return read_log(source, names, time_unit)
    if len(source) > 1 or not is_lerobot(folders[0]):
        raise ValueError(
            f"{folders[0]} is a folder: expected files, or one folder in LeRobot's format (with "
            "meta/info.json)"
        )
    return read_lerobot(folders[0], names)


def combine_datasets(ids: Ids, dataset_id: str, progress_bar: bool = True) -> None:
    """Write all episodes of several datasets into a new local one.

    Args:
        ids: at least two dataset ids, in the order of their episodes
        dataset_id: id of the new dataset, for example mine/hopper/medium-expert-v0
        progress_bar: show steps and time left
    """
    dataset = combine(ids, dataset_id, progress_bar=progress_bar)
    print(f"{dataset.id}: {dataset.total_episodes} episodes, {dataset.total_steps} steps")
    print(f"train on it: {command('train', '--dataset-id', dataset.id)}")


def show_dataset(
    id: tyro.conf.Positional[str], output: Path | None = None, overwrite: bool = False
) -> None:
    """Summarise a dataset, and draw its returns, lengths, rewards, actions and states.

    Args:
        id: dataset id
        output: the picture (.png, .pdf, .svg); default the id with dashes, in this folder
        overwrite: replace the picture where it exists, instead of refusing
    """
    output = output or Path(f"{id.replace('/', '-')}.png")
    if output.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--output {output}: expected a file that ends in .png, .pdf or .svg")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists: choose another --output, or replace it by --overwrite")
    dataset = load_dataset(id)
    print(dataset.id)
    for name, text in summary(dataset):
        print(f"  {name:12s}{text}")
    output.parent.mkdir(parents=True, exist_ok=True)
    draw_dataset(output, dataset)
    print(f"picture: {output}")


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_datasets,
    "download": download_datasets,
    "generate": generate_dataset,
    "import": import_recording,
    "check": check_datasets,
    "combine": combine_datasets,
    "show": show_dataset,
}


def table(entries: list[Entry]) -> list[str]:
    """A header and a line per dataset, in columns as wide as needed; nothing without datasets."""
    if not entries:
        return []
    header = ("id", "steps", "episodes", "MB", "behavior", "0 / 100", "D4RL", "missing, notes")
    rows = [header, *map(row, entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = "<>>><<<<"
    form = "  ".join(f"{{:{side}{width}}}" for side, width in zip(align, widths, strict=True))
    return [f"  {form.format(*cells)}".rstrip() for cells in rows]


def row(entry: Entry) -> tuple[str, ...]:
    """A dataset's cells."""
    behavior = entry.behavior or "-"
    if entry.where != "bundled" and entry.author:
        behavior += f" ({entry.author})"
    size, reference = entry.megabytes, entry.reference
    ends = () if reference is None else (reference.minimum, reference.maximum)
    cells = (
        entry.id,
        "-" if entry.steps is None else f"{entry.steps:,}",
        "-" if entry.episodes is None else f"{entry.episodes:,}",
        "-" if size is None else f"{size:.2g}" if size < 10 else f"{size:.0f}",
        behavior if len(behavior) <= 36 else f"{behavior[:33]}...",
        " / ".join(map(readable, ends)) or "-",
        "-" if entry.d4rl is None else f"{entry.d4rl} ({entry.comparable})",
        "; ".join((*entry.missing, *entry.notes)) or "-",
    )
    return tuple(map(printable, cells))


def printable(text: str) -> str:
    """The text on one line, without characters that a terminal would obey or cannot show."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown if len(shown) <= LONGEST_CELL else f"{shown[:LONGEST_CELL]}…"


def not_empty(ids: tuple[str, ...]) -> tuple[str, ...]:
    """The ids. Raises ValueError where none is given."""
    if not ids:
        raise ValueError("no dataset id given, expected at least one")
    return ids


@one_line(stopped=": no incomplete dataset was left under an id")
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name."""
    tyro.extras.subcommand_cli_from_dict(
        COMMANDS, args=argv, prog=command("data"), description=description(__doc__)
    )


@any_terminal()
def cli() -> None:
    """Entry point."""
    main()


if __name__ == "__main__":
    cli()
