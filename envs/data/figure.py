"""A summary and a picture of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qgpo.envs.data.dataset import OfflineDataset, as_recorded
from qgpo.envs.text import compact, counted, readable, wrap
from qgpo.files import replacing

ACTION_BINS = 41
NEIGHBORS, PAIRS = 5_000, 1_000
"""states among which neighbors are searched, and pairs that are compared"""
BLUE, ORANGE, GRAY, GREEN = "#2b6cb0", "#dd6b20", "#718096", "#2f855a"
STYLE: Any = {
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.edgecolor": "none",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def action_shares(dataset: OfflineDataset, n_bins: int = ACTION_BINS) -> NDArray[np.float64]:
    """(A, bins) shares of each action dimension over equal parts of its range; rows sum to 1."""
    low, high = dataset.action_space.low, dataset.action_space.high
    counts = [
        np.histogram(np.clip(dataset.actions[:, j], a, b), bins=n_bins, range=(a, b))[0]
        for j, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True))
    ]
    return np.stack(counts) / len(dataset)


def action_differences(
    dataset: OfflineDataset,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Root mean square differences of actions, (K,) each: of neighboring states, of any two.

    The neighbor of a state is the nearest one of another episode among NEIGHBORS states, in
    standardised coordinates. Where neighbors act alike there is nothing to choose from.
    """
    rng = np.random.default_rng(0)
    rows = np.sort(rng.permutation(len(dataset))[:NEIGHBORS])
    states = _standardised(np.asarray(dataset.observations[rows], np.float64))
    low, high = dataset.action_space.low, dataset.action_space.high
    actions = 2.0 * (np.asarray(dataset.actions[rows], np.float64) - low) / (high - low) - 1.0
    episodes = np.searchsorted(dataset.episode_starts, rows, side="right")
    asked = rng.permutation(len(rows))[:PAIRS]
    squares = (states**2).sum(axis=1)
    distances = squares[asked][:, None] + squares - 2.0 * states[asked] @ states.T
    same = episodes[asked][:, None] == episodes
    if same.all():  # of a single episode, other rows of it
        same = asked[:, None] == np.arange(len(rows))
    nearest = np.where(same, np.inf, distances).argmin(axis=1)
    others = rng.permutation(asked)
    near, far = (
        np.sqrt(((actions[asked] - actions[other]) ** 2).mean(axis=1))
        for other in (nearest, others)
    )
    return near, far


def principal_components(dataset: OfflineDataset) -> tuple[NDArray[np.float64], float]:
    """States along two directions, (K, 2), and which part of the variance that is."""
    rows = np.sort(np.random.default_rng(0).permutation(len(dataset))[: 4 * NEIGHBORS])
    states = _standardised(np.asarray(dataset.observations[rows], np.float64))
    values, directions = np.linalg.eigh(states.T @ states)
    points = np.zeros((len(states), 2))
    found = states @ directions[:, ::-1][:, :2]
    points[:, : found.shape[1]] = found
    return points, float(values[::-1][:2].sum() / max(float(values.sum()), 1e-300))


def _standardised(states: NDArray[np.float64]) -> NDArray[np.float64]:
    """Zero mean and unit variance in each dimension; constant ones are 0."""
    away = states - states.mean(axis=0)
    deviation = away.std(axis=0)
    scaled: NDArray[np.float64] = away / np.where(deviation > 0.0, deviation, 1.0)
    return scaled


def summary(dataset: OfflineDataset) -> list[tuple[str, str]]:
    """The main properties of a dataset, as (name, value)."""
    first = dataset.first_readings
    returns, lengths = dataset.recorded_returns, dataset.episode_lengths[first]
    ends = dataset.ends
    inside = int((np.asarray(dataset.terminations) & ~dataset.last_steps).sum())
    if inside:
        ends += f"; {inside} terminations inside"
    rows = [
        ("environment", dataset.env_spec.id if dataset.env_spec else "not named"),
        ("behavior", str(dataset.details.get("algorithm") or "not named")),
        ("size", f"{len(dataset):,} transitions, {counted(len(first), 'episode')}"),
        ("spaces", f"observations {dataset.states.shape[1]}, actions {dataset.actions.shape[1]}"),
        ("return", _spread(returns)),
        ("length", _spread(lengths)),
        ("reward", _spread(dataset.rewards)),
        ("ends", ends),
        ("at a bound", f"{100 * _at_bounds(dataset):.1f} % of action values"),
    ]
    if dataset.reference is not None:
        score = float(dataset.reference.normalize(returns.mean()))
        rows.append(("score", f"{score:.1f} on average ({dataset.reference.source})"))
    if (said := as_recorded(dataset)) is not None:
        rows.append(("family", said))
    return rows


def draw_dataset(path: Path, dataset: OfflineDataset) -> None:
    """Draw a dataset, with its summary above.

    Returns, lengths, rewards, actions, how much the actions of neighboring states differ, and
    where the states lie.
    """
    figure = Figure(figsize=(11, 11), layout="constrained")
    with mpl.rc_context(STYLE):
        grid = figure.add_gridspec(4, 2, height_ratios=(0.72, 1.4, 1.4, 1.4))
        _write_summary(figure.add_subplot(grid[0, :]), dataset)
        _draw_returns(figure.add_subplot(grid[1, 0]), dataset)
        _draw_lengths(figure.add_subplot(grid[1, 1]), dataset)
        _draw_rewards(figure.add_subplot(grid[2, 0]), dataset)
        _draw_actions(figure.add_subplot(grid[2, 1]), dataset)
        _draw_spread(figure.add_subplot(grid[3, 0]), dataset)
        _draw_coverage(figure.add_subplot(grid[3, 1]), dataset)
        figure.suptitle(wrap(dataset.id, 80), fontsize=13, weight="bold")
        save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a picture in the format of the file's name, whole or not at all.

    A link there is replaced; what it points to stays.
    """
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=130)


def _write_summary(axis: Any, dataset: OfflineDataset) -> None:
    axis.axis("off")
    rows = summary(dataset)
    half = (len(rows) + 1) // 2
    for i, (name, value) in enumerate(rows):
        x, y = (0.0 if i < half else 0.5), 1.0 - (i % half) / half
        value = wrap(value if len(value) <= 52 else f"{value[:51]}…", 52)
        axis.text(x, y, name, color=GRAY, fontsize=9, va="top", transform=axis.transAxes)
        axis.text(x + 0.09, y, value, fontsize=9, va="top", transform=axis.transAxes)


def _draw_returns(axis: Any, dataset: OfflineDataset) -> None:
    returns = dataset.recorded_returns
    axis.hist(returns, bins=_bins(returns), color=BLUE, alpha=0.85)
    mean = float(returns.mean())
    axis.axvline(mean, color=ORANGE, lw=2, label=f"mean {readable(mean)}")
    if dataset.reference is not None and dataset.reference.maximum <= 1.5 * abs(returns.max()):
        maximum = dataset.reference.maximum
        axis.axvline(maximum, color=GREEN, lw=2, ls="--", label=f"score 100: {readable(maximum)}")
    axis.set(title="Return of an episode", ylabel="episodes")
    axis.legend()


def _draw_lengths(axis: Any, dataset: OfflineDataset) -> None:
    """Truncated episodes, many of them at the step limit, with terminated ones on top."""
    lengths = dataset.episode_lengths
    terminated = np.asarray(dataset.terminations)[dataset.last_steps]
    axis.hist(
        [lengths[~terminated], lengths[terminated]],
        bins=_bins(lengths),
        stacked=True,
        color=[GRAY, ORANGE],
        label=[f"cut from outside ({(~terminated).sum()})", f"terminated ({terminated.sum()})"],
    )
    axis.set(title="Steps of an episode", ylabel="episodes")
    axis.legend()


def _draw_rewards(axis: Any, dataset: OfflineDataset) -> None:
    rewards = np.asarray(dataset.rewards)
    axis.hist(rewards, bins=_bins(rewards), color=BLUE, alpha=0.85, log=True)
    axis.set(title="Reward of a step", ylabel="transitions (logarithmic)")


def _draw_actions(axis: Any, dataset: OfflineDataset) -> None:
    """One row per dimension, from its lower to its upper bound."""
    shares = action_shares(dataset)
    image = axis.imshow(
        100 * shares,
        aspect="auto",
        cmap="Blues",
        interpolation="nearest",
        extent=(-1, 1, len(shares) - 0.5, -0.5),
        norm=mpl.colors.PowerNorm(0.5),
    )
    axis.set_yticks(range(0, len(shares), max(1, len(shares) // 10)))
    axis.set_xticks([-1, 0, 1], ["low", "middle", "high"])
    axis.set(title="Actions, each within its bounds", ylabel="dimension")
    axis.grid(visible=False)
    axis.figure.colorbar(image, ax=axis, pad=0.01, label="% of transitions")


def _draw_spread(axis: Any, dataset: OfflineDataset) -> None:
    """Differences of actions in neighboring states, beside those in any two states."""
    near, far = action_differences(dataset)
    bins = np.linspace(0.0, max(float(far.max()), float(near.max()), 1e-6), 51)
    for differences, color, label in ((far, GRAY, "any two"), (near, BLUE, "neighbors")):
        middle = f"{label}, median {readable(float(np.median(differences)))}"
        axis.hist(differences, bins=bins, color=color, alpha=0.6, label=middle)
    axis.set(
        title="Difference of the actions in two states",
        xlabel="root mean square, bounds at -1 and 1",
        ylabel="pairs of states",
    )
    axis.legend()


def _draw_coverage(axis: Any, dataset: OfflineDataset) -> None:
    """States along their two principal components."""
    points, share = principal_components(dataset)
    image = axis.hexbin(*points.T, gridsize=45, bins="log", cmap="Blues", mincnt=1)
    axis.set(
        title=f"States, two directions with {100 * share:.0f} % of their variance",
        xticks=[],
        yticks=[],
    )
    axis.figure.colorbar(image, ax=axis, pad=0.01, label="states (logarithmic)")


def _bins(values: NDArray[Any]) -> NDArray[np.float64]:
    """60 equal parts of the range; around values that are all equal, a tenth to both sides."""
    low, high = float(values.min()), float(values.max())
    margin = 0.0 if high > low else max(1.0, 0.1 * abs(low))
    return np.linspace(low - margin, high + margin, 61)


def _at_bounds(dataset: OfflineDataset) -> float:
    low, high = dataset.action_space.low, dataset.action_space.high
    margin = 1e-3 * (high - low)
    actions = np.asarray(dataset.actions)
    return float(np.mean((actions <= low + margin) | (actions >= high - margin)))


def _spread(values: NDArray[Any]) -> str:
    reduced = (reduce(values) for reduce in (np.mean, np.min, np.median, np.max))
    mean, low, middle, high = (compact(float(value)) for value in reduced)
    return f"mean {mean}, {low} to {high}, median {middle}"
