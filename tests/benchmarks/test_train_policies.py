"""The trainings whose snapshots are the bundled policies."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from factory import ROOT
from safetensors import safe_open

from qgpo.envs.rollouts.sb3_policies import POLICY_FOLDER, ActorPolicy


@pytest.fixture
def training(monkeypatch):
    """The module benchmarks/train_policies.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("train_policies")


def test_every_environment_of_a_bundled_policy_has_settings(training):
    environments = set()
    for path in POLICY_FOLDER.glob("*.safetensors"):
        with safe_open(path, "pt") as opened:
            environments.add(opened.metadata()["env_id"])
    assert set(training.SETTINGS) == environments
    for row in training.SETTINGS.values():
        assert row.keys() <= training.DEFAULTS.keys()


def test_a_snapshot_acts_as_the_policy_with_its_normalization(training):
    model = training.make_model(training.Args(env_id="Reacher-v5"))
    normalizer = model.get_vec_normalize_env()
    rng = np.random.default_rng(0)
    normalizer.obs_rms.mean = rng.normal(size=10)
    normalizer.obs_rms.var = rng.uniform(0.5, 2.0, size=10)
    weights, activation = training.actor_weights(model)
    snapshot = ActorPolicy(weights, model.action_space, activation)
    observations = rng.normal(size=(7, 10))
    found = snapshot.act(observations, torch.Generator(), deterministic=True)
    seen = normalizer.normalize_obs(observations)
    expected, _ = model.predict(seen, deterministic=True)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5)
