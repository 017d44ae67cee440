from __future__ import annotations

import dataclasses
import math
import re

import gymnasium as gym
import numpy as np
import pytest
from factory import ROOT, UNIT_BOX, numbered_episodes, write_buffers
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from qgpo import PRESETS, QIPO, load_dataset
from qgpo.agents import AGENTS
from qgpo.agents.core.config import longer
from qgpo.envs.store.episode_rules import RULES, first_completions, until_success
from qgpo.envs.store.opening import recorded_in
from qgpo.envs.tasks import making
from qgpo.envs.tasks.families import FAMILIES, UNKNOWN, family_settings, find_family
from qgpo.envs.tasks.making import make_env
from qgpo.scripts.train import parse

LOCOMOTION = {
    "hopper": ("Hopper-v5", 3234.3),
    "halfcheetah": ("HalfCheetah-v5", 12135.0),
    "walker2d": ("Walker2d-v5", 4592.3),
    "ant": ("Ant-v5", 3879.7),
    "humanoid": ("Humanoid-v5", None),
    "humanoidstandup": ("HumanoidStandup-v5", None),
    "invertedpendulum": ("InvertedPendulum-v5", None),
    "inverteddoublependulum": ("InvertedDoublePendulum-v5", 9276.4),
    "reacher": ("Reacher-v5", -3.9784),
    "pusher": ("Pusher-v5", None),
    "swimmer": ("Swimmer-v5", 359.127),
}
MAZES = ["umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse"]


@pytest.mark.parametrize("name", sorted(LOCOMOTION))
@pytest.mark.parametrize("quality", ["medium-v0", "expert-v0"])
def test_every_locomotion_id_has_environment_and_scale(name, quality):
    env_id, maximum = LOCOMOTION[name]
    family = find_family(f"mujoco/{name}/{quality}")
    assert family.environment == env_id
    assert gym.spec(env_id).max_episode_steps is not None
    assert find_family(env_id=env_id) is family
    reference = family.scores({}, gym.spec(env_id))
    assert (reference.maximum if reference else None) == maximum
    assert reference is None or reference.source.startswith(("D4RL", "uniform actions, and "))


@pytest.mark.parametrize(
    ("dataset_id", "name"),
    [
        *[(f"D4RL/antmaze/{m}-v1", "antmaze") for m in MAZES[2:]],
        *[(f"D4RL/antmaze/{m}-v1", "antmaze-umaze") for m in MAZES[:2]],
        ("antmaze-medium-play-v0", "antmaze"),
        *[(f"D4RL/pointmaze/{m}-v2", "pointmaze") for m in ("open", "umaze", "medium", "large")],
        *[(f"D4RL/pointmaze/{m}-dense-v2", "pointmaze-dense") for m in ("open", "umaze")],
        *[(f"D4RL/kitchen/{k}-v2", "kitchen") for k in ("complete", "partial", "mixed")],
        *[(f"D4RL/pen/{k}-v2", "pen") for k in ("human", "cloned", "expert")],
        *[(f"D4RL/{t}/human-v2", t) for t in ("door", "hammer", "relocate")],
        ("mine/hopper/medium-v0", "unknown"),
    ],
)
def test_ids_have_their_row(dataset_id, name):
    assert find_family(dataset_id).name == name


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("Hopper-v4", "hopper"),
        ("HumanoidStandup-v5", "humanoidstandup"),
        ("AntMaze_UMaze-v5", "antmaze-umaze"),
        ("AntMaze_Large_Diverse_GR-v4", "antmaze"),
        ("AntMaze_UMazeDense-v4", "antmaze-dense"),
        ("PointMaze_Medium_Diverse_G-v3", "pointmaze"),
        ("PointMaze_LargeDense-v3", "pointmaze-dense"),
        ("AdroitHandPen-v1", "pen"),
        ("AdroitHandPenSparse-v1", "unknown"),
        ("Pendulum-v1", "pendulum"),
        ("MountainCarContinuous-v0", "unknown"),
    ],
)
def test_environments_have_their_row(env_id, name):
    assert find_family("mine/some-v0", env_id).name == name


def test_the_id_of_the_data_goes_before_the_environment():
    assert find_family("D4RL/kitchen/mixed-v2", "Hopper-v5").name == "kitchen"


def test_rows_are_well_formed():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    fields = {field.name for field in dataclasses.fields(PRESETS["paper"])}
    for family in (*FAMILIES, UNKNOWN):
        assert family.episodes in RULES
        re.compile(family.datasets), re.compile(family.environments)
        assert set(family.settings) <= set(PRESETS), family.name
        for preset, row in family.settings.items():
            assert set(row) <= fields, family.name
            dataclasses.replace(PRESETS[preset], **row)
        assert family.package is None or family.package in making.PACKAGES


def test_settings_are_those_the_agent_has():
    family = find_family("D4RL/antmaze/medium-play-v1")
    row = family_settings(family, "paper", {"support_actions", "beta_q", "tau"})
    assert row == {"support_actions": 32, "beta_q": 20.0}
    assert family_settings(family, "no such preset", {"beta_q"}) == {}
    assert family_settings(family, "paper-flow", {"support_actions", "beta_q", "tau"}) == row


def test_the_data_s_own_scale_goes_before_the_table():
    family = find_family("mujoco/hopper/medium-v0")
    spec = gym.spec("Hopper-v5")
    own = family.scores({"ref_min_score": -1.0, "ref_max_score": 7.0}, spec)
    assert (own.minimum, own.maximum, own.source) == (-1.0, 7.0, "dataset metadata")
    assert family.scores({"ref_min_score": 3.0, "ref_max_score": 3.0}, spec).maximum == 3234.3
    assert family.scores({}, None) is None


@pytest.mark.parametrize(("continuing", "maximum"), [(False, 1.0), (True, None), (None, None)])
def test_a_success_rate_needs_an_environment_that_ends_at_success(continuing, maximum):
    """The data's own pair counts the steps at the goal of an environment that goes on."""
    kwargs = {} if continuing is None else {"continuing_task": continuing}
    spec = EnvSpec("PointMaze_Medium-v3", "nowhere:Maze", max_episode_steps=600, kwargs=kwargs)
    metadata = {"ref_min_score": 2.0, "ref_max_score": 150.0}
    reference = find_family("D4RL/pointmaze/medium-v2").scores(metadata, spec)
    assert (reference.maximum if reference else None) == maximum


def test_the_kitchen_s_scale_needs_its_tasks():
    family = find_family("D4RL/kitchen/complete-v2")
    spec = family.played(EnvSpec("FrankaKitchen-v1", "nowhere:Kitchen", max_episode_steps=280))
    assert family.scores({}, spec) is None
    spec.kwargs["tasks_to_complete"] = ["microwave", "kettle", "light switch", "slide cabinet"]
    assert family.scores({}, spec).maximum == 4.0


def test_played_specs_leave_the_recorded_one_alone():
    recorded = EnvSpec("AdroitHandPen-v1", entry_point="nowhere:Pen", max_episode_steps=200)
    played = find_family("D4RL/pen/human-v2").played(recorded)
    assert (recorded.max_episode_steps, played.max_episode_steps) == (200, 100)
    assert find_family("D4RL/pen/human-v2").played(None) is None


def test_data_without_environment_are_played_in_the_row_s():
    dataset = load_dataset(
        write_buffers(numbered_episodes((3,), (True,)), "mujoco/pusher/medium-v0")
    )
    assert dataset.env_spec.id == "Pusher-v5"
    assert dataset.reference is None
    assert dataset.normalized_score(1.0) is None


@pytest.mark.filterwarnings("ignore:.*not for max_episode_steps=7")
def test_a_dataset_s_own_evaluation_environment_is_played():
    spec = gym.spec("Pendulum-v1")
    shorter = dataclasses.replace(spec, max_episode_steps=7)
    buffers = [
        dataclasses.replace(b, observations=np.zeros((4, 3)), actions=np.zeros((3, 1), np.float32))
        for b in numbered_episodes((3,), (False,))
    ]
    source = write_buffers(buffers, "test/pendulum-v0", env=spec, eval_env=shorter)
    assert load_dataset(source).env_spec.max_episode_steps == 7


def test_recorded_in_reads_what_lies_here():
    assert recorded_in("qgpo/hopper/mixed-v0") == "Hopper-v5"
    assert recorded_in("mine/nowhere-v0") is None
    buffers = [
        dataclasses.replace(b, observations=np.zeros((4, 3)), actions=np.zeros((3, 1), np.float32))
        for b in numbered_episodes((3,), (False,))
    ]
    write_buffers(buffers, "test/pendulum-v0", env=gym.spec("Pendulum-v1"))
    assert recorded_in("test/pendulum-v0") == recorded_in("test/pendulum") == "Pendulum-v1"
    assert recorded_in("qgpo/hopper/mixed") == "Hopper-v5"
    assert recorded_in("test/nowhere") is recorded_in("not//an-id-v") is None
    write_buffers(numbered_episodes((3,), (False,)), "test/homeless-v0", action_space=UNIT_BOX)
    assert recorded_in("test/homeless-v0") is None


def test_a_missing_package_is_named_with_its_installation(monkeypatch):
    def missing():
        raise ImportError("No module named 'gymnasium_robotics'")

    monkeypatch.setitem(making.PACKAGES, "gymnasium_robotics", (missing, "pip install it"))
    with pytest.raises(ValueError, match=r"'AntMaze_Medium-v4' needs the package .*: pip install"):
        make_env("AntMaze_Medium-v4")


def episode(rewards):
    n = len(rewards)
    return {
        "states": np.arange(n + 1, dtype=np.float32)[:, None],
        "actions": np.arange(n, dtype=np.float32)[:, None],
        "rewards": np.array(rewards, np.float32),
        "terminations": np.zeros(n, np.bool_),
        "truncations": np.arange(n) == n - 1,
    }


def lists(read):
    return {name: rows.ravel().tolist() for name, rows in read.items()}


def test_an_episode_ends_at_its_first_success():
    goals = {"desired_goal": np.ones((6, 2))}
    read = until_success(episode([0.0, 0.0, 1.0, 0.0, 1.0]), goals)
    assert lists(read) == {
        "states": [0.0, 1.0, 2.0, 3.0],
        "actions": [0.0, 1.0, 2.0],
        "rewards": [0.0, 0.0, 1.0],
        "terminations": [False, False, True],
        "truncations": [False, False, False],
    }


def test_an_episode_without_success_is_left_alone():
    whole = episode([0.0, 0.0])
    assert lists(until_success(whole, {"desired_goal": np.ones((3, 2))})) == lists(whole)


def test_a_first_observation_of_another_goal_is_dropped():
    goals = {"desired_goal": np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])}
    read = until_success(episode([0.0, 0.0, 1.0]), goals)
    assert read["states"].ravel().tolist() == [1.0, 2.0, 3.0]
    assert read["rewards"].tolist() == [0.0, 1.0]
    assert read["terminations"].tolist() == [False, True]
    nothing = until_success(episode([1.0]), {"desired_goal": np.array([[0.0], [1.0]])})
    assert len(nothing["rewards"]) == 0


def test_tasks_count_when_they_are_first_done():
    """Door: done at steps 2 and 4 but not 3. Kettle, 2 numbers: done from step 4 on."""
    goals = {"door": np.zeros((7, 1)), "kettle": np.ones((7, 2))}
    door = np.array([9.0, 9.0, 0.29, 0.3, 0.0, 0.0, 0.0])[:, None]
    kettle = np.array([[0.0, 0.0]] * 4 + [[1.0, 1.2]] * 3)
    observations = {"achieved_goal": {"door": door, "kettle": kettle}, "desired_goal": goals}
    read = first_completions(episode([0.0, 1.0, 0.0, 2.0, 2.0, 2.0]), observations)
    assert read["rewards"].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert read["terminations"].tolist() == [False, False, False, True]
    assert len(read["states"]) == 5
    observations["achieved_goal"]["kettle"] = np.zeros((7, 2))
    read = first_completions(episode([0.0] * 6), observations)
    assert read["rewards"].tolist() == [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert not read["terminations"].any()
    assert read["truncations"].tolist() == [False] * 5 + [True]


def test_preset_then_family_then_flags():
    antmaze = ["--dataset-id", "D4RL/antmaze/medium-play-v1", "--preset", "paper"]
    args = parse(antmaze)
    assert args.n_episodes == 100
    assert args.config == dataclasses.replace(
        PRESETS["paper"], support_actions=32, reward_tuning="antmaze", beta_q=20.0
    )
    args = parse([*antmaze, "--config.beta-q", "2", "--n-episodes", "3"])
    assert (args.config.beta_q, args.config.support_actions, args.n_episodes) == (2.0, 32, 3)
    args = parse(["--dataset-id", "mujoco/hopper/medium-v0", "--preset", "paper"])
    assert (args.config, args.n_episodes) == (PRESETS["paper"], 50)
    assert parse(["--dataset-id", "qgpo/halfcheetah/mixed-v0"]).config == PRESETS["laptop"]
    args = parse(["--dataset-id", "D4RL/antmaze/medium-play", "--preset", "paper"])
    assert (args.config.support_actions, args.config.beta_q, args.n_episodes) == (32, 20.0, 100)


def test_longer_multiplies_the_steps_that_are_trained():
    laptop = PRESETS["laptop"]
    stages = ("whitening_steps", "behavior_steps", "critic_steps", "dynamics_steps", "energy_steps")
    expected = {name: 3 * getattr(laptop, name) for name in (*stages, "target_every")}
    assert longer(laptop, 3) == dataclasses.replace(laptop, **expected)
    assert longer(PRESETS["paper"], 0.5).whitening_steps == 0
    assert longer(laptop, 1e-9).critic_steps == 1
    for factor in (1 / 9, 0.5, 4):
        row = longer(laptop, factor)
        assert math.ceil(row.critic_steps / row.target_every) == 6
    for name, agent_class in AGENTS.items():  # no number of steps is overlooked
        row = agent_class.presets["laptop"]
        steps = agent_class(row, device="cpu").total_timesteps
        assert agent_class(longer(row, 2), device="cpu").total_timesteps == 2 * steps, name
    qipo = QIPO.presets["laptop"]
    assert QIPO(longer(qipo, 4), device="cpu").most_renewals == QIPO(qipo).most_renewals == 1
    for factor in (0.0, -1.0, math.inf, math.nan, laptop):
        with pytest.raises(ValueError, match="expected a positive number"):
            longer(laptop, factor)
    for name in ("laptop", 4.0, type(laptop)):
        with pytest.raises(TypeError, match="expected a configuration such as"):
            longer(name, 4.0)


def test_flags_go_before_longer():
    args = parse(["--longer", "4", "--config.critic-steps", "7"])
    assert args.config == dataclasses.replace(longer(PRESETS["laptop"], 4.0), critic_steps=7)


def test_data_of_one_s_own_take_the_row_of_their_environment():
    buffers = [
        dataclasses.replace(b, observations=np.zeros((4, 3)), actions=np.zeros((3, 1), np.float32))
        for b in numbered_episodes((3,), (False,))
    ]
    space = {"observation_space": spaces.Box(-1.0, 1.0, (3,)), "action_space": UNIT_BOX}
    spec = dataclasses.replace(gym.spec("Pendulum-v1"), id="PointMaze_UMaze-v3")
    source = write_buffers(buffers, "mine/maze-v0", **space)
    source.storage.update_metadata({"env_spec": spec.to_json()})
    args = parse(["--dataset-id", "mine/maze-v0", "--preset", "paper"])
    assert (args.n_episodes, args.config.reward_tuning) == (100, "antmaze")


def test_the_documentation_names_every_row():
    text = (ROOT / "docs" / "families.md").read_text()
    assert all(f"`{family.name}`" in text for family in FAMILIES)
