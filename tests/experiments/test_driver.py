"""One driver for train.py, local workers and Ray: one layout, one clock, one lock."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from commands import Started, wait_until
from factory import STACKED, WHITENED, make_dataset, mapped, subprocess_environment
from gymnasium import spaces

from qgpo.agents.core.callbacks import SaveCheckpoint
from qgpo.experiments.driver import Run
from qgpo.experiments.folder import RunFolder, RunFolderError
from qgpo.experiments.plan import Cell
from qgpo.experiments.settings import Experiment
from qgpo.experiments.workers import run_cell
from qgpo.scripts import train

DATASET = "test/mapped-v0"
EXPERIMENT: Experiment = Experiment(
    dataset_id=DATASET,
    config=WHITENED,
    n_episodes=1,
    env_id="Pendulum-v1",
    guidance_scales=(0.0, 1.0),
    device="cpu",
    threads=1,
    checkpoint_every=4,
    progress_bar=False,
)


@pytest.fixture
def data(undrawn, short_pendulum) -> None:
    """A small dataset with Pendulum's spaces."""
    torques = spaces.Box(-2.0, 2.0, (1,), np.float32)
    mapped(make_dataset(action_space=torques), DATASET)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.usefixtures("data")
def test_train_and_benchmarks_write_the_same(capsys):
    train.main(train.Args(**vars(EXPERIMENT), run_dir=Path("train")))
    shown = capsys.readouterr().out
    assert "QGPO (laptop) on test/mapped-v0: 16 transitions in 4 episodes, to train" in shown
    cell = Cell(**vars(EXPERIMENT) | {"label": "a label"})
    assert run_cell(cell, Path("runs")) == read(Path("runs", cell.name, "evaluation.json"))
    for name in ("config.json", "evaluation.json"):
        ours, theirs = read(Path("train", name)), read(Path("runs", cell.name, name))
        assert ours.keys() == theirs.keys()
        assert (ours["label"], theirs["label"]) == ("QGPO", "a label")
        for part in ("preset", "overrides", "measured", "headline_scale", "dataset", "machine"):
            assert ours[part] == theirs[part]
    assert ours["evaluations"] == theirs["evaluations"]
    assert [e["guidance_scale"] for e in ours["evaluations"]] == [0.0, 1.0]
    assert ours["training"].keys() == theirs["training"].keys()
    assert ours["training"]["timesteps"] == 18
    assert ours["overrides"]["support_actions"] == WHITENED.support_actions
    assert "schedule" not in ours["overrides"]  # as in the preset
    train.main(train.parse(["--resume", f"runs/{cell.name}", "--n-episodes", "2"]))
    assert read(Path("runs", cell.name, "evaluation.json")) == theirs  # nothing is replaced
    [*_, last] = read(Path("runs", cell.name, "evaluation-2.json"))["evaluations"]
    assert len(last["returns"]) == 2


class StopIn(SaveCheckpoint):
    """Ctrl-C in the middle of a stage."""

    stage = "critic"

    def _on_step(self) -> bool:
        if self.model.stage == self.stage:
            self.model.training.interrupt()
        return super()._on_step()


@pytest.mark.usefixtures("data")
def test_the_clock_counts_every_session(monkeypatch, capsys):
    folder = RunFolder(Path("run"))
    with monkeypatch.context() as patch, folder.locked():
        patch.setattr("qgpo.experiments.driver.SaveCheckpoint", StopIn)
        with pytest.raises(KeyboardInterrupt, match="stopped in stage 'critic' at timestep 9"):
            Run(EXPERIMENT, folder).finish()
    first = read(folder.clock)
    assert list(first["stage_seconds"]) == ["whitening", "behavior", "support", "critic"]
    first["stage_seconds"]["behavior"] = {"wall": 100.0, "cpu": 50.0}
    folder.clock.write_text(json.dumps(first))
    with folder.locked():
        training = Run(EXPERIMENT, folder).finish()["training"]
    assert "continuing from timestep 9" in capsys.readouterr().out
    assert training["stage_seconds"]["behavior"] == {"wall": 100.0, "cpu": 50.0}
    assert list(training["stage_seconds"]) == [*first["stage_seconds"], "energy"]
    assert 100.0 < training["wall_seconds"] < 160.0
    assert "counted_from_timestep" not in training


@pytest.mark.usefixtures("data")
def test_what_a_run_cost_before_it_had_a_clock_is_not_guessed(monkeypatch):
    folder = RunFolder(Path("run"))
    with monkeypatch.context() as patch, folder.locked():
        patch.setattr("qgpo.experiments.driver.SaveCheckpoint", StopIn)
        with pytest.raises(KeyboardInterrupt):
            Run(EXPERIMENT, folder).finish()
    folder.clock.unlink()
    with folder.locked():
        training = Run(EXPERIMENT, folder).finish()["training"]
    assert training["counted_from_timestep"] == 9
    assert list(training["stage_seconds"]) == ["critic", "energy"]


@pytest.mark.usefixtures("data")
def test_a_tuned_scale_is_evaluated_beside_those_of_the_plan(monkeypatch):
    from qgpo.agents.guided.tuning import GuidanceTuning

    def tuned(agent, dataset, progress_bar):
        agent.configure_guidance(2.0)
        return GuidanceTuning((2.0,), np.array([[6.0, 8.0]]), np.array([[False, True]]))

    monkeypatch.setattr("qgpo.agents.guided.policy.GuidedPolicy.tune_guidance", tuned)
    cell = Cell(**vars(EXPERIMENT) | {"label": "tuned", "tune_guidance": True})
    result = run_cell(cell, Path("runs"))
    assert [e["guidance_scale"] for e in result["evaluations"]] == [0.0, 1.0, 2.0]
    assert result["guidance_tuning"]["best"] == 2.0
    assert result["headline_scale"] == 1.0  # chosen before anything was seen


@pytest.mark.usefixtures("data")
def test_the_verdict_is_shown_and_kept(capsys):
    changes = {"config": STACKED, "guidance_scales": (0.0,), "n_episodes": 1}
    train.main(train.Args(**{**vars(EXPERIMENT), **changes}, run_dir=Path("stacked")))
    verdict = read(Path("stacked", "evaluation.json"))["verdict"]
    assert set(verdict) == {"confirmed", "correlation", "standard_errors", "weights", "text"}
    assert set(verdict["weights"]) == {"returns", "implicit"}
    assert f"guidance: {verdict['text']}" in capsys.readouterr().out


def test_asking_whether_a_folder_is_locked_refuses_nobody():
    folder, stop, answers = RunFolder(Path("run")), threading.Event(), set()

    def ask() -> None:
        while not stop.is_set():
            answers.add(RunFolder(Path("run")).is_locked)

    asking = threading.Thread(target=ask)
    with folder.locked():
        assert RunFolder(Path("run")).is_locked
    asking.start()
    try:
        for _ in range(200):
            with folder.locked():
                pass
    finally:
        stop.set()
        asking.join()
    assert answers <= {True, False}
    assert not folder.is_locked


HOLD = """
import time
from pathlib import Path
from qgpo.experiments.folder import RunFolder

with RunFolder(Path("run")).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    script = tmp_path / "hold.py"
    script.write_text(HOLD)
    process = Started([str(script)], tmp_path, subprocess_environment())
    wait_until(lambda: process.printed()[0] == "held\n")
    folder = RunFolder(tmp_path / "run")
    assert folder.is_locked
    with pytest.raises(RunFolderError, match="another process is training"), folder.locked():
        pass
    (folder.path / ".checkpoint.zip.1.tmp").write_text("half")
    process.kill()
    process.wait()
    assert not folder.is_locked
    with folder.locked():
        assert [path.name for path in folder.path.iterdir()] == [".lock"]
