"""Every module path of qgpo 0.1, and every public name it defined, is there for one release.

`python tests/test_moved.py` prints, from where names are defined now, a table for `qgpo/_moved.py`
and the names that are defined nowhere.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest

from qgpo._moved import MOVED, RENAMED, OldFinder

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ("main", "cli")
"""what others may call of a script"""
FORMER: dict[str, list[str]] = {
    module: [name for name in names if name in PROGRAM or ".scripts." not in module]
    for module, names in json.loads(
        Path(__file__).with_name("former_names.json").read_text(encoding="utf-8")
    ).items()
}
"""of qgpo 0.1: each module and the public names that it defined"""
GONE = {"qgpo.scripts.train_policies": "is benchmarks/train_policies.py, outside the package"}
"""former modules without a new place, and why"""
PART = "is a method or a part of an agent now"
FIELDS = "is said beside each field of a configuration now"
CONSTANT = "was a constant of its module's functions"
TEMPLATE = "is in experiments/report_template.md or .html"
WITHDRAWN = {
    "qgpo.agents.tuning.choose_scale": "is qgpo.agents.guided.tuning.choose, of numbers of scales",
    "qgpo.solver.EVALUATIONS": "is a column of qgpo.solver.SOLVERS",
    "qgpo.solver.ORDERS": "is a column of qgpo.solver.SOLVERS",
    "qgpo.agents.acting.Acting": PART,
    "qgpo.envs.families.TWO_GAITS": "was the settings of one dataset",
    "qgpo.agents.adoption.LAST_STAGE_FIELDS": FIELDS,
    "qgpo.agents.adoption.SHARED_NETWORKS": "are OF_BEHAVIOR and the networks of the critic",
    "qgpo.agents.adoption.adopt": PART,
    "qgpo.agents.checkpoint.pack_optimizer": PART,
    "qgpo.agents.checkpoint.unpack_optimizer": PART,
    "qgpo.agents.energy_guided_model.GuidedModel": PART,
    "qgpo.agents.files.pack": PART,
    "qgpo.agents.files.unpack": PART,
    "qgpo.agents.sb3.ADAM": CONSTANT,
    "qgpo.agents.presets.AEPO_PRESETS": "is AEPO.presets",
    "qgpo.agents.presets.CHOICES": FIELDS,
    "qgpo.agents.presets.RANGES": FIELDS,
    "qgpo.agents.presets.RENEWAL_PERIODS": FIELDS,
    "qgpo.agents.presets.TRAINING_STEPS": FIELDS,
    "qgpo.agents.stages.StagedTraining": PART,
    "qgpo.envs.bundled.ids": "is sorted(qgpo.envs.store.bundled.RECIPES)",
    "qgpo.envs.combining.EPISODES_AT_ONCE": CONSTANT,
    "qgpo.envs.dataset_figure.episode_lengths": "is a property of a dataset",
    "qgpo.envs.downloading.CHUNK": CONSTANT,
    "qgpo.envs.families.SUCCESS": CONSTANT,
    "qgpo.envs.local.new_dataset_path": "returned a path that new_dataset and check_new_id hide",
    "qgpo.envs.mapping.finish": "renamed a folder, which qgpo.envs.store.writing does for all",
    "qgpo.envs.observations.image_message": "is a part of refuse_images",
    "qgpo.envs.observations.is_image": "is a part of refuse_images",
    "qgpo.agents.cells.LOG": PART,
    "qgpo.agents.cells.RESULT": "is evaluation.json, as of every run",
    "qgpo.agents.cells.one_line": PART,
    "qgpo.agents.plan.KINDS": FIELDS,
    "qgpo.agents.runs.WandbOutput": "is wandb's own copy of what TensorBoard gets",
    "qgpo.agents.sb3_baselines.Samples": PART,
    "qgpo.envs.report.Block": TEMPLATE,
    "qgpo.envs.report.Heading": TEMPLATE,
    "qgpo.envs.report.Picture": TEMPLATE,
    "qgpo.envs.report.STYLE": TEMPLATE,
    "qgpo.envs.report.Table": TEMPLATE,
    "qgpo.envs.report.Text": TEMPLATE,
    "qgpo.envs.report.to_markdown": TEMPLATE,
    "qgpo.envs.result_figures.Draw": PART,
    "qgpo.envs.result_figures.color": PART,
    "qgpo.envs.result_figures.short": PART,
    "qgpo.statistics.profile_band": "is stratified_bootstrap with performance_profile",
    "qgpo.statistics.resampled": "is a part of stratified_bootstrap",
}
"""former names without a new place, with their module, and why"""


def definitions() -> dict[str, list[str]]:
    """The modules that define each public name now, or offer it as a package."""
    found: dict[str, list[str]] = {}
    for room in sorted(path.parent for path in ROOT.glob("*/__init__.py")):
        for path in sorted(room.rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            is_package = parts[-1] == "__init__"
            parts = parts[:-1] if is_package else parts
            module = ".".join(parts if parts[0] == "qgpo" else ["qgpo", *parts])
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                for name in names_of(node, is_package):
                    found.setdefault(name, []).append(module)
    return found


def names_of(node: ast.stmt, is_package: bool) -> list[str]:
    """The names that a statement of a module defines; in a package, those it imports too."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.ImportFrom(names=names) if is_package:
            return [alias.asname or alias.name for alias in names]
    return []


def proposal() -> list[str]:
    """A line of `MODULES` per former module that needs one, then the names without a place."""
    defined, lines, homeless = definitions(), [], []
    for module, names in FORMER.items():
        homeless += [f"{module}.{name}" for name in names if name not in defined]
        left = {name for name in names if name in defined and module not in defined[name]}
        places: list[str] = []
        while left:
            found = Counter(place for name in sorted(left) for place in defined[name])
            places.append(found.most_common(1)[0][0])
            left -= {name for name in left if places[-1] in defined[name]}
        if places and module not in GONE:
            old, *now = (place.removeprefix("qgpo.") for place in (module, *places))
            lines.append(f'    "{old}": "{" ".join(now)}",')
    return [*lines, "", "Defined nowhere, for RENAMED or WITHDRAWN:", *homeless]


def advice(module: str, name: str) -> str:
    """What to write in which table."""
    places = definitions().get(name, [])
    if places:
        return f"{module}.{name}: add {' or '.join(places)} to MODULES, at {module!r}"
    return (
        f"{module}.{name}: no module defines it: name what it is called now in RENAMED, or say in "
        "WITHDRAWN (tests/test_moved.py) why it is gone"
    )


@pytest.mark.parametrize("module", sorted(FORMER.keys() - GONE.keys()))
def test_a_former_module_offers_every_name_it_defined(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            pytest.fail(f"{error}: add {module!r} to MODULES, with the modules of {FORMER[module]}")
        homeless = [
            advice(module, name)
            for name in FORMER[module]
            if f"{module}.{name}" not in WITHDRAWN and not hasattr(found, name)
        ]
    assert not homeless, "\n".join(homeless)


@pytest.mark.parametrize("module", sorted(GONE))
def test_a_module_that_is_gone_is_not_found(module):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(module)


def test_the_tables_hold_no_dead_entries():
    assert MOVED.keys() <= FORMER.keys()
    for module, places in MOVED.items():
        for place in places:
            assert importlib.util.find_spec(place), f"MOVED[{module!r}] names {place}, which is not"
    for former, now in RENAMED.items():
        module, _, name = former.rpartition(".")
        assert name in FORMER[module]
        assert module in MOVED, f"{former} is never looked up: add {module!r} to MOVED"
        place, _, new_name = now.rpartition(".")
        assert hasattr(importlib.import_module(place), new_name), now
    for former in WITHDRAWN:
        module, _, name = former.rpartition(".")
        assert name in FORMER[module]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            assert not hasattr(importlib.import_module(module), name), f"{former} is not gone"


def fresh(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Let the next import of it be the first one."""
    monkeypatch.delitem(sys.modules, module, raising=False)


def test_one_warning_says_where_the_names_are_now(monkeypatch):
    module = "qgpo.agents.callbacks"
    fresh(monkeypatch, module)
    with pytest.warns(DeprecationWarning, match="is now") as caught:
        from qgpo.agents.callbacks import EvaluationCallback, SaveCheckpoint
    (warning,) = caught
    assert str(warning.message).startswith(f"{module} is now {MOVED[module][0]}")
    assert warning.filename == __file__
    home = importlib.import_module(MOVED[module][-1])
    assert home.EvaluationCallback is EvaluationCallback
    assert home.SaveCheckpoint is SaveCheckpoint


def test_a_former_package_still_has_its_modules(monkeypatch):
    fresh(monkeypatch, "qgpo.envs.policies")
    fresh(monkeypatch, "qgpo.envs.policies.vecnormalize")
    with pytest.warns(DeprecationWarning, match="is now") as caught:
        importlib.import_module("qgpo.envs.policies.vecnormalize")
    assert len(caught) == 2  # the package and its module


def test_unknown_names_raise_the_ordinary_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        former = importlib.import_module("qgpo.agents.presets")
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        from qgpo.agents.presets import nonsense  # noqa: F401
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        former.nonsense  # noqa: B018
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'qgpo\.agents\.nonsense'"):
        importlib.import_module("qgpo.agents.nonsense")


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package in which `one` and a renamed `two` left the module `still` for `other`."""
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "still.py").write_text("zero = 0\n", encoding="utf-8")
    (package / "other.py").write_text("one, second = 1, 2\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(MOVED, "house.still", ("house.other",))
    monkeypatch.setitem(MOVED, "house.gone", ("house.other",))
    monkeypatch.setitem(RENAMED, "house.still.two", "house.other.second")
    monkeypatch.setitem(RENAMED, "house.gone.two", "house.other.second")
    for module in ("house", "house.still", "house.other", "house.gone"):
        fresh(monkeypatch, module)


@pytest.mark.usefixtures("house")
def test_a_module_that_lost_names_warns_of_each_once():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        still = importlib.import_module("house.still")
        assert still.zero == 0
    with pytest.warns(DeprecationWarning, match=r"house\.still\.one is now house\.other\.one"):
        assert still.one == 1
    with pytest.warns(DeprecationWarning, match=r"house\.still\.two is now house\.other\.second"):
        assert still.two == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (still.one, still.two) == (1, 2)
    assert not hasattr(still, "three")


@pytest.mark.usefixtures("house")
def test_a_renamed_name_of_a_module_that_is_gone():
    with pytest.warns(DeprecationWarning, match=r"house\.gone is now house\.other;"):
        gone = importlib.import_module("house.gone")
    with pytest.warns(DeprecationWarning, match=r"house\.gone\.two is now house\.other\.second"):
        assert gone.two == 2
    assert gone.one == 1
    assert not hasattr(gone, "second_of_all")


def test_nothing_in_this_repository_uses_a_former_path():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        specs = [importlib.util.find_spec(module) for module in MOVED]
    former = [spec.name for spec in specs if isinstance(spec.loader, OldFinder)]
    path_of = re.compile(rf"\b({'|'.join(map(re.escape, former))})\b(?!\.)")
    used = [
        f"{path.relative_to(ROOT)}: {match[1]}"
        for pattern in ("*.py", "*.md", "*.toml", "*.sh")
        for path in ROOT.rglob(pattern)
        if not any(part.startswith(".") or part == "typings" for part in path.parts)
        and path.name not in ("_moved.py", "test_moved.py", "CHANGELOG.md")
        for match in path_of.finditer(path.read_text(encoding="utf-8"))
    ]
    assert used == []


def test_unused_tables_cost_no_import():
    code = (
        "import sys, warnings; warnings.simplefilter('error', DeprecationWarning); "
        "import qgpo._moved as m; "
        "print([name for name in m.MOVED if name in sys.modules and "
        "isinstance(sys.modules[name].__loader__, m.OldFinder)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


if __name__ == "__main__":
    print("\n".join(proposal()))
