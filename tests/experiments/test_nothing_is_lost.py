"""Whatever ends a run, its steps and its scores are kept, and nothing of it is replaced."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import shutil
import signal
import threading
import time
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from factory import WHITENED, make_dataset, mapped
from gymnasium import spaces
from stable_baselines3.common.logger import CSVOutputFormat, Logger
from tensorboard.summary.writer.record_writer import RecordWriter

from qgpo import QGPO, load_agent
from qgpo.agents.guided.tuning import GuidanceTuning
from qgpo.envs.play.scores import EvaluationError, summarize
from qgpo.experiments import driver, threads, workers
from qgpo.experiments.driver import Run
from qgpo.experiments.folder import ContinuedCSV, RunFolder
from qgpo.experiments.workers import run_locally, stop_at_end
from qgpo.scripts import evaluate, train

DATASET = "test/mapped-v0"
ARGS: train.Args = train.Args(
    dataset_id=DATASET,
    config=WHITENED,
    n_episodes=2,
    env_id="Pendulum-v1",
    device="cpu",
    threads=1,
    progress_bar=False,
    run_dir=Path("run"),
)
STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def played(value: float):
    return summarize("Pendulum-v1", [value, value + 1], [200, 200], [0, 1], 0, None)


def playing(*values):
    """In place of `evaluate_scales`: each value is a return, or what ends the evaluation."""

    def play(agent, env, n_episodes, scales, **settings):
        for scale, value in zip(scales, values, strict=False):
            if isinstance(value, BaseException):
                raise value
            if isinstance(value, signal.Signals):
                os.kill(os.getpid(), value)
                time.sleep(1.0)
            yield scale, played(value)

    return play


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> Path:
    """A folder with a small dataset with Pendulum's spaces."""
    folder = tmp_path_factory.mktemp("datasets") / "minari"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        mapped(make_dataset(action_space=spaces.Box(-2.0, 2.0, (1,), np.float32)), DATASET)
    return folder


@pytest.fixture(autouse=True)
def data(datasets, monkeypatch, undrawn) -> None:
    """A copy of that dataset; nobody plays in Pendulum, or draws (seconds)."""
    shutil.copytree(datasets, "minari")
    monkeypatch.setattr("qgpo.experiments.driver.evaluate_scales", playing(7.0, 8.0, 9.0))


@pytest.fixture(scope="module")
def trained(datasets, tmp_path_factory) -> Path:
    """A run folder whose training is finished and that nobody has evaluated."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(datasets))
        patch.setattr("qgpo.experiments.driver.evaluate_scales", playing(RuntimeError("later")))
        with pytest.raises(RuntimeError, match="later"):
            train.main(dataclasses.replace(ARGS, run_dir=root / "run"))
    return root / "run"


@pytest.fixture
def folder(trained) -> RunFolder:
    shutil.copytree(trained, "run")
    return RunFolder(Path("run"))


def resume(*more: str) -> None:
    train.main(train.parse(["--resume", "run", *more]))


def scores(path: Path) -> dict[float, list[float]]:
    return {e["guidance_scale"]: e["returns"] for e in json.loads(path.read_text())["evaluations"]}


# Scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [full, lambda *_: 1 / 0, lambda *_: [].pop()])
def test_a_picture_that_fails_loses_no_scores(error, folder, monkeypatch, capsys):
    monkeypatch.setattr("qgpo.experiments.run_figure.draw_run", error)
    with pytest.raises(SystemExit, match=r"error: picture run.report\.png could not be drawn"):
        resume()
    assert "w = 1 (guided)" in capsys.readouterr().out
    assert scores(folder.evaluation) == {0.0: [7.0, 8.0], 1.0: [8.0, 9.0]}


def test_scores_that_cannot_be_written_are_printed(folder, monkeypatch, capsys):
    monkeypatch.setattr("qgpo.experiments.documents.write_whole", full)
    with pytest.raises(SystemExit, match=r"run.evaluation\.json could not be written .*No space"):
        resume()
    assert "w = 1 (guided)            8.50" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ends", "kept"),
    [
        (EvaluationError("NaN in episode 3", played(5.0)), {0.0: [7.0, 8.0], 1.0: [5.0, 6.0]}),
        (EvaluationError("it raised"), {0.0: [7.0, 8.0]}),
        *((number, {0.0: [7.0, 8.0]}) for number in STOPS),
    ],
    ids=str,
)
def test_an_evaluation_that_ends_early_keeps_what_was_played(
    ends, kept, folder, monkeypatch, capsys
):
    monkeypatch.setattr("qgpo.experiments.driver.evaluate_scales", playing(7.0, ends))
    with pytest.raises(SystemExit) as caught:
        resume()
    assert caught.value.code not in (0, None)
    assert "w = 0 (imitation)         7.50" in capsys.readouterr().out
    assert scores(folder.unfinished) == kept
    assert not folder.evaluation.exists()
    monkeypatch.setattr("qgpo.experiments.driver.evaluate_scales", playing(7.0, 8.0))
    resume()
    assert scores(folder.evaluation) == {0.0: [7.0, 8.0], 1.0: [8.0, 9.0]}
    assert not folder.unfinished.exists()


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (BrokenPipeError(errno.EPIPE, "gone"), 8.0),
        (OSError(errno.EIO, "gone"), signal.SIGTERM),
        (ValueError("gone"), EvaluationError("it raised")),
    ],
    ids=str,
)
def test_scores_that_cannot_be_printed_are_written(error, ends, folder, monkeypatch):
    def gone(*_):
        raise error

    for module in ("qgpo.experiments.driver", "qgpo.scripts.evaluate"):
        monkeypatch.setattr(f"{module}.evaluate_scales", playing(7.0, ends))
        monkeypatch.setattr(f"{module}.score_table", gone)
    with pytest.raises((SystemExit, BrokenPipeError), match="gone"):
        resume()
    assert scores(folder.unfinished if ends != 8.0 else folder.evaluation)[0.0] == [7.0, 8.0]
    with pytest.raises((SystemExit, BrokenPipeError), match="gone"):
        play("--guidance-scale", "0", "2", "--output", "out.json")
    assert scores(Path("out.json"))[0.0] == [7.0, 8.0]


@pytest.mark.parametrize("where", ["score_table", "documents.evaluations_to_json"])
@pytest.mark.parametrize("number", STOPS)
def test_a_signal_at_the_end_of_an_evaluation_loses_nothing(where, number, folder, monkeypatch):
    for module in (driver, evaluate):
        original = attrgetter(where)(module)

        def impatient(*args, original=original):
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGINT)
            return original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(f"{module.__name__}.{where}", impatient)
            if module is driver:
                with pytest.raises(SystemExit, match="stopped"):
                    resume()
                continue
            patch.setattr(evaluate, "evaluate_scales", playing(7.0))
            with pytest.raises(SystemExit, match="stopped"):
                play("--output", "out.json")
    assert scores(folder.evaluation) == {0.0: [7.0, 8.0], 1.0: [8.0, 9.0]}
    assert scores(Path("out.json")) == {1.0: [7.0, 8.0]}


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.pop("evaluations"),
        lambda about: about["evaluations"][0].pop("guidance_scale"),
        lambda about: about.update(evaluations=[1]),
        lambda about: about["evaluations"][1].update(mean="much"),
        lambda about: about["evaluations"][1].update(interval=[1]),
        lambda about: about["evaluations"][1].update(returns=[10**400]),
        lambda about: about.update(training=[1]),
        lambda about: about.update(dataset=None),
    ],
)
def test_an_odd_evaluation_is_refused_before_anything_is_played(change, folder, monkeypatch):
    resume()
    about = json.loads(folder.evaluation.read_text())
    change(about)
    folder.evaluation.write_text(json.dumps(about))
    monkeypatch.setattr("qgpo.experiments.driver.evaluate_scales", lambda *_, **__: 1 / 0)
    with pytest.raises(
        SystemExit,
        match=r"run.evaluation\.json is not (the evaluation|a document) of a run.*move it away",
    ):
        resume()


@pytest.mark.parametrize("text", ["{", "{}", "", '{"evaluations": []}'])
def test_an_evaluation_that_appears_meanwhile_is_not_replaced(text, folder, monkeypatch):
    def meanwhile(*args, **settings):
        folder.evaluation.write_text(text)
        return playing(7.0, 8.0)(*args, **settings)

    monkeypatch.setattr("qgpo.experiments.driver.evaluate_scales", meanwhile)
    resume()
    if text in ("{", "{}"):
        assert folder.evaluation.read_text() == text
        assert scores(folder.path / "evaluation-2.json") == {0.0: [7.0, 8.0], 1.0: [8.0, 9.0]}
    else:
        assert scores(folder.evaluation) == {0.0: [7.0, 8.0], 1.0: [8.0, 9.0]}


def test_a_finished_run_keeps_its_evaluation(folder, monkeypatch, capsys):
    resume()
    first = folder.evaluation.read_bytes()
    monkeypatch.setattr("qgpo.experiments.driver.evaluate_scales", playing(1.0, 2.0))
    capsys.readouterr()
    resume()
    shown = capsys.readouterr().out
    assert "it is finished" in shown
    assert "w = 1 (guided)            8.50" in shown
    assert [path.name for path in folder.evaluations] == ["evaluation.json"]
    resume("--n-episodes", "3")
    resume("--no-deterministic")
    assert folder.evaluation.read_bytes() == first
    assert [path.name for path in folder.evaluations] == [
        "evaluation.json",
        "evaluation-2.json",
        "evaluation-3.json",
    ]
    resume("--n-episodes", "3")
    assert len(folder.evaluations) == 3


def test_a_tuned_scale_of_zero_leaves_the_configured_one(folder, monkeypatch):
    def tuned(agent, dataset, progress_bar):
        agent.configure_guidance(0.0)
        return GuidanceTuning(
            (0.0, 1.0), np.array([[6.0] * 2, [5.0] * 2]), np.zeros((2, 2), np.bool_)
        )

    monkeypatch.setattr("qgpo.agents.guided.policy.GuidedPolicy.tune_guidance", tuned)
    resume("--tune-guidance")
    assert list(scores(folder.evaluation)) == [0.0, 1.0]
    resume()  # the checkpoint has another scale now, and is of the same training


# Steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", STOPS)
def test_signals_while_the_last_checkpoint_is_written_lose_no_step(number, monkeypatch):
    save = QGPO.save

    def impatient(agent, path):
        if Path(path).name == "checkpoint.zip":
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGINT)
        save(agent, path)

    class Stop(Run):
        def train(self, verbose):
            self.agent.training.interrupted = False
            self.clock._on_step = lambda: os.kill(os.getpid(), number) or True
            super().train(verbose)

    monkeypatch.setattr(QGPO, "save", impatient)
    monkeypatch.setattr(train, "Run", Stop)
    with pytest.raises(SystemExit, match="stopped in stage 'whitening' at timestep 1"):
        train.main(ARGS)
    assert load_agent("run/checkpoint.zip", device="cpu").num_timesteps == 1


def test_metrics_that_cannot_be_written_leave_a_checkpoint(monkeypatch):
    monkeypatch.setattr(CSVOutputFormat, "write", full)
    with pytest.raises(SystemExit, match="metrics in run could not be written"):
        train.main(ARGS)
    assert load_agent("run/checkpoint.zip", device="cpu").num_timesteps == 1  # the first row's
    monkeypatch.undo()


def test_events_and_metrics_that_cannot_be_written_are_named_in_a_line(monkeypatch, capsys):
    write, calls = RecordWriter.write, itertools.count()

    def unwritten(*data):
        if next(calls) > 2:
            raise OSError(errno.EFBIG, "File too large", "events")
        write(*data)

    monkeypatch.setattr(RecordWriter, "write", unwritten)
    monkeypatch.setattr(ContinuedCSV, "close", full)
    with pytest.raises(SystemExit, match=r"metrics in run could not be written .*File too large"):
        train.main(ARGS)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("TensorBoard's events cannot be written: [Errno 27] File too large")
    assert said[-1] == "metrics in run are not complete: [Errno 28] No space left on device"
    assert len(said) == 2
    assert load_agent("run/checkpoint.zip", device="cpu").num_timesteps > 0


@pytest.mark.parametrize(
    ("change", "name"),
    [({"beta": 7.0}, "beta"), ({"critic_hidden": (16, 16)}, "critic_hidden"), ({}, "seed")],
)
def test_another_runs_checkpoint_is_not_gone_on_with(change, name, folder):
    config = dataclasses.replace(WHITENED, **change)
    other = QGPO(config, seed=0 if change else 5, device="cpu")
    other.learn(Run(ARGS, folder).dataset, lambda scope, _: False)
    other.save(folder.checkpoint)
    with pytest.raises(SystemExit, match=f"belongs to another training: it has {name} = "):
        resume()


@pytest.mark.parametrize("others", [True, False])
def test_a_training_whose_folder_is_removed_writes_nothing_there(others, monkeypatch):
    """Not even where another one has begun in it."""

    class Removed(Run):
        def train(self, verbose):
            shutil.rmtree("run")
            if others:
                with RunFolder(Path("run")).locked():
                    Path("run/checkpoint.zip").write_text("another's")
            super().train(verbose)

    monkeypatch.setattr(train, "Run", Removed)
    monkeypatch.setattr(RunFolder, "logger", lambda *_: Logger(None, []))
    with pytest.raises(SystemExit, match="error: run was removed or moved while"):
        train.main(dataclasses.replace(ARGS, checkpoint_every=2))
    left = [p.name for p in Path("run").iterdir()] if others else []
    assert sorted(left) == ([".lock", "checkpoint.zip"] if others else [])
    assert Path("run").exists() is others


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("[" * 100_000, "RecursionError|recursion"),
        ('{"stage_seconds": {"critic": {"wall": 1%s, "cpu": 1}}}' % ("0" * 400), "OverflowError"),
        ('{"stage_seconds": {"critic": {"wall": "1", "cpu": "1"}}}', "TypeError"),
        ("[]", "TypeError"),
        (None, "is not a file"),
    ],
)
def test_an_odd_clock_is_refused(text, refused, folder):
    folder.clock.unlink(missing_ok=True)
    if text is None:
        os.mkfifo(folder.clock)
    else:
        folder.clock.write_text(text)
    with pytest.raises(SystemExit, match=rf"run.clock\.json .*({refused}).*move it away"):
        resume()


# Before training ------------------------------------------------------------------------------


class Broken(gym.Env):
    """Pendulum's spaces, and an error where it says."""

    observation_space = spaces.Box(-8.0, 8.0, (3,), np.float32)
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, where: str = ""):
        self.where = where
        if where == "init":
            raise ZeroDivisionError("in init")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.where == "reset":
            raise AttributeError("in reset")
        return np.zeros(3, np.float32), {}

    def step(self, action):
        if self.where == "step":
            raise KeyError("in step")
        return np.zeros(3, np.float32), "much" if self.where == "reward" else 0.0, False, False, {}


@pytest.mark.parametrize("where", ["reset", "step", "reward"])
def test_an_environment_that_cannot_be_played_is_refused_before_training(where):
    gym.register("test/Broken-v0", lambda: Broken(where), max_episode_steps=5)
    try:
        with pytest.raises(SystemExit, match="error: environment 'test/Broken-v0' cannot be used"):
            train.main(dataclasses.replace(ARGS, env_id="test/Broken-v0"))
    finally:
        del gym.registry["test/Broken-v0"]
    assert not Path("run").exists()


@pytest.mark.parametrize("refused", ["save", "track", "disk"])
def test_what_would_be_refused_after_training_leaves_the_former_run(refused, folder, monkeypatch):
    import wandb

    resume()
    before = {p.name: p.read_bytes() for p in folder.path.iterdir() if p.is_file()}
    with monkeypatch.context() as patch:
        if refused == "save":
            patch.setattr(QGPO, "save", lambda *_: (_ for _ in ()).throw(TypeError("no JSON")))
        elif refused == "track":
            no_key = wandb.errors.UsageError("api_key not configured (no-tty)")
            patch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(no_key))
        else:
            patch.setattr("os.fsync", full)
        args = dataclasses.replace(ARGS, overwrite=True, track=refused == "track")
        with pytest.raises(SystemExit, match=r"no JSON|api_key|No space"):
            train.main(args)
        assert {p.name: p.read_bytes() for p in folder.path.iterdir() if p.is_file()} == before
        with pytest.raises(SystemExit, match=r"no JSON|api_key|No space"):
            train.main(dataclasses.replace(args, run_dir=Path("new"), overwrite=False))
    assert [p.name for p in Path("new").iterdir()] == [".lock"]
    train.refuse(dataclasses.replace(ARGS, run_dir=Path("new")))  # a retry is not refused


# evaluate.py ----------------------------------------------------------------------------------


def play(*argv: str) -> None:
    flags = ["--run", "run", "--env-id", "Pendulum-v1", "--device", "cpu", "--n-episodes", "2"]
    evaluate.main(evaluate.tyro.cli(evaluate.Args, args=[*flags, *argv]))


def test_evaluations_in_the_same_second_are_both_kept(folder, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate_scales", playing(7.0))
    monkeypatch.setattr("time.strftime", lambda *_: "20260101-120000")
    play()
    play("--seed", "3")
    names = sorted(p.name for p in folder.path.glob("evaluation-2*"))
    assert names == ["evaluation-20260101-120000-2.json", "evaluation-20260101-120000.json"]


def test_an_output_that_appears_meanwhile_is_not_replaced(folder, monkeypatch):
    def meanwhile(*args, **settings):
        Path("out.json").write_text("another's")
        return playing(7.0)(*args, **settings)

    monkeypatch.setattr(evaluate, "evaluate_scales", meanwhile)
    play("--output", "out.json")
    assert Path("out.json").read_text() == "another's"
    assert scores(Path("out-2.json")) == {1.0: [7.0, 8.0]}


@pytest.mark.parametrize("ends", [EvaluationError("NaN", played(5.0)), *STOPS], ids=str)
def test_evaluate_keeps_what_was_played(ends, folder, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "evaluate_scales", playing(7.0, ends))
    with pytest.raises(SystemExit) as caught:
        play("--guidance-scale", "0", "2", "--output", "out.json")
    assert caught.value.code not in (0, None)
    assert "w = 0 (imitation)" in capsys.readouterr().out
    assert scores(Path("out.json"))[0.0] == [7.0, 8.0]
    assert json.loads(Path("out.json").read_text())["unfinished"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--output", "file/out.json"],
        ["--video", "file/clip.gif"],
        ["--output", "run/checkpoint.zip", "--overwrite"],
        ["--output", "run/config.json", "--overwrite"],
        ["--output", "clip.gif", "--video", "clip.gif"],
        ["--video", "clip.gif"],
    ],
    ids=" ".join,
)
def test_evaluate_refuses_before_playing(flags, folder, monkeypatch):
    def undrawable(*_):
        raise RuntimeError("cannot be drawn")

    monkeypatch.setattr(evaluate, "choose_renderer", lambda: None)
    if flags == ["--video", "clip.gif"]:
        monkeypatch.setattr(evaluate, "check_drawable", undrawable)
    else:
        monkeypatch.setattr(evaluate, "check_drawable", lambda *_: None)
    monkeypatch.setattr(evaluate, "evaluate_scales", lambda *_, **__: 1 / 0)
    Path("file").write_text("no folder")
    before = folder.checkpoint.read_bytes()
    with pytest.raises(SystemExit, match="error: "):
        play(*flags)
    assert folder.checkpoint.read_bytes() == before


# Workers and threads --------------------------------------------------------------------------


def test_a_worker_stops_when_who_started_it_is_gone():
    reading, writing = os.pipe()
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        stop_at_end(reading)
        os.write(writing, b"still here")
        threading.Timer(0.05, lambda: os.close(writing)).start()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(20.0)
    finally:
        signal.signal(signal.SIGTERM, former)
        os.close(reading)


def test_a_cell_whose_folder_is_none_fails_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "log.txt")
    ended = []
    cells = [SimpleNamespace(name=name, donor=None) for name in ("file", "pipe")]
    run_locally(cells, tmp_path, 2, ended.append)
    assert {o.cell.name: o.error.split(":")[0] for o in ended} == {
        "file": "FileExistsError",
        "pipe": "RunFolderError",
    }
    assert (tmp_path / "file").read_text() == "mine"


def test_a_log_of_other_bytes_says_why(tmp_path):
    (tmp_path / "log.txt").write_bytes(b"caf\xe9 crashed\n")
    assert workers._reason(1, tmp_path / "log.txt").endswith(" crashed")


@pytest.mark.parametrize(
    ("ours", "cores", "busy", "said"),
    [(1, 2, 9.0, False), (2, 2, 0.5, False), (2, 2, 1.5, True), (4, 2, 0.0, True)],
)
def test_threads_that_would_wait_for_each_other_are_said(ours, cores, busy, said, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: ours)
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    monkeypatch.setattr(threads, "busy_cores", lambda: busy)
    assert ("--threads 1" in (threads.advice(0) or "")) is said


def test_a_containers_quota_counts(tmp_path):
    for text, cores in (("150000 100000", 1.5), ("max 100000", None), ("", None)):
        (tmp_path / "cpu.max").write_text(text)
        counted = threads.available_cores(tmp_path / "cpu.max")
        assert counted <= (cores or os.cpu_count())


def test_a_resumed_run_has_the_threads_that_it_began_with(folder):
    about = json.loads(folder.config.read_text())
    about["args"]["threads"] = 0
    about["machine"]["threads"] = 3
    folder.config.write_text(json.dumps(about))
    assert train.parse(["--resume", "run"]).threads == 3
    assert train.parse(["--resume", "run", "--threads", "1"]).threads == 1
