"""Files that earlier versions wrote; every later one reads them. Made by `make_golden`, once."""

from __future__ import annotations

import ast
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from factory import ROOT, WHITENED, make_dataset, same_parameters

from qgpo import QGPO, EnergyGuidedDiffusion, load_agent
from qgpo.agents.core.checkpoint import read_header

GOLDEN = ROOT / "tests" / "golden"
OBSERVATIONS = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)
CONFIG = replace(
    WHITENED,
    whitening_steps=0,
    sparsity_power=0.0,
    behavior_hidden=(4,),
    critic_hidden=(4,),
    energy_hidden=(4,),
    critic_baseline=False,
    critic_learning_rate=1e-3,
    tilt_limit=None,
    trust_power=0.0,
    deterministic_action="ode",
)


FORMER_STACKED = replace(CONFIG, critic="stacked", q_unit="spread", beta=1.0)
FORMER = {"version1": CONFIG, "version4-stacked": FORMER_STACKED}
"""configurations of the golden files, by name"""


def make_golden(folder: Path, name: str = "version1") -> None:
    """In the middle of the critic's stage, so that support and optimizer states are there."""
    agent = QGPO(FORMER[name], seed=3, device="cpu")
    agent.learn(make_dataset(), lambda scope, _: scope["self"].progress["critic"] < 2)
    agent.save(folder / name)
    actions = agent.predict(OBSERVATIONS, deterministic=True)[0]
    agent.learn(make_dataset(), reset_num_timesteps=False)
    after = agent.predict(OBSERVATIONS, deterministic=True)[0]
    expected = {"actions": actions.tolist(), "actions_after_training": after.tolist()}
    (folder / f"{name}.json").write_text(json.dumps(expected, indent=1) + "\n")


def written_version(path: Path) -> int:
    """The version that the file says, before it is upgraded."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("checkpoint.json"))["format_version"]


@pytest.mark.parametrize("name", FORMER)
def test_former_versions_are_still_read_and_go_on(name):
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    assert f"version{written_version(GOLDEN / f'{name}.zip')}" == name.split("-")[0]
    agent = QGPO.load(GOLDEN / f"{name}.zip", device="cpu")
    assert agent.config == FORMER[name]
    assert (agent.stage, agent.progress["critic"]) == ("critic", 2)
    found = agent.predict(OBSERVATIONS, deterministic=True)[0]
    np.testing.assert_allclose(found, expected["actions"], atol=1e-4)
    agent.learn(make_dataset(), reset_num_timesteps=False)
    found = agent.predict(OBSERVATIONS, deterministic=True)[0]
    np.testing.assert_allclose(found, expected["actions_after_training"], atol=1e-3)


@pytest.mark.parametrize("name", FORMER)
def test_golden_files_are_small(name):
    assert (GOLDEN / f"{name}.zip").stat().st_size < 60_000


def test_today_s_files_have_the_golden_layout(tmp_path):
    make_golden(tmp_path)
    today, golden = (read_header(f / "version1.zip") for f in (tmp_path, GOLDEN))
    assert set(today) == set(golden)
    first, second = (QGPO.load(f / "version1.zip", device="cpu") for f in (tmp_path, GOLDEN))
    assert set(first.tables) == set(second.tables)
    assert first.get_parameters().keys() == second.get_parameters().keys()
    assert same_parameters(first.optimizers.keys(), second.optimizers.keys())


MODULES = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
SOURCES = [
    p
    for room in ("qgpo", "agents", "envs", "experiments", "scripts")
    for p in (ROOT / room).rglob("*.py")
]


INERT_READER = '''\
class _Reader(pickle._Unpickler):
    """The unpickler in Python, whose instructions can be changed.

    Only texts and integers become keys and members of sets. What is nested would be hashed, which
    takes 2^n steps for n pairs of which each holds the one before twice.
    """
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        whole = f'{module[:LONGEST_NAME]}.{name[:LONGEST_NAME]}'
        return type('Inert', (Inert,), {'name': whole})

    def persistent_load(self, pid: Any) -> Any:
        made = Inert(pid)
        made.name = 'persistent'
        return made

def _checked(opcode: bytes, keys: slice) -> None:
    """Let an instruction first look at the keys that it takes from the stack."""
    instruction = pickle._Unpickler.dispatch[opcode[0]]

    def load(reader: Any) -> None:
        for key in reader.stack[keys]:
            is_small = type(key) is int and abs(key) < 2 ** 60
            if not is_small and type(key) not in (str, bool, type(None)):
                raise ValueError('a pickle with a key that is no text')
        instruction(reader)
    _Reader.dispatch[opcode[0]] = load'''
OPCODES = {"SETITEM", "SETITEMS", "DICT", "ADDITEMS", "FROZENSET"}


def is_constant(node: ast.AST, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_in_the_package_unpickles_or_evaluates(path):
    """The exception's name may be used, and torch.load nowhere.

    Pickles are read by an Unpickler whose `find_class` gives inert classes alone.
    """
    tree = ast.parse(path.read_text())
    inert = []
    if path.parts[-2:] == ("rollouts", "inert.py"):
        named = {"_Reader", "_checked"}
        parts = [n for n in tree.body if getattr(n, "name", "") in named]
        inert = [node for part in parts for node in ast.walk(part)]
        assert "\n\n".join(map(ast.unparse, parts)) == INERT_READER
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not {a.name.split(".")[0] for a in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in MODULES | {"pickle"}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            allowed = {"UnpicklingError"} | (OPCODES if inert else set())
            assert node.value.id != "pickle" or node.attr in allowed or node in inert
            assert (node.value.id, node.attr) != ("torch", "load")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec", "__import__"}, f"line {node.lineno}"
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert is_constant(node.value, False)


@pytest.mark.parametrize("name", ["aepo", "qipo", "iql"])
def test_agents_of_the_first_version_are_still_read(name):
    expected = json.loads((GOLDEN / "version1-agents.json").read_text())[name]
    agent = load_agent(GOLDEN / f"version1-{name}.zip", device="cpu")
    assert agent.is_trained
    found = agent.predict(OBSERVATIONS, deterministic=True)[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_options_of_the_first_version_are_options_of_the_guidance_now():
    agent = load_agent(GOLDEN / "version1-aepo.zip", device="cpu")
    assert agent.config.guidance_options == {"covariance": "moment", "damped": False}


def test_general_models_of_the_first_version_are_still_read_and_go_on():
    expected = json.loads((GOLDEN / "version1-agents.json").read_text())["general"]
    model = EnergyGuidedDiffusion.load(GOLDEN / "version1-general.zip", device="cpu")
    assert model.config.guidance_options == {"labels": "exponential"}
    assert model.progress["guidance"] == 2
    x = torch.linspace(-1, 1, 40).reshape(20, 2)
    model.fit(x, lambda v: (v**2).sum(-1), resume=True)
    np.testing.assert_allclose(model.sample(4), expected, atol=1e-3)
