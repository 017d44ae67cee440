from __future__ import annotations

import ast
import importlib
import io
import re
import sys
import tomllib

import pytest
import tyro
from commands import SCRIPTS
from factory import ROOT

from qgpo import commands
from qgpo.commands import INSTALLED, command
from qgpo.scripts import data, evaluate, train
from qgpo.scripts._terminal import any_terminal, description, refuse_repeated

ROOMS = ("qgpo", "envs", "agents", "experiments", "scripts")


def terminal(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)


@pytest.fixture
def called(monkeypatch):
    """Pretends that a command was called by these words; the last is `sys.argv[0]`."""

    def call(*words: str, module: bool = False) -> None:
        monkeypatch.setattr(sys, "argv", [words[-1]])
        monkeypatch.setattr(sys, "orig_argv", list(words))
        spec = importlib.machinery.ModuleSpec("qgpo.scripts.train", None) if module else None
        monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)

    return call


def test_every_command_of_the_package_can_be_spelled():
    with open(ROOT / "pyproject.toml", "rb") as file:
        entries = tomllib.load(file)["project"]["scripts"]
    places = {name: entry.split(":")[0].split(".")[-1] for name, entry in entries.items()}
    assert places == {name: script for script, name in INSTALLED.items()}
    assert sorted(INSTALLED) == SCRIPTS


def test_a_command_is_spelled_as_the_running_one_was_called(called, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    called("python3", "scripts/collect.py")  # of a clone, wherever the package is imported from
    assert command("train", "--seed", 3) == "python3 scripts/train.py --seed 3"
    assert command("data", "download", "a b") == "python3 scripts/data.py download 'a b'"
    called("python", str(ROOT / "scripts" / "train.py"), module=True)
    assert command("evaluate") == "python -m qgpo.scripts.evaluate"
    monkeypatch.setattr(commands.shutil, "which", lambda name: f"/usr/bin/{name}")
    called("python", "/usr/bin/qgpo-benchmark")
    assert command("report") == "qgpo-report"
    called("python", "other/bin/qgpo-benchmark")
    assert command("toy_2d") == "other/bin/qgpo-toy-2d"
    monkeypatch.setattr(commands.shutil, "which", lambda name: None)
    called("python", "/somewhere/bin/qgpo-train")
    assert command("data") == "/somewhere/bin/qgpo-datasets"


@pytest.mark.parametrize("program", ["", "-c", "my/scripts/train.py", "pytest", "train.py"])
def test_programs_of_others_name_the_installed_command(program, called, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    called("python", program)
    assert command("data", "list") == "qgpo-datasets list"


def test_programs_in_the_clone_name_its_scripts_as_the_pages_do(called, monkeypatch):
    monkeypatch.chdir(ROOT)
    called("python", "my_program.py")
    assert command("data", "list") == "python scripts/data.py list"


def test_flags_that_say_no_have_no_second_no(capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("qgpo.scripts.data").main(["import", "--help"])
    shown = capsys.readouterr().out
    assert "--no-reward" in shown
    assert "--no-no-reward" not in shown


def test_examples_keep_their_lines(called):
    called("python", "/no/where/qgpo-train")
    text = (
        "A title.\n\npython scripts/train.py --seed 1 \\\n    --x\npython scripts/data.py  list\n\n"
    )
    text = text.replace("\\\n", "")
    shown = description(f"{text}What scripts/benchmark.py measured; my/train.py stays.")
    assert shown.splitlines() == [
        "A title.",
        "  /no/where/qgpo-train --seed 1 --x",
        "  /no/where/qgpo-datasets list",
        "",
        "What /no/where/qgpo-benchmark measured; my/train.py stays.",
    ]


def messages(tree: ast.Module) -> list[str]:
    """Every string of a module that is no expression of its own, as docstrings are."""
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [n.value for n in constants if isinstance(n.value, str) and id(n) not in alone]


def test_no_message_spells_a_command_itself():
    names = [re.escape(name) for name in (*INSTALLED.values(), *(f"{name}.py" for name in SCRIPTS))]
    spelled = re.compile(rf"({'|'.join(names)})\b")
    for path in (p for room in ROOMS for p in (ROOT / room).rglob("*.py")):
        if path.name != "commands.py":
            for text in messages(ast.parse(path.read_text(encoding="utf-8"))):
                assert not spelled.search(text), (path, text)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_shown_on_every_terminal(name, encoding, monkeypatch):
    shown = terminal(encoding)
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "argv", [f"qgpo-{name}", "--help"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"qgpo.scripts.{name}").cli()
    assert end.value.code in (0, None)
    assert f"usage: {INSTALLED[name]} " in written(shown)
    examples = [line for line in written(shown).splitlines() if line.startswith("  qgpo-")]
    assert all(line.count(f"{INSTALLED[name]} ") == 1 for line in examples)
    assert examples


@pytest.mark.parametrize(
    ("encoding", "text", "expected"),
    [
        ("ascii", "120 ± 20 … │─╮ \u22121", "120 +- 20 ... |-+ -1"),
        ("ascii", "runs/Zoë/β-数", "runs/Zoe/?-?"),
        ("latin-1", "Zoë ± … β", "Zoë ± ... ?"),
        ("cp1252", "Zoë … ╭", "Zoë … +"),
        ("utf-8", "β 数 \udcff", "β 数 ?"),  # the last is a byte of a file's name
    ],
)
def test_what_a_terminal_lacks_is_printed_as_something_else(encoding, text, expected, monkeypatch):
    out, errors = terminal(encoding), terminal(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", errors)
    with any_terminal():
        print(text)
        print(text, file=sys.stderr)
    assert written(out) == written(errors) == f"{expected}\n"


def test_a_reader_that_has_ended_is_no_traceback(monkeypatch, tmp_path):
    with open(tmp_path / "out", "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with pytest.raises(SystemExit) as end, any_terminal():
            raise BrokenPipeError
    assert end.value.code == 1


@pytest.mark.parametrize("again", [["--run", "b"], ["--run=b"]])
def test_a_flag_of_several_values_is_given_once(again):
    with pytest.raises(SystemExit, match="--run is given twice"):
        refuse_repeated(evaluate.Args, ["--run", "a", *again])
    refuse_repeated(evaluate.Args, ["--run", "a", "b", "--seed", "1", "--seed", "2"])


@pytest.mark.parametrize("flag", ["--observations", "--low", "--skip-episodes"])
def test_so_is_one_of_a_subcommand(flag):
    with pytest.raises(SystemExit, match=f"{flag} is given twice"):
        data.main(["import", "a.csv", flag, "1", flag, "2"])


@pytest.mark.parametrize("flag", ["--guidance-scale", "--guidance-scales"])
def test_the_scales_of_guidance_have_one_name_or_the_other(flag):
    assert train.parse([flag, "0", "1"]).guidance_scales == (0.0, 1.0)
    assert tyro.cli(evaluate.Args, args=["--run", "a", flag, "2"]).guidance_scale == (2.0,)
    for kind in (evaluate.Args, train.Args):
        with pytest.raises(SystemExit, match="is given twice"):
            refuse_repeated(kind, ["--guidance-scales", "1", flag, "0"])
