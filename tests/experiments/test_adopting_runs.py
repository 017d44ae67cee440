"""Runs and cells of a benchmark that train the last stage only."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from factory import WHITENED, make_dataset, mapped, same_parameters
from gymnasium import spaces
from ogbench_data import MADE, maze_rows, needs_ogbench, task_of, write_generated

from qgpo import load_agent
from qgpo.envs.store.opening import recorded_in
from qgpo.envs.tasks.making import register_package
from qgpo.experiments.benchmark import Benchmark
from qgpo.experiments.driver import Run
from qgpo.experiments.folder import RunFolder
from qgpo.experiments.plan import in_turn, read_plan
from qgpo.experiments.workers import run_cell
from qgpo.scripts import train

DATASET = "test/mapped-v0"
TORQUES = spaces.Box(-2.0, 2.0, (1,), np.float32)
SETTINGS = {k: v for k, v in dataclasses.asdict(WHITENED).items() if v is not None}


def as_toml(**changes):
    return json.dumps({**SETTINGS, **changes}).replace('": ', '" = ')


PLAN = f"""
datasets = ["{DATASET}"]
seeds = [0]
n_episodes = 1
env_id = "Pendulum-v1"

[[agents]]
label = "first"
agent = "QGPO"
overrides = {as_toml()}

[[agents]]
label = "second"
agent = "QGPO"
overrides = {as_toml(guidance="mse")}
adopt = "first"
"""
ALONE = f"""
[[agents]]
label = "alone"
agent = "QGPO"
overrides = {as_toml(guidance="mse")}
"""


@pytest.fixture
def plan(tmp_path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN + ALONE)
    return path


@pytest.fixture
def data(undrawn, short_pendulum) -> None:
    """A small dataset with Pendulum's spaces."""
    mapped(make_dataset(action_space=TORQUES), DATASET)


# Plans --------------------------------------------------------------------------------------


def test_cells_that_adopt_come_last_and_measure_the_same(plan):
    first, alone, second = in_turn(read_plan(plan))
    assert (first.label, alone.label, second.label) == ("first", "alone", "second")
    assert (first.donor, second.donor) == (None, first.name)
    assert second.measured == alone.measured
    assert [cell.label for cell in read_plan(plan)] == ["first", "second", "alone"]


# Cells --------------------------------------------------------------------------------------


def trained(cell, root=Path("runs")):
    return load_agent(RunFolder(root / cell.name).checkpoint, device="cpu")


def without_times(result):
    keys = ("measured", "evaluations", "dataset")
    return {k: result[k] for k in keys}, result["training"]["timesteps"]


@pytest.mark.usefixtures("data")
def test_a_cell_waits_for_its_donor_and_costs_what_both_took(plan, monkeypatch, capsys):
    first, alone, second = in_turn(read_plan(plan))
    root = Path("runs")
    lock = contextlib.ExitStack()
    lock.enter_context(RunFolder(root / first.name).locked())
    results = {}

    def finish_donor(seconds):
        assert not (root / second.name / "checkpoint.zip").exists()
        lock.close()
        results["first"] = run_cell(first, root)

    monkeypatch.setattr("qgpo.experiments.workers.time.sleep", finish_donor)
    result = run_cell(second, root)
    printed = capsys.readouterr().out
    assert printed.count(f"waiting for {first.name}") == 1
    assert "adopted from the QGPO in runs/" in printed
    assert "whitening, behavior, support, critic (14 of 18 steps)" in printed
    assert without_times(result) == without_times(run_cell(alone, root))
    assert same_parameters(trained(second).get_parameters(), trained(alone).get_parameters())
    ours, theirs = result["training"], results["first"]["training"]
    assert ours["adopted_from"] == "first"
    assert "adopted_from" not in theirs
    assert list(ours["stage_seconds"]) == ["whitening", "behavior", "support", "critic", "energy"]
    for stage in ("whitening", "behavior", "support", "critic"):
        assert ours["stage_seconds"][stage] == theirs["stage_seconds"][stage]
    for kind in ("wall", "cpu"):
        whole = sum(seconds[kind] for seconds in ours["stage_seconds"].values())
        assert ours[f"{kind}_seconds"] == pytest.approx(whole, abs=0.001)


@pytest.mark.usefixtures("data")
def test_an_adopting_cell_that_was_stopped_goes_on_without_its_donor(plan, monkeypatch):
    first, _, second = in_turn(read_plan(plan))
    run_cell(first, Path("runs"))
    with monkeypatch.context() as patch:
        patch.setattr("qgpo.experiments.driver.evaluate_scales", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_cell(second, Path("runs"))
    clock = json.loads(Path("runs", second.name, "clock.json").read_text())
    Path("runs", first.name).rename("elsewhere")
    training = run_cell(second, Path("runs"))["training"]
    assert training == {"timesteps": 18, **clock}
    assert training["adopted_from"] == "first"


@pytest.mark.usefixtures("data")
def test_a_cell_whose_donor_nobody_runs_trains_all_stages(plan, capsys):
    first, alone, second = in_turn(read_plan(plan))
    result = run_cell(second, Path("runs"))
    assert f"{first.name} is not running and has no finished agent" in capsys.readouterr().out
    assert "adopted_from" not in result["training"]
    assert without_times(result) == without_times(run_cell(alone, Path("runs")))


@pytest.mark.usefixtures("data")
def test_a_donor_without_its_checkpoint_is_none(plan, capsys):
    first, _, second = in_turn(read_plan(plan))
    run_cell(first, Path("runs"))
    Path("runs", first.name, "checkpoint.zip").unlink()
    assert "adopted_from" not in run_cell(second, Path("runs"))["training"]
    assert "has no finished agent" in capsys.readouterr().out


@pytest.mark.usefixtures("data")
def test_seconds_from_before_stages_were_told_apart_still_count(plan):
    first, *_ = read_plan(plan)
    run_cell(first, Path("runs"))
    clock = Path("runs", first.name, "clock.json")
    clock.write_text(json.dumps({"wall_seconds": 70.5, "cpu_seconds": 60.25}))
    Path("runs", first.name, "evaluation.json").unlink()
    training = run_cell(first, Path("runs"))["training"]
    assert (training["wall_seconds"], training["cpu_seconds"]) == (70.5, 60.25)
    assert training["stage_seconds"] == {"unknown": {"wall": 70.5, "cpu": 60.25}}


@pytest.mark.usefixtures("data")
def test_workers_start_a_cell_when_its_donor_has_ended(plan):
    plan.write_text(PLAN)
    first, second = cells = in_turn(read_plan(plan))
    benchmark = Benchmark(cells, Path("runs"), Path("results"))
    ended = []
    failed = benchmark.run(cells, lambda outcome: ended.append(outcome.cell.label), workers=2)
    assert failed == []
    assert ended == ["first", "second"]
    assert "waiting for" not in Path("runs", second.name, "log.txt").read_text()
    assert [s.state for s in benchmark.standings()] == ["finished", "finished"]
    took = benchmark.standings()[0].seconds
    third = dataclasses.replace(first, seed=1, donor_label="zeroth")
    left = Benchmark([first, third], Path("runs"), Path("results")).standings()[1]
    assert left.seconds == pytest.approx(took * 4 / 18)  # of 18 steps 14 are adopted


@pytest.mark.usefixtures("data")
def test_a_cell_with_another_critic_adopts_the_behavior_alone(plan, capsys):
    plan.write_text(PLAN.replace(as_toml(guidance="mse"), as_toml(critic="implicit")))
    first, second = in_turn(read_plan(plan))
    donor = run_cell(first, Path("runs"))
    estimated = dataclasses.replace(second, estimate_minutes=60.0)
    left = Benchmark([first, estimated], Path("runs"), Path("results")).standings()[1]
    assert left.seconds == pytest.approx(3600.0 * 10 / 18)  # of 18 steps 8 are adopted
    capsys.readouterr()
    result = run_cell(second, Path("runs"))
    assert "whitening, behavior (8 of 18 steps)" in capsys.readouterr().out
    alone = dataclasses.replace(second, label="alone", donor_label=None)
    assert without_times(result) == without_times(run_cell(alone, Path("others")))
    ours, theirs = (one["training"]["stage_seconds"] for one in (result, donor))
    assert list(ours) == ["whitening", "behavior", "support", "critic", "energy"]
    for stage in ("whitening", "behavior"):
        assert ours[stage] == theirs[stage]


TASKS = [task_of(MADE, task) for task in (1, 2)]
SHARED = f"""
datasets = {json.dumps(TASKS)}
seeds = [0]
n_episodes = 1

[[agents]]
agent = "QGPO"
overrides = {as_toml()}
adopt = "QGPO"
adopt_dataset = "{TASKS[1]}"

[[agents]]
label = "MSE"
agent = "QGPO"
overrides = {as_toml(guidance="mse")}
adopt = "QGPO"
"""


def test_tasks_of_one_set_of_trajectories_share_its_behavior(tmp_path, monkeypatch):
    needs_ogbench()
    for task in TASKS:
        register_package(recorded_in(task))
        monkeypatch.setattr(gym.spec(recorded_in(task)), "max_episode_steps", 3)
    write_generated(maze_rows([0, 1, 0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0]))
    path = tmp_path / "plan.toml"
    path.write_text(SHARED)
    first, other, *more = cells = in_turn(read_plan(path))
    assert (first.dataset_id, first.donor) == (TASKS[1], None)
    assert (other.dataset_id, other.donor) == (TASKS[0], first.name)
    assert [cell.donor for cell in more] == [other.name, first.name]
    root = Path("runs")
    results = {cell.name: run_cell(cell, root) for cell in cells[:3]}
    assert results[other.name]["training"]["adopted_from"] == "QGPO"
    adopted = results[other.name]["training"]["stage_seconds"]
    for stage in ("whitening", "behavior"):
        assert adopted[stage] == results[first.name]["training"]["stage_seconds"][stage]
    for cell in (other, more[0]):
        alone = dataclasses.replace(cell, label="alone", donor_label=None, donor_dataset=None)
        expected = run_cell(alone, Path(f"alone-{cell.label}"))
        assert without_times(results[cell.name]) == without_times(expected)
        assert same_parameters(
            trained(cell).get_parameters(),
            trained(alone, Path(f"alone-{cell.label}")).get_parameters(),
        )
    left = {s.cell.name: s for s in Benchmark(cells, root, Path("results")).standings()}
    assert left[more[1].name].timesteps == 0


# The command line ---------------------------------------------------------------------------


def arguments(folder, *more):
    where = ["--dataset-id", DATASET, "--run-dir", folder, "--n-episodes", "0", "--device", "cpu"]
    return train.parse([*where, "--no-progress-bar", *more])


def run(folder, guidance, *more):
    config = dataclasses.replace(WHITENED, guidance=guidance)
    train.main(dataclasses.replace(arguments(folder, *more), config=config))
    return load_agent(RunFolder(Path(folder)).checkpoint, device="cpu")


@pytest.mark.usefixtures("data")
def test_train_adopts_from_a_folder_or_a_file_and_may_be_resumed(monkeypatch, capsys):
    run("first", "cep")
    expected = run("alone", "mse").get_parameters()
    capsys.readouterr()
    assert same_parameters(run("second", "mse", "--adopt", "first").get_parameters(), expected)
    line = "adopted from the QGPO in first: whitening, behavior, support, critic (14 of 18 steps)"
    assert line in capsys.readouterr().out
    file = "first/checkpoint.zip"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit, match="--resume third"):
            run("third", "mse", "--adopt", file)
    with pytest.raises(SystemExit, match=f"--adopt {file} cannot be combined with --resume"):
        train.parse(["--resume", "third", "--adopt", file])
    Path("first").rename("elsewhere")
    train.main(train.parse(["--resume", "third"]))
    resumed = load_agent("third/checkpoint.zip", device="cpu")
    assert same_parameters(resumed.get_parameters(), expected)


@pytest.mark.usefixtures("data")
def test_train_refuses_what_cannot_be_adopted():
    with pytest.raises(SystemExit, match=r"error: checkpoint 'nowhere\.zip' does not exist"):
        run("second", "mse", "--adopt", "nowhere")
    with pytest.raises(SystemExit, match="error: a BC agent cannot adopt from 'nowhere'"):
        train.main(arguments("other", "--agent", "BC", "--adopt", "nowhere"))
    run("first", "cep")
    with pytest.raises(SystemExit, match="trained with seed=0, this QGPO has seed=1"):
        run("second", "mse", "--adopt", "first", "--seed", "1")
    assert not Path("second").exists()
