from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from recordings import NAMES, TABLE, write_lerobot, write_table

from qgpo.envs.logs.checks import check_log
from qgpo.envs.logs.columns import LogError, expand
from qgpo.envs.logs.lerobot import is_lerobot, read_lerobot
from qgpo.envs.logs.log import episodes_of
from qgpo.envs.logs.reading import Names, read_log


def columns_of(text: str) -> dict[str, np.ndarray]:
    header, *rows = (line.split(",") for line in text.split())
    cells = [[{"false": "0", "true": "1"}.get(c.lower(), c) for c in row] for row in rows]
    numbers = np.array(cells, dtype=float)
    return {name: numbers[:, k] for k, name in enumerate(header)}


def test_a_table_is_read_by_the_names_of_its_columns(tmp_path):
    log = read_log([write_table(tmp_path / "log.csv")], NAMES)
    assert log.observation_names == ("q0", "q1", "dq0")
    assert log.observations.tolist() == [[1, 2, 3], [2, 3, 4], [3, 4, 5], [9, 8, 7], [8, 7, 6]]
    assert log.actions.tolist() == [[0.5], [0.25], [-0.5], [0.125], [1.0]]
    assert log.starts.tolist() == [0, 3]
    assert log.terminations.tolist() == [False, False, True, False, False]
    assert log.times.tolist() == [0.0, 0.02, 0.04, 0.0, 0.02]


def test_rows_become_transitions(tmp_path):
    """A terminated row is kept though nothing follows; the last row of another only ends it."""
    first, second = episodes_of(read_log([write_table(tmp_path / "log.csv")], NAMES))
    assert first.observations.tolist() == [[1, 2, 3], [2, 3, 4], [3, 4, 5], [3, 4, 5]]
    assert first.rewards.tolist() == [1, 2, 3]
    assert first.terminations.tolist() == [False, False, True]
    assert not first.truncations.any()
    assert second.observations.tolist() == [[9, 8, 7], [8, 7, 6]]
    assert second.actions.tolist() == [[0.125]]
    assert second.truncations.tolist() == [True]
    both = list(episodes_of(read_log([tmp_path / "log.csv"], NAMES), ends="terminated"))
    assert both[1].terminations.tolist() == [False, True]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_and_plain_numbers(tmp_path, delimiter):
    text = TABLE.replace("false", "0").replace("False", "0").replace("true", "1")
    text = "\ufeff" + text.replace(",", delimiter)
    log = read_log([write_table(tmp_path / "log.csv", text)], NAMES)
    assert log.actions[4] == 1.0
    assert log.terminations[2]


def test_parquet_gives_the_same_as_csv(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="the arrow extra is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = columns_of(TABLE)
    columns = {name: table[name] for name in ("trial", "t", "u", "r", "fell")}
    lists = np.stack([table["q0"], table["q1"], table["dq0"]], axis=1).tolist()
    parquet.write_table(pyarrow.table({**columns, "q": lists}), tmp_path / "log.parquet")
    names = Names(("q",), ("u",), "r", "fell", None, "trial", "t")
    log = read_log([tmp_path / "log.parquet"], names)
    same = read_log([write_table(tmp_path / "log.csv")], NAMES)
    assert log.observation_names == ("q[0]", "q[1]", "q[2]")
    for name in ("observations", "actions", "rewards", "episodes", "terminations", "times"):
        assert np.array_equal(getattr(log, name), getattr(same, name)), name
    ragged = pyarrow.table({"obs": [[1.0], [1.0, 2.0]], "action": [0.0, 1.0]})
    parquet.write_table(ragged, tmp_path / "bad.parquet")
    with pytest.raises(LogError, match=r"column 'obs' has lists of \[1, 2\] numbers"):
        read_log([tmp_path / "bad.parquet"])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(LogError, match=r"bad\.parquet cannot be read"):
        read_log([tmp_path / "bad.parquet"])


def test_arrays_have_their_usual_names(tmp_path):
    """Rows as such, rows with next observations, and rows with each episode's last observation."""
    observations = np.arange(12.0).reshape(6, 2)
    actions = np.zeros((4, 1))
    flags = np.array([False, True, False, False])
    common = {"actions": actions, "rewards": np.arange(4.0), "terminals": flags}
    np.savez(tmp_path / "whole.npz", observations=observations, **common)
    rows = [0, 1, 3, 4]
    following = observations[[1, 2, 4, 5]]
    np.savez(
        tmp_path / "pairs.npz",
        observations=observations[rows],
        next_observations=following,
        **common,
    )
    for name in ("whole", "pairs"):
        log = read_log([tmp_path / f"{name}.npz"])
        first, second = episodes_of(log)
        assert first.observations.tolist() == observations[:3].tolist()
        assert second.observations.tolist() == observations[3:].tolist()
        assert first.terminations.tolist() == [False, True]
        assert second.truncations.tolist() == [False, True]
    np.savez(tmp_path / "odd.npz", observations=observations[:5], **common)
    with pytest.raises(LogError, match="observations has 5 rows, actions 4 in 2 episodes"):
        read_log([tmp_path / "odd.npz"])


def test_several_files_are_several_episodes(tmp_path):
    for k in range(3):
        text = "obs,action\n" + "".join(f"{10 * k + i},0.5\n" for i in range(k + 2))
        write_table(tmp_path / f"{k}.csv", text)
    log = read_log(sorted(tmp_path.glob("*.csv")))
    assert log.lengths.tolist() == [2, 3, 4]
    assert log.of.endswith("0.csv and 2 more")
    assert log.notes == ()
    more = write_table(tmp_path / "more.csv", "obs,obs2,action\n1,2,3\n2,3,4\n")
    assert read_log([more]).notes == ("columns that are not used: 'obs2'",)
    other = write_table(tmp_path / "9.csv", "state1,action\n1,2\n")
    with pytest.raises(LogError, match="has the columns"):
        read_log([tmp_path / "0.csv", other])


def test_a_role_that_no_column_has_is_not_guessed(tmp_path):
    text = "obs,action,episode,time,terminated\n1,2,0,0.1,0\n2,3,0,0.2,1\n3,4,0,0.3,0\n"
    table = write_table(tmp_path / "log.csv", text)
    assert read_log([table]).lengths.tolist() == [3]
    log = read_log([table], Names(episode="", time=""))
    assert log.lengths.tolist() == [2, 1]
    assert log.times is None
    assert log.notes == ("columns that are not used: 'episode', 'time'",)


def test_dates_are_no_time_stamps_where_nobody_named_them(tmp_path):
    rows = "".join(f"{k},0.5,2026-01-0{k}T10:00:00\n" for k in (1, 2, 3))
    table = write_table(tmp_path / "log.csv", f"obs,action,timestamp\n{rows}")
    log = read_log([table])
    assert log.times is None
    assert log.notes == ("columns that are not used: 'timestamp'",)
    with pytest.raises(LogError, match="column 'timestamp' has '2026-01-01T10:00:00'"):
        read_log([table], Names(time="timestamp"))


def test_next_observations_are_found_by_the_name_of_the_observations(tmp_path):
    text = "obs_0,obs_1,next_obs_0,next_obs_1,action\n1,2,2,3,0.5\n9,8,8,7,0.5\n"
    log = read_log([write_table(tmp_path / "log.csv", text)])
    assert log.observation_names == ("obs_0", "obs_1")
    assert log.next_observations.tolist() == [[2, 3], [8, 7]]


def test_recorded_numbers_of_episodes_stay_and_say_which_to_leave_out(tmp_path):
    def recorded(name: str, numbers: tuple[int, ...]) -> Path:
        rows = "".join(f"{n}.{k},0.5,{n}\n" for n in numbers for k in range(3))
        return write_table(tmp_path / name, f"obs,action,episode\n{rows}")

    first, second = recorded("a.csv", (1, 2, 3)), recorded("b.csv", (11, 13))
    log = read_log([first, second])
    assert np.unique(log.episodes).tolist() == [1, 2, 3, 11, 13]
    kept = log.without([11])
    assert sorted(set(kept.observations[:, 0].astype(int))) == [1, 2, 3, 13]
    both = read_log([first, recorded("c.csv", (2, 5))])
    assert both.lengths.tolist() == [3] * 5
    with pytest.raises(LogError, match=r"several files have the same number.*\[2\]"):
        both.without([2])
    odd = dataclasses.replace(both, observations=np.where(both.observations == 2, np.nan, 0.0))
    (found,) = (f.text for f in check_log(odd) if f.what == "values")
    assert "first in row 3 of all files" in found
    assert "import the files one by one, and leave these episodes out" in found
    counted = read_log([write_table(tmp_path / f"{k}.csv", "obs,action\n1,2\n2,3\n") for k in "de"])
    assert counted.without([1]).lengths.tolist() == [2]  # the second file


@pytest.mark.parametrize(
    ("text", "names", "said"),
    [
        ("a,b\n1,2\n", Names(), r"which columns are the observations\?.*there are 'a', 'b'"),
        ("obs,b\n1,2\n", Names(), "which columns are the actions"),
        ("obs,action\n1,2\n", Names(reward="gain"), r"no column is called 'gain'.*\(--reward\)"),
        ("obs,action\n1,go\n", Names(), "line 2: column 'action' has 'go', expected numbers"),
        ("obs,action\n\n1,true\n\n 2, go\n", Names(), "line 5: column 'action' has 'go', "),
        ("obs,obs,action\n1,2,3\n", Names(), "names 'obs' columns twice"),
        ("1,2,3\n4,5,6\n", Names(), "its first line holds numbers"),
        ("obs,action\n1\n", Names(), "line 2 has 1 cells"),
        ("obs,action,episode\n1,2,0.5\n", Names(), "no whole numbers"),
        ("obs,action,episode\n1,2,inf\n", Names(), "no whole numbers"),
        (
            "obs,action,terminated\n1,2,7\n",
            Names(),
            "termination has value .*7.0.*, expected False",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, names, said):
    with pytest.raises(ValueError, match=said):
        read_log([write_table(tmp_path / "log.csv", text)], names)


def test_other_files_are_refused_and_nothing_is_unpickled(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"")
    with pytest.raises(LogError, match="expected a name that ends in one of"):
        read_log([tmp_path / "a.mat"])
    with pytest.raises(LogError, match=r"gone\.csv does not exist"):
        read_log([tmp_path / "gone.csv"])
    np.savez(tmp_path / "a.npz", observations=np.array([{}], dtype=object), actions=np.zeros(1))
    with pytest.raises(LogError, match="observations contains no numbers"):
        read_log([tmp_path / "a.npz"])
    np.savez(tmp_path / "b.npz", observations=np.zeros((2, 4, 4, 3)), actions=np.zeros((2, 1)))
    with pytest.raises(LogError, match="images perhaps"):
        read_log([tmp_path / "b.npz"])


def test_patterns_keep_the_file_s_order_and_take_nothing_twice():
    names = ["q1", "q0", "dq", "q[0]"]
    assert expand(["q?", "dq", "q1"], names) == ["q1", "q0", "dq"]
    assert expand(["q[0]"], names) == ["q[0]"]


# LeRobot ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_s_folders_are_read(tmp_path, version):
    folder = write_lerobot(tmp_path / "arm", version)
    assert is_lerobot(folder)
    log = read_lerobot(folder)
    assert log.observation_names == ("observation.state[pan]", "observation.state[lift]")
    assert log.action_names == ("action[pan]", "action[lift]")
    assert log.lengths.tolist() == [4, 3]
    assert log.notes[0].startswith("left out: 'observation.images.top'.")
    assert log.notes[1].startswith("episodes terminate where next.success")
    assert len(log.notes) == 2
    first, second = episodes_of(log)
    assert first.observations[:, 0].tolist() == [0, 1, 2, 3, 3]  # it succeeded: kept to its end
    assert first.terminations.tolist() == [False, False, False, True]
    assert first.rewards.tolist() == [0, 1, 2, 3]
    assert second.observations[:, 0].tolist() == [10, 11, 12]
    assert second.truncations.tolist() == [False, True]
    assert np.allclose(first.actions, [[0.0, 0.0], [0.01, -0.01], [0.02, -0.02], [0.03, -0.03]])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"total_frames": 9}, r"states total_frames = 9, 7 are there: files are missing"),
        ({"codebase_version": "v1.6"}, "has codebase_version 'v1.6', expected v2 or v3"),
        ({"features": []}, r"info\.json cannot be used"),
    ],
)
def test_what_is_wrong_with_a_lerobot_folder_is_said(tmp_path, changes, said):
    folder = write_lerobot(tmp_path / "arm", "v3.0", **changes)
    with pytest.raises(LogError, match=said):
        read_lerobot(folder)


def test_a_rate_that_differs_is_said(tmp_path):
    log = read_lerobot(write_lerobot(tmp_path / "arm", "v2.1", success=False, fps=30))
    assert log.terminations is None
    assert log.notes[-1].endswith("states 30 frames per second, time stamps are 0.02 s apart")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("obs,action\n1,2\n1,2,3\n", "line 3 has 3 cells, the first line names 2 columns"),
        ("obs,action\n1,2,3\n4,5,6\n", "line 2 has 3 cells"),  # as R writes row names
        ("obs,action\n1,2\n\n3\n", "line 4 has 1 cells"),
        ("obs,action\n", "has no rows below the names"),
        ('obs,action,note\n1,2,"5 inch\n3,4,x\n', "cannot be read"),
    ],
)
def test_lines_of_other_widths_are_named(tmp_path, text, said):
    with pytest.raises(LogError, match=rf"bad\.csv:? .*{said}"):
        read_log([write_table(tmp_path / "bad.csv", text)])


@pytest.mark.parametrize(
    "text",
    [
        "obs,action\n1,2,\n3,4\n",
        "obs,action,\n1,2\n3,4,\n",
        'obs,action,note\n1,2, "a, b"\n3,4,\n',
        f"obs,action,note\n1,2,{'x' * 200_000}\n3,4,y\n",
    ],
)
def test_lines_of_the_same_width_are_read(tmp_path, text):
    log = read_log([write_table(tmp_path / "good.csv", text)])
    assert log.observations.tolist() == [[1.0], [3.0]]


def test_truth_values_are_observations_too(tmp_path):
    np.savez(tmp_path / "b.npz", observations=np.eye(3) > 0, actions=np.zeros((3, 1)))
    assert read_log([tmp_path / "b.npz"]).observations.tolist() == np.eye(3).tolist()


def test_truth_values_are_rewards_and_columns_may_be_stored_one_by_one(tmp_path):
    observations = np.arange(8.0).reshape(2, 4).T
    success = np.array([False, True, True, False])
    arrays = {"observations": observations, "actions": np.zeros((4, 1)), "rewards": success}
    assert not observations.flags.c_contiguous
    np.savez(tmp_path / "log.npz", **arrays)
    log = read_log([tmp_path / "log.npz"])
    assert log.rewards.tolist() == [0, 1, 1, 0]
    assert np.array_equal(log.observations, observations)
    assert not [found for found in check_log(log) if found.ok is False]


def test_next_observations_have_as_many_numbers(tmp_path):
    parts = {"observations": np.eye(3), "actions": np.zeros((3, 1))}
    np.savez(tmp_path / "n.npz", **parts, next_observations=np.ones((3, 1)))
    with pytest.raises(LogError, match=r"next_observations have shape \(3, 1\), expected \(3, 3\)"):
        read_log([tmp_path / "n.npz"])


def test_files_without_rows_are_named(tmp_path):
    np.savez(tmp_path / "zero.npz", observations=np.zeros((0, 2)), actions=np.zeros((0, 1)))
    with pytest.raises(LogError, match=r"zero\.npz has no rows"):
        read_log([tmp_path / "zero.npz"])
