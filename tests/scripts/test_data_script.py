from __future__ import annotations

import importlib.util
import inspect
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import SCRIPTS, run
from factory import MAIN, make_dataset, numbered_episodes, write_buffers
from factory import REMOTE_ID as ID

from qgpo.envs.data.figure import (
    _spread,
    action_differences,
    action_shares,
    draw_dataset,
    principal_components,
    summary,
)
from qgpo.envs.store.local import folder_of, local_ids
from qgpo.scripts import data as script


def call(*argv):
    script.main(argv)


def refused(*argv):
    with pytest.raises(SystemExit) as caught:
        call(*argv)
    return str(caught.value)


def write(dataset_id, lengths=(2, 3)):
    return write_buffers(numbered_episodes(lengths, [True] * len(lengths)), dataset_id)


def test_script_names_hide_no_module():
    assert "data" in SCRIPTS
    for name in SCRIPTS:
        assert name != "datasets"
        assert importlib.util.find_spec(name) is None, name


@pytest.mark.parametrize("name", script.COMMANDS)
def test_help_describes_every_parameter(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    command = script.COMMANDS[name]
    with pytest.raises(SystemExit):
        call(name, "--help")
    described = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for parameter in inspect.signature(command).parameters:
        text = inspect.getdoc(command).split(f"\n    {parameter}: ")[1].splitlines()[0]
        assert text in described, parameter


def test_list_shows_all_places(hub, capsys):
    write("test/mine-v0")
    call("list")
    text = capsys.readouterr().out
    assert f"local ({folder_of('')}): 1" in text
    assert "remote (hf://farm): 1" in text
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert lines[ID].endswith("not downloaded")
    assert lines["test/mine-v0"].split()[1:6] == ["5", "2", "0", "by", "hand"]
    assert lines["qgpo/hopper/mixed-v0"].endswith("made on first use, half a minute")


def test_list_as_json_with_a_prefix(hub, capsys):
    call("download", ID, "--no-progress-bar")
    capsys.readouterr()
    call("list", "--prefix", "test/remote/", "--as-json")
    local, remote = json.loads(capsys.readouterr().out)
    assert (local["id"], local["where"], local["missing"]) == (ID, "local", [])
    assert (remote["id"], remote["where"], remote["missing"]) == (ID, "remote", [])


def test_list_without_network_shows_the_rest(capsys):
    write("test/mine-v0")
    call("list")
    text = capsys.readouterr().out
    assert text.startswith("remote: hf://farama-minari cannot be reached (OfflineMode")
    assert "test/mine-v0" in text
    assert "cannot be reached" in refused("list", "--where", "remote")


def test_download_check_and_repair(hub, capsys):
    call("download", "test/remote/numbered", "--no-progress-bar")
    out, err = capsys.readouterr()
    assert out == f"{ID}: 2 episodes, 5 steps in {folder_of(ID)}\n"
    assert err == ""
    call("check", ID)
    assert "ok  files " in capsys.readouterr().out
    main = folder_of(ID) / "data" / "main_data.hdf5"
    main.write_bytes(main.read_bytes()[:-1] + b"x")
    assert refused("check", ID) == f"bad: {ID}"
    assert "changed since their download: data/main_data.hdf5" in capsys.readouterr().out
    call("download", ID, "--force", "--no-progress-bar")
    call("check", ID)


def test_a_failed_download_is_one_line(hub):
    hub.spoils[MAIN] = 2
    text = refused("download", ID, "--no-progress-bar")
    assert text.startswith(f"error: dataset {ID!r}: data/main_data.hdf5 were downloaded twice")
    assert refused("download") == "error: no dataset id given, expected at least one"


def test_combine(capsys):
    write("test/a-v0")
    write("test/b-v0", (4,))
    call("combine", "test/a-v0", "test/b-v0", "--dataset-id", "mine/both-v0", "--no-progress-bar")
    assert capsys.readouterr().out.startswith("mine/both-v0: 3 episodes, 9 steps\ntrain on it:")
    assert "mine/both-v0" in local_ids()
    ours = ("--dataset-id", "qgpo/hopper/both-v0")
    assert "reserved for the bundled datasets" in refused(
        "combine", "test/a-v0", "test/b-v0", *ours
    )


def test_show_writes_the_picture_and_the_summary(capsys):
    write("test/a-v0")
    Path("test-a-v0.png").touch()
    assert "replace it with --overwrite" in refused("show", "test/a-v0")
    call("show", "test/a-v0", "--overwrite")
    text = capsys.readouterr().out
    assert "5 transitions, 2 episodes" in text
    assert "mean 153, 2 to 304, median 153" in text  # 0.5 + 1.5; 100.5 + … + 102.5
    assert Path("test-a-v0.png").read_bytes().startswith(b"\x89PNG")
    assert "ending in .png" in refused("show", "test/a-v0", "--output", "picture.txt")


@pytest.fixture
def processes(monkeypatch):
    """How many processes are asked for; none is started, and 3.7 cores are free to use."""
    pytest.importorskip("ogbench")
    asked = []

    def play(parts, indices, processes):
        asked.append(processes)
        for index in indices:
            parts.write(index)
            yield index

    monkeypatch.setattr("qgpo.envs.store.generating.played", play)
    monkeypatch.setattr(script, "available_cores", lambda: 3.7)
    return asked


def test_generate_makes_trajectories_and_says_how_to_train_on_them(processes, capsys):
    call("generate", "ogbench/pointmaze-medium-stitch", "--steps", "500")
    made = "ogbench-generated/pointmaze-medium-stitch-500"
    assert processes == [3]
    assert local_ids() == [f"{made}-v0"]
    first, *commands = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{made}-v0: 3 trajectories, 600 steps, 0.1 MB in {folder_of('')}")
    assert [line.split("--dataset-id ")[1] for line in commands] == [
        f"{made}-singletask-task{number}-v0" for number in (1, 2, 3, 4, 5)
    ]
    assert all(line.startswith("train on it: ") for line in commands)

    call("generate", f"{made}-v0", "--processes", "1")
    assert processes == [3]
    assert capsys.readouterr().out.startswith(f"{made}-v0 already exists: nothing is generated\n")
    call("generate", "pointmaze-medium-stitch", "--steps", "500", "--seed", "2", "--processes", "1")
    assert processes == [3, 1]
    assert local_ids() == [f"{made}-seed2-v0", f"{made}-v0"]


def test_generate_refuses_with_one_line_and_says_how_to_go_on(processes, monkeypatch):
    assert "trained networks" in refused("generate", "ogbench/antmaze-large-navigate-v0")
    assert "says 1000" in refused("generate", "ogbench-generated/scene-play-1k-v0", "--steps", "7")
    assert "processes=0" in refused("generate", "scene-play", "--processes", "0")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("qgpo.envs.store.generating.played", stop)
    stopped = refused("generate", "pointmaze-medium-stitch")
    assert "run the same command again to continue after the finished trajectories" in stopped
    assert local_ids() == []


def test_numbers_of_the_picture_by_hand():
    actions = np.array([[-1.0], [-0.9], [0.0], [1.0]], np.float32)
    dataset = make_dataset(lengths=(1, 3), actions=actions)
    assert dataset.episode_lengths.tolist() == [1, 3]
    assert action_shares(dataset, 4).tolist() == [[0.5, 0.0, 0.25, 0.25]]
    rare = make_dataset(lengths=(1, 3), rewards=np.array([0.0, 0.99, 0.0, 0.0], np.float32))
    assert dict(summary(rare))["return"] == "mean 0.495, 0 to 0.99, median 0.495"
    assert dict(summary(dataset))["at a bound"] == "50.0 % of action values"


def test_a_single_transition_can_be_drawn(tmp_path):
    draw_dataset(tmp_path / "one.png", make_dataset(lengths=(1,)))
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_line_as_it_is_started(hub, tmp_path):
    """No module of ours in the way, no import that only works inside the tests."""
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    done = run("data", "download", ID, cwd=tmp_path, data=folder_of(""), **environment)
    assert done.stdout.startswith(f"{ID}: 2 episodes")
    assert "100%" in done.stderr


def test_neighbors_that_act_alike_differ_less_than_any_two_states():
    data = make_dataset(lengths=(200, 200))
    alike = replace(data, actions=np.tanh(np.asarray(data.observations[:, :1], np.float32)))
    near, far = action_differences(alike)
    assert np.median(near) < 0.5 * np.median(far)
    near, far = action_differences(data)
    assert abs(np.median(near) - np.median(far)) < 0.15


def test_two_directions_hold_a_plane_and_no_more():
    data = make_dataset(lengths=(300, 300), observation_dim=4)
    states = np.asarray(data.states).copy()
    states[:, 2], states[:, 3] = states[:, 0] + states[:, 1], 1.0
    points, share = principal_components(replace(data, states=states))
    assert points.shape[1] == 2
    assert share == pytest.approx(1.0)
    assert principal_components(data)[1] < 0.7


def test_a_summary_is_never_longer_than_its_place():
    # pictures cut what has more than 52 characters
    assert _spread(np.array([-5.395e-06, -9.871e-05, -1.234e-06])) == (
        "mean -3.5e-05, -9.9e-05 to -1.2e-06, median -5.4e-06"
    )
    for scale in (1e-9, 1e-4, 1.0, 123.0, 1e7, 1e12):
        assert len(_spread(-scale * np.array([0.12345, 0.54321, 0.98765]))) <= 52
