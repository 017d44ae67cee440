from __future__ import annotations

import csv
import dataclasses
import importlib
import inspect
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from commands import (
    DATASET,
    QUICK,
    SCRIPTS,
    STEPS,
    TINY,
    Started,
    arguments,
    resting,
    run,
    wait_until,
)
from factory import ROOT, WHITENED, same_parameters, subprocess_environment

from qgpo import QGPO, load_agent, load_dataset
from qgpo.agents.guided.tuning import GuidanceTuning
from qgpo.envs.rollouts.collecting import collect
from qgpo.envs.rollouts.sb3_policies import load_policy
from qgpo.envs.store.writing import write_minari
from qgpo.experiments.folder import ContinuedCSV
from qgpo.scripts import evaluate, export, train


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory) -> Path:
    import torch
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("policy") / "pendulum.safetensors"
    weights = {
        "mlp_extractor.policy_net.0.weight": torch.eye(3),
        "mlp_extractor.policy_net.0.bias": torch.zeros(3),
        "action_net.weight": torch.tensor([[0.0, -1.0, -1.0]]),
        "action_net.bias": torch.zeros(1),
        "log_std": torch.full((1,), -1.0),
    }
    save_file(weights, path, metadata={"activation": "tanh"})
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory, snapshot) -> Path:
    """A local dataset folder with a few short episodes of Pendulum-v1."""
    folder = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        episodes = collect(
            "Pendulum-v1",
            lambda space: [load_policy(snapshot, space)],
            100,
            0,
            max_episode_steps=10,
            progress_bar=False,
        )
        write_minari(DATASET, episodes, "Pendulum-v1", "PPO", "tiny")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory, data) -> Path:
    """A run folder of a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    where = ["--dataset-id", DATASET, "--run-dir", str(folder), "--n-episodes", "2"]
    done = run("train", *where, *QUICK, *TINY, cwd=folder.parent, data=data, anew=True)
    assert "w = 0 (imitation)" in done.stdout
    assert "w = 1 (guided)" in done.stdout
    assert "data  " in done.stdout
    assert [p.name for p in folder.parent.iterdir()] == ["run"]
    return folder


def test_training_fills_the_run_folder(finished):
    about = json.loads((finished / "config.json").read_text())
    assert about["args"]["dataset_id"] == about["dataset"]["id"] == DATASET
    assert about["args"]["config"]["behavior_steps"] == STEPS["behavior_steps"]
    with open(finished / "metrics.csv", newline="") as file:
        stages = {row["time/stage"] for row in csv.DictReader(file)}
    assert {"behavior", "critic", "energy"} <= stages
    assert list(finished.glob("events.out.tfevents.*"))
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert [e["guidance_scale"] for e in evaluation["evaluations"]] == [0.0, 1.0]
    assert [len(e["returns"]) for e in evaluation["evaluations"]] == [2, 2]
    assert (finished / "report.png").read_bytes().startswith(b"\x89PNG")
    agent = QGPO.load(finished / "checkpoint.zip", device="cpu")
    assert agent.num_timesteps == WHITENED.whitening_steps + sum(STEPS.values())
    assert agent.dataset_id == DATASET


def test_a_second_run_in_the_same_folder_is_refused(finished, data, tmp_path):
    before = (finished / "checkpoint.zip").read_bytes()
    where = ["--dataset-id", DATASET, "--run-dir", str(finished)]
    done = run("train", *where, *QUICK, *TINY, cwd=tmp_path, data=data, code=1)
    for choice in ("--resume", "--overwrite", "--run-dir"):
        assert choice in done.stderr
    assert (finished / "checkpoint.zip").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("train", ["--no-such-flag", "3"]),
        ("train", ["--config.no-such-flag", "3"]),
        ("train", ["--config.beta", "strong"]),
        ("collect", ["--no-such-flag", "3"]),
        ("evaluate", ["--run", "somewhere", "--no-such-flag", "3"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-2],
)
def test_unknown_flags_and_wrong_values_fail(name, flags, tmp_path, data):
    done = run(name, *flags, cwd=tmp_path, data=data, code=2)
    assert flags[-2].removeprefix("--") in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_unknown_preset_and_dataset_are_refused_in_one_line(tmp_path, data):
    done = run("train", "--preset", "huge", cwd=tmp_path, data=data, code=1)
    assert "laptop" in done.stderr
    absent = ["--dataset-id", "test/absent-v0", "--no-download"]
    done = run("train", *absent, *QUICK, cwd=tmp_path, data=data, code=1)
    assert DATASET in done.stderr
    assert not list(tmp_path.iterdir())


COMMANDS = ("data", "images", "share")  # scripts of several commands


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in COMMANDS])
def test_help_describes_every_field(name, tmp_path, data):
    done = run(name, "--help", cwd=tmp_path, data=data, COLUMNS="200")
    args = importlib.import_module(f"qgpo.scripts.{name}").Args
    fields = dataclasses.fields(args)
    described = " ".join(done.stdout.replace("│", " ").split())
    for field in fields:
        if field.name != "config":
            assert f"--{field.name.replace('_', '-')}" in described, field.name
    classes = [kind for kind in args.__mro__ if dataclasses.is_dataclass(kind)]
    source = "".join(map(inspect.getsource, classes))
    for field in fields:
        declared = source.split(f"\n    {field.name}: ")[1].split("\n", 1)[1]
        assert declared.lstrip().startswith('"""'), f"{field.name} has no help"
    assert not list(tmp_path.iterdir())


def test_help_of_training_describes_the_agents_settings(tmp_path, data):
    shown = run("train", "--help", cwd=tmp_path, data=data, COLUMNS="200").stdout
    for field in dataclasses.fields(WHITENED):
        assert f"--config.{field.name.replace('_', '-')}" in shown
    assert "inverse temperature" in shown
    paper = run("train", "--help", "--preset", "paper", cwd=tmp_path, data=data, COLUMNS="200")
    assert "600000" in paper.stdout
    assert "600000" not in shown


def test_tracking_offline_writes_a_folder(tmp_path, data):
    quick = [*TINY, "--config.behavior-steps", "5", "--config.critic-steps", "5"]
    where = ["--dataset-id", DATASET, "--run-dir", "run", "--n-episodes", "1", "--track"]
    run(
        "train",
        *where,
        *QUICK,
        *quick,
        cwd=tmp_path,
        data=data,
        WANDB_MODE="offline",
        WANDB_SILENT="true",
    )
    [sent] = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    for name in ("energy/loss", "return/w = 0 (imitation)", "return/w = 1 (guided)"):
        assert name.encode() in sent.read_bytes()
    assert (tmp_path / "run" / "report.png").exists()


def resting_after(step: int, *flags: str, cwd: Path, data: Path) -> Started:
    """A training that rests after that step."""
    environment = subprocess_environment(MINARI_DATASETS_PATH=str(data))
    process = Started(arguments("train", *flags)[1:], cwd, environment, rests_after=step)
    wait_until(lambda: resting(cwd))
    return process


def test_an_interrupted_run_resumes_to_the_same_parameters(finished, tmp_path, data):
    folder = tmp_path / "run"
    where = ["--dataset-id", DATASET, "--run-dir", str(folder), "--n-episodes", "0"]
    process = resting_after(25, *where, *QUICK, *TINY, cwd=tmp_path, data=data)
    os.kill(process.pid, signal.SIGINT)
    code = process.wait()
    _, errors = process.printed()
    assert code == 1, errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    interrupted = QGPO.load(folder / "checkpoint.zip", device="cpu")
    expected = QGPO.load(finished / "checkpoint.zip", device="cpu")
    assert interrupted.num_timesteps == 25 < expected.num_timesteps
    run("train", "--resume", str(folder), *QUICK, "--n-episodes", "0", cwd=tmp_path, data=data)
    resumed = QGPO.load(folder / "checkpoint.zip", device="cpu")
    assert resumed.num_timesteps == expected.num_timesteps
    assert same_parameters(resumed.get_parameters(), expected.get_parameters())
    assert (folder / "evaluation.json").exists()


def test_several_seeds_are_the_runs_of_each_seed(finished, tmp_path, data):
    flags = ["--dataset-id", DATASET, "--run-dir", "seeds", "--n-episodes", "2", *QUICK, *TINY]
    done = run("train", "--seeds", "0", "3", *flags, cwd=tmp_path, data=data)
    folders = {path.name[-2:]: path for path in (tmp_path / "seeds").iterdir() if path.is_dir()}
    assert folders.keys() == {"s0", "s3"}
    agents = {k: QGPO.load(path / "checkpoint.zip", device="cpu") for k, path in folders.items()}
    alone = QGPO.load(finished / "checkpoint.zip", device="cpu")
    assert same_parameters(agents["s0"].get_parameters(), alone.get_parameters())
    assert not same_parameters(agents["s3"].get_parameters(), alone.get_parameters())
    assert all((path / "report.png").exists() for path in folders.values())
    lines = done.stdout.splitlines()
    assert "seed 0      seed 3" in done.stdout
    evaluations = [json.loads((p / "evaluation.json").read_text()) for p in folders.values()]
    means = [one["evaluations"][1]["mean"] for one in evaluations]
    guided = next(line for line in lines if line.startswith("w = 1")).split()
    assert float(guided[4]) == pytest.approx(np.mean(means), rel=0.01)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seeds/*/checkpoint.zip")}
    (tmp_path / "seeds" / folders["s3"].name.replace("-s3", "-s5")).write_text("no folder")
    (folders["s0"] / "metrics.csv").write_bytes(b"\xff damaged")
    (folders["s3"] / "report.png").unlink()
    (tmp_path / "random.py").write_text("raise RuntimeError('of the user')")  # imported by nobody
    failing = run("train", "--seeds", "0", "5", "3", *flags, cwd=tmp_path, data=data, code=1)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert guided == next(x for x in failing.stdout.splitlines() if x.startswith("w = 1")).split()
    assert "1 of 3 seeds failed\nseed 5: " in failing.stderr
    assert f"picture seeds/{folders['s0'].name}/report.png could not be drawn" in failing.stderr
    assert "seed 5 failed: " in failing.stdout
    assert "interval" in failing.stdout
    assert (folders["s3"] / "report.png").exists()
    inside = ["--run-dir", f"seeds/{folders['s0'].name}"]
    refused = run("train", "--seeds", "7", *flags, *inside, cwd=tmp_path, data=data, code=1)
    assert "is the folder of a run; with --seeds" in refused.stderr
    other = [*flags, "--config.beta", "7"]
    refused = run("train", "--seeds", "0", "3", *other, cwd=tmp_path, data=data, code=1)
    assert "was made with beta = " in refused.stderr


def test_a_resumed_run_is_as_long_as_it_was(finished):
    with pytest.raises(SystemExit, match="--longer cannot change"):
        train.parse(["--resume", str(finished), "--longer", "2"])
    assert train.parse(["--resume", str(finished), "--longer", "1"]).longer == 1.0


def test_a_killed_run_resumes_with_all_its_settings_into_one_metrics_file(finished, tmp_path, data):
    settings = ["--n-episodes", "3", "--guidance-scales", "0.5", "--log-interval", "5"]
    folder = tmp_path / "run"
    where = ["--dataset-id", DATASET, "--checkpoint-every", "12", "--run-dir", str(folder)]
    # the last checkpoint is that of step 36, and metrics of step 38 are there
    process = resting_after(40, *where, *settings, *QUICK, *TINY, cwd=tmp_path, data=data)
    process.kill()
    process.wait()
    assert QGPO.load(folder / "checkpoint.zip", device="cpu").num_timesteps == 36
    done = run("train", "--resume", str(folder), "--n-episodes", "2", cwd=tmp_path, data=data)
    assert "w = 0.5 (guided)" in done.stdout
    evaluation = json.loads((folder / "evaluation.json").read_text())["evaluations"]
    assert [e["guidance_scale"] for e in evaluation] == [0.5]
    assert len(evaluation[0]["returns"]) == 2
    expected = QGPO.load(finished / "checkpoint.zip", device="cpu")
    resumed = QGPO.load(folder / "checkpoint.zip", device="cpu")
    assert same_parameters(resumed.get_parameters(), expected.get_parameters())
    assert sorted(p.name for p in folder.glob("metrics*")) == ["metrics.csv"]
    assert not list(folder.glob(".*.tmp"))
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    places = [(row["time/stage"], int(row["time/stage_steps"])) for row in rows]
    for name in ("behavior", "energy"):  # at least twenty rows, and one per step at most
        steps, total = [n for stage, n in places if stage == name], STEPS[f"{name}_steps"]
        every = max(1, total // 20)
        assert steps == list(range(every, total + 1, every))
    assert places.count(("whitening", WHITENED.whitening_steps)) == 1


def test_metrics_go_on_after_the_rows_that_the_checkpoint_knows(tmp_path):
    path = tmp_path / "metrics.csv"
    first = ContinuedCSV(path, {})
    for step in (10, 20, 30):
        row = {"time/stage": "a", "time/stage_steps": step, "a/loss": step / 2}
        first.write(row, dict.fromkeys(row, ()), step)
    first.close()
    with open(path, "a") as file:
        file.write('"a",4')  # a row that a kill cut off
    second = ContinuedCSV(path, {"a": 20})
    for step in (30, 40):
        row = {"time/stage": "a", "time/stage_steps": step, "a/loss": 0.0, "a/new": step}
        second.write(row, dict.fromkeys(row, ()), step)
    second.close()
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["time/stage_steps"]) for row in rows] == [10, 20, 30, 40]
    assert [row["a/loss"] for row in rows] == ["5.0", "10.0", "0.0", "0.0"]
    assert [row["a/new"] for row in rows] == ["", "", "30", "40"]


def test_resuming_nothing_is_refused(tmp_path, data):
    done = run("train", "--resume", "nowhere", cwd=tmp_path, data=data, code=1)
    assert "no run there" in done.stderr


@pytest.mark.parametrize("name", ["BC", "TD3BC", "ReBRAC", "IQL", "DiffusionQL", "FQL", "IFQL"])
def test_agents_without_guidance_train_from_the_command_line(name, tmp_path, data, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(data))
    where = ["--dataset-id", DATASET, "--run-dir", str(tmp_path / "run"), "--n-episodes", "2"]
    small = ["--config.hidden", "8", "--config.batch-size", "4", "--config.steps", "6"]
    train.main(train.parse(["--agent", name, *where, *QUICK, *small, "--log-interval", "3"]))
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert about["args"]["agent"] == name
    assert about["args"]["config"]["steps"] == 6
    (evaluation,) = json.loads((tmp_path / "run" / "evaluation.json").read_text())["evaluations"]
    assert evaluation["guidance_scale"] is None
    assert len(evaluation["returns"]) == 2
    assert (tmp_path / "run" / "report.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("qgpo.experiments.run_figure.draw_run", lambda *_: None)  # once is enough
    train.main(train.parse(["--resume", str(tmp_path / "run"), *QUICK]))
    assert load_agent(tmp_path / "run" / "checkpoint.zip", device="cpu").name == name


def test_a_run_is_distilled_evaluated_and_exported(finished, tmp_path, data, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(data))
    monkeypatch.setattr("qgpo.experiments.run_figure.draw_run", lambda *_: None)
    run_dir = str(tmp_path / "run")
    where = ["--dataset-id", DATASET, "--run-dir", run_dir, "--n-episodes", "2"]
    student = {"distillation-steps": "4", "student-hidden": "8", "answer-states": "50"}
    own = [word for name, value in student.items() for word in (f"--config.{name}", value)]
    agent = ["--agent", "OneStepPolicy", "--adopt", str(finished)]
    train.main(train.parse([*agent, *where, *QUICK, *TINY, *own]))
    assert "adopted from the QGPO" in capsys.readouterr().out
    (evaluation,) = json.loads((tmp_path / "run" / "evaluation.json").read_text())["evaluations"]
    assert evaluation["guidance_scale"] is None
    evaluate.main(evaluate.tyro.cli(evaluate.Args, args=["--run", run_dir, "--n-episodes", "2"]))
    assert "OneStepPolicy from" in capsys.readouterr().out
    export.main(export.Args((tmp_path / "run",)))
    assert "output action: tensor(float) of shape ['batch', 1]" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="a OneStepPolicy agent has no guidance_scale"):
        train.main(train.parse([*agent, *where, *QUICK, *TINY, "--guidance-scales", "0", "1"]))
    pictured = evaluate.Args((tmp_path / "run",), n_episodes=1, picture=True)
    with pytest.raises(SystemExit, match="expected one run of QGPO"):
        evaluate.main(pictured)


def test_a_tuned_scale_is_scored_and_kept(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(data))
    monkeypatch.setattr("qgpo.agents.guided.policy.GuidedPolicy.tune_guidance", tuned_to_2)
    where = ["--dataset-id", DATASET, "--run-dir", str(tmp_path / "run"), "--n-episodes", "1"]
    short = ["--config.behavior-steps", "5", "--config.energy-steps", "5", "--tune-guidance"]
    train.main(train.parse([*where, *QUICK, *TINY, *short]))
    assert "     2               7.0" in capsys.readouterr().out
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert [e["guidance_scale"] for e in written["evaluations"]] == [0.0, 1.0, 2.0]
    assert written["guidance_tuning"] == {
        "scales": [2.0],
        "returns": [7.0],
        "left_data": [0.5],
        "best": 2.0,
    }
    agent = QGPO.load(tmp_path / "run" / "checkpoint.zip", device="cpu")
    assert agent.guidance_scale == 2.0


def tuned_to_2(agent, dataset, progress_bar):
    agent.configure_guidance(2.0)
    return GuidanceTuning((2.0,), np.array([[6.0, 8.0]]), np.array([[False, True]]))


def test_collected_dataset_can_be_read(tmp_path, snapshot):
    flags = ["--env-id", "Pendulum-v1", "--policy", str(snapshot), "--dataset-id", "mine/p-v0"]
    flags += ["--n-steps", "100", "--max-episode-steps", "10", "--no-progress-bar"]
    done = run("collect", *flags, cwd=tmp_path, data=tmp_path / "minari")
    assert "mine/p-v0: 10 episodes, 100 steps" in done.stdout
    dataset = load_dataset("mine/p-v0", download=False)
    assert len(dataset) == 100
    assert dataset.env_spec.max_episode_steps == 10  # agents play as long, and are not compared
    assert dataset.reference is None  # with returns of 200 steps
    done = run("collect", *flags, cwd=tmp_path, data=tmp_path / "minari", code=1)
    assert "already exists" in done.stderr


@pytest.mark.parametrize("policy", ["nowhere.zip", str(ROOT / "pyproject.toml")])
def test_collecting_with_a_wrong_policy_is_refused(policy, tmp_path):
    flags = ["--env-id", "Pendulum-v1", "--policy", policy, "--dataset-id", "mine/p-v0"]
    done = run("collect", *flags, cwd=tmp_path, data=tmp_path / "minari", code=1)
    assert policy in done.stderr
    assert not (tmp_path / "minari" / "mine").exists()


def test_evaluation_of_a_run(finished, tmp_path, data):
    flags = ["--run", str(finished), "--guidance-scale", "0", "1", "--n-episodes", "2"]
    flags += ["--seed", "10000", "--output", "out.json", "--device", "cpu", "--no-progress-bar"]
    environment = {"OMP_WAIT_POLICY": "PASSIVE"}  # a thread that waits does not spin
    run("evaluate", *flags, "--threads", "2", cwd=tmp_path, data=data, anew=True, **environment)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["threads"] == 2
    found = written["evaluations"]
    trained = json.loads((finished / "evaluation.json").read_text())["evaluations"]
    assert [e["guidance_scale"] for e in found] == [0.0, 1.0]
    for one, other in zip(found, trained, strict=True):
        assert one["seeds"] == other["seeds"]
        assert one["returns"] == pytest.approx(other["returns"], rel=1e-4)
    done = run("evaluate", *flags, cwd=tmp_path, data=data, code=1)
    assert "exists" in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--run", "nowhere"], "does not exist"),
        (["--n-episodes", "0"], "n_episodes=0"),
        (["--solver", "leapfrog"], "ddim"),
        (["--solver", "euler"], "error: solver='euler' follows the straight flow"),
        (["--env-id", "HalfCheetah-v5"], "does not fit"),
        (["--env-id", "Nowhere-v0"], "cannot be made"),
    ],
)
def test_evaluation_refuses_wrong_requests_in_one_line(flags, message, finished, tmp_path, data):
    run_flag = [] if flags[0] == "--run" else ["--run", str(finished)]
    done = run("evaluate", *run_flag, *flags, cwd=tmp_path, data=data, code=1)
    assert message in done.stderr
    assert not list(tmp_path.iterdir())
