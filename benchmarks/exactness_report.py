"""Turn the JSON of benchmarks/exactness.py into a table and the curves over t.

python benchmarks/exactness_report.py --results benchmarks/results/exactness_2d.json.xz
"""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from matplotlib.figure import Figure

from qgpo.envs.data.figure import save
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
