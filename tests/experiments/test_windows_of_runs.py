"""History and chunk of a run: in its folder's name, its documents, and what it loads again."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from commands import QUICK, run
from factory import numbered_episodes, write_buffers

from qgpo import load_agent, load_dataset
from qgpo.envs.play.scores import summarize
from qgpo.envs.tasks.window import Window
from qgpo.experiments.driver import Run
from qgpo.experiments.settings import measured_of
from qgpo.scripts import train


def test_a_run_without_windows_is_described_as_before():
    assert measured_of({"dataset_id": "a/b-v0", "seed": 0, "history": 1, "chunk": 1}) == {
        "dataset": "a/b-v0",
        "seed": 0,
    }


def test_a_run_keeps_its_windows_and_is_resumed_with_them(tmp_path):
    write_buffers(numbered_episodes((9, 8), (True, False)), "test/numbered-v0")
    flags = ["--dataset-id", "test/numbered-v0", "--history", "2", "--chunk", "3"]
    folder = train.parse([*flags, "--agent", "BC"]).folder.path
    assert folder.name == "test-numbered-v0-BC-laptop-h2-c3-s0"
    small = ["--agent", "BC", "--config.steps", "5", "--n-episodes", "0", *QUICK]
    run("train", *flags, *small, cwd=tmp_path, data=tmp_path / "minari")
    agent = load_agent(folder / "checkpoint.zip", device="cpu")
    assert agent.window == Window(2, 3)
    assert agent.predict(np.zeros(2))[0].shape == (1,)
    document = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    recorded = load_dataset("test/numbered-v0").episode_returns
    assert document["dataset"]["episodes"] == len(recorded) == 2
    assert document["dataset"]["returns"] == pytest.approx(recorded)
    measured = json.loads((folder / "config.json").read_text(encoding="utf-8"))["measured"]
    assert (measured["history"], measured["chunk"]) == (2, 3)
    again = train.parse(["--resume", str(folder)])
    assert (again.history, again.chunk) == (2, 3)


def test_a_run_that_was_killed_before_its_first_checkpoint_goes_on_with_the_same_data(tmp_path):
    write_buffers(numbered_episodes((9, 8), (True, False)), "test/numbered-v0")
    flags = ["--dataset-id", "test/numbered-v0", "--run-dir", "run", "--agent", "BC", *QUICK]
    small = ["--config.steps", "5", "--n-episodes", "0"]
    run("train", *flags, *small, cwd=tmp_path, data=tmp_path / "minari")
    for name in ("checkpoint.zip", "evaluation.json"):
        (tmp_path / "run" / name).unlink()
    again = ["--resume", "run"]
    for others in (["--history", "3"], ["--chunk", "2"]):
        done = run("train", *again, *others, cwd=tmp_path, data=tmp_path / "minari", code=1)
        assert "was trained on other data than the present" in done.stderr
    run("train", *again, cwd=tmp_path, data=tmp_path / "minari")
    assert (tmp_path / "run" / "checkpoint.zip").exists()


def test_the_row_of_the_data_counts_recorded_episodes(capsys):
    """Not each of them once per step of a chunk, which would halve the interval."""
    write_buffers(numbered_episodes((9, 8), (True, False)), "test/numbered-v0")
    shown = []
    for several in ({}, {"history": 2, "chunk": 3}):
        data = load_dataset("test/numbered-v0", **several)
        played = summarize("test/v0", [1.0, 2.0], [], [], 0, None)
        Run.show(SimpleNamespace(dataset=data, evaluations=[(None, played)]))
        shown.append(capsys.readouterr().out)
    assert "data" in shown[0]
    assert shown[1] == shown[0]
