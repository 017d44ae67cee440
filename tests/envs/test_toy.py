from __future__ import annotations

import contextlib
import json
import math
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from commands import run
from factory import WHITENED
from gymnasium.utils.env_checker import check_env

from qgpo import QGPO, evaluate, load_dataset
from qgpo.envs.toy import SCALE, TOY_PROBLEMS, draw_toy, env_id, make_toy_dataset, resample_toy
from qgpo.scripts import toy_2d

every_problem = pytest.mark.parametrize("problem", sorted(TOY_PROBLEMS))


@every_problem
def test_shapes_ranges_and_seeds(problem):
    x, e = draw_toy(problem, 5000, seed=0)
    assert x.shape == (5000, 2)
    assert e.shape == (5000,)
    assert float(e.min()) >= 0.0
    assert float(e.max()) <= (2.0 if problem == "swissroll" else 1.0)
    assert float(x.abs().max()) < SCALE
    assert torch.equal(draw_toy(problem, 5000, seed=0)[0], x)
    assert not torch.equal(draw_toy(problem, 5000, seed=1)[0], x)


def test_unknown_problem_lists_the_choices():
    for call in (lambda: draw_toy("moon", 3, 0), lambda: env_id("moon")):
        with pytest.raises(ValueError, match=r"'moon'.*moons"):
            call()


def test_swissroll_prefers_the_outside():
    x, e = draw_toy("swissroll", 1000, 0)
    torch.testing.assert_close(e, (x**2).sum(-1) / 9.0)


def test_rings_have_four_radii_and_their_levels():
    x, e = draw_toy("rings", 20_000, 0)
    r = x.norm(dim=-1)
    for radius in (3.0, 2.25, 1.5, 0.75):
        near = (r - radius).abs() < 0.04
        assert float(near.float().mean()) == pytest.approx(0.25 * 0.38, abs=0.03)
    for low, high, level in ((2.92, 9.0, 2 / 3), (2.24, 2.9, 1 / 3), (1.42, 2.23, 1), (0, 1.41, 0)):
        chosen = e[(r > low) & (r < high)]
        torch.testing.assert_close(chosen, torch.full_like(chosen, level))


def test_moons_are_halves_of_circles():
    x, e = draw_toy("moons", 20_000, 0)
    unshifted = (x - torch.tensor([-1.0, -0.2])) / 2.0
    outer = unshifted[e == 0]
    inner = unshifted[e == 1] - torch.tensor([1.0, 0.5])
    for moon in (outer, inner):
        assert float(moon.norm(dim=-1).mean()) == pytest.approx(1.0, abs=0.02)
    assert float(outer[:, 1].mean()) == pytest.approx(2 / math.pi, abs=0.02)
    assert float(inner[:, 1].mean()) == pytest.approx(-2 / math.pi, abs=0.02)


def test_gaussians_sit_on_a_circle():
    x, e = draw_toy("8gaussians", 20_000, 0)
    for index in range(8):
        chosen = x[(e * 7).round() == index]
        angle = index * math.pi / 4
        centre = torch.tensor([math.cos(angle), math.sin(angle)]) * 4 / 1.414
        torch.testing.assert_close(chosen.mean(0), centre, atol=0.05, rtol=0.0)
        assert float(chosen.std(0).mean()) == pytest.approx(0.5 / 1.414, abs=0.02)


def test_spirals_prefer_the_inside_and_are_symmetric():
    x, e = draw_toy("2spirals", 20_000, 0)
    assert float(x.mean(0).abs().max()) < 0.05
    assert float(torch.corrcoef(torch.stack([x.norm(dim=-1), e]))[0, 1]) < -0.95


def test_checkerboard_leaves_every_second_square_empty():
    x, e = draw_toy("checkerboard", 20_000, 0)
    column, row = torch.floor(x[:, 0] / 2), torch.floor(x[:, 1] / 2)
    assert (torch.remainder(column + row, 2) == 0).all()
    assert set(e[column == 0].tolist()) == set(e[column == -2].tolist()) == {1.0}
    assert set(e[column == 1].tolist()) == set(e[column == -1].tolist()) == {0.0}


def test_resampling_follows_the_softmax():
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    drawn = resample_toy(points, torch.tensor([0.0, 1.0]), 2.0, 20_000, seed=0)
    expected = math.exp(2.0) / (1.0 + math.exp(2.0))
    assert float(drawn[:, 0].mean()) == pytest.approx(expected, abs=0.01)


@every_problem
def test_the_bandit_is_a_valid_environment_that_pays_e(problem):
    env = gym.make(env_id(problem))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=0)
    points, preference = env.unwrapped.points, env.unwrapped.preference
    for i in (0, 7, 100):
        env.reset()
        action = (points[i] / SCALE).numpy()
        _, reward, terminated, truncated, _ = env.step(action)
        assert reward == pytest.approx(float(preference[i]))
        assert terminated
        assert not truncated


def test_the_agent_runs_on_the_bandit():
    dataset_id = make_toy_dataset("moons", n=60)
    dataset = load_dataset(dataset_id)
    assert len(dataset) == dataset.n_episodes == 60
    assert dataset.terminations.all()
    points, preference = draw_toy("moons", 60, seed=1)
    np.testing.assert_allclose(dataset.actions, points / SCALE, rtol=1e-6)
    np.testing.assert_allclose(dataset.rewards, preference)
    agent = QGPO(replace(WHITENED, behavior_steps=3), device="cpu").learn(dataset)
    result = evaluate(agent, dataset, 3)
    assert len(result.returns) == 3


def test_the_study_writes_its_figures_and_tables(tmp_path):
    out = tmp_path / "study"
    command = ["--problems", "moons"]
    command += ["--methods", "cep", "weighted", "dps", "--betas", "3", "--workers", "1"]
    command += ["--n-data", "500", "--n-samples", "200", "--data-steps", "3", "--cep-steps", "2"]
    command += ["--other-steps", "2", "--solver-steps", "3", "--output", str(out)]
    run("toy_2d", *command, cwd=tmp_path, data=tmp_path, anew=True)
    assert "| moons |" in (out / "table_beta3.md").read_text()
    result = json.loads((out / "results_beta3.json").read_text())
    row = result["problems"]["moons"]["methods"]["cep"]
    assert row["sw2"] > 0.0
    assert set(row["guidance_error"]) == {"0.1", "0.3", "0.5", "0.7"}
    for name in ("samples_beta3", "maps_moons_beta3"):
        assert (out / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize("flag", ["--problems", "--methods"])
def test_the_study_names_unknown_choices(flag, tmp_path):
    done = run("toy_2d", flag, "nothing", cwd=tmp_path, data=tmp_path, code=1)
    assert "nothing: expected some of" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"betas": ()}, "--betas has no values, expected at least one"),
        ({"betas": (3.0, 3.0000001)}, "--betas has 3 more than once, expected different values"),
        ({"betas": (float("nan"),)}, "beta=nan, expected in"),
        ({"methods": ()}, "--methods has no values"),
        ({"problems": ("moons", "moons")}, "--problems has moons more than once"),
        ({"workers": 0}, "--workers=0, expected at least 1"),
        ({"n_data": 1}, "--n-data=1, expected at least 2"),
        ({"n_samples": 0}, "--n-samples=0, expected at least 1"),
        ({"solver_steps": 0}, "solver_steps=0, expected positive"),
        ({"seed": -1}, "seed=-1, expected an integer of at least 0"),
    ],
)
def test_the_study_refuses_before_it_trains(changes, message, monkeypatch):
    monkeypatch.setattr(toy_2d, "ProcessPoolExecutor", None)
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        toy_2d.main(toy_2d.Args(**changes))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("loss is nan")])
def test_a_study_that_ends_early_writes_the_problems_that_ended(error, monkeypatch):
    class Pool(contextlib.nullcontext):
        def map(self, *_):
            yield "compared"
            raise error

    written = []
    monkeypatch.setattr(toy_2d, "ProcessPoolExecutor", lambda **_: Pool(Pool()))
    monkeypatch.setattr(toy_2d, "write", lambda args, results, seconds: written.append(results))
    with pytest.raises(SystemExit):
        toy_2d.main(toy_2d.Args(problems=("moons", "rings")))
    assert written == [{"moons": "compared"}]
