"""scripts/export.py, and the consumer that the tutorial shows."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factory import ONE_STEP, ROOT, STACKED, WHITENED, make_dataset, subprocess_environment

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from qgpo import BC, QGPO, Ensemble, OneStepPolicy, load_agent
from qgpo.agents.core.export.policy import open_session
from qgpo.envs.data.windows import windowed
from qgpo.scripts import evaluate, export

ROWS = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
CONSUMER = """
import sys

for name in ("torch", "qgpo", "onnx", "gymnasium"):
    sys.modules[name] = None
{code}
observation = np.array({observation}, np.float32)
print([float(x) for x in act(observation)])
"""


def run_of(kind, config, folder):
    agent = kind(config, device="cpu").learn(make_dataset())
    agent.save(Path(folder) / "checkpoint")
    return agent


def call(*words):
    export.main(export.tyro.cli(export.Args, args=[*words]))


def test_a_run_and_several_together(capsys):
    agent = run_of(QGPO, replace(WHITENED, guidance="mse"), "one")
    other = run_of(QGPO, STACKED, "two")
    call("--run", "one", "--guidance-scale", "2")
    said = capsys.readouterr().out
    assert "QGPO exported to one/policy.onnx" in said
    assert "input observation: tensor(float) of shape ['batch', 3]" in said
    assert "input guidance_scale: tensor(float) of shape [], may be left away" in said
    assert "output action: tensor(float) of shape ['batch', 1]" in said
    agent.guidance_scale = 2.0
    (found,) = open_session("one/policy.onnx").run(None, {"observation": ROWS})
    np.testing.assert_allclose(found, agent.predict(ROWS, deterministic=True)[0], atol=1e-6)
    call("--run", "one", "two/checkpoint.zip")
    (found,) = open_session("one/policy-together.onnx").run(None, {"observation": ROWS})
    agent.guidance_scale = 1.0
    together = Ensemble([agent, other])
    np.testing.assert_allclose(found, together.predict(ROWS, deterministic=True)[0], atol=1e-6)
    with pytest.raises(SystemExit, match=r"error: one/policy\.onnx exists: choose another name"):
        call("--run", "one")
    call("--run", "one", "--overwrite", "--no-deterministic")
    assert "noise" in [x.name for x in open_session("one/policy.onnx").get_inputs()]


def test_scales_are_for_guided_agents():
    config = replace(BC.presets["laptop"], steps=3, hidden=(8,), batch_size=8)
    run_of(BC, config, "bc")
    with pytest.raises(SystemExit, match="this BC has no guidance_scale"):
        call("--run", "bc", "--guidance-scale", "2")


def test_one_step_on_the_command_line():
    student = run_of(OneStepPolicy, ONE_STEP, "fast")
    call("--run", "fast")
    session = open_session("fast/policy.onnx")
    assert [x.name for x in session.get_overridable_initializers()] == []
    (found,) = session.run(None, {"observation": ROWS})
    np.testing.assert_allclose(found, student.predict(ROWS, deterministic=True)[0], atol=1e-6)
    with pytest.raises(SystemExit, match="this OneStepPolicy has no guidance_scale"):
        call("--run", "fast", "--guidance-scale", "0", "--overwrite")
    words = ["--run", "fast", "--env-id", "Pendulum-v1", "--solver-steps", "3"]
    member = load_agent("fast/checkpoint.zip", device="cpu")
    args = evaluate.tyro.cli(evaluate.Args, args=words)
    with pytest.raises(ValueError, match="a OneStepPolicy agent has no solver_steps"):
        evaluate.configure(args, member, [member])


def tutorial(what: str = "def act") -> str:
    text = (ROOT / "docs" / "tutorials" / "robot.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.S) if what in block)
    return code


def test_the_consumer_of_a_windowed_policy_acts_as_predict_does():
    data = windowed(make_dataset((12, 9, 12)), history=3, chunk=2)
    agent = QGPO(WHITENED, device="cpu").learn(data)
    agent.export_onnx("policy")
    names: dict = {}
    exec(tutorial() + tutorial("def next_action"), names)
    assert names["window"] == {"history": 3, "chunk": 2}
    for _ in range(2):
        state = None
        names["history"].clear(), names["chunk"].clear()
        for observation in ROWS:
            expected, state = agent.predict(observation, state, deterministic=True)
            np.testing.assert_allclose(names["next_action"](observation), expected, atol=1e-5)


def test_a_policy_without_a_window_says_so():
    agent = QGPO(WHITENED, device="cpu").learn(make_dataset())
    session = open_session(str(agent.export_onnx("policy")))
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["window"]) == {"history": 1, "chunk": 1}


def test_the_consumer_needs_onnxruntime_and_numpy_only():
    code = tutorial()
    tree = ast.parse(code)
    names = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    assert names == ["numpy", "onnxruntime"]
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_consumer_acts(deterministic):
    agent = QGPO(WHITENED, device="cpu").learn(make_dataset())
    agent.export_onnx("policy", deterministic)
    code = CONSUMER.format(code=tutorial(), observation=ROWS[0].tolist())
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=subprocess_environment(),
    )
    assert done.returncode == 0, done.stderr
    action = np.array(json.loads(done.stdout), np.float32)
    assert action.shape == (1,)
    if deterministic:
        expected = agent.predict(ROWS[0], deterministic=True)[0]
        np.testing.assert_allclose(action, expected, atol=1e-6)
