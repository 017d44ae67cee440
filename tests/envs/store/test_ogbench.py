"""OGBench's files are found, converted and downloaded, whole or not at all."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ogbench_data import (
    MADE,
    MAZE,
    maze_rows,
    needs_ogbench,
    task_of,
    write_generated,
    write_npz,
)

from qgpo import load_dataset
from qgpo.envs.data.disk import DiskFullError
from qgpo.envs.store import ogbench
from qgpo.envs.store.catalogue import catalogue
from qgpo.envs.store.checking import check_dataset
from qgpo.envs.store.combining import combine
from qgpo.envs.store.downloading import download
from qgpo.envs.store.local import folder_of, local_ids
from qgpo.envs.store.opening import open_dataset, recorded_in
from qgpo.envs.store.remote import RemoteError
from qgpo.envs.store.writing import check_new_id
from qgpo.envs.tasks.families import find_family
from qgpo.envs.tasks.ogbench import parse
from qgpo.scripts.data import main

needs_ogbench()

ID = f"ogbench/{MAZE}-v0"
FILE = f"{MAZE}-v0.npz"
ROWS = ([0, 1, 0, 1], [0, 0, 1])


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """Where OGBench's loader keeps its files."""
    folder = tmp_path / "its own"
    monkeypatch.setattr("ogbench.utils.DEFAULT_DATASET_DIR", str(folder))
    return folder


def load(dataset_id=None, **more):
    return load_dataset(dataset_id or task_of(ID, 1), progress_bar=False, **more)


def nothing_is_here():
    return local_ids() == [] and not list(folder_of("").glob(".qgpo-[0-9]*"))


# Names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset_id", "env_id"),
    [
        ("ogbench/cube-single-play-singletask-task2-v0", "cube-single-singletask-task2-v0"),
        ("ogbench/cube-single-play-singletask", "cube-single-singletask-v0"),
        ("ogbench-generated/scene-noisy-1m-singletask-task5-v0", "scene-singletask-task5-v0"),
        ("ogbench-generated/puzzle-4x6-play-100k-seed3-v0", "puzzle-4x6-v0"),
        ("ogbench/antsoccer-arena-navigate-singletask-v0", "antsoccer-arena-singletask-v0"),
    ],
)
def test_ids_have_their_family_and_their_environment(dataset_id, env_id):
    family = find_family(dataset_id)
    assert (family.package, family.n_episodes, family.success) == ("ogbench", 50, True)
    if "-singletask" in env_id:
        assert find_family(env_id=env_id) is family
    assert recorded_in(dataset_id) == env_id


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        ("visual-cube-single-play-singletask-task2-v0", "its observations are images, but agents"),
        ("powderworld-easy-play-v0", "images and its actions are discrete"),
        ("cube-single-play-oraclerep-v0", "it is for goal-conditioned agents"),
        ("cube-single-play-singletask-task6-v0", "tasks are task1 to task5"),
        ("cube-single-play-singletask-task02", "tasks are task1 to task5"),
        ("cube-single-play-100k-singletask-task2-v0", "ids of generated data, under ogbench-gen"),
        ("cube-single-play-singletask-task2-v1", "the version of all sets is v0"),
        ("cube-sngle-play-singletask-task2-v0", "OGBench has no such set"),
    ],
)
def test_what_is_not_read_is_refused_by_its_reason(rest, why):
    example = "such as 'ogbench/cube-single-play-singletask-task2-v0'"
    with pytest.raises(ValueError, match=rf"'ogbench/{rest}' cannot be read \(.*{why}.*{example}"):
        load_dataset(f"ogbench/{rest}")
    assert recorded_in(f"ogbench/{rest}") is None


@pytest.mark.parametrize(
    ("dataset_id", "why"),
    [
        ("ogbench-generated/cube-single-play-singletask-v0", "says how many steps they are"),
        ("ogbench-generated/cube-single-play-0100k-singletask-v0", "OGBench has no such set"),
        ("cube-single-play-singletask-task2-v0", "has no namespace: .* here 'ogbench/cube-single"),
        ("cube-single-play-2k-singletask", "has no namespace: .* here 'ogbench-generated/cube-s"),
    ],
)
def test_other_slips_in_an_id_are_named(dataset_id, why):
    with pytest.raises(ValueError, match=rf"'{dataset_id}' .*{why}"):
        load_dataset(dataset_id)


@pytest.mark.parametrize(("size", "spelled"), [("1000k", "1m"), ("100000", "100k"), ("7", "7")])
def test_a_size_has_one_spelling(size, spelled):
    # else the command that a message names would make a dataset of another id
    name = parse(f"ogbench-generated/cube-single-play-{size}-singletask-v0")
    assert name.size == spelled
    with pytest.raises(ValueError, match=f"'{name.trajectories.id}' is not in .*: generate it by"):
        load_dataset(f"ogbench-generated/cube-single-play-{size}-singletask-v0")


def test_trajectories_name_the_tasks_that_label_them(files):
    write_npz(files, f"{MAZE}-v0", maze_rows(*ROWS))
    tasks = ", ".join(task_of(ID, task) for task in range(1, 6))
    message = rf"'{ID}' holds trajectories without rewards.*: choose one of its tasks, {tasks}, or"
    with pytest.raises(ValueError, match=message):
        load_dataset(ID)
    assert nothing_is_here()  # they were not converted for it
    with pytest.raises(ValueError, match=message):
        load_dataset(open_dataset(ID, progress_bar=False))


def test_ids_of_published_data_are_not_given_to_others():
    with pytest.raises(ValueError, match="ids under ogbench/ are reserved for OGBench's published"):
        check_new_id("ogbench/cube-single-play-v1")
    check_new_id(MADE)


# Files of OGBench's loader ------------------------------------------------------------------


def test_a_file_of_its_loader_is_converted_once(files):
    rows = maze_rows(*ROWS)
    path = write_npz(files, f"{MAZE}-v0", rows)
    dataset = load(download=False)
    assert dataset.rewards.tolist() == [-1, 0, -1, -1, -1]
    assert dataset.truncations.tolist() == [False, False, True, False, True]
    np.testing.assert_array_equal(dataset.states, rows["observations"])
    path.unlink()
    assert load(task_of(ID, 2), download=False).rewards.tolist() == [-1.0] * 5
    metadata = json.loads((folder_of(ID) / "data" / "metadata.json").read_text())
    about = metadata["ogbench"]
    assert (about["origin"], about["name"], about["steps"]) == ("published", f"{MAZE}-v0", 5)
    assert json.loads(metadata["env_spec"])["id"] == "pointmaze-medium-v0"
    assert local_ids() == [ID]


def test_the_stored_episodes_are_those_of_the_contract(files):
    rows = maze_rows(*ROWS)
    write_npz(files, f"{MAZE}-v0", rows)
    opened = open_dataset(task_of(ID, 1), progress_bar=False)
    assert opened.observation_space.dtype == np.float32
    (first, second) = opened.storage.get_episodes([0, 1])
    assert (len(first["actions"]), len(second["actions"])) == (3, 2)
    assert not first["rewards"].any()
    assert not first["terminations"].any()
    assert second["truncations"].tolist() == [False, True]
    for name in ("qpos", "qvel"):
        np.testing.assert_array_equal(second["infos"][name], rows[name][4:])
        assert second["infos"][name].dtype == np.float32
    np.testing.assert_array_equal(second["observations"], rows["observations"][4:])


BAD = {
    "other rows": (
        lambda rows: {"observations": rows["observations"][:, :1]},
        r"observations has rows of \(1,\) numbers, expected \(2,\) for pointmaze-medium",
    ),
    "an open end": (
        lambda rows: {"terminals": np.zeros_like(rows["terminals"])},
        "terminals do not mark the last row",
    ),
    "an end too early": (
        lambda rows: {"terminals": np.arange(7) == 2},
        "terminals do not mark the last row",
    ),
    "one row": (lambda rows: {"terminals": np.arange(7) > 4}, "trajectory 1 has one row"),
    "no flags": (lambda rows: {"terminals": np.full(7, 2.0)}, "terminals has value .*2.0"),
    "a NaN": (
        lambda rows: {"qvel": np.where(np.arange(7)[:, None] == 5, np.nan, rows["qvel"])},
        "trajectory 1: qvel has NaN or infinite values",
    ),
    "rows too few": (lambda rows: {"actions": rows["actions"][:-1]}, "actions has 6 rows, others"),
    "objects": (lambda rows: {"qpos": np.array([{}] * 7)}, "qpos contains no numbers, its type is"),
    "no states": (lambda rows: {"qpos": None}, "it has no qpos"),
}


@pytest.mark.parametrize("what", BAD)
def test_files_of_other_data_are_refused_and_leave_nothing(what, files):
    change, message = BAD[what]
    rows = maze_rows(*ROWS)
    rows |= change(rows)
    write_npz(files, f"{MAZE}-v0", {k: v for k, v in rows.items() if v is not None})
    with pytest.raises(ValueError, match=message):
        load(download=False)
    assert nothing_is_here()


def test_a_full_disk_is_noticed_before_the_conversion(files, monkeypatch):
    write_npz(files, f"{MAZE}-v0", maze_rows(*ROWS))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(DiskFullError, match=f"'{ID}': .* MB are needed"):
        load(download=False)


def test_an_interrupted_conversion_leaves_nothing(files, monkeypatch):
    write_npz(files, f"{MAZE}-v0", maze_rows(*ROWS))

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qgpo.envs.store.npz.Archive.finish", stop)
        with pytest.raises(KeyboardInterrupt):
            load(download=False)
    assert nothing_is_here()
    assert len(load(download=False)) == 5


def test_a_damaged_conversion_may_be_made_again(files):
    write_npz(files, f"{MAZE}-v0", maze_rows(*ROWS))
    load(download=False)
    (folder_of(ID) / "data" / "main_data.hdf5").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"damaged.*; delete that folder to generate it again"):
        load()
    with pytest.raises(ValueError, match="delete that folder to generate it again"):
        download(ID, force=True)


# Downloads ----------------------------------------------------------------------------------


class Host:
    """OGBench's host on this machine, and what goes wrong there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str]] = []
        self.status: int | None = None
        self.missing: set[str] = set()
        self.cut: int | None = None
        """deliver so many bytes of each file, and close the connection"""
        self.released = threading.Event()
        self.stalls = False
        handler = type("Handler", (_Handler,), {"host": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/ogbench"

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    host: Host

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        host, name = self.host, Path(self.path).name
        host.requests.append((self.command, name))
        path = host.folder / name
        if host.status is not None or not path.is_file() or name in host.missing:
            self.send_response(host.status or 404)
            self.end_headers()
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: host.cut])
            if host.stalls:
                self.wfile.flush()
                host.released.wait(60)


@pytest.fixture
def host(tmp_path, monkeypatch):
    write_npz(tmp_path / "far", f"{MAZE}-v0", maze_rows(*ROWS))
    server = Host(tmp_path / "far")
    monkeypatch.setattr("ogbench.utils.DATASET_URL", server.url)
    yield server
    server.close()


def fetched(host):
    return [name for command, name in host.requests if command == "GET"]


def test_its_own_loader_downloads_a_set_once(host, files, capfd):
    assert load().rewards.tolist() == [-1, 0, -1, -1, -1]
    assert fetched(host) == [FILE, f"{MAZE}-v0-val.npz"]
    assert capfd.readouterr().out == ""  # no progress bar, no notes
    host.requests.clear()
    load(task_of(ID, 2))
    assert host.requests == []
    assert not files.exists()
    assert [path.name for path in folder_of("").glob(".qgpo-download-*")] == []


def test_the_command_line_downloads_it_too(host, capsys):
    main(["download", task_of(ID, 3), "--no-progress-bar"])
    assert f"{ID}: 2 episodes, 5 steps in " in capsys.readouterr().out
    assert download(ID).total_steps == 5
    assert len(fetched(host)) == 2


def test_only_with_download_is_the_host_asked(host):
    message = (
        rf"'{task_of(ID, 1)}' is neither in .* nor, as OGBench's own file, .*{FILE}. To fetch it: `"
    )
    with pytest.raises(ValueError, match=message):
        load(download=False)
    assert host.requests == []


def test_a_set_that_the_host_does_not_have(host):
    host.status = 404
    with pytest.raises(RemoteError, match=rf"{FILE} is not there .*HTTP Error 404") as caught:
        load()
    assert "generate ogbench/pointmaze-medium-navigate --steps 1000000`" in str(caught.value)
    assert "'ogbench-generated/pointmaze-medium-navigate-1m-singletask-task1-v0'" in str(
        caught.value
    )
    assert fetched(host) == []
    assert nothing_is_here()


def test_generated_trajectories_that_are_here_are_named(host):
    host.status = 404
    write_generated(maze_rows(*ROWS))
    with pytest.raises(RemoteError, match=f"that made it, here is {task_of(MADE, 1)}$"):
        load()


@pytest.mark.parametrize("status", [None, 503])
def test_a_host_that_does_not_answer(host, status, monkeypatch):
    host.status = status
    if status is None:
        monkeypatch.setattr("ogbench.utils.DATASET_URL", "http://127.0.0.1:9/ogbench")
    with pytest.raises(RemoteError, match=rf"could not be downloaded: .*{FILE} cannot be reached"):
        load()


def test_what_only_a_download_brings_says_so(host):
    host.status = 404
    with pytest.raises(RemoteError, match="It cannot be generated here: its experts are trained"):
        load_dataset("ogbench/antmaze-large-navigate-singletask-v0")


def test_half_a_file_is_no_dataset_and_is_fetched_again(host):
    host.cut = 300
    with pytest.raises(RemoteError, match=r"300 of \d+ bytes arrived.*Run it again"):
        load()
    assert nothing_is_here()
    host.cut = None
    assert len(load()) == 5


def test_a_download_that_stalls_ends(host, monkeypatch):
    monkeypatch.setattr(ogbench, "STALLED_SECONDS", 0.3)
    host.cut, host.stalls = 300, True
    with pytest.raises(RemoteError, match=r"failed .*timed out.*Run it again"):
        load()
    assert nothing_is_here()
    host.cut, host.stalls = None, False
    assert len(load()) == 5


def test_the_file_for_validation_is_not_needed(host):
    host.missing.add(f"{MAZE}-v0-val.npz")
    assert len(load()) == 5


def test_a_download_of_other_data_is_not_kept(host, tmp_path):
    rows = maze_rows(*ROWS)
    write_npz(tmp_path / "far", f"{MAZE}-v0", {**rows, "qpos": rows["qpos"][:, :1]})
    with pytest.raises(ValueError, match="qpos has rows of"):
        load()
    write_npz(tmp_path / "far", f"{MAZE}-v0", rows)
    assert len(load()) == 5


def test_a_host_that_answers_no_head_is_asked_for_the_file(host, monkeypatch):
    monkeypatch.setattr(_Handler, "do_HEAD", lambda self: self.send_error(501))
    assert len(load()) == 5


# Generated trajectories ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset_id", "words"),
    [
        ("cube-single-play-100k", "cube-single-play --steps 100000`"),
        ("scene-noisy-1m-seed3", "scene-noisy --steps 1000000 --seed 3`"),
        ("pointmaze-medium-navigate-500", "pointmaze-medium-navigate --steps 500`"),
    ],
)
def test_generated_ones_that_are_not_here_say_how_they_are_made(dataset_id, words):
    task = f"ogbench-generated/{dataset_id}-singletask-task1-v0"
    with pytest.raises(
        ValueError, match=f"is not in .*: generate it by `.* generate ogbench/{words}"
    ):
        load_dataset(task)


@pytest.mark.parametrize(
    ("dataset_id", "why"),
    [
        ("antmaze-large-navigate-100k", "cannot be generated here: its experts are trained"),
        ("cube-octuple-play-1m", "is none of OGBench's sets whose experts are in the package"),
        ("pointmaze-medium-play-1m", "is none of OGBench's sets whose experts are in the package"),
    ],
)
def test_nobody_is_told_to_generate_what_cannot_be_generated(dataset_id, why):
    with pytest.raises(ValueError, match=f"is not in .*, and {why}") as caught:
        load_dataset(f"ogbench-generated/{dataset_id}-singletask-task1-v0")
    assert "data.py generate" not in str(caught.value)


def test_generated_ones_are_not_said_to_be_from_a_file():
    write_generated(maze_rows(*ROWS))
    with pytest.raises(ValueError, match="was generated here: delete that folder to generate it"):
        download(MADE, force=True)


# Commands -----------------------------------------------------------------------------------


def test_a_listing_says_which_tasks_label_trajectories(capsys):
    write_generated(maze_rows(*ROWS))
    (entry,) = catalogue("local")
    assert (entry.id, entry.steps, entry.episodes) == (MADE, 5, 2)
    assert entry.missing == ()
    tasks = f"{task_of(MADE, 1)} to task5-v0, {task_of(MADE)}"
    assert entry.notes == (f"no rewards: labelled by {tasks}",)
    main(["list", "--where", "local"])
    assert f"labelled by {tasks}" in capsys.readouterr().out


@pytest.mark.parametrize("task", [None, 0, 2])
def test_trajectories_and_tasks_are_checked(task, capsys):
    write_generated(maze_rows(*ROWS))
    dataset_id = MADE if task is None else task_of(MADE, task)
    report = check_dataset(dataset_id.removesuffix("-v0"))
    labels = task_of(MADE, task or 0)
    assert report.ok
    assert report.id == dataset_id
    assert report.findings[1].text == f"all 2 are there, 5 steps, labelled as {labels}"
    (folder_of(MADE) / "data" / "main_data.hdf5").write_bytes(b"half")
    assert not check_dataset(dataset_id).ok
    with pytest.raises(ValueError, match="generate it by"):
        check_dataset(dataset_id.replace("100k", "200k"))


def test_tasks_are_shown_and_trajectories_are_not(tmp_path, capsys):
    write_generated(maze_rows(*ROWS))
    main(["show", task_of(MADE, 1), "--output", "maze.png"])
    assert Path("maze.png").stat().st_size > 0
    assert "pointmaze-medium-singletask-task1-v0" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="holds trajectories without rewards"):
        main(["show", MADE, "--output", "other.png"])


@pytest.mark.parametrize("dataset_id", [MADE, task_of(MADE, 1)])
def test_they_are_combined_in_python_alone(dataset_id):
    write_generated(maze_rows(*ROWS))
    with pytest.raises(ValueError, match=rf"'{dataset_id}' cannot be combined.*concatenate"):
        combine([dataset_id, dataset_id], "mine/both-v0")


def test_a_set_of_one_s_own_under_such_an_id_is_loaded_as_any_other(tmp_path):
    assert ogbench.name_of("mine/cube-single-play-v0") is None
    assert ogbench.name_of(task_of(MADE, 1)) == parse(task_of(MADE, 1))
    folder_of("ogbench/of-one-s-own-v0").mkdir(parents=True)
    assert ogbench.name_of("ogbench/of-one-s-own-v0") is None
