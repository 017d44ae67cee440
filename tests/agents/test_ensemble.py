from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partialmethod

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_tester import Subject
from cases import register_walk
from factory import WHITENED, make_dataset
from gymnasium import spaces

from qgpo import BC, QGPO, BCConfig, Ensemble
from qgpo.agents.guided.tuning import tune_guidance
from qgpo.envs import evaluate
from qgpo.envs.tasks.observations import ObservationAdapter
from qgpo.scripts import evaluate as evaluate_script

DICT = spaces.Dict({name: spaces.Box(-1.0, 1.0, (n,)) for name, n in (("a", 2), ("b", 1))})
WIDE = spaces.Box(np.array([-1.0, 0.0]), np.array([3.0, 10.0]), dtype=np.float32)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(lengths=(12, 9, 11))


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch):
    monkeypatch.setattr("qgpo.dynamics.HIDDEN", (16, 16))


@pytest.fixture
def members(dataset):
    return [Subject(QGPO, WHITENED).copied(seed, dataset) for seed in range(3)]


def constant(dataset, *actions):
    """Agents that always take these actions, in units of [-1, 1]."""
    made = []
    for action in actions:
        agent = QGPO(WHITENED, device="cpu")
        agent.prepare(dataset)
        agent.act = lambda x, deterministic, a=action: torch.full((len(x), 2), a)
        made.append(agent)
    return made


def test_the_deterministic_action_is_the_mean_in_the_units_of_the_action_space():
    dataset = make_dataset(action_space=WIDE)
    together = Ensemble(constant(dataset, -1.0, 0.0, 0.25))
    action, _ = together.predict(np.zeros(3, np.float32), deterministic=True)
    # the mean is -0.25 in [-1, 1]
    np.testing.assert_allclose(action, [-1.0 + 4.0 * 0.375, 10.0 * 0.375], rtol=1e-6)


def test_a_sampled_action_is_that_of_one_member_each_as_often():
    dataset = make_dataset()
    together = Ensemble(constant(dataset, -0.5, 0.25, 1.0))
    together.seed_predictions(3)
    actions, _ = together.predict(np.zeros((3000, 3), np.float32))
    assert (actions[:, 0] == actions[:, 1]).all()
    values, counts = np.unique(actions[:, 0], return_counts=True)
    assert values.tolist() == [-0.5, 0.25, 1.0]
    assert np.abs(counts - 1000).max() < 5 * (3000 * 2 / 9) ** 0.5
    together.seed_predictions(3)
    np.testing.assert_array_equal(together.predict(np.zeros((3000, 3), np.float32))[0], actions)


def test_seeded_samples_repeat_and_leave_the_members_alone(members):
    observations = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    own = [member.prediction_generator.get_state() for member in members]
    together, others = Ensemble(members), Ensemble(members[::-1])
    together.seed_predictions(3)
    first, _ = together.predict(observations)
    others.predict(observations)
    together.seed_predictions(3)
    np.testing.assert_array_equal(together.predict(observations)[0], first)
    assert (together.predict(observations)[0] != first).any()
    for member, state in zip(members, own, strict=True):
        assert torch.equal(member.prediction_generator.get_state(), state)


def test_one_member_acts_as_it_does_alone(members):
    observations = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    alone, _ = members[0].predict(observations, deterministic=True)
    together, _ = Ensemble(members[:1]).predict(observations, deterministic=True)
    np.testing.assert_array_equal(together, alone)


def test_the_guidance_scale_is_everyones(members, dataset):
    members[1].guidance_scale = 0.5
    together = Ensemble(members)
    assert together.guidance_scale == (1.0, 0.5, 1.0)
    together.guidance_scale = np.float32(2.0)
    assert [member.guidance_scale for member in members] == [2.0] * 3
    assert together.guidance_scale == 2.0
    together.guidance_scale = [0.0, 1.0, 2.0]
    assert [member.guidance_scale for member in members] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "scale",
    [math.nan, (1.0, 2.0), (1.0, 2.0, math.inf), "x", "abc", None, [1, "x", 2], {1: 2}, [[1]] * 3],
)
def test_a_scale_that_is_none_is_given_to_nobody(scale, members):
    together = Ensemble(members)
    with pytest.raises(ValueError, match="for each of the 3 members"):
        together.guidance_scale = scale
    assert together.guidance_scale == 1.0


def test_a_tuned_ensemble_keeps_its_scale_in_its_members_files(members, dataset, tmp_path):
    members[1].guidance_scale = 0.5
    together = Ensemble(members)
    noise = together.prediction_generator.get_state()
    found = together.tune_guidance(dataset, (0.0, 2.0), rollouts=4, steps=5, deterministic=False)
    assert together.guidance_scale == found.best
    assert torch.equal(noise, together.prediction_generator.get_state())
    paths = [tmp_path / f"{i}.zip" for i in range(3)]
    for member, path in zip(members, paths, strict=True):
        member.save(path)
    loaded = Ensemble.load(paths, device="cpu")
    assert loaded.guidance_scale == found.best
    observations = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0],
        together.predict(observations, deterministic=True)[0],
    )


def test_what_was_imagined_is_played_by_all(members, dataset):
    """A lone member's imagined returns are others than those of the three together."""
    alone = Ensemble(members[:1]).tune_guidance(dataset, (1.0,), rollouts=4, steps=5)
    again = members[0].tune_guidance(dataset, (1.0,), rollouts=4, steps=5)
    together = Ensemble(members).tune_guidance(dataset, (1.0,), rollouts=4, steps=5)
    np.testing.assert_array_equal(alone.returns, again.returns)
    assert (together.returns != alone.returns).any()


def test_own_scales_are_given_back_when_tuning_fails(members, dataset, monkeypatch):
    members[1].guidance_scale = 0.5
    monkeypatch.setattr(members[2], "act", lambda x, deterministic: 1 / 0)
    together = Ensemble(members)
    with pytest.raises(ZeroDivisionError):
        together.tune_guidance(dataset, (0.0, 2.0), rollouts=2, steps=1)
    assert together.guidance_scale == (1.0, 0.5, 1.0)


def test_members_of_other_data_are_not_tuned_together(members):
    other = make_dataset(lengths=(12, 9, 11), seed=5)
    strange = QGPO(WHITENED, device="cpu").learn(other)
    with pytest.raises(ValueError, match=r"member 1 has learned from '.*'; '.*' holds other data"):
        Ensemble([strange, members[0]]).tune_guidance(other, rollouts=2, steps=1)


def test_an_ensemble_is_trained_when_its_last_member_is(members, dataset):
    """Also where the last stage has no gradient steps, as with dps: it comes after the critic."""
    unfinished = QGPO(replace(WHITENED, guidance="dps"), device="cpu")
    unfinished.train_behavior(dataset)
    unfinished.generate_support(dataset)
    unfinished.train_critic(dataset)
    together = Ensemble([members[0], unfinished])
    assert not together.is_trained
    with pytest.raises(RuntimeError, match="this Ensemble has not finished training"):
        together.tune_guidance(dataset)
    unfinished.train_energy(dataset)
    assert together.is_trained


def dict_agent(adapter):
    agent = QGPO(WHITENED, device="cpu")
    agent.set_spaces(spaces.Box(-1.0, 1.0, (3,)), WIDE, "a dataset", adapter)
    return agent


def test_dict_observations_are_read_as_the_members_do():
    agents = [dict_agent(ObservationAdapter.choose(DICT, None, "a dataset")) for _ in range(2)]
    together = Ensemble(agents)
    observation = {"a": np.ones(2, np.float32), "b": np.zeros(1, np.float32)}
    both, _ = together.predict(observation, deterministic=True)
    alone, _ = agents[0].predict(np.array([1.0, 1.0, 0.0]), deterministic=True)
    np.testing.assert_allclose(both, alone, rtol=1e-6)


def test_members_that_read_dict_observations_differently_are_refused():
    orders = (["a", "b"], ["b", "a"])
    agents = [dict_agent(ObservationAdapter.choose(DICT, order, "it")) for order in orders]
    with pytest.raises(ValueError, match="member 1 reads Dict observations differently"):
        Ensemble(agents)


@pytest.mark.parametrize(
    "changes", [{"observation_dim": 4}, {"action_space": spaces.Box(-5.0, 5.0, (1,))}]
)
def test_a_member_that_was_trained_again_in_other_spaces_does_not_act(changes):
    agents = [BC(BCConfig(steps=2, hidden=(8, 8)), seed=s, device="cpu") for s in (0, 1)]
    together = Ensemble([agent.learn(make_dataset()) for agent in agents])
    together.predict(np.zeros((2, 3), np.float32))
    agents[1].learn(make_dataset(**changes))
    with pytest.raises(RuntimeError, match="member 1 was trained again, in other spaces"):
        together.predict(np.zeros((2, 3), np.float32))


def test_members_on_different_devices_are_refused(members):
    members[2].device = torch.device("meta")
    with pytest.raises(ValueError, match="member 2 is on meta, member 0 on cpu"):
        Ensemble(members)
    members[2].device = torch.device("cpu", 0)
    Ensemble(members)


def test_agents_of_different_kinds_act_together_but_have_no_common_scale(members, dataset):
    imitation = BC(BCConfig(steps=2, batch_size=4, hidden=(8,)), device="cpu").learn(dataset)
    together = Ensemble([members[0], imitation])
    observation = np.zeros(3, np.float32)
    each = [a.predict(observation, deterministic=True)[0] for a in (members[0], imitation)]
    both, _ = together.predict(observation, deterministic=True)
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-6)
    assert not hasattr(together, "guidance_scale")
    message = "member 1, a BC agent, has no guidance_scale"
    with pytest.raises(AttributeError, match=message):
        together.guidance_scale = 2.0
    with pytest.raises(AttributeError, match=message):
        together.configure_guidance(2.0)
    with pytest.raises(AttributeError, match=message):
        together.tune_guidance(dataset)
    assert members[0].guidance_scale == members[0].config.guidance_scale == 1.0


@pytest.fixture
def folders(members, tmp_path):
    register_walk()
    made = [tmp_path / f"run{i}" for i in range(3)]
    for folder, member in zip(made, members, strict=True):
        folder.mkdir()
        member.save(folder / "checkpoint.zip")
    return made


def play(*runs, **changes):
    """What `evaluate.py` writes about these runs."""
    asked = {"env_id": "test/Walk-v0", "n_episodes": 2, "device": "cpu", "progress_bar": False}
    evaluate_script.main(evaluate_script.Args(runs, **(asked | changes)))
    [written] = runs[0].glob("evaluation-together-*.json")
    return json.loads(written.read_text())


@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluate_plays_several_runs_together(deterministic, members, folders, capsys):
    about = play(*folders, guidance_scale=(0.0, 2.0), deterministic=deterministic)
    shown = capsys.readouterr().out
    how = "the mean of their actions" if deterministic else "each action from a random member"
    assert f"ensemble of these 3: {how}" in shown
    assert "note" not in shown
    assert [one["checkpoint"] for one in about["members"]] == [
        str(folder / "checkpoint.zip") for folder in folders
    ]
    together = Ensemble(members)
    assert [one["guidance_scale"] for one in about["evaluations"]] == [0.0, 2.0]
    for one in about["evaluations"]:
        together.guidance_scale = one["guidance_scale"]
        again = evaluate(together, "test/Walk-v0", 2, seed=10_000, deterministic=deterministic)
        assert again.returns == one["returns"]


def test_evaluate_leaves_each_run_its_own_scale_and_gives_all_the_solver(members, folders):
    members[1].configure_guidance(0.5)
    members[1].save(folders[1] / "checkpoint.zip")
    about = play(*folders, solver="ddim", solver_steps=3)
    assert [one["guidance_scale"] for one in about["members"]] == [1.0, 0.5, 1.0]
    assert [one["solver"] for one in about["members"]] == ["ddim"] * 3
    assert [one["solver_steps"] for one in about["members"]] == [3] * 3
    [one] = about["evaluations"]
    assert one["guidance_scale"] is None
    assert one["returns"] == evaluate(Ensemble(members), "test/Walk-v0", 2, seed=10_000).returns


def test_evaluate_tunes_the_scale_on_the_data_of_the_runs(members, dataset, folders, monkeypatch):
    asked = []

    def load_dataset(dataset_id, storage, progress_bar):
        asked.append((dataset_id, storage))
        return dataset

    monkeypatch.setattr(evaluate_script, "load_dataset", load_dataset)
    monkeypatch.setattr(
        Ensemble,
        "tune_guidance",
        partialmethod(tune_guidance, scales=(0.0, 2.0), rollouts=2, steps=5),
    )
    about = play(*folders, tune_guidance=True, guidance_scale=(0.25,))
    assert asked == [(dataset.id, "memory")]
    found = Ensemble(members).tune_guidance(dataset)
    assert about["guidance_tuning"] == found.as_dict()
    assert [one["guidance_scale"] for one in about["evaluations"]] == [0.25, found.best]
    assert QGPO.load(folders[0] / "checkpoint.zip").guidance_scale == 1.0
    (folders[0] / "config.json").write_text('{"args": {"storage": "memmap"}}')
    play(*folders, tune_guidance=True, output=folders[0] / "2.json")
    play(*folders, tune_guidance=True, storage="memory", output=folders[0] / "3.json")
    assert asked[1:] == [(dataset.id, "memmap"), (dataset.id, "memory")]


def test_evaluate_names_the_runs_that_are_not_complete(dataset, folders, capsys):
    unfinished = QGPO(WHITENED, device="cpu")
    unfinished.train_behavior(dataset)
    unfinished.save(folders[2] / "checkpoint.zip")
    stopped = BC(BCConfig(hidden=(8,), steps=4), device="cpu")
    stopped.learn(dataset, lambda scope, _: scope["self"].num_timesteps < 2)
    stopped.save(folders[1] / "checkpoint.zip")
    play(*folders)
    out = capsys.readouterr().out
    assert out.count("training is not complete") == 2
    assert "not complete: it stopped in stage 'behavior' at timestep 8 of 18\n" in out
    assert "not complete: it stopped in stage 'training' at timestep 2 of 4\n" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_scale": (1.0,)}, "a BC agent has no guidance_scale"),
        ({"tune_guidance": True}, "tune_guidance=True: a BC agent has no guidance_scale"),
        ({"solver": "ddim"}, "a BC agent has no solver"),
    ],
)
def test_evaluate_refuses_what_one_of_the_runs_lacks(changes, message, dataset, folders):
    imitation = BC(BCConfig(steps=2, batch_size=4, hidden=(8,)), device="cpu").learn(dataset)
    imitation.save(folders[2] / "checkpoint.zip")
    with pytest.raises(SystemExit, match=message):
        play(*folders, **changes)
    assert play(*folders)["evaluations"][0]["guidance_scale"] is None


def test_evaluate_refuses_a_run_named_twice_and_runs_of_different_environments(members, folders):
    with pytest.raises(SystemExit, match=r"run0: named twice"):
        play(folders[0], folders[1], folders[0])
    with pytest.raises(SystemExit, match=r"checkpoint.zip: named twice"):
        play(folders[0], folders[0] / "checkpoint.zip")
    for member, name in zip(members, ("Pendulum-v1", "test/Walk-v0"), strict=False):
        member.env_spec = gym.spec(name)
        member.save(folders[members.index(member)] / "checkpoint.zip")
    with pytest.raises(SystemExit, match=r"\['Pendulum-v1', 'test/Walk-v0'\]: choose one with"):
        play(*folders, env_id=None)
    play(*folders)


def imitation(seed=0):
    config = BCConfig(steps=2, batch_size=4, hidden=(8,))
    return BC(config, seed=seed, device="cpu").learn(make_dataset())


@pytest.mark.parametrize("deterministic", [False, True])
def test_threads_leave_the_members_their_own_noise(deterministic):
    members = [imitation(seed=seed) for seed in range(2)]
    together = Ensemble(members)
    own = [member.prediction_generator for member in members]
    states = [generator.get_state() for generator in own]
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda _: together.predict(np.zeros((2, 3)), None, None, deterministic), range(40)
            )
        )
        alone = [pool.submit(members[0].predict, np.zeros(3), deterministic=True) for _ in range(4)]
    assert len({float(one.result()[0][0]) for one in alone}) == 1
    assert all(m.prediction_generator is g for m, g in zip(members, own, strict=True))
    assert all(torch.equal(g.get_state(), s) for g, s in zip(own, states, strict=True))


def test_a_member_that_fails_keeps_its_noise(monkeypatch):
    member = imitation()
    own = member.prediction_generator
    monkeypatch.setattr(BC, "act", lambda *_: [][0])
    with pytest.raises(IndexError):
        Ensemble([member]).predict(np.zeros(3))
    assert member.prediction_generator is own
