"""Evaluate a trained agent at one or several guidance scales, and record a video of it.

python scripts/evaluate.py --run runs/demo --guidance-scale 0 1 --video demo.gif
python scripts/evaluate.py --run runs/demo --offline
python scripts/evaluate.py --run runs/demo runs/qgpo-halfcheetah-mixed-v0-QGPO-laptop-s1 \
    --tune-guidance

Several runs are evaluated as one ensemble, which takes the mean of their actions. --offline
plays nothing: it estimates, from the run's dataset alone, what the agent is worth.
"""

from __future__ import annotations

import functools
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from gymnasium.envs.registration import EnvSpec

from qgpo.agents import QGPO, Ensemble, OfflineAgent, evaluate_offline, learn_model, load_agent
from qgpo.agents.core.config import NOT_NEGATIVE
from qgpo.agents.core.fitted_q import FittedQConfig
from qgpo.agents.core.provenance import versions
from qgpo.agents.core.training import on_signals
from qgpo.agents.guided import is_guided
from qgpo.agents.guided.imagination import STEPS
from qgpo.agents.guided.policy import GuidedPolicy
from qgpo.commands import command
from qgpo.envs import OfflineDataset, load_dataset
from qgpo.envs.play.evaluation import FIRST_SEED, evaluate_scales, reference_within
from qgpo.envs.play.scores import scale_label, score_table
from qgpo.envs.play.video import (
    check_clip_path,
    check_drawable,
    choose_renderer,
    record,
    write_clip,
)
from qgpo.envs.progress import on_terminal
from qgpo.envs.store.downloading import digest
from qgpo.envs.store.loading import Storage
from qgpo.envs.tasks.families import find_family
from qgpo.envs.tasks.making import check_played, make_env, to_play
from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.envs.tasks.specs import check_file_id, in_words
from qgpo.experiments import documents
from qgpo.experiments.documents import Document, Evaluations
from qgpo.experiments.folder import RunFolder
from qgpo.experiments.keeping import play_and_keep, show_and_write
from qgpo.experiments.settings import AT_LEAST_0, AT_LEAST_1, SEED, THREADS, check_types
from qgpo.fields import Range
from qgpo.files import check_writable
from qgpo.scripts._refusals import one_line
from qgpo.scripts._runs import find_runs
from qgpo.scripts._terminal import any_terminal, description, refuse_repeated
from qgpo.solver import get_solver

Agent = OfflineAgent[Any]
Player = Agent | Ensemble
Played = str | EnvSpec
Scales = tuple[float | None, ...]
MIXED = {True: "the mean of their actions", False: "each action from a random member"}


GuidanceScales = Annotated[
    tuple[float, ...], NOT_NEGATIVE, tyro.conf.arg(aliases=("--guidance-scales",))
]
"""which train.py calls so"""


@dataclass
class Args:
    """Evaluate an agent from a run folder or a checkpoint, or several agents as an ensemble."""

    run: tuple[Path, ...]
    """run folder (with checkpoint.zip) or checkpoint .zip. Several are evaluated as one ensemble:
    it takes the mean of the members' deterministic actions, or a sampled action of a random
    member"""
    env_id: str | None = None
    """Gymnasium id of the environment; default the run's environment, which is its dataset's.
    module:Id imports the module first. The id of the dataset's environment keeps the recorded
    arguments"""
    guidance_scale: GuidanceScales = ()
    """guidance scales w to evaluate; default the configured scale"""
    tune_guidance: bool = False
    """choose a guidance scale from the run's dataset alone and evaluate it, too; the run's
    checkpoint does not change"""
    offline: bool = False
    """play nothing: estimate the value of the recorded starts from the run's dataset alone (fitted
    Q evaluation), and the return in a model that is learned from it. Takes minutes"""
    fitted_q: FittedQConfig = field(default_factory=FittedQConfig)
    """with --offline: how the value is estimated; fewer steps are faster and less exact"""
    model_steps: Annotated[int, AT_LEAST_0] = STEPS
    """with --offline: gradient steps of the learned model; 0 leaves the imagined return out"""
    storage: Storage | None = None
    """how to hold the dataset for --tune-guidance and --picture: memory or memmap; default as in
    training (for checkpoint files: memory)"""
    solver: str | None = None
    """ODE solver: dpm_solver_2m, dpm_solver_2s, ddim, heun, or euler (only for the schedule ot);
    default the configured solver"""
    solver_steps: Annotated[int | None, AT_LEAST_1] = None
    """solver steps per action: more are slower and more exact; default as configured. Solver and
    steps have no effect on deterministic actions with deterministic_action mean"""
    n_episodes: Annotated[int | None, AT_LEAST_1] = None
    """episodes per guidance scale; default 50, and 100 for AntMaze and PointMaze"""
    seed: Annotated[int, SEED] = FIRST_SEED
    """seed of the first episode; each further episode adds 1. The evaluation after training uses
    10000 + the training seed"""
    deterministic: bool = True
    """evaluate deterministic actions instead of sampled ones"""
    max_episode_steps: Annotated[int | None, AT_LEAST_1] = None
    """truncate episodes after this many steps; default the limit of the environment"""
    device: str = "auto"
    """torch device: auto, cpu, cuda, …"""
    threads: Annotated[int, THREADS] = 0
    """torch threads on the CPU; 0 keeps torch's default. On a busy machine 1 is fastest"""
    output: Path | None = None
    """JSON file for raw returns, lengths, seeds and successes; default evaluation-<time>.json in
    the run folder, or for several runs evaluation-together-<time>.json in the first one"""
    video: Path | None = None
    """write a video of the first episode at the last guidance scale to this file: a .gif or .mp4"""
    video_seconds: Annotated[float, Range(0.1, 10.0)] = 10.0
    """maximum length of the video, in seconds of the environment's time; at most 10"""
    picture: bool = False
    """draw agent.png into the run folder (return over w with the chosen scale, differences in Q
    between actions, trust, and Q along an episode), and data.png with the dataset. For one run of a
    guided agent"""
    exactness: bool = False
    """measure how exact w = 1 is in 64 states of the data, against the agent's own behavior and
    critic; draws exactness.png into the run folder. Of one run of QGPO or AEPO"""
    overwrite: bool = False
    """replace existing files of --output and --video instead of stopping with an error"""
    progress_bar: bool = field(default_factory=on_terminal)
    """show steps, episodes and the remaining time; default if stderr is a terminal"""


def check(args: Args) -> None:
    """Refuse wrong values before anything is loaded."""
    check_types(args)
    if not args.run:
        raise ValueError("--run: expected a run folder or a checkpoint, or several")
    if args.solver is not None:
        get_solver(args.solver, stochastic=False)
    if args.video is not None:
        check_clip_path(args.video)
    needs_env: Document = {"video": args.video, "picture": args.picture, "env_id": args.env_id}
    needs_env |= {"n_episodes": args.n_episodes, "max_episode_steps": args.max_episode_steps}
    for name, value in needs_env.items():
        if args.offline and value:
            raise ValueError(f"--offline plays nothing: leave --{name.replace('_', '-')} away")
    if args.offline and args.exactness:
        raise ValueError("--offline and --exactness: give only one of them")
    estimated: Document = {"fitted_q": FittedQConfig(), "model_steps": STEPS}
    for name, default in estimated.items():
        if not args.offline and getattr(args, name) != default:
            raise ValueError(f"--{name.replace('_', '-')} belongs to --offline: add it")
    for path in (args.output, args.video):
        if path is not None and path.is_dir():
            raise ValueError(f"{path} is a folder, expected a file name")
        if path is not None and path.exists() and not args.overwrite:
            raise ValueError(f"{path} exists: choose another name, or replace it with --overwrite")
    if args.output is not None and args.output == args.video:
        raise ValueError(f"--output and --video are both {args.output}: choose two names")


def check_files(args: Args, folders: list[RunFolder]) -> Path:
    """Where the returns go; refuses, before anything is played, what could not be written."""
    together = "" if len(folders) == 1 else "-together"
    kind = "offline" if args.offline else "evaluation"
    name = f"{kind}{together}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    output = args.output or folders[0].path / name
    for path in (output, args.video):
        if path is None:
            continue
        for folder in folders:
            if path.resolve() in {p.resolve() for p in (folder.checkpoint, *folder.named())}:
                raise ValueError(f"{path} is a file of the run: choose another name")
        check_writable(path)
    return output


def saved_args(folder: RunFolder) -> Document:
    """The arguments of the training that left the checkpoint; empty where there are none."""
    if not folder.config.is_file() or folder.checkpoint.name != "checkpoint.zip":
        return {}
    args = documents.read(folder.config).get("args")
    if not isinstance(args, dict):
        raise ValueError(
            f"{folder.config} is not a document of a run (args={args!r}): move it away"
        )
    return args


def choose_env(
    args: Args, folder: RunFolder, members: list[Agent]
) -> tuple[Played, ReferenceScores | None]:
    """The environment to play in, which fits the agents, and the data's reference returns there."""
    agent = members[0]
    learned_in = {in_words(one.env_spec) for one in members if one.env_spec is not None}
    if len(learned_in) > 1 and args.env_id is None:
        raise ValueError(
            f"the runs' datasets have different environments {sorted(learned_in)}: choose one "
            "with --env-id"
        )
    env_id = args.env_id or id_of_run(folder)
    env, reference = to_play(env_id, agent.env_spec, agent.reference)
    if env is None:
        raise ValueError(
            f"the agent's dataset {agent.dataset_id!r} names no environment: give one with --env-id"
        )
    if agent.reference is not None and reference is None:
        print(
            f"note: the data's reference returns are for {in_words(agent.env_spec)}, not for "
            f"{in_words(env)} as it is registered: scores are normalised only if {id_of(env)} has "
            "its own"
        )
    check_played(env)
    with make_env(env) as made:
        try:
            agent.set_env(made)
        except ValueError as error:
            raise ValueError(
                f"environment {id_of(env)!r} does not fit the agent: {error}"
            ) from error
    return env, reference


def id_of_run(folder: RunFolder) -> str | None:
    """The id in the run's config.json, from which nothing is imported."""
    env_id = saved_args(folder).get("env_id")
    if env_id is not None:
        check_file_id(env_id, str(folder.config), f"give it yourself, --env-id {env_id}")
    return env_id


def id_of(env: Played) -> str:
    """The environment's id."""
    return env if isinstance(env, str) else env.id


def configure(args: Args, agent: Player, members: list[Agent]) -> Scales:
    """Set the solver; returns the scales to evaluate (None: as the agents have it, if at all)."""
    for name in ("guidance_scale", "tune_guidance", "solver", "solver_steps"):
        value = getattr(args, name)
        for member in members if value else []:
            if not isinstance(member, GuidedPolicy) or member.fixed_scale:
                lacking = "guidance_scale" if name == "tune_guidance" else name
                raise ValueError(f"{name}={value}: a {member.name} agent has no {lacking}")
            if name in ("solver", "solver_steps"):
                setattr(member, name, value)
    assert agent.observation_space is not None
    box = agent.observation_space
    box = box if agent.window is None else agent.window.one_observation(box)
    agent.predict(np.zeros(box.shape))  # refuses what does not fit, now
    scale = agent.guidance_scale if is_guided(agent) else None
    return args.guidance_scale or (None if isinstance(scale, tuple) else scale,)


def play(
    args: Args,
    agent: Player,
    member: Agent,
    env: Played,
    reference: ReferenceScores | None,
    scales: Scales,
    keep: Callable[[Evaluations, Document], Evaluations],
) -> Evaluations:
    """Every scale and its evaluation.

    What ends it early, Ctrl-C or the environment, is raised when `keep` has kept the others.
    """
    played = evaluate_scales(
        agent,
        env,
        args.n_episodes or find_family(member.dataset_id, id_of(env)).n_episodes,
        scales,
        seed=args.seed,
        deterministic=args.deterministic,
        max_episode_steps=args.max_episode_steps,
        reference=reference_within(reference, env, args.max_episode_steps),
        warn_of_cuts=False,  # the table says how many
        progress_bar=args.progress_bar,
    )
    return play_and_keep(played, scales, keep)


def keep_in(
    output: Path, replace: bool, about: Document, evaluations: Evaluations, ended: Document
) -> Evaluations:
    """Print and write the scores, and return them; a name that is taken gets a number.

    An evaluation that was not completed replaces none.
    """
    document = {**about, **ended, "evaluations": documents.evaluations_to_json(evaluations)}
    written = show_and_write(
        lambda: show(evaluations, ended), lambda: write(output, replace and not ended, document)
    )
    print(f"returns: {written}", flush=True)
    return evaluations


def show(evaluations: Evaluations, ended: Document) -> None:
    """Print the scores."""
    if ended:
        print("the evaluation was not completed; results so far:")
    print(score_table([(scale_label(scale), played) for scale, played in evaluations]), flush=True)


def write(output: Path, replace: bool, document: Document) -> Path:
    """Write the returns there, or beside it where something is; returns where."""
    try:
        if not replace:
            return documents.write_new(output, document)
        documents.write(output, document)
    except OSError as error:
        raise OSError(
            f"returns could not be written ({error}): the scores are printed above"
        ) from error
    return output


def check_picture(agent: Player) -> None:
    """Refuse, before anything is played, an agent of which no picture can be drawn."""
    from qgpo.experiments.agent_figure import check_drawable as check_pictured

    try:
        check_pictured(agent)
    except ValueError as error:
        raise ValueError(f"--picture: {error}") from error


def draw(
    args: Args, folder: RunFolder, agent: Agent, env: Played, evaluations: Evaluations, tuning: Any
) -> None:
    """Draw the pictures of the agent and of its data into the run folder."""
    from qgpo.envs.data.figure import draw_dataset
    from qgpo.experiments.agent_figure import draw_agent

    assert isinstance(agent, GuidedPolicy)
    dataset = dataset_of(args, folder, agent)
    draw_dataset(folder.picture_of_data, dataset)
    draw_agent(folder.picture, agent, dataset, env, args.seed, evaluations, tuning)
    print(f"pictures: {folder.picture}, {folder.picture_of_data}", flush=True)


def check_exactness(agent: Player) -> None:
    """Refuse, before anything is measured, an agent without an intermediate energy."""
    if not isinstance(agent, QGPO):
        raise ValueError(f"--exactness: expected one run of QGPO or AEPO, not of {agent.name}")


def measure_exactness(args: Args, folder: RunFolder, agent: Player) -> Document:
    """Print and draw how exact the guidance is; the same for JSON."""
    from qgpo.experiments.exactness_figure import draw_exactness

    assert isinstance(agent, QGPO)
    dataset = dataset_of(args, folder, agent)
    found = agent.exactness(dataset, progress_bar=args.progress_bar)
    print(found)
    draw_exactness(folder.exactness, f"{agent.name} on {agent.dataset_id}", found)
    print(f"picture: {folder.exactness}", flush=True)
    return {"exactness": found.as_dict()}


def dataset_of(args: Args, folder: RunFolder, *agents: Agent) -> OfflineDataset:
    """The dataset of a run, held as it was in training unless told otherwise.

    Raises ValueError where one of the agents learned from other data.
    """
    agent = agents[0]
    storage = args.storage or saved_args(folder).get("storage", "memory")
    several: Any = {} if agent.window is None else agent.window.to_json()
    bar = args.progress_bar
    dataset = load_dataset(str(agent.dataset_id), storage=storage, progress_bar=bar, **several)
    for one in agents:
        if one.dataset_fingerprint not in (None, dataset.fingerprint):
            raise ValueError(
                f"{one} learned from other data than the present {dataset.id!r} "
                f"({one.dataset_fingerprint}, not {dataset.fingerprint})"
            )
    return dataset


def estimate(args: Args, folders: list[RunFolder], members: list[Agent], agent: Player) -> None:
    """Print and write what the run's dataset says of the agent, at every scale."""
    scales = configure(args, agent, members)
    output = check_files(args, folders)
    about = [introduce(*both) for both in zip(folders, members, strict=True)]
    dataset = dataset_of(args, folders[0], *members)
    if args.tune_guidance and is_guided(agent):
        tuning = agent.tune_guidance(dataset, progress_bar=args.progress_bar)
        print(tuning)
        scales = tuple(dict.fromkeys((*args.guidance_scale, tuning.best)))
    found: list[Document] = []
    common: Any = {"seed": args.seed, "progress_bar": args.progress_bar}
    model = None
    if args.model_steps:
        model = learn_model(agent, dataset, steps=args.model_steps, **common)
    for scale in scales:
        if scale is not None and is_guided(agent):
            agent.guidance_scale = scale
        options: Any = {"deterministic": args.deterministic, "model_steps": 0, **common}
        result = evaluate_offline(agent, dataset, config=args.fitted_q, model=model, **options)
        print(f"{scale_label(scale)}\n{result}", flush=True)
        found.append({"guidance_scale": scale, **result.as_dict()})
    document = {"format_version": documents.FORMAT_VERSION, "agents": about, "seed": args.seed}
    document |= {"versions": versions(), "offline": found}
    print(f"values: {write(output, args.overwrite and args.output is not None, document)}")


def introduce(folder: RunFolder, agent: Agent, env: Played | None = None) -> Document:
    """Print which agent it is, and whether its training is complete; the same for JSON."""
    print(
        f"{agent.name} from {folder.checkpoint}, trained on {agent.dataset_id} for "
        f"{agent.num_timesteps} steps" + (f", in {id_of(env)}" if env is not None else "")
    )
    if not agent.is_trained:
        print(
            f"note: training is not complete: it stopped in stage {agent.stage!r} at timestep "
            f"{agent.num_timesteps} of {agent.total_timesteps}"
        )
    settings: Document = dict.fromkeys(("guidance_scale", "solver", "solver_steps"))
    if isinstance(agent, GuidedPolicy):
        settings = {name: getattr(agent, name) for name in settings}
    return {
        "checkpoint": str(folder.checkpoint),
        "sha256": digest(folder.checkpoint, "sha256"),
        "agent": agent.name,
        "stage": agent.stage,
        "timesteps": agent.num_timesteps,
        "dataset": {"id": agent.dataset_id, "fingerprint": agent.dataset_fingerprint},
        **settings,
    }


def film(args: Args, video: Path, agent: Player, env: Played, scale: float | None) -> None:
    """Write the clip of the first episode at that scale; None is the agents' own, if any."""
    if scale is not None and is_guided(agent):
        agent.guidance_scale = scale
    frames, rate = record(agent, env, args.video_seconds, args.seed, args.deterministic)
    write_clip(video, frames, rate)
    label = "" if scale is None else f"{scale_label(scale)}: "
    print(f"video: {video} ({label}{len(frames)} frames, {len(frames) / rate:.1f} s)")


@one_line(RuntimeError)
def main(args: Args) -> None:
    """Load, evaluate, print, and write what every episode gave."""
    check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.video is not None:
        choose_renderer()
    folders = find_runs(args.run)
    members = [load_agent(folder.checkpoint, device=args.device) for folder in folders]
    alone = len(members) == 1
    if args.offline:
        estimate(args, folders, members, members[0] if alone else Ensemble(members))
        return
    env, reference = choose_env(args, folders[0], members)
    agent = members[0] if alone else Ensemble(members)
    scales = configure(args, agent, members)
    if args.video is not None:
        check_drawable(env, args.seed)
    output = check_files(args, folders)
    if args.picture:
        check_picture(agent)
    if args.exactness:
        check_exactness(agent)
    agents = [introduce(*both, env) for both in zip(folders, members, strict=True)]
    if not alone:
        print(f"ensemble of these {len(members)}: {MIXED[args.deterministic]}")
    tuned: Document = {}
    tuning = None
    if args.tune_guidance and is_guided(agent):
        dataset = dataset_of(args, folders[0], *members)
        tuning = agent.tune_guidance(dataset, progress_bar=args.progress_bar)
        print(tuning)
        tuned["guidance_tuning"] = tuning.as_dict()
        scales = tuple(dict.fromkeys((*args.guidance_scale, tuning.best)))
    if args.exactness:
        tuned |= measure_exactness(args, folders[0], agent)
    about = {
        "format_version": documents.FORMAT_VERSION,
        **(agents[0] if alone else {"agent": Ensemble.name, "members": agents}),
        "device": str(agent.device),
        "threads": torch.get_num_threads(),
        "seed": args.seed,
        "deterministic": args.deterministic,
        "max_episode_steps": args.max_episode_steps,
        "versions": versions(),
        **tuned,
    }
    keep = functools.partial(keep_in, output, args.overwrite and args.output is not None, about)
    with on_signals(signal.default_int_handler):
        played = play(args, agent, members[0], env, reference, scales, keep)
    if args.video is not None:
        film(args, args.video, agent, env, scales[-1])
    if args.picture:
        draw(args, folders[0], members[0], env, played, tuning)


@any_terminal()
def cli() -> None:
    """Entry point."""
    refuse_repeated(Args, sys.argv[1:])
    main(tyro.cli(Args, prog=command("evaluate"), description=description(__doc__)))


if __name__ == "__main__":
    cli()
