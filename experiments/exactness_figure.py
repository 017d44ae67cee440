"""A picture of how exact a trained agent's guidance is, state by state and over the noise level."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from qgpo.agents.guided.exactness import Exactness
from qgpo.envs.data.figure import BLUE, GRAY, ORANGE, STYLE, save


def draw_exactness(path: Path, title: str, found: Exactness) -> None:
    """Size and error of the guidance over t; distances of guided and of exact actions by state."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        over_time, by_state = figure.subplots(1, 2)
        times = found.times
        sizes = np.sqrt(found.sizes.mean(axis=0).clip(min=0.0))
        errors = np.sqrt(found.errors.mean(axis=0).clip(min=0.0))
        over_time.plot(times, sizes, color=GRAY, label="size of the exact guidance")
        over_time.plot(times, errors, color=BLUE, label="error of the agent's")
        over_time.set(xlabel="noise level t", ylabel=r"$\sigma_t\|\nabla f\|$, root mean square")
        over_time.set_title(f"guidance error {found.guidance_error.percent()}")
        over_time.set_ylim(bottom=0.0)
        over_time.legend()
        order = np.argsort(found.floors)
        states = np.arange(len(order))
        by_state.plot(states, found.floors[order], color=GRAY, label="two resampled sets")
        by_state.plot(
            states, found.distances[order], ".", color=ORANGE, label="guided to resampled actions"
        )
        by_state.set(xlabel="states, by the grey line", ylabel="sliced Wasserstein-2")
        by_state.set_title(f"distance {found.distance.times()} times that of two exact sets")
        by_state.set_ylim(bottom=0.0)
        by_state.legend()
        figure.suptitle(title, fontsize=10)
        save(figure, path)
