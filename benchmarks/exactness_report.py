"""Turn the JSON of benchmarks/exactness.py into a table and the curves over t.

python benchmarks/exactness_report.py --results benchmarks/results/exactness_2d.json.xz
"""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from qgpo.envs.data.figure import save
from qgpo.experiments.statistics import hierarchical_bootstrap
from qgpo.scripts.toy_2d import METHODS

LABELS = {name: label for name, (label, _) in METHODS.items()} | {
    "weighted": "weighted (VP)",
    "flow": "weighted flow (OT)",
}
COLORS = {
    "cep": "#2b6cb0",
    "weighted": "#2f855a",
    "mse": "#dd6b20",
    "emse": "#b7791f",
    "dps": "#c53030",
    "qgf": "#97266d",
    "analytic": "#805ad5",
    "analytic2": "#b794f4",
    "aepo": "#553c9a",
}


@dataclass
class Args:
    """Report a benchmark."""

    results: Path
    """JSON that benchmarks/exactness.py wrote"""
    figure: Path = Path("docs/exactness_curves.png")
    """where the curves go"""


def table(data: dict[str, Any]) -> str:
    """Markdown: guidance error and distances of every method and beta."""
    lines = [
        "| beta | method | guidance error | SW2 (x two exact sets) | weights TV (x) | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for beta, entry in data["betas"].items():
        floor = entry["floor"]
        lines.append(
            f"| {beta} | two exact sets | | {floor['sw2']:.4f} | {floor['weights_tv']:.4f} | |"
        )
        for method, row in entry["methods"].items():
            error = f"{100 * row['guidance_error']:.1f} %" if "guidance_error" in row else ""
            cpu = f"{row['train_cpu_seconds']:.0f}" if "train_cpu_seconds" in row else ""
            lines.append(
                f"| {beta} | {LABELS[method]} | {error} | {row['sw2']:.4f} "
                f"({row['sw2'] / floor['sw2']:.2f}x) | {row['weights_tv']:.4f} "
                f"({row['weights_tv'] / floor['weights_tv']:.2f}x) | {cpu} |"
            )
    return "\n".join(lines)


def solvers(data: dict[str, Any]) -> str:
    """Markdown: exact score and guidance through each solver, where it was measured."""
    for entry in data["betas"].values():
        if entry["exact_by_solver"]:
            exact, floor = entry["exact_by_solver"], entry["floor"]["sw2"]
            break
    else:
        return ""
    counts = sorted({int(key.split("/")[2]) for key in exact})
    rows = sorted({key.rsplit("/", 1)[0] for key in exact})
    header = " | ".join(f"{n} evaluations" for n in counts)
    lines = [f"| solver/grid | {header} |", "|---|" + "---|" * len(counts)]
    for row in rows:
        cells = [exact[f"{row}/{n}"]["sw2"] for n in counts]
        lines.append(
            f"| {row} | " + " | ".join(f"{c:.3f} ({c / floor:.1f}x)" for c in cells) + " |"
        )
    return "\n".join(lines)


def sweeps(data: dict[str, Any]) -> str:
    """Markdown: CEP's error over K, width, steps and variants."""
    lines = [
        "| targets | K x groups | width | steps | labels | alpha_t f | guidance error |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in data["betas"].values():
        for r in entry.get("sweep", []):
            lines.append(
                f"| {r['targets']} | {r['K']} x {r['groups']} | {r['width']} | {r['steps']} | "
                f"{r['labels']} | {'yes' if r['preconditioned'] else 'no'} | "
                f"{100 * r['guidance_error']:.1f} % |"
            )
    return "\n".join(lines) if len(lines) > 2 else ""


def named(problem: list[Any]) -> str:
    """A drawn problem: its dimension, kind of energy and seed."""
    seed, dim, energy = problem
    return f"{dim}-D, {energy} ({seed})"


def grouped(data: dict[str, Any], method: str = "cep") -> dict[tuple[str, float], list[Any]]:
    """Rows of a method on the drawn problems by problem and beta, one per seed."""
    cells: dict[tuple[str, float], list[Any]] = {}
    for row in data["rows"]:
        if row["method"] == method:
            cells.setdefault((named(row["problem"]), row["beta"]), []).append(row)
    return cells


def several(values: list[float], digits: int, unit: str = "") -> str:
    """Their mean and, of several, each."""
    mean = f"{np.mean(values):.{digits}f}{unit}"
    if len(values) == 1:
        return mean
    return f"{mean} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def drawn(data: dict[str, Any]) -> str:
    """Markdown: the drawn problems of one half, a row per problem and beta."""
    lines = [
        "| problem (its seed) | beta | guidance error | SW2 / exact [flow] "
        "| weights / exact [flow] | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for (problem, beta), rows in grouped(data).items():
        errors = several([100 * r["guidance_error"] for r in rows], 1, " %")
        sw2, weights = (
            f"{several([r[key] / r[f'{key}_exact'] for r in rows], 2)} "
            f"[{np.mean([r[f'{key}_exact_flow'] / r[f'{key}_exact'] for r in rows]):.2f}]"
            for key in ("sw2", "weights_tv")
        )
        seconds = np.mean([r["data_cpu"] + r["train_cpu"] for r in rows])
        lines.append(f"| {problem} | {beta:g} | {errors} | {sw2} | {weights} | {seconds:.0f} |")
    return "\n".join(lines)


def guidances(data: dict[str, Any], beta: float) -> str:
    """Markdown: every method on the drawn problems at one beta, a column per problem."""
    methods = list(dict.fromkeys(row["method"] for row in data["rows"]))
    by_method = {method: grouped(data, method) for method in methods}
    problems = [problem for problem, b in by_method[methods[0]] if b == beta]
    lines = [f"| | {' | '.join(problems)} |", f"|---|{'---|' * len(problems)}"]
    for method, cells in by_method.items():
        shown = []
        for problem in problems:
            rows = cells[problem, beta]
            error = 100.0 * np.mean([row["guidance_error"] for row in rows])
            far = np.mean([row["sw2"] / row["sw2_exact"] for row in rows])
            shown.append(f"{error:.{0 if error >= 10.0 else 1}f} %, {far:.{far < 10.0:d}f}x")
        lines.append(f"| {LABELS[method]} | {' | '.join(shown)} |")
    return "\n".join(lines)


def limits(data: dict[str, Any]) -> str:
    """Markdown: what each part of the network alone contributes."""
    lines = ["| part | guidance error |", "|---|---|"]
    names = {
        "closed form": "labels are f\\* itself: the network's own error",
        "posterior": "posterior labels",
        "sample": "labels of single samples, the paper's",
    }
    for row in data["labels"]:
        lines.append(f"| {names[row['labels']]}, K = {row['K']} | {100 * row['relative']:.1f} % |")
    for k, error in data["finite_contrast"].items():
        lines.append(f"| Eq. 13 alone, one unknown, K = {k} | {100 * error:+.1f} % |")
    return "\n".join(lines)


def sampler(data: dict[str, Any]) -> str:
    """Markdown: samples under exact guidance, by score and steps."""
    floor = data["floor"]
    lines = ["| score, solver steps | SW2 / exact | weights / exact |", "|---|---|---|"]
    for name, row in data["sampler"].items():
        cells = [row[key] / floor[key] for key in ("sw2", "weights_tv")]
        lines.append(f"| {name} | {cells[0]:.2f} | {cells[1]:.2f} |")
    return "\n".join(lines)


def draw_drawn(data: dict[str, Any]) -> Figure:
    """Error over t on every drawn problem, a panel per beta; its root mean square is the error."""
    cells = grouped(data)
    betas = sorted({beta for _, beta in cells})
    problems = list(dict.fromkeys(problem for problem, _ in cells))
    figure = Figure(figsize=(3.4 * len(betas), 3.6), layout="constrained")
    axes = figure.subplots(1, len(betas), squeeze=False, sharey=True)[0]
    lines = {}
    for (problem, beta), rows in cells.items():
        errors, sizes = (np.array([r[key] for r in rows]) for key in ("errors", "sizes"))
        relative = np.sqrt((errors**2).mean(axis=0) / (sizes**2).mean())
        times, color = np.linspace(0.02, 1.0, len(relative)), f"C{problems.index(problem)}"
        axis = axes[betas.index(beta)]
        (lines[problem],) = axis.plot(times, 100.0 * relative, color=color)
    for axis, beta in zip(axes, betas, strict=True):
        axis.set_title(f"beta = {beta:g}", fontsize=10)
        axis.set_xlabel("t")
        axis.grid(alpha=0.25)
    axes[0].set_ylim(bottom=0.0)
    axes[0].set_ylabel("error, in % of the exact guidance's size", fontsize=8)
    figure.legend(
        [lines[problem] for problem in problems],
        problems,
        loc="outside lower center",
        ncols=3,
        fontsize=8,
        frameon=False,
    )
    return figure


def inside(data: dict[str, Any]) -> str:
    """Markdown: exactness inside agents."""
    played = any("returns" in row for row in data["rows"])
    sized = any("width" in row for row in data["rows"])
    lines = [
        "| agent of | guidance | steps |"
        + " width | actions |" * sized
        + " guidance error | distance / resampled | effective share |"
        + " return at w = 1 |" * played,
        "|---|---|---|---|---|---|" + "---|---|" * sized + "---|" * played,
    ]
    for row in data["rows"]:
        error, distance, share = (
            row[key] for key in ("guidance_error", "distance", "effective_share")
        )
        lines.append(
            f"| `{row['dataset']}` | {row['guidance']} | {row['steps']} "
            + (f"| {row['width']} | {row['actions']} " if sized else "")
            + f"| {100 * error[0]:.1f} % [{100 * error[1]:.1f}, {100 * error[2]:.1f}] "
            f"| {distance[0]:.2f} [{distance[1]:.2f}, {distance[2]:.2f}] "
            f"| {100 * share[0]:.0f} % |"
        )
        if played:
            low, high = hierarchical_bootstrap([row["returns"]])
            lines[-1] += f" {np.mean(row['returns']):.0f} [{low:.0f}, {high:.0f}] |"
    return "\n".join(lines)


def parts(data: list[Any]) -> str:
    """Markdown: distances of samples by what of score and guidance is learned."""
    columns = [f"{named(e['problem'])}, beta {e['beta']:g}" for e in data]
    lines = [
        "| score and guidance | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
        "| effective points of 200,000 | "
        + " | ".join(f"{e['effective_points']:.0f}" for e in data)
        + " |",
    ]
    for name in data[0]["parts"]:
        cells = [
            " / ".join(f"{np.mean(e['parts'][name][k]):.2f}" for k in ("sw2", "weights_tv"))
            if name in e["parts"]
            else ""
            for e in data
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_support(data: dict[str, Any]) -> str:
    """Markdown: error of the f of M actions by themselves, a column per agent."""
    rows = data["rows"]
    lines = [
        "| M | " + " | ".join(f"`{row['dataset']}`" for row in rows) + " |",
        "|---|" + "---|" * len(rows),
    ]
    for m in rows[0]["by_support"]:
        found = [row["by_support"][m]["guidance_error"] for row in rows]
        cells = [f"{100 * e:.0f} % [{100 * low:.0f}, {100 * high:.0f}]" for e, low, high in found]
        lines.append(f"| {m} | " + " | ".join(cells) + " |")
    found = [row["guidance_error"] for row in rows]
    cells = [f"{100 * e:.0f} % [{100 * low:.0f}, {100 * high:.0f}]" for e, low, high in found]
    return "\n".join([*lines, "| the agent's f | " + " | ".join(cells) + " |"])


def at_times(row: dict[str, Any], errors: list[Any]) -> Any:
    """Relative error in percent at each noise level."""
    squares, sizes = np.array(errors).sum(axis=0), np.array(row["sizes"]).sum(axis=0)
    return 100.0 * np.sqrt(squares.clip(min=0.0) / sizes)


def support_by_time(data: dict[str, Any]) -> str:
    """Markdown: the same errors at each noise level."""
    times = data["rows"][0]["times"]
    lines = [
        "| agent of | M | " + " | ".join(f"t = {t:.2f}" for t in times) + " |",
        "|---|---|" + "---|" * len(times),
    ]
    for row in data["rows"]:
        shown = {m: row["by_support"][m]["errors"] for m in ("16", "128", "1024", "8192")}
        for m, errors in {**shown, "the agent's f": row["errors"]}.items():
            cells = " | ".join(f"{e:.0f} %" for e in at_times(row, errors))
            lines.append(f"| `{row['dataset']}` | {m} | {cells} |")
    return "\n".join(lines)


def draw_support(data: dict[str, Any]) -> Figure:
    """Error over M at the noise levels that thousands of actions resolve, a panel per agent."""
    rows = data["rows"]
    figure = Figure(figsize=(3.4 * len(rows), 3.5), layout="constrained")
    axes = figure.subplots(1, len(rows), squeeze=False, sharey=True)[0]
    for axis, row in zip(axes, rows, strict=True):
        counts = [int(m) for m in row["by_support"]]
        for time in range(2, len(row["times"]), 2):
            errors = [at_times(row, b["errors"])[time] for b in row["by_support"].values()]
            (line,) = axis.plot(counts, errors, marker=".", label=f"t = {row['times'][time]:.2f}")
            own = at_times(row, row["errors"])[time]
            axis.axhline(own, color=line.get_color(), lw=0.8, ls=":")
        axis.axhline(15.0, color="#1a202c", lw=1.0, ls="--", label="15 %")
        axis.set_xscale("log", base=2)
        axis.set_title(row["dataset"], fontsize=9)
        axis.set_xlabel("M, actions of a state")
        axis.grid(alpha=0.25)
    axes[0].set_ylim(bottom=0.0)
    axes[0].set_ylabel("guidance error, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def draw(data: dict[str, Any]) -> Figure:
    """Per beta, the error of every guidance over t beside the size of the exact guidance."""
    betas = list(data["betas"])
    figure = Figure(figsize=(6.8, 4.2 * len(betas)), layout="constrained")
    axes = figure.subplots(len(betas), 1, squeeze=False)[:, 0]
    for axis, beta in zip(axes, betas, strict=True):
        methods = data["betas"][beta]["methods"]
        drawn = [name for name in COLORS if name in methods]
        sizes = methods[drawn[0]]["sizes"]
        axis.plot(methods[drawn[0]]["times"], sizes, color="#1a202c", lw=1.5, ls=":", label="exact")
        for name in drawn:
            row = methods[name]
            axis.plot(
                row["times"],
                row["errors"],
                color=COLORS[name],
                lw=2.2 if name == "cep" else 1.3,
                label=f"{LABELS[name]}  {100 * row['guidance_error']:.1f} %",
            )
        axis.set_yscale("log")
        axis.set_ylim(1e-3 * max(sizes), 20 * max(sizes))
        axis.set_title(f"beta = {beta}", fontsize=10)
        axis.set_xlabel("t")
        axis.grid(alpha=0.25)
        axis.legend(fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axis.set_ylabel(r"rms $\sigma_t \|\nabla f - \nabla f^*\|$ under $p_t$")
    dim = data["args"]["dim"]
    figure.suptitle(
        f"Error of the guidance over t, eight Gaussians in {dim} dimensions\n(dotted: size of the "
        "exact guidance)",
        fontsize=10,
    )
    return figure


def main(args: Args) -> None:
    """Print the tables and draw the curves."""
    opener = lzma.open if args.results.suffix == ".xz" else open
    with opener(args.results, "rt") as file:
        data = json.load(file)
    for part in (table(data), solvers(data), sweeps(data)):
        if part:
            print(part + "\n")
    save(draw(data), args.figure)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
