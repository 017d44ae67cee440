"""What is prepared for acting gives the actions that the networks themselves give."""

from __future__ import annotations

import numpy as np
import pytest

from qgpo import QGPO
from qgpo.prepared import plainly


@pytest.fixture(scope="module")
def agent():
    return QGPO.pretrained("halfcheetah/mixed", device="cpu")


def actions(agent, observations, deterministic):
    agent.seed_predictions(3)
    return agent.predict(observations, deterministic=deterministic)[0]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 7, 300])
@pytest.mark.parametrize("changes", [{}, {"guidance_scale": 3.0}, {"guidance_scale": 0.0}])
def test_actions_are_the_same_to_a_millionth(agent, rows, deterministic, changes):
    rng = np.random.default_rng(0)
    moments = agent.behavior.normalizer
    spread = 2.0 * rng.standard_normal((rows, 17), np.float32)
    observations = moments.mean.numpy() + spread * moments.std.numpy()
    agent.guidance_scale = changes.get("guidance_scale", 1.0)
    found = actions(agent, observations, deterministic)
    with plainly():
        expected = actions(agent, observations, deterministic)
    assert np.abs(found - expected).max() <= 1e-6
    assert np.abs(found).max() > 0.1


def test_guidance_changes_what_is_prepared(agent):
    observation = agent.behavior.normalizer.mean.numpy()
    agent.guidance_scale = 0.0
    without = actions(agent, observation, deterministic=True)
    agent.guidance_scale = 1.0
    assert np.abs(actions(agent, observation, deterministic=True) - without).max() > 1e-3
