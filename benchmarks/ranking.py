"""How well a trained agent's critic ranks a state's actions, measured in the environment.

python benchmarks/ranking.py --run runs/A --run runs/B --out benchmarks/ranking/hopper.json
python benchmarks/ranking.py --run runs/cube --near-success 40 --states 40
python benchmarks/ranking.py compare --rankings benchmarks/ranking/*.json

The environment is set to a state. Each of M actions of the behavior is played there, and after it,
with the same random numbers for all actions, the policy (and beside it the behavior) for `horizon`
steps. The discounted returns are the truth that Q is compared with: within each state, by
correlation, and by what an action gains that is chosen by Q. The policy's own actions are played,
too. States come from episodes of the behavior and of the policy. `compare` asks whether these
numbers order critics as the returns of their policies do.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ranking_compare
import torch
import tyro
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from ranking_agents import (
    Unit,
    behavior_of,
    check_ranks,
    density_of,
    draw_actions,
    load,
    tail_of,
    unit_of,
    values_of,
)
from ranking_compare import FORMAT_VERSION, read_measured
from ranking_play import Agent, Env, Follow, Start, acting, find_starts, play_out, vectors
from ranking_report import BEHAVIOR, POLICY, as_text, summarize

from qgpo.agents.core.provenance import processor, versions
from qgpo.envs import load_dataset
from qgpo.envs.play.snapshots import check_restorable
from qgpo.envs.progress import progress
from qgpo.envs.tasks.families import find_family
from qgpo.envs.tasks.making import as_played, check_played, make_env, to_play
from qgpo.experiments import documents
from qgpo.experiments.folder import RunFolder
from qgpo.files import check_writable, write_whole

Document = dict[str, Any]
QUICK, SLOW = 20, 2
"""states times repetitions that are played at once: in Gymnasium's environments, and in those of
other packages, which take long to make"""
OF_NO_RESULT = {"run", "out", "n_envs", "threads", "progress_bar"}
"""settings that change nothing in what is measured of a run"""
SIGNIFICANT = 8
"""digits of the numbers in the file"""


@dataclass
class Args:
    """Rank actions by a critic and by playing them."""

    run: tyro.conf.UseAppendAction[tuple[Path, ...]]
    """run folder of a trained agent; several times for several"""
    out: Path = Path("benchmarks/ranking/ranking.json")
    """JSON to write after every run; measurements that it holds are not repeated"""
    states: int = 60
    """states, each of another episode"""
    actions: int = 16
    """actions of the behavior in every state"""
    guided_samples: int = 4
    """sampled actions of the policy in every state"""
    repetitions: int = 4
    """rollouts from every action"""
    horizon: int = 100
    """steps of a rollout, with that of the action"""
    guidance_scale: float = 1.0
    """of the policy, where the agent has one"""
    deterministic: bool = False
    """the policy plays by deterministic actions; the behavior always samples"""
    after_behavior: bool = True
    """play on by the behavior, too; without it half the time"""
    value_at_end: bool = False
    """add the critic's value of where a rollout stands after the horizon"""
    near_success: int | None = None
    """take states from the last so many steps of episodes that succeeded"""
    most_episodes: int = 400
    """episodes of the behavior, and of the policy, that are played at most to find such states"""
    behavior: Path | None = None
    """run folder of the agent whose sampled actions are the behavior's (a guided agent: at w = 0);
    needed for agents without a model of the behavior"""
    env_id: str | None = None
    """another environment than that of the data"""
    data: bool = True
    """read the dataset, for the unit of Q and the density of the data"""
    seed: int = 0
    """of episodes, actions and rollouts"""
    n_envs: int | None = None
    """environments that play at once"""
    threads: int = 1
    """of torch"""
    progress_bar: bool | None = None
    """by default where stderr is a terminal"""

    def check(self) -> None:
        """Raise ValueError for numbers that make no measurement."""
        least = {"states": 2, "actions": 2, "guided_samples": 1, "repetitions": 1, "horizon": 1}
        least |= {"near_success": 1, "n_envs": 1, "most_episodes": 1}
        for name, smallest in least.items():
            number = getattr(self, name)
            if number is not None and number < smallest:
                raise ValueError(f"{name}={number}, expected at least {smallest}")
        if self.value_at_end and not self.data:
            raise ValueError(
                "value_at_end: the unit of Q follows from the data, which data=False leaves out"
            )

    @property
    def settings(self) -> Document:
        """What decides the result, beside the run, as JSON."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in OF_NO_RESULT}
        return {k: v.as_posix() if isinstance(v, Path) else v for k, v in values.items()}


class Stage:
    """Environments, which one run after the other uses."""

    def __init__(self, n_envs: int | None) -> None:
        self.n_envs = n_envs
        self.made: dict[str, list[Env]] = {}

    def envs(self, env: str | EnvSpec, actions: int) -> list[Env]:
        """Enough copies for one group of actions at least, known to be restorable."""
        family = find_family(env_id=env if isinstance(env, str) else env.id)
        usual = actions * (QUICK if family.package is None else SLOW)
        n = max(actions, self.n_envs or usual)
        kept = self.made.setdefault(env if isinstance(env, str) else env.to_json(), [])
        if not kept:
            pair = [make_env(as_played(env)) for _ in range(2)]
            check_restorable(*pair)
            kept += pair
        kept += [make_env(as_played(env)) for _ in range(n - len(kept))]
        return kept[:n]


def measure(args: Args, run: Path, stage: Stage) -> Document:
    """Rank the agent of a run folder. Ctrl-C ends it early, with the states that are complete."""
    began, cpu = time.perf_counter(), time.process_time()
    agent = load(run)
    check_ranks(agent)  # before anything is played
    policy = acting(agent, args.guidance_scale)
    behavior = behavior_of(agent, load(args.behavior) if args.behavior else None)
    env = environment_of(args, agent)
    unit, data = Unit(), None
    if args.data:
        dataset = load_dataset(str(agent.dataset_id), download=False)
        data = agent.prepare(dataset)
        unit = unit_of(dataset, data)

    envs = stage.envs(env, args.actions + 2 + args.guided_samples)
    starts = find_starts(
        envs,
        {BEHAVIOR: behavior, POLICY: policy},
        args.states,
        args.seed,
        args.near_success,
        args.most_episodes,
        args.deterministic,
    )
    until_rollouts = time.perf_counter() - began
    observations = vectors(agent, [start.observation for start in starts])
    actions = draw_actions(
        policy, behavior, observations, args.actions, args.guided_samples, args.seed
    )
    q = values_of(agent, observations, actions.scaled)
    returns = play_all(
        args, envs, starts, actions.in_space, follows_of(args, agent, behavior, unit)
    )
    done = len(returns[POLICY])
    density = None if data is None else density_of(data, observations)[:done]
    states = [
        {"source": s.source, "seed": s.seed, "step": s.step, "length": s.length}
        for s in starts[:done]
    ]
    document = {
        **about(args, run, agent, env),
        **({"unfinished": f"{done} of {len(starts)} states"} if done < len(starts) else {}),
        "unit": dataclasses.asdict(unit),
        "states": states,
        "density": None if density is None else rounded(density),
        "parts": {name: [part.start, part.stop] for name, part in actions.parts.items()},
        "values": rounded(q[:done]),
        "returns": {name: rounded(played) for name, played in returns.items()},
        "seconds": {
            "until_rollouts": until_rollouts,
            "wall": time.perf_counter() - began,
            "cpu": time.process_time() - cpu,
        },
        "versions": versions(),
        "processor": processor(),
    }
    return {**document, "ranking": summarize(document)}


def environment_of(args: Args, agent: Agent) -> str | EnvSpec:
    """Where the agent plays. Raises ValueError where nothing says where."""
    env, _ = to_play(args.env_id, agent.env_spec, None)
    if env is None:
        raise ValueError(f"{agent.dataset_id!r} names no environment: give one with --env-id")
    check_played(env)
    return env


def follows_of(args: Args, agent: Agent, behavior: Agent, unit: Unit) -> dict[str, Follow]:
    """Who plays on after an action."""
    gamma = agent.gamma
    if gamma is None:
        raise ValueError(f"a {agent.name} agent learns no values")
    policy = acting(agent, args.guidance_scale)
    tail = tail_of(agent, policy, unit) if args.value_at_end else None
    shared = args.horizon, gamma, args.repetitions
    follows = {POLICY: Follow(policy, *shared, args.deterministic, args.seed, tail)}
    if args.after_behavior:
        follows[BEHAVIOR] = Follow(behavior, *shared, False, args.seed, tail)
    return follows


def play_all(
    args: Args,
    envs: Sequence[Env],
    starts: Sequence[Start],
    actions: NDArray[Any],
    follows: dict[str, Follow],
) -> dict[str, NDArray[np.float64]]:
    """Returns (S, K, R) by who plays on; after Ctrl-C those of the states that are complete."""
    n, k = actions.shape[:2]
    block = max(1, len(envs) // (k * args.repetitions))
    played: dict[str, list[NDArray[np.float64]]] = {name: [] for name in follows}
    total = n * k * args.repetitions * args.horizon * len(follows)
    with progress(total, "rank", args.progress_bar, unit="step", unit_scale=True) as bar:
        try:
            for begin in range(0, n, block):
                rows = range(begin, min(begin + block, n))
                some = [starts[s] for s in rows]
                here = {
                    name: play_out(envs, some, actions[rows], follow, rows, bar.update)
                    for name, follow in follows.items()
                }
                for name, returns in here.items():
                    played[name].append(returns)
        except KeyboardInterrupt:
            if not played[POLICY]:
                raise
    return {name: np.concatenate(parts) for name, parts in played.items()}


def about(args: Args, run: Path, agent: Agent, env: str | EnvSpec) -> Document:
    """What is measured, and how."""
    config = RunFolder(run).config
    return {
        "run": run.as_posix(),
        "checkpoint": fingerprint(run),
        "label": documents.read(config)["label"] if config.is_file() else agent.name,
        "agent": agent.name,
        "seed": agent.seed,
        "gamma": agent.gamma,
        "dataset": {"id": agent.dataset_id, "fingerprint": agent.dataset_fingerprint},
        "environment": env if isinstance(env, str) else env.id,
        "settings": args.settings,
    }


def fingerprint(run: Path) -> str:
    """SHA-256 of a run's checkpoint, empty where there is none."""
    checkpoint = RunFolder(run).checkpoint
    return hashlib.sha256(checkpoint.read_bytes()).hexdigest() if checkpoint.is_file() else ""


def rounded(values: NDArray[np.float64]) -> Any:
    """Nested lists of numbers with SIGNIFICANT digits."""
    if values.ndim:
        return [rounded(part) for part in values]
    return float(f"{float(values):.{SIGNIFICANT}g}")


def main(args: Args) -> None:
    """Measure every run, write after each, and print."""
    args.check()
    torch.set_num_threads(args.threads)
    runs = read_measured(args.out)
    check_writable(args.out)
    stage = Stage(args.n_envs)
    for run in args.run:
        key = run.as_posix(), fingerprint(run), args.settings
        same = [one for one in runs if (one["run"], one["checkpoint"], one["settings"]) == key]
        document = next((one for one in same if "unfinished" not in one), None)
        if document is None:
            document = measure(args, run, stage)
            runs = [one for one in runs if one not in same] + [document]
            content = json.dumps({"format_version": FORMAT_VERSION, "runs": runs})
            write_whole(args.out, content.encode() + b"\n")
        print(as_text(document), flush=True)
        if "unfinished" in document:
            raise SystemExit(f"stopped after {document['unfinished']}: they are in {args.out}")


def cli(words: list[str]) -> None:
    """Entry point; an error is one line."""
    try:
        if words[:1] == ["compare"]:
            prog, text = "ranking.py compare", ranking_compare.__doc__
            args = tyro.cli(ranking_compare.Args, args=words[1:], prog=prog, description=text)
            ranking_compare.main(args)
        else:
            main(tyro.cli(Args, args=words, description=__doc__))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    cli(sys.argv[1:])
