"""Train an agent on a Minari dataset, evaluate it, and keep everything in a run folder.

python scripts/train.py --dataset-id qgpo/halfcheetah/mixed-v0 --preset laptop --seed 0
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from qgpo.agents import AGENTS, QGPO
from qgpo.agents.core.training import NonFiniteError
from qgpo.commands import command
from qgpo.envs.play.evaluation import scale_label, score_table, summarize
from qgpo.envs.store.opening import recorded_in
from qgpo.envs.tasks.families import find_family
from qgpo.experiments import documents
from qgpo.experiments.driver import Run
from qgpo.experiments.folder import RunFolder, RunFolderError
from qgpo.experiments.run_figure import draw_run, read_metrics
from qgpo.experiments.settings import Experiment, choose_config
from qgpo.scripts._refusals import one_line
from qgpo.scripts._terminal import any_terminal, description

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class Args(Experiment[ConfigT]):
    """Train an offline agent, then evaluate it at each guidance scale."""

    run_dir: Path | None = None
    """run folder; default runs/<dataset>-<agent>-<preset>-s<seed>, the preset with -x4 if longer"""
    resume: Path | None = None
    """continue the run in this folder from its checkpoint; settings are the run's unless given"""
    allow_other_dataset: bool = False
    """let --resume go on with other data than the run began with"""
    overwrite: bool = False
    """delete a former run in the run folder instead of refusing"""
    verbose: bool = False
    """print every row of metrics"""
    track: bool = False
    """send configuration, metrics and scores to Weights & Biases (WANDB_MODE=offline works)"""
    wandb_project: str = "qgpo"
    """project for --track"""

    @property
    def folder(self) -> RunFolder:
        """Where the run is kept."""
        preset = self.preset if self.longer == 1.0 else f"{self.preset}-x{self.longer:g}"
        name = f"{self.dataset_id}-{self.agent}-{preset}-s{self.seed}".replace("/", "-")
        return RunFolder(self.resume or self.run_dir or Path("runs") / name)


@dataclass
class Choice:
    """The flags that decide the other flags' defaults."""

    agent: Literal[tuple(AGENTS)] = QGPO.name  # type: ignore[valid-type]
    preset: str = Args.preset
    longer: float = Args.longer
    dataset_id: str = Args.dataset_id
    resume: Path | None = None


def parse(argv: list[str]) -> Args[Any]:
    """Two passes: a run, or agent, preset and dataset, choose the defaults that flags override."""
    without_help = [arg for arg in argv if arg not in ("-h", "--help")]
    choice, _ = tyro.cli(Choice, args=without_help, return_unknown_args=True, add_help=False)
    default = new_args(choice) if choice.resume is None else saved_args(choice.resume)
    args_class: Any = Args[type(default.config)]  # type: ignore[misc]
    args: Args[Any] = tyro.cli(
        args_class,
        default=default,
        args=argv,
        prog=command("train"),
        description=description(__doc__),
    )
    if choice.resume is not None:
        if args.adopt is not None:
            raise SystemExit(
                f"--adopt {args.adopt} cannot be combined with --resume: the run in "
                f"{choice.resume} has in its own checkpoint what it adopted"
            )
        for name in ("agent", "preset", "longer", "seed", "config"):
            if getattr(args, name) != getattr(default, name):
                raise SystemExit(
                    f"--{name} cannot change when a run is resumed: {choice.resume} has "
                    f"{getattr(default, name)}; for another one start a new run in another "
                    "--run-dir"
                )
    return args


@one_line()
def new_args(choice: Choice) -> Args[Any]:
    """The defaults of a new run: the preset, then what the dataset's family changes, `longer`."""
    config = choose_config(choice.agent, choice.preset, choice.dataset_id, choice.longer)
    family = find_family(choice.dataset_id, recorded_in(choice.dataset_id))
    chosen = dataclasses.asdict(choice)
    return Args(**chosen, config=config, n_episodes=family.n_episodes)


def saved_args(path: Path) -> Args[Any]:
    """The arguments with which a run was started, to continue it."""
    folder = RunFolder(path)
    if not folder.config.exists():
        raise SystemExit(f"--resume {path}: no run there (config.json is missing)")
    try:
        document = documents.read(folder.config)
        saved, measured = document["args"], document["measured"]
        saved |= {"dataset_id": measured["dataset"], "config": measured["config"]}
        saved |= {"run_dir": path, "resume": path, "overwrite": False, "adopt": None}
        return Args.from_json(saved)
    except (LookupError, TypeError, ValueError) as error:
        raise SystemExit(
            f"--resume {path}: its config.json cannot be used ({error}); start a new run "
            "in another --run-dir"
        ) from error


def refuse_previous_run(args: Args[Any]) -> None:
    """A run is never mixed with another one."""
    folder = args.folder
    if args.resume is None and folder.config.exists() and not args.overwrite:
        raise ValueError(
            f"{folder.path} already holds a run: continue it with --resume {folder.path}, "
            "replace it with --overwrite, or choose another --run-dir"
        )
    if args.adopt is not None and args.adopt.resolve().is_relative_to(folder.path.resolve()):
        raise ValueError(
            f"--adopt {args.adopt} is in the run folder {folder.path}, which a new run replaces: "
            "choose another --run-dir"
        )


def show(args: Args[Any], run: Run) -> None:
    """The table on the screen, and the picture in the run folder."""
    dataset, folder = run.dataset, args.folder
    played = [(scale_label(scale), evaluation) for scale, evaluation in run.evaluations]
    title = f"{args.agent} ({args.preset}, seed {args.seed}) on {dataset.id}"
    metrics = read_metrics(folder.metrics)
    draw_run(folder.report, title, metrics, dataset.episode_returns, played)
    if played:
        returns = dataset.episode_returns.tolist()
        data = summarize(dataset.id, returns, [], [], 0, dataset.reference)
        print(score_table([("data", data), *played]))
    print(f"picture: {folder.report}")


def main(args: Args[Any]) -> None:
    """Refuse what cannot work in one line, then run in the locked folder."""
    folder = args.folder
    again = f"; continue with: {command('train', '--resume', folder.path)}"
    with one_line(TypeError, RunFolderError, NonFiniteError, stopped=again):
        args.check()
        refuse_previous_run(args)
        run = Run(args, folder, allow_other_dataset=args.allow_other_dataset)
        with folder.locked():
            refuse_previous_run(args)  # meanwhile another one may have begun
            if args.resume is None and folder.config.exists():
                folder.clear()
            run.finish(args.verbose, args.wandb_project if args.track else None)
            show(args, run)


@any_terminal()
def cli() -> None:
    """Entry point."""
    main(parse(sys.argv[1:]))


if __name__ == "__main__":
    cli()
