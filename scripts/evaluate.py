"""Evaluate a trained agent at one or several guidance scales, and draw a clip of it.

python scripts/evaluate.py --run runs/demo --guidance-scale 0 1 --video demo.gif
python scripts/evaluate.py --run runs/seed0 runs/seed1 runs/seed2 --tune-guidance

Several runs are played together, as one agent that takes the mean of their actions.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from gymnasium.envs.registration import EnvSpec

from qgpo.agents import Ensemble, OfflineAgent, load_agent
from qgpo.agents.core.acting import Acts as Acting
from qgpo.agents.core.provenance import versions
from qgpo.agents.guided.policy import GuidedPolicy
from qgpo.envs import Evaluation, load_dataset
from qgpo.envs.play.evaluation import evaluate_scales, scale_label, score_table
from qgpo.envs.play.video import RenderError, check_clip_path, choose_renderer, record, write_clip
from qgpo.envs.store.loading import Storage
from qgpo.envs.tasks.families import find_family
from qgpo.envs.tasks.making import make_env
from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.experiments.folder import RunFolder
from qgpo.solver import get_solver

Scales = tuple[float | None, ...]
Results = list[tuple[float | None, Evaluation]]
MIXED = {True: "the mean of their actions", False: "each action is one of theirs, by lot"}


@dataclass
class Args:
    """Evaluate an agent from a run folder or a checkpoint, or several that act together."""

    run: tuple[Path, ...]
    """run folder (with checkpoint.zip), or a checkpoint .zip; several act together, by the mean of
    their actions (sampled ones: each is one of theirs, by lot)"""
    env_id: str | None = None
    """environment; default the one of the run, which is its dataset's"""
    guidance_scale: tuple[float, ...] = ()
    """scales to evaluate; default the configured one"""
    tune_guidance: bool = False
    """choose the scale from the run's dataset alone and evaluate it, too; the run keeps its own"""
    storage: Storage | None = None
    """how to hold that dataset, memory or memmap; default as it was trained (files: memory)"""
    solver: str | None = None
    """dpm_solver_2m, dpm_solver_2s, ddim, heun, or euler (only ot); default the configured one"""
    solver_steps: int | None = None
    """solver steps per action; default as configured. Solver and steps make no difference to
    deterministic actions that are the policy's mean (deterministic_action), which need neither"""
    n_episodes: int | None = None
    """episodes per scale; default 50, and 100 for mazes"""
    seed: int = 10_000
    """seed of the first episode, the others count up; train.py uses 10000 + its own seed"""
    deterministic: bool = True
    """deterministic actions instead of sampled ones"""
    max_episode_steps: int | None = None
    """cut episodes after so many steps; default the environment's own limit"""
    device: str = "auto"
    """torch device: auto, cpu, cuda, …"""
    threads: int = 0
    """torch threads on the CPU; 0 leaves torch's choice. Beside other work 1 is fastest"""
    output: Path | None = None
    """JSON of raw returns, lengths and seeds; default evaluation-<time>.json in the run folder, for
    several evaluation-together-<time>.json in the first"""
    video: Path | None = None
    """write a clip of the first episode at the first scale: a .gif or .mp4"""
    video_seconds: float = 10.0
    """longest clip, in the environment's seconds, 10 at most"""
    overwrite: bool = False
    """replace --output and --video where they exist, instead of refusing"""
    progress_bar: bool = True
    """show episodes and time left"""


def check(args: Args) -> None:
    """Refuse wrong values before anything is loaded."""
    if not args.run:
        raise ValueError("--run: expected a run folder or a checkpoint, or several")
    for name in ("n_episodes", "solver_steps", "max_episode_steps"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected at least 1")
    for scale in args.guidance_scale:
        if not math.isfinite(scale):
            raise ValueError(f"--guidance-scale {scale}: expected a finite number")
    for name in ("seed", "threads"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name} {getattr(args, name)}: expected at least 0")
    if not 0.0 < args.video_seconds <= 10.0:
        raise ValueError(f"--video-seconds {args.video_seconds}: expected more than 0, at most 10")
    if args.solver is not None:
        get_solver(args.solver, stochastic=False)
    if args.video is not None:
        check_clip_path(args.video)
    for path in (args.output, args.video):
        if path is not None and path.is_dir():
            raise ValueError(f"{path} is a folder, expected a file name")
        if path is not None and path.exists() and not args.overwrite:
            raise ValueError(f"{path} exists: choose another name, or replace it with --overwrite")


def find_run(run: Path) -> RunFolder:
    """The run folder, whose `checkpoint` is the file to read."""
    folder = RunFolder(run if run.is_dir() else run.parent)
    if run.is_file() and run.suffix != ".zip":
        raise ValueError(f"--run {run}: expected a run folder, or a checkpoint that ends in .zip")
    if run.is_file():
        folder.checkpoint = run
    if not run.exists() or not folder.checkpoint.is_file():
        root = Path("runs")
        known = sorted(str(found.parent) for found in root.glob("*/checkpoint.zip"))
        missing = "no checkpoint.zip in it" if run.exists() else "does not exist"
        raise ValueError(f"--run {run}: {missing}; runs under {root}: {', '.join(known) or 'none'}")
    return folder


def find_runs(runs: tuple[Path, ...]) -> list[RunFolder]:
    """The folder of each; a checkpoint that would count twice is refused."""
    folders = [find_run(run) for run in runs]
    files = [folder.checkpoint.resolve() for folder in folders]
    for i, run in enumerate(runs):
        if files[i] in files[:i]:
            raise ValueError(f"--run {run}: named twice")
    return folders


def saved_args(folder: RunFolder) -> dict[str, Any]:
    """The arguments of the training that left the checkpoint; empty where there are none."""
    if not folder.config.is_file() or folder.checkpoint.name != "checkpoint.zip":
        return {}
    saved: dict[str, Any] = json.loads(folder.config.read_text())["args"]
    return saved


def environment(
    args: Args, folder: RunFolder, members: list[OfflineAgent[Any]]
) -> tuple[str | EnvSpec, ReferenceScores | None]:
    """The environment to play in, checked against the agent, and its reference scores."""
    agent = members[0]
    learned_in = {member.env_spec.id for member in members if member.env_spec is not None}
    if len(learned_in) > 1 and args.env_id is None:
        raise ValueError(
            f"the runs' datasets are of different environments {sorted(learned_in)}: choose one "
            "with --env-id"
        )
    env = args.env_id or saved_args(folder).get("env_id") or agent.env_spec
    if env is None:
        raise ValueError(
            f"the agent's dataset {agent.dataset_id!r} names no environment: give one with --env-id"
        )
    made = make_env(env)
    env_id = env if isinstance(env, str) else env.id
    try:
        agent.set_env(made)
    except ValueError as error:
        raise ValueError(f"environment {env_id!r} does not fit the agent: {error}") from error
    finally:
        made.close()
    own = agent.env_spec is None or agent.env_spec.id == env_id
    return env, agent.reference if own else None


def configure(args: Args, agent: Acting, members: list[OfflineAgent[Any]]) -> Scales:
    """Set the solver; returns the scales to evaluate (None: as the agents have it, if at all)."""
    if args.guidance_scale and not hasattr(agent, "guidance_scale"):
        raise ValueError(
            f"--guidance-scale {args.guidance_scale}: {who_lacks(members, 'guidance_scale')}"
        )
    if args.tune_guidance and not hasattr(agent, "guidance_scale"):
        raise ValueError(f"--tune-guidance: {who_lacks(members, 'guidance_scale')}")
    for name in ("solver", "solver_steps"):
        value = getattr(args, name)
        for member in members if value is not None else []:
            if not hasattr(member, name):
                raise ValueError(f"--{name.replace('_', '-')} {value}: {who_lacks(members, name)}")
            setattr(member, name, value)
    assert agent.observation_space is not None
    agent.predict(np.zeros(agent.observation_space.shape))  # refuses what does not fit, now
    own = getattr(agent, "guidance_scale", None)
    return args.guidance_scale or (None if isinstance(own, tuple) else own,)


def who_lacks(members: list[OfflineAgent[Any]], name: str) -> str:
    """Which of the members lacks that attribute."""
    lacking = next(member for member in members if not hasattr(member, name))
    return f"a {lacking.name} agent has no {name}"


def tune(
    args: Args,
    folder: RunFolder,
    agent: GuidedPolicy[Any] | Ensemble,
    dataset_id: str,
    scales: Scales,
) -> tuple[dict[str, Any], Scales]:
    """What `tune_guidance` found on the dataset, and its choice among the scales."""
    storage = args.storage or saved_args(folder).get("storage", "memory")
    dataset = load_dataset(dataset_id, storage=storage, progress_bar=args.progress_bar)
    tuning = agent.tune_guidance(dataset, progress_bar=args.progress_bar)
    print(tuning)
    asked = scales if args.guidance_scale else ()
    return tuning.as_dict(), tuple(dict.fromkeys((*asked, tuning.best)))


def score(
    args: Args,
    agent: Acting,
    dataset_id: str | None,
    env: str | EnvSpec,
    reference: ReferenceScores | None,
    scales: Scales,
) -> Results:
    """Every scale and its evaluation."""
    env_id = env if isinstance(env, str) else env.id
    played = evaluate_scales(
        agent,
        env,
        args.n_episodes or find_family(dataset_id, env_id).n_episodes,
        scales,
        seed=args.seed,
        deterministic=args.deterministic,
        max_episode_steps=args.max_episode_steps,
        reference=reference,
        warn_of_cuts=False,  # the table says how many
        progress_bar=args.progress_bar,
    )
    return list(played)


def write(
    args: Args,
    folder: RunFolder,
    agents: list[dict[str, Any]],
    about: dict[str, Any],
    results: Results,
) -> Path:
    """The raw returns, lengths and seeds as JSON; `evaluations` is laid out like train.py's."""
    alone = len(agents) == 1
    name = "evaluation" if alone else "evaluation-together"
    output = args.output or folder.path / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    about = {
        **(agents[0] if alone else {"agent": Ensemble.name, "members": agents}),
        **about,
        "seed": args.seed,
        "deterministic": args.deterministic,
        "max_episode_steps": args.max_episode_steps,
        "versions": versions(),
        "evaluations": [{"guidance_scale": scale, **dataclasses.asdict(e)} for scale, e in results],
    }
    folder.write_json(output, about)
    return output


def describe(folder: RunFolder, agent: OfflineAgent[Any]) -> dict[str, Any]:
    """An agent as it was loaded, or with the solver that was asked for, for JSON."""
    return {
        "checkpoint": str(folder.checkpoint),
        "agent": agent.name,
        "stage": agent.stage,
        "timesteps": agent.num_timesteps,
        "dataset": {"id": agent.dataset_id, "fingerprint": agent.dataset_fingerprint},
        "guidance_scale": getattr(agent, "guidance_scale", None),
        "solver": getattr(agent, "solver", None),
        "solver_steps": getattr(agent, "solver_steps", None),
    }


def film(args: Args, agent: Acting, env: str | EnvSpec, scale: float | None) -> None:
    """Write the clip of the first episode at the given scale."""
    assert args.video is not None
    if scale is not None:
        agent.guidance_scale = scale  # type: ignore[attr-defined]
    frames, rate = record(agent, env, args.video_seconds, args.seed, args.deterministic)
    write_clip(args.video, frames, rate)
    print(f"clip: {args.video} ({len(frames)} frames, {len(frames) / rate:.1f} s)")


def main(args: Args) -> None:
    """Load, evaluate, print, and write."""
    try:
        check(args)
        if args.threads:
            torch.set_num_threads(args.threads)
        if args.video is not None:
            choose_renderer()
        folders = find_runs(args.run)
        members = [load_agent(folder.checkpoint, device=args.device) for folder in folders]
        env, reference = environment(args, folders[0], members)
        agent: Acting = members[0] if len(members) == 1 else Ensemble(members)
        scales = configure(args, agent, members)
        agents = [describe(*both) for both in zip(folders, members, strict=True)]
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
    env_id = env if isinstance(env, str) else env.id
    for folder, member in zip(folders, members, strict=True):
        print(
            f"{member.name} from {folder.checkpoint}, trained on {member.dataset_id} for "
            f"{member.num_timesteps} steps, in {env_id}"
        )
        if not member.is_trained:
            print(
                f"note: training stopped in stage {member.stage!r} at timestep "
                f"{member.num_timesteps} of {member.total_timesteps}: it is not complete"
            )
    if len(members) > 1:
        print(f"these {len(members)} act together: {MIXED[args.deterministic]}")
    about: dict[str, Any] = {"device": str(agent.device), "threads": torch.get_num_threads()}
    try:
        if args.tune_guidance and isinstance(agent, GuidedPolicy | Ensemble):
            dataset_id = str(members[0].dataset_id)
            about["guidance_tuning"], scales = tune(args, folders[0], agent, dataset_id, scales)
        results = score(args, agent, members[0].dataset_id, env, reference, scales)
        print(score_table([(scale_label(scale), e) for scale, e in results]))
        print(f"returns: {write(args, folders[0], agents, about, results)}")
        if args.video is not None:
            film(args, agent, env, scales[0])
    except (RenderError, OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("\nstopped") from None


def cli() -> None:
    """Entry point."""
    main(tyro.cli(Args, description=__doc__))


if __name__ == "__main__":
    cli()
