"""FQL, IQL, IFQL and ReBRAC beside the code of FQL's authors, loaded from a checkout.

    git clone https://github.com/seohongpark/fql
    pip install jax flax optax distrax ml_collections
    python benchmarks/parity.py losses --reference fql                    # minutes; parity.json
    python benchmarks/parity.py train --reference fql --seeds 0 1         # FQL by their code
    python benchmarks/parity.py train --seeds 0 1                         # FQL by ours
    python benchmarks/parity.py compare

`losses` compares every loss term and its gradient over some Adam steps, from the same weights,
batch and noise. `train` learns FQL on a dataset of this package and plays it. Each seed's raw
successes and lengths are written as it ends, and seeds that are there already are not trained
again. A training that was stopped goes on from its checkpoint in `--work`. `compare` prints both
success rates and the interval of their difference.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from parity_losses import compare_losses, compare_updates
from parity_reference import Reference, versions
from parity_training import Settings, newcombe, train

from qgpo import load_dataset
from qgpo.envs.play.intervals import success_rate
from qgpo.envs.tasks import ogbench
from qgpo.envs.tasks.making import make_env
from qgpo.files import write_whole

DATASET = "ogbench-generated/cube-single-play-100k-singletask-task2-v0"


@dataclass
class Losses:
    """Compare losses and gradients."""

    reference: Path
    """a clone of github.com/seohongpark/fql"""
    steps: int = 20
    """Adam steps"""
    double: bool = False
    """losses in float64, where a difference that is rounding goes away; updates are left out"""
    output: Path = Path("benchmarks/parity.json")
    """JSON to write; the other type's results in it stay"""

    def run(self) -> None:
        """Compare, write and print."""
        torch.set_num_threads(1)
        if self.double:
            torch.set_default_dtype(torch.float64)
            os.environ["JAX_ENABLE_X64"] = "1"
        reference = Reference(self.reference)
        rows = compare_losses(reference, self.steps)
        updates = [] if self.double else compare_updates(reference, self.steps)
        kind = "float64" if self.double else "float32"
        document = json.loads(self.output.read_text()) if self.output.exists() else {}
        document[kind] = {
            "steps": self.steps,
            "versions": versions(),
            "losses": rows,
            "updates": updates,
        }
        write_whole(self.output, (json.dumps(document, indent=1) + "\n").encode())
        print(f"largest relative difference over {self.steps} steps{'loss':>12s}{'gradient':>12s}")
        for row in rows:
            largest = row["largest"]
            values = f"{largest['loss']:12.1e}{largest['gradient']:12.1e}"
            print(f"{row['agent']:24s}{row['loss']:20s}{values}")
        for row in updates:
            print(f"weights of {row['agent']}, by its own updates: {row['difference']:.1e}")


@dataclass
class Train:
    """Train FQL and play it."""

    reference: Path | None = None
    """a clone of github.com/seohongpark/fql, to train by its code; by ours without one"""
    dataset_id: str = DATASET
    """dataset of one task"""
    seeds: tuple[int, ...] = (0, 1)
    """one training each"""
    steps: int = 50_000
    """gradient steps, batches of 256"""
    n_episodes: int = 50
    """episodes that each training plays"""
    output: Path = Path("benchmarks/parity")
    """folder for the results, one JSON file per seed"""
    work: Path = Path("runs/parity")
    """folder for checkpoints while a training runs"""

    def run(self) -> None:
        """Train and play every seed that has no result yet."""
        torch.set_num_threads(1)
        os.environ.setdefault("MUJOCO_GL", "egl")
        reference = None if self.reference is None else Reference(self.reference)
        if reference is not None:
            reference.module("agents.fql")  # a wrong clone fails before anything is trained
        name = ogbench.parse(self.dataset_id)
        if name is None or name.task is None:
            raise SystemExit(
                f"--dataset-id {self.dataset_id}: expected a task's, such as {DATASET}"
            )
        dataset, env = load_dataset(self.dataset_id), make_env(name.env_id)
        for seed in self.seeds:
            code = "ours" if reference is None else "theirs"
            target = self.output / f"{code}-s{seed}.json"
            if target.exists():
                print(f"{target} exists; remove it to train seed {seed} again")
                continue
            settings = Settings(self.steps)
            document = train(reference, dataset, env, settings, seed, self.n_episodes, self.work)
            self.output.mkdir(parents=True, exist_ok=True)
            write_whole(target, (json.dumps(document, indent=1) + "\n").encode())


@dataclass
class Compare:
    """Print the success rates of both codes and the interval of their difference."""

    output: Path = Path("benchmarks/parity")
    """folder with the results of `train`"""

    def run(self) -> None:
        """Read every seed's result."""
        played = {code: results(self.output, code) for code in ("theirs", "ours")}
        for code, documents in played.items():
            for document in documents:
                done, lengths = document["successes"], document["lengths"]
                print(
                    f"{code:6s} seed {document['seed']}: {sum(done)} of {len(done)} succeed, "
                    f"{sum(lengths) / len(lengths):.0f} steps an episode"
                )
        if all(played.values()):
            ours, theirs = (
                [won for document in played[code] for won in document["successes"]]
                for code in ("ours", "theirs")
            )
            low, high = newcombe(ours, theirs)
            difference = success_rate(ours) - success_rate(theirs)
            print(f"ours - theirs: {difference:.1f} [{low:.1f}, {high:.1f}] %")


def results(folder: Path, code: str) -> list[dict[str, Any]]:
    """The documents of one code's seeds."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{code}-s*.json"))]


def main(
    command: Annotated[Losses, tyro.conf.subcommand("losses")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Compare, tyro.conf.subcommand("compare")],
) -> None:
    """Run one of the commands."""
    command.run()


if __name__ == "__main__":
    tyro.cli(main, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
