"""When a stage ends, one line says its name, its time and the metric that matters."""

from __future__ import annotations

import numpy as np
import pytest
from factory import WHITENED, make_dataset

from qgpo import QGPO
from qgpo.agents.core.training import is_logged, stage_line


@pytest.mark.parametrize(
    ("seconds", "means", "expected"),
    [
        (3.21, {"loss": 2.0, "excess": 0.125}, "3.2 s, excess cross entropy 0.125"),
        (3.21, {"loss": 2.0, "mse": 0.5}, "3.2 s, squared error of the mean 0.5"),
        (179.6, {"loss": 2.0, "q": 7.0}, "3 min 0 s, loss 2"),
        (61.0, {}, "1 min 1 s"),
    ],
)
def test_a_line_has_time_and_what_matters(seconds, means, expected):
    assert stage_line("1/5 critic", 2000, seconds, means) == f"1/5 critic 2,000 steps in {expected}"


def test_each_stage_is_told_once(capsys):
    agent, dataset, lines = QGPO(WHITENED, seed=0), make_dataset(), []
    agent.training.tell = lines.append
    agent.learn(dataset)
    stages = [stage for stage in agent.stages if stage != "dynamics"]  # it has no steps here
    assert [line.split()[1] for line in lines] == stages
    agent.learn(dataset, reset_num_timesteps=False)  # there is nothing left to do
    assert len(lines) == len(stages)
    agent.training.tell = None
    agent.learn(dataset)
    assert capsys.readouterr() == ("", "")  # as silent as Stable-Baselines3
    agent.learn(dataset, progress_bar=True)
    told = [line for line in capsys.readouterr().err.splitlines() if " steps in " in line]
    assert len(told) == len(stages)
    QGPO(WHITENED, seed=0, verbose=1).learn(dataset)
    told = [line for line in capsys.readouterr().out.splitlines() if " steps in " in line]
    assert [line.split()[1] for line in told] == stages


@pytest.mark.parametrize(("interval", "rows"), [(1000, 20), (2, 20), (1, 40)])
def test_a_short_stage_has_twenty_rows_of_metrics(interval, rows):
    agent = QGPO(WHITENED, seed=0, whitening_steps=40)
    agent.training.history = {stage: [] for stage in agent.stages}
    agent.learn(make_dataset(), log_interval=interval)
    assert len(agent.training.history["whitening"]) == rows


@pytest.mark.parametrize("total", [1, 12, 40, 2250, 9_999])
def test_rows_of_a_short_stage_are_means_of_as_many_steps(total):
    logged = [step for step in range(1, total + 1) if is_logged(step, total, 500)]
    assert len(logged) == min(total, 20)
    assert logged[-1] == total
    assert np.ptp(np.diff([0, *logged])) <= 1


def test_a_long_stage_has_a_row_per_interval_and_one_at_its_end():
    logged = [step for step in range(1, 10_201) if is_logged(step, 10_200, 500)]
    assert logged == [*range(500, 10_001, 500), 10_200]
