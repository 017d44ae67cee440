"""A summary and a picture of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.text import readable, wrap
from qgpo.files import replacing

ACTION_BINS = 41
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


def summary(dataset: OfflineDataset) -> list[tuple[str, str]]:
    """The main properties of a dataset, as (name, value)."""
    returns, lengths = dataset.episode_returns, dataset.episode_lengths
    ends = f"{dataset.terminations.sum()} terminated, {dataset.truncations.sum()} truncated"
    inside = int((np.asarray(dataset.terminations) & ~dataset.last_steps).sum())
    if inside:
        ends += f"; {inside} of the former inside"
    rows = [
        ("environment", dataset.env_spec.id if dataset.env_spec else "not named"),
        ("behavior", str(dataset.details.get("algorithm") or "not named")),
        ("size", f"{len(dataset):,} transitions, {dataset.n_episodes:,} episodes"),
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
    return rows


def draw_dataset(path: Path, dataset: OfflineDataset) -> None:
    """Draw returns, lengths, rewards and actions of a dataset, with its summary above them."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    with mpl.rc_context(STYLE):
        grid = figure.add_gridspec(3, 2, height_ratios=(0.72, 1.4, 1.4))
        _write_summary(figure.add_subplot(grid[0, :]), dataset)
        _draw_returns(figure.add_subplot(grid[1, 0]), dataset)
        _draw_lengths(figure.add_subplot(grid[1, 1]), dataset)
        _draw_rewards(figure.add_subplot(grid[2, 0]), dataset)
        _draw_actions(figure.add_subplot(grid[2, 1]), dataset)
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
    returns = dataset.episode_returns
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
    mean, low, middle, high = (readable(float(value)) for value in reduced)
    return f"mean {mean}, min {low}, median {middle}, max {high}"
