"""What is printed in an interactive session is short and says what the object is."""

from __future__ import annotations

import numpy as np
import pytest
from factory import WHITENED, make_dataset

from qgpo import BC, IQL, QGPO, Ensemble
from qgpo.agents.core.checkpoint import Checkpoint
from qgpo.agents.guided.tuning import GuidanceTuning
from qgpo.envs.play.scores import summarize
from qgpo.experiments.results import Results, Run


def ensemble():
    dataset = make_dataset()
    agents = [QGPO(WHITENED, seed=seed, device="cpu") for seed in range(2)]
    for agent in agents:
        agent.set_spaces(dataset.observation_space, dataset.action_space, "the dataset")
    return Ensemble(agents)


def evaluation():
    return summarize("Hopper-v5", [100.0] * 500, [9] * 500, [*range(500)], 0, None)


def results():
    many = np.arange(1000.0)
    about = {"python": "3"}, {"device": "cpu"}
    run = Run("a/b-v0", "BC", 0, None, {None: many}, None, many, "f", 1.0, 1.0, 0, *about)
    return Results({run.key: run}, [run.key])


OBJECTS = {
    "dataset": (
        lambda: make_dataset(lengths=(2, 1000), rewards=np.ones(1002, np.float32)),
        "OfflineDataset('test/made/by-hand-v0': 1,002 transitions in 2 episodes (1 terminated, "
        "1 truncated), observations 3, actions 1, returns 2 to 1000 (mean 501), "
        "no environment named)",
    ),
    "evaluation": (evaluation, "Evaluation(Hopper-v5: 100 [100, 100] (95 %) over 500 episodes)"),
    "tuning": (
        lambda: GuidanceTuning((0.0, 2.0), np.eye(2, 48), np.zeros((2, 48), bool)),
        "GuidanceTuning(best 2 of 0, 2, by 48 episodes each)",
    ),
    "agent": (lambda: BC(device="cpu", seed=3), "BC(seed 3, 0 of 20000 steps on no data, cpu)"),
    "ensemble": (
        ensemble,
        "Ensemble([QGPO(seed 0, 0 of 18 steps on no data, cpu), "
        "QGPO(seed 1, 0 of 18 steps on no data, cpu)])",
    ),
    "checkpoint": (
        lambda: Checkpoint({"agent": "BC"}, {"w": np.ones(500)}, {}, {}),
        "Checkpoint(header={'agent': 'BC'})",
    ),
    "results": (results, "Results(1 runs of BC on a/b-v0)"),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_are_short_in_print(kind):
    make, expected = OBJECTS[kind]
    assert repr(make()) == expected


def test_numbers_of_runs_and_batches_are_left_out():
    dataset = make_dataset()
    agent = IQL(device="cpu")
    for large in (*results().runs.values(), agent.prepare(dataset)):
        text = repr(large)
        assert "array" not in text
        assert "tensor" not in text
