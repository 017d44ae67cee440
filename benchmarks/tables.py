"""Comparisons of agents, in Markdown, from the measured returns.

    python benchmarks/tables.py       # prints them; pages.py writes them into the pages

A number is the mean over agents and episodes. Brackets hold the 95 % bootstrap interval over both,
followed by the number of agents (trainings, or ensembles) if it is not the usual one. Verdicts
list the datasets on which QGPO's interval lies above those of the table's baselines, of all
baselines that took at most ten minutes of two cores (alone, together or trained longer), and of all
baselines; and those on which QGPO's mean is below the data's, or below that of its imitation
(w = 0), with the interval of the difference in the same episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import tyro
from measured import (
    BASELINES,
    DATASETS,
    LONGER,
    MINUTES,
    OURS,
    RIVALS,
    TEN_MINUTES,
    TUNED,
    Column,
    Group,
    Measurements,
    Scale,
    Source,
)

from qgpo.experiments.report import table
from qgpo.experiments.statistics import hierarchical_bootstrap

Choose = Callable[[str, str, Scale], Group]
"""the group of agents with that label, on that dataset, at that guidance scale"""

UNTOUCHED = 4
"""number of datasets, from the last, that no setting but the scale 0.25 was chosen on"""
SCALES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)
FIXED = (0.5, 1.0, 1.5, 2.0)
"""scales that were played everywhere"""
KINDS = (
    "is above this table's baselines",
    "is above all baselines within ten minutes",
    "is above all measured baselines",
    "is below the data",
    "is below its w = 0",
)
"""what is said of a column of QGPO on a dataset; above: its interval lies above the others'
intervals; below: its mean is below the other's mean"""
GROUPS = {
    "medium-expert": slice(0, 2),
    "medium": slice(2, 4),
    "mixed": slice(4, 6),
    "one policy": slice(-UNTOUCHED, None),
    "all": slice(None),
}
"""kinds of datasets, as parts of DATASETS"""
POWERS = {"0": "QGPO, uniform", "1": "QGPO, sparse", "2": "QGPO"}
"""labels of agents by sparsity_power on halfcheetah medium-expert"""
FELL, WEAKER = 2_000.0, 8_000.0
"""returns on halfcheetah medium-expert below which an episode fell or ran in the weaker gait"""


def short(dataset: str) -> str:
    """As a table's row is named."""
    return f"`{dataset.removesuffix('-v0')}`"


def entry(group: Group, usual: int) -> str:
    """Mean, interval, and how many agents where it is not the usual number."""
    if not group:
        return "-"
    low, high = group.interval
    number = "" if len(group) == usual else f", {len(group)}"
    return f"{group.mean:.0f} [{low:.0f}, {high:.0f}]{number}"


def comparison(
    measurements: Measurements, choose: Choose, columns: tuple[Column, ...], usual: int
) -> tuple[str, str]:
    """A row per dataset, a column per agent; and a table of what follows from it."""
    rows = []
    scores: dict[str, list[float]] = {name: [] for name in ("data", *(c[0] for c in columns))}
    ours = [name for name, label, _ in columns if label == "QGPO"]
    verdicts: dict[str, list[str]] = {f"{name} {verdict}": [] for name in ours for verdict in KINDS}
    for dataset, of_data in measurements.data.items():
        groups = {name: choose(label, dataset, scale) for name, label, scale in columns}
        rows.append([short(dataset), f"{of_data:.0f}"])
        rows[-1] += [entry(group, usual) for group in groups.values()]
        scores["data"].append(measurements.score(dataset, of_data))
        for name, label, _ in columns:
            if groups[name]:
                scores[name].append(measurements.score(dataset, groups[name].mean))
            complete = all(len(groups[baseline]) >= usual for baseline, _, _ in BASELINES)
            if label == "QGPO" and len(groups[name]) >= usual and complete:
                for verdict, where in judged(measurements, dataset, groups, name):
                    verdicts[f"{name} {verdict}"].append(where)
    for title, last in (("normalised mean", 0), ("normalised mean, last four", -UNTOUCHED)):
        complete_columns = [len(values) == len(measurements.data) for values in scores.values()]
        means = zip(scores.values(), complete_columns, strict=True)
        rows.append([title, *(f"{np.mean(v[last:]):.1f}" if c else "-" for v, c in means)])
    judgements = [[what, f"{len(where)}", ", ".join(where)] for what, where in verdicts.items()]
    return table(["", *scores], rows), table(["", "sets", "datasets"], judgements)


def judged(
    measurements: Measurements, dataset: str, groups: dict[str, Group], name: str
) -> list[tuple[str, str]]:
    """Verdicts on QGPO's column of that name for a dataset, each with the place to list."""
    group, imitation = groups[name], groups["QGPO, w = 0"]
    low, _ = group.interval
    uses = measurements.uses(dataset)
    highs = (
        [groups[baseline].interval[1] for baseline, _, _ in BASELINES],
        [use.group.interval[1] for use in uses if use.seconds <= TEN_MINUTES],
        [use.group.interval[1] for use in uses],
    )
    verdicts = [
        (kind, short(dataset)) for kind, of in zip(KINDS, highs, strict=False) if low > max(of)
    ]
    if group.mean < measurements.data[dataset]:
        verdicts.append((KINDS[3], short(dataset)))
    if group.mean < imitation.mean:
        differences = np.array(group.returns) - np.array(imitation.returns)
        low, high = hierarchical_bootstrap(list(differences))
        text = f"{differences.mean():.0f} [{low:.0f}, {high:.0f}]"
        verdicts.append((KINDS[4], f"{short(dataset)} ({text})"))
    return verdicts


def at_every_scale(measurements: Measurements, together: bool, usual: int) -> str:
    """QGPO's returns, a row per dataset."""
    rows = []
    for dataset in measurements.data:
        groups = [measurements.group(together, "QGPO", dataset, w) for w in SCALES]
        rows.append([short(dataset), *(entry(group, usual) for group in groups)])
    return table(["", *(f"w = {w:g}" for w in SCALES)], rows)


def each_ensemble(measurements: Measurements) -> str:
    """QGPO's mean returns and the scale that tuning chose, a row per ensemble."""
    rows = []
    for dataset in measurements.data:
        for agent in measurements.together.get(("QGPO", dataset), []):
            played = [agent.at(w) for w in SCALES]
            means = ["-" if returns is None else f"{returns.mean():.0f}" for returns in played]
            rows.append([short(dataset), agent.name, f"{agent.tuned:g}", *means])
    return table(["", "seeds", "chosen", *(f"w = {w:g}" for w in SCALES)], rows)


def losses_of_choices(measurements: Measurements) -> dict[str, str]:
    """Normalised points that a choice of scale loses, a row per dataset: both estimates, and each.

    The lower estimate is the halved loss.
    """
    choices: dict[str, Scale] = {"tuned": "tuned", **{f"w = {w:g}": w for w in FIXED}}
    names, lost = [], []
    for dataset in measurements.data:
        if agents := measurements.together.get(("QGPO", dataset)):
            names.append(short(dataset))
            by_choice = [[agent.losses(w) for agent in agents] for w in choices.values()]
            lost.append(np.mean(by_choice, axis=1))
    rows = [*zip(names, lost, strict=True), ("mean", np.mean(lost, axis=0))]
    texts = {
        "losses-of-choices": [[n, *(f"{low:.1f}, {up:.1f}" for up, low in x)] for n, x in rows],
        "losses-of-choices-upper": [[n, *(f"{up:.1f}" for up, _ in x)] for n, x in rows],
        "losses-of-choices-lower": [[n, *(f"{low:.1f}" for _, low in x)] for n, x in rows],
    }
    return {name: table(["", *choices], text) for name, text in texts.items()}


def by_time(measurements: Measurements) -> tuple[str, str]:
    """Three, ten and thirty minutes on the sets where all were measured; and the means alone."""
    columns = (*BASELINES, *((f"w = {w:g}", "QGPO", w) for w in (0.0, *FIXED)), *TUNED)
    rows = []
    names = [d for d in measurements.data if ("QGPO" + LONGER, d) in measurements.together]
    scores = np.full((len(names), len(MINUTES), len(columns)), np.nan)
    for i, dataset in enumerate(names):
        for j, minutes in enumerate(MINUTES):
            row = [f"{short(dataset)} ({measurements.data[dataset]:.0f})", f"{minutes}"]
            for k, (_, label, scale) in enumerate(columns):
                group = measurements.in_minutes(minutes, label, dataset, scale)
                row.append(entry(group, 3 if minutes == 3 else 1))
                if group:
                    scores[i, j, k] = measurements.score(dataset, group.mean)
            rows.append(row)
    means = []
    for minutes, mean in zip(MINUTES, scores.mean(axis=0), strict=True):
        texts = ["-" if np.isnan(x) else f"{x:.1f}" for x in mean]
        means.append([f"{minutes}", *texts])
        rows.append(["normalised mean", *means[-1]])
    titles = [name for name, _, _ in columns]
    first = "dataset (mean return in the data)"
    return table([first, "minutes", *titles], rows), table(["minutes", *titles], means)


def best_uses(measurements: Measurements) -> str:
    """Each baseline as it does best with ten minutes of two cores, a row per dataset."""
    rows = []
    for dataset in measurements.data:
        row = [short(dataset)]
        for baseline in RIVALS:
            use = measurements.best_use(baseline, dataset)
            if use is None:
                row.append("-")
                continue
            how = [f"n = {len(use.group)}", "three together" if use.together else ""]
            how.append(use.label.partition(", ")[2])
            row.append(f"{entry(use.group, len(use.group))} ({', '.join(filter(None, how))})")
        rows.append(row)
    return table(["", *RIVALS], rows)


def with_and_without_row(measurements: Measurements) -> str:
    """QGPO on halfcheetah medium-expert by sparsity_power, and how many episodes went wrong."""
    columns: tuple[Scale, ...] = (0.0, *FIXED, "tuned")
    rows = []
    for power, label in POWERS.items():
        alone = [measurements.group(False, label, DATASETS[0], w) for w in columns]
        three = [measurements.group(True, label, DATASETS[0], w) for w in columns]
        counts = []
        for group in three:
            returns = np.concatenate(group.returns)
            fell, below = int((returns < FELL).sum()), int((returns < WEAKER).sum())
            counts.append(f"{fell}, {below - fell} of {len(returns)}")
        rows += [
            [f"power {power}, {len(alone[0])} agents", *(entry(g, len(g)) for g in alone)],
            [f"power {power}, {len(three[0])} ensembles", *(entry(g, len(g)) for g in three)],
            [f"power {power}, fell, weaker gait", *counts],
        ]
    return table(["", "w = 0", *(f"w = {w:g}" for w in FIXED), "tuned"], rows)


def best_within_ten_minutes(measurements: Measurements) -> Choose:
    """Three QGPO together, and each baseline as it does best with that time."""

    def choose(label: str, dataset: str, scale: Scale) -> Group:
        if label == "QGPO":
            return measurements.group(True, label, dataset, scale)
        return measurements.best_group(label, dataset)

    return choose


def summary(
    measurements: Measurements,
    choose: Choose,
    columns: Sequence[Column] = (*BASELINES, *OURS[1:], *TUNED),
) -> str:
    """Normalised means of the agents, a row per kind of dataset."""
    scores = {"the data": [measurements.score(d, x) for d, x in measurements.data.items()]}
    for name, label, scale in columns:
        means = {d: choose(label, d, scale).mean for d in measurements.data}
        scores[name] = [measurements.score(d, x) for d, x in means.items()]
    rows = []
    for kind, part in GROUPS.items():
        number = len(scores["the data"][part])
        means = [f"{np.mean(of_agent[part]):.1f}" for of_agent in scores.values()]
        rows.append([f"{kind}, {number} sets", *means])
    return table(["", *scores], rows)


def seconds_of_training(measurements: Measurements) -> tuple[str, str]:
    """Mean CPU-seconds on the bundled data by agent and processor; and by agent on the fastest."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for (label, dataset), agents in measurements.alone.items():
        for agent in agents if dataset.startswith("qgpo/") else []:
            seconds.setdefault((label, agent.processor), []).append(agent.cpu_seconds)
    means = {key: np.mean(values) for key, values in sorted(seconds.items())}
    fastest: dict[str, float] = {}
    for (label, _), mean in means.items():
        fastest[label] = min(mean, fastest.get(label, mean))
    return (
        table(
            ["", "processor", "CPU-seconds"], [[*key, f"{mean:.0f}"] for key, mean in means.items()]
        ),
        table(["", "CPU-seconds"], [[label, f"{mean:.0f}"] for label, mean in fastest.items()]),
    )


def sections(measurements: Measurements) -> dict[str, str]:
    """All tables by their names."""
    best = best_within_ten_minutes(measurements)
    alone, together = partial(measurements.group, False), partial(measurements.group, True)
    made = {
        "one-training": comparison(measurements, alone, (*BASELINES, *OURS), 3),
        "three-together": comparison(measurements, together, (*BASELINES, *OURS, *TUNED), 1),
        "ten-minutes": comparison(measurements, best, (*BASELINES, *OURS, *TUNED), 0),
    }
    timed, means = by_time(measurements)
    seconds, fastest = seconds_of_training(measurements)
    return {
        **{name: compared for name, (compared, _) in made.items()},
        **{f"{name}-verdicts": verdicts for name, (_, verdicts) in made.items()},
        "ten-minutes-summary": summary(measurements, best),
        "best-uses": best_uses(measurements),
        "one-training-scales": at_every_scale(measurements, False, 3),
        "three-together-scales": at_every_scale(measurements, True, 1),
        "each-ensemble": each_ensemble(measurements),
        **losses_of_choices(measurements),
        "by-time": timed,
        "by-minutes": means,
        "with-and-without-row": with_and_without_row(measurements),
        "seconds": seconds,
        "seconds-by-agent": fastest,
    }


def main(source: Source) -> None:
    """Print."""
    for name, text in sections(Measurements(source)).items():
        print(f"## {name}\n\n{text}\n")


if __name__ == "__main__":
    main(tyro.cli(Source))
