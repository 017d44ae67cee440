"""The tables of README.md and docs/results.md, in Markdown, from the measured returns.

    python benchmarks/tables.py

A number is the mean over agents and episodes; in brackets the 95 % bootstrap interval over both,
behind it the number of agents (trainings, or ensembles) where it is not the usual one. Below each
table: on which datasets QGPO's interval lies above that of the table's baselines, of every one that
was measured there within ten minutes of two cores, alone, together or trained longer, and of every
one at all, and where QGPO's mean is below the data's or below that of its own imitation, with the
interval of the difference in the same episodes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from together import losses

from qgpo.experiments.statistics import hierarchical_bootstrap

Measured = dict[str, Any]
"""one agent's JSON: a cell, or an ensemble of together.py"""
Agents = dict[tuple[str, str], list[Measured]]
"""by label and dataset"""
Scale = float | str | None

DATASETS = (
    "zoo/halfcheetah/medium-expert-v0",
    "zoo/hopper/medium-expert-v0",
    "zoo/halfcheetah/medium-v0",
    "zoo/hopper/medium-v0",
    "qgpo/halfcheetah/mixed-v0",
    "qgpo/hopper/mixed-v0",
    "qgpo/halfcheetah/simple-v0",
    "qgpo/hopper/simple-v0",
    "qgpo/halfcheetah/medium-v0",
    "qgpo/hopper/medium-v0",
)
UNTOUCHED = 4
"""the last so many sets were not looked at while settings were chosen, but for the scale 0.25"""
RIVALS = ("BC", "TD3+BC", "IQL", "Diffusion-QL")
"""labels that begin so are baselines', trained as long or longer"""
TEN_MINUTES = 1_200.0
"""CPU-seconds, of two cores"""
BASELINES: tuple[tuple[str, str, Scale], ...] = (
    ("BC", "BC", None),
    ("TD3+BC", "TD3+BC", None),
    ("IQL", "IQL", None),
)
OURS: tuple[tuple[str, str, Scale], ...] = (
    ("QGPO, w = 0", "QGPO", 0.0),
    ("**QGPO, w = 1**", "QGPO", 1.0),
)
TUNED: tuple[tuple[str, str, Scale], ...] = (("**QGPO, tuned**", "QGPO", "tuned"),)
SCALES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)
FELL, WEAKER = 2_000.0, 8_000.0
"""returns on halfcheetah medium-expert below which an episode fell or ran in the weaker gait"""
MINUTES = (3, 10, 30)
"""of two cores: one training, three together, three of four times the steps together"""
LONGER = ", longer 4"
"""behind the label of an agent with four times the steps"""
FIXED = (0.5, 1.0, 1.5, 2.0)
"""scales that were played everywhere"""


@dataclass
class Args:
    """Tables from cells and ensembles."""

    cells: tuple[Path, ...] = (
        Path("benchmarks/locomotion"),
        Path("benchmarks/bundled"),
        Path("benchmarks/seeds"),
        Path("benchmarks/budgets"),
        Path("benchmarks/elsewhere"),
        Path("benchmarks/thirty"),
        Path("benchmarks/equal"),
    )
    """folders with the results of single trainings"""
    together: Path = Path("benchmarks/together.json")
    """what together.py wrote"""


@dataclass
class Use:
    """One way to use a baseline on a dataset: alone or three together, trained longer or not."""

    label: str
    together: bool
    agents: list[Measured]
    """trainings, or ensembles"""

    def __post_init__(self) -> None:
        costs = [one if self.together else one["training"] for one in self.agents]
        self.seconds = float(np.mean([cost["cpu_seconds"] for cost in costs]))
        self.returns = returns_of(self.agents, None)
        self.mean = float(np.mean(self.returns))
        self.high = hierarchical_bootstrap(self.returns)[1]

    def __str__(self) -> str:
        how = [f"n = {len(self.returns)}", "three together" if self.together else ""]
        how.append(self.label.partition(", ")[2])
        return f"{entry(self.returns, len(self.returns))} ({', '.join(filter(None, how))})"


def scale_of(agent: Measured, scale: Scale) -> float | None:
    """That scale, or the one that tuning took."""
    return agent["tuning"]["best"] if scale == "tuned" else scale  # type: ignore[return-value]


def returns_of(agents: Iterable[Measured], scale: Scale) -> list[list[float]]:
    """Every agent's episode returns at that scale, or at the one that tuning took."""
    found = []
    for agent in agents:
        wanted = scale_of(agent, scale)
        found += [e["returns"] for e in agent["evaluations"] if e["guidance_scale"] == wanted]
    return found


def entry(returns: list[list[float]], usual: int) -> str:
    """Mean, interval, and how many agents where it is not the usual number."""
    if not returns:
        return "-"
    low, high = hierarchical_bootstrap(returns)
    number = "" if len(returns) == usual else f", {len(returns)}"
    return f"{np.mean(returns):.0f} [{low:.0f}, {high:.0f}]{number}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def comparison(
    agents: Agents,
    columns: tuple[tuple[str, str, Scale], ...],
    data: dict[str, float],
    normalize: dict[str, Callable[[float], float]],
    uses: dict[str, list[Use]],
    usual: int,
) -> str:
    """A row per dataset, a column per agent, and what follows from it."""
    rows, scores = [], {"data": [normalize[d](data[d]) for d in data]}
    verdicts: dict[str, list[str]] = {}
    for dataset, of_data in data.items():
        row, returns = [f"`{dataset.removesuffix('-v0')}`", f"{of_data:.0f}"], {}
        for name, label, scale in columns:
            returns[name] = returns_of(agents.get((label, dataset), []), scale)
            row.append(entry(returns[name], usual))
            if returns[name]:
                scores.setdefault(name, []).append(normalize[dataset](np.mean(returns[name])))
        rows.append(row)
        for name, label, _ in columns:
            complete = all(len(returns[baseline]) >= usual for baseline, _, _ in BASELINES)
            if label != "QGPO" or len(returns[name]) < usual or not complete:
                continue
            lowest = hierarchical_bootstrap(returns[name])[0]
            beside = max(hierarchical_bootstrap(returns[other])[1] for other, _, _ in BASELINES)
            if lowest > beside:
                verdicts.setdefault(f"{name} is clear of the table's", []).append(dataset)
            for which, seconds in (("all of ten minutes", TEN_MINUTES), ("all", np.inf)):
                if lowest > max(one.high for one in uses[dataset] if one.seconds <= seconds):
                    verdicts.setdefault(f"{name} is clear of {which}", []).append(dataset)
            if np.mean(returns[name]) < of_data:
                verdicts.setdefault(f"{name} is below the data", []).append(dataset)
            imitation = returns["QGPO, w = 0"]
            if np.mean(returns[name]) < np.mean(imitation):
                differences = np.array(returns[name]) - np.array(imitation)
                text = f"{dataset} ({entry(differences.tolist(), len(differences))})"
                verdicts.setdefault(f"{name} is below its w = 0", []).append(text)
    means = [["normalised mean"], ["of the last four"]]
    for name in ("data", *(name for name, _, _ in columns)):
        found = scores.get(name, [])
        for row, part in zip(means, (found, found[-UNTOUCHED:]), strict=True):
            row.append(f"{np.mean(part):.1f}" if len(found) == len(data) else "-")
    head = ["", "data", *(name for name, _, _ in columns)]
    notes = "".join(f"- {what}, {len(d)}: {', '.join(d)}\n" for what, d in sorted(verdicts.items()))
    return f"{table(head, [*rows, *means])}\n{notes}"


def at_every_scale(agents: Agents, data: dict[str, float], usual: int) -> str:
    """QGPO's returns, a row per dataset."""
    rows = [
        [f"`{d.removesuffix('-v0')}`"]
        + [entry(returns_of(agents.get(("QGPO", d), []), w), usual) for w in SCALES]
        for d in data
    ]
    return table(["", *(f"w = {w:g}" for w in SCALES)], rows)


def each_ensemble(together: Agents, data: dict[str, float]) -> str:
    """QGPO's mean returns and the scale that tuning took, a row per ensemble."""
    rows = []
    for d in data:
        for row in together.get(("QGPO", d), []):
            means = {
                e["guidance_scale"]: f"{np.mean(e['returns']):.0f}" for e in row["evaluations"]
            }
            seeds = ", ".join(map(str, [*row["seeds"], row["where"]])).removesuffix(", ")
            rows.append(
                [f"`{d.removesuffix('-v0')}`", seeds, f"{row['tuning']['best']:g}"]
                + [means.get(w, "-") for w in SCALES]
            )
    return table(["", "seeds", "chosen", *(f"w = {w:g}" for w in SCALES)], rows)


def losses_of_choices(together: Agents, data: dict[str, float]) -> str:
    """Normalised points that a choice of scale loses, halved and upper, a row per dataset."""
    choices: tuple[tuple[str, Scale], ...] = (
        ("tuned", "tuned"),
        *((f"w = {w:g}", w) for w in FIXED),
    )
    rows, all_lost = [], []
    for d in data:
        if ("QGPO", d) in together:
            lost = [
                np.mean(
                    [losses(one["evaluations"], scale_of(one, w)) for one in together["QGPO", d]],
                    axis=0,
                )
                for _, w in choices
            ]
            all_lost.append(lost)
            name = f"`{d.removesuffix('-v0')}`"
            rows.append([name, *(f"{halved:.1f}, {upper:.1f}" for upper, halved in lost)])
    means = [f"{halved:.1f}, {upper:.1f}" for upper, halved in np.mean(all_lost, axis=0)]
    return table(["", *(name for name, _ in choices)], [*rows, ["mean", *means]])


def by_time(found: Everything) -> str:
    """Three, ten and thirty minutes on the sets where all were measured, three rows per dataset."""
    columns = (*BASELINES, *((f"w = {w:g}", "QGPO", w) for w in (0.0, *FIXED)), *TUNED)
    rows, scores = [], {}
    for d in [d for d in found.data if ("QGPO" + LONGER, d) in found.together]:
        for minutes in MINUTES:
            row = [f"`{d.removesuffix('-v0')}` ({found.data[d]:.0f})", f"{minutes}"]
            for name, label, scale in columns:
                returns = found.in_minutes(minutes, label, scale, d)
                row.append(entry(returns, 3 if minutes == 3 else 1))
                score = found.normalize[d](float(np.mean(returns))) if returns else np.nan
                scores.setdefault((minutes, name), []).append(score)
            rows.append(row)
    for minutes in MINUTES:
        means = [float(np.mean(scores[minutes, name])) for name, _, _ in columns]
        texts = ["-" if np.isnan(mean) else f"{mean:.1f}" for mean in means]
        rows.append(["normalised mean", f"{minutes}", *texts])
    return table(["(data)", "minutes", *(name for name, _, _ in columns)], rows)


def best_uses(found: Everything) -> str:
    """Each baseline as it does best with ten minutes of two cores, a row per dataset."""
    rows = []
    for dataset in found.data:
        best = [found.best_use(baseline, dataset) for baseline in RIVALS]
        name = f"`{dataset.removesuffix('-v0')}`"
        rows.append([name, *("-" if use is None else f"{use}" for use in best)])
    return table(["", *RIVALS], rows)


def with_and_without_row(cells: Agents, together: Agents) -> str:
    """QGPO on halfcheetah medium-expert by sparsity_power, and how many episodes went wrong."""
    columns: tuple[Scale, ...] = (0.0, *FIXED, "tuned")
    rows = []
    for power, label in (("0", "QGPO, uniform"), ("1", "QGPO, sparse"), ("2", "QGPO")):
        key = (label, DATASETS[0])
        alone, three = cells.get(key, []), together.get(key, [])
        played = [[r for one in returns_of(three, w) for r in one] for w in columns]
        rows += [
            [f"power {power}, {len(alone)} agents"]
            + [entry(returns_of(alone, w), len(alone)) for w in columns[:-1]]
            + ["-"],
            [f"{len(three)} ensembles"]
            + [entry(returns_of(three, w), len(three)) for w in columns],
            ["fell, weaker gait"]
            + [
                f"{sum(r < FELL for r in one)}, {sum(FELL <= r < WEAKER for r in one)} "
                f"of {len(one)}"
                for one in played
            ],
        ]
    return table(["", "w = 0", *(f"{w:g}" for w in FIXED), "tuned"], rows)


@dataclass
class Everything:
    """What was measured, and on what."""

    cells: Agents
    together: Agents
    data: dict[str, float]
    """mean returns"""
    normalize: dict[str, Callable[[float], float]]
    """by dataset: from returns to scores"""

    def in_minutes(self, minutes: int, label: str, scale: Scale, dataset: str) -> list[list[float]]:
        """Returns of each agent after that time; none of single ones that are tuned."""
        if minutes == 3:
            return [] if scale == "tuned" else returns_of(self.cells[label, dataset], scale)
        label += LONGER if minutes == 30 else ""
        return returns_of(self.together.get((label, dataset), []), scale)

    def uses(self, dataset: str) -> list[Use]:
        """Every way in which a baseline was used there."""
        return [
            Use(label, together, agents)
            for together, measured in ((False, self.cells), (True, self.together))
            for (label, name), agents in measured.items()
            if name == dataset and label.startswith(RIVALS)
        ]

    def best_use(self, baseline: str, dataset: str) -> Use | None:
        """The one with the highest mean return of those within ten minutes of two cores."""
        mine = [use for use in self.uses(dataset) if use.label.split(", ")[0] == baseline]
        within = [use for use in mine if use.seconds <= TEN_MINUTES]
        return max(within, key=lambda use: use.mean, default=None)


def read(args: Args) -> Everything:
    """Everything. SystemExit where one name stands for several data."""
    cells: Agents = {}
    data: dict[str, float] = {}
    fingerprints: dict[str, str] = {}
    normalize: dict[str, Callable[[float], float]] = {}
    singles = [json.loads(f.read_text()) for d in args.cells for f in sorted(d.glob("*.json"))]
    for cell in singles:
        name, about = cell["measured"]["dataset"], cell["dataset"]
        cells.setdefault((cell["label"], name), []).append(cell)
        if fingerprints.setdefault(name, about["fingerprint"]) != about["fingerprint"]:
            raise SystemExit(f"cells of {name} were measured on different data under that name")
        data[name] = float(np.mean(about["returns"]))
        low, high = about["reference"]["minimum"], about["reference"]["maximum"]
        normalize[name] = lambda x, low=low, high=high: 100.0 * (x - low) / (high - low)
    data = {name: data[name] for name in DATASETS if name in data}
    together: Agents = {}
    for row in json.loads(args.together.read_text()):
        if row["fingerprint"] != fingerprints.get(row["measured"]["dataset"]):
            raise SystemExit(f"{row['label']}, {row['seeds']}: an ensemble of other data")
        together.setdefault((row["label"], row["measured"]["dataset"]), []).append(row)
    return Everything(cells, together, data, normalize)


def main(args: Args) -> None:
    """Print."""
    found = read(args)
    cells, together, data, normalize = found.cells, found.together, found.data, found.normalize
    uses = {dataset: found.uses(dataset) for dataset in data}

    print("## One training\n")
    print(comparison(cells, (*BASELINES, *OURS), data, normalize, uses, 3))
    print("## Three trainings together\n")
    print(comparison(together, (*BASELINES, *OURS, *TUNED), data, normalize, uses, 1))
    print("## Ten minutes\n")
    best = {key: agents for key, agents in together.items() if key[0] == "QGPO"}
    for baseline, _, _ in BASELINES:
        for dataset in data:
            use = found.best_use(baseline, dataset)
            best[baseline, dataset] = [] if use is None else use.agents
    print(comparison(best, (*BASELINES, *OURS, *TUNED), data, normalize, uses, 0))
    print("## Each baseline's best use of ten minutes\n")
    print(best_uses(found))
    for title, agents, usual in (("One training", cells, 3), ("Together", together, 1)):
        print(f"## {title}, QGPO at every scale\n")
        print(at_every_scale(agents, data, usual))
    print("## Each ensemble\n")
    print(each_ensemble(together, data))
    print("What a choice loses to the best scale, normalised points, halved and upper estimate:\n")
    print(losses_of_choices(together, data))
    print("## Three, ten and thirty minutes\n")
    print(by_time(found))
    print("## Halfcheetah medium-expert, with and without its row\n")
    print(with_and_without_row(cells, together))
    print("## CPU-seconds of training, bundled data\n")
    seconds: dict[tuple[str, str], list[float]] = {}
    for (label, d), of_label in cells.items():
        for cell in of_label if d.startswith("qgpo/") else []:
            key = label, cell["machine"]["processor"]
            seconds.setdefault(key, []).append(cell["training"]["cpu_seconds"])
    for (label, processor), found in sorted(seconds.items()):
        print(f"- {label}, {processor}: {np.mean(found):.0f}")


if __name__ == "__main__":
    main(tyro.cli(Args))
