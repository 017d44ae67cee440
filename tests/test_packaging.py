"""The sdist, the wheel that is built from it, and what somebody has who installs that wheel."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from factory import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qgpo import __version__

DATA_FILES = ("py.typed", "*.safetensors", "*_template.*")
"""what a package holds besides modules"""
BUILD_FILES = (
    *("setup.py", "pyproject.toml", "MANIFEST.in"),
    *("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"),
)
EXTRAS_FOR = {
    "mujoco": "gymnasium[mujoco]",
    "huggingface-hub": "minari[hf]",
    "h5py": "minari[hdf5]",
    "pyarrow": "minari[arrow]",
}
"""distributions that the library imports and that an extra of a dependency brings"""

TRAINING = """
import numpy as np
import qgpo
from qgpo import BC, BCConfig, OfflineDataset

rng = np.random.default_rng(0)
data = OfflineDataset.from_arrays(
    rng.normal(size=(64, 3)).astype(np.float32),
    rng.uniform(-1, 1, size=(64, 2)).astype(np.float32),
    rng.normal(size=64).astype(np.float32),
    np.zeros(64, bool),
    next_observations=rng.normal(size=(64, 3)).astype(np.float32),
)
agent = BC(BCConfig(steps=3, batch_size=8, hidden=(8,)), seed=0, device="cpu").learn(data)
agent.save("agent.zip")
action, _ = BC.load("agent.zip", device="cpu").predict(np.zeros(3, np.float32), deterministic=True)
assert action.shape == (2,)
print(qgpo.__file__)
"""
COMMANDS = """
import importlib.metadata, runpy, sys

def asked(run, name):
    sys.argv = [name, "--help"]
    try:
        run()
    except SystemExit as end:
        assert not end.code, (name, end.code)
    else:
        raise AssertionError(f"{name} --help did not end")

for module in sys.argv[1:]:
    asked(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True), module)
commands = importlib.metadata.distribution("qgpo").entry_points.select(group="console_scripts")
for command in commands:
    asked(command.load(), command.name)
print("commands:", *sorted(command.name for command in commands))
"""
SNIPPET = """
from typing import reveal_type

from qgpo import QGPO
from qgpo.agents import IQLConfig

reveal_type(QGPO("laptop"))
reveal_type(IQLConfig().steps)
"""
# Only this package's types are asked for: to read torch's takes half a minute.
MYPY_CONFIG = """
[mypy]
follow_imports = skip
[mypy-qgpo.*]
follow_imports = normal
"""


def rooms(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("*/__init__.py"))


def package_files(root: Path) -> set[str]:
    """Names in a wheel of every module and data file in the rooms below `root`."""
    return {
        (path if room == "qgpo" else "qgpo" / path).as_posix()
        for room in rooms(root)
        for pattern in ("*.py", *DATA_FILES)
        for path in (found.relative_to(root) for found in (root / room).rglob(pattern))
    }


def wheel_files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    """Run a program that knows nothing of this checkout."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MYPY"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def copy_of_the_tree(target: Path) -> Path:
    target.mkdir()
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, target)
    for room in rooms(ROOT):
        shutil.copytree(ROOT / room, target / room, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def build(kind: str, source: Path, target: Path) -> Path:
    """Build `sdist` or `wheel` of the tree at `source` with this environment's setuptools."""
    call = f"from setuptools import build_meta as b; b.build_{kind}({str(target)!r})"
    run(sys.executable, "-c", call, cwd=source)
    return next(target.iterdir())


class Installed(NamedTuple):
    sdist: Path
    wheel: Path
    python: Path
    """of a virtual environment that holds the wheel and sees this environment's libraries"""

    def script(self, name: str) -> Path:
        return self.python.with_name(name + self.python.suffix)


def install(folder: Path) -> Installed:
    """Make the sdist, a wheel from the sdist alone, and an environment with that wheel."""
    sdist = build("sdist", copy_of_the_tree(folder / "tree"), folder / "sdist")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, "wheel", *options, "--wheel-dir", folder / "wheel", sdist, cwd=folder)
    wheel = next((folder / "wheel").iterdir())
    venv.create(folder / "venv", symlinks=os.name != "nt")
    windows = os.name == "nt"
    python = folder / "venv" / ("Scripts/python.exe" if windows else "bin/python")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    # A line of a .pth file becomes a part of the path, whose own .pth files are not read: the
    # editable installation there stays without effect.
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(site.strip(), "libraries.pth").write_text("\n".join(sorted(here)), encoding="utf-8")
    return Installed(sdist, wheel, python)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """An empty folder."""
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


def test_the_wheel_of_the_sdist_holds_every_module_and_nothing_else(installed):
    assert wheel_files(installed.wheel) == package_files(ROOT)
    assert installed.wheel.name.startswith(f"qgpo-{__version__}-")


def test_new_folders_are_found(tmp_path):
    tree = copy_of_the_tree(tmp_path / "tree")
    for new in ("agents/novel/deeper", "agents/novel", "laboratory"):
        (tree / new).mkdir(parents=True, exist_ok=True)
        (tree / new / "__init__.py").write_text('"""New."""\n', encoding="utf-8")
        (tree / new / "module.py").write_text("ONE = 1\n", encoding="utf-8")
    files = wheel_files(build("wheel", tree, tmp_path / "wheel"))
    assert files == package_files(tree)
    assert {"qgpo/agents/novel/deeper/module.py", "qgpo/laboratory/module.py"} <= files


@pytest.fixture(scope="module")
def used(installed, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What is printed by a process that trains with the wheel and asks every command for help."""
    code, folder = TRAINING + COMMANDS, tmp_path_factory.mktemp("outside")
    return run(installed.python, "-c", code, *scripts(), cwd=folder).splitlines()


def scripts() -> list[str]:
    return [f"qgpo.scripts.{p.stem}" for p in sorted((ROOT / "scripts").glob("[!_]*.py"))]


def test_an_installed_wheel_trains(installed, used):
    place = used[0]
    assert Path(place).is_relative_to(installed.python.parents[1].resolve())


def test_every_command_of_an_installed_wheel_runs(installed, used, outside):
    names = used[-1].removeprefix("commands: ").split()
    assert len(names) == len(scripts())
    assert all(installed.script(name).is_file() for name in names)
    assert "--dataset-id" in run(installed.script("qgpo-train"), "--help", cwd=outside)


def test_type_checkers_see_the_types_of_an_installed_wheel(installed, outside):
    (outside / "snippet.py").write_text(SNIPPET, encoding="utf-8")
    (outside / "mypy.ini").write_text(MYPY_CONFIG, encoding="utf-8")
    mypy = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", os.devnull]
    said = run(*mypy, "--python-executable", installed.python, "snippet.py", cwd=outside)
    assert re.findall(r'Revealed type is "(.*)"', said) == ["qgpo.agents.qgpo.QGPO", "int"]


# What is written by hand in pyproject.toml ------------------------------------------------


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def imported() -> Iterator[tuple[str, Path]]:
    """Top-level names that the library imports, at any level of its modules."""
    for room in rooms(ROOT):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    yield from ((alias.name.split(".")[0], path) for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    yield node.module.split(".")[0], path


def test_what_the_library_imports_is_declared():
    declared = project()["project"]
    lines = [*declared["dependencies"], *EXTRAS_FOR]
    for extra, more in declared["optional-dependencies"].items():
        lines += [] if extra == "dev" else more
    known = {canonicalize_name(Requirement(line).name) for line in lines}
    of = metadata.packages_distributions()
    undeclared = {
        (name, str(path.relative_to(ROOT)))
        for name, path in imported()
        if name not in sys.stdlib_module_names
        and name != "qgpo"
        and not known & {canonicalize_name(dist) for dist in of.get(name, [name])}
    }
    assert undeclared == set()


def test_lint_and_types_cover_every_room():
    tools = project()["tool"]
    others = [room for room in rooms(ROOT) if room != "qgpo"]
    assert tools["mypy"]["packages"] == ["qgpo", *(f"qgpo.{room}" for room in others)]
    banned = tools["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert sorted(banned) == others


def test_every_script_is_a_command():
    commands = project()["project"]["scripts"].values()
    scripts = [p.stem for p in (ROOT / "scripts").glob("[!_]*.py")]
    assert sorted(commands) == sorted(f"qgpo.scripts.{name}:cli" for name in scripts)
