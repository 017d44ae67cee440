"""The user's own environments: modules of PYTHONPATH that register an id, found by reading them.

A dataset or a checkpoint states an id, never what is imported: an entry point in a file plays no
part. The folders are those that the user put on PYTHONPATH, and a module counts where its source
registers that very id, as a plugin of Gymnasium would.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

LARGEST = 1_000_000
"""bytes of a source file that is read"""
MOST = 2_000
"""files of a folder that are read"""


def import_own(env_id: str) -> None:
    """Import the module of PYTHONPATH that registers the id, if there is one, with a warning."""
    for name, path in _sources():
        if _registers(path, env_id):
            warnings.warn(
                f"environment {env_id!r} is registered by the module {name!r} of your PYTHONPATH "
                f"({path}), which is imported",
                stacklevel=2,
            )
            importlib.import_module(name)
            return


def _sources() -> Iterator[tuple[str, Path]]:
    """Top-level modules and packages in the folders of PYTHONPATH: name and source."""
    for folder in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        modules = ((path.stem, path) for path in Path(folder).glob("*.py"))
        packages = ((path.parent.name, path) for path in Path(folder).glob("*/__init__.py"))
        yield from itertools.islice(itertools.chain(modules, packages), MOST)


def _registers(path: Path, env_id: str) -> bool:
    """Whether the source calls `register("Env-v0", …)` or `register(id="Env-v0", …)`."""
    try:
        if path.stat().st_size > LARGEST or env_id.encode() not in (source := path.read_bytes()):
            return False
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func) == "register":
            ids = [*node.args[:1], *(word.value for word in node.keywords if word.arg == "id")]
            if any(isinstance(one, ast.Constant) and one.value == env_id for one in ids):
                return True
    return False


def _name(function: ast.expr) -> str | None:
    """The last part of what is called: `register` of `gymnasium.register`."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None
