"""Generated OGBench datasets: the same with any number of processes, after any interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import minari
import numpy as np
import pytest

pytest.importorskip("ogbench")

from qgpo.envs.data.disk import DiskFullError
from qgpo.envs.rollouts import ogbench_players
from qgpo.envs.rollouts.ogbench_experts import PROCEDURES, Procedure, trajectory
from qgpo.envs.rollouts.ogbench_players import Parts, WorkerError
from qgpo.envs.store import generating
from qgpo.envs.store.generating import (
    UNFINISHED,
    Generation,
    generate,
    name_to_generate,
    size_of_steps,
    steps_of_size,
)
from qgpo.envs.store.local import folder_of, local_ids
from qgpo.envs.store.scratch import remove_abandoned
from qgpo.envs.store.writing import SCRATCH
from qgpo.envs.tasks.ogbench import Name

POINT = "pointmaze-medium-stitch"
MAZE = name_to_generate(POINT, steps=100)
LENGTH = 20
"""transitions of a trajectory here, so that MAZE has five"""


def in_this_process(parts, indices, processes):
    for index in indices:
        parts.write(index)
        yield index


@pytest.fixture
def quick(monkeypatch):
    """No process is started."""
    monkeypatch.setattr(generating, "played", in_this_process)


def interrupted_after(count: int, error: type[BaseException] = KeyboardInterrupt):
    def play(parts, indices, processes):
        yield from in_this_process(parts, indices[:count], processes)
        raise error

    return play


def noted(monkeypatch) -> list[int]:
    """The trajectories that will be played."""
    asked: list[int] = []

    def play(parts, indices, processes):
        asked.extend(indices)
        return in_this_process(parts, indices, processes)

    monkeypatch.setattr(generating, "played", play)
    return asked


def make(name: Name = MAZE, processes: int = 1):
    return generate(name, processes, LENGTH, progress_bar=False)


def contents(name: Name = MAZE) -> bytes:
    return (folder_of(name.id) / "data" / "main_data.hdf5").read_bytes()


def parts_left() -> list[str]:
    return sorted(path.name for path in folder_of(UNFINISHED).rglob("*") if path.is_file())


def test_any_number_of_processes_makes_the_same_file(tmp_path, monkeypatch):
    """Also where a module in the user's folder has the name of another one."""
    with monkeypatch.context() as patched:
        patched.setattr(generating, "played", in_this_process)
        make()
    here = contents()
    Path("safetensors.py").write_text("raise ValueError('imported')", encoding="utf-8")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "by processes"))
    make(processes=2)
    assert contents() == here
    assert not folder_of(UNFINISHED).exists()


def test_episodes_are_the_trajectories_without_their_last_action(quick):
    dataset = make(name_to_generate("puzzle-3x3-play", steps=40))
    assert (dataset.total_episodes, dataset.total_steps) == (2, 40)
    procedure = Procedure("puzzle-3x3", "play", LENGTH, 0.1)
    for index, episode in enumerate(dataset):
        rows = trajectory(procedure, 0, index)
        assert np.array_equal(episode.observations, rows["observations"])
        assert np.array_equal(episode.actions, rows["actions"][:-1])
        for name in ("qpos", "qvel", "button_states"):
            assert np.array_equal(episode.infos[name], rows[name])
            assert episode.infos[name].dtype == rows[name].dtype
        assert len(episode.infos) == 3
        assert not np.any(episode.rewards)
        assert not np.any(episode.terminations)
        assert episode.truncations.tolist() == [False] * 19 + [True]


def test_metadata_say_where_the_data_are_from(quick):
    dataset = make(name_to_generate(POINT, steps=90, seed=3))
    assert dataset.id == "ogbench-generated/pointmaze-medium-stitch-90-seed3-v0"
    assert dataset.total_steps == 100  # whole trajectories
    assert dataset.observation_space.dtype == dataset.action_space.dtype == np.float32
    assert (dataset.observation_space.shape, dataset.action_space.shape) == ((2,), (2,))
    text = (folder_of(dataset.id) / "data" / "metadata.json").read_text(encoding="utf-8")
    metadata = json.loads(text)
    versions = metadata["ogbench"].pop("versions")
    assert set(versions) == {"ogbench", "mujoco", "numpy"}
    assert versions["numpy"] == np.__version__
    assert metadata["ogbench"] == {
        "origin": "generated",
        "name": "pointmaze-medium-stitch-v0",
        "steps": 90,
        "seed": 3,
    }
    spec = json.loads(metadata["env_spec"])
    assert (spec["id"], spec["max_episode_steps"]) == ("pointmaze-medium-v0", 1000)
    assert "terminate_at_goal" not in spec["kwargs"]
    assert minari.load_dataset(dataset.id).total_episodes == 5


def test_a_larger_dataset_begins_as_a_smaller_one(quick):
    small, large = make(), make(name_to_generate(POINT, steps=200))
    for one, other in zip(small, large, strict=False):
        assert np.array_equal(one.observations, other.observations)
    assert not np.array_equal(large[0].observations, large[9].observations)


@pytest.mark.parametrize("count", [0, 2, 5])
def test_an_interrupted_generation_goes_on(count, tmp_path, monkeypatch):
    monkeypatch.setattr(generating, "played", interrupted_after(count))
    with pytest.raises(KeyboardInterrupt):
        make()
    assert not folder_of(MAZE.id).exists()
    assert local_ids() == []
    remove_abandoned(folder_of(""), SCRATCH)
    assert parts_left() == [f"00000{index}.safetensors" for index in range(count)]

    asked = noted(monkeypatch)
    make()
    assert asked == list(range(count, 5))
    assert not folder_of(UNFINISHED).exists()
    resumed = contents()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "whole"))
    make()
    assert contents() == resumed


def test_what_stopped_while_the_dataset_was_written_is_not_played_again(monkeypatch, quick):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(generating, "write_trajectories", fail)
        with pytest.raises(KeyboardInterrupt):
            make()
    assert (len(parts_left()), local_ids()) == (5, [])
    asked = noted(monkeypatch)
    assert make().total_steps == 100
    assert asked == []


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"steps": 120},
        {"versions": True},
    ],
)
def test_parts_of_another_dataset_are_not_mixed_in(other, monkeypatch):
    monkeypatch.setattr(generating, "played", interrupted_after(5))
    with pytest.raises(KeyboardInterrupt):
        make()
    if other.pop("versions", False):
        monkeypatch.setattr("importlib.metadata.version", lambda package: "9.9.9")
    asked = noted(monkeypatch)
    name = name_to_generate(POINT, **{"steps": 100, **other})
    make(name)
    assert asked == list(range(Generation.of(name, LENGTH).count))
    left = 0 if name == MAZE else 5  # those of the unfinished dataset stay
    assert len(parts_left()) == left


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, "short"])
def test_a_damaged_part_is_played_again(damage, monkeypatch, quick):
    with monkeypatch.context() as patched:
        patched.setattr(generating, "played", interrupted_after(5))
        with pytest.raises(KeyboardInterrupt):
            make()
    parts = Generation.of(MAZE, LENGTH).parts
    whole = parts.path(3).read_bytes()
    if damage == "short":
        other = Parts(parts.folder, Procedure("pointmaze-medium", "stitch", 7, 0.5), 0)
        other.write(3)
    else:
        parts.path(3).write_bytes(damage)
    assert parts.path(3).read_bytes() != whole
    assert not parts.has(3)
    make()
    episode = minari.load_dataset(MAZE.id)[3]
    assert np.array_equal(episode.observations, trajectory(parts.procedure, 0, 3)["observations"])


def test_a_dataset_that_exists_stays_as_it_is(monkeypatch, quick):
    make()
    before = contents()
    Generation.of(MAZE, LENGTH).parts.write(0)  # as if killed before it was removed
    monkeypatch.setattr(generating, "played", interrupted_after(0, AssertionError))
    assert make().total_steps == 100
    assert contents() == before
    assert not folder_of(UNFINISHED).exists()


def test_one_that_exists_needs_neither_the_package_nor_a_folder_to_write_in(monkeypatch, quick):
    make()
    for module, name in ((generating.ogbench, "register"), (generating, "sole_writer")):
        monkeypatch.setattr(module, name, None)  # a call would fail
    assert make().total_steps == 100


# Processes ----------------------------------------------------------------------------------


def test_a_process_that_fails_says_why():
    parts = Parts(folder_of("parts"), Procedure("pointmaze-none", "stitch", LENGTH, 0.5), 0)
    with pytest.raises(WorkerError, match=r"ended early: .*pointmaze-none"):
        list(ogbench_players.played(parts, [0, 1], 1))


@pytest.mark.skipif(os.name == "nt", reason="a signal ends a process")
def test_a_process_that_is_killed_is_named(monkeypatch):
    monkeypatch.setattr(
        ogbench_players._Worker, "ask", lambda worker, _: worker.process.send_signal(signal.SIGKILL)
    )
    with pytest.raises(WorkerError, match=r"ended early: SIGKILL \(by the system, for want"):
        make()
    assert local_ids() == []


@pytest.mark.skipif(os.name == "nt", reason="a signal ends a process")
def test_after_a_kill_no_process_plays_on_and_the_next_call_finishes(tmp_path):
    name = name_to_generate(POINT, steps=400_000)
    code = (
        "from qgpo.envs.store.generating import *\n"
        f"generate(name_to_generate({POINT!r}, steps=400_000), 2, progress_bar=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while len(parts_left()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    time.sleep(1.0)
    left = parts_left()
    assert 3 <= len(left) < 2000
    time.sleep(1.0)
    assert parts_left() == left
    assert not folder_of(name.id).exists()
    whole = [n for n in left if not n.startswith(".")]
    parts = Generation.of(name).parts
    assert all(parts.has(int(n.split(".")[0])) for n in whole)


def test_a_script_needs_no_guard_and_nothing_is_printed(tmp_path):
    """No window system, no warnings, no log of MuJoCo's."""
    script = tmp_path / "mine.py"
    script.write_text(
        "from qgpo.envs.store.generating import generate, name_to_generate\n"
        "name = name_to_generate('cube-single-play', steps=20)\n"
        "print(generate(name, 1, length=20, progress_bar=False).total_steps)\n",
        encoding="utf-8",
    )
    environment = {n: v for n, v in os.environ.items() if n not in ("DISPLAY", "MUJOCO_GL")}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment
    )
    assert (done.stdout, done.stderr, done.returncode) == ("20\n", "", 0)
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["minari", "mine.py"]


# Disks --------------------------------------------------------------------------------------


def test_a_full_disk_is_noticed_after_the_first_trajectory(monkeypatch, quick):
    usage = type("Usage", (), {"total": 10**9, "used": 10**9, "free": 10})
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda path: usage)
        with pytest.raises(DiskFullError, match=r"stitch-100-v0.* MB are needed, .*minari"):
            make()
    assert parts_left() == ["000000.safetensors"]
    assert make().total_steps == 100


def test_a_disk_that_fills_up_meanwhile():
    """A limit on the size of files stands for it: a trajectory takes 66 kB."""
    resource = pytest.importorskip("resource")  # not on Windows
    name = name_to_generate(POINT, steps=2000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(DiskFullError, match=rf"could not be written in .*{UNFINISHED}"):
            generate(name, length=2000, progress_bar=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert parts_left() == []


# Names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "size"),
    [(100_000, "100k"), (1_000_000, "1m"), (1500, "1500"), (2_500_000, "2500k"), (7, "7")],
)
def test_sizes(steps, size):
    assert size_of_steps(steps) == size
    assert steps_of_size(size) == steps


@pytest.mark.parametrize(
    "dataset_id",
    [
        "cube-single-play",
        "cube-single-play-v0",
        "ogbench/cube-single-play",
        "ogbench/cube-single-play-v0",
        "ogbench/cube-single-play-singletask-task2-v0",
        "ogbench-generated/cube-single-play",
        "ogbench-generated/cube-single-play-100k",
        "ogbench-generated/cube-single-play-100k-v0",
        "ogbench-generated/cube-single-play-100k-singletask-task2-v0",
    ],
)
def test_spellings_of_a_name(dataset_id):
    assert name_to_generate(dataset_id).id == "ogbench-generated/cube-single-play-100k-v0"


def test_steps_and_seeds_are_the_ids_or_the_arguments():
    stem = "ogbench-generated/scene-noisy"
    assert name_to_generate(f"{stem}-1m-seed7-v0").id == f"{stem}-1m-seed7-v0"
    assert name_to_generate("ogbench/scene-noisy", 1500, 7).id == f"{stem}-1500-seed7-v0"
    assert name_to_generate(f"{stem}-1m-seed7-v0", 1_000_000, 7).seed == 7
    for arguments, what in (((2_000_000,), "steps=2000000"), ((None, 0), "seed=0")):
        with pytest.raises(ValueError, match=f"{what}, but .*seed7-v0' says"):
            name_to_generate(f"{stem}-1m-seed7-v0", *arguments)


@pytest.mark.parametrize(
    ("dataset_id", "why"),
    [
        ("ogbench/antmaze-large-navigate-v0", "experts are trained networks, .* download"),
        ("humanoidmaze-medium-stitch", "experts are trained networks, .* download"),
        ("antsoccer-arena-navigate", "experts are trained networks, .* download"),
        ("pointmaze-large-explore", "none of OGBench's sets"),
        ("cube-octuple-play", "none of OGBench's sets"),
        ("cube-single-play-v1", "^'cube-single-play-v1', expected "),
        ("mine/cube-single-play", "^'mine/cube-single-play', expected "),
        ("visual-cube-single-play-v0", "^'visual-cube-single-play-v0', expected "),
        ("", "^'', expected "),
    ],
)
def test_sets_that_cannot_be_generated_are_refused_with_the_choices(dataset_id, why):
    choices = "ogbench/ENVIRONMENT-KIND: cube-single, .*puzzle-4x6 with play or noisy; .*stitch"
    with pytest.raises(ValueError, match=f"{why}.*{choices}"):
        name_to_generate(dataset_id)


def test_numbers_out_of_range_are_refused():
    for arguments, what in (
        ((0,), "steps=0"),
        ((10**20,), "steps=1"),  # a list of so many trajectories would fill the memory
        ((100, -1), "seed=-1"),
        ((100, 2**32), "seed="),
    ):
        with pytest.raises(ValueError, match=f"{what}.*, expected"):
            name_to_generate(POINT, *arguments)
    with pytest.raises(ValueError, match="processes=0, expected at least 1"):
        generate(MAZE, 0)
    with pytest.raises(ValueError, match="length=0, expected at least 1"):
        generate(MAZE, length=0)
    for other in (Name("ogbench", "scene", "play"), replace(MAZE, task=2)):
        with pytest.raises(ValueError, match="expected trajectories under ogbench-generated/"):
            generate(other)


def test_every_procedure_has_a_name():
    for procedure in PROCEDURES.values():
        generation = Generation.of(name_to_generate(procedure.name, steps=3001))
        assert generation.procedure == procedure
        assert generation.count == -(-3001 // procedure.length)
