"""Whether four seeds would train faster as one batched product than one after the other.

    python benchmarks/batched_seeds.py     # 20 seconds; batched_seeds.json

Networks and batches of the preset `laptop` on noise in HalfCheetah's spaces: a step (forward,
backward, Adam) of four networks one by one, and of the four as one `BatchedMLP`, in alternating
turns of CPU time, one thread.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from qgpo.agents.core.provenance import processor, versions
from qgpo.networks import BatchedMLP

OUTPUT = Path(__file__).with_name("batched_seeds.json")
SEEDS = 4
STEPS = 40
"""of a turn"""


@dataclass(frozen=True)
class Kind:
    """What one seed trains: H networks of these sizes, each with a batch of its own."""

    heads: int
    sizes: tuple[int, ...]
    batch: int
    layer_norm: bool = False

    def step(self, seeds: int) -> Callable[[], None]:
        """One step of so many seeds together."""
        heads = seeds * self.heads
        network = BatchedMLP(heads, self.sizes, "relu", self.layer_norm)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
        x = torch.randn(heads, self.batch, self.sizes[0])
        y = torch.randn(heads, self.batch, self.sizes[-1])

        def step() -> None:
            loss = torch.nn.functional.mse_loss(network(x), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step


KINDS = {
    "whitening": Kind(1, (17, 256, 256, 27), 256),
    "behavior": Kind(1, (55, 256, 256, 6), 512),
    "critic, its heads": Kind(8, (23, 128, 128, 1), 128, layer_norm=True),
    "dynamics": Kind(4, (23, 256, 256, 256, 19), 64),
    "energy": Kind(1, (55, 256, 256, 1), 2048),
}


@dataclass
class Args:
    """Compare four networks one by one with the four as one."""

    rounds: int = 9
    """turns of each"""
    output: Path = OUTPUT
    """JSON to write"""


def milliseconds(steps: Sequence[Callable[[], None]]) -> float:
    """CPU time of all these steps, on average."""
    began = time.process_time()
    for _ in range(STEPS):
        for step in steps:
            step()
    return 1000.0 * (time.process_time() - began) / STEPS


def main(args: Args) -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    found = {}
    for name, kind in KINDS.items():
        alone, together = [kind.step(1) for _ in range(SEEDS)], [kind.step(SEEDS)]
        turns = [(milliseconds(alone), milliseconds(together)) for _ in range(1 + args.rounds)]
        first, second = (statistics.median(times) for times in zip(*turns[1:], strict=True))
        found[name] = {"alone": round(first, 3), "together": round(second, 3)}
        print(f"{name}: {first:.2f} ms one by one, {second:.2f} ms together")
    document = {"processor": processor(), "versions": versions(), "stages": found}
    args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
