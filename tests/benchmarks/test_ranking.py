"""benchmarks/ranking.py: rollouts from a state, the Q of every agent, files, and comparison."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from factory import (
    AEPO_CONFIGS,
    BEST_OF_N_CONFIGS,
    QIPO_CONFIGS,
    ROOT,
    SIR_CONFIGS,
    WHITENED,
    make_dataset,
    write_buffers,
)
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from qgpo import QGPO, load_dataset
from qgpo.agents import AGENTS
from qgpo.envs.play.snapshots import restore, take_snapshot
from qgpo.envs.tasks.making import as_played, make_env
from qgpo.experiments import documents

SMALL = {"hidden": (8, 8), "batch_size": 8, "steps": 6}
TORQUES = spaces.Box(-2.0, 2.0, (1,), np.float32)
THREE_UNITS = spaces.Box(-1.0, 1.0, (3,), np.float32)
WINS, HIDDEN = "qgpo-tests/RankedWins-v0", "qgpo-tests/Hidden-v0"


@pytest.fixture
def part(monkeypatch):
    """Imports a module of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def trained(name="QGPO", config=WHITENED, **data):
    return AGENTS[name](config, device="cpu").learn(make_dataset(**data))


def one_stage(name, **more):
    return trained(name, replace(AGENTS[name].presets["laptop"], **{**SMALL, **more}))


@pytest.fixture(scope="module")
def pendulum_agent():
    spec = replace(gym.spec("Pendulum-v1"), max_episode_steps=12)
    return trained(action_space=TORQUES, env_spec=spec)


@pytest.fixture
def run(tmp_path, pendulum_agent):
    folder = tmp_path / "runs" / "pendulum"
    folder.mkdir(parents=True)
    pendulum_agent.save(folder / "checkpoint.zip")
    return folder


def started(part, env, seed=0, steps=3):
    """A state after some steps."""
    observation = env.reset(seed=seed)[0]
    for _ in range(steps):
        observation = env.step(np.zeros(env.action_space.shape, np.float32))[0]
    return part("ranking_play").Start(take_snapshot(env), observation, "policy", seed, steps, 9)


def follow(part, agent, **changes):
    values = {"horizon": 5, "gamma": 0.9, "repetitions": 2, "deterministic": False, "seed": 0}
    return part("ranking_play").Follow(agent, **{**values, **changes})


# Rollouts ---------------------------------------------------------------------------------


def test_returns_are_those_of_playing_by_hand(part, pendulum_agent):
    envs = [gym.make("Pendulum-v1") for _ in range(4)]
    starts = [started(part, envs[0], seed) for seed in (0, 1)]
    actions = np.array([[[-2.0], [1.5]], [[0.0], [0.5]]], np.float32)
    how = follow(part, pendulum_agent, deterministic=True)
    found = part("ranking_play").play_out(envs, starts, actions, how, (0, 1))
    assert found.shape == (2, 2, 2)
    env = gym.make("Pendulum-v1")
    env.reset(seed=9)
    for s in range(2):
        for k in range(2):
            restore(env, starts[s].snapshot)
            action, total = actions[s, k], 0.0
            for t in range(5):
                observation, reward, *_ = env.step(action)
                total += 0.9**t * float(reward)
                action, _ = pendulum_agent.predict(observation, deterministic=True)
            np.testing.assert_allclose(found[s, k], total, rtol=1e-5)


def test_all_actions_of_a_state_have_the_same_random_numbers(part):
    agent = trained(observation_dim=11, action_space=THREE_UNITS)
    envs = [make_env("Hopper-v5") for _ in range(6)]
    start = started(part, envs[0])
    actions = np.full((1, 3, 3), 0.25, np.float32)
    played = part("ranking_play").play_out(envs, [start], actions, follow(part, agent), (0,))[0]
    np.testing.assert_allclose(played, np.broadcast_to(played[:1], (3, 2)), rtol=1e-5)
    assert played[0, 0] != pytest.approx(played[0, 1], rel=1e-5)


def test_returns_do_not_depend_on_how_many_play_at_once(part, pendulum_agent):
    envs = [gym.make("Pendulum-v1") for _ in range(12)]
    starts = [started(part, envs[0], seed) for seed in (0, 1, 2)]
    actions = np.linspace(-2, 2, 6, dtype=np.float32).reshape(3, 2, 1)
    steps = []
    how = follow(part, pendulum_agent)
    play_out = part("ranking_play").play_out
    together = play_out(envs, starts, actions, how, (0, 1, 2), steps.append)
    alone = play_out(envs[:2], starts[1:2], actions[1:2], how, (1,))
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-5)
    assert sum(steps) == 3 * 2 * 2 * 5
    with pytest.raises(ValueError, match="1 environments, expected one for each of 2 actions"):
        play_out(envs[:1], starts, actions, how, (0, 1, 2))


def test_the_limit_of_an_episode_ends_a_rollout(part, pendulum_agent):
    envs = [gym.make("Pendulum-v1", max_episode_steps=4) for _ in range(2)]
    start = started(part, envs[0], steps=3)
    actions = np.array([[[-2.0], [2.0]]], np.float32)
    play_out = part("ranking_play").play_out
    long = play_out(envs, [start], actions, follow(part, pendulum_agent), (0,))
    one = play_out(envs, [start], actions, follow(part, pendulum_agent, horizon=1), (0,))
    np.testing.assert_array_equal(long, one)


def test_a_value_at_the_end_is_discounted(part, pendulum_agent):
    envs = [gym.make("Pendulum-v1") for _ in range(2)]
    actions = np.array([[[-2.0], [2.0]]], np.float32)
    start, play_out = started(part, envs[0]), part("ranking_play").play_out
    without = play_out(envs, [start], actions, follow(part, pendulum_agent), (0,))
    how = follow(part, pendulum_agent, tail=lambda observations: np.full(len(observations), 10.0))
    np.testing.assert_allclose(play_out(envs, [start], actions, how, (0,)), without + 10 * 0.9**5)


@pytest.mark.parametrize("shape", [(6, 2), (12, 2), (5, 6, 2), (3, 12, 2)])
def test_noise_is_common_to_a_group_whatever_its_shape(part, shape):
    # 2 of 3 groups are left, with 3 actions each; twice as many rows: 2 draws per observation
    noise = part("ranking_play").CommonNoise([1, 2, 3], 3, torch.device("cpu"))
    noise.live = [0, 2]
    drawn = noise.normal(*shape)
    assert drawn.shape == shape
    n = shape[-2] // 6
    groups = drawn.reshape(*shape[:-2], 2, 3, n, 2)
    assert torch.equal(groups, groups[..., :1, :, :].expand_as(groups))
    assert not torch.equal(groups[..., 0, 0, :, :], groups[..., 1, 0, :, :])


OF_FAMILY = {"SIR": SIR_CONFIGS["mean"], "BestOfN": BEST_OF_N_CONFIGS["whitened"]}


@pytest.mark.parametrize("name", ["IFQL", "DiffusionQL", "IQL", *OF_FAMILY])
def test_agents_with_other_noise_play_with_it(part, name):
    config = OF_FAMILY.get(name) or replace(AGENTS[name].presets["laptop"], **SMALL)
    agent = trained(name, config, action_space=TORQUES)
    envs = [gym.make("Pendulum-v1") for _ in range(3)]
    actions = np.full((1, 3, 1), 0.5, np.float32)
    how = follow(part, agent)
    played = part("ranking_play").play_out(envs, [started(part, envs[0])], actions, how, (0,))[0]
    np.testing.assert_allclose(played, np.broadcast_to(played[:1], (3, 2)), rtol=1e-5)


# States -----------------------------------------------------------------------------------


class Wins(gym.Env):
    """Episodes of 8 steps that succeed, and end, at the sixth where the seed is even."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.even = 0, seed % 2 == 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        wins = self.even and self.t == 6
        return np.full(2, self.t, np.float32), -1.0, wins, self.t == 8, {"success": wins}


class Hidden(Wins):
    """Keeps its steps where nobody looks."""

    class Counter:
        n = 0

    def reset(self, *, seed=None, options=None):
        self.counter = Hidden.Counter()
        return super().reset(seed=seed)

    def step(self, action):
        self.counter.n += 1
        return np.full(2, self.counter.n, np.float32), 0.0, False, False, {}


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    for name, kind in ((WINS, Wins), (HIDDEN, Hidden)):
        if name not in gym.registry:
            gym.register(name, kind)


def test_states_near_a_success(part):
    agent = trained(observation_dim=2)
    envs = [gym.make(WINS) for _ in range(4)]
    actors = {"behavior": part("ranking_play").acting(agent, 0.0), "policy": agent}
    starts = part("ranking_play").find_starts(envs, actors, 6, 0, 2, 40, False)
    assert len(starts) == 6
    assert {start.step for start in starts} <= {4, 5}
    assert all(start.seed % 2 == 0 and start.length == 6 for start in starts)
    assert sorted(start.source for start in starts) == ["behavior"] * 3 + ["policy"] * 3
    assert len({(start.source, start.seed) for start in starts}) == 6
    np.testing.assert_array_equal([s.observation[0] for s in starts], [s.step for s in starts])
    with pytest.raises(ValueError, match="1 of 2 episodes of each source succeeded"):
        part("ranking_play").find_starts(envs, {"policy": agent}, 6, 0, 2, 2, False)


def test_any_states(part):
    agent = trained(observation_dim=2)
    envs = [gym.make(WINS) for _ in range(2)]
    find_starts = part("ranking_play").find_starts
    starts = find_starts(envs, {"behavior": agent, "policy": agent}, 20, 0, None, 40, False)
    assert {start.length for start in starts} == {6, 8}
    assert len({start.step for start in starts}) > 3


def test_success_that_nobody_tells(part, pendulum_agent):
    envs = [gym.make("Pendulum-v1", max_episode_steps=2)]
    with pytest.raises(ValueError, match="does not say whether an episode succeeded"):
        part("ranking_play").find_starts(envs, {"policy": pendulum_agent}, 2, 0, 3, 4, False)


def test_an_environment_without_a_state_is_refused_by_name(part):
    with pytest.raises(ValueError, match=f"environment '{HIDDEN}' cannot be set to a state"):
        part("ranking").Stage(2).envs(HIDDEN, 2)


# Agents -----------------------------------------------------------------------------------


def test_q_of_support_actions_is_that_which_guides(part):
    agent, data = QGPO(WHITENED, device="cpu"), make_dataset()
    agent.train_behavior(data)
    agent.generate_support(data)
    agent.train_critic(data)
    batches = agent.prepare(data)
    expected = agent.critic.table_of_q(batches)
    condition = agent.behavior.normalizer(batches.states)[:, None]
    actions = agent.behavior.whitening.decode(condition, agent.tables["support"])
    found = part("ranking_agents").values_of(agent, batches.states, actions)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_every_agent_with_values(part):
    agents = [
        trained("AEPO", AEPO_CONFIGS["aepo"]),
        trained("QIPO", QIPO_CONFIGS["flow"]),
        *(trained(name, config) for name, config in OF_FAMILY.items()),
        *(one_stage(name) for name in ("IQL", "IFQL", "FQL", "ReBRAC", "TD3BC")),
    ]
    values_of = part("ranking_agents").values_of
    observations, actions = torch.randn(4, 3), torch.rand(4, 5, 1) * 2 - 1
    for agent in agents:
        q = values_of(agent, observations, actions)
        assert q.shape == (4, 5)
        again = values_of(agent, observations[1:2], actions[1:2])
        np.testing.assert_allclose(q[1:2], again, rtol=1e-5, atol=1e-6)
        assert np.ptp(q, axis=1).min() > 0.0
    with pytest.raises(ValueError, match="a BC agent has no Q to rank by"):
        values_of(one_stage("BC"), observations, actions)


def test_who_the_behavior_is(part):
    behavior_of = part("ranking_agents").behavior_of
    guided = trained()
    assert behavior_of(guided, None).guidance_scale == 0.0
    assert guided.guidance_scale == 1.0
    ifql = one_stage("IFQL")
    assert behavior_of(ifql, None).num_samples == 1 < ifql.num_samples
    iql, bc = one_stage("IQL"), one_stage("BC")
    assert behavior_of(iql, bc).name == "BC"
    with pytest.raises(ValueError, match=r"a IQL agent has no model of the behavior: .*--behavior"):
        behavior_of(iql, None)
    other = trained(action_space=TORQUES)
    with pytest.raises(ValueError, match="scales actions by other data"):
        behavior_of(iql, other)


@pytest.mark.parametrize(
    ("rule", "shift"), [("none", False), ("locomotion", False), ("unit", False), ("antmaze", True)]
)
def test_the_unit_of_q(part, rule, shift):
    data = make_dataset()
    agent = QGPO(replace(WHITENED, reward_tuning=rule), device="cpu")
    batches = agent.prepare(data)
    unit = part("ranking_agents").unit_of(data, batches)
    expected = unit.scale * data.rewards + unit.shift
    np.testing.assert_allclose(batches.rewards.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert (unit.shift != 0.0) == shift
    if shift:
        with pytest.raises(ValueError, match=r"value_at_end: .* rewards with -1 added"):
            part("ranking_agents").tail_of(agent, agent, unit)


def test_density_is_relative_to_the_data(part):
    data = make_dataset(lengths=(40, 40, 40))
    agent = QGPO(WHITENED, device="cpu")
    batches = agent.prepare(data)
    density_of = part("ranking_agents").density_of
    assert density_of(batches, batches.states[:5]) == pytest.approx(0.0, abs=1e-3)
    far = density_of(batches, batches.states[:5] + 30.0)
    assert np.all(far > 10.0)


# A run ------------------------------------------------------------------------------------


def arguments(part, run, **changes):
    few = {"states": 4, "actions": 3, "guided_samples": 2, "repetitions": 2, "horizon": 3}
    out = Path("rankings/one.json")
    return part("ranking").Args(run=(run,), out=out, **{**few, "n_envs": 14, **changes})


def recorded_pendulum():
    """A small dataset of Pendulum in Minari's folder."""
    env, rng = gym.make("Pendulum-v1", max_episode_steps=5), np.random.default_rng(0)
    buffers = []
    for seed in range(4):
        seen, actions = [env.reset(seed=seed)[0]], rng.uniform(-2, 2, (5, 1)).astype(np.float32)
        steps = [env.step(action) for action in actions]
        seen += [step[0] for step in steps]
        buffers.append(
            EpisodeBuffer(
                observations=np.stack(seen),
                actions=actions,
                rewards=[float(step[1]) for step in steps],
                terminations=[False] * 5,
                truncations=[False] * 4 + [True],
            )
        )
    write_buffers(buffers, "test/pendulum-v0", env=env)
    return load_dataset("test/pendulum-v0")


def test_from_a_run_folder_to_a_table(part, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "runs" / "p"
    folder.mkdir(parents=True)
    QGPO(WHITENED, device="cpu").learn(recorded_pendulum()).save(folder / "checkpoint.zip")
    args = arguments(part, folder)
    part("ranking").main(args)
    first = capsys.readouterr().out
    assert "gain of the guided mean action" in first
    [document] = json.loads(args.out.read_text())["runs"]
    assert document["environment"] == "Pendulum-v1"
    assert np.shape(document["values"]) == (4, 7)
    assert {name: np.shape(r) for name, r in document["returns"].items()} == {
        "policy": (4, 7, 2),
        "behavior": (4, 7, 2),
    }
    assert len(document["density"]) == len(document["states"]) == 4
    of = document["ranking"]["policy"]
    assert {"all", "episodes of the policy", "episodes of the behavior"} <= set(of)
    assert sum(of[g]["chosen"]["states"] for g in of if "third" in g) == 4
    assert set(of["all"]) == set(part("ranking_report").TITLES)
    # the second time it is read, not measured
    monkeypatch.setattr(part("ranking"), "measure", None)
    part("ranking").main(args)
    assert capsys.readouterr().out == first
    with pytest.raises(TypeError):
        part("ranking").main(replace(args, seed=1))


def test_ctrl_c_keeps_the_states_that_are_complete(part, run, monkeypatch, capsys):
    ranking, calls = part("ranking"), []
    play_out = ranking.play_out

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 6:  # the behavior's turn in the third block
            raise KeyboardInterrupt
        return play_out(*given)

    monkeypatch.setattr(ranking, "play_out", interrupted)
    args = arguments(part, run, data=False)
    with pytest.raises(SystemExit, match="stopped after 2 of 4 states"):
        ranking.main(args)
    [document] = json.loads(args.out.read_text())["runs"]
    assert np.shape(document["returns"]["policy"]) == (2, 7, 2)
    assert len(document["states"]) == len(document["values"]) == 2
    assert document["density"] is None
    ranking.main(args)  # from the beginning
    [document] = json.loads(args.out.read_text())["runs"]
    assert len(document["states"]) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--states", "1"], "states=1, expected at least 2"),
        (["--value-at-end"], "value_at_end: the unit of Q follows from the data"),
        (["--near-success", "0"], "near_success=0, expected at least 1"),
    ],
)
def test_settings_that_measure_nothing(part, run, words, message):
    with pytest.raises(SystemExit, match=f"error: {message}"):
        part("ranking").cli(["--run", str(run), "--no-data", "--out", "o.json", *words])


def test_runs_and_files_that_are_none(part, run, tmp_path):
    cli = part("ranking").cli
    with pytest.raises(SystemExit, match=r"error: --run nowhere: no checkpoint.zip in it"):
        cli(["--run", "nowhere", "--out", "o.json"])
    for other in ([], {"format_version": 1}, {"format_version": 1, "runs": "no"}):
        (tmp_path / "other.json").write_text(json.dumps(other))
        with pytest.raises(SystemExit, match=r"other.json is no file of ranking.py"):
            cli(["--run", str(run), "--out", str(tmp_path / "other.json")])
    (run / "half").mkdir()
    agent = QGPO(WHITENED, device="cpu")
    agent.train_behavior(make_dataset())
    agent.save(run / "half" / "checkpoint.zip")
    with pytest.raises(SystemExit, match="the training is not complete"):
        cli(["--run", str(run / "half"), "--out", "o.json"])


def saved_run(tmp_path, agent):
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    agent.save(folder / "checkpoint.zip")
    return folder


def few(part, folder, **changes):
    one = {"states": 2, "actions": 2, "guided_samples": 1, "n_envs": 5, "horizon": 2}
    return arguments(part, folder, **{**one, "data": False, **changes})


def test_a_maze(part, tmp_path):
    pytest.importorskip("gymnasium_robotics")
    spec = make_env(as_played("PointMaze_UMaze-v3")).spec
    box = spaces.Box(-1.0, 1.0, (2,), np.float32)
    agent = trained(observation_dim=6, action_space=box, env_spec=spec)
    choose = importlib.import_module("qgpo.envs.tasks.observations").ObservationAdapter.choose
    space = make_env(spec).observation_space
    agent.adapter = choose(space, ("observation", "desired_goal"), "the maze")
    args = few(part, saved_run(tmp_path, agent), deterministic=True, after_behavior=False)
    part("ranking").main(args)
    [document] = json.loads(args.out.read_text())["runs"]
    assert list(document["returns"]) == ["policy"]
    assert np.shape(document["returns"]["policy"]) == (2, 5, 2)


def test_an_arm(part, tmp_path, monkeypatch):
    pytest.importorskip("ogbench")
    env_id = "cube-single-singletask-task2-v0"
    five = spaces.Box(-1.0, 1.0, (5,), np.float32)
    agent = trained(observation_dim=28, action_space=five)
    make = part("ranking").make_env
    monkeypatch.setattr(
        part("ranking"), "make_env", lambda env: gym.wrappers.TimeLimit(make(env), 6)
    )
    args = few(part, saved_run(tmp_path, agent), env_id=env_id, after_behavior=False)
    part("ranking").main(args)
    [document] = json.loads(args.out.read_text())["runs"]
    assert np.shape(document["returns"]["policy"]) == (2, 5, 2)
    assert document["environment"] == env_id


# Comparison -------------------------------------------------------------------------------


def measured(name, agreement, dataset="a/b/c-v0"):
    """What the comparison reads of a run whose Q agrees so far with the returns."""
    rng = np.random.default_rng(0)
    returns, noise = rng.normal(size=(30, 7, 1)), rng.normal(size=(30, 7))
    q = agreement * returns[..., 0] + (1.0 - agreement) * noise
    ends = {"support": [0, 4], "behavior_mean": [4, 5], "guided_mean": [5, 6]}
    return {
        "run": f"somewhere/{name}",
        "label": name,
        "seed": 0,
        "dataset": {"id": dataset},
        "settings": {"guidance_scale": 1.0},
        "unit": {"scale": 2.0, "shift": 0.0},
        "parts": {**ends, "guided_samples": [6, 7]},
        "values": q.tolist(),
        "returns": {"policy": np.repeat(returns, 2, axis=2).tolist()},
    }


def evaluated(folder, returns):
    """A run folder with evaluations by scale, or at None."""
    entries = [
        {"guidance_scale": w, "env_id": "E-v0", "returns": [m, m], "lengths": [1, 1]}
        | {"seeds": [0, 1], "cut": 0, "mean": m, "interval": None, "score": None}
        for w, m in returns.items()
    ]
    folder.mkdir(parents=True)
    documents.write(folder / "evaluation.json", {"measured": {}, "evaluations": entries})


def test_rankings_against_returns(part, tmp_path, capsys):
    runs = []
    for i, value in enumerate((0.1, 0.2, 0.3, 0.4)):
        runs.append(measured(f"run{i}", value))
        evaluated(tmp_path / f"run{i}", {0.0: 50.0 * i, 1.0: 100.0 + i})
    assert runs[0]["values"] != runs[3]["values"]
    runs.append(measured("unplayed", 0.9))
    evaluated(tmp_path / "unplayed", {0.0: 1.0})
    for i, value in enumerate((0.8, 0.7)):
        runs.append(measured(f"iql{i}", value, "another/set-v0"))
        evaluated(tmp_path / f"iql{i}", {None: 5.0 - i})
    Path("rankings.json").write_text(json.dumps({"format_version": 1, "runs": runs}))
    words = ["--rankings", "rankings.json", "--runs", str(tmp_path), "--out", "compared.json"]
    part("ranking").cli(["compare", *words])
    printed = capsys.readouterr().out
    assert "left out: " in printed
    assert "unplayed was not played at w = 1: python scripts/evaluate.py" in printed
    found = json.loads(Path("compared.json").read_text())["correlations"]["correlation"]
    assert found["at_scale"]["value"] == pytest.approx(1.0)
    assert found["at_scale"]["states"] == 6
    assert found["over_behavior"]["value"] == pytest.approx(-1.0)
    assert found["over_behavior"]["states"] == 4


def test_one_run_counts_once_and_unfinished_ones_do_not(part, tmp_path, capsys):
    evaluated(tmp_path / "run0", {1.0: 1.0})
    evaluated(tmp_path / "run1", {1.0: 2.0})
    runs = [measured("run0", 0.1), {**measured("run1", 0.2), "unfinished": "1 of 2 states"}]
    path = tmp_path / "rankings.json"
    path.write_text(json.dumps({"format_version": 1, "runs": runs}))
    compared = part("ranking_compare")
    args = compared.Args(rankings=(path,), runs=tmp_path)
    assert [row.name for row in compared.read_rows(args)] == ["run0, seed 0"]
    assert "1 of 2 states" in capsys.readouterr().out
    again = measured("run0", 0.3)
    runs[1] = {**again, "settings": {**again["settings"], "horizon": 200}}
    path.write_text(json.dumps({"format_version": 1, "runs": runs}))
    with pytest.raises(ValueError, match=r"run0 is there twice.*'horizon': 200"):
        compared.read_rows(args)


def test_successes_are_what_counts_where_there_are_any(part, tmp_path):
    evaluated(tmp_path / "run", {1.0: -9.0})
    path = tmp_path / "run" / "evaluation.json"
    document = json.loads(path.read_text())
    document["evaluations"][0]["successes"] = [True, False]
    path.write_text(json.dumps(document))
    folder = importlib.import_module("qgpo.experiments.folder").RunFolder(tmp_path / "run")
    assert part("ranking_compare").returns_of(folder, 1.0) == {"at_scale": 50.0}


def test_nothing_to_compare(part, tmp_path):
    cli = part("ranking").cli
    with pytest.raises(SystemExit, match=r"nowhere.json does not exist"):
        cli(["compare", "--rankings", "nowhere.json"])
    Path("r.json").write_text(json.dumps({"format_version": 1, "runs": [measured("x", 0.5)]}))
    evaluated(tmp_path / "x", {1.0: 3.0})
    with pytest.raises(SystemExit, match="follow='behavior'"):
        cli(["compare", "--rankings", "r.json", "--runs", str(tmp_path), "--follow", "behavior"])
    with pytest.raises(SystemExit, match="no run has both"):
        cli(["compare", "--rankings", "r.json", "--runs", str(tmp_path / "empty")])


def test_settings_are_json(part):
    args = part("ranking").Args(run=(Path("a"),), behavior=Path("b"))
    assert json.loads(json.dumps(args.settings)) == args.settings
    assert set(args.settings) < set(asdict(args))
