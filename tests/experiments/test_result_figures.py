"""Pictures of results that are hard to draw: many agents, long names, few datasets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.experiments import report
from qgpo.experiments import result_figures as figures
from qgpo.experiments.results import Results, Run

MADE = {"versions": {"python": "3"}, "machine": {"device": "cpu"}}
LONG = "an-organisation/a-robot-with-many-joints/medium-expert-replay-with-a-long-name-v12"
STRANGE = ["QGPO with a long label, twice the steps, three trainings together", "$x_y$ of $", "_"]
DRAW = [
    figures.draw_scores, figures.draw_aggregate, figures.draw_improvement,
    figures.draw_profiles, figures.draw_time, figures.draw_scales,
]  # fmt: skip


def make_run(dataset: str, label: str, seed: int, returns: float, **changes: Any) -> Run:
    about: dict[str, Any] = {
        "dataset": dataset,
        "label": label,
        "seed": seed,
        "headline_scale": 1.0,
        "returns": {w: np.array([returns, returns + w]) for w in (0.0, 1.0)},
        "reference": ReferenceScores(0.0, 200.0, "by hand"),
        "data_returns": np.array([50.0]),
        "fingerprint": dataset,
        "wall_seconds": 100.0 + seed,
        "cpu_seconds": 90.0 + returns,
        "environment_steps": 0,
    }
    return Run(**{**about, **MADE, **changes})


def make_results(
    labels: list[str], datasets: list[str], missing: int = 0, **changes: Any
) -> Results:
    """Two seeds each; the first label lacks the last `missing` datasets, where it is the best."""
    runs = {}
    for i, label in enumerate(labels):
        for dataset in datasets[: len(datasets) - missing * (i == 0)]:
            for seed in range(2):
                run = make_run(dataset, label, seed, 100.0 - i + seed, **changes)
                runs[run.key] = run
    return Results(
        runs, [(d, label, seed) for d in datasets for label in labels for seed in (0, 1)]
    )


CASES = {
    "one of four sets": make_results(["few", "all", "other"], [f"a/b{i}-v0" for i in range(4)], 3),
    "many and long": make_results([*STRANGE, *(f"agent {i}" for i in range(14))], [LONG, "x" * 90]),
    "one of one": make_results(["QGPO"], [LONG]),
    "successes": make_results(
        ["QGPO", "BC"], ["a/task-v0", LONG], successes={w: np.array([True, w > 0]) for w in (0, 1)}
    ),
}


def cut_or_covered(figure: Any) -> list[str]:
    """Sides where something is beyond the border, and texts of legends that the title covers."""
    FigureCanvasAgg(figure).draw()
    renderer = figure.canvas.get_renderer()
    drawn, border = figure.get_tightbbox(renderer), figure.bbox_inches.padded(0.02)
    wrong = [] if border.contains(*drawn.min) else ["left or below"]
    wrong += [] if border.contains(*drawn.max) else ["right or above"]
    title = figure._suptitle.get_window_extent(renderer)
    legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes if axis.get_legend())]
    texts = [text for legend in legends for text in legend.get_texts()]
    covered = [text for text in texts if title.overlaps(text.get_window_extent(renderer))]
    return wrong + [text.get_text() for text in covered]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("draw", DRAW, ids=lambda draw: draw.__name__)
def test_no_text_is_cut_or_covered(case, draw, monkeypatch):
    monkeypatch.setattr(figures, "RESAMPLES", 8)
    monkeypatch.setattr("qgpo.experiments.results.RESAMPLES", 8)
    assert cut_or_covered(draw(CASES[case])) == []


def test_no_two_agents_look_the_same():
    looks = [figures.look(i) for i in range(200)]
    assert len({(color, str(marker)) for color, marker, _ in looks}) == 200
    assert len({(color, str(line)) for color, _, line in looks}) == 200


def test_an_agent_on_some_of_the_sets_comes_last_and_is_hollow():
    results = CASES["one of four sets"]
    assert results.labels[0] == "few"
    assert results.center("few")[1] > max(results.center(x)[1] for x in ("all", "other"))
    assert results.scored_labels == ["all", "other", "few"]
    assert [row[:2] for row in report.aggregate(results)][-1] == ["few", "1 of 4"]
    [axis] = figures.draw_time(results).axes
    centers = {x.get_label(): x for x in axis.collections if not x.get_label().startswith("_")}
    hollow = {name: len(x.get_facecolor()) == 0 for name, x in centers.items()}
    assert hollow == {"all": False, "other": False, "few (1 of 4 datasets)": True}


def test_a_set_without_reference_scores_makes_nobody_incomplete():
    runs = [make_run("a/b-v0", x, 0, 1.0) for x in ("BC", "IQL")]
    runs += [make_run("a/bare-v0", x, 0, 1.0, reference=None) for x in ("BC", "IQL")]
    results = Results({run.key: run for run in runs}, [run.key for run in runs])
    assert results.scored_datasets == ["a/b-v0"]
    assert all(map(results.is_complete, results.labels))
    assert [row[1] for row in report.aggregate(results)] == ["1 of 1", "1 of 1"]


def test_small_returns_keep_their_digits():
    runs = [make_run("a/maze-v0", "BC", seed, 0.495 + seed / 1000) for seed in range(2)]
    for run in runs:
        run.returns.update(dict.fromkeys(run.returns, run.returns[0.0]))
    results = Results({run.key: run for run in runs}, [run.key for run in runs])
    [[_, data, cell]] = report.headline(results)
    assert data == "50"
    assert cell.startswith("0.4955 ± 0.0007071 (")
    [[*_, interval, _]] = report.intervals(results)
    assert interval == "0.495 [0.495, 0.496]"
