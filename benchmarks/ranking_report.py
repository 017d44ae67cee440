"""What the numbers of ranking.py say: estimates over states and groups of them, and a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgpo.experiments.ranking import gains_over_mean, mean_of, rank, shares_beaten

Document = dict[str, Any]
Array = NDArray[np.float64]
POLICY, BEHAVIOR = "policy", "behavior"
"""whose episodes states are of, and who plays on after an action"""
TITLES = {
    "correlation": "correlation within states",
    "spearman": "  of ranks",
    "reliability": "  reliability of the returns",
    "corrected": "  corrected for attenuation",
    "slope": "slope within states",
    "chosen": "gain of choosing by Q",
    "perfect": "  of a perfect choice, by halves",
    "perfect_above": "  the same, too high by noise",
    "share": "  share of the perfect gain",
    "behavior_mean": "gain of the behavior's mean action",
    "guided_mean": "gain of the guided mean action",
    "guided_samples": "gain of guided samples",
    "guided_beats": "actions that the guided mean beats",
}
"""of the estimates; gains are over the mean of the behavior's actions"""


def summarize(document: Document) -> Document:
    """Estimates by who plays on, over all states and over groups of them.

    They are made from the raw numbers of a measured run, so that a run that was measured before an
    estimate was thought of has it, too.
    """
    density = document["density"]
    groups = groups_of(document["states"], None if density is None else np.asarray(density))
    q, parts = _values(document)
    found: Document = {name: {} for name in document["returns"]}
    for group, rows in groups:
        for name, returns in document["returns"].items():
            if rows.any():
                found[name][group] = estimates(q[rows], np.asarray(returns)[rows], parts)
    return found


def of_all_states(document: Document, follow: str) -> Document:
    """The estimates over all states alone."""
    q, parts = _values(document)
    return estimates(q, np.asarray(document["returns"][follow]), parts)


def _values(document: Document) -> tuple[Array, dict[str, slice]]:
    """Q (S, K) in units of returns; what the K actions are."""
    parts = {name: slice(*ends) for name, ends in document["parts"].items()}
    return np.asarray(document["values"]) / document["unit"]["scale"], parts


def estimates(q: Array, played: Array, parts: Mapping[str, slice]) -> Document:
    """Everything about some states: values (S, K) in units of returns, returns (S, K, R)."""
    support = parts["support"]
    found = dataclasses.asdict(rank(q[:, support], played[:, support]))
    for name in ("behavior_mean", "guided_mean", "guided_samples"):
        gains = gains_over_mean(played[:, parts[name]], played[:, support])
        found[name] = dataclasses.asdict(mean_of(gains))
    beaten = shares_beaten(played[:, parts["guided_mean"]], played[:, support])
    found["guided_beats"] = dataclasses.asdict(mean_of(beaten))
    return found


def groups_of(
    states: Sequence[Document], density: Array | None
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Names and masks (S,): all, by source, third of the episode, and distance from the data."""
    yield "all", np.ones(len(states), bool)
    sources = np.array([state["source"] for state in states])
    for source in (BEHAVIOR, POLICY):
        yield f"episodes of the {source}", sources == source
    thirds = np.array([3 * state["step"] // state["length"] for state in states])
    for i, name in enumerate(("first", "second", "last")):
        yield f"{name} third of the episode", thirds == i
    if density is not None:
        yield "as dense as the data's median", density <= 1.0
        yield "up to twice as far from the data", (density > 1.0) & (density <= 2.0)
        yield "farther from the data", density > 2.0


def as_text(document: Document) -> str:
    """A table of one run."""
    settings, ranking = document["settings"], summarize(document)
    lines = [
        f"{document['label']}, seed {document['seed']}, from {document['run']} in "
        f"{document['environment']}",
        f"{len(document['states'])} states, {settings['actions']} actions, "
        f"{settings['repetitions']} x {settings['horizon']} steps from each, "
        f"{document['seconds']['wall']:.0f} s",
        f"{'':36s}" + "".join(f"{'then the ' + name:>26s}" for name in ranking),
    ]
    for name, title in TITLES.items():
        cells = "".join(f"{cell(groups['all'][name]):>26s}" for groups in ranking.values())
        lines.append(f"{title:36s}{cells}")
    lines.append(
        f"{'then the policy: states':36s}{'correlation':>26s}{'gain of choosing by Q':>26s}"
    )
    for group, of in ranking[POLICY].items():
        if group != "all":
            title = f"  {group}: {of['chosen']['states']}"
            lines.append(f"{title:36s}{cell(of['correlation']):>26s}{cell(of['chosen']):>26s}")
    return "\n".join(lines)


def cell(estimate: Document) -> str:
    """A value with its interval."""
    value, interval = estimate["value"], estimate["interval"]
    if value is None:
        return "-"
    if interval is None:
        return f"{value:.3g}"
    return f"{value:.3g} [{interval[0]:.3g}, {interval[1]:.3g}]"
