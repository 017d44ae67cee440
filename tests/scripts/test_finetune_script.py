"""scripts/finetune.py: on from a run, on again after a stop, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from agent_tester import Walk
from factory import STACKED, make_dataset

from qgpo import BC, QGPO, load_agent
from qgpo.agents.core import collected
from qgpo.envs.store.writing import write_minari
from qgpo.scripts import finetune


@pytest.fixture
def run(registered_walk):
    data = make_dataset((5,) * 6)
    agent = QGPO(STACKED, device="cpu").learn(registered_walk)
    agent.save("runs/one/checkpoint")
    del data
    return Path("runs/one")
