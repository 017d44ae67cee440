"""Train an agent on a Minari dataset, evaluate it, and store everything in a run folder.

python scripts/train.py --dataset-id qgpo/halfcheetah/mixed-v0 --preset laptop --seed 0
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import tyro
from numpy.typing import NDArray

from qgpo.agents import AGENTS, QGPO
from qgpo.agents.core.config import NOT_NEGATIVE
from qgpo.agents.core.speed import check_minutes
from qgpo.agents.core.training import NonFiniteError
from qgpo.commands import command
from qgpo.envs.play.scores import EvaluationError, scale_label
from qgpo.envs.store.loading import load_dataset
from qgpo.envs.store.opening import recorded_in
from qgpo.envs.tasks.families import find_family
from qgpo.envs.text import counted
from qgpo.experiments import documents
from qgpo.experiments.benchmark import headline
from qgpo.experiments.documents import Document
from qgpo.experiments.driver import Run
from qgpo.experiments.folder import RunFolder, RunFolderError
from qgpo.experiments.preflight import check_new
from qgpo.experiments.seeds import as_begun, at_once, cells_of, check_seeds, summary
from qgpo.experiments.settings import SEED, Experiment, choose_config
from qgpo.experiments.workers import Outcome, run_locally
from qgpo.scripts._refusals import one_line
from qgpo.scripts._terminal import any_terminal, description, refuse_repeated

ConfigT = TypeVar("ConfigT")
GuidanceScales = Annotated[
    tuple[float, ...], NOT_NEGATIVE, tyro.conf.arg(aliases=("--guidance-scale",))
]
"""which evaluate.py calls so"""
ALONE = (
    *("resume", "seed", "minutes", "adopt", "allow_other_dataset", "overwrite", "track"),
    "verbose",
)
"""flags that only a single run has"""


@dataclass(frozen=True)
class Args(Experiment[ConfigT]):
    """Train an offline agent, then evaluate it at each guidance scale."""

    guidance_scales: GuidanceScales = ()
    """guidance scales w to evaluate after training, for agents with guidance; default 0 (imitation)
    and the configured scale"""
    run_dir: Path | None = None
    """run folder; default runs/<dataset>-<agent>-<preset>-s<seed>, where -x4 (with --longer 4),
    -10min (with --minutes 10) or -h4-c8 (with --history 4 --chunk 8) follows the preset"""
    minutes: float | None = None
    """train for about this many minutes on this machine. Its speed is measured for some seconds,
    which gives the factor --longer on all gradient steps, including those set with --config.
    Evaluation is not included"""
    resume: Path | None = None
    """run folder: continue this run from its checkpoint, with the settings of the run unless flags
    change them"""
    allow_other_dataset: bool = False
    """with --resume, allow data that differ from those with which the run began"""
    overwrite: bool = False
    """if the run folder contains a run, delete it instead of stopping with an error; files that no
    run wrote stay"""
    seeds: tuple[Annotated[int, SEED], ...] | None = None
    """train once with each of these seeds, as many at once as there are cores, and print the mean.
    Each seed has its own run folder in --run-dir (default runs). The same command continues what
    was stopped"""
    verbose: bool = False
    """print every row of metrics"""
    track: bool = False
    """send configuration, metrics and scores to Weights & Biases (WANDB_MODE=offline works)"""
    wandb_project: str = "qgpo"
    """Weights & Biases project for --track"""

    @property
    def folder(self) -> RunFolder:
        """Where the run is kept."""
        return RunFolder(self.resume or self.run_dir or Path("runs") / self.name_of(self.seed))

    def name_of(self, seed: int) -> str:
        """Name of a run folder that nobody named."""
        preset = self.preset
        if self.minutes is not None:
            preset += f"-{self.minutes:g}min"
        elif self.longer != 1.0:
            preset += f"-x{self.longer:g}"
        if (self.history, self.chunk) != (1, 1):
            preset += f"-h{self.history}-c{self.chunk}"
        return f"{self.dataset_id}-{self.agent}-{preset}-s{seed}".replace("/", "-")

    @property
    def to_measure(self) -> float | None:
        """The minutes of a new run; one that is resumed is as long as it was."""
        return self.minutes if self.resume is None else None

    def check(self) -> None:
        """Also raise ValueError for minutes that cannot be."""
        super().check()
        self._check_seeds()
        if self.allow_other_dataset and self.resume is None:
            raise ValueError("--allow-other-dataset belongs to --resume: add it")
        if self.to_measure is None:
            return
        check_minutes(self.to_measure)
        if self.longer != 1.0:
            raise ValueError(
                f"minutes={self.minutes:g} and longer={self.longer:g}: both set the number of "
                "steps; give only one of them"
            )
        if self.adopt is not None:
            raise ValueError(
                f"minutes={self.minutes:g} and adopt={str(self.adopt)!r}: adopted stages keep "
                "their number of steps; give only one of them"
            )

    def _check_seeds(self) -> None:
        """Raise ValueError for seeds that cannot be, and for flags of a single run beside them."""
        if self.seeds is None:
            return
        check_seeds(self.seeds)
        for name in ALONE:
            if getattr(self, name) != getattr(Args, name):
                flag = name.replace("_", "-")
                raise ValueError(f"--seeds and --{flag}: give only one of them")
        if self.run_dir is not None and RunFolder(self.run_dir).config.exists():
            raise ValueError(
                f"--run-dir {self.run_dir} is the folder of a run; with --seeds it has a folder "
                "for each seed: choose another one"
            )


@dataclass
class Choice:
    """The flags that decide the other flags' defaults."""

    agent: Literal[tuple(AGENTS)] = QGPO.name  # type: ignore[valid-type]
    preset: str = Args.preset
    longer: float = Args.longer
    dataset_id: str = Args.dataset_id
    resume: Path | None = None
    env_id: str | None = None


def parse(argv: list[str]) -> Args[Any]:
    """Two passes: a run, or agent, preset and dataset, choose the defaults that flags override."""
    without_help = [arg for arg in argv if arg not in ("-h", "--help")]
    choice, _ = tyro.cli(Choice, args=without_help, return_unknown_args=True, add_help=False)
    default = new_args(choice) if choice.resume is None else saved_args(choice.resume)
    if choice.resume is not None and choice.env_id is None:
        check_saved_id(default, choice.resume)
    args_class: Any = Args[type(default.config)]  # type: ignore[misc]
    args: Args[Any] = tyro.cli(
        args_class,
        default=default,
        args=argv,
        prog=command("train"),
        description=description(__doc__),
    )
    if choice.resume is not None:
        if args.adopt != default.adopt:
            raise SystemExit(
                f"--adopt {args.adopt} cannot be combined with --resume: the run in "
                f"{choice.resume} already contains the adopted stages"
            )
        if args.run_dir is None or args.run_dir.resolve() != choice.resume.resolve():
            raise SystemExit(
                f"--run-dir {args.run_dir} cannot be combined with --resume: the run stays in "
                f"{choice.resume}"
            )
        if args.overwrite:
            raise SystemExit(
                "--overwrite cannot be combined with --resume: it would delete the run in "
                f"{choice.resume}"
            )
        for name in ("agent", "preset", "longer", "minutes", "seed", "config"):
            if getattr(args, name) != getattr(default, name):
                raise SystemExit(
                    f"--{name} cannot change when a run is resumed: {choice.resume} has "
                    f"{getattr(default, name)}; for another value, start a new run in another "
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
        saved |= {"run_dir": path, "resume": path, "overwrite": False}
        saved.pop("progress_bar", None)  # another terminal, or none
        saved.pop("seeds", None)  # none, in JSON a list
        adopt = None if folder.checkpoint.exists() else saved.get("adopt")
        saved["adopt"] = adopt and Path(adopt)
        if not saved.get("threads"):  # another number would round otherwise
            saved["threads"] = document.get("machine", {}).get("threads") or 0
        return Args.from_json(saved)
    except (LookupError, TypeError, ValueError) as error:
        raise SystemExit(
            f"--resume {path}: its config.json cannot be used ({error}); start a new run "
            "in another --run-dir"
        ) from error


@one_line()
def check_saved_id(saved: Args[Any], path: Path) -> None:
    """Refuse a saved id that would import a module; given again by the user, it does."""
    saved.check_origin(f"--resume {path}", f"give it yourself, --env-id {saved.env_id}")


def refuse(args: Args[Any]) -> None:
    """A run is never mixed with another one, nor with what no run made."""
    folder = args.folder
    if args.run_dir is not None and not args.run_dir.name:
        raise ValueError(f"--run-dir {str(args.run_dir)!r}: expected a separate folder for the run")
    if folder.path.exists() and not folder.path.is_dir():
        raise ValueError(f"--run-dir {folder.path} is a file, expected a folder or a new name")
    if args.adopt is not None and args.adopt.resolve().is_relative_to(folder.path.resolve()):
        raise ValueError(
            f"--adopt {args.adopt} is in the run folder {folder.path}, which a new run replaces: "
            "choose another --run-dir"
        )
    if args.resume is None:
        check_new(folder, args.overwrite)


def draw(
    args: Experiment[Any],
    folder: RunFolder,
    returns: NDArray[np.float64],
    evaluations: documents.Evaluations,
) -> None:
    """The picture in the run folder. Raises ValueError where there is none."""
    from qgpo.experiments import run_figure  # matplotlib takes half a second to import

    played = [(scale_label(scale), evaluation) for scale, evaluation in evaluations]
    title = f"{args.agent} ({args.preset}, seed {args.seed}) on {args.dataset_id}"
    try:
        metrics = run_figure.read_metrics(folder.metrics)
        run_figure.draw_run(folder.report, title, metrics, returns, played)
    except Exception as error:  # whatever it is, training and scores are not lost
        raise ValueError(
            f"picture {folder.report} could not be drawn ({type(error).__name__}: {error}); "
            f"everything else is in {folder.path}, and --resume draws it again"
        ) from error
    print(f"picture: {folder.report}")


def train_seeds(args: Args[Any]) -> None:
    """A run per seed, in a process each; what fails stops no other, and is named at the end."""
    args.check()
    assert args.seeds is not None
    root = args.run_dir or Path("runs")
    data = load_dataset(
        args.dataset_id, args.download, args.storage, history=args.history, chunk=args.chunk
    )
    returns, fingerprint = data.recorded_returns, data.fingerprint
    del data  # each process reads it
    processes = at_once(args.seeds, args.threads)
    cells = [
        as_begun(cell, RunFolder(root / cell.name), fingerprint)
        for cell in cells_of(args, args.seeds, args.name_of)
    ]
    print(f"{counted(len(cells), 'seed')}, {processes} at once, in {root}", flush=True)
    results: dict[int, Document] = {}
    failed: dict[int, str] = {}

    def report(outcome: Outcome) -> None:
        seed = outcome.cell.seed
        if outcome.result is None:
            failed[seed] = f"seed {seed}: {outcome.error}\n    log: {outcome.log}"
            print(f"seed {seed} failed: {outcome.error}", flush=True)
            return
        results[seed] = outcome.result
        print(f"seed {seed}: {headline(outcome.result)}", flush=True)

    root.mkdir(parents=True, exist_ok=True)
    run_locally(cells, root, processes, report)
    ended = [cell for cell in cells if cell.seed in results]
    if ended:
        print(summary([results[cell.seed] for cell in ended], returns))
    not_drawn = []
    for cell in ended:
        played = documents.evaluations_from_json(results[cell.seed]["evaluations"])
        try:
            draw(cell, RunFolder(root / cell.name), returns, played)
        except ValueError as error:
            not_drawn.append(str(error))
    lines = [*(failed[seed] for seed in sorted(failed)), *not_drawn]
    if failed:
        lines.insert(0, f"{len(failed)} of {len(cells)} seeds failed")
    if lines:
        raise SystemExit("\n".join(lines))


def main(args: Args[Any]) -> None:
    """Refuse what cannot work in one line, then run in the locked folder."""
    if args.seeds is not None:
        again = f"; continue with: {command('train', *sys.argv[1:])}"
        with one_line(TypeError, RunFolderError, stopped=again):
            train_seeds(args)
        return
    folder = args.folder
    imported = ["--env-id", args.env_id] if args.env_id and ":" in args.env_id else []
    again = f"; continue with: {command('train', '--resume', folder.path, *imported)}"
    errors = (TypeError, RunFolderError, NonFiniteError, EvaluationError)
    with one_line(*errors, stopped="" if args.resume is None else again):
        args.check()
        refuse(args)
        run = Run(args, folder, args.allow_other_dataset, args.to_measure)
    resumable = one_line(*errors, stopped=lambda: again if run.begun or args.resume else "")
    with resumable, folder.locked():
        refuse(args)  # meanwhile another one may have begun
        project = args.wandb_project if args.track else None
        run.finish(args.verbose, project, args.overwrite)
        folder.check_held()
        draw(args, folder, run.dataset.recorded_returns, run.evaluations)


@any_terminal()
def cli() -> None:
    """Entry point."""
    refuse_repeated(Args, sys.argv[1:])
    main(parse(sys.argv[1:]))


if __name__ == "__main__":
    cli()
