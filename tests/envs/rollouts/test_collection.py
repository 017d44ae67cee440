from __future__ import annotations

import contextlib
import os
import re
import warnings
from dataclasses import replace
from pathlib import Path

import minari
import numpy as np
import pytest
import torch
from commands import run_anew, run_in_a_copy
from factory import ROOT
from minari.storage.datasets_root_dir import get_dataset_path

from qgpo import evaluate, load_dataset
from qgpo.envs.rollouts.collecting import N_ENVS, collect, collect_vec_env
from qgpo.envs.rollouts.sb3_policies import ActorPolicy, load_policy
from qgpo.envs.rollouts.scripted_policies import UniformPolicy
from qgpo.envs.store import bundled
from qgpo.envs.store.scratch import LOCKS
from qgpo.envs.store.writing import write_minari
from qgpo.envs.tasks.making import make_env
from qgpo.experiments.packing import read_documents


def rollouts(policy_file, seed=0, n_steps=120, names=("a", "b"), **more):
    files = [policy_file(name, seed=i) for i, name in enumerate(names)]
    return collect(
        "Pendulum-v1",
        lambda space: [load_policy(file, space) for file in files],
        n_steps,
        seed,
        **{"max_episode_steps": 12, "progress_bar": False, **more},
    )


def flat(episodes, name):
    return np.concatenate([np.asarray(getattr(e, name)) for e in episodes])


def same(first, second):
    return len(first) == len(second) and all(
        np.array_equal(flat(first, name), flat(second, name))
        for name in ("observations", "actions", "rewards", "truncations")
    )


def test_whole_episodes_until_enough_steps(policy_file):
    episodes = rollouts(policy_file)
    assert sum(len(e.rewards) for e in episodes) >= 120
    for episode in episodes:
        assert len(episode.rewards) == 12
        assert episode.observations.shape == (13, 3)
        assert episode.actions.shape == (12, 1)
        assert episode.truncations == [False] * 11 + [True]
        assert not any(episode.terminations)


@pytest.mark.parametrize("switch_every", [None, 3])
def test_reproducible_from_the_seed(policy_file, switch_every):
    first = rollouts(policy_file, seed=3, switch_every=switch_every)
    assert same(first, rollouts(policy_file, seed=3, switch_every=switch_every))
    assert not same(first, rollouts(policy_file, seed=4, switch_every=switch_every))


def test_recorded_steps_replay_in_the_environment(policy_file):
    env = make_env("Pendulum-v1")
    for episode in rollouts(policy_file)[:3]:
        observation, _ = env.reset(seed=episode.seed)
        np.testing.assert_array_equal(observation, episode.observations[0])
        for t, action in enumerate(episode.actions):
            observation, reward, *_ = env.step(action)
            np.testing.assert_array_equal(observation, episode.observations[t + 1])
            assert reward == episode.rewards[t]


def chosen(episode, policies):
    """For each step, whether each policy would have taken the action (deterministic)."""
    observations = episode.observations[:-1]
    acts = [p.act(observations, torch.Generator(), deterministic=True) for p in policies]
    return np.stack([np.isclose(a, episode.actions, atol=1e-5).all(axis=1) for a in acts])


def test_one_policy_per_episode_or_switching_inside(policy_file):
    space = make_env("Pendulum-v1").action_space
    policies = [load_policy(policy_file(n, seed=i), space) for i, n in enumerate("ab")]
    per_episode = rollouts(policy_file, deterministic=True, n_steps=240)
    used = [chosen(e, policies).all(axis=1) for e in per_episode]
    assert all(u.any() for u in used)
    assert np.any([u[0] for u in used])
    assert np.any([u[1] for u in used])
    switching = rollouts(policy_file, deterministic=True, n_steps=240, switch_every=3)
    taken = [chosen(e, policies) for e in switching]
    assert all(t.any(axis=0).all() for t in taken)
    assert np.mean([not t.all(axis=1).any() for t in taken]) > 0.5


def test_deterministic_actions_do_not_draw_noise(policy_file):
    sampled, central = rollouts(policy_file), rollouts(policy_file, deterministic=True)
    assert not same(sampled, central)


@pytest.mark.parametrize(
    "wrong", [{"seed": None}, {"seed": 2**64}, {"seed": "a"}, {"deterministic": "no"}]
)
def test_seeds_and_flags_of_other_types_are_refused(wrong):
    [name] = wrong
    given = {"seed": 0, "deterministic": True, "progress_bar": False, **wrong}
    with pytest.raises(ValueError, match=f"{name}=.*, expected"):
        collect("Pendulum-v1", lambda space: [], 10, **given)
    with pytest.raises(ValueError, match=f"{name}=.*, expected"):
        collect_vec_env(None, None, 10, **given)
    with pytest.raises(ValueError, match=f"{name}=.*, expected"):
        evaluate(Constant(), "Pendulum-v1", 1, **given)


class Constant:
    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.zeros((len(observation), 1), dtype=np.float32), None


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match=r"CartPole-v1.*expected a Box"):
        collect("CartPole-v1", lambda space: [], 10, 0, progress_bar=False)


def store(episodes, dataset_id="test/pendulum/made-v0"):
    write_minari(dataset_id, episodes, "Pendulum-v1", "PPO", "rollouts")


def test_round_trip_keeps_every_number(policy_file):
    episodes = rollouts(policy_file)
    store(episodes)
    assert "test/pendulum/made-v0" in minari.list_local_datasets()
    dataset = load_dataset("test/pendulum/made-v0", download=False)
    assert dataset.env_spec.id == "Pendulum-v1"
    np.testing.assert_array_equal(dataset.states, flat(episodes, "observations").astype("f4"))
    np.testing.assert_array_equal(dataset.actions, flat(episodes, "actions").astype("f4"))
    np.testing.assert_array_equal(dataset.rewards, flat(episodes, "rewards").astype("f4"))
    np.testing.assert_array_equal(dataset.truncations, flat(episodes, "truncations"))
    np.testing.assert_array_equal(dataset.terminations, flat(episodes, "terminations"))


def hidden_entries():
    root = Path(get_dataset_path(""))
    return [p.name for p in root.iterdir() if p.name.startswith(".qgpo-") and p.name != LOCKS]


def test_existing_id_is_refused_and_kept(policy_file):
    store(rollouts(policy_file))
    before = load_dataset("test/pendulum/made-v0").fingerprint
    with pytest.raises(ValueError, match="already exists"):
        store(rollouts(policy_file, seed=9))
    assert load_dataset("test/pendulum/made-v0").fingerprint == before
    assert not hidden_entries()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_creation_leaves_nothing(policy_file, monkeypatch, error, tmp_path):
    episodes = rollouts(policy_file)
    create = minari.create_dataset_from_buffers

    def interrupted(*args, **kwargs):
        create(*args, **kwargs)
        raise error("stop")

    monkeypatch.setattr(minari, "create_dataset_from_buffers", interrupted)
    with pytest.raises(error):
        store(episodes)
    assert not Path(get_dataset_path("test/pendulum/made-v0")).exists()
    assert not hidden_entries()
    assert Path(get_dataset_path("")) == tmp_path / "minari"
    monkeypatch.undo()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    store(episodes)
    assert len(load_dataset("test/pendulum/made-v0")) == sum(len(e.rewards) for e in episodes)


@pytest.fixture
def recipe(policy_file, monkeypatch, tmp_path):
    policy_file("pendulum-one")
    policy_file("pendulum-two", seed=1)
    monkeypatch.setattr(bundled, "POLICY_FOLDER", tmp_path)
    made = bundled.Recipe(
        "Pendulum-v1", ("pendulum-one", "pendulum-two"), switch_every=20, n_steps=N_ENVS * 200
    )
    monkeypatch.setitem(bundled.RECIPES, "qgpo/pendulum/made-v0", made)
    return "qgpo/pendulum/made-v0"


def test_bundled_dataset_is_made_once_and_is_reproducible(recipe, monkeypatch, tmp_path):
    first = load_dataset(recipe)
    assert len(first) == N_ENVS * 200
    monkeypatch.setattr(bundled, "collect", None)
    assert load_dataset(recipe).fingerprint == first.fingerprint
    monkeypatch.undo()


def test_bundled_dataset_that_another_process_made_meanwhile_is_taken(recipe, monkeypatch):
    made, wait = [], bundled.sole_writer

    @contextlib.contextmanager
    def waited(dataset_id):
        monkeypatch.setattr(bundled, "sole_writer", wait)
        made.append(load_dataset(recipe))
        monkeypatch.setattr(bundled, "collect", None)
        with wait(dataset_id):
            yield

    monkeypatch.setattr(bundled, "sole_writer", waited)
    assert load_dataset(recipe).fingerprint == made[0].fingerprint


def test_bundled_dataset_does_not_depend_on_the_folder(recipe, monkeypatch, tmp_path):
    first = load_dataset(recipe)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    assert load_dataset(recipe).fingerprint == first.fingerprint


def test_other_data_under_a_bundled_id_are_warned_about(recipe, monkeypatch):
    made = load_dataset(recipe)
    part = minari.load_dataset(recipe).filter_episodes(lambda episode: episode.id < 3)
    for fingerprint, source, is_warned in (
        (made.fingerprint, recipe, False),
        ("0" * 64, recipe, True),
        ("0" * 64, part, False),  # not meant to be the whole
    ):
        published = replace(bundled.RECIPES[recipe], fingerprint=fingerprint)
        monkeypatch.setitem(bundled.RECIPES, recipe, published)
        for storage in ("memory", "memmap"):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                load_dataset(source, storage=storage)
            told = [str(warning.message) for warning in caught]
            assert any("made-v0' in" in t and "differs from the published" in t for t in told) is (
                is_warned
            )


def test_published_fingerprints_are_those_of_the_benchmark():
    found = {}
    for document in read_documents(ROOT / "benchmarks" / "bundled").values():
        about = document["dataset"]
        found.setdefault(about["id"], set()).add(about["fingerprint"])
    assert len(found) == 6
    assert found == {name: {bundled.RECIPES[name].fingerprint} for name in found}


def test_every_recipe_has_the_fingerprint_of_its_data():
    fingerprints = [recipe.fingerprint for recipe in bundled.RECIPES.values()]
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in fingerprints)
    assert len(set(fingerprints)) == len(fingerprints)


ROLLOUT = """
from qgpo.envs.store import bundled
from qgpo.envs.rollouts.collecting import collect
for task in bundled.TASKS:
    kind = {"pendulum": "modes", "reacher": "wide"}
    recipe = bundled.RECIPES[f"qgpo/{task}/{kind.get(task, 'mixed')}-v0"]
    episodes = collect(
        recipe.env_id,
        lambda space: bundled.open_policies(recipe, space),
        10,
        recipe.seed,
        switch_every=recipe.switch_every,
        max_episode_steps=100 if task in ("halfcheetah", "hopper") else 20,
        progress_bar=False,
    )
    print([float(reward).hex() for episode in episodes for reward in episode.rewards])
"""


def test_bundled_data_do_not_depend_on_how_the_processor_rounds(tmp_path):
    simd = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    script = tmp_path / "rollout.py"
    script.write_text(ROLLOUT)
    other = {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "NPY_DISABLE_CPU_FEATURES": " ".join(simd),
        "OMP_NUM_THREADS": "1",
    }
    done = [
        run_in_a_copy([str(script)], tmp_path, dict(os.environ)),
        run_anew([str(script)], tmp_path, {**os.environ, **other}),
    ]
    assert [one.returncode for one in done] == [0, 0], done
    outputs = [one.stdout for one in done]
    assert len(outputs[0]) > 10_000
    assert outputs[0] == outputs[1]


def test_every_recipe_names_bundled_policies_of_its_environment():
    for dataset_id, recipe in bundled.RECIPES.items():
        env = make_env(recipe.env_id)
        for policy in bundled.open_policies(recipe, env.action_space):
            if not isinstance(policy, UniformPolicy):
                assert policy.observation_dim == env.observation_space.shape[0], dataset_id
        env.close()


def test_two_of_three_actions_of_a_wide_recipe_are_the_policy_s(policy_file, monkeypatch, tmp_path):
    policy_file("pendulum-medium")
    monkeypatch.setattr(bundled, "POLICY_FOLDER", tmp_path)
    recipe = bundled.make_recipe("pendulum", "wide", "0" * 64)
    assert [
        type(one) for one in bundled.open_policies(recipe, make_env("Pendulum-v1").action_space)
    ] == [
        ActorPolicy,
        ActorPolicy,
        UniformPolicy,
    ]


def test_modes_have_a_quarter_of_the_noise(policy_file, monkeypatch, tmp_path):
    policy_file("pendulum-simple")
    policy_file("pendulum-medium", seed=1)
    monkeypatch.setattr(bundled, "POLICY_FOLDER", tmp_path)
    space = make_env("Pendulum-v1").action_space
    mixed, modes = (
        bundled.open_policies(bundled.make_recipe("pendulum", kind, "0" * 64), space)
        for kind in ("mixed", "modes")
    )
    for loud, quiet in zip(mixed, modes, strict=True):
        np.testing.assert_allclose(quiet.log_std.exp() / loud.log_std.exp(), 0.25)
        for name, tensor in quiet.net.state_dict().items():
            assert torch.equal(tensor, loud.net.state_dict()[name])
    with pytest.raises(KeyError):
        bundled.make_recipe("pendulum", "broad", "0" * 64)


def test_unknown_bundled_policy_lists_the_choices():
    with pytest.raises(ValueError, match="halfcheetah-medium"):
        bundled.bundled_policy("halfcheetah-master", make_env("Pendulum-v1").action_space)
