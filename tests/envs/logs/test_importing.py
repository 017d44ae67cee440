from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
from recordings import NAMES, TABLE, sound, write_lerobot, write_table

from qgpo import BC, BCConfig, load_dataset
from qgpo.envs.logs.columns import LogError
from qgpo.envs.logs.importing import action_box, findings, import_log, prepare
from qgpo.envs.logs.reading import read_log
from qgpo.envs.store.combining import combine
from qgpo.envs.store.local import local_ids
from qgpo.scripts import data


def test_a_recording_becomes_a_dataset_with_the_same_numbers():
    log = sound()
    import_log(log, "mine/arm-v0")
    dataset = load_dataset("mine/arm-v0", download=False)
    assert dataset.n_episodes == 2
    assert len(dataset) == 30 + 39  # the last row of the truncated episode leads nowhere
    assert np.allclose(dataset.observations[:30], log.observations[:30])
    assert np.allclose(dataset.next_observations[:29], log.observations[1:30])
    assert np.allclose(dataset.actions, np.delete(log.actions, 69, axis=0))
    assert np.allclose(dataset.rewards, np.delete(log.rewards, 69))
    assert np.flatnonzero(dataset.terminations).tolist() == [29]
    assert np.flatnonzero(dataset.truncations).tolist() == [68]
    BC(BCConfig(steps=2, batch_size=4, hidden=(4,))).learn(dataset)
    with pytest.raises(ValueError, match="already exists"):
        import_log(log, "mine/arm-v0")


def test_of_a_known_environment_it_keeps_the_name_and_must_fit():
    env = gym.make("Pendulum-v1")
    observations = np.stack([env.reset(seed=k)[0] for k in range(6)])
    log = dataclasses.replace(
        sound((6,)), observations=observations, actions=np.zeros((6, 1)), action_names=("u",)
    )
    import_log(log, "mine/pendulum-v0", env_id="Pendulum-v1")
    assert load_dataset("mine/pendulum-v0", download=False).env_spec.id == "Pendulum-v1"
    with pytest.raises(ValueError, match="2 action columns, the actions of Pendulum-v1 are"):
        import_log(sound((6,)), "mine/other-v0", env_id="Pendulum-v1")


def test_the_bounds_of_a_known_environment_hold(capsys):
    env = gym.make("Pendulum-v1")
    observations = np.stack([env.reset(seed=k)[0] for k in range(6)])
    log = dataclasses.replace(
        sound((6,)), observations=observations, actions=np.full((6, 1), 3.0), action_names=("u",)
    )
    said = "6 of 6 actions lie outside the actions of Pendulum-v1"
    for read in (import_log, lambda log, _, **more: findings(log, **more)):
        with pytest.raises(LogError, match=said):
            read(log, "mine/pendulum-v0", env_id="Pendulum-v1")
        with pytest.raises(LogError, match="--low and --high: the bounds are those of"):
            read(log, "mine/pendulum-v0", env_id="Pendulum-v1", low=[-1.0], high=[1.0])
    half = dataclasses.replace(log, actions=log.actions / 3.0)
    (bounds,) = (f.text for f in findings(half, env_id="Pendulum-v1") if f.what == "bounds")
    assert bounds == "[-2, 2]: those of Pendulum-v1; the recorded ones from 1 to 1"
    assert "mine" not in {name.split("/")[0] for name in local_ids()}


def test_imports_with_other_bounds_are_combined_once_these_are_stated():
    first = sound()
    second = dataclasses.replace(first, actions=5.0 * first.actions)
    import_log(first, "mine/arm-v0")
    import_log(second, "mine/arm-v1")
    with pytest.raises(ValueError, match=r"action_space.*import both with the same --low and --h"):
        combine(("mine/arm-v0", "mine/arm-v1"), "mine/arm-v2", progress_bar=False)
    for version, log in ((3, first), (4, second)):
        import_log(log, f"mine/arm-v{version}", low=(-9.0,), high=(9.0,))
    combine(("mine/arm-v3", "mine/arm-v4"), "mine/arm-v5", progress_bar=False)
    assert load_dataset("mine/arm-v5", download=False).n_episodes == 2 * 2


def test_bounds_are_stated_or_those_of_the_data():
    log = sound()
    assert action_box(log)[0] == gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    wide = dataclasses.replace(log, actions=log.actions * [10.0, 0.0] + [0.0, 5.0])
    box, said = action_box(wide)
    assert said.startswith("the range of the data")
    assert np.allclose(box.low, [wide.actions[:, 0].min(), 0.0])
    assert np.allclose(box.high, [wide.actions[:, 0].max(), 10.0])
    assert action_box(wide, (-20.0,), (20.0,))[0].high.tolist() == [20.0, 20.0]
    tenths = np.clip(0.2 * log.actions, -0.1, 0.1).astype(np.float32)  # 0.1 becomes a little more
    assert float(tenths.max()) > 0.1
    narrow = dataclasses.replace(log, actions=tenths)
    assert action_box(narrow, (-0.1,), (0.1,))[0].high.tolist() == [np.float32(0.1)] * 2
    whole = dataclasses.replace(log, actions=np.full(log.actions.shape, -128, np.int8))
    box, said = action_box(whole)
    assert said.startswith("the range of the data")
    assert (box.low[0], box.high[0]) == (-256.0, 0.0)
    for low, high, error in [
        ((-1.0,), (), "one of --low and --high"),
        ((-1.0,) * 3, (1.0,), "--low has 3 numbers, expected 1 or 2"),
        ((1.0,), (-1.0,), "expected low below high"),
        ((-1.0,), (1.0,), r"lie outside --low and --high, columns \['u0', 'u1'\]"),
    ]:
        with pytest.raises(LogError, match=error):
            action_box(wide, low, high)


def test_what_is_bad_is_never_written():
    log = dataclasses.replace(sound(), times=sound().times[::-1].copy())
    with pytest.raises(LogError, match="a log: time: time goes backward"):
        import_log(log, "mine/bad-v0")
    assert [f.what for f in findings(log) if f.ok is False] == ["time"]
    with pytest.raises(LogError, match="no transition is there"):
        import_log(dataclasses.replace(sound((1,)), terminations=None), "mine/bad-v0")


def test_faults_can_be_left_out():
    log = sound()
    observations = log.observations.copy()
    observations[0, 0] = np.nan
    broken = dataclasses.replace(log, observations=observations)
    assert all(f.ok is not False for f in findings(prepare(broken, skip=[0])))


# The command ------------------------------------------------------------------------------

FLAGS = [
    *("--observations", "q*", "dq0", "--actions", "u", "--reward", "r"),
    *("--episode", "trial", "--time", "t", "--termination", "fell"),
]


def test_the_command_says_what_it_found_and_how_to_train(tmp_path, capsys):
    write_table(tmp_path / "log.csv")
    data.main(["import", "log.csv", "--dataset-id", "mine/arm-v0", *FLAGS])
    said = capsys.readouterr().out
    assert "ok  size        5 rows in 2 episodes, observations 3, actions 1" in said
    assert "-   ends        1 episode terminated, 0 truncated, 1 with neither flag" in said
    assert "mine/arm-v0: 2 episodes, 4 steps" in said
    assert "--dataset-id mine/arm-v0 --n-episodes 0" in said
    dataset = load_dataset("mine/arm-v0", download=False)
    log = read_log([tmp_path / "log.csv"], NAMES)
    assert np.array_equal(dataset.observations, log.observations[:4].astype(np.float32))


def test_the_command_writes_nothing_that_is_bad(tmp_path, capsys):
    write_table(tmp_path / "log.csv", TABLE.replace("0.04", "0.40"))
    command = ["import", "log.csv", "--dataset-id", "mine/arm-v0", *FLAGS]
    with pytest.raises(SystemExit, match="bad: time; nothing was written"):
        data.main(command)
    assert "BAD time        1 gaps" in capsys.readouterr().out
    with pytest.raises(ValueError, match="mine/arm-v0"):
        load_dataset("mine/arm-v0", download=False)
    data.main([*command, "--split-gaps", "--dry-run"])
    with pytest.raises(ValueError, match="mine/arm-v0"):
        load_dataset("mine/arm-v0", download=False)
    data.main([*command, "--split-gaps"])
    # the row after the gap is an episode of its own, which is kept because it terminates
    assert load_dataset("mine/arm-v0", download=False).episode_lengths.tolist() == [1, 1, 1]


def test_the_command_reads_lerobot_s_folders(tmp_path, capsys):
    write_lerobot(tmp_path / "arm", "v3.0")
    data.main(["import", "arm", "--dataset-id", "mine/arm-v0"])
    assert "left out: 'observation.images.top'" in capsys.readouterr().out
    assert load_dataset("mine/arm-v0", download=False).episode_lengths.tolist() == [4, 2]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "no --dataset-id is given"),
        (["--dataset-id", "mine/x-v0"], "no reward column: name one with --reward, or say --no-re"),
        (["--dataset-id", "mine/x-v0", "--actions", "w"], "no column is called 'w'"),
        (["--dataset-id", "x", "--no-reward"], "malformed"),
    ],
)
def test_the_command_names_what_is_missing(tmp_path, flags, said):
    write_table(tmp_path / "log.csv", "obs,action\n1,0.5\n2,0.25\n4,0.1\n")
    with pytest.raises(SystemExit, match=said):
        data.main(["import", "log.csv", *flags])
    data.main(["import", "log.csv", "--dataset-id", "mine/bc-v0", "--no-reward"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(SystemExit, match="expected files, or one folder in LeRobot's format"):
        data.main(["import", "folder", "--dry-run"])


def replayed(order):
    """Transitions of one walk in that order, each with its next observation."""
    walk = np.random.default_rng(3).normal(size=(21, 2)).cumsum(axis=0)
    log = sound((20,))
    return walk, dataclasses.replace(
        log,
        observations=walk[:-1][order],
        observation_names=("x", "y"),
        actions=log.actions[order],
        rewards=log.rewards[order],
        terminations=np.zeros(len(order), bool),
        truncations=np.zeros(len(order), bool),
        episodes=np.zeros(len(order), int),
        times=None,
        next_observations=walk[1:][order],
    )


@pytest.mark.parametrize("kind", ["in order", "shuffled", "every other one"])
def test_a_transition_leads_where_it_was_recorded_to(kind):
    order = {
        "in order": np.arange(20),
        "shuffled": np.random.default_rng(0).permutation(20),
        "every other one": np.arange(0, 20, 2),
    }[kind]
    walk, log = replayed(order)
    import_log(log, "mine/replayed-v0")
    dataset = load_dataset("mine/replayed-v0", download=False)
    assert np.allclose(dataset.observations, walk[:-1][order], atol=1e-6)
    assert np.allclose(dataset.next_observations, walk[1:][order], atol=1e-6)
    assert not dataset.terminations.any()
    said = [f.text for f in findings(prepare(log)) if "episodes are cut there" in f.text]
    assert bool(said) == (kind != "in order")


def test_a_gap_is_a_cut_whatever_the_ends_of_episodes_are():
    log = sound()
    log = dataclasses.replace(log, terminations=None, truncations=None)
    kept = np.ones(len(log), bool)
    kept[10:13] = False  # of the first episode, which has thirty rows
    split = prepare(log.rows(kept), split_gaps=True)
    import_log(split, "mine/gaps-v0", ends="terminated")
    dataset = load_dataset("mine/gaps-v0", download=False)
    assert np.flatnonzero(dataset.truncations).tolist() == [8]  # the row before leads nowhere
    assert dataset.terminations.sum() == 2


def walks(n=4, length=10):
    """Walks of two numbers, each with next observations, as a Log and its columns."""
    rng = np.random.default_rng(5)
    paths = [rng.normal(size=(length + 1, 2)).cumsum(axis=0) for _ in range(n)]
    log = sound((length,) * n)
    return dataclasses.replace(
        log,
        observations=np.concatenate([path[:-1] for path in paths]),
        observation_names=("x", "y"),
        terminations=None,
        truncations=None,
        times=None,
        next_observations=np.concatenate([path[1:] for path in paths]),
    )


@pytest.mark.parametrize("kind", ["float32", "six digits", "constant", "far from 0"])
def test_rounding_cuts_no_episode(kind):
    log = walks()
    here, following = log.observations.copy(), log.next_observations.copy()
    if kind == "constant":
        here[:, 1], following[:, 1] = 1.0 / 3.0, np.round(1.0 / 3.0, 6)
    if kind == "far from 0":
        here[:, 1], following[:, 1] = (48.137154 + 1e-5 * x[:, 1] for x in (here, following))
    following = np.round(following, 6) if kind == "six digits" else following.astype(np.float32)
    assert not dataclasses.replace(log, observations=here, next_observations=following).breaks.any()


def test_an_outlier_hides_no_break():
    log = walks()
    here = log.observations.copy()
    here[0, 0] = 1e9
    following = log.next_observations.copy()
    following[14] += 5.0
    broken = dataclasses.replace(log, observations=here, next_observations=following)
    assert np.flatnonzero(broken.breaks).tolist() == [14]


def test_episodes_keep_their_numbers_where_they_are_cut():
    log = walks(8)
    following, here = log.next_observations.copy(), log.observations.copy()
    following[[3, 15]] += 5.0  # breaks in episodes 0 and 1
    here[24, 0] = np.nan  # in episode 2
    following[23, 0] = np.nan
    log = dataclasses.replace(log, next_observations=following, observations=here)
    said = [f.text for f in findings(prepare(log)) if f.what == "values"]
    assert len(said) == 2  # of observations and of next observations
    assert all("first in episode 2" in text for text in said)
    assert all("--skip-episodes 2)" in text for text in said)
    assert prepare(log, skip=[2]).lengths.tolist() == [4, 6, 6, 4, 10, 10, 10, 10, 10]


def test_episodes_that_take_turns_are_refused_whatever_is_cut():
    log = walks(4)
    order = np.argsort(np.tile(np.arange(10), 4), kind="stable")
    turns = log.rows(order)
    assert [f.ok for f in findings(prepare(turns)) if f.what == "size"] == [False]
