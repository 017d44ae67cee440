"""`train.py --minutes`: what it decides, once, and what it refuses. The rates are given."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from factory import WHITENED, make_dataset, mapped, same_parameters
from gymnasium import spaces

from qgpo import QGPO, load_agent, load_dataset
from qgpo.agents import longer
from qgpo.agents.core.speed import Speed, measure_speed
from qgpo.experiments import driver
from qgpo.experiments.driver import Run
from qgpo.scripts import train

DATASET = "test/mapped-v0"
GIVEN = ["--dataset-id", DATASET, "--n-episodes", "0", "--device", "cpu", "--no-progress-bar"]
TINY = [
    argument
    for name in (
        *("behavior_hidden", "critic_hidden", "energy_hidden"),
        *("whitening_steps", "behavior_steps", "critic_steps", "dynamics_steps", "energy_steps"),
        "target_every",
        *("behavior_batch_size", "critic_batch_size", "energy_batch_size", "support_actions"),
    )
    for value in [getattr(WHITENED, name)]
    for argument in (
        f"--config.{name.replace('_', '-')}",
        *map(str, value if isinstance(value, tuple) else [value]),
    )
]
BY_HAND = Speed(30.0, {"behavior": 40.0, "energy": 20.0}, {"behavior": 0.1, "energy": 0.1})


class Ticks:
    """A clock on which every look takes a tenth of a second."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 0.1
        return self.now


@pytest.fixture(autouse=True)
def data(monkeypatch, undrawn):
    """A small dataset with Pendulum's spaces, on a machine of known speed."""
    torques = spaces.Box(-2.0, 2.0, (1,), np.float32)
    mapped(make_dataset(action_space=torques), DATASET)
    monkeypatch.setattr(driver, "measure_speed", lambda *_: BY_HAND)


def config_of(folder: str) -> dict:
    return json.loads(Path(folder, "config.json").read_text())


def test_minutes_are_the_steps_that_fill_them(capsys):
    train.main(train.parse([*GIVEN, *TINY, "--minutes", "2.5"]))
    assert (
        "2.5 minutes: 2 times the preset's steps (the preset's steps take behavior 40 s, energy "
        "20 s; 30 s do not depend on steps)" in capsys.readouterr().out
    )
    folder = "runs/test-mapped-v0-QGPO-laptop-2.5min-s0"
    about = config_of(folder)
    given = train.parse([*GIVEN, *TINY]).config
    assert about["longer"] == about["args"]["longer"] == 2.0
    assert about["args"]["minutes"] == 2.5
    assert about["measured"]["config"]["critic_steps"] == 2 * WHITENED.critic_steps
    agent = QGPO.load(f"{folder}/checkpoint.zip", device="cpu")
    assert agent.config == longer(given, 2.0)
    by_hand = QGPO(longer(given, 2.0), device="cpu").learn(load_dataset(DATASET))
    assert same_parameters(agent.get_parameters(), by_hand.get_parameters())
    written = json.loads(Path(folder, "evaluation.json").read_text())
    assert written["longer"] == 2.0
    assert written["measured"] == about["measured"]


def test_a_longer_of_the_same_factor_is_the_same_training():
    """Where no flag of its own changes the steps."""
    args = ["--agent", "BC", *GIVEN, "--config.hidden", "4", "--config.batch-size", "2"]
    measured = Run(
        train.parse([*args, "--minutes", "2.5"]), train.RunFolder(Path("run")), False, 2.5
    )
    assert measured.experiment.config == train.parse([*args, "--longer", "2"]).config
    assert "steps" not in measured.experiment.overrides(measured.dataset)


def test_a_resumed_run_never_measures_again(monkeypatch):
    args = [*GIVEN, *TINY, "--run-dir", "run", "--minutes", "2.5"]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "train", stopped)
        with pytest.raises(SystemExit, match="stopped here"):
            train.main(train.parse(args))
    before = config_of("run")
    monkeypatch.setattr(driver, "measure_speed", None)  # whoever calls it fails
    train.main(train.parse(["--resume", "run", "--no-progress-bar", "--minutes", "2.5"]))
    assert config_of("run") == before
    agent = load_agent("run/checkpoint.zip", device="cpu")
    assert agent.is_trained
    assert agent.total_timesteps == 2 * 18
    for flags in (["--minutes", "3"], ["--longer", "3"]):
        with pytest.raises(SystemExit, match=f"{flags[0]} cannot change"):
            train.parse(["--resume", "run", *flags])


def test_flags_that_contradict_resume_are_refused():
    train.main(train.parse([*GIVEN, *TINY, "--run-dir", "run"]))
    for flags in (["--run-dir", "other"], ["--overwrite"]):
        with pytest.raises(SystemExit, match=f"{flags[0]}.* cannot be combined with --resume"):
            train.parse(["--resume", "run", *flags])
    assert train.parse(["--resume", "run", "--run-dir", "./run"]).folder.path == Path("run")
    with pytest.raises(SystemExit, match="--allow-other-dataset belongs to --resume: add it"):
        train.main(train.parse([*GIVEN, *TINY, "--run-dir", "new", "--allow-other-dataset"]))
    assert not Path("new").exists()


def stopped(*_):
    raise KeyboardInterrupt("stopped here")


def test_only_a_run_that_has_begun_promises_to_be_continued(monkeypatch):
    args = [*GIVEN, *TINY, "--run-dir", "run", "--minutes", "2.5"]
    with monkeypatch.context() as patch:
        patch.setattr(driver, "measure_speed", stopped)
        with pytest.raises(SystemExit, match=r"^\nstopped here$"):
            train.main(train.parse(args))
    assert not Path("run").exists()
    monkeypatch.setattr(Run, "train", stopped)
    with pytest.raises(SystemExit, match=r"stopped here; continue with: .*--resume run$"):
        train.main(train.parse(args))
    monkeypatch.setattr(Run, "new_agent", stopped)
    with pytest.raises(SystemExit, match=r"stopped here; continue with: .*--resume run$"):
        train.main(train.parse(["--resume", "run"]))
    with pytest.raises(SystemExit, match=r"^\nstopped here$"):  # not the former run
        train.main(train.parse([*args, "--overwrite"]))


def test_what_cannot_run_is_refused_before_it_is_measured(monkeypatch):
    monkeypatch.setattr(driver, "measure_speed", None)
    monkeypatch.setattr(driver, "check_environment", refused)
    played = ["--n-episodes", "1", "--env-id", "Pendulum-v1", "--minutes", "2"]
    with pytest.raises(SystemExit, match="error: no such environment"):
        train.main(train.parse([*GIVEN, *TINY, *played]))


def refused(*_):
    raise ValueError("no such environment")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_new_run_in_the_same_folder_measures_if_it_may_begin(overwrite, monkeypatch):
    args = [*GIVEN, *TINY, "--run-dir", "run"]
    train.main(train.parse([*args, "--minutes", "1.5"]))
    again = [*args, "--minutes", "2.5"]
    if overwrite:
        train.main(train.parse([*again, "--overwrite"]))
        assert config_of("run")["longer"] == 2.0
    else:
        monkeypatch.setattr(driver, "measure_speed", None)
        with pytest.raises(SystemExit, match="already holds a run"):
            train.main(train.parse(again))
        assert config_of("run")["longer"] == 1.0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--minutes", "0"], "minutes=0, expected a positive number of at most 1e\\+06"),
        (["--minutes", "-3"], "minutes=-3, expected a positive number"),
        (["--minutes", "nan"], "minutes=nan, expected a finite number"),
        (["--minutes", "inf"], "minutes=inf, expected a finite number"),
        (["--minutes", "0.5"], "minutes=0.5, expected at least 0.504 here: 30 s of the training"),
        (["--minutes", "2", "--longer", "4"], "minutes=2 and longer=4: both set"),
        (["--minutes", "2", "--adopt", "there"], "minutes=2 and adopt='there': adopted stages"),
    ],
)
def test_minutes_that_cannot_be_are_refused(flags, message):
    with pytest.raises(SystemExit, match=f"error: {message}"):
        train.main(train.parse([*GIVEN, *TINY, *flags]))
    assert not Path("runs").exists()


@pytest.mark.parametrize("agent", ["QGPO", "IQL"])
def test_a_machine_is_measured_and_trained_on(agent, monkeypatch):
    """On a clock of its own: every step takes a tenth of a second or two."""
    ticking = functools.partial(measure_speed, clock=Ticks())
    monkeypatch.setattr(driver, "measure_speed", ticking)
    small = ["--config.hidden", "4", "--config.batch-size", "2"] if agent == "IQL" else TINY
    train.main(train.parse([*GIVEN, "--agent", agent, *small, "--minutes", "0.2"]))
    about = config_of(f"runs/test-mapped-v0-{agent}-laptop-0.2min-s0")
    steps = load_agent(
        f"runs/test-mapped-v0-{agent}-laptop-0.2min-s0/checkpoint.zip", device="cpu"
    ).total_timesteps
    assert 60 < steps <= 120
    assert about["longer"] < (1 if agent == "IQL" else 10)
