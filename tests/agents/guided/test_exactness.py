"""How exact an agent's guidance is: against closed forms, and of a trained agent."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from factory import WHITENED, make_dataset

from qgpo import QGPO
from qgpo.agents.guided.exactness import Exactness, bootstrap, relative
from qgpo.exact import EmpiricalTilt, compare_with_two
from qgpo.experiments.exactness_figure import draw_exactness
from qgpo.schedule import make_schedule

COSINE = make_schedule("cosine")


@pytest.fixture(scope="module")
def agent():
    return QGPO(replace(WHITENED, tilt_limit=1.0), seed=1, device="cpu").learn(make_dataset())


def test_products_of_halves_leave_the_error_of_the_gradient():
    # a standard normal q with f_0 = g x: f* has the gradient alpha g (alpha^2 + sigma^2 = 1)
    generator = torch.Generator().manual_seed(0)
    g = torch.tensor([1.0, -0.5])
    t = torch.full((400,), 0.6)
    alpha = COSINE.alpha(t)[:, None]
    errors, sizes = [], []
    for _ in range(6):
        halves = []
        for _ in range(2):
            points = torch.randn(1500, 2, generator=generator)
            halves.append(EmpiricalTilt(points, points @ g, COSINE))
        x_t = torch.randn(400, 2, generator=generator) + alpha * g
        error, size = compare_with_two(1.2 * alpha * g, *halves, x_t, t)
        errors.append(error.mean())
        sizes.append(size.mean())
    found = relative(float(sum(errors)), float(sum(sizes)))
    assert found == pytest.approx(0.2, abs=0.03)
    assert float(sum(sizes)) / 6 == pytest.approx(
        float((COSINE.sigma(t[:1]) * alpha[0]) ** 2 * g @ g), rel=0.1
    )


def test_a_trained_agent_is_measured_and_stays_as_it_is(agent, tmp_path):
    dataset = make_dataset()
    before = {name: value.clone() for name, value in agent.networks.state_dict().items()}
    found = agent.exactness(dataset, 3, samples=256, progress_bar=False)
    again = agent.exactness(dataset, 3, samples=256, progress_bar=False)
    assert isinstance(found, Exactness)
    assert found.errors.shape == found.sizes.shape == (3, len(found.times))
    np.testing.assert_array_equal(found.errors, again.errors)
    assert all(torch.equal(v, before[k]) for k, v in agent.networks.state_dict().items())
    assert (found.effective > 0.0).all()
    assert (found.effective <= 1.0 + 1e-6).all()
    assert (found.floors > 0.0).all()
    assert found.guidance_error.low <= found.guidance_error.value <= found.guidance_error.high
    assert json.loads(json.dumps(found.as_dict()))["times"] == list(found.times)
    assert "guidance error" in str(found)
    draw_exactness(tmp_path / "exactness.png", "an agent", found)
    assert (tmp_path / "exactness.png").stat().st_size > 10_000


def test_no_guidance_is_off_by_the_whole_size_of_the_exact_one(agent, monkeypatch):
    zero = lambda x_t, t, condition: torch.zeros_like(x_t)  # noqa: E731
    monkeypatch.setattr(agent.energy, "gradient", zero)
    found = agent.exactness(make_dataset(), 3, samples=512, progress_bar=False)
    assert found.guidance_error.value == pytest.approx(1.0, abs=1e-6)


def test_a_saved_agent_is_measured_alike(agent, tmp_path):
    agent.save(tmp_path / "agent")
    loaded = QGPO.load(tmp_path / "agent.zip", device="cpu")
    found = [
        a.exactness(make_dataset(), 2, samples=64, progress_bar=False) for a in (agent, loaded)
    ]
    np.testing.assert_allclose(found[0].errors, found[1].errors, rtol=1e-4, atol=1e-7)


def test_what_cannot_be_measured_is_refused(agent):
    with pytest.raises(RuntimeError, match="not trained"):
        QGPO(WHITENED, seed=1, device="cpu").exactness(make_dataset())
    with pytest.raises(ValueError, match="states=1, expected at least 2"):
        agent.exactness(make_dataset(), 1)


def test_the_interval_is_that_of_resampled_states():
    rng = np.random.default_rng(1)
    over, under = rng.uniform(0.9, 1.1, 50), np.ones(50)
    found = bootstrap(lambda a, b: a / b, over, under)
    assert found.value == pytest.approx(over.mean())
    assert found.high - found.low == pytest.approx(4 * over.std() / np.sqrt(50), rel=0.2)


def test_what_few_actions_say_comes_nearer_with_more_of_them(agent):
    found = agent.exactness(
        make_dataset(), 4, samples=2048, support=(2, 16, 1024), progress_bar=False
    )
    errors = [found.support_error(m).value for m in (2, 16, 1024)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.4
    plain = agent.exactness(make_dataset(), 4, samples=2048, progress_bar=False)
    assert plain.by_support == {}
    written = json.loads(json.dumps(found.as_dict()))["by_support"]
    assert written["16"]["guidance_error"][0] == pytest.approx(errors[1])
    assert "error of 16 actions" in str(found)
    with pytest.raises(ValueError, match="support=1, expected at least 2"):
        agent.exactness(make_dataset(), 2, support=(1,))
