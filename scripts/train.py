"""Train an agent on a Minari dataset, evaluate it, and keep everything in a run folder.

python scripts/train.py --dataset-id qgpo/halfcheetah/mixed-v0 --preset laptop --seed 0
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
import tyro
from stable_baselines3.common.logger import KVWriter

from qgpo.agents import AGENTS, QGPO, QGPOConfig
from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.core.callbacks import SaveCheckpoint
from qgpo.agents.core.checkpoint import config_from_json
from qgpo.agents.core.config import longer
from qgpo.agents.core.provenance import versions
from qgpo.agents.core.training import NonFiniteError
from qgpo.agents.core.upgrade import upgrade_config
from qgpo.agents.guided.policy import GuidedPolicy
from qgpo.agents.guided.tuning import GuidanceTuning
from qgpo.agents.registry import adopt_from
from qgpo.envs import OfflineDataset, load_dataset
from qgpo.envs.play.evaluation import (
    Evaluation,
    evaluate_scales,
    scale_label,
    score_table,
    summarize,
)
from qgpo.envs.store.loading import Storage
from qgpo.envs.store.opening import recorded_in
from qgpo.envs.tasks.families import family_settings, find_family
from qgpo.envs.tasks.making import make_env
from qgpo.experiments.folder import RunFolder, RunFolderError, WandbOutput
from qgpo.experiments.run_figure import draw_run, read_metrics

ConfigT = TypeVar("ConfigT")


@dataclass
class Args(Generic[ConfigT]):
    """Train an offline agent, then evaluate it at each guidance scale."""

    dataset_id: str = "qgpo/halfcheetah/mixed-v0"
    """Minari dataset: bundled (qgpo/…), local (MINARI_DATASETS_PATH) or downloaded"""
    agent: str = "QGPO"
    """the agent, by its name in the registry: QGPO, AEPO, QIPO, BC, TD3BC, IQL, DiffusionQL"""
    preset: str = "laptop"
    """row of hyperparameters that the --config flags start from: laptop or paper (QIPO also
    laptop-flow and paper-flow)"""
    longer: float = 1.0
    """times the preset's gradient steps in every stage: 4 takes four times as long; what the
    critic learns from is renewed as many times as before"""
    seed: int = 0
    """seed of initialisation, batches, noise and evaluation"""
    run_dir: Path | None = None
    """run folder; default runs/<dataset>-<agent>-<preset>-s<seed>, the preset with -x4 if longer"""
    resume: Path | None = None
    """continue the run in this folder from its checkpoint; settings are the run's unless given"""
    adopt: Path | None = None
    """train the last stage only: take the others from the agent in this run folder or checkpoint
    (QGPO, AEPO and QIPO with the same seed, data and settings of those stages)"""
    allow_other_dataset: bool = False
    """let --resume go on with other data than the run began with"""
    overwrite: bool = False
    """delete a former run in the run folder instead of refusing"""
    device: str = "auto"
    """torch device: auto, cpu, cuda, …"""
    threads: int = 0
    """torch threads on the CPU; 0 leaves torch's choice"""
    download: bool = True
    """fetch the dataset from Minari's remote if it is not local"""
    storage: Storage = "memory"
    """memory, or memmap for datasets larger than memory (converted once, beside Minari's data)"""
    guidance_scales: tuple[float, ...] = ()
    """scales evaluated at the end, for agents with guidance; default 0 (imitation) and the
    configured scale"""
    tune_guidance: bool = False
    """choose the guidance scale after training, by episodes in a model learned from the dataset,
    and evaluate it too"""
    n_episodes: int = 50
    """evaluation episodes per scale (100 for mazes unless given); 0 skips evaluation"""
    env_id: str | None = None
    """environment for evaluation where the dataset names none"""
    deterministic: bool = True
    """evaluate deterministic actions instead of sampled ones"""
    log_interval: int = 500
    """gradient steps between two rows of metrics"""
    checkpoint_every: int = 5000
    """steps between two checkpoints"""
    progress_bar: bool = True
    """show stages and time left"""
    verbose: bool = False
    """print every row of metrics"""
    track: bool = False
    """send configuration, metrics and scores to Weights & Biases (WANDB_MODE=offline works)"""
    wandb_project: str = "qgpo"
    """project for --track"""
    config: ConfigT = field(default_factory=QGPOConfig)  # type: ignore[assignment]
    """the agent's hyperparameters, starting from the preset"""


def parse(argv: list[str]) -> Args[Any]:
    """Two passes: a run, or agent, preset and dataset, choose the defaults that flags override.

    The preset comes first, then what the dataset's family changes of it, then `longer`, then the
    flags.
    """

    @dataclass
    class Choice:
        agent: Literal[tuple(AGENTS)] = QGPO.name  # type: ignore[valid-type]
        preset: str = "laptop"
        longer: float = 1.0
        dataset_id: str = Args.dataset_id
        resume: Path | None = None

    without_help = [arg for arg in argv if arg not in ("-h", "--help")]
    choice, _ = tyro.cli(Choice, args=without_help, return_unknown_args=True, add_help=False)
    default: Args[Any]
    if choice.resume is not None:
        default = saved_args(RunFolder(choice.resume))
    else:
        agent_class = AGENTS[choice.agent]
        if choice.preset not in agent_class.presets:
            known = sorted(agent_class.presets)
            raise SystemExit(f"--preset {choice.preset}: expected one of {known}")
        row = agent_class.presets[choice.preset]
        family = find_family(choice.dataset_id, recorded_in(choice.dataset_id))
        fields = {field.name for field in dataclasses.fields(row)}
        row = dataclasses.replace(row, **family_settings(family, choice.preset, fields))
        try:
            row = longer(row, choice.longer)
        except ValueError as error:
            raise SystemExit(f"--longer {choice.longer:g}: expected a positive number") from error
        default = Args(
            agent=choice.agent,
            preset=choice.preset,
            longer=choice.longer,
            config=row,
            n_episodes=family.n_episodes,
        )
    config_class = AGENTS[default.agent].config_class
    args_class = Args[config_class]  # type: ignore[valid-type]
    args: Args[Any] = tyro.cli(args_class, default=default, args=argv, description=__doc__)
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


def saved_args(folder: RunFolder) -> Args[Any]:
    """The arguments with which a run was started, to continue it."""
    if not folder.config.exists():
        raise SystemExit(f"--resume {folder.path}: no run there (config.json is missing)")
    try:
        saved = json.loads(folder.config.read_text())["args"]
        agent_class = AGENTS[saved["agent"]]
        config = upgrade_config(saved["agent"], saved["config"], 1)
        saved["config"] = config_from_json(agent_class.config_class, config)
        saved["guidance_scales"] = tuple(saved["guidance_scales"])
        saved |= {"run_dir": folder.path, "resume": folder.path, "overwrite": False, "adopt": None}
        return Args(**saved)
    except (LookupError, TypeError, ValueError) as error:
        raise SystemExit(
            f"--resume {folder.path}: its config.json cannot be used ({error}); start a new run "
            "in another --run-dir"
        ) from error


def start(args: Args[Any]) -> tuple[RunFolder, OfflineAgent[Any], OfflineDataset]:
    """The folder, a new agent, and its dataset; wrong requests are refused here."""
    counts = {"log_interval": 1, "checkpoint_every": 1, "n_episodes": 0, "threads": 0}
    for name, least in counts.items():
        if getattr(args, name) < least:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {getattr(args, name)}: expected at least {least}")
    if args.guidance_scales and not hasattr(args.config, "guidance_scale"):
        raise ValueError(
            f"--guidance-scales {args.guidance_scales}: a {args.agent} agent has no guidance_scale"
        )
    for scale in args.guidance_scales:
        if not math.isfinite(scale):
            raise ValueError(f"--guidance-scales {scale}: expected finite numbers")
    if args.tune_guidance and not hasattr(args.config, "guidance_scale"):
        raise ValueError(f"--tune-guidance: a {args.agent} agent has no guidance_scale")
    if args.threads:
        torch.set_num_threads(args.threads)
    preset = args.preset if args.longer == 1.0 else f"{args.preset}-x{args.longer:g}"
    name = f"{args.dataset_id}-{args.agent}-{preset}-s{args.seed}".replace("/", "-")
    folder = RunFolder(args.resume or args.run_dir or Path("runs") / name)
    refuse_former_run(args, folder)
    dataset = load_dataset(args.dataset_id, args.download, args.storage, args.progress_bar)
    agent = AGENTS[args.agent](args.config, seed=args.seed, device=args.device)
    spaces = dataset.observation_space, dataset.action_space
    agent.set_spaces(*spaces, dataset.id, dataset.adapter)
    if args.n_episodes:
        if args.env_id is None and dataset.env_spec is None:
            raise ValueError(
                f"dataset {dataset.id!r} names no environment: give one with --env-id, or skip "
                "evaluation with --n-episodes 0"
            )
        env = make_env(args.env_id or dataset.env_spec or "")
        agent.set_spaces(env.observation_space, env.action_space, "the environment")
        env.close()
    if args.adopt is not None:
        print(adopt_from(args.adopt, agent, dataset))
    return folder, agent, dataset


def refuse_former_run(args: Args[Any], folder: RunFolder) -> None:
    """A run is never mixed with another one."""
    if args.resume is None and folder.config.exists() and not args.overwrite:
        raise ValueError(
            f"{folder.path} already holds a run: continue it with --resume {folder.path}, "
            "replace it with --overwrite, or choose another --run-dir"
        )


def train(
    args: Args[Any],
    folder: RunFolder,
    agent: OfflineAgent[Any],
    dataset: OfflineDataset,
    outputs: list[KVWriter],
) -> float:
    """Train to the end; returns the seconds it took. Ctrl-C leaves a checkpoint."""
    agent.set_logger(folder.logger(args.verbose, outputs, agent.progress))
    began = time.monotonic()
    try:
        agent.learn(
            dataset,
            callback=SaveCheckpoint(folder.checkpoint, args.checkpoint_every),
            log_interval=args.log_interval,
            reset_num_timesteps=False,
            progress_bar=args.progress_bar,
            allow_other_dataset=args.allow_other_dataset,
        )
    except KeyboardInterrupt:
        agent.save(folder.checkpoint)
        raise SystemExit(
            f"\nstopped in stage {agent.stage!r} at timestep {agent.num_timesteps}; continue "
            f"with: python scripts/train.py --resume {folder.path}"
        ) from None
    finally:
        agent.logger.close()
    return time.monotonic() - began


def score(
    args: Args[Any], agent: OfflineAgent[Any], dataset: OfflineDataset
) -> list[tuple[float | None, Evaluation]]:
    """Every scale that was asked for, and its evaluation."""
    chosen = getattr(agent, "guidance_scale", None)
    scales = args.guidance_scales or ((0.0, chosen) if chosen else (chosen,))
    if args.tune_guidance and chosen is not None and chosen not in scales:
        scales = (*scales, chosen)
    played = evaluate_scales(
        agent,
        args.env_id or dataset,
        args.n_episodes,
        scales,
        seed=10_000 + args.seed,
        deterministic=args.deterministic,
        warn_of_cuts=False,  # the table says how many
        progress_bar=args.progress_bar,
    )
    return list(played)


def about(args: Args[Any], agent: OfflineAgent[Any], dataset: OfflineDataset) -> dict[str, Any]:
    """What config.json says of a run."""
    return {
        "args": dataclasses.asdict(args),
        "dataset": {
            "id": dataset.id,
            "family": dataset.details.get("family"),
            "steps": len(dataset),
            "episodes": dataset.n_episodes,
            "fingerprint": dataset.fingerprint,
        },
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "device": str(agent.device),
    }


def run(
    args: Args[Any], folder: RunFolder, agent: OfflineAgent[Any], dataset: OfflineDataset
) -> None:
    """Train, evaluate, and write the run folder, which nobody else uses meanwhile."""
    refuse_former_run(args, folder)
    if args.resume is None and folder.config.exists():
        for entry in folder.path.iterdir():
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if args.resume is not None and folder.checkpoint.exists():
        agent = type(agent).load(folder.checkpoint, device=args.device)
    elif args.resume is not None:
        print("no checkpoint was written yet: starting from the beginning")
    described = about(args, agent, dataset)
    if args.resume is None:
        if args.adopt is not None:  # before the folder is one that can be resumed
            agent.save(folder.checkpoint)
        folder.write_json(folder.config, described)
    tracked = WandbOutput(args.wandb_project, folder, described) if args.track else None
    print(
        f"{args.agent} ({args.preset}) on {dataset.id}: {len(dataset)} transitions in "
        f"{dataset.n_episodes} episodes, to {folder.path}"
    )
    seconds = train(args, folder, agent, dataset, [] if tracked is None else [tracked])
    print(f"trained in {seconds:.0f} s")
    tuning = None
    if args.tune_guidance and isinstance(agent, GuidedPolicy):
        tuning = agent.tune_guidance(dataset, progress_bar=args.progress_bar)
        print(tuning)
        agent.save(folder.checkpoint)
    results = score(args, agent, dataset) if args.n_episodes else []
    write_results(args, folder, dataset, seconds, results, tuning)
    if tracked is not None:
        tracked.finish({f"return/{scale_label(w)}": e.mean for w, e in results})


def write_results(
    args: Args[Any],
    folder: RunFolder,
    dataset: OfflineDataset,
    seconds: float,
    results: list[tuple[float | None, Evaluation]],
    tuning: GuidanceTuning | None,
) -> None:
    """evaluation.json, the picture, and the table on the screen."""
    evaluations = [{"guidance_scale": scale, **dataclasses.asdict(e)} for scale, e in results]
    played = [(scale_label(scale), e) for scale, e in results]
    folder.write_json(
        folder.evaluation,
        {
            "dataset": {"id": dataset.id, "returns": dataset.episode_returns.tolist()},
            "training_seconds": seconds,
            "deterministic": args.deterministic,
            "evaluations": evaluations,
            **({} if tuning is None else {"guidance_tuning": tuning.as_dict()}),
        },
    )
    draw_run(
        folder.report,
        f"{args.agent} ({args.preset}, seed {args.seed}) on {dataset.id}",
        read_metrics(folder.metrics),
        dataset.episode_returns,
        played,
    )
    if played:
        returns = dataset.episode_returns.tolist()
        data = summarize(dataset.id, returns, [], [], 0, dataset.reference)
        print(score_table([("data", data), *played]))
    print(f"picture: {folder.report}")


def main(args: Args[Any]) -> None:
    """Refuse what cannot work in one line, then run in the locked folder."""
    try:
        folder, agent, dataset = start(args)
    except (ValueError, TypeError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    try:
        with folder.locked():
            run(args, folder, agent, dataset)
    except (ValueError, RunFolderError, NonFiniteError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(
            f"\nstopped; continue with: python scripts/train.py --resume {folder.path}"
        ) from None


def cli() -> None:
    """Entry point."""
    main(parse(sys.argv[1:]))


if __name__ == "__main__":
    cli()
