"""A dataset in one picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from qgpo.envs.data.dataset import OfflineDataset
from qgpo.experiments.run_figure import BLUE, GRAY, GREEN, ORANGE

ACTION_BINS = 41


def episode_lengths(dataset: OfflineDataset) -> NDArray[np.int64]:
    """(E,) steps of each episode."""
    return np.diff(np.append(dataset.episode_starts, len(dataset)))


def action_shares(dataset: OfflineDataset, n_bins: int = ACTION_BINS) -> NDArray[np.float64]:
    """(A, bins) shares of each action dimension over equal parts of its range; rows sum to 1."""
    low, high = dataset.action_space.low, dataset.action_space.high
    rows: list[NDArray[np.float64]] = []
    for j in range(dataset.action_space.shape[0]):
        column = np.clip(dataset.actions[:, j], low[j], high[j])
        counts, _ = np.histogram(column, bins=n_bins, range=(float(low[j]), float(high[j])))
        rows.append(counts / counts.sum())
    return np.stack(rows)


def summary(dataset: OfflineDataset) -> list[tuple[str, str]]:
    """What a reader wants to know first, as (name, value)."""
    returns, lengths = dataset.episode_returns, episode_lengths(dataset)
    rows = [
        ("environment", dataset.env_spec.id if dataset.env_spec else "not named"),
        ("behavior", str(dataset.details.get("algorithm") or "not named")),
        ("size", f"{len(dataset):,} transitions, {dataset.n_episodes:,} episodes"),
        (
            "spaces",
            f"observations {dataset.observation_space.shape[0]}, "
            f"actions {dataset.action_space.shape[0]}",
        ),
        ("return", _spread(returns, "{:.1f}")),
        ("length", _spread(lengths, "{:.0f}")),
        ("reward", _spread(dataset.rewards, "{:.3g}")),
        (
            "ends",
            f"{int(np.sum(dataset.terminations))} terminated, "
            f"{int(np.sum(dataset.truncations))} truncated",
        ),
        ("at a bound", f"{100 * _at_bounds(dataset):.1f} % of action values"),
    ]
    if dataset.reference is not None:
        score = float(dataset.reference.normalize(returns.mean()))
        rows.append(("score", f"{score:.1f} on average ({dataset.reference.source})"))
    return rows


def draw_dataset(path: Path, dataset: OfflineDataset) -> None:
    """Returns, lengths, rewards and actions of a dataset, and its summary above them."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 8), layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=(0.72, 1.4, 1.4))
    _write_summary(figure.add_subplot(grid[0, :]), dataset)
    _draw_returns(figure.add_subplot(grid[1, 0]), dataset)
    _draw_lengths(figure.add_subplot(grid[1, 1]), dataset)
    _draw_rewards(figure.add_subplot(grid[2, 0]), dataset)
    _draw_actions(figure, figure.add_subplot(grid[2, 1]), dataset)
    figure.suptitle(dataset.id, fontsize=13, weight="bold")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _write_summary(axis: Any, dataset: OfflineDataset) -> None:
    axis.axis("off")
    rows = summary(dataset)
    half = (len(rows) + 1) // 2
    for i, (name, value) in enumerate(rows):
        x, y = (0.0 if i < half else 0.5), 1.0 - (i % half) / half
        axis.text(x, y, name, color=GRAY, fontsize=9, va="top", transform=axis.transAxes)
        axis.text(x + 0.09, y, _short(value), fontsize=9, va="top", transform=axis.transAxes)


def _draw_returns(axis: Any, dataset: OfflineDataset) -> None:
    returns = dataset.episode_returns
    axis.hist(returns, bins=_bins(returns), color=BLUE, alpha=0.85)
    mean = float(returns.mean())
    axis.axvline(mean, color=ORANGE, lw=2, label=f"mean {mean:.0f}")
    if dataset.reference is not None and dataset.reference.maximum <= 1.5 * abs(returns.max()):
        maximum = dataset.reference.maximum
        axis.axvline(maximum, color=GREEN, lw=2, ls="--", label=f"score 100: {maximum:.0f}")
    _finish(axis, "Return of an episode", "episodes")
    axis.legend(framealpha=0.8, edgecolor="none", fontsize=8)


def _draw_lengths(axis: Any, dataset: OfflineDataset) -> None:
    """Terminated episodes on top of those that were cut, which pile up at the limit."""
    lengths = episode_lengths(dataset)
    terminated = np.asarray(dataset.terminations)[dataset.last_steps]
    axis.hist(
        [lengths[~terminated], lengths[terminated]],
        bins=_bins(lengths),
        stacked=True,
        color=[GRAY, ORANGE],
        label=[f"cut from outside ({(~terminated).sum()})", f"terminated ({terminated.sum()})"],
    )
    _finish(axis, "Steps of an episode", "episodes")
    axis.legend(framealpha=0.8, edgecolor="none", fontsize=8)


def _draw_rewards(axis: Any, dataset: OfflineDataset) -> None:
    rewards = np.asarray(dataset.rewards)
    axis.hist(rewards, bins=_bins(rewards), color=BLUE, alpha=0.85)
    axis.set_yscale("log")
    _finish(axis, "Reward of a step", "transitions (logarithmic)")


def _draw_actions(figure: Any, axis: Any, dataset: OfflineDataset) -> None:
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
    _finish(axis, "Actions, each within its bounds", "dimension")
    axis.grid(visible=False)
    bar = figure.colorbar(image, ax=axis, pad=0.01)
    bar.set_label("% of transitions", fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _finish(axis: Any, title: str, ylabel: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_ylabel(ylabel, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _bins(values: NDArray[Any]) -> NDArray[np.float64]:
    """60 equal parts of the range, which has a tenth to both sides of values that are all equal."""
    low, high = float(values.min()), float(values.max())
    margin = 0.0 if high > low else max(1.0, 0.1 * abs(low))
    return np.linspace(low - margin, high + margin, 61)


def _at_bounds(dataset: OfflineDataset) -> float:
    low, high = dataset.action_space.low, dataset.action_space.high
    margin = 1e-3 * (high - low)
    actions = np.asarray(dataset.actions)
    return float(np.mean((actions <= low + margin) | (actions >= high - margin)))


def _spread(values: NDArray[Any], form: str) -> str:
    parts: Iterable[float] = (values.mean(), values.min(), np.median(values), values.max())
    mean, low, middle, high = (form.format(float(v)) for v in parts)
    return f"mean {mean}, min {low}, median {middle}, max {high}"


def _short(text: str) -> str:
    return text if len(text) <= 72 else f"{text[:71]}…"
