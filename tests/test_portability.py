"""The package works where Windows refuses what Linux allows."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from factory import ROOT, subprocess_environment

SUPPORT = ROOT / "tests" / "support"
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=subprocess_environment(PYTHONPATH=path, PYTHONIOENCODING="utf-8"),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=240,
    )


def test_everything_works_as_on_windows(tmp_path):
    """On Linux under an emulation of Windows; elsewhere as it is."""
    flags = ["--as-windows"] if sys.platform == "linux" else []
    life = str(SUPPORT / "portable_life.py")
    done = run("-X", "warn_default_encoding", life, *flags, cwd=tmp_path)
    assert done.stdout.endswith("lived\n"), done.stdout + done.stderr


REFUSED = {
    "import a module of POSIX": ("import fcntl", "ImportError"),
    "open a directory": ("os.open('folder', os.O_RDONLY)", "PermissionError"),
    "rename to a name that exists": ("os.rename('a', 'b')", "FileExistsError"),
    "rename an open file": ("f = open('a'); os.rename('a', 'c')", "PermissionError"),
    "replace an open file": ("f = open('b'); os.replace('a', 'b')", "PermissionError"),
    "replace with Path": ("f = open('b'); Path('a').replace('b')", "PermissionError"),
    "rename with Path": ("f = open('a'); Path('a').rename('c')", "PermissionError"),
    "replace a mapped file": (
        "f = open('b', 'r+b'); m = mmap.mmap(f.fileno(), 0); f.close(); os.replace('a', 'b')",
        "PermissionError",
    ),
    "rename a folder with an open file": (
        "f = open('folder/inside'); os.rename('folder', 'elsewhere')",
        "PermissionError",
    ),
    "delete an open file": ("f = open('a'); Path('a').unlink()", "PermissionError"),
    "delete a folder with an open file": (
        "f = open('folder/inside'); shutil.rmtree('folder')",
        "PermissionError",
    ),
}
ALLOWED = """
os.replace("a", "b")
os.rename("b", "c")
open("c").close()
os.unlink("c")
shutil.rmtree("folder")
tempfile.TemporaryFile().close()
print("allowed")
"""
BEGIN = """
import ast, mmap, os, shutil, sys, tempfile
from pathlib import Path
from windows import behave_as_windows

behave_as_windows()
"""
REFUSAL = """
for what, (code, error) in ast.literal_eval(sys.argv[1]).items():
    try:
        exec(code)
    except Exception as raised:
        assert error in [c.__name__ for c in type(raised).__mro__], (what, raised)
    else:
        raise AssertionError(what)
    f = m = None
print("refused")
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    for name in ("a", "b", "folder/inside"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    return tmp_path


@linux
def test_the_emulation_refuses_what_windows_refuses(files):
    done = run("-c", BEGIN + REFUSAL, repr(REFUSED), cwd=files)
    assert done.stdout == "refused\n", done.stderr


@linux
def test_the_emulation_allows_what_windows_allows(files):
    done = run("-c", BEGIN + ALLOWED, cwd=files)
    assert done.stdout == "allowed\n", done.stderr


def without_encoding(text: str) -> list[int]:
    """Lines that read or write text in the encoding of the system."""
    lines = []
    for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        constants = [value.value for value in call.args if isinstance(value, ast.Constant)]
        modes = [value for value in constants if isinstance(value, str) and "b" in value]
        modes += [keyword for keyword in call.keywords if keyword.arg == "encoding"]
        is_open = name == "open" and isinstance(call.func, ast.Name)
        if (is_open or name in ("read_text", "write_text", "fdopen")) and not modes:
            lines.append(call.lineno)
    return lines


def test_text_is_read_and_written_in_a_stated_encoding():
    """Windows takes another one than UTF-8 where none is stated."""
    rooms = [path.parent for path in ROOT.glob("*/__init__.py")]
    paths = sorted(path for room in rooms for path in room.rglob("*.py"))
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in paths
        for line in without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_a_missing_encoding_is_found():
    text = """
open(path)
open(path, "rb")
open(path, "w", encoding="utf-8")
path.read_text()
path.write_text("b", encoding="utf-8")
archive.open(name)
"""
    assert without_encoding(text) == [2, 5]
