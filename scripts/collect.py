"""Record episodes of one or more policies, and store them as a Minari dataset.

python scripts/collect.py --env-id Hopper-v5 --policy sac_hopper.zip \
    --dataset-id mine/hopper/medium-v0 --n-steps 100000
python scripts/collect.py --env-id PointMaze_UMaze-v3 --policy waypoints \
    --dataset-id mine/pointmaze/umaze-v0
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import gymnasium as gym
import numpy as np
import tyro
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer

from qgpo.commands import command
from qgpo.envs.progress import on_terminal
from qgpo.envs.rollouts.collecting import CollectionError, collect, describe
from qgpo.envs.rollouts.protocols import Policy
from qgpo.envs.rollouts.sb3_policies import load_policy
from qgpo.envs.rollouts.scripted_policies import UniformPolicy, WaypointPolicy
from qgpo.envs.store.bundled import bundled_policy, policies
from qgpo.envs.store.local import datasets_root
from qgpo.envs.store.storing import expected_size
from qgpo.envs.store.writing import check_new_id, reserved_space, sole_writer, write_minari
from qgpo.envs.tasks.making import as_played, make_env
from qgpo.envs.text import readable
from qgpo.experiments.settings import AT_LEAST_1, SEED, check_types
from qgpo.scripts._refusals import one_line
from qgpo.scripts._terminal import any_terminal, description, refuse_repeated


@dataclass
class Args:
    """Record episodes of one or more policies as a Minari dataset."""

    env_id: str
    """Gymnasium id of the environment"""
    policy: tuple[str, ...]
    """SB3 model .zip (SAC, TQC, TD3, DDPG, PPO or A2C with an MLP), .safetensors snapshot of an
    actor, name of a bundled policy, uniform (random actions) or waypoints (follows the shortest
    path through a PointMaze, with noise). With several, each episode draws one of them. Nothing is
    unpickled"""
    dataset_id: str
    """id of the new dataset, for example mine/hopper/medium-v0"""
    vecnormalize: tuple[str, ...] = ()
    """files of VecNormalize.save, one for each policy in the same order, - for a policy without
    VecNormalize; default none. Only the numbers in the files are read"""
    n_steps: Annotated[int, AT_LEAST_1] = 100_000
    """environment steps, at least so many: episodes under way then (of several environments at
    once) are played to their ends"""
    switch_every: Annotated[int | None, AT_LEAST_1] = None
    """with several policies, draw the policy again about every this many steps; default once per
    episode"""
    seed: Annotated[int, SEED] = 0
    """seed of resets, actions and the choice of policies"""
    deterministic: bool = False
    """record the policies' mean actions instead of sampled ones"""
    max_episode_steps: Annotated[int | None, AT_LEAST_1] = None
    """truncate episodes after this many steps, and let agents play as many; default the limit of
    the environment"""
    progress_bar: bool = field(default_factory=on_terminal)
    """show steps and the remaining time; default if stderr is a terminal"""


def check(args: Args) -> None:
    """Refuse wrong values and ids that are taken before any episode is played."""
    check_types(args)
    if not args.policy:
        raise ValueError(f"--policy: expected one or more files or names of {policies()}")
    if args.vecnormalize and len(args.vecnormalize) != len(args.policy):
        raise ValueError(
            f"--vecnormalize {' '.join(args.vecnormalize)}: expected one for each policy, "
            f"{len(args.policy)} in all, with - for policies without VecNormalize"
        )
    check_new_id(args.dataset_id)


def open_policy(name: str, statistics: str, action_space: spaces.Box, env_id: str) -> Policy:
    """The policy in that file, the bundled one of that name, or a scripted one.

    `statistics` is the file that VecNormalize.save wrote beside the policy, - without one.
    """
    known = [*policies(), "uniform", "waypoints"]
    if name in known and statistics != "-":
        raise ValueError(f"--vecnormalize {statistics}: {name} has no VecNormalize, expected -")
    if name not in known and not Path(name).is_file():
        raise ValueError(
            f"--policy {name}: expected an SB3 model .zip, a .safetensors snapshot, uniform, "
            f"waypoints, or one of the bundled {policies()}"
        )
    if name == "uniform":
        return UniformPolicy(action_space)
    if name == "waypoints":
        return WaypointPolicy(make_env(env_id))
    try:
        if name in known:
            return bundled_policy(name, action_space)
        return load_policy(name, action_space, None if statistics == "-" else statistics)
    except ValueError as error:
        raise ValueError(f"--policy {name}: {error}") from error


def writer(args: Args, episodes: list[EpisodeBuffer]) -> Callable[[], None]:
    """What writes the dataset."""
    names = [Path(name).name for name in args.policy]
    about = describe(names, args.env_id, args.seed, args.switch_every, args.deterministic)
    env = as_recorded(args)
    return partial(write_minari, args.dataset_id, episodes, env, ", ".join(names), about)


def as_recorded(args: Args) -> str | EnvSpec:
    """The environment with the step limit of its episodes, in which agents then play."""
    if args.max_episode_steps is None:
        return args.env_id
    env = as_played(args.env_id)
    spec = gym.spec(env) if isinstance(env, str) else env
    limit = min(args.max_episode_steps, spec.max_episode_steps or args.max_episode_steps)
    return dataclasses.replace(spec, max_episode_steps=limit)


@contextlib.contextmanager
def kept_elsewhere(args: Args, episodes: list[EpisodeBuffer] | None = None) -> Iterator[None]:
    """Where the block fails, keep the episodes in another folder, and say where.

    They are those given, or those that a collection had finished.
    """
    try:
        yield
    except (OSError, ValueError) as error:  # a full disk, or an id that was taken meanwhile
        ended = error.episodes if isinstance(error, CollectionError) else episodes
        for parent in (Path.cwd(), Path(tempfile.gettempdir())) if ended else ():
            if (kept := keep_elsewhere(writer(args, ended or []), parent)) is not None:
                raise ValueError(
                    f"{error}. The episodes are in {kept}: use them with "
                    f"MINARI_DATASETS_PATH={kept}, or move {kept / args.dataset_id} into your "
                    "folder of datasets"
                ) from error
        raise


def keep_elsewhere(write: Callable[[], None], parent: Path) -> Path | None:
    """A new folder of datasets with what `write` writes; None where that fails, too."""
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="qgpo-collected-", dir=parent))
        with datasets_root(folder):
            write()
    except (OSError, ValueError):
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        return None
    return folder


@one_line(stopped=": no dataset was written")
def main(args: Args) -> None:
    """Check, roll out, store, and print how to train on the result."""
    check(args)
    with sole_writer(args.dataset_id):
        check(args)  # another process may have written it while this one waited
        collect_and_store(args)


def collect_and_store(args: Args) -> None:
    """Roll out, store, and print how to train on the result."""
    statistics = args.vecnormalize or ("-",) * len(args.policy)
    files = list(zip(args.policy, statistics, strict=True))
    size = expected_size(args.env_id, args.n_steps, args.max_episode_steps)
    with kept_elsewhere(args), reserved_space(args.dataset_id, size):
        episodes = collect(
            args.env_id,
            lambda space: [open_policy(*pair, space, args.env_id) for pair in files],
            args.n_steps,
            args.seed,
            switch_every=args.switch_every,
            deterministic=args.deterministic,
            max_episode_steps=args.max_episode_steps,
            progress_bar=args.progress_bar,
        )
    with kept_elsewhere(args, episodes):
        writer(args, episodes)()
    returns = [float(np.sum(episode.rewards)) for episode in episodes]
    steps = sum(len(episode.rewards) for episode in episodes)
    print(
        f"{args.dataset_id}: {len(episodes)} episodes, {steps} steps, mean return "
        f"{readable(float(np.mean(returns)))} "
        f"(from {readable(min(returns))} to {readable(max(returns))})"
    )
    print(f"train on it: {command('train', '--dataset-id', args.dataset_id)}")


@any_terminal()
def cli() -> None:
    """Entry point."""
    refuse_repeated(Args, sys.argv[1:])
    main(tyro.cli(Args, prog=command("collect"), description=description(__doc__)))


if __name__ == "__main__":
    cli()
