"""The worked examples of CONTRIBUTING.md, each in a copy of the package of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from commands import run_in_a_copy
from factory import ROOT, subprocess_environment

GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
AGENT, GUIDANCE, FAMILY = (
    "A new agent of one stage",
    "A new guidance with an option",
    "A new dataset family",
)
BATTERY = """
from agent_tester import CHECKS, Subject
from qgpo.agents import AGENTS

agent = AGENTS["HuberBC"]
config = agent.config_class(steps=11, batch_size=8, hidden=(8, 8))
for check in CHECKS.values():
    check(Subject(agent, config))
"""
FORGET = f"""
import pathlib, sys, typing

TESTS = pathlib.Path({str(ROOT / "tests")!r})
for name, module in [*sys.modules.items()]:
    file = pathlib.Path(getattr(module, "__file__", None) or "nowhere")
    if name.split(".")[0] == "qgpo" or (name != "__main__" and file.is_relative_to(TESTS)):
        del sys.modules[name]
sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("qgpo.")]
for clear in typing._cleanups:  # Annotated[float, Range(0, 1)] would have the Range of before
    clear()
"""
"""the package and the tests' support are imported anew, from the path"""


class Block(NamedTuple):
    language: str
    path: str
    text: str


def blocks(section: str) -> list[Block]:
    """The fenced blocks of a section; one with a path is a file, or what is changed in it."""
    text = re.split(rf"^## {re.escape(section)}\n", GUIDE, flags=re.MULTILINE)[1]
    text = re.split(r"^## ", text, flags=re.MULTILINE)[0]
    fence = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [Block(*match) for match in fence.findall(text)]


def changed(text: str, diff: str, path: str) -> str:
    """The text with every hunk of a diff applied; hunks are set apart by a line of dots."""
    for hunk in re.split(r"^\.\.\.\n", diff, flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        after = "".join(line[1:] for line in lines if line[0] != "-")
        assert text.count(before) == 1, f"CONTRIBUTING.md: {path} has not once:\n{before}"
        text = text.replace(before, after)
    return text


class House(NamedTuple):
    site: Path
    """a folder with the package"""

    def file(self, path: str) -> Path:
        room = path.split("/")[0]
        return self.site / path if room == "qgpo" else self.site / "qgpo" / path

    def run(self, code: str) -> None:
        """In a process that has imported what the package needs, and nothing of this checkout."""
        support = ROOT / "tests" / "support"
        path = {"PYTHONPATH": os.pathsep.join([str(self.site), str(support)])}
        environment = subprocess_environment(PYTHONSAFEPATH="1", **path)
        script = self.site.parent / "usage.py"
        script.write_text(FORGET + code, encoding="utf-8")
        done = run_in_a_copy([str(script)], self.site.parent, environment)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def house(tmp_path: Path) -> House:
    for room in sorted(path.parent for path in ROOT.glob("*/__init__.py")):
        target = House(tmp_path / "site").file(room.name)
        shutil.copytree(room, target, dirs_exist_ok=True)
    return House(tmp_path / "site")


def follow(section: str, house: House) -> tuple[list[str], list[str]]:
    """Do what a section says; the files that are new, and those that are changed."""
    new, old = [], []
    for language, path, text in blocks(section):
        if path and language == "python":
            assert not house.file(path).exists(), path
            house.file(path).write_text(text, encoding="utf-8")
            new.append(path)
        elif path:
            before = house.file(path).read_text(encoding="utf-8")
            house.file(path).write_text(changed(before, text, path), encoding="utf-8")
            old.append(path)
    for language, path, text in blocks(section):
        if language == "python" and not path:
            house.run(f"import qgpo; assert qgpo.__file__.startswith({str(house.site)!r})\n{text}")
    return new, old


def test_an_agent_is_one_file_and_its_place_in_the_registry(house):
    assert follow(AGENT, house) == (["agents/huber_bc.py"], ["agents/registry.py"])
    house.run(BATTERY)


def test_a_guidance_is_one_file_and_its_place_in_the_registry(house):
    followed = follow(GUIDANCE, house)
    assert followed == (["qgpo/guidance/expectile.py"], ["qgpo/guidance/__init__.py"])


def test_a_family_is_a_row(house):
    assert follow(FAMILY, house) == ([], ["envs/tasks/families.py"])


@pytest.mark.parametrize("section", [AGENT, GUIDANCE, FAMILY])
def test_the_examples_are_formatted_and_pass_lint(section, tmp_path):
    for number, (language, path, text) in enumerate(blocks(section)):
        if language == "python":
            name = Path(path).name or f"usage_{number}.py"
            (tmp_path / name).write_text(text, encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--no-cache", "--config", str(ROOT / "pyproject.toml")]
    for command in (["format", "--check"], ["check", "--ignore", "D100"]):
        done = subprocess.run(
            [*ruff, *command, *options, str(tmp_path)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_change_that_does_not_fit_is_refused():
    with pytest.raises(AssertionError, match="has not once"):
        changed("a\nb\n", " c\n+d\n", "file.py")
    assert changed("a\nb\nc\n", " a\n+x\n...\n-c\n+d\n", "file.py") == "a\nx\nb\nd\n"
