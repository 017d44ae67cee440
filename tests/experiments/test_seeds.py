"""Several seeds of one experiment: what is begun already, and the table."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from factory import make_dataset

from qgpo import BC
from qgpo.envs.play.scores import Evaluation
from qgpo.experiments import documents
from qgpo.experiments import seeds as seeds_module
from qgpo.experiments.benchmark import headline
from qgpo.experiments.documents import DocumentError
from qgpo.experiments.folder import RunFolder
from qgpo.experiments.plan import Cell
from qgpo.experiments.seeds import as_begun, at_once, check_seeds, summary

DATA = np.array([10.0, 20.0])


def document(seed, means, best=None):
    """Of a seed that was played at some scales, two episodes each."""
    played = [
        (
            scale,
            Evaluation("E-v0", [mean - 1.0, mean + 1.0], [5, 5], [0, 1], 0, mean, None, None, None),
        )
        for scale, mean in means.items()
    ]
    tuning = {} if best is None else {"guidance_tuning": {"best": best}}
    found = documents.evaluations_to_json(played)
    return {"measured": {"seed": seed}, "evaluations": found, **tuning}


def cells(line):
    return [cell for cell in line.split("  ") if cell.strip()]


def test_seeds_that_were_tuned_are_shown_at_their_own_scales():
    table = summary(
        [
            document(0, {0.0: 10, 1.0: 20, 2.0: 30}, 2.0),
            document(4, {0.0: 12, 1.0: 22, 0.5: 50}, 0.5),
        ],
        DATA,
    )
    rows = [[cell.strip() for cell in cells(line)] for line in table.splitlines()]
    assert rows[0][-2:] == ["seed 0", "seed 4"]
    assert rows[1] == ["data", "15"]
    assert [row[0] for row in rows[2:]] == ["w = 0 (imitation)", "w = 1 (guided)", "tuned", "w = 2"]
    assert [float(cell) for cell in rows[4][-2:]] == [30.0, 50.0]
    assert float(rows[4][1]) == 40.0
    assert rows[5] == ["w = 2", "w = 0.5"]


def test_the_line_of_a_seed_names_a_scale_that_is_not_the_configured_one():
    training = {"wall_seconds": 3.0, "cpu_seconds": 2.0}
    of = {**document(0, {0.0: 10.0, 2.0: 30.0}), "training": training, "headline_scale": 1.0}
    assert headline(of) == "w = 2 (guided): return 30; trained in 3 s (2 CPU)"
    assert headline({**of, "headline_scale": 0.0}) == "return 10; trained in 3 s (2 CPU)"
    assert headline({**of, "evaluations": []}) == "trained in 3 s (2 CPU)"


def test_without_evaluations_nothing_is_shown():
    assert summary([document(0, {})], DATA) == "1 seed: nothing was evaluated"


def test_what_is_no_choice_of_seeds_is_refused():
    for seeds, message in ((), "at least one"), ((1, 1), "different"), ((-1,), "seed=-1"):
        with pytest.raises(ValueError, match=message):
            check_seeds(seeds)


def test_a_run_that_was_begun_keeps_its_threads_and_needs_its_data(tmp_path):
    data = make_dataset()
    cell = Cell(
        agent="BC", preset="laptop", dataset_id=data.id, config=BC.presets["laptop"], threads=1
    )
    folder = RunFolder(tmp_path)
    assert as_begun(cell, folder, data.fingerprint) is cell
    agent = BC("laptop", device="cpu")
    agent.prepare(data)
    described = documents.describe(replace(cell, threads=2), agent, data)
    described["machine"]["threads"] = 2
    folder.config.write_text(json.dumps({**described, "args": {}}))
    assert as_begun(cell, folder, data.fingerprint).threads == 2
    with pytest.raises(DocumentError, match=r"was trained on other data than .*another --run-dir"):
        as_begun(cell, folder, "other")
    with pytest.raises(DocumentError, match="was made with seed = 0"):
        as_begun(replace(cell, seed=1), folder, data.fingerprint)


def test_cores_are_shared_by_threads(monkeypatch):
    monkeypatch.setattr(seeds_module, "available_cores", lambda: 4.0)
    assert [at_once(range(n), threads) for n, threads in ((2, 0), (9, 1), (9, 2), (9, 8))] == [
        2,
        4,
        2,
        1,
    ]
