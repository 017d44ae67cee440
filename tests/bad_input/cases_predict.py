"""Bad input of predict."""

from __future__ import annotations

import math

import numpy as np
from cases import PREDICT, Case, predict, predict_with
from factory import PAPER_LIKE

from qgpo import QGPO

CASES = [
    Case(
        PREDICT,
        "an agent that was not trained",
        RuntimeError,
        "this QGPO has not been trained: call learn(dataset), or load a file",
        lambda: QGPO(PAPER_LIKE, device="cpu").predict(np.zeros(3)),
    ),
    Case(
        PREDICT,
        "what env.reset() returns",
        ValueError,
        "predict() was given a tuple, by mixing Gym API and SB3's VecEnv API perhaps: "
        "`env.reset()` of Gymnasium returns (observation, info), pass only the observation",
        predict((np.zeros(3), {})),
    ),
    Case(
        PREDICT,
        "an observation of another shape",
        ValueError,
        "observation has shape (4,), expected (3,) or (n, 3)",
        predict(np.zeros(4)),
    ),
    Case(
        PREDICT,
        "a number",
        ValueError,
        "observation has shape (), expected (3,) or (n, 3)",
        predict(1.0),
    ),
    Case(
        PREDICT,
        "a dict",
        ValueError,
        "observation is a dict that is no array of numbers (…); expected shape (3,) or (n, 3)",
        predict({"x": np.zeros(3)}),
    ),
    Case(
        PREDICT,
        "a NaN",
        ValueError,
        "observation has NaN or infinite values: [ 0. nan 0.]",
        predict(np.array([0.0, np.nan, 0.0])),
    ),
    Case(
        PREDICT,
        "an unknown solver",
        ValueError,
        "solver='leapfrog', expected one of […]",
        lambda: predict_with(solver="leapfrog"),
    ),
    Case(
        PREDICT,
        "a solver that draws noise",
        ValueError,
        "solver='sde_dpm_solver_2m' draws noise, where samples must be a function of their first "
        "noise; expected one of […]",
        lambda: predict_with(solver="sde_dpm_solver_2m"),
    ),
    Case(
        PREDICT,
        "a guidance scale that is no number",
        ValueError,
        "guidance_scale=nan, expected a finite number",
        lambda: predict_with(guidance_scale=math.nan),
    ),
    Case(
        PREDICT,
        "no solver steps",
        ValueError,
        "solver steps=0, expected at least 1",
        lambda: predict_with(solver_steps=0),
    ),
]
