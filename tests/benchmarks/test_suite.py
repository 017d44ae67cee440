"""The suite names every set, where it is from, and on which half it is."""

from __future__ import annotations

import importlib
import json
import re
import shlex

import gymnasium as gym
import numpy as np
import pytest
import tyro
from factory import ROOT

from qgpo.envs.rollouts.sb3_policies import POLICY_FOLDER
from qgpo.envs.store import bundled
from qgpo.envs.store.generating import name_to_generate
from qgpo.envs.tasks import ogbench
from qgpo.envs.tasks.families import find_family
from qgpo.scripts import collect

KNOWN = r"zoo/.*|qgpo/(hopper|halfcheetah)/.*|.*cube-single-.*task[12]-v0|.*umaze.*"
"""sets whose results were known when the halves were drawn"""


@pytest.fixture
def suite(monkeypatch):
    """The module benchmarks/suite.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("suite")


def test_no_set_is_on_both_halves(suite):
    ids = [one.id for one in suite.suite()]
    assert len(set(ids)) == len(ids)
    halves = {half: suite.suite(half) for half in ("development", "validation")}
    assert sum(map(len, halves.values())) == len(ids)
    tasks = [{one.task for one in sets} for sets in halves.values()]
    assert not tasks[0] & tasks[1]
    assert not [one.id for one in halves["validation"] if re.fullmatch(KNOWN, one.id)]


def test_both_halves_have_every_kind(suite):
    kinds = [
        {kind for one in suite.suite(half) for kind in (*one.kinds, one.behavior)}
        for half in ("development", "validation")
    ]
    assert kinds[0] == kinds[1]


def test_every_set_is_bundled_or_says_how_it_is_made(suite):
    left = dict(bundled.RECIPES)
    for one in suite.suite():
        if one.made == ("bundled",):
            recipe = left.pop(one.id)
            assert (recipe.n_steps, recipe.env_id) == (one.steps, one.task)
        elif one.id.startswith("zoo/"):
            text = (ROOT / "benchmarks" / "zoo.sh").read_text()
            assert one.id.split("/")[1] in text
            assert "bash benchmarks/zoo.sh" in one.made[-1]
        else:
            _, script, *words = shlex.split(one.made[0])
            name = ogbench.parse(one.id)
            if name is None:
                args = tyro.cli(collect.Args, args=words)
                assert (script, args.dataset_id) == ("scripts/collect.py", one.id)
                assert (args.env_id, args.n_steps) == (one.task, one.steps)
            else:
                _, stem, _, steps = words
                assert [script, *words] == [
                    "scripts/data.py",
                    "generate",
                    stem,
                    "--steps",
                    str(one.steps),
                ]
                assert name_to_generate(stem, int(steps)).id == name.trajectories.id
    assert not left, "bundled sets that are on neither half"


def test_scores_are_those_of_the_families(suite):
    for one in suite.suite():
        recipe = bundled.RECIPES.get(one.id)
        env_id = recipe.env_id if recipe else one.task.split(" ")[0]
        family = find_family(one.id, env_id)
        assert family.name != "unknown", one.id
        if family.success:
            assert one.returns == (0.0, 100.0)
        elif family.name == "pointmaze":
            assert one.returns == (family.reference.minimum, family.reference.maximum)
        else:
            scores = family.scores({}, gym.spec(env_id))
            assert one.returns == (scores.minimum, scores.maximum), one.id


def test_the_references_are_those_that_were_measured(suite):
    """Pairs are means over the episodes of suite.json, but for what the RL Zoo published."""
    played = json.loads(suite.RESULTS.read_text(encoding="utf-8"))
    assert played.keys() == suite.REFERENCES.keys()
    for env_id, name in suite.REFERENCES.items():
        scores = find_family(env_id=env_id).reference
        assert scores.minimum == pytest.approx(np.mean(played[env_id]["uniform"]), rel=1e-4)
        if name:
            assert (POLICY_FOLDER / f"{name}.safetensors").exists()
            assert scores.maximum == pytest.approx(np.mean(played[env_id][name]), rel=1e-4)
        assert (name or "RL Zoo") in scores.source


def test_the_table_has_every_set(suite, capsys):
    suite.main(suite.Args())
    printed = capsys.readouterr().out
    assert all(f"`{one.id}`" in printed for one in suite.suite())
