"""Which part of a default model makes its samples differ from exact ones, on validation problems.

python benchmarks/exactness_parts.py --problem 3 --output benchmarks/results/exactness_parts.json

Score and guidance are each exact or learned, the noise and the solver the same. Distances are means
over several sets of 10,000 samples, over that of exact sets. The data's own points, resampled by
e^(-beta E), show what the data say without a model. What the file has already stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from exactness_drawn import HALVES, POINTS, SAMPLES
from exactness_measures import distances, noise_floor
from torch import Tensor

from qgpo import EnergyGuidedConfig, EnergyGuidedDiffusion
from qgpo.diffusion import Diffusion
from qgpo.exact import MixtureNetwork, draw_problem, guidance_error
from qgpo.files import replacing


@dataclass
class Args:
    """Parts of the distance."""

    problem: int = 3
    """of the validation half, by its position in exactness_problems.py"""
    beta: float = 10.0
    """inverse temperature"""
    seed: int = 0
    """of data, networks and samples"""
    sets: int = 3
    """sets of samples of each kind, and exact sets that they are compared with"""
    output: Path = Path("benchmarks/results/exactness_parts.json")
    """JSON to add to"""


def main(args: Args) -> None:
    """Train the model, then sample it with parts replaced by the closed form."""
    torch.set_num_threads(1)
    row = HALVES["validation"][args.problem]
    problem = draw_problem(*row)
    x, preference = problem.draw(POINTS, torch.Generator().manual_seed(args.seed))
    base = EnergyGuidedDiffusion(EnergyGuidedConfig(), seed=args.seed, device="cpu")
    base.fit_data(x.float(), progress_bar=False)
    c = replace(base.config, beta=args.beta)
    model = base.with_guidance(c)
    model.fit(x.float(), -preference.float(), resume=True, progress_bar=False)
    standardised = problem.standardised(model.normalizer.mean, model.normalizer.std)
    exact = standardised.tilted(args.beta, model.schedule)
    p = problem.tilted(args.beta, model.schedule).p
    generator = torch.Generator().manual_seed(1000 + args.seed)
    sets = [p.sample(SAMPLES, generator)[0] for _ in range(args.sets)]
    floor = noise_floor(sets, p)
    odds = torch.softmax(args.beta * preference, dim=0)
    closed = Diffusion(MixtureNetwork(exact.q, exact.schedule), exact.schedule, "noise")
    learned = model.guidance_ema

    def exactly(x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return exact.gradient(x_t, t).to(x_t)

    def as_learned(x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return learned.gradient(x_t.float(), t.float(), None).to(x_t)

    def flow(score: Diffusion, guidance: Any, number: int) -> Tensor:
        shape = (SAMPLES, exact.q.dim)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(number))
        z = score.sample(
            noise.double() if score is closed else noise,
            None,
            guidance=guidance,
            guidance_scale=1.0,
            solver=c.solver,
            steps=c.solver_steps,
            spacing=c.spacing,
        )
        return model.decode(z)

    def points(number: int) -> Tensor:
        return x[torch.multinomial(odds, SAMPLES, replacement=True, generator=generator)]

    kinds: dict[str, Callable[[int], Tensor]] = {
        "exact samples": lambda _: p.sample(SAMPLES, generator)[0],
        "exact score, exact guidance": lambda n: flow(closed, exactly, n),
        "learned score, exact guidance": lambda n: flow(model.data_model_ema, exactly, n),
        "exact score, learned guidance": lambda n: flow(closed, as_learned, n),
        "learned score, learned guidance": lambda n: flow(model.data_model_ema, as_learned, n),
        "the data's points, resampled": points,
    }
    entry: dict[str, Any] = {
        "problem": row,
        "beta": args.beta,
        "seed": args.seed,
        "guidance_error": guidance_error(model.guidance, exact, 25, 1_000).relative,
        "effective_points": float(1.0 / torch.sum(odds**2)),
        "parts": {},
    }
    entries = json.loads(args.output.read_text()) if args.output.exists() else []
    for name, draw in kinds.items():
        found = [distances(draw(number), sets, p) for number in range(args.sets)]
        means = {k: [f[k] / floor[k] for f in found] for k in ("sw2", "weights_tv")}
        entry["parts"][name] = means
        print(name, {k: round(float(np.mean(v)), 2) for k, v in means.items()}, flush=True)
        with replacing(args.output) as file:
            file.write((json.dumps([*entries, entry], indent=1) + "\n").encode())


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
