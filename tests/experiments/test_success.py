"""Success, from an episode to evaluation.json, packed tables, report and pictures."""

from __future__ import annotations

import copy
import json
import lzma
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from factory import make_dataset, mapped, numbered_episodes, write_buffers
from gymnasium import spaces
from matplotlib.figure import Figure

from qgpo.agents import BCConfig
from qgpo.envs.play.intervals import success_interval
from qgpo.envs.play.scores import summarize
from qgpo.envs.store.checking import check_dataset
from qgpo.envs.tasks import families
from qgpo.envs.tasks.families import Family
from qgpo.envs.tasks.specs import spec_to_json
from qgpo.experiments import documents, run_figure
from qgpo.experiments import result_figures as figures
from qgpo.experiments.measured_run import read_run
from qgpo.experiments.packing import (
    EPISODES,
    PROVENANCE,
    ResultError,
    pack,
    read_documents,
    write_document,
)
from qgpo.experiments.plan import Cell
from qgpo.experiments.report import write_report
from qgpo.experiments.results import Results
from qgpo.experiments.statistics import hierarchical_bootstrap, interval_of
from qgpo.experiments.workers import run_cell
from qgpo.scripts.benchmark import headline

TASK, OTHER = "test/task-v0", "test/other-v0"
EVEN = "qgpo-tests/Even-v0"


class Even(gym.Env):
    """One step, reward -1; success for even seeds."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.even = seed is not None and seed % 2 == 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), -1.0, True, False, {"success": self.even}


@pytest.fixture
def _even(monkeypatch):
    row = Family("even", environments=EVEN, scored=EVEN, success=True)
    monkeypatch.setattr(families, "FAMILIES", (row, *families.FAMILIES))
    gym.register(EVEN, entry_point=f"{__name__}:Even", max_episode_steps=9)
    yield
    gym.registry.pop(EVEN)


def document(
    label: str, seed: int, wins: dict[float | None, int], on: str = TASK, of: int = 10
) -> dict[str, Any]:
    """A cell's document: by scale, so many successes, of returns -5; or returns, for `OTHER`."""
    evaluations = []
    for scale, won in wins.items():
        flags = [i < won for i in range(of)] if on == TASK else None
        returns = [-5.0] * of if on == TASK else [float(won)] * of
        lists = {"returns": returns, "lengths": [9] * of, "seeds": [*range(of)]}
        evaluations.append({"guidance_scale": scale, **lists, "successes": flags})
    reference = None if on == TASK else {"minimum": 0.0, "maximum": 20.0, "source": "by hand"}
    return {
        "format_version": 2,
        "label": label,
        "measured": {"seed": seed},
        "headline_scale": None if None in wins else 1.0,
        "environment_steps": 0,
        "dataset": {"id": on, "fingerprint": on, "returns": [-90.0], "reference": reference},
        "versions": {"python": "3.11"},
        "machine": {"processor": "abacus", "cpus": 2, "device": "cpu", "threads": 1},
        "training": {"timesteps": 10, "wall_seconds": 100.0, "cpu_seconds": 90.0},
        "evaluation_seconds": 1.0,
        "evaluations": evaluations,
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    """On the task, BC never succeeds and QGPO in 5, 6 and 7 of 10; on the other, returns."""
    folder = tmp_path / "cells"
    for seed in range(3):
        written = {
            "BC": document("BC", seed, {None: 0}),
            "QGPO": document("QGPO", seed, {0.0: 1, 1.0: 5 + seed, 2.0: 8}),
            "BC-other": document("BC", seed, {None: 4}, OTHER),
        }
        for name, cell in written.items():
            write_document(folder, f"{name}-{seed}", cell)
    return folder


def test_a_run_s_numbers_are_percentages(folder):
    results = Results.read([folder])
    assert results.scored_by_success == [TASK]
    runs = results.of(TASK, "QGPO")
    assert [run.headline for run in runs] == [50.0, 60.0, 70.0]
    assert results.scores(TASK, "QGPO").tolist() == [50.0, 60.0, 70.0]
    assert results.scores(TASK, "BC").tolist() == [0.0] * 3
    assert results.scores(OTHER, "BC").tolist() == [20.0] * 3  # 4 of 20
    assert runs[0].outcomes[1.0].tolist() == [100.0] * 5 + [0.0] * 5
    assert runs[0].returns[1.0].tolist() == [-5.0] * 10
    assert results.best_scale(TASK, "QGPO") == 2.0
    assert np.isnan(results.data_mean(TASK))
    assert results.data_mean(OTHER) == -90.0
    [pair] = results.improvements
    assert (pair.first, pair.second, pair.probability) == ("BC", "QGPO", 0.0)


def test_an_interval_of_successes_contains_wilson_s():
    never = [[0.0] * 10] * 3
    assert hierarchical_bootstrap(never) == (0.0, 0.0)
    assert interval_of(never, by_success=False) == (0.0, 0.0)
    # z^2 / (n + z^2) of 30 episodes, with z^2 = 3.8415
    assert interval_of(never, by_success=True) == pytest.approx(
        (0.0, 100 * 3.8415 / 33.8415), abs=1e-3
    )
    # seeds that differ more than 20 episodes would explain
    apart = [[0.0] * 10, [100.0] * 10]
    assert interval_of(apart, by_success=True) == hierarchical_bootstrap(apart) == (0.0, 100.0)
    alike = [[0.0, 100.0] * 5] * 2
    low, high = interval_of(alike, by_success=True)
    least, most = success_interval([True, False] * 10)
    assert low <= least < most <= high


def test_results_that_are_scored_in_another_way_are_refused(folder):
    plain = document("other", 0, {None: 0})
    del plain["evaluations"][0]["successes"]
    write_document(folder, "zz", plain)
    with pytest.raises(ResultError, match=r"zz was scored by returns, .* by success: use separate"):
        Results.read([folder])


@pytest.mark.parametrize("flags", ["yes", [True], [1] * 10, [None] * 10, {"0": True}, 5])
def test_odd_successes_are_refused(flags):
    cell = document("odd", 0, {None: 3})
    cell["evaluations"][0]["successes"] = flags
    with pytest.raises(ResultError, match=r"odd.* is not a cell's result: successes"):
        read_run(cell, "odd")
    numbers = {"mean": 0.0, "interval": None, "score": None}
    with pytest.raises(ValueError, match="successes"):
        documents.evaluations_from_json([{**cell["evaluations"][0], **numbers}])


def test_successes_of_some_scales_alone_are_refused():
    cell = document("odd", 0, {1.0: 3, 2.0: 3})
    cell["evaluations"][1]["successes"] = None
    with pytest.raises(ResultError, match="successes None, expected a flag for each of 10"):
        read_run(cell, "odd")


def test_successes_are_packed_and_read_back(folder):
    before = read_documents(folder)
    pack(folder)
    assert json.dumps(read_documents(folder), sort_keys=True) == json.dumps(before, sort_keys=True)
    rows = lzma.decompress((folder / EPISODES).read_bytes()).decode().splitlines()
    assert rows[:2] == [
        "cell,guidance_scale,seed,return,length,success",
        "BC-0,null,0,-5.0,9,false",
    ]
    assert "BC-other-0,null,0,4.0,9," in rows
    assert rows.count("QGPO-1,1.0,5,-5.0,9,true") == 1  # the sixth of six
    tables = json.loads((folder / PROVENANCE).read_text())
    assert tables["format_version"] == 2
    assert "successes" not in tables["cells"]["BC-0"]["evaluations"][0]


def test_without_successes_tables_are_those_of_version_1(tmp_path):
    """Former versions of the package read them, and packing old folders changes no byte."""
    folder, former = tmp_path / "new", tmp_path / "former"
    cell = document("BC", 0, {None: 4}, OTHER)
    write_document(folder, "a", cell)
    without = copy.deepcopy(cell)
    del without["evaluations"][0]["successes"]
    write_document(former, "a", without)
    for place, expected in ((folder, cell), (former, without)):
        pack(place)
        assert read_documents(place) == {"a": expected}
        assert json.loads((place / PROVENANCE).read_text())["format_version"] == 1
    assert (folder / EPISODES).read_bytes() == (former / EPISODES).read_bytes()


@pytest.mark.parametrize(
    "change",
    [("success", "won"), ("true", "maybe"), ("true", ""), ("length,success", "success,length")],
)
def test_tables_with_other_columns_or_flags_are_refused(change, folder):
    pack(folder)
    path = folder / EPISODES
    text = lzma.decompress(path.read_bytes()).decode().replace(*change)
    path.write_bytes(lzma.compress(text.encode()))
    with pytest.raises(ResultError, match=r"episodes\.csv\.xz"):
        read_documents(folder)


def test_a_report_of_successes(folder):
    write_report(folder, Results.read([folder]), "By hand", progress_bar=False)
    text = (folder / "report.md").read_text()
    assert f"| `{TASK}` | success | 0.0 ± 0.0 % | 60.0 ± 10.0 % |" in text
    assert f"| `{OTHER}` | -90 | 4 ± 0 (20.0 ± 0.0) | missing |" in text
    assert "percentage of episodes that succeed" in text
    # 0 of 30 by Wilson, z^2 / (30 + z^2)
    assert f"| `{TASK}` | BC | 0.0 % [0.0, 11.4] | 3 |" in text
    [low, high] = re.findall(rf"\| `{TASK}` \| QGPO \| 60\.0 % \[([\d.]+), ([\d.]+)\]", text)[0]
    assert float(low) <= 42.3 < 75.4 <= float(high)  # 18 of 30 by Wilson
    assert f"| `{TASK}` | 0 % | 100 % | the percentage of episodes that succeed |" in text
    assert f"| `{TASK}` | QGPO | 60.0 ± 10.0 % (w = 1) | 80.0 ± 0.0 % (w = 2) |" in text
    assert "success rates, or normalised returns" in text
    page = (folder / "report.html").read_text()
    assert "60.0 ± 10.0 %" in page
    assert "0.0 % [0.0, 11.4]" in page


def test_a_report_without_successes_does_not_speak_of_them(tmp_path):
    write_document(tmp_path, "a", document("BC", 0, {None: 4}, OTHER))
    write_report(tmp_path, Results.read([tmp_path]), "By hand", progress_bar=False)
    assert "succe" not in (tmp_path / "report.md").read_text()


def test_pictures_of_successes(folder, monkeypatch):
    monkeypatch.setattr(figures, "RESAMPLES", 8)
    results = Results.read([folder])
    scores = figures.draw_scores(results)
    labels = {axis.get_title(): axis.get_xlabel() for axis in scores.axes}
    assert labels == {TASK: "success, %", OTHER: "mean return"}
    assert figures.draw_scales(results).axes[1].get_ylabel() == "success, %"
    assert figures.scores(results) == "normalised score or success, %"
    only = Results.read([folder], [key for key in results.expected if key[0] == TASK])
    assert figures.scores(only) == "success, %"


def test_the_picture_of_a_run(tmp_path, monkeypatch):
    drawn: list[Figure] = []
    monkeypatch.setattr(run_figure, "save", lambda figure, _: drawn.append(figure))
    played = summarize(EVEN, [-1.0] * 4, [1] * 4, [*range(4)], 0, None, [True] * 3 + [False])
    run_figure.draw_run(tmp_path / "a.png", "A run", {}, np.array([-90.0]), [("agent", played)])
    [axis] = drawn[0].axes
    assert [text.get_text() for text in axis.texts] == ["75.0 %"]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["agent"]
    line, bar = (list(line.get_xdata()) for line in axis.lines)
    assert line == list(success_interval([True] * 3 + [False]))
    assert bar == [75.0, 75.0]


@pytest.mark.usefixtures("_even")
def test_a_cell_from_training_to_the_report(capsys):
    """Seeds 10,001 to 10,005: two of five are even."""
    mapped(make_dataset(observation_dim=2), TASK)
    cell: Cell = Cell(
        dataset_id=TASK,
        agent="BC",
        label="BC",
        config=BCConfig(steps=2, batch_size=8, hidden=(8,)),
        seed=1,
        n_episodes=5,
        env_id=EVEN,
        device="cpu",
        progress_bar=False,
    )
    result = run_cell(cell, Path("runs"))
    expected = [False, True, False, True, False]
    [played] = result["evaluations"]
    assert (played["successes"], played["score"]) == (expected, 40.0)
    assert headline(result).startswith("success 40.0 % [11.8, 76.9]; trained in")
    shown = capsys.readouterr().out
    assert re.search(r"agent +40\.0 % \[11\.8, 76\.9\] +-1 +5\n", shown)
    assert "\ndata" not in shown
    [(_, restored)] = documents.evaluations_from_json(result["evaluations"])
    assert restored.success_text == "40.0 % [11.8, 76.9]"
    write_document(Path("results"), cell.name, result)
    pack(Path("results"))
    [run] = Results.read([Path("results")]).runs.values()
    assert run.successes[None].tolist() == expected
    assert run.score == 40.0
    again = run_cell(cell, Path("runs"))
    assert again == result


@pytest.mark.usefixtures("_even")
def test_a_dataset_s_check_says_that_success_counts():
    source = write_buffers(numbered_episodes((2,), (True,)), TASK)
    source.storage.update_metadata({"env_spec": spec_to_json(gym.spec(EVEN))})
    [finding] = [one for one in check_dataset(TASK).findings if one.what == "scores"]
    assert (finding.ok, finding.text) == (True, f"the percentage of successes in {EVEN}")
