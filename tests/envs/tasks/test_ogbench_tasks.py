"""OGBench's tasks: goals, successes, step limits and seeds, and which environments are refused."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from factory import subprocess_environment
from gymnasium.vector import AutoresetMode, SyncVectorEnv

pytest.importorskip("ogbench")

from stable_baselines3.common.evaluation import evaluate_policy

from qgpo import BC, BCConfig, OfflineDataset, evaluate
from qgpo.agents import EvaluationCallback
from qgpo.envs.tasks import making, ogbench
from qgpo.envs.tasks.families import find_family
from qgpo.envs.tasks.making import check_played, make_env

CUBE, MAZE = "cube-single-singletask-task2-v0", "pointmaze-medium-singletask-task1-v0"
GOAL = np.array([0.50, 0.0, 0.02])
"""of the cube, in meters; it starts near (0.35, 0)"""
CENTER = np.array([0.425, 0.0, 0.0])
"""observations are ten times the distances from there"""


class PickAndPlace:
    """A script that lifts the cube to the goal; where episodes begin in rows to skip, it waits."""

    def __init__(self, skip=()):
        self.skip = list(skip)

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        rows = np.atleast_2d(observation)
        state = np.zeros((len(rows), 2), int) if state is None else state.copy()
        state[episode_start] = 0
        actions = np.stack([self.act(row, phase) for row, phase in zip(rows, state, strict=True)])
        actions[self.skip] = 0.0
        return actions, state

    def act(self, row, phase):
        """One action (5,); `phase` is which of seven, and for how many steps."""
        hand, cube = row[12:15] / 10.0 + CENTER, row[19:22] / 10.0 + CENTER
        turn = np.arctan2(row[27], row[26]) - np.arctan2(row[16], row[15])
        turn = (turn + np.pi / 4) % (np.pi / 2) - np.pi / 4  # a cube looks the same four times
        above, beyond = cube + np.array([0, 0, 0.12]), GOAL + np.array([0, 0, 0.1])
        lifted, over = (np.array([*place[:2], 0.2]) for place in (cube, GOAL))
        places = [above, cube, cube, lifted, over, GOAL, beyond]
        grip = [-1, -1, 1, 1, 1, 1, -1][phase[0]]
        way = places[phase[0]] - hand
        phase[1] += 1
        if phase[1] > 9 if phase[0] == 2 else np.linalg.norm(way) < 0.012 and phase[0] < 6:
            phase[:] = phase[0] + 1, 0
        move = [*(way / 0.05), turn / 0.3 if phase[0] < 2 else 0.0, grip]
        return np.clip(move, -1.0, 1.0).astype(np.float32)


class Still:
    """Does nothing, or what `before` does to the environment, which counts its calls."""

    def __init__(self, n_actions, before=None):
        self.n_actions, self.before, self.calls = n_actions, before, 0

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        if self.before is not None:
            self.before(self.calls)
        self.calls += 1
        return np.zeros((*np.shape(observation)[:-1], self.n_actions), np.float32), state


@pytest.fixture(scope="module")
def cube():
    with make_env(CUBE) as env:
        yield env


def put_cube(env, place):
    """Lay the cube there."""
    joint = env.unwrapped.data.joint("object_joint_0")
    joint.qpos[:] = [*place, 1.0, 0.0, 0.0, 0.0]
    joint.qvel[:] = 0.0


def test_copies_play_what_one_environment_plays(cube):
    """A reward is -1 for each step whose state is not solved, so a return is 1 - length."""
    alone = evaluate(PickAndPlace(), cube, 3, seed=3)
    assert alone.successes == [True] * 3
    assert alone.returns == [1.0 - n for n in alone.lengths]
    assert all(40 < n < 90 for n in alone.lengths)
    together = evaluate(PickAndPlace(), CUBE, 3, seed=3, n_envs=2)
    assert together == alone


def test_a_failure_takes_all_steps(cube):
    half = evaluate(PickAndPlace(skip=[1]), CUBE, 2, n_envs=2)
    assert half.successes == [True, False]
    assert half.lengths[1] == 200
    assert half.returns == [1.0 - half.lengths[0], -200.0]
    assert (half.score, half.cut) == (50.0, 0)  # the environment ends at its limit by itself
    # Wilson by hand, p = 1/2, n = 2: 1/2 +- 1.96 sqrt(1/8 + 0.2401) / (1 + 1.9207)
    assert half.score_interval == pytest.approx((9.45, 90.55), abs=0.01)


def test_success_is_that_of_the_state_before_the_action(cube):
    """As OGBench has single tasks since 1.2.0: the step after the solved state says so."""
    agent = Still(5, lambda call: put_cube(cube, GOAL) if call == 0 else None)
    solved = evaluate(agent, cube, 1)
    # first step: its state is solved, and rewarded so, but the flag is that of the reset; second
    # step: the flag of the first one's end
    assert (solved.successes, solved.returns, solved.lengths) == ([True], [0.0], [2])
    agent = Still(5, lambda call: put_cube(cube, GOAL) if call == 199 else None)
    late = evaluate(agent, cube, 1)
    assert (late.successes, late.returns, late.lengths) == ([False], [-199.0], [200])


def test_the_goal_is_the_task_s_whatever_the_seed_and_the_options(cube):
    for seed, options in ((0, None), (1, {"task_id": 5})):
        observation, _ = cube.reset(seed=seed, options=options)
        assert cube.unwrapped.data.mocap_pos[0].tolist() == GOAL.tolist()
        start = observation[19:22] / 10.0 + CENTER
        np.testing.assert_allclose(start, [0.35, 0.0, 0.02], atol=0.0101)
    with make_env(MAZE) as maze:
        goals = [maze.reset(seed=seed) and maze.unwrapped.cur_goal_xy for seed in range(3)]
    assert goals == [(20, 20)] * 3  # cell (6, 6), 4 units wide, from -4


def test_a_reset_follows_from_its_seed_whatever_was_before(cube):
    """OGBench shows the goal after random actions of its own."""
    first, first_info = cube.reset(seed=5)
    cube.reset(seed=9)
    cube.step(cube.action_space.sample())
    again, again_info = cube.reset(seed=5)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first_info["goal"], again_info["goal"])


def test_spaces_are_the_same_objects_and_have_a_seed(cube):
    assert cube.action_space is cube.action_space is cube.unwrapped.action_space
    assert cube.observation_space is cube.observation_space
    first, second = [], []
    for drawn in (first, second):
        cube.action_space.seed(5)
        drawn += [*cube.action_space.sample()]
    assert first == second
    assert cube.spec.additional_wrappers == ()


@pytest.mark.parametrize("name", ["pointmaze-teleport", "antmaze-medium", "antsoccer-arena"])
def test_mazes_follow_from_the_seed_of_the_reset(name):
    """OGBench draws from NumPy's global generator, which stays as it is here."""
    played = []
    before = np.random.get_state()  # noqa: NPY002
    for first in (7, 8):
        with make_env(f"{name}-singletask-v0") as env:
            for seed in (first, 3):
                rows = [env.reset(seed=seed)[0]]
                actions = np.random.default_rng(0).uniform(-0.5, 1.0, (80, *env.action_space.shape))
                rows += [env.step(action.astype(np.float32))[0] for action in actions]
        played.append(np.array(rows))
    np.testing.assert_array_equal(played[0], played[1])
    after = np.random.get_state()  # noqa: NPY002
    assert (before[1] == after[1]).all()
    assert before[2:] == after[2:]


def test_teleports_follow_from_the_seed():
    with make_env("pointmaze-teleport-singletask-v0") as env:
        places = []
        for seed in (0, 0, *range(1, 9)):
            env.reset(seed=seed)
            env.unwrapped.set_xy(np.array([20.0, 12.0]))  # cell (4, 6): into the teleport
            env.step(np.zeros(2, np.float32))
            places.append(tuple(env.unwrapped.get_xy()))
    assert places[0] == places[1]
    assert len(set(places)) > 1


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_vector_environment_of_mazes(mode):
    """The first slot is put on its goal before each step, the second one stays where it is."""
    envs = SyncVectorEnv([lambda: make_env(MAZE)] * 2, autoreset_mode=mode)
    agent = Still(2, lambda _: envs.envs[0].unwrapped.set_xy(np.array([20.0, 20.0])))
    result = evaluate(agent, envs, 3)
    assert result.successes == [True, False, True]
    assert result.lengths == [1, 1000, 1]
    assert result.returns == [0.0, -1000.0, 0.0]
    assert result.score == pytest.approx(200 / 3)


def test_every_task_is_known():
    making.register_package(MAZE)
    limits = {"cube-single": 200, "cube-double": 500, "scene": 750, "puzzle-3x3": 500}
    tasks = [i for i in gym.registry if "singletask" in i and not i.startswith("visual-")]
    assert len(tasks) > 100
    for env_id in tasks:
        family, spec = find_family(env_id=env_id), gym.spec(env_id)
        assert family.success
        assert family.package == "ogbench"
        assert family.other_task(spec) is None
        environment = env_id.partition("-singletask")[0]
        assert spec.max_episode_steps == limits.get(environment, spec.max_episode_steps)
        assert family.n_envs == (50 if "maze" in env_id or "soccer" in env_id else 10)


def test_all_other_environments_are_refused():
    making.register_package(MAZE)
    of_ogbench = re.compile(r"(visual-)?" + ogbench.ENVIRONMENTS + r"-.*")
    others = [i for i in gym.registry if of_ogbench.fullmatch(i)]
    refused = [i for i in others if find_family(env_id=i).refused is not None]
    assert {i for i in others if "singletask" not in i or "visual" in i} == set(refused)
    for env_id in refused:
        with pytest.raises(ValueError, match=r"-singletask") as caught:
            check_played(env_id)
        assert env_id in str(caught.value)


@pytest.mark.parametrize(
    ("env_id", "why"),
    [
        ("cube-single-v0", "agents do not observe it: use one of its tasks, "
         "cube-single-singletask-task1-v0 to cube-single-singletask-task5-v0"),
        ("visual-cube-single-singletask-task2-v0", f"images, .* use {CUBE}$"),
        ("visual-scene-v0", "images, .* use scene-singletask-task1-v0 to"),
        ("cube-single-play-singletask-task2-v0", f"name of a dataset: use {CUBE}$"),
        ("cube-single-play-oraclerep-v0", "name of a dataset: use cube-single-singletask-"),
        ("puzzle-4x4-oraclerep-v0", "its goal changes.* puzzle-4x4-singletask-task1-v0 to"),
        ("cube-single-singletask-task6-v0", "no such task: use cube-single-singletask-task1"),
    ],
)  # fmt: skip
def test_what_is_no_task_is_refused_with_what_is_one(env_id, why):
    with pytest.raises(ValueError, match=f"environment '{env_id}' cannot be used: .*{why}"):
        evaluate(Still(5), env_id, 1)
    with pytest.raises(ValueError, match=why):
        EvaluationCallback(env_id)


def test_made_environments_with_any_goal_are_refused():
    with (
        make_env("pointmaze-medium-v0") as env,
        pytest.raises(ValueError, match="its goal changes"),
    ):
        evaluate(Still(2), env, 1)
    envs = SyncVectorEnv([lambda: make_env("pointmaze-medium-v0")])
    with pytest.raises(ValueError, match="its goal changes"):
        evaluate(Still(2), envs, 1)


def test_without_the_package_the_installation_is_named(monkeypatch):
    def missing():
        raise ImportError("No module named 'ogbench'")

    monkeypatch.setitem(making.PACKAGES, "ogbench", (missing, ogbench.INSTALL))
    with pytest.raises(ValueError, match=r"needs the package ogbench.*pip install ogbench"):
        evaluate(Still(5), CUBE, 1)


def train(observations, actions, callback=None):
    """An agent with a few steps on noise of these dimensions."""
    rng = np.random.default_rng(0)
    data = OfflineDataset.from_arrays(
        rng.normal(size=(33, observations)).astype(np.float32),
        rng.uniform(-1.0, 1.0, (32, actions)).astype(np.float32),
        rewards=-np.ones(32, np.float32),
        terminations=np.zeros(32, bool),
    )
    config = BCConfig(steps=2, batch_size=8, hidden=(8,))
    return BC(config, seed=0, device="cpu").learn(data, callback)


def test_sb3_evaluates_an_agent(cube):
    agent = train(28, 5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Monitor.*")
        returns, lengths = evaluate_policy(agent, cube, 1, return_episode_rewards=True)
    ours = evaluate(agent, cube, 1)
    assert lengths == [200] == ours.lengths
    assert returns == [-200.0] == ours.returns


def test_sb3_finds_the_success(tmp_path):
    """EvalCallback takes `is_success` into its file."""
    callback = EvaluationCallback(MAZE, None, None, 2, 2, log_path=tmp_path, n_envs=2)
    train(2, 2, callback)
    with np.load(tmp_path / "evaluations.npz") as file:
        assert file["successes"].tolist() == [[False, False]]


def test_environments_are_quiet_and_leave_nothing(tmp_path):
    code = (
        "from qgpo.envs.tasks.making import make_env\n"
        f"for env_id in ('{CUBE}', '{MAZE}'):\n"
        "    for _ in range(2):\n"
        "        env = make_env(env_id)\n"
        "        env.reset(seed=0)\n"
        "        env.step(env.action_space.sample())\n"
    )
    environment = subprocess_environment(TMPDIR=str(tmp_path))
    for name in ("DISPLAY", "MUJOCO_GL"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_mazes_keep_no_file_open():
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("open files are listed on Linux alone")
    before = len(list(folder.iterdir()))
    for _ in range(3):
        make_env(MAZE).close()
    assert len(list(folder.iterdir())) == before
