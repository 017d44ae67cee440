from __future__ import annotations

import ast
import io
import sys

import pytest
from factory import ROOT

from qgpo.envs.progress import progress

# as Stable-Baselines3's; its users pass progress_bar=True
SILENT = {
    "agents/core/agent.py: learn",
    "agents/core/online.py: learn_online",
    "agents/qgpo.py: distill",
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "shown", "expected"),
    [
        (Terminal, None, True),
        (io.StringIO, None, False),
        (Terminal, False, False),
        (io.StringIO, True, True),
    ],
)
def test_a_bar_is_shown_where_somebody_looks(stream, shown, expected, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream())
    with progress(3, "three steps", shown) as bar:
        bar.update()
    assert ("three steps" in sys.stderr.getvalue()) is expected


def silent_by_default(tree: ast.Module) -> list[str]:
    """Public functions with `progress_bar: … = False`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            kinds = node.args
            places = kinds.args[len(kinds.args) - len(kinds.defaults) :]
            pairs = [*zip(places, kinds.defaults, strict=True)]
            pairs += zip(kinds.kwonlyargs, kinds.kw_defaults, strict=True)
            defaults = {place.arg: default for place, default in pairs}
            default = defaults.get("progress_bar")
            if isinstance(default, ast.Constant) and default.value is False:
                found.append(node.name)
    return found


def test_no_long_call_is_silent_where_somebody_looks():
    silent = set()
    for path in (
        p for room in ("envs", "agents", "experiments") for p in (ROOT / room).rglob("*.py")
    ):
        names = silent_by_default(ast.parse(path.read_text(encoding="utf-8")))
        silent |= {f"{path.relative_to(ROOT).as_posix()}: {name}" for name in names}
    assert silent == SILENT
