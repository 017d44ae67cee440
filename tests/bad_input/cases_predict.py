"""Bad input of predict."""

from __future__ import annotations

import math

import numpy as np
from cases import PREDICT, Case, agent, predict, predict_with
from factory import PAPER_LIKE

from qgpo import QGPO

CASES = [
    Case(
        PREDICT,
        "an untrained agent",
        RuntimeError,
        "this QGPO has not been trained: call learn(dataset), or load a file",
        lambda: QGPO(PAPER_LIKE, device="cpu").predict(np.zeros(3)),
    ),
    Case(
        PREDICT,
        "the tuple that env.reset() returns",
        ValueError,
        "predict() was given a tuple: you are probably mixing Gym API and SB3's VecEnv API. "
        "Gymnasium's `env.reset()` returns (observation, info); pass only the observation",
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
        "observation is a dict, which is not an array of numbers (…); expected shape (3,) or "
        "(n, 3)",
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
        "an observation far beyond the data",
        ValueError,
        "the action of this QGPO is not finite for observation 0: its largest value is "
        "-3.3e+38, in column 1; expected observations like those in the data",
        predict(np.array([0.0, -3.3e38, 3.2e38])),
    ),
    Case(
        PREDICT,
        "text",
        ValueError,
        "observation is a list, which is not an array of numbers (…); expected shape (3,) or "
        "(n, 3)",
        predict(["1", "2", "3"]),
    ),
    Case(
        PREDICT,
        "masked values",
        ValueError,
        "observation is a MaskedArray, which is not an array of numbers (…masked…); expected "
        "shape (3,) or (n, 3)",
        predict(np.ma.array(np.ones(3), mask=[True, False, False])),
    ),
    Case(
        PREDICT,
        "a deterministic that is not a boolean",
        ValueError,
        "deterministic='no', expected True or False",
        lambda: agent().predict(np.zeros(3), deterministic="no"),
    ),
    Case(
        PREDICT,
        "solver steps that are not an integer",
        ValueError,
        "solver steps=2.5, expected an integer of at least 1",
        lambda: predict_with(solver_steps=2.5),
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
        "solver='sde_dpm_solver_2m' draws noise at every step, but samples must be a function "
        "of the initial noise; expected one of […]",
        lambda: predict_with(solver="sde_dpm_solver_2m"),
    ),
    Case(
        PREDICT,
        "a guidance scale that is not a number",
        ValueError,
        "guidance_scale=nan, expected a finite number in [0, 1e+09]",
        lambda: predict_with(guidance_scale=math.nan),
    ),
    Case(
        PREDICT,
        "a negative guidance scale",
        ValueError,
        "guidance_scale=-1.0, expected a finite number in [0, 1e+09]",
        lambda: predict_with(guidance_scale=-1.0),
    ),
    Case(
        PREDICT,
        "solver_steps=0",
        ValueError,
        "solver steps=0, expected at least 1",
        lambda: predict_with(solver_steps=0),
    ),
]
