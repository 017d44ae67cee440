"""Minutes become a number of steps; clocks and rates are given, no test measures the machine."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from factory import CONFIGS, QIPO_CONFIGS, WHITENED, make_dataset, mapped, same_parameters

from qgpo.agents import AGENTS, QGPO, QIPO, longer, within_minutes
from qgpo.agents.core import speed
from qgpo.agents.core.speed import Speed, measure_speed
from qgpo.agents.core.training import Training
from qgpo.agents.guided.support import Support
from qgpo.agents.guided.support_critic import SupportCritic
from qgpo.agents.registry import KNOWN
from qgpo.agents.sb3_baselines import OnlineSAC

BY_HAND = Speed(30.0, {"critic": 40.0, "energy": 20.0}, {"critic": 0.01, "energy": 0.02})
SECONDS = {"whitening": 0.1, "behavior": 0.2, "critic": 0.3, "energy": 0.4}
"""of the gradient steps of an imagined machine"""
WHITENED_STEPS = {"whitening": 3, "behavior": 5, "critic": 6, "energy": 4}
DRAW, TABLE = 0.5, 0.25
"""seconds there per state, to draw its support and to fill a table of Q"""


class Ticks:
    """A clock on which every look takes a tenth of a second."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 0.1
        return self.now


class Machine:
    """An imagined one, whose clock goes on where work is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        optimize, draw, table = Training.optimize, Support._draw, SupportCritic.table_of_q

        def slow_optimize(training, name, *arguments):
            self.now += SECONDS[name]
            return optimize(training, name, *arguments)

        def slow_draw(support, data, step):
            chunk = support.states_per_chunk
            self.now += DRAW * min(chunk, len(data.states) - step * chunk)
            return draw(support, data, step)

        def slow_table(critic, data, first=0):
            self.now += TABLE * (len(data.states) - first)
            return table(critic, data, first)

        monkeypatch.setattr(Training, "optimize", slow_optimize)
        monkeypatch.setattr(Support, "_draw", slow_draw)
        monkeypatch.setattr(SupportCritic, "table_of_q", slow_table)

    def __call__(self) -> float:
        return self.now


def test_the_factor_by_hand():
    assert BY_HAND.least == pytest.approx(30.03)
    assert BY_HAND.factor(1.5) == 1.0  # 30 s, and the 60 s of the steps as they are
    assert BY_HAND.factor(10) == 9.5
    assert BY_HAND.factor(60) == 59.5
    assert BY_HAND.factor(100) == 99.5
    assert BY_HAND.factor(33.337) == 32.8  # three digits, to be typed again
    assert 0 < BY_HAND.factor(0.501) < 0.01
    assert Speed(60.0, {"training": 60.0}, {"training": 0.0}).factor(1) == 1e-9  # one step


@pytest.mark.parametrize("steps", [10_001, 16_000, 25_000, 30_000, 40_000, 50_000, 80_000, 10**6])
def test_a_model_that_would_judge_nothing_leaves_its_time_to_the_others(steps):
    least = 9_999.5 / steps  # steps are rounded
    config = replace(QGPO.presets["laptop"], dynamics_steps=steps)
    speed = Speed(0.0, {"critic": 60.0, "dynamics": 40.0}, {}, {"dynamics": least})
    assert speed.factor(100.0 / 60.0) == 1.0
    assert speed.factor(101.0 / 60.0 * least) == pytest.approx(1.01 * least, rel=5e-3)
    most = speed.factor(99.0 / 60.0 * least)
    assert 0.99 * least < most < least  # more would bring the model back
    assert longer(config, most).dynamics_steps == 0
    assert (speed.without(most), speed.without(least)) == (["dynamics"], [])
    assert speed.factor(30.0 / 60.0 * least) == pytest.approx(0.5 * least, rel=5e-3)


def test_leaving_out_goes_by_rounded_steps():
    config = replace(QGPO.presets["laptop"], dynamics_steps=30_030)
    speed = Speed(0.0, {"critic": 60.0, "dynamics": 40.0}, {}, {"dynamics": 9_999.5 / 30_030})
    for minutes in np.linspace(0.1, 1.0, 200):
        factor = speed.factor(minutes)
        assert bool(speed.without(factor)) is (longer(config, factor).dynamics_steps == 0)


def test_models_are_timed_by_as_many_steps_as_the_others():
    config = replace(WHITENED, dynamics_steps=20_000)
    short = speed._shorter(config, 0.01)
    assert (short.dynamics_steps, longer(config, 0.01).dynamics_steps) == (200, 0)


def test_longer_leaves_out_a_model_of_too_few_steps():
    config = QGPO.presets["laptop"]
    kept, short = longer(config, 0.625), longer(config, 0.624)
    assert (config.dynamics_steps, kept.dynamics_steps, short.dynamics_steps) == (16_000, 10_000, 0)
    assert short.energy_steps == 1_872
    few = replace(config, dynamics_steps=8)  # as it was asked for
    assert longer(few, 0.5).dynamics_steps == 4


def test_the_left_out_are_known_where_there_is_a_model(monkeypatch):
    monkeypatch.setattr(speed, "LEAST_MODEL_STEPS", 3)
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    dataset = make_dataset()
    model = replace(WHITENED, dynamics_steps=4)
    assert measure_speed(QGPO, model, dataset, "cpu").left_out == {"dynamics": 2.5 / 4}
    assert measure_speed(QGPO, WHITENED, dataset, "cpu").left_out == {}


def test_too_few_minutes_name_the_least():
    with pytest.raises(ValueError, match=r"minutes=0.5, expected at least 0.501 here: 30 s of"):
        BY_HAND.factor(0.5)


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        *((one, "a positive number of at most 1e\\+06") for one in (0.0, -1.0, 1e300)),
        *((one, "a finite number") for one in (math.nan, math.inf, "10", None)),
    ],
)
def test_absurd_minutes_are_refused(minutes, expected):
    with pytest.raises(ValueError, match=f"minutes=.*, expected {expected}"):
        BY_HAND.factor(minutes)
    with pytest.raises(ValueError, match=f"minutes=.*, expected {expected}"):
        within_minutes(QGPO, WHITENED, make_dataset(), minutes)


def test_the_parts_of_a_training_are_told_apart(monkeypatch):
    machine = Machine(monkeypatch)
    monkeypatch.setattr(speed, "FIRST_STEPS", QGPO(WHITENED, device="cpu").total_timesteps)
    data = make_dataset((16,))  # 17 states
    found = measure_speed(QGPO, WHITENED, data, "cpu", machine)
    assert found.steps == pytest.approx(SECONDS)
    assert found.stages == pytest.approx({k: SECONDS[k] * n for k, n in WHITENED_STEPS.items()})
    tables = 3  # two renewals of the critic's targets, one table for the energy
    assert found.fixed == pytest.approx(17 * (DRAW + tables * TABLE))
    machine.now = 0.0
    QGPO(WHITENED, device="cpu").learn(data)
    assert machine.now == pytest.approx(found.fixed + sum(found.stages.values()))


@pytest.mark.parametrize("times", [0.1, 0.5, 2.0])
def test_the_factor_fills_the_minutes(times, monkeypatch):
    """Few rows and steps are measured; a training of 15 renewals on all rows takes as long."""
    machine = Machine(monkeypatch)
    for name, rows in (("FEW_ROWS", 3), ("SOME_ROWS", 5), ("MORE_ROWS", 10)):
        monkeypatch.setattr(speed, name, rows)
    config = replace(
        WHITENED, whitening_steps=60, behavior_steps=80, critic_steps=300, target_every=20
    )
    config = replace(config, energy_steps=40)
    data = make_dataset((60,))
    found = measure_speed(QGPO, config, data, "cpu", machine)
    assert found.fixed == pytest.approx(61 * (DRAW + 16 * TABLE), rel=0.02)
    minutes = (found.fixed + times * sum(found.stages.values())) / 60.0
    machine.now = 0.0
    QGPO(longer(config, found.factor(minutes)), device="cpu").learn(data)
    assert machine.now == pytest.approx(60.0 * minutes, rel=0.02)


def test_what_is_fixed_is_drawn_out_to_all_rows():
    drawn = speed._drawn_out
    assert drawn(5.0, 9.0, (4, 8, 100)) == 101.0  # 1 and as many seconds as rows
    assert drawn(2.0, 8.0, (4, 8, 100)) == 100.0  # no line is below 0 at no rows
    assert drawn(9.0, 8.0, (4, 8, 100)) == 8.0
    assert drawn(7.0, 7.0, (3, 3, 3)) == 7.0  # all rows are measured


def test_renewals_of_other_agents_do_not_grow(monkeypatch):
    machine = Machine(monkeypatch)
    monkeypatch.setitem(SECONDS, "policy", 0.1)
    config = replace(QIPO_CONFIGS["diffusion"], policy_steps=200, renew_every=100)
    data = make_dataset((16,))
    found = measure_speed(QIPO, config, data, "cpu", machine)
    # the support is drawn twice; tables: two of the critic, two of the policy
    assert found.fixed == pytest.approx(17 * (2 * DRAW + 4 * TABLE), rel=0.05)


@pytest.mark.parametrize("name", [*AGENTS, "sb3:offline-sac", "sb3:offline-td3"])
def test_every_agent_is_measured(name):
    config = KNOWN[name].presets["laptop"]
    small = {
        field: (8, 8) if field.endswith("hidden") else 8
        for field in vars(config)
        if field.endswith(("hidden", "batch_size"))
    }
    config = replace(config, **small)
    found = measure_speed(KNOWN[name], config, make_dataset(), "cpu", Ticks())
    agent = KNOWN[name](config, device="cpu")
    assert sum(agent.stage_steps.values()) == agent.total_timesteps
    with_gradients = {stage for stage, steps in agent.stage_steps.items() if steps}
    assert set(found.steps) == set(found.stages) == with_gradients
    assert sum(found.stages.values()) == pytest.approx(0.1 * agent.total_timesteps)


def test_a_guidance_without_a_network_has_no_steps_of_its_own():
    config = replace(WHITENED, guidance="dps", beta=0.1)
    found = measure_speed(QGPO, config, make_dataset(), "cpu", Ticks())
    assert list(found.steps) == ["whitening", "behavior", "critic"]


def test_steps_that_differ_are_refused():
    with pytest.raises(ValueError, match="sb3:online-sac': its first steps take less time"):
        within_minutes(OnlineSAC, "laptop", make_dataset(), 10)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_measuring_changes_nothing(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = make_dataset()
    longer_config = longer(config, 2)
    expected = QGPO(longer_config, seed=1, device="cpu").learn(data).get_parameters()
    agent = QGPO(longer_config, seed=1, device="cpu")
    agent.set_spaces(data.observation_space, data.action_space, data.id)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    measure_speed(QGPO, config, data, "cpu", Ticks())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert same_parameters(agent.learn(data).get_parameters(), expected)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("map_it", [False, True])
@pytest.mark.parametrize("n", [1, 5, 6, 7, 16, 99])
def test_the_first_rows_are_a_dataset(n, map_it):
    data = mapped(make_dataset()) if map_it else make_dataset()  # 5, 1, 4 and 6 steps
    first = data.first(n)
    n = min(n, 16)
    assert len(first) == n
    assert first.folder == data.folder
    for name in ("observations", "next_observations", "actions", "rewards", "terminations"):
        assert np.array_equal(getattr(first, name), getattr(data, name)[:n])
    assert (first.terminations | first.truncations)[-1]
    assert first.last_steps[-1]
    assert np.array_equal(first.last_steps[:-1], data.last_steps[: n - 1])


@pytest.mark.parametrize("n", [0, -1, 2.5])
def test_fewer_than_one_row_are_no_dataset(n):
    with pytest.raises(ValueError, match=f"n={n}, expected .*at least 1"):
        make_dataset().first(n)


def test_within_minutes_is_longer_by_what_was_measured(monkeypatch):
    monkeypatch.setattr(speed, "measure_speed", lambda *_: BY_HAND)
    assert within_minutes(QGPO, WHITENED, make_dataset(), 2.5) == longer(WHITENED, 2.0)
    row = QGPO.settings_for("qgpo/hopper/mixed-v0")
    data = make_dataset(id="qgpo/hopper/mixed-v0")
    assert within_minutes(QGPO, "laptop", data, 2.5) == longer(row, 2.0)
