from __future__ import annotations

from dataclasses import replace

import pytest
from agent_tester import CHECKS, Subject
from factory import (
    AEPO_CONFIGS,
    BEST_OF_N_CONFIGS,
    CONFIGS,
    ONE_STEP,
    QIPO_CONFIGS,
    SIR_CONFIGS,
    STACKED,
    WHITENED,
)

from qgpo.agents import AGENTS

SMALL = {"hidden": (8, 8), "batch_size": 8}
OFTEN = {"diffusion_steps": 3, "candidates": 3, "ema_start": 3, "ema_every": 2}
MORE = {
    "BC": {},
    "TD3BC": {},
    "ReBRAC": {},
    "IQL": {},
    "DiffusionQL": OFTEN,
    "FQL": {"flow_steps": 3},
    "IFQL": {"flow_steps": 3, "num_samples": 3},
}
PAPER_TOO = {"IQL", "ReBRAC"}
"""`paper` leaves observations and rewards as they are, by code that all agents of one stage share:
two of them try it"""
SUBJECTS = {
    "QGPO": {
        **CONFIGS,
        "qgf": replace(WHITENED, guidance="qgf", beta=0.1, guidance_bound=1.0),
        "stacked": STACKED,
    },
    "AEPO": AEPO_CONFIGS,
    "OneStepPolicy": {"whitened": ONE_STEP},
    "QIPO": QIPO_CONFIGS,
    "SIR": {"implicit": SIR_CONFIGS["implicit"]},
    "BestOfN": {"whitened": BEST_OF_N_CONFIGS["whitened"]},
    **{
        name: {
            preset: replace(AGENTS[name].presets[preset], steps=11, **SMALL, **more)
            for preset in (("paper", "laptop") if name in PAPER_TOO else ("laptop",))
        }
        for name, more in MORE.items()
    },
}


def test_every_agent_has_subjects():
    assert set(SUBJECTS) == set(AGENTS)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("check", sorted(CHECKS))
@pytest.mark.parametrize(
    ("name", "config"), [(agent, c) for agent, configs in SUBJECTS.items() for c in sorted(configs)]
)
def test_every_agent_passes(name, config, check):
    CHECKS[check](Subject(AGENTS[name], SUBJECTS[name][config]))
