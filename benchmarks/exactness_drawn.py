"""Guidances on the drawn problems, with the general model's default settings.

`benchmarks/exactness.py --half validation` runs this. A row of the result is one model: its
guidance error, the distances of 10,000 samples to exact ones and between exact ones, CPU-seconds.
A set of 10,000 is far from others by chance, too. So the same noise is also taken through the same
solver with the exact score and the exact guidance.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from exactness_measures import distances, noise_floor
from exactness_problems import DEVELOPMENT, VALIDATION, Row
from torch import Tensor

from qgpo import EnergyGuidedConfig, EnergyGuidedDiffusion
from qgpo.diffusion import Diffusion
from qgpo.exact import DrawnProblem, MixtureNetwork, TiltedMixture, draw_problem, guidance_error
from qgpo.scripts.toy_2d import METHODS

HALVES: dict[str, tuple[Row, ...]] = {"development": DEVELOPMENT, "validation": VALIDATION}
POINTS = 200_000
"""to learn from"""
SAMPLES = 10_000
"""compared"""
SETS = 3
"""of exact samples"""


def rows_of(
    half: str, chosen: Sequence[int], betas: Sequence[float], methods: Sequence[str], seed: int
) -> Iterator[dict[str, Any]]:
    """Train and measure every method on the chosen problems of a half, one row each."""
    for position in chosen:
        row = HALVES[half][position]
        problem = draw_problem(*row)
        x, preference = problem.draw(POINTS, torch.Generator().manual_seed(seed))
        x, energy = x.float(), -preference.float()
        began = time.process_time()
        base = EnergyGuidedDiffusion(EnergyGuidedConfig(), seed=seed, device="cpu")
        base.fit_data(x, progress_bar=False)
        about = {"problem": row, "seed": seed, "data_cpu": time.process_time() - began}
        for beta in betas:
            for method in methods:
                config = replace(base.config, beta=beta, **METHODS[method][1])
                began = time.process_time()
                model = base.with_guidance(config)
                model.fit(x, energy, resume=True, progress_bar=False)
                trained = time.process_time() - began
                measured = measure(model, problem, beta, seed)
                yield {**about, "beta": beta, "method": method, "train_cpu": trained, **measured}


def measure(
    model: EnergyGuidedDiffusion, problem: DrawnProblem, beta: float, seed: int
) -> dict[str, Any]:
    """Error of the guidance, distances of samples, and CPU-seconds of sampling."""
    standardised = problem.standardised(model.normalizer.mean, model.normalizer.std)
    exact = standardised.tilted(beta, model.schedule)
    error = guidance_error(model.guidance, exact, n_times=25, n_samples=1_000)
    p = problem.tilted(beta, model.schedule).p
    generator = torch.Generator().manual_seed(1000 + seed)
    sets = [p.sample(SAMPLES, generator)[0] for _ in range(SETS)]
    began = time.process_time()
    samples = model.sample(SAMPLES)
    seconds = time.process_time() - began
    found = distances(samples, sets, p)
    floor = noise_floor(sets, p)
    flow = distances(model.decode(exact_flow(exact, seed)), sets, p)
    return {
        "guidance_error": error.relative,
        "errors": [round(e, 5) for e in error.errors],
        "sizes": [round(s, 5) for s in error.sizes],
        "sw2": found["sw2"],
        "sw2_exact": floor["sw2"],
        "weights_tv": found["weights_tv"],
        "weights_tv_exact": floor["weights_tv"],
        "sw2_exact_flow": flow["sw2"],
        "weights_tv_exact_flow": flow["weights_tv"],
        "sample_cpu": seconds,
    }


def exact_flow(exact: TiltedMixture, seed: int) -> Tensor:
    """What a model of that seed samples first, with exact score and guidance, standardised."""
    config, shape = EnergyGuidedConfig(), (SAMPLES, exact.q.dim)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    closed = Diffusion(MixtureNetwork(exact.q, exact.schedule), exact.schedule, "noise")
    return closed.sample(
        noise.double(),
        None,
        guidance=exact.gradient,
        guidance_scale=1.0,
        solver=config.solver,
        steps=config.solver_steps,
        spacing=config.spacing,
    )
