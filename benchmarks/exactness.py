"""Measure exactness on Gaussian mixtures, where f*_t and p are known in closed form.

python benchmarks/exactness.py --half validation --seeds 0 1 2 --output validation.json
python benchmarks/exactness.py --dim 2 --output benchmarks/results/exactness_2d.json.xz
python benchmarks/exactness.py --dim 8 --output benchmarks/results/exactness_8d.json.xz

With `--half`: the drawn problems of that half, each with default settings, one row per model; what
the file has already is not measured again. Without it:

The eight-component mixture with e = index / 7. For each beta: the error of every guidance as the
sampler uses it, over t; distances of 10,000 guided samples to exact ones beside the distance
between two exact sets; the same with exact score and exact guidance, solver by solver. Then
sweeps of K and network size at beta = 3 with `--sweep`.
"""

from __future__ import annotations

import json
import lzma
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from exactness_drawn import HALVES, rows_of
from exactness_measures import distances, noise_floor
from torch import Tensor

from qgpo import EnergyGuidedConfig, EnergyGuidedDiffusion
from qgpo.diffusion import Diffusion
from qgpo.exact import (
    GaussianMixture,
    MixtureNetwork,
    TiltedMixture,
    guidance_error,
    ring_of_gaussians,
    tilt_components,
)
from qgpo.files import replacing
from qgpo.scripts.toy_2d import METHODS
from qgpo.solver import SOLVERS


@dataclass
class Args:
    """Exactness on the drawn problems, or on the eight-component mixture."""

    half: Literal["development", "validation"] | None = None
    """which half of the drawn problems; none: the eight-component mixture"""
    problems: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """of the half, by their position in exactness_problems.py"""
    seeds: tuple[int, ...] = (0,)
    """of data, networks and samples (drawn problems)"""

    dim: int = 2
    """dimension of the samples"""
    betas: tuple[float, ...] = (1.0, 3.0, 10.0)
    """inverse temperatures"""
    methods: tuple[str, ...] = tuple(METHODS)
    """guidances besides the flow"""
    flow: bool = True
    """also the energy-weighted flow (schedule ot, Euler), at the second beta"""
    sweep: bool = False
    """also sweep K and the network's width at the second beta"""
    n_data: int = 500_000
    """points to learn from"""
    data_steps: int = 1_500
    """gradient steps of the data model"""
    cep_steps: int = 4_000
    """gradient steps of cep"""
    other_steps: int = 500
    """gradient steps of the other guidances"""
    sharpness: float = 12.0
    """input scale of the networks"""
    components: int = 32
    """of the mixtures that networks correct; 0: networks alone"""
    targets: str = "posterior"
    """posterior or sample (the paper's)"""
    threads: int = 1
    """torch threads"""
    seed: int = 0
    """seed"""
    output: Path = field(default_factory=lambda: Path("benchmarks/results/exactness.json"))
    """JSON to write, compressed where the name ends in .xz"""


def solver_table(
    exact: TiltedMixture, model: EnergyGuidedDiffusion, sets: list[Tensor], p: GaussianMixture
) -> dict[str, Any]:
    """Distances with exact score and exact guidance: the solver's own error, by evaluations."""
    diffusion = Diffusion(MixtureNetwork(exact.q, exact.schedule), exact.schedule, "noise")
    table = {}
    for solver in sorted(set(SOLVERS) - {"euler"}):
        for evaluations in (10, 24, 50):
            for spacing in ("log_snr", "time", "karras"):
                generator = torch.Generator().manual_seed(0)
                noise = torch.randn(
                    len(sets[0]), exact.q.dim, generator=generator, dtype=torch.float64
                )
                z = diffusion.sample(
                    noise,
                    None,
                    guidance=exact.gradient,
                    guidance_scale=1.0,
                    solver=solver,
                    steps=evaluations // SOLVERS[solver].evaluations,
                    spacing=spacing,
                    generator=generator,
                )
                measured = distances(model.decode(z), sets, p)
                table[f"{solver}/{spacing}/{evaluations}"] = {
                    "sw2": measured["sw2"],
                    "weights_tv": measured["weights_tv"],
                }
    return table


def measure(
    model: EnergyGuidedDiffusion, exact: TiltedMixture, sets: list[Tensor], p: GaussianMixture
) -> dict[str, Any]:
    """Guidance error over t and sample distances of one trained model."""
    began = time.monotonic()
    samples = model.sample(len(sets[0]), solver="dpm_solver_2m", steps=50, spacing="log_snr")
    seconds = time.monotonic() - began
    error = guidance_error(lambda x, t: model.guidance(x, t), exact)
    return {
        "guidance_error": error.relative,
        "times": error.times,
        "errors": error.errors,
        "sizes": error.sizes,
        "sample_seconds": seconds,
        **distances(samples, sets, p),
    }


def flow(
    config: EnergyGuidedConfig,
    x: Tensor,
    energy: Tensor,
    sets: list[Tensor],
    p: GaussianMixture,
    args: Args,
) -> dict[str, Any]:
    """Energy-weighted flow matching on the straight path, sampled by Euler's method."""
    on_path = replace(
        config,
        guidance="weighted",
        schedule="ot",
        prediction="flow",
        solver="euler",
        spacing="time",
        solver_steps=100,
        data_steps=args.data_steps // 3,
        guidance_steps=args.data_steps,
    )
    began, cpu = time.monotonic(), time.process_time()
    model = EnergyGuidedDiffusion(on_path, seed=args.seed, device="cpu").fit(x, energy)
    trained = {
        "train_seconds": time.monotonic() - began,
        "train_cpu_seconds": time.process_time() - cpu,
    }
    sampled = distances(model.sample(len(sets[0])), sets, p)
    sampled["dpm_solver_2m"] = distances(
        model.sample(len(sets[0]), solver="dpm_solver_2m", steps=50, spacing="log_snr"), sets, p
    )
    return {**trained, **sampled}


def sweep(
    data_model: EnergyGuidedDiffusion, x: Tensor, energy: Tensor, exact: TiltedMixture, beta: float
) -> list[dict[str, Any]]:
    """CEP's error for several K (rows per step fixed) and widths, 800 steps each."""
    base = replace(data_model.config, beta=beta, guidance="cep", guidance_steps=800)
    variants = [
        replace(base, targets=targets, contrast=k, groups=2048 // k)
        for targets in ("sample", "posterior")
        for k in (16, 128, 512, 2048)
    ]
    variants += [replace(base, energy_hidden=(w, w, w)) for w in (32, 64, 256)]
    variants += [replace(base, guidance_steps=steps) for steps in (200, 400, 1600)]
    variants += [
        replace(base, preconditioned=False),
        replace(base, guidance_options={"labels": "exponential"}),
        replace(base, guidance_options={"labels": "exponential"}, targets="sample"),
    ]
    rows = []
    for config in variants:
        cpu = time.process_time()
        model = data_model.with_guidance(config).fit(x, energy, resume=True)
        seconds = time.process_time() - cpu
        error = guidance_error(lambda z, t, m=model: m.guidance(z, t), exact)
        row = {
            "targets": config.targets,
            "K": config.contrast,
            "groups": config.groups,
            "width": config.energy_hidden[0],
            "steps": config.guidance_steps,
            "labels": config.guidance_options.get("labels", "normalized"),
            "preconditioned": config.preconditioned,
            "guidance_error": error.relative,
            "errors": error.errors,
            "train_cpu_seconds": seconds,
        }
        print({k: v for k, v in row.items() if k != "errors"}, flush=True)
        rows.append(row)
    return rows


def save(args: Args, result: dict[str, Any]) -> None:
    """Write the results so far."""
    args.output.parent.mkdir(parents=True, exist_ok=True)
    opener = lzma.open if args.output.suffix == ".xz" else open
    with opener(args.output, "wt") as file:
        json.dump({"args": asdict(args), **result}, file, indent=1, default=str)


def drawn(args: Args, half: str) -> None:
    """Add rows of the drawn problems to the file."""
    rows = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
    done = {(*row["problem"], row["seed"], row["beta"], row["method"]) for row in rows}
    methods = args.methods if args.methods != tuple(METHODS) else ("cep",)
    for seed in args.seeds:
        for position in args.problems:
            problem = HALVES[half][position]
            left = [
                b for b in args.betas if any((*problem, seed, b, m) not in done for m in methods)
            ]
            for row in rows_of(half, [position], left, methods, seed) if left else ():
                rows.append(row)
                args.output.parent.mkdir(parents=True, exist_ok=True)
                with replacing(args.output) as file:
                    file.write((json.dumps({"half": half, "rows": rows}, indent=1) + "\n").encode())
                print(
                    f"{problem} seed {seed} beta {row['beta']:g} {row['method']}: "
                    f"error {100 * row['guidance_error']:.2f} %, "
                    f"SW2 {row['sw2'] / row['sw2_exact']:.2f}x, "
                    f"weights {row['weights_tv'] / row['weights_tv_exact']:.2f}x, "
                    f"{row['data_cpu'] + row['train_cpu']:.0f} CPU-seconds",
                    flush=True,
                )


def main(args: Args) -> None:
    """Train the data model once, then measure every method at every beta."""
    torch.set_num_threads(args.threads)
    if args.half is not None:
        drawn(args, args.half)
        return
    q = ring_of_gaussians(args.dim)
    x, component = q.sample(args.n_data, torch.Generator().manual_seed(args.seed))
    preference = component.double() / 7.0
    base = EnergyGuidedConfig(
        data_steps=args.data_steps,
        guidance_steps=args.other_steps,
        targets=args.targets,
        sharpness=args.sharpness,
        components=args.components,
    )
    began, cpu = time.monotonic(), time.process_time()
    data_model = EnergyGuidedDiffusion(base, seed=args.seed, device="cpu").fit_data(x.float())
    result: dict[str, Any] = {
        "data_seconds": time.monotonic() - began,
        "data_cpu_seconds": time.process_time() - cpu,
        "betas": {},
    }
    standardised = q.affine(data_model.normalizer.mean, data_model.normalizer.std)
    levels = torch.arange(8, dtype=torch.float64) / 7.0
    for position, beta in enumerate(args.betas):
        exact = tilt_components(standardised, beta * levels, data_model.schedule)
        p = tilt_components(q, beta * levels, data_model.schedule).p
        generator = torch.Generator().manual_seed(1000 + args.seed)
        sets = [p.sample(10_000, generator)[0] for _ in range(6)]
        entry: dict[str, Any] = {"floor": noise_floor(sets, p), "methods": {}}
        entry["exact_by_solver"] = solver_table(exact, data_model, sets, p) if position == 1 else {}
        result["betas"][f"{beta:g}"] = entry
        for method in args.methods:
            steps = args.cep_steps if method == "cep" else args.other_steps
            config = replace(base, beta=beta, guidance_steps=steps, **METHODS[method][1])
            began, cpu = time.monotonic(), time.process_time()
            model = data_model.with_guidance(config).fit(x.float(), -preference, resume=True)
            trained = time.monotonic() - began
            row = {
                "train_seconds": trained,
                "train_cpu_seconds": time.process_time() - cpu,
                **measure(model, exact, sets, p),
            }
            entry["methods"][method] = row
            print(
                f"D={args.dim} beta={beta:g} {method:10s} error {row['guidance_error']:.3f}  "
                f"SW2 {row['sw2']:.4f} ({row['sw2'] / entry['floor']['sw2']:.2f}x)  weights "
                f"{row['weights_tv']:.4f} ({row['weights_tv'] / entry['floor']['weights_tv']:.2f}x)"
                f"  {trained:.0f} s",
                flush=True,
            )
            save(args, result)
        if args.flow and position == 1:
            entry["methods"]["flow"] = flow(
                replace(base, beta=beta), x.float(), -preference, sets, p, args
            )
            print("flow", entry["methods"]["flow"]["sw2"], entry["methods"]["flow"]["weights_tv"])
        if args.sweep and position == 1:
            entry["sweep"] = sweep(data_model, x.float(), -preference, exact, beta)
        save(args, result)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
