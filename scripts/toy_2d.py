"""Compare kinds of guidance on six two-dimensional problems, by distances to exact samples.

python scripts/toy_2d.py --betas 3 --output runs/toy_2d

For each beta it writes samples_beta3.png (the paper's figure with numbers under each panel),
table_beta3.md and results_beta3.json, and for each problem maps_<problem>_beta3.png (f_t over t).
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from qgpo import EnergyGuidedConfig, EnergyGuidedDiffusion
from qgpo.commands import command
from qgpo.diffusion import diffuse
from qgpo.envs.data.figure import save
from qgpo.envs.toy import TOY_PROBLEMS, draw_toy, resample_toy
from qgpo.exact import EmpiricalTilt, sliced_wasserstein
from qgpo.fields import check_count, check_seed
from qgpo.files import write_whole
from qgpo.scripts._refusals import check_several, one_line
from qgpo.scripts._terminal import any_terminal, description, refuse_repeated

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "cep": ("CEP", {"guidance": "cep"}),
    "weighted": ("weighted", {"guidance": "weighted"}),
    "mse": ("MSE", {"guidance": "mse"}),
    "emse": ("E-MSE", {"guidance": "emse"}),
    "dps": ("DPS", {"guidance": "dps"}),
    "qgf": ("QGF", {"guidance": "qgf"}),
    "analytic": ("analytic 1st", {"guidance": "analytic"}),
    "analytic2": (
        "analytic 2nd",
        {"guidance": "analytic", "guidance_options": {"order": 2, "gradient": "shift"}},
    ),
    "aepo": ("AEPO", {"guidance": "aepo"}),
}
"""label and settings of every guidance"""
MAP_TIMES = (0.1, 0.3, 0.5, 0.7)
"""noise levels at which f_t is drawn and the guidance is measured"""
MAP_SIZE = 60
"""points along an axis of a map"""
POINTS = 3_000
"""points in a panel of samples"""
BLACK, BLUE, GRAY = "#1a202c", "#2b6cb0", "#718096"


@dataclass
class Args:
    """Compare guidances on two-dimensional problems."""

    problems: tuple[str, ...] = tuple(TOY_PROBLEMS)
    """which of the six problems to run"""
    methods: tuple[str, ...] = tuple(METHODS)
    """kinds of guidance to compare"""
    betas: tuple[float, ...] = (3.0,)
    """inverse temperatures: larger ones concentrate p on low energies. All share one data model"""
    n_data: int = 200_000
    """number of points to learn from"""
    n_samples: int = 10_000
    """number of samples per method for the distances"""
    data_steps: int = 1_000
    """gradient steps of the data model"""
    cep_steps: int = 800
    """gradient steps of cep"""
    other_steps: int = 500
    """gradient steps of the other guidances"""
    components: int = 32
    """of the mixtures that the networks of the data model, cep and weighted correct; 0: networks
    alone"""
    targets: str = "posterior"
    """training targets: posterior (averaged over the posterior of the batch, less variance) or
    sample (the paper's)"""
    solver: str = "dpm_solver_2m"
    """solver of the reverse process"""
    solver_steps: int = 50
    """solver steps per sample: more are slower and more exact"""
    workers: int = 2
    """number of processes, with one torch thread each"""
    seed: int = 0
    """seed of data, networks and samples"""
    output: Path = Path("runs/toy_2d")
    """folder for pictures and tables"""


class Comparison(NamedTuple):
    """All methods on one problem at one beta."""

    numbers: dict[str, Any]
    """distances, errors of the guidance and seconds, as written to the JSON"""
    samples: dict[str, NDArray[np.float32]]
    """points (POINTS, 2) of q (`data`), of p (`exact`) and of every method"""
    maps: dict[str, dict[float, NDArray[np.float32]]]
    """f_t on a grid at each of MAP_TIMES, `exact` and of every method that has an f"""


def configuration(args: Args) -> EnergyGuidedConfig:
    """Of the data model."""
    return EnergyGuidedConfig(
        data_steps=args.data_steps,
        components=args.components,
        targets=args.targets,
        solver=args.solver,
        solver_steps=args.solver_steps,
    )


def study(args: Args, problem: str) -> dict[float, Comparison]:
    """Train the data model of one problem, and compare the methods at every beta."""
    torch.set_num_threads(1)
    data = draw_toy(problem, args.n_data, seed=args.seed)
    truth = draw_toy(problem, 1_000_000, seed=args.seed + 1)
    began = time.monotonic()
    model = EnergyGuidedDiffusion(configuration(args), seed=args.seed, device="cpu").fit_data(
        data[0], progress_bar=False
    )
    seconds = time.monotonic() - began
    return {beta: compare(args, model, data, truth, beta, seconds) for beta in args.betas}


def compare(
    args: Args,
    data_model: EnergyGuidedDiffusion,
    data: tuple[Tensor, Tensor],
    truth: tuple[Tensor, Tensor],
    beta: float,
    data_seconds: float,
) -> Comparison:
    """Train and sample every method; data and truth are points (N, 2) and preferences (N,)."""
    x, preference = data
    sets = [resample_toy(*truth, beta, args.n_samples, seed) for seed in range(4)]
    floors = [sliced_wasserstein(sets[i], sets[j]) for i in range(4) for j in range(i)]
    points, f_0 = data_model.encode(x[:30_000]), beta * preference[:30_000]
    tilt = EmpiricalTilt(points, f_0, data_model.schedule)
    rows: dict[str, Any] = {}
    samples = {"data": x[:POINTS].numpy(), "exact": sets[0][:POINTS].numpy()}
    maps = {"exact": f_maps(tilt.f)}
    for method in args.methods:
        steps = args.cep_steps if method == "cep" else args.other_steps
        config = replace(data_model.config, beta=beta, guidance_steps=steps, **METHODS[method][1])
        began = time.monotonic()
        model = data_model.with_guidance(config).fit(
            x, -preference, progress_bar=False, resume=True
        )
        trained = time.monotonic()
        drawn = model.sample(args.n_samples)
        sampled = time.monotonic()
        rows[method] = {
            "sw2": float(np.mean([sliced_wasserstein(drawn, s) for s in sets])),
            "finite": bool(torch.isfinite(drawn).all()),
            "guidance_error": guidance_errors(model, tilt, sets[0][:1000]),
            "train_seconds": trained - began,
            "sample_seconds": sampled - trained,
        }
        samples[method] = drawn[:POINTS].numpy()
        if config.guidance != "weighted":
            maps[method] = f_maps(model.f)
    numbers = {"two_exact_sets": float(np.mean(floors)), "data_seconds": data_seconds}
    return Comparison({**numbers, "methods": rows}, samples, maps)


def f_maps(f: Callable[[Tensor, Tensor], Tensor]) -> dict[float, NDArray[np.float32]]:
    """f_t on a grid of standardised noisy points, (MAP_SIZE, MAP_SIZE) at each map time."""
    axis = torch.linspace(-2.2, 2.2, MAP_SIZE)
    z = torch.cartesian_prod(axis, axis)
    return {t: f(z, torch.full((len(z),), t)).reshape(MAP_SIZE, -1).numpy() for t in MAP_TIMES}


def guidance_errors(
    model: EnergyGuidedDiffusion, tilt: EmpiricalTilt, exact: Tensor
) -> dict[float, float]:
    """Relative error of grad f at noisy samples of p, at each map time."""
    errors = {}
    generator = torch.Generator().manual_seed(0)
    z = model.encode(exact)
    for level in MAP_TIMES:
        t = torch.full((len(z),), level)
        z_t = diffuse(z, t, torch.randn(z.shape, generator=generator), tilt.schedule)
        expected = tilt.gradient(z_t, t)
        difference = torch.linalg.vector_norm(model.guidance(z_t, t) - expected)
        errors[level] = float(difference / torch.linalg.vector_norm(expected))
    return errors


def draw_samples(path: Path, comparisons: dict[str, Comparison], beta: float) -> None:
    """One row per problem, one column per method, the distance under each panel."""
    names = list(next(iter(comparisons.values())).samples)
    titles = {"data": "data q", "exact": "exact p"} | {m: METHODS[m][0] for m in METHODS}
    size = (1.55 * len(names), 1.85 * len(comparisons) + 0.6)
    figure = Figure(size, layout="constrained")
    grid = figure.subplots(len(comparisons), len(names), squeeze=False)
    for axes, (problem, comparison) in zip(grid, comparisons.items(), strict=True):
        floor = comparison.numbers["two_exact_sets"]
        captions = {"data": "", "exact": f"SW$_2$ {floor:.3f}"}
        for method, row in comparison.numbers["methods"].items():
            captions[method] = f"{row['sw2']:.3f}  ({row['sw2'] / floor:.1f}x)"
        limit = 1.1 * float(np.abs(comparison.samples["data"]).max())
        for axis, (name, points) in zip(axes, comparison.samples.items(), strict=True):
            axis.scatter(points[:, 0], points[:, 1], s=0.6, lw=0, color=BLUE, rasterized=True)
            axis.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect=1)
            color = BLACK if name in METHODS else GRAY
            axis.set_xlabel(captions[name], fontsize=8, color=color, labelpad=2)
        axes[0].set_ylabel(problem, fontsize=9)
    for axis, name in zip(grid[0], names, strict=True):
        axis.set_title(titles[name], fontsize=9)
    figure.suptitle(
        f"p ~ q exp({beta:g} e): sliced Wasserstein-2 to exact samples; under 'exact p' the "
        "distance between two exact sets",
        fontsize=9,
    )
    save(figure, path)


def draw_maps(path: Path, problem: str, comparison: Comparison, beta: float) -> None:
    """f_t of every method over t, up to a constant, with the error of its gradient."""
    numbers, _, maps = comparison
    names = [name for name in ("exact", *METHODS) if name in maps]
    size = (1.6 * len(MAP_TIMES) + 0.4, 1.75 * len(names) + 0.5)
    figure = Figure(size, layout="constrained")
    grid = figure.subplots(len(names), len(MAP_TIMES), squeeze=False)
    for axes, name in zip(grid, names, strict=True):
        for axis, level in zip(axes, MAP_TIMES, strict=True):
            exact, values = maps["exact"][level], maps[name][level]
            shifted = values - np.median(values) + np.median(exact)
            axis.imshow(shifted.T, origin="lower", vmin=float(exact.min()), vmax=float(exact.max()))
            axis.set(xticks=[], yticks=[])
            if name != "exact":
                error = numbers["methods"][name]["guidance_error"][level]
                axis.set_xlabel(f"gradient off by {100 * error:.0f} %", fontsize=7, labelpad=2)
        axes[0].set_ylabel("exact" if name == "exact" else METHODS[name][0], fontsize=9)
    for axis, level in zip(grid[0], MAP_TIMES, strict=True):
        axis.set_title(f"t = {level:g}", fontsize=9)
    figure.suptitle(f"f_t, {problem}, beta = {beta:g}", fontsize=9)
    save(figure, path)


def table(comparisons: dict[str, Comparison], methods: tuple[str, ...]) -> str:
    """Distances as Markdown, with the ratio to the distance between two exact sets."""
    header = ["problem", "two exact sets", *(METHODS[m][0] for m in methods)]
    rows, ratios = [], []
    for problem, (numbers, _, _) in comparisons.items():
        floor = numbers["two_exact_sets"]
        distances = [numbers["methods"][m]["sw2"] for m in methods]
        cells = [f"{distance:.3f} ({distance / floor:.1f}x)" for distance in distances]
        rows.append([problem, f"{floor:.3f}", *cells])
        ratios.append(np.array(distances) / floor)
    means = np.exp(np.mean(np.log(ratios), axis=0))
    rows.append(["geometric mean", "1.0x", *(f"{mean:.1f}x" for mean in means)])
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def write(args: Args, results: dict[str, dict[float, Comparison]], seconds: float) -> None:
    """Figures, Markdown and JSON of every beta; results by problem and beta."""
    args.output.mkdir(parents=True, exist_ok=True)
    for beta in args.betas:
        tag = f"beta{beta:g}"
        comparisons = {problem: betas[beta] for problem, betas in results.items()}
        draw_samples(args.output / f"samples_{tag}.png", comparisons, beta)
        text = table(comparisons, args.methods)
        write_whole(args.output / f"table_{tag}.md", f"{text}\n".encode())
        print(f"\nbeta = {beta:g}: sliced Wasserstein-2 to exact samples\n{text}")
        for problem, comparison in comparisons.items():
            draw_maps(args.output / f"maps_{problem}_{tag}.png", problem, comparison, beta)
        numbers = {problem: comparison.numbers for problem, comparison in comparisons.items()}
        about = {"args": asdict(args), "beta": beta, "seconds": seconds, "problems": numbers}
        content = json.dumps(about, indent=2, default=str).encode()
        write_whole(args.output / f"results_{tag}.json", content)


def check(args: Args) -> None:
    """Raise ValueError for what would be found out after minutes, or write nothing."""
    for name, choices in (("problems", TOY_PROBLEMS), ("methods", METHODS)):
        check_several(f"--{name}", getattr(args, name))
        for value in getattr(args, name):
            if value not in choices:
                raise ValueError(f"--{name} {value}: expected some of {list(choices)}")
    check_several("--betas", [f"{beta:g}" for beta in args.betas])
    for beta in args.betas:
        replace(configuration(args), beta=beta)
    for name in ("workers", "n_samples", "cep_steps", "other_steps"):
        check_count(f"--{name.replace('_', '-')}", getattr(args, name))
    check_count("--n-data", args.n_data, low=2)
    check_seed(args.seed)


@one_line(RuntimeError)
def main(args: Args) -> None:
    """Run the problems in parallel and write everything."""
    check(args)
    began = time.monotonic()
    results = {}
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(max_workers=args.workers, mp_context=context) as pool:
            studies = pool.map(study, repeat(args), args.problems)
            for problem, comparisons in zip(args.problems, studies, strict=True):
                print(f"{problem} done after {time.monotonic() - began:.0f} s", flush=True)
                results[problem] = comparisons
    finally:
        seconds = time.monotonic() - began
        if results:
            write(args, results, seconds)
    print(f"\n{seconds:.0f} s; figures and tables in {args.output}")


@any_terminal()
def cli() -> None:
    """Entry point."""
    refuse_repeated(Args, sys.argv[1:])
    main(tyro.cli(Args, prog=command("toy_2d"), description=description(__doc__)))


if __name__ == "__main__":
    cli()
