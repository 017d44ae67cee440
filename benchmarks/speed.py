"""How fast training and acting are, beside the matrix products that they consist of.

    python benchmarks/speed.py                              # 5 minutes; speed.json
    python benchmarks/speed.py --short --compare            # 2 minutes, `make bench`
    git clone https://github.com/ChenDRAG/CEP-energy-guided-diffusion cep
    python benchmarks/speed.py --reference cep              # beside the CEP authors' code

Every stage of a preset is trained on noise in HalfCheetah's spaces, some steps a turn. After each
turn the matrix products of one step, recorded with their shapes and layouts, are computed alone.
`times the products` is the quotient of both times, which hardly depends on the machine. `--compare`
names every stage and every way of acting where it has grown by 15 % over the committed one, and
over what all have grown by: that is other work on the machine, or another one. Left out is what a
stage computes once or rarely. `--reference` gives each turn a turn of the authors'
code, at the paper's sizes; their code draws support actions for each transition twice, ours for
each state once.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from authors import SUPPORT_STATES, Authors
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from turns import ACTIONS, OBSERVATIONS, Turn, let_guide, noise

from qgpo import AEPO, QGPO, QIPO
from qgpo.agents import OfflineAgent
from qgpo.agents.core.provenance import versions

OUTPUT = Path(__file__).with_name("speed.json")
TRANSITIONS = 20_000
SLOWER = 1.15
"""a quotient that has grown by more than the others is named"""
FEWEST = 5
"""quotients whose median says what all have grown by"""
BATCHES = (1, 10, 100)
MOST_STEPS = 200
clock = time.process_time
"""seconds of all threads: other work on the machine does not count, and one thread is measured"""
aten = torch.ops.aten


@dataclass
class Args:
    """Measure the speed of training and acting."""

    presets: tuple[str, ...] = ("laptop", "paper")
    """presets of QGPO; others in `output` stay"""
    rounds: int = 7
    """turns of each stage and of each way of acting"""
    seconds: float = 0.6
    """of a turn"""
    short: bool = False
    """three short turns each, and nothing is written"""
    compare: bool = False
    """name what has become slower than in `output`, which stays as it is; exit code 1 then"""
    reference: Path | None = None
    """a clone of the CEP authors' code"""
    output: Path = OUTPUT
    """JSON to write or to compare with"""


# Matrix products --------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """One matrix product: sizes (H, I, J) @ (H, J, K), and whether each side is transposed."""

    shape: tuple[int, int, int, int]
    turned: tuple[bool, bool]

    @classmethod
    def of(cls, left: Tensor, right: Tensor) -> Product:
        """From its two sides."""
        heads = left.shape[0] if left.dim() == 3 else 1
        i, j, k = left.shape[-2], left.shape[-1], right.shape[-1]
        turned = [x.stride(-1) != 1 and x.stride(-2) == 1 for x in (left, right)]
        return cls((heads, i, j, k), (turned[0], turned[1]))

    @property
    def operations(self) -> float:
        """Multiplications and additions."""
        h, i, j, k = self.shape
        return 2.0 * h * i * j * k

    def function(self) -> Callable[[], object]:
        """Computes it on noise."""
        h, i, j, k = self.shape
        sides = []
        for rows, columns, turned in ((i, j, self.turned[0]), (j, k, self.turned[1])):
            side = torch.randn(h, *((columns, rows) if turned else (rows, columns)))
            sides.append(side.mT if turned else side)
        if h > 1:
            return lambda: torch.bmm(*sides)
        left, right = sides[0][0], sides[1][0]
        return lambda: torch.mm(left, right)


SIDES = {
    **dict.fromkeys((aten.mm.default, aten.mm.out, aten.bmm.default, aten.bmm.out), (0, 1)),
    **dict.fromkeys((aten.addmm.default, aten.addmm.out, aten.addmm_.default), (1, 2)),
    **dict.fromkeys((aten.baddbmm.default, aten.baddbmm.out), (1, 2)),
}
"""where operators have the two sides of a product"""


class Products(TorchDispatchMode):
    """Counts the matrix products within it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in SIDES:
            self.counts[Product.of(*(args[side] for side in SIDES[func]))] += 1
        return func(*args, **(kwargs or {}))

    @property
    def operations(self) -> float:
        """Of all of them."""
        return sum(product.operations * n for product, n in self.counts.items())

    def functions(self) -> list[tuple[Callable[[], object], int]]:
        """Computes each kind, and how often there is one."""
        return [(product.function(), n) for product, n in self.counts.items()]


def seconds_of(functions: Iterable[tuple[Callable[[], object], int]], repeats: int) -> float:
    """What all of them take: of each kind the fastest repetition, times its number."""
    total = 0.0
    for function, n in functions:
        fastest = float("inf")
        for _ in range(repeats):
            began = clock()
            function()
            fastest = min(fastest, clock() - began)
        total += n * fastest
    return total


# Ours -------------------------------------------------------------------------------------


class Counting(BaseCallback):
    """Counts the products of one step of a stage, its third, and ends the training there."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage, self.products = stage, Products()

    def _on_step(self) -> bool:
        done: int = self.model.progress[self.stage]  # type: ignore[attr-defined]
        if done == 2:
            self.products.__enter__()
        if done == 3:
            self.products.__exit__(None, None, None)
        return done < 3

    def _on_rollout_end(self) -> None:
        Turn.stop_unless(self._on_step())


def few_steps(agent: QGPO, stage: str, seconds: float, rounds: int) -> int:
    """Steps of a stage that last about so long, of which it has enough for all rounds."""
    turn = Turn(stage, 3, 6, clock)
    agent.learn(noise(TRANSITIONS), turn, reset_num_timesteps=False)
    most = min(MOST_STEPS, (steps_of(agent, stage) - turn.last) // rounds)
    return int(np.clip(2.0 * seconds / max(turn.seconds, 1e-6), 3, most))


def steps_of(agent: QGPO, stage: str) -> int:
    """Steps that the whole stage has."""
    if stage == "support":
        return agent.support.chunks(agent._batches)  # type: ignore[arg-type]
    return agent.stage_steps[stage]


def finish(agent: QGPO, stage: str) -> None:
    """Make the training stand behind a stage."""
    agent.progress[stage] = steps_of(agent, stage)
    if stage == "critic":
        let_guide(agent)


def stages(preset: str, args: Args, authors: Authors | None) -> dict[str, Any]:
    """Every stage that the preset has."""
    agent, dataset = QGPO(QGPO.presets[preset], seed=0, device="cpu"), noise(TRANSITIONS)
    theirs = authors.steps() if authors is not None else {}
    found = {}
    for stage in agent.stages:
        if stage != "support" and not agent.stage_steps[stage]:
            continue
        counting = Counting(stage)
        agent.learn(dataset, counting, reset_num_timesteps=False)
        functions = counting.products.functions()
        n = few_steps(agent, stage, args.seconds, args.rounds)
        rows: dict[str, list[float]] = {"step": [], "products": [], "theirs": []}
        for _ in range(args.rounds):
            first = agent.progress[stage]
            turn = Turn(stage, first, first + n, clock)
            agent.learn(dataset, turn, reset_num_timesteps=False)
            rows["step"].append(turn.seconds / (n - 1))
            rows["products"].append(seconds_of(functions, 3))
            if stage in theirs:
                rows["theirs"].append(seconds_per_call(theirs[stage], args.seconds))
        drawn = 2.0 * agent.support.states_per_chunk / SUPPORT_STATES
        per_step = drawn if stage == "support" else 1.0
        found[stage] = row(rows, counting.products.operations, per_step)
        finish(agent, stage)
        say(f"{preset}, {stage}", found[stage])
    return found


def row(rows: dict[str, list[float]], operations: float, units: float = 1.0) -> dict[str, float]:
    """Medians over the rounds; `units` of the reference's calls are one of ours."""
    step, products = statistics.median(rows["step"]), statistics.median(rows["products"])
    quotient = statistics.median(a / b for a, b in zip(rows["step"], rows["products"], strict=True))
    found = {
        "milliseconds": 1e3 * step,
        "gigaflop": operations / 1e9,
        "gigaflop_per_second": operations / step / 1e9,
        "of_the_products_alone": operations / products / 1e9,
        "times_the_products": quotient,
        "outside": max(0.0, 1.0 - 1.0 / quotient),
    }
    if rows.get("theirs"):
        pairs = zip(rows["theirs"], rows["step"], strict=True)
        found["reference_milliseconds"] = 1e3 * units * statistics.median(rows["theirs"])
        found["reference_over_ours"] = statistics.median(units * a / b for a, b in pairs)
    return found


def seconds_per_call(call: Callable[[], object], seconds: float) -> float:
    """Mean over as many calls as take about so long, at least two."""
    began, calls = clock(), 0
    while calls < 2 or clock() - began < seconds:
        call()
        calls += 1
    return (clock() - began) / calls


# Acting -----------------------------------------------------------------------------------


def built(agent: OfflineAgent[Any]) -> OfflineAgent[Any]:
    """With networks, not trained: the time does not depend on their weights."""
    agent.set_spaces(OBSERVATIONS, ACTIONS, "the benchmark")
    let_guide(agent)
    return agent


def acting(preset: str, args: Args, authors: Authors | None) -> dict[str, Any]:
    """`predict` of a preset, sampled and deterministic, for every size of the batch."""
    agent, found = built(QGPO(QGPO.presets[preset], device="cpu")), {}
    for deterministic in (False, True):
        how = "deterministic" if deterministic else "sampled"
        for b in BATCHES:
            observations = np.random.default_rng(0).standard_normal((b, 17), np.float32)

            def act(observations: Any = observations, deterministic: bool = deterministic) -> Any:
                return agent.predict(observations, deterministic=deterministic)

            act()
            with Products() as products:
                act()
            functions = products.functions()
            theirs = None if authors is None or deterministic else authors.act(observations)
            rows: dict[str, list[float]] = {"step": [], "products": [], "theirs": []}
            for _ in range(args.rounds):
                rows["step"].append(seconds_per_call(act, args.seconds / 4.0))
                rows["products"].append(seconds_of(functions, 20))
                if theirs is not None:
                    rows["theirs"].append(seconds_per_call(theirs, args.seconds / 4.0))
            found[f"{how} {b}"] = row(rows, products.operations)
            say(f"{preset}, {how}, {b} observations", found[f"{how} {b}"])
    return found


def families(args: Args) -> dict[str, dict[str, dict[str, float]]]:
    """`predict` of QGPO's family at 8 solver steps, in alternating turns."""
    agents = {
        "QGPO": built(QGPO("laptop", device="cpu")),
        "QGPO, w = 0": built(QGPO("laptop", device="cpu")),
        "QGPO, DPS": built(QGPO("laptop", guidance="dps", device="cpu")),
        "AEPO": built(AEPO("laptop", device="cpu")),
        "QIPO diffusion": built(QIPO("laptop", device="cpu")),
        "QIPO flow": built(QIPO("laptop-flow", device="cpu")),
    }
    agents["QGPO, w = 0"].guidance_scale = 0.0  # type: ignore[attr-defined]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for b in (1, 100):
        observations = np.random.default_rng(0).standard_normal((b, 17), np.float32)
        seconds: dict[str, list[float]] = {name: [] for name in agents}
        for _ in range(4 * args.rounds):
            for name, agent in agents.items():
                call = lambda agent=agent: agent.predict(observations)  # noqa: E731, B023
                seconds[name].append(seconds_per_call(call, args.seconds / 20.0))
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        found[str(b)] = {
            name: {"milliseconds": 1e3 * m, "over_qgpo": m / medians["QGPO"]}
            for name, m in medians.items()
        }
    return found


# Results ----------------------------------------------------------------------------------


def say(name: str, one: dict[str, float]) -> None:
    """One line."""
    line = (
        f"{name:34s} {one['milliseconds']:8.2f} ms  {one['gigaflop_per_second']:6.1f} of "
        f"{one['of_the_products_alone']:6.1f} GFLOP/s  {one['outside']:4.0%} outside"
    )
    if "reference_over_ours" in one:
        line += f"  theirs {one['reference_over_ours']:.2f} times as long"
    print(line, flush=True)


def growth(found: dict[str, Any], committed: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Times the products, now and as committed, by name."""
    pairs = {}
    for preset, kinds in found.items():
        for kind, of in kinds.items():
            for name, one in of.items():
                before = committed.get(preset, {}).get(kind, {}).get(name)
                if before is not None:
                    quotients = one["times_the_products"], before["times_the_products"]
                    pairs[f"{preset}, {name}"] = quotients
    return pairs


def usual_growth(pairs: dict[str, tuple[float, float]]) -> float:
    """What another machine, or other work on it, does to all: the median, at least 1."""
    return max(1.0, statistics.median(now / then for now, then in pairs.values()))


def slower(pairs: dict[str, tuple[float, float]]) -> list[str]:
    """What takes longer beside its products than it did, and than the usual growth explains."""
    usual = usual_growth(pairs) if len(pairs) >= FEWEST else 1.0
    return [
        f"{name}: {now:.2f} times its products, was {then:.2f}"
        for name, (now, then) in pairs.items()
        if now > SLOWER * usual * then
    ]


def main(args: Args) -> None:
    """Measure, print, and write or compare."""
    torch.set_num_threads(1)
    if args.short:
        args.rounds, args.seconds = 3, min(args.seconds, 0.25)
    if args.compare and not args.output.is_file():
        sys.exit(f"no {args.output} to compare with")
    authors = None if args.reference is None else Authors(args.reference, noise(TRANSITIONS))
    found = {}
    for preset in args.presets:
        beside = authors if preset == "paper" else None
        found[preset] = {
            "stages": stages(preset, args, beside),
            "acting": acting(preset, args, beside),
        }
    if args.compare:
        committed = json.loads(args.output.read_text())
        pairs = growth(found, committed["presets"])
        if not pairs:
            sys.exit(f"{args.output} has none of {list(found)}")
        named = slower(pairs)
        print(f"beside its products, everything takes {usual_growth(pairs):.2f} times as long")
        print("\n".join(named) or "nothing is slower than it was")
        sys.exit(1 if named else 0)
    if not args.short:
        written = json.loads(args.output.read_text()) if args.output.is_file() else {}
        written |= {"rounds": args.rounds, "seconds_per_turn": args.seconds}
        written |= {"versions": versions(), "presets": {**written.get("presets", {}), **found}}
        if "laptop" in args.presets:
            written["agents"] = families(args)
        args.output.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
