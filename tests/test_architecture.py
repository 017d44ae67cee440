"""Who may import whom: `scripts → experiments → agents → envs → qgpo`, and no circle anywhere.

Every import counts: inside functions and under TYPE_CHECKING too.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from factory import ROOT

ROOMS = ("qgpo", "envs", "agents", "experiments", "scripts")
"""from the ground up: each may import those before it"""
FLOORS_OF_AGENTS = ("core", "general", "guided", "")
"""of `agents/`, from the ground up; its own files are on top"""
POSIX_ONLY = {
    "crypt", "curses", "fcntl", "grp", "nis", "ossaudiodev", "posix", "pty", "pwd", "readline",
    "resource", "spwd", "syslog", "termios", "tty",
}  # fmt: skip


class Module(NamedTuple):
    name: str
    """as it is imported"""
    path: Path
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


Imports = dict[str, dict[str, int]]
"""module: what it imports, and in which line"""
Rule = Callable[[dict[str, Module], Imports], Iterator[str]]


def read_modules(root: Path) -> dict[str, Module]:
    """Every module of the rooms below `root` by its name."""
    modules = {}
    for init in root.glob("*/__init__.py"):
        for path in init.parent.rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            name = ".".join(parts if parts[0] == "qgpo" else ("qgpo", *parts))
            modules[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return modules


def read_imports(modules: dict[str, Module]) -> Imports:
    """What every module imports: modules of `modules` by their name, others as they are written.

    `from package import module` is an import of the module, not of the package.
    """
    imports: Imports = {}
    for module in modules.values():
        found = imports.setdefault(module.name, {})
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    found.setdefault(alias.name, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                base = absolute(module, node)
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    found.setdefault(inner if inner in modules else base, node.lineno)
    return imports


def absolute(module: Module, node: ast.ImportFrom) -> str:
    """The module that `from … import` names."""
    if node.level == 0:
        return node.module or ""
    parts = module.name.split(".")
    kept = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def room_of(name: str) -> str:
    """The top-level folder of a module."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "qgpo"


def folder_in(room: str, name: str, modules: dict[str, Module]) -> str:
    """The sub-folder of a room in which a module is; "" for files of the room itself."""
    first = name.removeprefix(f"qgpo.{room}").lstrip(".").split(".")[0]
    package = modules.get(f"qgpo.{room}.{first}")
    return first if package is not None and package.is_package else ""


def own(imports: Imports) -> Iterator[tuple[str, str, int]]:
    """Every import of a module of ours by another one; the facade `qgpo` may import anything."""
    for importer, imported in imports.items():
        for name, line in imported.items():
            if name in imports and importer != "qgpo":
                yield importer, name, line


def find_circles(edges: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Groups of nodes that reach one another, and nodes that reach themselves."""
    following: dict[str, set[str]] = {}
    for source, target in edges:
        following.setdefault(source, set()).add(target)
    reached = {node: reachable(node, following) for node in following}
    circles = {
        tuple(sorted(other for other in reached[node] if node in reached.get(other, ())))
        for node in reached
        if node in reached[node]
    }
    return sorted(circles)


def reachable(start: str, following: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    left = [start]
    while left:
        new = following.get(left.pop(), set()) - found
        found |= new
        left += new
    return found


# The rules --------------------------------------------------------------------------------


def rooms_import_downwards(modules: dict[str, Module], imports: Imports) -> Iterator[str]:
    for importer, name, line in own(imports):
        if ROOMS.index(room_of(name)) > ROOMS.index(room_of(importer)):
            yield f"{importer}:{line} imports {name}"


def only_scripts_import_the_facade(modules: dict[str, Module], imports: Imports) -> Iterator[str]:
    for importer, name, line in own(imports):
        if name == "qgpo" and room_of(importer) != "scripts":
            yield f"{importer}:{line} imports {name}"


def agents_import_downwards(modules: dict[str, Module], imports: Imports) -> Iterator[str]:
    for importer, name, line in own(imports):
        if room_of(importer) == room_of(name) == "agents":
            upper, lower = (
                FLOORS_OF_AGENTS.index(folder_in("agents", module, modules))
                for module in (importer, name)
            )
            if lower > upper:
                yield f"{importer}:{line} imports {name}"


def folders_of_envs_form_no_circle(modules: dict[str, Module], imports: Imports) -> Iterator[str]:
    edges: dict[tuple[str, str], list[str]] = {}
    for importer, name, line in own(imports):
        if room_of(importer) == room_of(name) == "envs":
            pair = folder_in("envs", importer, modules), folder_in("envs", name, modules)
            if pair[0] != pair[1] and "" not in pair:
                edges.setdefault(pair, []).append(f"{importer}:{line} imports {name}")
    for circle in find_circles(edges):
        lines = [line for pair in edges if set(pair) <= set(circle) for line in edges[pair]]
        yield f"{' '.join(circle)}: {'; '.join(sorted(lines))}"


def modules_form_no_circle(modules: dict[str, Module], imports: Imports) -> Iterator[str]:
    edges = [
        (importer, name)
        for importer, imported in imports.items()
        for name in imported
        if name in modules
    ]
    yield from (" ".join(circle) for circle in find_circles(edges))


def packages_say_what_belongs_in_them(
    modules: dict[str, Module], imports: Imports
) -> Iterator[str]:
    for module in modules.values():
        if module.is_package and not ast.get_docstring(module.tree):
            yield f"{module.name} has no docstring"
        if not (module.path.parent / "__init__.py").exists():
            yield f"{module.path.parent} has no __init__.py"


def nothing_needs_posix(modules: dict[str, Module], imports: Imports) -> Iterator[str]:
    for importer, imported in imports.items():
        for name, line in imported.items():
            if name.split(".")[0] in POSIX_ONLY:
                yield f"{importer}:{line} imports {name}"


RULES: tuple[Rule, ...] = (
    rooms_import_downwards,
    only_scripts_import_the_facade,
    agents_import_downwards,
    folders_of_envs_form_no_circle,
    modules_form_no_circle,
    packages_say_what_belongs_in_them,
    nothing_needs_posix,
)
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)


@pytest.fixture(scope="module")
def package() -> tuple[dict[str, Module], Imports]:
    modules = read_modules(ROOT)
    return modules, read_imports(modules)


@every_rule
def test_the_package_keeps_the_rule(rule, package):
    broken = sorted(rule(*package))
    assert not broken, "\n".join(broken)


def test_the_rooms_are_all_known():
    assert sorted(ROOMS) == sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


# The rules can fail -----------------------------------------------------------------------

SOUND = {
    "qgpo/__init__.py": '"""D."""\nfrom qgpo.agents import bc\nfrom qgpo.envs.data import arrays',
    "qgpo/solver.py": "import numpy",
    "envs/__init__.py": '"""D."""\nfrom qgpo.envs.data.arrays import A',
    "envs/data/__init__.py": '"""D."""',
    "envs/data/arrays.py": "from qgpo import solver",
    "envs/play/__init__.py": '"""D."""',
    "envs/play/game.py": "from ..data import arrays",
    "agents/__init__.py": '"""D."""\nfrom qgpo.agents.bc import BC',
    "agents/core/__init__.py": '"""D."""',
    "agents/core/agent.py": "from qgpo.envs import A",
    "agents/guided/__init__.py": '"""D."""',
    "agents/guided/parts.py": "from qgpo.agents.core.agent import Agent",
    "agents/bc.py": "import qgpo.agents.guided.parts\nfrom .core import agent",
    "experiments/__init__.py": '"""D."""',
    "experiments/run.py": "from qgpo.agents import BC",
    "scripts/__init__.py": '"""D."""',
    "scripts/train.py": "import qgpo\nfrom qgpo.experiments.run import go",
}
BROKEN: dict[Rule, list[tuple[str, str, str]]] = {
    rooms_import_downwards: [
        ("qgpo/solver.py", "from qgpo.envs import A", "qgpo.solver:1 imports qgpo.envs"),
        (
            "envs/play/game.py",
            "if TYPE_CHECKING:\n    from qgpo.agents.core import agent",
            "qgpo.envs.play.game:2 imports qgpo.agents.core.agent",
        ),
        (
            "agents/core/agent.py",
            "def f():\n    from qgpo.experiments import run",
            "qgpo.agents.core.agent:2 imports qgpo.experiments.run",
        ),
    ],
    only_scripts_import_the_facade: [
        ("experiments/run.py", "from qgpo import QGPO", "qgpo.experiments.run:1 imports qgpo")
    ],
    agents_import_downwards: [
        (
            "agents/core/agent.py",
            "from qgpo.agents.guided.parts import P",
            "qgpo.agents.core.agent:1 imports qgpo.agents.guided.parts",
        ),
        (
            "agents/guided/parts.py",
            "from ..bc import BC",
            "qgpo.agents.guided.parts:1 imports qgpo.agents.bc",
        ),
        (
            "agents/core/agent.py",
            "from qgpo.agents import BC",
            "qgpo.agents.core.agent:1 imports qgpo.agents",
        ),
    ],
    folders_of_envs_form_no_circle: [
        (
            "envs/data/arrays.py",
            "from qgpo.envs.play import game",
            "data play: qgpo.envs.data.arrays:1 imports qgpo.envs.play.game; "
            "qgpo.envs.play.game:1 imports qgpo.envs.data.arrays",
        )
    ],
    modules_form_no_circle: [
        (
            "agents/guided/parts.py",
            "from qgpo.agents.bc import BC",
            "qgpo.agents.bc qgpo.agents.guided.parts",
        ),
        (
            "experiments/run.py",
            "from qgpo.experiments.run import go",
            "qgpo.experiments.run",
        ),
    ],
    packages_say_what_belongs_in_them: [
        ("agents/core/__init__.py", "", "qgpo.agents.core has no docstring"),
    ],
    nothing_needs_posix: [
        (
            "envs/data/arrays.py",
            "try:\n    from fcntl import flock\nexcept ImportError:\n    pass",
            "qgpo.envs.data.arrays:2 imports fcntl",
        ),
    ],
}


def make_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@every_rule
def test_a_sound_tree_keeps_the_rule(rule, tmp_path):
    modules = read_modules(make_tree(tmp_path, SOUND))
    assert list(rule(modules, read_imports(modules))) == []


@pytest.mark.parametrize(
    ("rule", "name", "text", "message"),
    [(rule, *case) for rule, cases in BROKEN.items() for case in cases],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_tree_that_breaks_the_rule_is_found(rule, name, text, message, tmp_path):
    modules = read_modules(make_tree(tmp_path, {**SOUND, name: text}))
    assert message in list(rule(modules, read_imports(modules)))


def test_a_folder_without_init_is_found(tmp_path):
    modules = read_modules(make_tree(tmp_path, {**SOUND, "agents/lost/one.py": ""}))
    found = list(packages_say_what_belongs_in_them(modules, read_imports(modules)))
    assert found == [f"{tmp_path / 'agents' / 'lost'} has no __init__.py"]


def test_every_rule_is_shown_to_fail():
    assert set(BROKEN) == set(RULES)
