from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from bad_input import register_walk
from conftest import WHITENED, make_dataset
from gymnasium import spaces

from qgpo import BC, QGPO, BCConfig, Ensemble
from qgpo.envs import evaluate
from qgpo.scripts import evaluate as evaluate_script

WIDE = spaces.Box(np.array([-1.0, 0.0]), np.array([3.0, 10.0]), dtype=np.float32)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(lengths=(12, 9, 11))


@pytest.fixture
def members(dataset):
    return [QGPO(WHITENED, seed=seed, device="cpu").learn(dataset) for seed in range(3)]


def constant(dataset, *actions):
    """Agents that always take these actions, in units of [-1, 1]."""
    made = []
    for action in actions:
        agent = QGPO(WHITENED, device="cpu")
        agent._prepare(dataset)
        agent._act = lambda x, deterministic, a=action: torch.full((len(x), 2), a)
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


def test_one_member_acts_as_it_does_alone(members):
    observations = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    alone, _ = members[0].predict(observations, deterministic=True)
    together, _ = Ensemble(members[:1]).predict(observations, deterministic=True)
    np.testing.assert_array_equal(together, alone)


def test_the_guidance_scale_is_everyones(members, dataset):
    members[1].guidance_scale = 0.5
    together = Ensemble(members)
    assert together.guidance_scale == (1.0, 0.5, 1.0)
    together.guidance_scale = 2.0
    assert [member.guidance_scale for member in members] == [2.0] * 3
    assert together.guidance_scale == 2.0
    together.guidance_scale = (0.0, 1.0, 2.0)
    assert [member.guidance_scale for member in members] == [0.0, 1.0, 2.0]


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
    monkeypatch.setattr(members[2], "_act", lambda x, deterministic: 1 / 0)
    together = Ensemble(members)
    with pytest.raises(ZeroDivisionError):
        together.tune_guidance(dataset, (0.0, 2.0), rollouts=2, steps=1)
    assert together.guidance_scale == (1.0, 0.5, 1.0)


def test_members_of_other_data_are_not_tuned_together(members):
    other = make_dataset(lengths=(12, 9, 11), seed=5)
    strange = QGPO(WHITENED, device="cpu").learn(other)
    with pytest.raises(ValueError, match="holds other data"):
        Ensemble([strange, members[0]]).tune_guidance(other, rollouts=2, steps=1)


def test_an_unfinished_member_is_not_tuned(members, dataset):
    fresh = QGPO(WHITENED, device="cpu")
    fresh._prepare(dataset)
    with pytest.raises(RuntimeError, match="Ensemble is not trained to the end"):
        Ensemble([members[0], fresh]).tune_guidance(dataset)


def test_agents_of_different_kinds_act_together_but_have_no_common_scale(members, dataset):
    imitation = BC(BCConfig(steps=2, batch_size=4, hidden=(8,)), device="cpu").learn(dataset)
    together = Ensemble([members[0], imitation])
    observation = np.zeros(3, np.float32)
    each = [a.predict(observation, deterministic=True)[0] for a in (members[0], imitation)]
    both, _ = together.predict(observation, deterministic=True)
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-6)
    assert not hasattr(together, "guidance_scale")
    with pytest.raises(AttributeError, match="a BC agent has no guidance_scale"):
        together.guidance_scale = 1.0


def test_evaluate_plays_several_runs_together(members, tmp_path, capsys):
    register_walk()
    folders = [tmp_path / f"run{i}" for i in range(3)]
    for folder, member in zip(folders, members, strict=True):
        folder.mkdir()
        member.save(folder / "checkpoint.zip")
    args = evaluate_script.Args(
        tuple(folders),
        env_id="test/Walk-v0",
        guidance_scale=(0.0, 2.0),
        n_episodes=2,
        device="cpu",
        progress_bar=False,
    )
    evaluate_script.main(args)
    shown = capsys.readouterr().out
    assert "these 3 act together: the mean of their actions" in shown
    [written] = folders[0].glob("evaluation-*.json")
    about = json.loads(written.read_text())
    assert [one["checkpoint"] for one in about["members"]] == [
        str(folder / "checkpoint.zip") for folder in folders
    ]
    together = Ensemble(members)
    assert [one["guidance_scale"] for one in about["evaluations"]] == [0.0, 2.0]
    for one in about["evaluations"]:
        together.guidance_scale = one["guidance_scale"]
        assert evaluate(together, "test/Walk-v0", 2, seed=10_000).returns == one["returns"]
