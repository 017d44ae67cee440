from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import REST, Started, resting, run_in_a_copy, wait_until
from factory import (
    ROOT,
    WHITENED,
    make_dataset,
    same_parameters,
    subprocess_environment,
    write_buffers,
)
from gymnasium import make
from minari.data_collector import EpisodeBuffer

from qgpo import QGPO
from qgpo.agents.core.provenance import processor
from qgpo.experiments import documents
from qgpo.experiments.benchmark import Benchmark
from qgpo.experiments.documents import DocumentError
from qgpo.experiments.plan import PlanError, in_turn, read_plan
from qgpo.experiments.workers import run_cell, run_logged

DATASET = "test/pendulum/tiny-v0"
LONGER = dataclasses.replace(WHITENED, behavior_steps=40, critic_steps=20)
TINY = {k: v for k, v in dataclasses.asdict(LONGER).items() if v is not None}  # as TOML has it
HEAD = f"""
datasets = ["{DATASET}"]
seeds = [0, 1]
n_episodes = 2
checkpoint_every = 10
"""
PLAN = f"""{HEAD}
[[agents]]
label = "tiny"
agent = "QGPO"
guidance_scales = [0, 1, 2]
estimate_minutes = 3
overrides = {json.dumps(TINY).replace('": ', '" = ')}
"""
SECONDS_LONG = PLAN.replace('"behavior_steps" = 40', '"behavior_steps" = 2500')
SECONDS_LONG = SECONDS_LONG.replace("checkpoint_every = 10", "checkpoint_every = 100")
BASELINE = """
[[agents]]
agent = "sb3:offline-td3"
seeds = [0]
overrides = { steps = 20, hidden = [8] }
"""
BROKEN = """
[[agents]]
label = "broken"
agent = "QGPO"
datasets = ["qgpo/absent-v0"]
seeds = [0]
"""
TINY_S0, TINY_S1 = (f"test-pendulum-tiny-v0-tiny-s{seed}" for seed in (0, 1))


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A dataset folder with four episodes of Pendulum-v1, ten steps each."""
    folder = tmp_path_factory.mktemp("minari")
    env = make("Pendulum-v1", max_episode_steps=10)
    buffers = []
    for seed in range(4):
        env.action_space.seed(seed)
        observations = [env.reset(seed=seed)[0]]
        actions, rewards = [], []
        for _ in range(10):
            actions.append(env.action_space.sample())
            following, reward, *_ = env.step(actions[-1])
            observations.append(following)
            rewards.append(reward)
        ends = [False] * 9 + [True]
        buffers.append(
            EpisodeBuffer(
                observations=observations,
                actions=actions,
                rewards=rewards,
                terminations=[False] * 10,
                truncations=ends,
            )
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        write_buffers(buffers, DATASET, env=env)
    return folder


@pytest.fixture
def plan(tmp_path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def arguments(plan: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "--plan", str(plan), *more]


def run(plan: Path, *more: str, data: Path, code: int = 0, **environment: str):
    environment = subprocess_environment(MINARI_DATASETS_PATH=str(data), **environment)
    done = run_in_a_copy(arguments(plan, *more)[1:], plan.parent, environment, timeout=600)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def run_here(cells, root, workers, report):
    """In place of `run_locally`: no process is started."""
    for cell in cells:
        report(run_logged(cell, root))


def measure(text: str, folder: Path, data: Path) -> Path:
    """Run that plan in the folder."""
    plan = folder / "plan.toml"
    plan.write_text(text)
    cells = in_turn(read_plan(plan))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(data))
        patch.setattr("qgpo.experiments.benchmark.run_locally", run_here)
        benchmark = Benchmark(cells, folder / "runs" / "plan", folder / "plan")
        assert benchmark.run(cells, lambda outcome: None) == []
    return folder


@pytest.fixture(scope="session")
def measured(tmp_path_factory, data) -> Path:
    """The folder of a plan that was run: two agents, three trainings."""
    return measure(PLAN + BASELINE, tmp_path_factory.mktemp("measured"), data)


@pytest.fixture(scope="session")
def measured_long(tmp_path_factory, data) -> Path:
    """That of two trainings of some seconds."""
    pytest.importorskip("ray", reason="the cluster extra is not installed")
    return measure(SECONDS_LONG, tmp_path_factory.mktemp("measured"), data)


def test_a_plan_is_all_combinations_seed_by_seed(plan):
    plan.write_text(PLAN + BASELINE)
    cells = in_turn(read_plan(plan))
    assert [(c.label, c.seed) for c in cells] == [
        ("tiny", 0),
        ("sb3:offline-td3", 0),
        ("tiny", 1),
    ]
    assert cells[0].name == TINY_S0
    first, second = cells[:2]
    assert first.config == LONGER
    assert first.guidance_scales == (0.0, 1.0, 2.0)
    assert (first.headline_scale, second.headline_scale) == (1.0, None)
    assert second.config.hidden == (8,)


def test_a_plan_names_the_version_of_its_data(plan):
    """Results are found again by the id, and the newest version may be another one by then."""
    plan.write_text(PLAN.replace(DATASET, DATASET.removesuffix("-v0")))
    with pytest.raises(PlanError, match="has no version, expected one, such as 'test/pendulum"):
        read_plan(plan)


def test_results_hold_raw_returns_configuration_times_and_versions(measured):
    assert sorted(p.name for p in (measured / "plan").iterdir()) == [
        "test-pendulum-tiny-v0-sb3-offline-td3-s0.json",
        f"{TINY_S0}.json",
        f"{TINY_S1}.json",
    ]
    result = json.loads((measured / "plan" / f"{TINY_S1}.json").read_text())
    assert [e["guidance_scale"] for e in result["evaluations"]] == [0.0, 1.0, 2.0]
    assert [len(e["returns"]) for e in result["evaluations"]] == [2, 2, 2]
    assert result["evaluations"][0]["seeds"] == [10_001, 10_002]
    assert result["measured"]["config"]["behavior_steps"] == 40
    assert result["measured"]["seed"] == 1
    assert result["training"]["timesteps"] == 3 + 40 + 20 + 4
    assert result["training"]["wall_seconds"] > 0.0
    assert result["training"]["cpu_seconds"] > 0.0
    assert len(result["dataset"]["fingerprint"]) == 64
    assert len(result["dataset"]["returns"]) == 4
    assert {"qgpo", "torch", "numpy", "mujoco"} <= set(result["versions"])
    assert result["machine"]["instructions"]
    assert result["machine"]["processor"] == processor()
    assert (result["headline_scale"], result["environment_steps"]) == (1.0, 0)
    baseline = json.loads(next((measured / "plan").glob("*td3*")).read_text())
    assert [e["guidance_scale"] for e in baseline["evaluations"]] == [None]


def test_the_processor_is_named_where_the_system_tells(tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nmodel name\t: Made Up 9000: fast\n\nprocessor\t: 1\n")
    assert processor(told) == "Made Up 9000: fast"
    told.write_text("processor\t: 0\nmodel name\t:\n")
    for silent in (told, tmp_path / "none"):
        assert processor(silent) in {platform.processor(), platform.machine()} - {""}


def test_finished_cells_are_skipped_and_estimates_come_from_them(measured, data):
    plan = measured / "plan.toml"
    before = {p: p.stat().st_mtime_ns for p in (measured / "plan").iterdir()}
    (measured / "more.toml").write_text(PLAN.replace("[0, 1]", "[0, 1, 2]"))
    folders = ["--runs", "runs/plan", "--results", "plan", "--dry-run"]
    done = run(measured / "more.toml", *folders, data=data)
    lines = done.stdout.splitlines()
    assert lines[1].split()[:2] == [TINY_S0, "finished"]
    assert "mean of 2 finished" in lines[3]
    assert "2 finished, 1 to run" in lines[-1]
    plan.write_text(PLAN + BASELINE)
    done = run(plan, data=data)
    assert "3 finished, 0 to run" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in (measured / "plan").iterdir()}


def test_another_training_under_the_same_name_is_refused(measured, data):
    other = measured / "other.toml"
    other.write_text(PLAN.replace('"beta" = 30.0', '"beta" = 10.0'))
    done = run(other, "--results", "plan", data=data, code=1)
    assert "was made with beta = 30.0, this training has 10.0" in done.stderr
    with pytest.raises(DocumentError, match=r"config.json was made with beta"):
        run_cell(read_plan(other)[0], measured / "runs" / "plan")


def test_a_checkpoint_of_other_data_is_not_evaluated_on_todays(data, plan, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(data))
    [cell, *_] = read_plan(plan)
    agent = QGPO(cell.config, seed=cell.seed, device="cpu")
    agent.prepare(make_dataset(observation_dim=3))
    agent.dataset_fingerprint = "0" * 64
    agent.save(tmp_path / "runs" / cell.name / "checkpoint.zip")
    with pytest.raises(DocumentError, match=r"trained on other data than the present 'test/pen"):
        run_cell(cell, tmp_path / "runs")


def test_options_that_came_later_count_as_their_defaults(measured, tmp_path):
    cell = read_plan(measured / "plan.toml")[0]
    result = documents.read(measured / "plan" / f"{cell.name}.json")
    assert result["measured"]["config"].pop("energy_preconditioned") is True  # its default: False
    assert result["measured"]["config"].pop("q_unit") == "reward"  # its default
    results = tmp_path / "plan"
    results.mkdir()
    (results / f"{cell.name}.json").write_text(json.dumps(result))
    benchmark = Benchmark([cell], tmp_path / "runs", results)
    with pytest.raises(
        DocumentError, match="energy_preconditioned = False, this training has True"
    ):
        benchmark.standings()
    result["measured"]["config"]["energy_preconditioned"] = True
    (results / f"{cell.name}.json").write_text(json.dumps(result))
    result["measured"]["config"]["q_unit"] = "reward"
    assert benchmark.standings()[0].result == result


def test_more_scales_of_a_finished_training_are_evaluated_from_its_checkpoint(
    measured, data, tmp_path, monkeypatch
):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(data))
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.replace("[0, 1, 2]", "[1, 3]"))
    cell = read_plan(plan)[0]
    former = documents.read(measured / "plan" / f"{TINY_S0}.json")
    benchmark = Benchmark([cell], measured / "runs" / "plan", measured / "plan")
    assert benchmark.standings()[0].result is None
    result = run_cell(cell, measured / "runs" / "plan")
    assert [e["guidance_scale"] for e in result["evaluations"]] == [1.0, 3.0]
    assert result["evaluations"][0]["returns"] == former["evaluations"][1]["returns"]
    assert result["training"] == former["training"]


def descendants(pid: int) -> list[int]:
    """Its processes and theirs."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for file in files for child in file.read_text().split()]
    return children + [d for child in children for d in descendants(child)]


def same_results(first: Path, second: Path) -> bool:
    """Parameters and returns of both seeds, bit for bit."""
    for name in (TINY_S0, TINY_S1):
        checkpoint = Path("runs", "plan", name, "checkpoint.zip")
        agents = [QGPO.load(p / checkpoint, device="cpu") for p in (first, second)]
        results = [documents.read(p / "plan" / f"{name}.json") for p in (first, second)]
        returns = [[e["returns"] for e in result["evaluations"]] for result in results]
        if returns[0] != returns[1] or not same_parameters(*(a.get_parameters() for a in agents)):
            return False
    return True


def as_in_a_terminal() -> None:
    """A shell's background jobs ignore Ctrl-C, and so does all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_killed_and_interrupted_workers_go_on_to_the_same_result(measured, data, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN)
    (tmp_path / "site").mkdir()  # every new process imports this
    only_workers = f"import sys\nif 'qgpo.experiments.workers' in sys.orig_argv: {REST.format(25)}"
    (tmp_path / "site" / "sitecustomize.py").write_text(only_workers)
    path = {"PYTHONPATH": str(tmp_path / "site"), "MINARI_DATASETS_PATH": str(data)}
    command = arguments(plan, "--workers", "2")[1:]
    process = Started(command, tmp_path, subprocess_environment(**path))
    wait_until(lambda: len(resting(tmp_path)) == 2)
    killed, interrupted = resting(tmp_path)
    assert sorted(descendants(process.pid)) == sorted([killed, interrupted])
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: "[1/2" in process.printed()[0])
    assert "FAILED: its process was ended by SIGKILL" in process.printed()[0]
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 1
    _, errors = process.printed()
    assert "Traceback" not in errors, errors
    assert "stopped with checkpoints" in errors
    assert f"--plan {plan}" in errors
    done = run(plan, "--dry-run", data=data)
    assert sorted(re.findall(r"continues from (\d+)", done.stdout)) == ["20", "25"]
    assert same_results(measure(PLAN, tmp_path, data), measured)


def test_a_worker_that_fails_says_why(plan, data):
    plan.write_text(HEAD + BROKEN)
    done = run(plan, data=data, code=1)
    assert "1 of 1 cells failed" in done.stderr
    assert "qgpo-absent-v0-broken-s0: ValueError: dataset 'qgpo/absent-v0'" in done.stderr
    log = Path("runs/plan/qgpo-absent-v0-broken-s0/log.txt")
    assert str(log) in done.stderr
    assert "Traceback" in (plan.parent / log).read_text()


def started_on_ray(plan: Path, data: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """The benchmark on a local Ray cluster with a first checkpoint, and its workers."""
    plan.write_text(SECONDS_LONG)
    process = subprocess.Popen(
        arguments(plan, "--ray-address", "local"),
        cwd=plan.parent,
        env=subprocess_environment(MINARI_DATASETS_PATH=str(data), RAY_AUTH_MODE="disabled"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=as_in_a_terminal,
    )
    wait_until((plan.parent / "runs" / "plan" / TINY_S0 / "checkpoint.zip").exists)
    names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(process.pid)}
    workers = [pid for pid, name in names.items() if name.startswith(b"ray::run_logged")]
    assert workers
    return process, workers


def test_a_ray_cluster_gives_the_same_though_a_worker_is_killed(measured_long, data, tmp_path):
    process, workers = started_on_ray(tmp_path / "plan.toml", data)
    wait_until((tmp_path / "runs" / "plan" / TINY_S1 / "checkpoint.zip").exists)
    os.kill(workers[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    logs = [p.read_text() for p in (tmp_path / "runs" / "plan").glob("*/log.txt")]
    assert sum(log.count("episodes, to ") for log in logs) == 3
    assert same_results(tmp_path, measured_long)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_ray_cluster_that_is_stopped_leaves_checkpoints(sent, measured_long, data, tmp_path):
    plan = tmp_path / "plan.toml"
    process, workers = started_on_ray(plan, data)
    for pid in workers:  # or they may be finished before they are asked to stop
        os.kill(pid, signal.SIGSTOP)
    process.send_signal(sent)
    time.sleep(2.0)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in output
    assert "stopped with checkpoints" in output
    assert not (tmp_path / "plan" / f"{TINY_S0}.json").exists()
    done = run(plan, "--workers", "2", data=data)
    assert "continues from" in done.stdout
    assert same_results(tmp_path, measured_long)


def test_ray_that_is_not_installed_is_named(plan, data, tmp_path):
    (tmp_path / "ray.py").write_text("raise ImportError")
    more = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    environment = subprocess_environment(MINARI_DATASETS_PATH=str(data), **more)
    done = run_in_a_copy(arguments(plan, "--ray-address", "auto")[1:], tmp_path, environment)
    assert done.returncode == 1
    assert "pip install ray" in done.stderr
