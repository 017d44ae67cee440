"""What limits contrastive energy prediction, part by part, on one drawn problem.

python benchmarks/exactness_limits.py --output benchmarks/results/exactness_limits.json

The relative error of the guidance at beta = 3 of the plain network (no mixture), trained with
labels that differ in nothing else: f*_t itself, posterior means in groups of K, single samples.
Then what the finite contrast alone does, where f has one unknown. Then the sampler with exact
score and exact guidance, by steps, and with the data model's score and the exact guidance.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from exactness_measures import distances, noise_floor
from exactness_problems import DEVELOPMENT
from torch import Tensor

from qgpo import EnergyGuidedConfig, EnergyGuidedDiffusion
from qgpo.agents.core.training import average, half_cosine
from qgpo.diffusion import Diffusion
from qgpo.exact import MixtureNetwork, TiltedMixture, draw_problem, guidance_error
from qgpo.guidance.base import LearnedEnergy, Samples, log_mean_exp_label, noisy_groups
from qgpo.guidance.cep import cep_loss

FLIP = 0.2
"""probability that the noisy channel of `finite_contrast` shows the other value"""
GAP = 3.0
"""f_0 of the one value above the other's"""


@dataclass
class Args:
    """Parts of the error."""

    problem: int = 0
    """which row of the development half"""
    beta: float = 3.0
    """inverse temperature"""
    steps: int = 600
    """gradient steps of each network"""
    rows: int = 2048
    """noisy samples per step"""
    seed: int = 0
    """seed"""
    output: Path = Path("benchmarks/results/exactness_limits.json")
    """JSON to write"""


Label = Callable[[Samples, Any], Tensor]
"""labels (B, K) of noisy groups"""


def train(
    model: EnergyGuidedDiffusion, data: Samples, label: Label, targets: str, k: int, args: Args
) -> None:
    """CEP's loss with given labels, otherwise as `EnergyGuidedDiffusion` trains."""
    guidance, copied = model.guidance_model, model.guidance_ema
    assert isinstance(guidance, LearnedEnergy)
    optimizer = torch.optim.Adam(guidance.parameters(), fused=True)
    generator = torch.Generator().manual_seed(args.seed)
    shape = (args.rows // k, k)
    for step in range(args.steps):
        rows = torch.randint(len(data.x_0), shape, generator=generator)
        groups = Samples(data.x_0[rows], data.scaled_energy[rows])
        noisy = noisy_groups(groups.x_0, model.schedule, targets, generator)
        f = guidance.f(noisy.x_t.flatten(0, 1), noisy.t.flatten(), None).reshape(shape)
        loss, _ = cep_loss(f, label(groups, noisy))
        optimizer.param_groups[0]["lr"] = half_cosine(5e-3, step, args.steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average(guidance, copied, 0.999, step)


def labels_of(exact: TiltedMixture) -> dict[str, tuple[str, Label]]:
    """Targets and labels by name."""

    def closed_form(groups: Samples, noisy: Any) -> Tensor:
        f = exact.f(noisy.x_t.flatten(0, 1), noisy.t.flatten().double())
        return f.reshape(groups.scaled_energy.shape).float()

    def of_batch(groups: Samples, noisy: Any) -> Tensor:
        return log_mean_exp_label(groups.scaled_energy, noisy.log_posterior)

    return {
        "closed form": ("sample", closed_form),
        "posterior": ("posterior", of_batch),
        "sample": ("sample", of_batch),
    }


def finite_contrast(k: int, seed: int = 0, draws: int = 400_000) -> float:
    """Relative error of the minimiser of Eq. 13 in groups of K, where f has one unknown.

    x_0 is one of two values of equal probability, x_t shows the other one with probability FLIP.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (max(1, draws // k), k)
    x_0 = (torch.rand(shape, generator=generator, dtype=torch.float64) < 0.5).double()
    flips = torch.rand(shape, generator=generator, dtype=torch.float64) < FLIP
    x_t = torch.where(flips, 1.0 - x_0, x_0)
    label = torch.softmax(GAP * x_0, dim=-1)
    low, high = torch.tensor(0.0).double(), torch.tensor(GAP).double()
    for _ in range(50):  # the loss is convex in the unknown: find where its slope is zero
        middle = 0.5 * (low + high)
        slope = torch.sum((torch.softmax(middle * x_t, dim=-1) - label) * x_t)
        low, high = (middle, high) if slope < 0 else (low, middle)
    tilt = torch.tensor(GAP).exp()
    true = torch.log(((1 - FLIP) * tilt + FLIP) / ((1 - FLIP) + FLIP * tilt))
    return float(low / true - 1.0)


def solver(
    exact: TiltedMixture, model: EnergyGuidedDiffusion, sets: list[Tensor], p: Any
) -> dict[str, Any]:
    """Distances of samples by score and steps, guidance exact."""
    closed = Diffusion(MixtureNetwork(exact.q, exact.schedule), exact.schedule, "noise")
    found = {}
    runs = [("exact score", closed, steps) for steps in (10, 25, 50)]
    runs.append(("data model", model.data_model_ema, 50))
    for name, diffusion, steps in runs:
        generator = torch.Generator().manual_seed(3)
        noise = torch.randn(sets[0].shape, generator=generator, dtype=torch.float64)
        z = diffusion.sample(
            noise if diffusion is closed else noise.float(),
            None,
            guidance=lambda x, t, c: exact.gradient(x, t).to(x),
            guidance_scale=1.0,
            steps=steps,
            spacing="log_snr",
        )
        found[f"{name}, {steps} steps"] = distances(model.decode(z), sets, p)
    return found


def main(args: Args) -> None:
    """Measure every part, and write after each."""
    torch.set_num_threads(1)
    row = DEVELOPMENT[args.problem]
    problem = draw_problem(*row)
    x, preference = problem.draw(200_000, torch.Generator().manual_seed(args.seed))
    config = EnergyGuidedConfig(beta=args.beta)
    data_model = EnergyGuidedDiffusion(config, seed=args.seed, device="cpu")
    data_model.fit_data(x.float(), progress_bar=False)
    mean, std = data_model.normalizer.mean, data_model.normalizer.std
    exact = problem.standardised(mean, std).tilted(args.beta, data_model.schedule)
    data = Samples(data_model.encode(x.float()), (args.beta * preference).float())
    settings = {name: value for name, value in asdict(args).items() if name != "output"}
    result: dict[str, Any] = {"args": settings, "problem": row, "labels": []}
    p = problem.tilted(args.beta, data_model.schedule).p
    generator = torch.Generator().manual_seed(1000 + args.seed)
    sets = [p.sample(10_000, generator)[0] for _ in range(4)]
    result["floor"] = noise_floor(sets, p)
    result["sampler"] = solver(exact, data_model, sets, p)
    result["finite_contrast"] = {k: finite_contrast(k) for k in (4, 16, 64, 256, 1024, 4096)}
    kinds = labels_of(exact)
    runs = [("closed form", 512), ("posterior", 512), ("sample", 512), ("sample", 16)]
    for name, k in runs:
        plain = EnergyGuidedDiffusion(replace(config, components=0), seed=args.seed, device="cpu")
        plain._build(x.shape[1], 0, True)
        began = time.process_time()
        train(plain, data, kinds[name][1], kinds[name][0], k, args)
        error = guidance_error(plain.guidance, exact, n_times=25, n_samples=1000)
        entry = {"labels": name, "K": k, **asdict(error), "cpu": time.process_time() - began}
        result["labels"].append(entry)
        print(name, k, f"{100 * error.relative:.2f} %", flush=True)
        args.output.write_text(json.dumps(result, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
