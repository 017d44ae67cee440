"""The suite of datasets: `suite.toml` says which ones settings are chosen on, and which not.

    python benchmarks/suite.py                 # every set with its size, mean return and score
    python benchmarks/suite.py --make          # makes the bundled ones first
    python benchmarks/suite.py --references    # plays what counts as 0 and 100: suite.json

Plans and benchmarks take their datasets from here: `[s.id for s in suite("development")]`.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from qgpo import evaluate, load_dataset
from qgpo.envs import local_ids
from qgpo.envs.play.scores import Evaluation
from qgpo.envs.rollouts.protocols import Policy
from qgpo.envs.rollouts.scripted_policies import UniformPolicy
from qgpo.envs.store.bundled import RECIPES, bundled_policy
from qgpo.envs.tasks.families import find_family
from qgpo.envs.tasks.making import make_env

TABLE = Path(__file__).with_suffix(".toml")
RESULTS = Path(__file__).with_suffix(".json")
Half = Literal["development", "validation"]
BUNDLED = ["bundled"]
EPISODES = 100
"""of a reference return"""
REFERENCES: dict[str, str] = {
    "Pendulum-v1": "",
    "Reacher-v5": "reacher-expert",
    "InvertedDoublePendulum-v5": "inverteddoublependulum-expert",
    "Swimmer-v5": "",
}
"""environment: the bundled policy whose mean actions count as 100; "" where a published return
does. Uniform actions count as 0"""


@dataclass
class Args:
    """Show the suite, make what is bundled of it, or measure its references."""

    make: bool = False
    """make the bundled sets that are not there"""
    references: bool = False
    """play uniform actions and the policies that count as 100, a minute of one core"""


@dataclass(frozen=True)
class Set:
    """A dataset of the suite."""

    id: str
    half: Half
    task: str
    kinds: tuple[str, ...]
    behavior: str
    steps: int
    """environment steps at least: the last episodes are played to their end"""
    returns: tuple[float, float]
    """those that count as 0 and 100"""
    made: tuple[str, ...]
    """commands that make it; ("bundled",) is made on first use"""


def suite(half: Half | None = None) -> list[Set]:
    """The sets of one half, or all."""
    groups = tomllib.loads(TABLE.read_text(encoding="utf-8"))["groups"]
    return [
        Set(
            one["id"],
            group["half"],
            group["task"],
            tuple(group["kinds"]),
            one["behavior"],
            one["steps"],
            (group["returns"][0], group["returns"][1]),
            tuple(group["made"]),
        )
        for group in groups
        if half in (None, group["half"])
        for one in group["sets"]
    ]


def row(one: Set, here: bool) -> str:
    """A line of the table; what only the data say is left out where they are not here."""
    steps, episodes, mean, score = str(one.steps), "", "", ""
    if here:
        dataset = load_dataset(one.id, download=False)
        steps, episodes = str(len(dataset)), str(dataset.n_episodes)
        data_mean = float(np.mean(dataset.episode_returns))
        mean = f"{data_mean:.2f}"
        if not find_family(one.id, dataset.env_spec and dataset.env_spec.id).success:
            low, high = one.returns
            score = f"{100 * (data_mean - low) / (high - low):.1f}"
    kinds = ", ".join((*one.kinds, one.behavior))
    low, high = (f"{value:g}" for value in one.returns)
    return f"| `{one.id}` | {kinds} | {steps} | {episodes} | {mean} | {low} | {high} | {score} |"


def show(make: bool) -> None:
    """Print both halves; with `make`, the bundled sets are made first."""
    here = set(local_ids())
    for half in ("development", "validation"):
        print(f"\n## {half}\n")
        print("| set | kind | steps | episodes | data | 0 | 100 | score of the data |")
        print("|---|---|---|---|---|---|---|---|")
        for one in suite(half):
            if make and one.id in RECIPES and one.id not in here:
                load_dataset(one.id)
                here.add(one.id)
            print(row(one, one.id in here), flush=True)


class Playing:
    """A policy as an agent that `evaluate` plays."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.generator = policy, torch.Generator()

    def seed_predictions(self, seed: int) -> None:
        """Start the generator of the actions again."""
        self.generator.manual_seed(seed)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], Any]:
        """A batch of observations to a batch of actions."""
        return self.policy.act(observation, self.generator, deterministic), state


def play(policy: Policy, env_id: str, deterministic: bool) -> Evaluation:
    """The episodes from seeds 0, 1, 2 and so on."""
    return evaluate(Playing(policy), env_id, EPISODES, seed=0, deterministic=deterministic)


def measure() -> None:
    """Play what counts as 0 and 100, and write every return."""
    found: dict[str, dict[str, Any]] = {}
    for env_id, name in REFERENCES.items():
        env = make_env(env_id)
        assert isinstance(env.action_space, gym.spaces.Box)
        played = {"uniform": play(UniformPolicy(env.action_space), env_id, False)}
        if name:
            played[name] = play(bundled_policy(name, env.action_space), env_id, True)
        env.close()
        for who, evaluation in played.items():
            print(f"{env_id}, {who}: {evaluation}")
            found.setdefault(env_id, {})[who] = [round(r, 4) for r in evaluation.returns]
    RESULTS.write_text(json.dumps(found) + "\n", encoding="utf-8")


def main(args: Args) -> None:
    """Measure, or show."""
    measure() if args.references else show(args.make)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
