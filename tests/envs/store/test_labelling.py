"""Tasks of OGBench label trajectories as its own loader does, and share what is the same."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings

import numpy as np
import pytest
from ogbench_data import (
    CUBE,
    MADE,
    MAZE,
    made_once,
    maze_rows,
    needs_ogbench,
    played_rows,
    task_of,
    write_generated,
    write_npz,
)

from qgpo import OfflineDataset, load_dataset
from qgpo.envs.data import memmap
from qgpo.envs.data.figure import summary
from qgpo.envs.store import labelling
from qgpo.envs.store.checking import check_dataset
from qgpo.envs.store.local import folder_of
from qgpo.envs.tasks.ogbench import parse

needs_ogbench()
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*precision lowered by casting", "ignore:.*DISPLAY environment variable"
)

TASK = task_of(MADE, 1)
SOLVED = ([0, 1, 0, 1, 0, 1], [0, 0, 0], [1, 0])
"""rows at which the point is at the goal: that of a last row has no step"""


@pytest.fixture(autouse=True)
def _shared_environments(monkeypatch):
    monkeypatch.setattr(labelling, "make_env", made_once)
    monkeypatch.setattr("qgpo.envs.store.ogbench.make_env", made_once)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Where OGBench's loader keeps its files."""
    folder = tmp_path / "its own"
    monkeypatch.setattr("ogbench.utils.DEFAULT_DATASET_DIR", str(folder))
    return folder


# Labels -------------------------------------------------------------------------------------


def test_the_state_of_a_step_decides_and_the_trajectory_goes_on():
    rows = maze_rows(*SOLVED)
    write_generated(rows)
    dataset = load_dataset(TASK)
    assert dataset.rewards.tolist() == [-1, 0, -1, 0, -1, -1, -1, 0]
    assert np.flatnonzero(dataset.terminations).tolist() == [1, 3, 7]
    assert np.flatnonzero(dataset.truncations).tolist() == [4, 6, 7]
    assert dataset.episode_lengths.tolist() == [5, 2, 1]
    steps = np.flatnonzero(~rows["terminals"])
    np.testing.assert_array_equal(dataset.observations, rows["observations"][steps])
    np.testing.assert_array_equal(dataset.actions, rows["actions"][steps])
    np.testing.assert_array_equal(dataset.next_observations, rows["observations"][steps + 1])
    assert dataset.id == TASK
    assert dataset.env_spec.id == "pointmaze-medium-singletask-task1-v0"
    assert dataset.details["labels"] == MADE


def test_every_task_has_rewards_of_its_own_on_the_same_trajectories():
    write_generated(maze_rows(*SOLVED))
    first, second = load_dataset(TASK), load_dataset(task_of(MADE, 2))
    assert second.rewards.tolist() == [-1.0] * 8
    assert not second.terminations.any()
    assert first.fingerprint != second.fingerprint
    assert first.trajectory_fingerprint == second.trajectory_fingerprint
    write_generated(maze_rows(*SOLVED, seed=1), MADE.replace("100k", "200k"))
    other = load_dataset(TASK.replace("100k", "200k"))
    assert other.rewards.tolist() == first.rewards.tolist()
    assert other.trajectory_fingerprint != first.trajectory_fingerprint


def test_without_a_number_and_without_a_version_it_is_the_default_task():
    write_generated(maze_rows(*SOLVED))
    alias = load_dataset(task_of(MADE).removesuffix("-v0"))
    assert (alias.id, alias.env_spec.id) == (task_of(MADE), "pointmaze-medium-singletask-v0")
    assert alias.fingerprint == load_dataset(TASK).fingerprint


@pytest.mark.parametrize(
    ("environment", "parts"), [("cube-double", 2), ("scene", 5), ("puzzle-3x3", 9)]
)
def test_arrays_equal_those_of_ogbench_s_own_loader(environment, parts, files):
    """Rewards are minus the number of parts that are not solved: 0 in rows 3 and 4, which are."""
    import ogbench

    name = f"{environment}-play-singletask-task3-v0"
    env = made_once(f"{environment}-singletask-task3-v0")
    rows = {key: values.copy() for key, values in played_rows(f"{environment}-v0").items()}
    env.reset()
    solve(env.unwrapped, rows, [3, 4])
    path = write_npz(files, f"{environment}-play-v0", rows)
    theirs, _ = ogbench.make_env_and_datasets(
        name, dataset_path=str(path), dataset_only=True, cur_env=env
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = load_dataset(f"ogbench/{name}", download=False, progress_bar=False)
    for key in ("observations", "actions", "next_observations", "rewards"):
        np.testing.assert_array_equal(getattr(ours, key), theirs[key], err_msg=key)
        assert getattr(ours, key).dtype == theirs[key].dtype
    np.testing.assert_array_equal(1.0 - ours.terminations, theirs["masks"])
    np.testing.assert_array_equal(ours.truncations, theirs["terminals"] == 1.0)
    assert np.flatnonzero(ours.terminations).tolist() == [3, 4]
    assert set(ours.rewards.tolist()) <= set(range(-parts, 1))
    assert (ours.rewards == 0.0).sum() == 2


def solve(env, rows, where):
    """Put all parts of a manipulated scene where the task wants them; the first one only there."""
    if "button_states" in rows:
        rows["button_states"][:, 0] = 1 - env._target_button_states[0]
    else:
        rows["qpos"][:, CUBE : CUBE + 3] += 1.0
    for i in range(getattr(env, "_num_cubes", 0)):
        place = slice(CUBE + 7 * i, CUBE + 7 * i + 3)
        rows["qpos"][where, place] = env._data.mocap_pos[env._cube_target_mocap_ids[i]]
    if "button_states" in rows:
        rows["button_states"][where] = env._target_button_states
    if hasattr(env, "_target_drawer_pos"):
        rows["qpos"][where, -2] = env._target_drawer_pos
        rows["qpos"][where, -1] = env._target_window_pos


def test_labels_do_not_depend_on_how_many_rows_are_labelled_at_once(monkeypatch):
    write_generated(maze_rows(*SOLVED))
    expected = load_dataset(TASK).fingerprint
    for rows in (1, 6):
        monkeypatch.setattr(labelling, "ROWS_AT_ONCE", rows)
        assert load_dataset(TASK).fingerprint == expected


def test_the_user_s_random_numbers_stay_as_they_are():
    write_generated(maze_rows(*SOLVED))
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.uniform()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    load_dataset(TASK)
    assert np.random.uniform() == expected  # noqa: NPY002


def test_loading_and_joining_says_nothing():
    write_generated(maze_rows(*SOLVED))
    write_generated(maze_rows([1, 0, 0]), MADE.replace("100k", "200k"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = [load_dataset(TASK), load_dataset(TASK.replace("100k", "200k"))]
        joined = OfflineDataset.concatenate(both)
        assert load_dataset(TASK, storage="memmap", progress_bar=False).folder is not None
    assert joined.episode_lengths.tolist() == [5, 2, 1, 2]
    assert np.flatnonzero(joined.terminations).tolist() == [1, 3, 7, 8]
    assert joined.env_spec.id == "pointmaze-medium-singletask-task1-v0"


def test_a_summary_and_a_check_count_solved_steps_apart():
    write_generated(maze_rows(*SOLVED))
    ends = dict(summary(load_dataset(TASK)))["ends"]
    assert ends == "1 terminated, 2 truncated; 2 terminations inside"
    findings = {finding.what: finding for finding in check_dataset(TASK).findings}
    assert all(finding.ok is not False for finding in findings.values())
    assert findings["ends"].text == (
        "1 terminated, 3 truncated; the task is done at 2 steps that others follow: the bootstrap "
        "is cut"
    )


# What cannot be labelled --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: {"qpos": rows["qpos"][:, :1]},
            r"infos \['qpos'\] .*qpos has 1 numbers a row",
        ),
        (lambda rows: {"qpos": rows["qpos"][:-1]}, r"infos/qpos has shape \(1, 2\), expected"),
        (lambda rows: {"qpos": rows["qpos"] * np.nan}, "infos/qpos has NaN or infinite values"),
        (lambda rows: {"qpos": np.tile(rows["qpos"], 2)}, "qpos has 4 numbers a row, expected 2"),
        (lambda rows: {"qpos": None}, r"infos \[\] are not the states of"),
    ],
)
def test_infos_that_are_no_states_are_refused(change, message):
    rows = maze_rows(*SOLVED)
    rows |= change(rows)
    write_generated({name: values for name, values in rows.items() if values is not None})
    with pytest.raises(ValueError, match=rf"dataset '{TASK}': .*{message}"):
        load_dataset(TASK)


def test_other_data_under_such_an_id_are_refused():
    write_generated(maze_rows(*SOLVED))
    copied = folder_of(f"ogbench/{MAZE}-v0")
    shutil.copytree(folder_of(MADE), copied)
    with pytest.raises(ValueError, match="its folder was copied or renamed"):
        load_dataset(task_of(f"ogbench/{MAZE}-v0"))
    metadata = copied / "data" / "metadata.json"
    metadata.write_text(metadata.read_text().replace(MADE, f"ogbench/{MAZE}-v0"))
    with pytest.raises(
        ValueError, match=r"'pointmaze-medium-navigate-v0', 'generated'\. Move that"
    ):
        load_dataset(task_of(f"ogbench/{MAZE}-v0"))


def test_a_missing_package_is_named_with_its_installation(monkeypatch):
    write_generated(maze_rows(*SOLVED))
    monkeypatch.setattr(labelling, "register_package", lambda _: None)
    monkeypatch.setattr("gymnasium.registry", {})
    with pytest.raises(ValueError, match=r"needs the package ogbench.*pip install ogbench"):
        load_dataset(TASK)


# Memory maps --------------------------------------------------------------------------------


def mapped(task=1):
    return load_dataset(task_of(MADE, task), False, "memmap", progress_bar=False)


def test_mapped_tasks_have_their_own_labels_and_share_everything_else():
    write_generated(maze_rows(*SOLVED))
    for task in (1, 2, 0):
        dataset = mapped(task)
        in_memory = load_dataset(task_of(MADE, task))
        assert dataset.fingerprint == in_memory.fingerprint
        assert dataset.rewards.tolist() == in_memory.rewards.tolist()
        assert dataset.terminations.tolist() == in_memory.terminations.tolist()
        assert vars(dataset)["trajectory_fingerprint"] == in_memory.trajectory_fingerprint
    first, second = mapped(1), mapped(2)
    assert (first.folder.name, second.folder.name) == ("memmap-task1", "memmap-task2")
    shared = {
        path.name for path in first.folder.iterdir() if path.samefile(second.folder / path.name)
    }
    own = {"index.json", "rewards.bin", "terminations.bin"}
    assert shared == {path.name for path in first.folder.iterdir()} - own
    assert check_dataset(TASK).ok


def test_the_index_states_by_what_it_was_labelled(monkeypatch):
    write_generated(maze_rows(*SOLVED))
    labels = memmap.read_index(mapped().folder)["made"]["labels"]
    assert labels["task"] == "pointmaze-medium-singletask-task1-v0"
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9.9")
    assert memmap.read_index(mapped().folder)["made"]["labels"]["ogbench"] == "9.9.9"


def test_a_map_is_read_without_its_environment(monkeypatch):
    write_generated(maze_rows(*SOLVED))
    expected = mapped().fingerprint
    monkeypatch.setattr(labelling, "make_env", lambda _: pytest.fail("made again"))
    assert mapped().fingerprint == expected


def test_a_damaged_map_is_not_shared():
    write_generated(maze_rows(*SOLVED))
    states = mapped(1).folder / "states.bin"
    content, stat = bytearray(states.read_bytes()), states.stat()
    content[3] ^= 1
    states.write_bytes(content)
    os.utime(states, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = mapped(2)
    assert not (second.folder / "states.bin").samefile(states)
    assert (second.folder / "actions.bin").samefile(states.parent / "actions.bin")
    assert second.fingerprint == load_dataset(task_of(MADE, 2)).fingerprint
    assert mapped(1).fingerprint == load_dataset(TASK).fingerprint  # made anew


def test_without_links_every_task_has_its_own_files(monkeypatch):
    def refused(*_):
        raise OSError(1, "Operation not permitted")

    write_generated(maze_rows(*SOLVED))
    monkeypatch.setattr(os, "link", refused)
    first, second = mapped(1), mapped(2)
    assert not (first.folder / "states.bin").samefile(second.folder / "states.bin")
    assert second.fingerprint == load_dataset(task_of(MADE, 2)).fingerprint
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(first.folder)
    assert mapped(2).fingerprint == second.fingerprint


def test_the_task_s_parts_are_those_of_its_name():
    name = parse(TASK)
    assert labelling.task_ids(name) == [
        task_of(MADE),
        *[task_of(MADE, task) for task in (1, 2, 3, 4, 5)],
    ]
