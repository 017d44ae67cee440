"""Exported files act like their agents, say what they are, and are refused where they cannot be."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from agent_tester import noise_of
from factory import (
    AEPO_CONFIGS,
    PAPER_LIKE,
    QIPO_DIFFUSION,
    SIR_CONFIGS,
    STACKED,
    WHITENED,
    make_dataset,
)
from gymnasium import spaces

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from qgpo import AEPO, BC, QGPO, QIPO, SIR, Ensemble
from qgpo.agents.core.acting import GivenNoise
from qgpo.agents.core.export import policy
from qgpo.agents.core.export.policy import ExportError, open_session
from qgpo.agents.core.export.recording import BATCHES
from qgpo.agents.guided.candidates import Candidates
from qgpo.agents.sb3_baselines import OfflineSAC, OfflineTD3, SB3Config

ROWS = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
ANALYTIC = AEPO_CONFIGS["analytic"]


def trained(kind, config, dataset=None):
    agent = kind(config, device="cpu").learn(dataset or make_dataset())
    if kind in (QGPO, AEPO) and config.critic == "stacked":
        agent.critic.stack.weights.copy_(torch.tensor([0.3, 0.7]))
    return agent


def file_of(agent, deterministic=False):
    return open_session(str(agent.export_onnx("policy", deterministic, overwrite=True)))


def difference(agent, session, scale, deterministic=False, rows=ROWS):
    """Of each action, from that of `predict` at the scale."""
    agent.guidance_scale = scale
    agent.seed_predictions(0)
    expected = agent.predict(rows, deterministic=deterministic)[0]
    agent.seed_predictions(0)
    noise = noise_of(agent, rows, deterministic)
    if isinstance(agent, Candidates) and scale == 0.0 and noise:  # the behavior's comes last
        own = GivenNoise(torch.as_tensor(noise["noise"][:, -1:]))
        expected = agent.acting_on(own).act(torch.as_tensor(rows), False).numpy()
    inputs = {"observation": rows, **noise, "guidance_scale": np.array(scale, np.float32)}
    return np.abs(session.run(None, inputs)[0] - expected).max(axis=-1)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (QGPO, replace(WHITENED, guidance="emse", trust_power=2.0, guidance_bound=0.5)),
        (QGPO, replace(WHITENED, guidance="dps", deterministic_action="ode")),
        (QGPO, replace(PAPER_LIKE, guidance="qgf", beta=0.3)),
        (QGPO, replace(PAPER_LIKE, guidance_options={"base": "denoised"})),
        (QGPO, replace(STACKED, guidance="dps")),
        (QGPO, replace(WHITENED, deterministic_action="mode", solver="heun")),
        (AEPO, replace(ANALYTIC, guidance_options={"gradient": "shift"})),
        (AEPO, replace(ANALYTIC, guidance_options={"covariance": "jacobian"}, solver_steps=1)),
        (QIPO, replace(QIPO_DIFFUSION, guidance_bound=0.1)),
        (SIR, SIR_CONFIGS["mean"]),
    ],
    ids=lambda value: getattr(value, "guidance", getattr(value, "name", None)),
)
def test_every_guidance_at_every_scale_and_both_ways_of_acting(kind, config):
    agent = trained(kind, config)
    for deterministic in (True, False):
        session = file_of(agent, deterministic)
        for scale in (0.0, 2.0):
            assert np.mean(difference(agent, session, scale, deterministic) < 1e-5) >= 0.99
        agent.guidance_scale = 1.0


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (QGPO, replace(WHITENED, beta=3.0)),
        (QGPO, replace(WHITENED, guidance="dps", beta=3.0)),
        (AEPO, AEPO_CONFIGS["aepo"]),
    ],
)
def test_guidance_is_in_the_file(kind, config):
    agent = trained(kind, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in (agent.energy, agent.critic.target):
            for parameter in network.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    session = file_of(agent)
    noise = {"observation": ROWS, **noise_of(agent, ROWS, False)}
    at = {
        w: session.run(None, {**noise, "guidance_scale": np.array(w, np.float32)})[0]
        for w in (0.0, 1.0, 2.0)
    }
    assert np.abs(at[2.0] - at[0.0]).max() > 1e-3
    np.testing.assert_array_equal(session.run(None, noise)[0], at[1.0])  # the configured scale
    for scale in (0.0, 2.0):
        assert difference(agent, session, scale).max() < 1e-5


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_weakened_guidance_is_in_the_file(power):
    config = replace(WHITENED, dynamics_steps=1, beta=3.0, trust_power=power)
    agent = trained(QGPO, config)
    agent.rehearsing.caution.factor.fill_(0.25)
    session = file_of(agent)
    for scale in (0.0, 2.0):
        assert difference(agent, session, scale).max() < 1e-5
    agent.rehearsing.caution.factor.fill_(0.0)
    session = file_of(agent, deterministic=True)  # one that imitates has no scale
    found = session.run(None, {"observation": ROWS})[0]
    np.testing.assert_allclose(found, agent.predict(ROWS, deterministic=True)[0], atol=1e-5)


def test_ensembles_are_one_file():
    agents = [trained(QGPO, replace(WHITENED, trust_power=2.0)), trained(QGPO, STACKED)]
    together = Ensemble([*agents, trained(AEPO, AEPO_CONFIGS["aepo"])])
    for deterministic in (True, False):
        session = file_of(together, deterministic)
        assert difference(together, session, 1.0, deterministic).max() < 1e-5
    together.guidance_scale = [0.0, 1.0, 2.0]
    session = file_of(together, True)
    (expected,) = together.predict(ROWS, deterministic=True)[:1]
    np.testing.assert_allclose(session.run(None, {"observation": ROWS})[0], expected, atol=1e-5)
    scales = {"observation": ROWS, "guidance_scale": np.zeros(3, np.float32)}
    together.guidance_scale = 0.0
    expected = together.predict(ROWS, deterministic=True)[0]
    np.testing.assert_allclose(session.run(None, scales)[0], expected, atol=1e-5)


def test_an_ensemble_draws_every_member_alike():
    members = [trained(BC, bc(seed_steps)) for seed_steps in (3, 4)]
    session = file_of(Ensemble(members))
    noise = np.zeros((20_000, 3), np.float32)
    noise[:, -1] = np.random.default_rng(0).normal(size=20_000)
    rows = np.zeros((20_000, 3), np.float32)
    (found,) = session.run(None, {"observation": rows, "noise": noise})
    values, counts = np.unique(found.round(5), return_counts=True)
    assert len(values) == 2
    assert counts.min() > 9_700


def bc(steps):
    return replace(BC.presets["laptop"], steps=steps, hidden=(8,), batch_size=8)


@pytest.mark.parametrize("kind", [OfflineSAC, OfflineTD3])
def test_sb3_s_agents(kind):
    agent = trained(kind, SB3Config(steps=3, hidden=(8,), batch_size=8))
    session = file_of(agent, deterministic=True)
    (found,) = session.run(None, {"observation": ROWS})
    np.testing.assert_allclose(found, agent.predict(ROWS, deterministic=True)[0], atol=1e-6)
    names = {entry.name for entry in file_of(agent).get_inputs()}
    assert names == {"observation", *(["noise"] if kind is OfflineSAC else [])}


@pytest.mark.filterwarnings("ignore:.*times wider than the data")
@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(np.array([-2.0], np.float32), np.array([0.5], np.float32)),
        spaces.Box(-0.1, 3.0, (1,), np.float64),
        spaces.Box(-1.1, 0.3, (1,), np.float16),
        spaces.Box(-1e30, 2e30, (1,), np.float64),
    ],
    ids=str,
)
def test_actions_are_those_of_the_space(space):
    data = make_dataset(action_space=space)
    if space.high.astype(float)[0] > 1e20:  # the unit is then the data's range
        actions = np.linspace(-2.0, 3.0, len(data)).astype(np.float32)[:, None]
        data = replace(data, actions=actions)
    agent = trained(BC, bc(5), data)
    session = file_of(agent, deterministic=True)
    (found,) = session.run(None, {"observation": 5.0 * ROWS})
    expected = agent.predict(5.0 * ROWS, deterministic=True)[0]
    assert found.dtype == expected.dtype == space.dtype
    assert all(space.contains(action) for action in found)
    tolerance = 2e-3 if space.dtype == np.float16 else 1e-5
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=tolerance)


def test_the_file_says_what_it_is():
    agent = trained(QGPO, replace(WHITENED, guidance_scale=2.5))
    session = file_of(agent)
    about = session.get_modelmeta().custom_metadata_map
    assert (about["agent"], about["format"], about["noise"]) == ("QGPO", "1", "1")
    assert json.loads(about["guidance_scale"]) == 2.5
    assert json.loads(about["deterministic"]) is False
    described = json.loads(about["policy"])
    assert described["config"]["beta"] == WHITENED.beta
    assert json.loads(about["action_space"])["high"] == [1.0]
    assert about["dataset"] == "test/made/by-hand-v0"
    assert json.loads(about["versions"])["torch"] == torch.__version__
    assert [entry.shape[1:] for entry in session.get_inputs()] == [[3], [1]]


def test_given_noise_goes_to_the_members_of_the_batch():
    numbers = torch.arange(24.0).reshape(2, 12)
    noise = GivenNoise(numbers)
    first = noise(2, 2 * 2, 2)  # two steps, two candidates
    assert first.shape == (2, 4, 2)
    np.testing.assert_array_equal(first[:, :2].flatten(), numbers[0, :8])
    np.testing.assert_array_equal(first[:, 2:].flatten(), numbers[1, :8])
    np.testing.assert_array_equal(noise(2, 3), numbers[:, 8:11])
    np.testing.assert_array_equal(noise(2), numbers[:, 11])
    with pytest.raises(ValueError, match="noise has 12 numbers for each observation, expected at"):
        noise(2, 1)


# What is refused --------------------------------------------------------------------------


def test_without_the_extra(monkeypatch):
    agent = trained(BC, bc(3))
    real = importlib.import_module

    def without(name, *more):
        if name == "onnxruntime":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *more)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ModuleNotFoundError, match=r"needs onnxruntime, .*'qgpo\[onnx\]'"):
        agent.export_onnx("policy")


def test_paths_and_agents_that_cannot_be(tmp_path):
    agent = trained(BC, bc(3))
    with pytest.raises(TypeError, match="path is a int"):
        agent.export_onnx(3)
    with pytest.raises(ValueError, match="names no file"):
        agent.export_onnx("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        agent.export_onnx(tmp_path / "folder")
    written = agent.export_onnx(tmp_path / "policy")
    assert written.name == "policy.onnx"
    content = written.read_bytes()
    with pytest.raises(ValueError, match=r"policy\.onnx exists: choose another name"):
        agent.export_onnx(tmp_path / "policy.onnx")
    with pytest.raises(OSError, match=r"policy\.onnx"):
        agent.export_onnx(written / "policy.onnx")
    assert agent.export_onnx(written, overwrite=True).read_bytes() == content
    untrained = BC(bc(3), device="cpu")
    with pytest.raises(RuntimeError, match="BC is not trained to the end"):
        untrained.export_onnx("other")
    untrained.learn(make_dataset(), lambda scope, _: False)
    with pytest.raises(RuntimeError, match="BC is not trained to the end"):
        untrained.export_onnx("other")


def test_what_no_file_can_express_is_named():
    options = {"order": 2}
    agent = trained(AEPO, replace(ANALYTIC, guidance_options=options, critic_activation="silu"))
    with pytest.raises(ExportError, match=r"AEPO cannot be exported: operator aten\.linalg"):
        agent.export_onnx("policy")


def test_a_file_that_acts_otherwise_is_not_written(monkeypatch, tmp_path):
    agent = trained(BC, bc(3))
    monkeypatch.setattr(policy, "act_on", acting_otherwise(policy.act_on))
    with pytest.raises(ExportError, match="would not act like this BC"):
        agent.export_onnx(tmp_path / "other")
    assert not (tmp_path / "other.onnx").exists()


def acting_otherwise(act_on):
    """Acts as it should while it is recorded, and else by a thousandth more."""

    def act(agent, given, deterministic):
        recorded = len(given["observation"]) in BATCHES
        return act_on(agent, given, deterministic) + (0.0 if recorded else 1e-3)

    return act
