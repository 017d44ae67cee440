"""Let the agent of a run go on in its environment, on its data and on what it collects there.

python scripts/finetune.py --run runs/demo --timesteps 20000
python scripts/finetune.py --run runs/demo --timesteps 20000 --resume

The folder gets a checkpoint.zip, which evaluate.py and export.py read, and evaluations.npz, with
the returns of evaluation episodes on the way. Ctrl-C saves, and so does an environment that fails;
the same command with --resume goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from qgpo.agents import EvaluationCallback, OfflineAgent, OnlineConfig, load_agent
from qgpo.agents.core.callbacks import SaveCheckpoint
from qgpo.agents.core.collected import collected_rows
from qgpo.agents.core.online import check_learns_online
from qgpo.agents.core.training import NonFiniteError
from qgpo.commands import command
from qgpo.envs.play.evaluation import FIRST_SEED
from qgpo.envs.store.loading import load_dataset
from qgpo.envs.tasks.making import to_play
from qgpo.experiments.folder import RunFolder
from qgpo.experiments.settings import check_types
from qgpo.fields import Range
from qgpo.files import check_writable
from qgpo.scripts._refusals import one_line
from qgpo.scripts._runs import find_run
from qgpo.scripts._terminal import any_terminal, description, refuse_repeated

CHECKPOINT = "checkpoint.zip"


@dataclass
class Args:
    """Continue the training of an agent in its environment."""

    run: Path
    """run folder (with checkpoint.zip), or a checkpoint .zip, of a QGPO, AEPO, SIR or BestOfN
    agent"""
    timesteps: Annotated[int, Range(1, 10**12)] = 50_000
    """environment steps of the whole online training"""
    output: Path | None = None
    """folder of the result; default that of the run, or the name of the .zip, with -online
    behind it"""
    env_id: str | None = None
    """environment to learn in; default that of the data"""
    resume: bool = False
    """go on from the checkpoint in the output folder"""
    eval_every: Annotated[int, Range(1, 10**12)] = 5_000
    """environment steps between two evaluations"""
    n_episodes: Annotated[int, Range(0, 10**6)] = 10
    """episodes of each evaluation, by deterministic actions; 0 for none"""
    checkpoint_every: Annotated[int, Range(1, 10**12)] = 5_000
    """environment steps between two checkpoints"""
    verbose: bool = False
    """print what is logged"""
    online: OnlineConfig = field(default_factory=OnlineConfig)
    """how it goes on; with --resume as before, unless flags say otherwise, which is refused"""

    @property
    def folder(self) -> Path:
        """Of the result."""
        if self.output is not None:
            return self.output
        source = self.run.parent if self.run.name == CHECKPOINT else self.run
        if source.name in ("", ".."):
            source = source.resolve()
        name = source.stem if source.suffix == ".zip" else source.name
        return source.with_name(f"{name}-online")


def agent_of(args: Args) -> OfflineAgent[Any]:
    """The agent to begin with. Raises ValueError for one that would be written over.

    With --resume that of the output, which must have begun as that of --run where that is there.
    """
    saved = args.folder / CHECKPOINT
    if not args.resume:
        if saved.exists():
            raise ValueError(
                f"{saved} exists: go on from it with --resume, or choose another --output"
            )
        return load_agent(find_run(args.run).checkpoint)
    if not saved.is_file():
        raise ValueError(f"--output {args.folder}: no {CHECKPOINT} in it, so nothing to --resume")
    agent = load_agent(saved)
    if agent.online_config is None:
        raise ValueError(f"{saved} has not learned online: nothing to --resume. Choose an --output")
    if not args.run.exists():
        return agent
    first = load_agent(find_run(args.run).checkpoint)
    theirs, ours = _origin(first), _origin(agent)
    for what in {**theirs, **ours}:  # the name first
        if theirs.get(what) != ours.get(what):
            raise ValueError(
                f"--run {args.run}: its {what} is {theirs.get(what)!r}, and the agent in {saved} "
                f"has {ours.get(what)!r}: it began as another one. Choose another --output"
            )
    return agent


def _origin(agent: OfflineAgent[Any]) -> dict[str, Any]:
    """What is the same before and after; the guidance scale may have changed."""
    names = ("name", "seed", "dataset_id", "dataset_fingerprint")
    config = dataclasses.asdict(agent.config)
    config.pop("guidance_scale", None)
    return {**{name: getattr(agent, name) for name in names}, **config}


def as_before(agent: OfflineAgent[Any], stated: OnlineConfig, words: Sequence[str]) -> OnlineConfig:
    """How the agent learned online, and what flags state beside that.

    A value that is no default was stated; a default was where its flag is among `words`.
    """
    usual = dataclasses.asdict(OnlineConfig())
    flags = [word.partition("=")[0].replace("-", "_") for word in words]
    other = {
        name: value
        for name, value in dataclasses.asdict(stated).items()
        if value != usual[name] or {f"__online.{name}", f"__online.no_{name}"} & {*flags}
    }
    return dataclasses.replace(agent.online_config or OnlineConfig(), **other)


def main(args: Args, words: Sequence[str] | None = None) -> None:
    """Load, learn, save, and say how it was at first and how it is now.

    `words` are those of the command line, by default this process's.
    """
    words = sys.argv[1:] if words is None else words
    again = f"; continue with: {command('finetune', *words)}"
    again += "" if args.resume else " --resume"
    errors = (TypeError, RuntimeError, NonFiniteError)

    def how_to_go_on() -> str:
        return again if (args.folder / CHECKPOINT).exists() else ""

    with one_line(*errors, stopped=how_to_go_on):
        check_types(args)
        check_learns_online(agent_of(args))
        with RunFolder(args.folder).locked():
            go_on(args, words, again)


def go_on(args: Args, words: Sequence[str], again: str) -> None:
    """Learn in the environment, in the folder that this process holds; `again` says how to."""
    agent, saved = agent_of(args), args.folder / CHECKPOINT
    agent.verbose = int(args.verbose)
    dataset = load_dataset(str(agent.dataset_id))
    env, _ = to_play(args.env_id, agent.env_spec, None)
    check_writable(saved)
    callbacks: list[SaveCheckpoint | EvaluationCallback] = [
        SaveCheckpoint(saved, args.checkpoint_every)
    ]
    if args.n_episodes and env is not None:
        played = EvaluationCallback(
            env,
            n_eval_episodes=args.n_episodes,
            eval_freq=args.eval_every,
            log_path=args.folder,
            seed=FIRST_SEED,
            verbose=1,
        )
        callbacks.append(played)
    before = collected_rows(agent.training)[1]
    try:
        agent.learn_online(
            env,
            args.timesteps,
            dataset,
            list(callbacks),
            progress_bar=sys.stderr.isatty(),
            config=args.online if not args.resume else as_before(agent, args.online, words),
        )
    except KeyboardInterrupt:
        agent.save(saved)
        raise
    except Exception as error:  # the environment's may be of any type
        done = collected_rows(agent.training)[1]
        if done == before or agent.training.updating:
            raise
        with contextlib.suppress(NonFiniteError, OSError):
            agent.save(saved)
            said = str(error) or type(error).__name__
            kept = f"{done:,} steps, of the episodes that had ended, are in {saved}"
            raise RuntimeError(f"{said}. {kept}{again}") from error
        raise
    print(f"{agent.num_timesteps:,} steps in the environment: {saved}")


@any_terminal()
def cli() -> None:
    """Entry point."""
    refuse_repeated(Args, sys.argv[1:])
    main(tyro.cli(Args, prog=command("finetune"), description=description(__doc__)))


if __name__ == "__main__":
    cli()
