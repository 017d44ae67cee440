"""Run folders and results of version 1 are read as today's (golden files of 28 November 2026)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from factory import ROOT

from qgpo import QGPOConfig
from qgpo.experiments import documents
from qgpo.experiments.benchmark import Benchmark
from qgpo.experiments.documents import DocumentError
from qgpo.experiments.folder import RunFolder
from qgpo.experiments.plan import read_plan
from qgpo.experiments.settings import as_json
from qgpo.experiments.workers import run_cell
from qgpo.scripts import evaluate, train

GOLDEN = ROOT / "tests" / "golden" / "version1-runs"
ON = "qgpo/halfcheetah/simple-v0"
FIRST, ADOPTING = (f"qgpo-halfcheetah-simple-v0-{name}-s0" for name in ("QGPO", "QGPO-MSE"))


def test_a_run_of_train_is_resumed_with_its_settings():
    args = train.parse(["--resume", str(GOLDEN / "train" / "qgpo-tuned")])
    assert (args.dataset_id, args.agent, args.preset, args.seed) == (ON, "QGPO", "laptop", 1)
    assert (args.tune_guidance, args.n_episodes, args.device) == (True, 2, "cpu")
    assert args.config == QGPOConfig(**vars(args.config))
    assert (args.config.behavior_hidden, args.config.energy_steps) == ((16,), 30)
    assert args.folder.path == GOLDEN / "train" / "qgpo-tuned"
    args = train.parse(["--resume", str(GOLDEN / "train" / "iql-finished"), "--n-episodes", "3"])
    assert (args.agent, args.config.steps, args.n_episodes) == ("IQL", 50, 3)
    args = train.parse(["--resume", str(GOLDEN / "cells" / ADOPTING)])
    assert (args.dataset_id, args.label, args.config.guidance) == (ON, "QGPO, MSE", "mse")


@pytest.mark.parametrize("run", ["train/qgpo-tuned", f"cells/{FIRST}"])
def test_evaluate_reads_what_the_run_was_trained_with(run):
    saved = evaluate.saved_args(RunFolder(GOLDEN / run))
    assert (saved["storage"], saved["env_id"]) == ("memory", None)


def test_documents_have_todays_layout():
    cell = documents.read(GOLDEN / "cells" / FIRST / "cell.json")
    config = documents.read(GOLDEN / "cells" / FIRST / "config.json")
    of_train = documents.read(GOLDEN / "train" / "qgpo-tuned" / "config.json")
    for document in (cell, config, of_train):
        assert document["format_version"] == documents.FORMAT_VERSION
        assert (document["label"], document["measured"]["dataset"]) == ("QGPO", ON)
        assert document["measured"]["config"].keys() == as_json(QGPOConfig()).keys()
    assert cell["measured"].keys() == of_train["measured"].keys()
    assert cell["measured"] == config["measured"]
    assert of_train["measured"]["tune_guidance"] is True
    assert of_train["dataset"]["family"] == "halfcheetah"


def test_finished_cells_are_finished_by_result_or_by_run_folder(tmp_path):
    cells = read_plan(GOLDEN / "plan.toml")
    standings = Benchmark(cells, tmp_path / "runs", GOLDEN / "results").standings()
    assert [s.state for s in standings] == ["finished"] * 3
    assert standings[0].seconds == pytest.approx(4.92 + 1.38, abs=3.0)
    shutil.copytree(GOLDEN / "cells", tmp_path / "cells")
    for cell in cells[:2]:  # nothing is trained: the dataset is not even here
        result = run_cell(cell, tmp_path / "cells")
        path = GOLDEN / "results" / f"{cell.name}.json"
        assert result["evaluations"] == json.loads(path.read_text())["evaluations"]
    assert result["training"]["adopted_from"] == "QGPO"
    [other, *_] = Benchmark(cells, GOLDEN / "cells", tmp_path / "results").standings()
    assert other.state == "new"  # by its config.json, without checkpoint


def test_another_training_and_a_later_version_are_refused(tmp_path):
    [cell, *_] = read_plan(GOLDEN / "plan.toml")
    path = tmp_path / f"{cell.name}.json"
    document = json.loads((GOLDEN / "results" / path.name).read_text())
    benchmark = Benchmark([cell], tmp_path / "runs", tmp_path)
    document["measured"]["config"]["beta"] = 2.0
    path.write_text(json.dumps(document))
    with pytest.raises(DocumentError, match=r"was made with beta = 2.0, this training has 1.0"):
        benchmark.standings()
    path.write_text(json.dumps({**document, "format_version": documents.FORMAT_VERSION + 1}))
    with pytest.raises(DocumentError, match="is newer than 2: update qgpo to read it"):
        benchmark.standings()


def test_what_is_no_document_is_named(tmp_path):
    for text in ("{", "[]", '{"measured": {"config": {}}}'):
        Path("some.json").write_text(text)
        with pytest.raises(DocumentError, match=r"some.json .* move it away"):
            documents.read(Path("some.json"))


def test_options_are_kept_where_a_version_is_not_said():
    """The cells of packed tables say none."""
    options = {"order": 2}
    config = vars(QGPOConfig(guidance="analytic", guidance_options=options))
    measured = {"agent": "QGPO", "config": config}
    upgraded = documents.upgrade({"measured": measured}, Path("cell"))["measured"]["config"]
    assert upgraded["guidance_options"] == options
