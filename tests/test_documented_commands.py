"""The commands that documents show are accepted, and name run folders that commands make."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex

import pytest
import tyro
from factory import ROOT

from qgpo.commands import INSTALLED
from qgpo.scripts import images, train

COMMAND = re.compile(rf"python scripts/({'|'.join(INSTALLED)})\.py([^\n`&;|]*)")
FOLDER = re.compile(r"runs/[\w{},.*-]+")
PLANS = {f"runs/{path.stem}" for path in (ROOT / "benchmarks").glob("*.toml")}
"""folders that benchmark.py makes"""
MADE = {"runs/demo", "runs/toy_2d", "runs/images", "runs/classes", "runs/hues", *PLANS}
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks/README.md"])


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Every command with arguments that a text shows: the script and its words."""
    found = COMMAND.findall(text.replace("\\\n", " "))
    words = [
        (script, shlex.split(rest.replace("$s", "0"), comments=True)) for script, rest in found
    ]
    return [(script, rest) for script, rest in words if rest and "NAME" not in rest]


def braces(text: str) -> list[str]:
    """What a shell makes of a{b,c}."""
    parts = [part.split(",") for part in re.split(r"[{}]", text)]
    return ["".join(choice) for choice in itertools.product(*parts)]


def accept(script: str, words: list[str]) -> None:
    """Parse them as the command does. Raises SystemExit for what it would refuse."""
    module = importlib.import_module(f"qgpo.scripts.{script}")
    if script in ("data", "share"):
        assert words[0] in module.COMMANDS
    elif script == "images":
        images.parse(words)
    elif "\u2026" not in " ".join(words):
        tyro.cli(module.Args, args=words)


def problems(text: str) -> list[str]:
    """What is wrong with the commands and folders of a document."""
    wrong, made = [], {}
    for script, words in commands(text):
        try:
            if script != "train":
                accept(script, words)
            elif "--resume" not in words:
                folder = train.parse(words).folder.path.as_posix()
                if folder in made:
                    wrong.append(f"{words} is refused: {folder} is the run of {made[folder]}")
                made[folder] = words
        except SystemExit as refusal:
            wrong.append(f"{script} {words} is refused: {refusal}")
    seedless = {re.sub(r"-s\d+$", "", folder) for folder in made}
    named = {folder for shown in FOLDER.findall(text) for folder in braces(shown.rstrip(".,"))}
    lost = {f for f in named if f not in MADE and re.sub(r"-s\d+$", "", f) not in seedless}
    return wrong + [f"no command makes {folder}" for folder in sorted(lost)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_show_commands_that_work_and_folders_that_exist(document):
    assert problems(document.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("script", INSTALLED)
def test_examples_of_a_script_work(script):
    text = importlib.import_module(f"qgpo.scripts.{script}").__doc__
    shown = commands(text)
    assert shown
    for words in shown:
        accept(*words) if words[0] != "train" else train.parse(words[1])


def test_what_is_wrong_is_found():
    text = "python scripts/train.py --seed 1\npython scripts/evaluate.py --run runs/seed{0,1}\n"
    assert problems(text) == ["no command makes runs/seed0", "no command makes runs/seed1"]
    text = "python scripts/train.py --seed 1\npython scripts/train.py --seed 1 --config.beta 2\n"
    [found] = problems(text)
    assert "runs/qgpo-halfcheetah-mixed-v0-QGPO-laptop-s1 is the run of" in found
    [found] = problems("python scripts/collect.py --env-id Hopper-v5 \\\n    --no-such-flag 1\n")
    assert "is refused" in found
    text = "python scripts/train.py --seed 1\nruns/qgpo-halfcheetah-mixed-v0-QGPO-laptop-s2"
    assert problems(text) == []
