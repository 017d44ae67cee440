"""Settings of a run: the same words make the same agent, wrong values are named."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from factory import ROOT

from qgpo import QGPO
from qgpo.agents import AGENTS
from qgpo.agents.guided.policy import GuidedPolicy
from qgpo.experiments.benchmark import Benchmark
from qgpo.experiments.plan import in_turn, read_plan
from qgpo.experiments.settings import Experiment, as_json, check_types
from qgpo.scripts import train

ROW = "D4RL/antmaze/umaze-v1"  # with settings of its own in that preset
PRESET = "paper"
PLANS = sorted(p for p in (ROOT / "benchmarks").glob("*.toml") if p.stem != "suite")


def planned(**more):
    lines = [f'datasets = ["{ROW}"]', "seeds = [1]", "[[agents]]", 'agent = "QGPO"']
    lines += [f"preset = {json.dumps(PRESET)}"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in more.items()]
    Path("plan.toml").write_text("\n".join(lines))
    [cell] = read_plan(Path("plan.toml"))
    return cell


def test_python_the_command_line_and_plans_train_the_same_agent():
    config = QGPO.settings_for(ROW, PRESET)
    assert config != QGPO.presets[PRESET]
    assert planned().config == config
    where = ["--dataset-id", ROW, "--preset", PRESET]
    assert train.parse([*where, "--seed", "1"]).config == config
    longer = train.parse([*where, "--longer", "2", "--config.beta", "4"])
    plan = Path("plan.toml")
    assert planned(longer=2.0).config == dataclasses.replace(longer.config, beta=config.beta)
    plan.write_text(plan.read_text() + "\noverrides = { beta = 4.0 }")
    assert read_plan(plan)[0].config == longer.config


def test_the_help_names_every_agent(capsys):
    with pytest.raises(SystemExit):
        train.parse(["--help"])
    shown = re.findall(r"[\w-]+", capsys.readouterr().out.split("options", 1)[1])
    said = {
        flag: shown[shown.index(flag) : shown.index(following)]
        for flag, following in (("--agent", "--label"), ("--adopt", "--device"))
    }
    assert set(AGENTS) <= set(said["--agent"])
    sharing = {name for name, agent in AGENTS.items() if issubclass(agent, GuidedPolicy)}
    assert sharing <= set(said["--adopt"])


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_committed_result_counts_as_finished(path, tmp_path):
    cells = in_turn(read_plan(path))
    standings = Benchmark(cells, tmp_path / "runs", path.with_suffix("")).standings()
    assert [s.cell.name for s in standings if s.state != "finished"] == []


def test_an_experiment_survives_json():
    experiment = Experiment(agent="QGPO", guidance_scales=(0.0, 1.0), env_id="Pendulum-v1")
    assert Experiment.from_json(as_json(experiment)) == experiment


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed=-1, expected an integer of at least 0"),
        ({"seed": 2**64}, "seed=18446744073709551616, expected an integer of at least 0 and below"),
        ({"seed": True}, "seed=True, expected an integer"),
        ({"seed": 10**400}, "seed=1000.* at least 0 and below"),
        ({"threads": 1025}, "threads=1025, expected an integer of at least 0 and at most 1024"),
        ({"guidance_scales": (0.0, -(10**400))}, "guidance_scales=-1000.*, expected a finite"),
        ({"seed": 1.0}, "seed=1.0, expected an integer"),
        ({"n_episodes": 2.5}, "n_episodes=2.5, expected an integer of at least 0"),
        ({"longer": float("inf")}, "longer=inf, expected a finite number"),
        ({"longer": "4"}, "longer='4', expected a finite number"),
        ({"guidance_scales": (0.0, float("nan"))}, "guidance_scales=nan, expected a finite number"),
        ({"deterministic": 1}, "deterministic=1, expected true or false"),
        ({"env_id": 5}, "env_id=5, expected a string"),
        ({"storage": "tape"}, r"storage='tape', expected one of \['memory', 'memmap'\]"),
    ],
)
def test_wrong_values_are_named(changes, message):
    check_types(Experiment(longer=2, guidance_scales=(0, 1.5)))  # integers are numbers
    with pytest.raises(ValueError, match=message):
        Experiment(**changes).check()
