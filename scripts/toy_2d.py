"""The two-dimensional study: guidances on the six problems, with distances.

python scripts/toy_2d.py --betas 3 --output runs/toy_2d

Writes, per beta, samples_beta3.png (the paper's figure with numbers under each panel),
table_beta3.md and results_beta3.json, and per problem maps_<problem>_beta3.png (f_t over t).
"""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import tyro
from torch import Tensor

from qgpo import EnergyGuidedConfig, EnergyGuidedDiffusion
from qgpo.diffusion import diffuse
from qgpo.envs.toy import TOY_PROBLEMS, draw_toy, resample_toy
from qgpo.exact.distances import sliced_wasserstein
from qgpo.exact.empirical import EmpiricalTilt

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "cep": ("CEP", {"guidance": "cep"}),
    "weighted": ("weighted", {"guidance": "weighted"}),
    "mse": ("MSE", {"guidance": "mse"}),
    "emse": ("E-MSE", {"guidance": "emse"}),
    "dps": ("DPS", {"guidance": "dps"}),
    "analytic": ("analytic 1st", {"guidance": "analytic"}),
    "analytic2": (
        "analytic 2nd",
        {"guidance": "analytic", "guidance_options": {"order": 2, "gradient": "shift"}},
    ),
}
MAP_TIMES = (0.1, 0.3, 0.5, 0.7)
INK, MUTED = "#1a202c", "#718096"


@dataclass
class Args:
    """Compare guidances on two-dimensional problems."""

    problems: tuple[str, ...] = tuple(TOY_PROBLEMS)
    """which of the six problems"""
    methods: tuple[str, ...] = tuple(METHODS)
    """which guidances"""
    betas: tuple[float, ...] = (3.0,)
    """inverse temperatures; the data model is shared between them"""
    n_data: int = 200_000
    """points to learn from"""
    n_samples: int = 10_000
    """samples compared"""
    data_steps: int = 1_000
    """gradient steps of the data model"""
    cep_steps: int = 800
    """gradient steps of cep"""
    other_steps: int = 500
    """gradient steps of the other guidances"""
    targets: str = "posterior"
    """posterior: training targets averaged over the batch's posterior; sample: the paper's"""
    solver: str = "dpm_solver_2m"
    """solver of the reverse process"""
    solver_steps: int = 50
    """its steps"""
    workers: int = 2
    """processes, one torch thread each"""
    seed: int = 0
    """seed of everything"""
    output: Path = field(default_factory=lambda: Path("runs/toy_2d"))
    """folder for figures and tables"""


def study(args: Args, problem: str) -> dict[str, Any]:
    """All methods and betas on one problem: numbers, some samples and the maps of f."""
    torch.set_num_threads(1)
    x, preference = draw_toy(problem, args.n_data, seed=args.seed)
    truth = draw_toy(problem, 1_000_000, seed=args.seed + 1)
    base = EnergyGuidedConfig(
        data_steps=args.data_steps,
        guidance_steps=args.other_steps,
        targets=args.targets,
        solver=args.solver,
        solver_steps=args.solver_steps,
    )
    began = time.monotonic()
    data_model = EnergyGuidedDiffusion(base, seed=args.seed, device="cpu").fit_data(x)
    out: dict[str, Any] = {
        "problem": problem,
        "data_seconds": time.monotonic() - began,
        "data": x[:3000].numpy(),
        "betas": {},
    }
    for beta in args.betas:
        sets = [resample_toy(*truth, beta, args.n_samples, seed) for seed in range(4)]
        floors = [sliced_wasserstein(sets[i], sets[j]) for i in range(4) for j in range(i)]
        entry: dict[str, Any] = {
            "exact": sets[0][:3000].numpy(),
            "floor": float(np.mean(floors)),
            "methods": {},
            "maps": {},
        }
        tilt = EmpiricalTilt(data_model.encode(x[:30_000]), beta * preference[:30_000], SCHEDULE)
        entry["maps"]["exact"] = _maps(lambda z, t, tilt=tilt: tilt.f(z, t))
        for method in args.methods:
            steps = args.cep_steps if method == "cep" else args.other_steps
            config = replace(base, beta=beta, guidance_steps=steps, **METHODS[method][1])
            began = time.monotonic()
            model = data_model.with_guidance(config).fit(x, -preference, resume=True)
            trained = time.monotonic()
            samples = model.sample(args.n_samples)
            row = {
                "sw2": float(np.mean([sliced_wasserstein(samples, s) for s in sets])),
                "finite": bool(torch.isfinite(samples).all()),
                "guidance_error": _guidance_errors(model, tilt, sets[0]),
                "train_seconds": trained - began,
                "sample_seconds": time.monotonic() - trained,
            }
            entry["methods"][method] = {**row, "samples": samples[:3000].numpy()}
            if config.guidance != "weighted":
                entry["maps"][method] = _maps(model.f)
        out["betas"][beta] = entry
    return out


SCHEDULE = EnergyGuidedDiffusion(device="cpu").schedule


def _grid() -> Tensor:
    axis = torch.linspace(-2.2, 2.2, 60)
    return torch.cartesian_prod(axis, axis)


def _maps(f: Any) -> dict[float, np.ndarray[Any, Any]]:
    """The function f on a grid of standardised noisy points, at each of the map times."""
    z = _grid()
    return {t: f(z, torch.full((len(z),), t)).numpy().reshape(60, 60) for t in MAP_TIMES}


def _guidance_errors(
    model: EnergyGuidedDiffusion, tilt: EmpiricalTilt, exact: Tensor
) -> dict[float, float]:
    """Relative error of sigma grad f under p_t at the map times, against the empirical f*."""
    errors = {}
    generator = torch.Generator().manual_seed(0)
    for time_ in MAP_TIMES:
        z = model.encode(exact[:1000])
        t = torch.full((len(z),), time_)
        noise = torch.randn(z.shape, generator=generator)
        z_t = diffuse(z, t, noise, tilt.schedule)
        true = tilt.gradient(z_t, t)
        difference = torch.linalg.vector_norm(model.guidance(z_t, t) - true)
        errors[time_] = float(difference / torch.linalg.vector_norm(true))
    return errors


def draw_samples(path: Path, results: list[dict[str, Any]], beta: float, methods: Any) -> None:
    """One row per problem, one column per method, the distance under each panel."""
    import matplotlib.pyplot as plt

    columns = ["data q", "exact p", *(METHODS[m][0] for m in methods)]
    figure, axes = plt.subplots(
        len(results),
        len(columns),
        figsize=(1.55 * len(columns), 1.85 * len(results) + 0.6),
        layout="constrained",
        squeeze=False,
    )
    for row, result in enumerate(results):
        entry = result["betas"][beta]
        panels = [(result["data"], ""), (entry["exact"], f"SW$_2$ {entry['floor']:.3f}")]
        for method in methods:
            m = entry["methods"][method]
            ratio = m["sw2"] / entry["floor"]
            panels.append((m["samples"], f"{m['sw2']:.3f}  ({ratio:.1f}x)"))
        limit = 1.1 * float(np.abs(result["data"]).max())
        for column, (points, text) in enumerate(panels):
            axis = axes[row, column]
            axis.scatter(points[:, 0], points[:, 1], s=0.6, lw=0, color="#2b6cb0", rasterized=True)
            axis.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect=1)
            axis.set_xlabel(text, fontsize=8, color=INK if column > 1 else MUTED, labelpad=2)
            if row == 0:
                axis.set_title(columns[column], fontsize=9)
            if column == 0:
                axis.set_ylabel(result["problem"], fontsize=9)
    figure.suptitle(
        f"p ~ q exp({beta:g} e): sliced Wasserstein-2 to exact samples; under 'exact p' the "
        "distance between two exact sets",
        fontsize=9,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_maps(path: Path, result: dict[str, Any], beta: float) -> None:
    """The function f_t of every method over t, up to a constant, with the gradient's error."""
    import matplotlib.pyplot as plt

    entry = result["betas"][beta]
    rows = [name for name in ("exact", *METHODS) if name in entry["maps"]]
    figure, axes = plt.subplots(
        len(rows),
        len(MAP_TIMES),
        figsize=(1.6 * len(MAP_TIMES) + 0.4, 1.75 * len(rows) + 0.5),
        layout="constrained",
        squeeze=False,
    )
    for column, time_ in enumerate(MAP_TIMES):
        reference = entry["maps"]["exact"][time_]
        low, high = float(reference.min()), float(reference.max())
        for row, name in enumerate(rows):
            axis, values = axes[row, column], entry["maps"][name][time_]
            shifted = values - np.median(values) + np.median(reference)
            axis.imshow(
                shifted.T, origin="lower", vmin=low, vmax=high, cmap="viridis", aspect="equal"
            )
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(f"t = {time_:g}", fontsize=9)
            else:
                error = entry["methods"][name]["guidance_error"][time_]
                axis.set_xlabel(f"gradient off by {100 * error:.0f} %", fontsize=7, labelpad=2)
            if column == 0:
                axis.set_ylabel("exact" if name == "exact" else METHODS[name][0], fontsize=9)
    figure.suptitle(f"f_t, {result['problem']}, beta = {beta:g}", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def table(results: list[dict[str, Any]], beta: float, methods: Any) -> str:
    """Distances as Markdown, with the ratio to the distance between two exact sets."""
    header = ["problem", "two exact sets", *(METHODS[m][0] for m in methods)]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    ratios: dict[str, list[float]] = {m: [] for m in methods}
    for result in results:
        entry = result["betas"][beta]
        cells = [result["problem"], f"{entry['floor']:.3f}"]
        for method in methods:
            sw2 = entry["methods"][method]["sw2"]
            ratios[method].append(sw2 / entry["floor"])
            cells.append(f"{sw2:.3f} ({ratios[method][-1]:.1f}x)")
        lines.append("| " + " | ".join(cells) + " |")
    means = [f"{math.exp(float(np.mean(np.log(ratios[m])))):.1f}x" for m in methods]
    lines.append("| geometric mean | 1.0x | " + " | ".join(means) + " |")
    return "\n".join(lines)


def write(args: Args, results: list[dict[str, Any]], seconds: float) -> None:
    """Figures, Markdown and JSON of every beta."""
    mpl.use("Agg")
    args.output.mkdir(parents=True, exist_ok=True)
    for beta in args.betas:
        tag = f"beta{beta:g}"
        draw_samples(args.output / f"samples_{tag}.png", results, beta, args.methods)
        text = table(results, beta, args.methods)
        (args.output / f"table_{tag}.md").write_text(text + "\n")
        print(f"\nbeta = {beta:g}: sliced Wasserstein-2 to exact samples\n{text}")
        for result in results:
            draw_maps(args.output / f"maps_{result['problem']}_{tag}.png", result, beta)
        numbers = {
            result["problem"]: {
                "two_exact_sets": result["betas"][beta]["floor"],
                "data_seconds": result["data_seconds"],
                "methods": {
                    name: {k: v for k, v in row.items() if k != "samples"}
                    for name, row in result["betas"][beta]["methods"].items()
                },
            }
            for result in results
        }
        about = {"args": asdict(args), "beta": beta, "seconds": seconds, "problems": numbers}
        (args.output / f"results_{tag}.json").write_text(json.dumps(about, indent=2, default=str))


def main(args: Args) -> None:
    """Run the problems in parallel and write everything."""
    for name, given, choices in (
        ("problems", args.problems, TOY_PROBLEMS),
        ("methods", args.methods, METHODS),
    ):
        for value in given:
            if value not in choices:
                raise SystemExit(f"--{name} {value}: expected some of {list(choices)}")
    began = time.monotonic()
    results = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=args.workers, mp_context=context) as pool:
        for result in pool.map(study, [args] * len(args.problems), args.problems):
            print(f"{result['problem']} done after {time.monotonic() - began:.0f} s", flush=True)
            results.append(result)
    seconds = time.monotonic() - began
    write(args, results, seconds)
    print(f"\n{seconds:.0f} s; figures and tables in {args.output}")


def cli() -> None:
    """Entry point."""
    main(tyro.cli(Args, description=__doc__))


if __name__ == "__main__":
    cli()
