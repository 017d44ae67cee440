"""Tables of pages beside those of tables.py: single agents, OGBench, exactness, speed."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import exactness_report
import numpy as np
from broad_tables import broad
from cube_tables import cube
from laptop_tables import laptop
from measured import DATASETS, Measurements, Scale
from offline_ranks import ESTIMATES, correlations
from tables import entry, short

from qgpo.experiments.image_figure import LEVELS, equal_diversity
from qgpo.experiments.image_study import (
    EXACT,
    TASKS,
    UNGUIDED,
    Mean,
    Task,
    error_at,
    mean_at,
    mean_of,
)
from qgpo.experiments.packing import read_documents
from qgpo.experiments.report import table
from qgpo.experiments.statistics import hierarchical_bootstrap

HERE = Path(__file__).parent
ZOO = DATASETS[:4]
FAMILY = {
    "QGPO (`cep`)": "QGPO, beta 10",
    "`mse`": "QGPO, MSE",
    "`dps`": "QGPO, DPS",
    "AEPO": "AEPO",
    "QIPO, diffusion": "QIPO diffusion",
    "QIPO, flow": "QIPO flow",
}
"""guidances beside each other, and the labels of their cells"""
NAIVE = {
    "Diffusion-QL": "Diffusion-QL",
    "TD3+BC, settings of its paper": "TD3+BC, paper settings",
    "SB3's TD3, offline": "naive offline TD3",
    "SB3's SAC, offline": "naive offline SAC",
}
VALIDATION = "results/exactness_validation.json"
SECOND = "results/exactness_validation_second.json"
SUPPORT = "results/exactness_support.json.xz"
"""guidances on the drawn problems"""
AGENTS = ("BC", "TD3+BC", "IQL", "Diffusion-QL", "naive offline TD3", "naive offline SAC")
"""labels that have a table of their own"""


def read_json(name: str) -> Any:
    """A committed result, packed or not."""
    path = HERE / name
    content = path.read_bytes()
    return json.loads(lzma.decompress(content) if path.suffix == ".xz" else content)


def normalised(measurements: Measurements, means: list[float]) -> str:
    """Mean score over the zoo's datasets."""
    scores = [measurements.score(d, mean) for d, mean in zip(ZOO, means, strict=True)]
    return f"{np.mean(scores):.1f}"


def on_the_zoo(measurements: Measurements, labels: dict[str, str], scale: Scale) -> str:
    """Mean and interval of single trainings on the zoo's datasets, a row per agent."""
    header = ["", *(short(dataset) for dataset in ZOO), "normalised mean", "CPU-seconds"]
    of_data = [measurements.data[dataset] for dataset in ZOO]
    rows = [["data", *(f"{x:.0f}" for x in of_data), normalised(measurements, of_data), ""]]
    for name, label in labels.items():
        groups = [measurements.group(False, label, dataset, scale) for dataset in ZOO]
        agents = [agent for dataset in ZOO for agent in measurements.alone[label, dataset]]
        seconds = f"{np.mean([agent.cpu_seconds for agent in agents]):.0f}"
        means = normalised(measurements, [group.mean for group in groups])
        rows.append([name, *(entry(group, 3) for group in groups), means, seconds])
    return table(header, rows)


def of_one_agent(measurements: Measurements, label: str) -> str:
    """What trainings with that label returned, a row per dataset."""
    rows = []
    for dataset, of_data in measurements.data.items():
        if agents := measurements.alone.get((label, dataset)):
            group = measurements.group(False, label, dataset, None)
            each = ", ".join(f"{returns.mean():.0f}" for returns in group.returns)
            seconds = f"{np.mean([agent.cpu_seconds for agent in agents]):.0f}"
            mean = entry(group, len(group))
            rows.append([short(dataset), f"{of_data:.0f}", mean, each, seconds])
    return table(["", "data", "mean return", "each training", "CPU-seconds"], rows)


def pointmaze() -> str:
    """Successes and mean steps, a row per maze."""
    rows = []
    for document in read_documents(HERE / "pointmaze").values():
        data = document["dataset"]
        row = [f"`{data['id']}`", f"{100.0 * np.mean(data['returns']):.0f} %"]
        for e in sorted(document["evaluations"], key=lambda e: e["guidance_scale"]):
            success, steps = 100.0 * np.mean(e["returns"]), np.mean(e["lengths"])
            row.append(f"{success:.0f} % in {steps:.1f} steps")
        rows.append(row)
    return table(["", "the data", "w = 0", "**w = 1**"], rows)


def peers() -> str:
    """Three baselines here and in CORL, a row per agent."""
    rows = []
    results = read_json("peers.json")
    for agent in dict.fromkeys(row["agent"] for row in results):
        cells, seconds = [], []
        for code in ("ours", "CORL"):
            of = [row for row in results if row["agent"] == agent and row["code"] == code]
            returns = [np.array(row["returns"]) for row in of]
            low, high = hierarchical_bootstrap(returns)
            each = ", ".join(f"{r.mean():.0f}" for r in returns)
            cells.append(f"{np.mean(returns):.0f} [{low:.0f}, {high:.0f}] ({each})")
            seconds.append(f"{np.mean([row['cpu_seconds'] for row in of]):.0f}")
        rows.append([agent, *cells, " and ".join(seconds)])
    return table(["", "ours", "CORL's", "CPU-seconds"], rows)


def latency() -> str:
    """Milliseconds of `predict`, a row per agent."""
    batches = read_json("speed.json")["agents"]
    rows = []
    for name in batches["1"]:
        cells = [
            f"{of[name]['milliseconds']:.1f} ({of[name]['over_qgpo']:.2f})"
            for of in batches.values()
        ]
        rows.append([name, *cells])
    return table(["", *batches], rows)


STAGE_COLUMNS = {
    "milliseconds": "milliseconds",
    "gigaflop_per_second": "GFLOP/s",
    "of_the_products_alone": "of the products alone",
    "times_the_products": "times the products",
    "outside": "outside, %",
}


def speed() -> Iterator[tuple[str, str]]:
    """Stages and acting beside their matrix products, a table per preset."""
    for preset, kinds in read_json("speed.json")["presets"].items():
        rows = []
        beside = any("reference_over_ours" in one for of in kinds.values() for one in of.values())
        for kind, of in kinds.items():
            for name, one in of.items():
                cells = [
                    f"{100.0 * one[key]:.0f}" if key == "outside" else f"{one[key]:.3g}"
                    for key in STAGE_COLUMNS
                ]
                if beside:
                    ratio = one.get("reference_over_ours")
                    cells.append("" if ratio is None else f"{ratio:.2f}")
                rows.append([name if kind == "stages" else f"`predict`, {name}", *cells])
        header = ["", *STAGE_COLUMNS.values(), *(["the authors' code / ours"] if beside else [])]
        yield f"speed-{preset}", table(header, rows)


def loading() -> str:
    """Reading 1 M transitions, a row per file."""
    rows = []
    for name, of in read_json("loading.json")["files"].items():
        cells = [
            f"{of[by]['seconds']:.2f} s, {of[by]['peak_bytes'] / 1e6:.0f} MB"
            for by in ("ours", "usual")
        ]
        ratios = f"{of['seconds_ratio']:.2f}", f"{of['memory_ratio']:.2f}"
        rows.append([name, f"{of['first_seconds']:.1f} s", *cells, *ratios])
    return table(["", "the first time", "later", "the usual way", "time", "memory"], rows)


def batched_seeds() -> str:
    """Four seeds one by one and together, a row per stage."""
    rows = []
    for name, of in read_json("batched_seeds.json")["stages"].items():
        alone, together = of["alone"], of["together"]
        rows.append([name, f"{alone:.2f}", f"{together:.2f}", f"{together / alone:.2f}"])
    return table(["", "one by one", "together", "ratio"], rows)


def playing() -> str:
    """50 episodes of HalfCheetah, a row per way."""
    rows = []
    for name, of in read_json("playing.json")["ways"].items():
        rows.append([name, f"{of['seconds']:.1f}", f"{of['over_floor']:.2f}"])
    return table(["", "seconds", "over the simulator alone"], rows)


def exported() -> str:
    """Exported files beside `predict`, a row per agent."""
    rows = []
    for name, of in read_json("robot/exported.json")["agents"].items():
        cells, largest, others = [], 0.0, 0
        for how in ("deterministic", "sampled"):
            row = of[how]
            cells += [f"{row[f'{by}_microseconds']:.0f}" for by in ("predict", "onnx")]
            for found in row["differences"].values():
                largest = max(largest, found["largest"], found["largest_single"])
                others = max(others, found["beyond"])
        rows.append([f"`{name}`", *cells, f"{largest:.1e}", f"{others}"])
    header = ["deterministic `predict`", "ONNX", "sampled `predict`", "its ONNX"]
    return table(["", *header, "largest difference", "beyond 1e-5"], rows)


def exported_settings() -> str:
    """What `exported.py` compared."""
    document = read_json("robot/exported.json")
    numbers = ("observations", document["observations"]), ("one by one", document["single"])
    return table(["", "value"], [[name, f"{n}"] for name, n in numbers])


def one_step() -> str:
    """Student beside teacher, a row per dataset, seed and way of acting."""
    rows = []
    for path in sorted((HERE / "robot").glob("*-s*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        for how in ("deterministic", "sampled"):
            cells = []
            for who in ("teacher", "student"):
                values = np.array(document["returns"][f"{who}_{how}"])
                low, high = hierarchical_bootstrap([values])
                cells.append(f"{values.mean():.0f} [{low:.0f}, {high:.0f}], {len(values)}")
            times = document["microseconds"]
            cells += [f"{times[who][f'{how}_predict']:.0f}" for who in ("teacher", "student")]
            cells += [f"{times[who][f'{how}_onnx']:.0f}" for who in ("teacher", "student")]
            of = f"{short(document['dataset'])}, seed {document['teacher']['seed']}"
            rows.append([f"{of}, {how}", *cells])
    header = ["teacher: return, episodes", "one step", "teacher: µs of `predict`", "one step: µs"]
    return table(["", *header, "teacher: µs of ONNX", "one step: µs of ONNX"], rows)


def offline_ranks() -> str:
    """How offline estimates rank agents, a row per dataset, and the median over datasets."""
    of = correlations(read_json("offline_ranks.json"))
    rows = []
    for dataset, by_estimate in of.items():
        cells = []
        for name in ESTIMATES:
            found = by_estimate[name]
            low, high = found["interval"]
            cells.append(f"{found['value']:.2f} [{low:.2f}, {high:.2f}]")
        rows.append([short(dataset), *cells, f"{by_estimate['value']['agents']}"])
    medians = [np.median([of[d][name]["value"] for d in of]) for name in ESTIMATES]
    rows.append(["median", *(f"{m:.2f}" for m in medians), ""])
    return table(["", *ESTIMATES.values(), "agents"], rows)


ONLINE = {"qgpo": "QGPO, fine-tuned", "sac-data": "SAC, data in its buffer", "sac": "SAC"}


def online() -> str:
    """Returns before the first step in the environment, in the middle and at the end."""
    rows = []
    for path in sorted((HERE / "online").glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        points = document["points"]
        cells = []
        for point in (points[0], points[len(points) // 2], points[-1]):
            values = np.array(point["returns"])
            low, high = hierarchical_bootstrap([values])
            cells.append(f"{values.mean():.0f} [{low:.0f}, {high:.0f}]")
        means = [float(np.mean(point["returns"])) for point in points]
        cells += [f"{min(means):.0f}", f"{max(means):.0f}", f"{points[-1]['timesteps']:,}"]
        cells.append(f"{points[-1]['cpu_seconds']:.0f}")
        name = f"{short(document['dataset'])}, {ONLINE[document['agent']]}"
        longer = "" if points[-1]["timesteps"] == 10_000 else ", longer"
        rows.append([f"{name}, seed {document['seed']}{longer}", *cells])
    header = ["at first", "half way", "at the end", "lowest mean", "highest mean"]
    return table(["", *header, "steps", "CPU-seconds"], rows)


def pretrained() -> str:
    """Returns of agents in the package by how their weights are stored, a row per agent."""
    kinds = {"checkpoint": "as trained", "float16": "16 bits", "int8": "8 bits"}
    rows = []
    for name, of in read_json("pretrained.json").items():
        cells = [
            f"{of[kind]['mean']:.0f} [{of[kind]['interval'][0]:.0f}, {of[kind]['interval'][1]:.0f}]"
            for kind in kinds
        ]
        size = of[{8: "int8", 16: "float16"}[of["bits"]]]["bytes"]
        w = of["guidance_scale"]
        rows.append([f"`{name}`", f"{w:g}", *cells, f"{size / 1e3:.0f}"])
    return table(["agent", "w", *kinds.values(), "kB"], rows)


def two_digits(x: float) -> str:
    """A number with two digits, or all of those before the point."""
    return f"{x:.0f}" if x >= 10.0 else f"{x:.1f}" if x >= 1.0 else f"{x:.2f}"


def gpu() -> str:
    """Milliseconds per step on both devices, a row per preset and stage."""
    measured = read_json("gpu.json")
    rows = []
    for preset, of in measured["training"].items():
        for stage, row in of["stages"].items():
            times = [two_digits(row[f"{device}_milliseconds"]) for device in ("cpu", "cuda")]
            rows.append([f"`{preset}`: {stage}", *times, two_digits(row["ratio"])])
        hours = [of["hours"][device] for device in ("cpu", "cuda")]
        whole = [f"{h:.1f} hours" if h > 1.0 else f"{60.0 * h:.1f} minutes" for h in hours]
        rows.append([f"`{preset}`: **all**", *whole, two_digits(of["ratio"])])
    for n, row in measured["acting"].items():
        times = [two_digits(row[f"{device}_milliseconds"]) for device in ("cpu", "cuda")]
        rows.append([f"`laptop`: `predict` of {n}", *times, two_digits(row["ratio"])])
    return table(["", "CPU", "GPU", "CPU / GPU"], rows)


def parity() -> str:
    """Largest relative difference of losses and gradients, a row per agent and loss."""
    rows = [
        [row["agent"], row["loss"], *(f"{row['largest'][of]:.1e}" for of in ("loss", "gradient"))]
        for row in read_json("parity.json")["float32"]["losses"]
    ]
    return table(["agent", "loss", "its value", "its gradient"], rows)


def demo() -> str:
    """What `make demo` printed."""
    document = read_json("demo.json")
    returns = [("data", np.array(document["dataset"]["returns"]))]
    for e in document["evaluations"]:
        returns.append((f"w = {e['guidance_scale']:g}", np.array(e["returns"])))
    rows = []
    for name, values in returns:
        low, high = hierarchical_bootstrap([values])
        rows.append([name, f"{values.mean():.0f}", f"[{low:.0f}, {high:.0f}]", f"{len(values)}"])
    return table(["", "mean return", "95 % interval", "episodes"], rows)


def errors_over_time(data: dict[str, Any]) -> str:
    """Relative error of each guidance at single times, a row per method."""
    methods = {k: v for k, v in data["methods"].items() if "errors" in v}
    times = next(iter(methods.values()))["times"]
    chosen = [int(np.argmin(np.abs(np.array(times) - t))) for t in np.arange(0.0, 0.91, 0.1)]
    rows = []
    for name, row in methods.items():
        relative = [row["errors"][i] / row["sizes"][i] for i in chosen]
        rows.append([exactness_report.LABELS[name], *(f"{100 * x:.0f} %" for x in relative)])
    return table(["t", *(f"{times[i]:.2g}" for i in chosen)], rows)


def toy() -> str:
    """Distance to exact samples, a row per problem."""
    problems = read_json("results/toy_2d_beta10.json")["problems"]
    names = list(next(iter(problems.values()))["methods"])
    rows, ratios = [], []
    for problem, entry_ in problems.items():
        floor = entry_["two_exact_sets"]
        distances = [entry_["methods"][name]["sw2"] for name in names]
        ratios.append([distance / floor for distance in distances])
        cells = [f"{d:.3f} ({r:.1f}x)" for d, r in zip(distances, ratios[-1], strict=True)]
        rows.append([problem, f"{floor:.3f}", *cells])
    means = np.exp(np.log(ratios).mean(axis=0))
    rows.append(["geometric mean", "1.0x", *(f"{mean:.1f}x" for mean in means)])
    header = ["", "two exact sets", *(exactness_report.LABELS[name] for name in names)]
    return table(header, rows)


def errors_by_method(data: dict[str, Any]) -> str:
    """Guidance error, a row per method, a column per beta."""
    betas = data["betas"]
    rows = []
    for method in next(iter(betas.values()))["methods"]:
        errors = [entry_["methods"][method]["guidance_error"] for entry_ in betas.values()]
        rows.append([exactness_report.LABELS[method], *(f"{100 * x:.1f} %" for x in errors)])
    return table(["", *(f"beta {beta}" for beta in betas)], rows)


def exactness() -> Iterator[tuple[str, str]]:
    """Names and tables of the exactness measurements."""
    two = read_json("results/exactness_2d.json.xz")
    yield "exactness-2d", exactness_report.table(two)
    yield "exactness-2d-by-method", errors_by_method(two)
    yield "exactness-solvers", exactness_report.solvers(two)
    yield "exactness-sweeps", exactness_report.sweeps(two)
    yield "exactness-times", errors_over_time(two["betas"]["3"])
    yield "exactness-8d", exactness_report.table(read_json("results/exactness_8d.json.xz"))
    yield "exactness-toy", toy()
    yield "exactness-drawn", exactness_report.drawn(read_json(VALIDATION))
    first = read_json("results/exactness_validation_first.json")
    yield "exactness-drawn-first", exactness_report.drawn(first)
    yield "exactness-drawn-second", exactness_report.drawn(read_json(SECOND))
    seed = [row for row in read_json(VALIDATION)["rows"] if row["seed"] == 0]
    every = {"rows": [*seed, *read_json("results/exactness_guidances.json")["rows"]]}
    yield "exactness-guidances", exactness_report.guidances(every, 3.0)
    yield "exactness-parts", exactness_report.parts(read_json("results/exactness_parts.json"))
    yield "exactness-support", exactness_report.by_support(read_json(SUPPORT))
    yield "exactness-support-times", exactness_report.support_by_time(read_json(SUPPORT))
    limits = read_json("results/exactness_limits.json")
    yield "exactness-limits", exactness_report.limits(limits)
    yield "exactness-sampler", exactness_report.sampler(limits)
    yield "exactness-agents", exactness_report.inside(read_json("results/exactness_agents.json"))
    inside = read_json("results/exactness_agents_guidances.json")
    yield "exactness-agents-guidances", exactness_report.inside(inside)
    of_sizes = read_json("results/exactness_agents_sizes.json")
    yield "exactness-agents-sizes", exactness_report.inside(of_sizes)


def measured_tasks() -> list[Task]:
    """Those of images that were measured."""
    return [TASKS[name] for name in read_json("images.json")["tasks"]]


def images(task: Task) -> Iterator[tuple[str, str]]:
    """What was measured of guided images, a row per method and scale."""
    rows = read_json("images.json")["tasks"][task.name]["rows"]
    keys = {"hue_error": "hue error", "accuracy": "accuracy", "diversity": "diversity"}
    keys |= {"frechet": "Fréchet distance", "seconds": "CPU-seconds per image"}
    keys = {key: title for key, title in keys.items() if key in rows[0]}
    cells = []
    for m, w in [
        (EXACT, 1.0),
        (UNGUIDED, 0.0),
        *((m, scale) for m in task.methods for scale in task.scales),
    ]:
        measured = [str(mean_at(rows, key, m, w)) for key in keys]
        cells.append([f"{m}, w = {w:g}" if m in task.methods else m, *measured])
    yield f"images-{task.name}", table(["", *keys.values()], cells)
    if task.name == "hues":
        levels = equal_diversity(task, rows, LEVELS)
        for cells, level in zip(levels, LEVELS, strict=True):
            cells += [str(ratio_at(rows, "CEP", other, level)) for other in ("DPS", "MSE")]
        columns = ["diversity", *task.methods, "CEP / DPS", "CEP / MSE"]
        yield "images-equal", table(columns, levels)


def ratio_at(rows: Sequence[dict[str, Any]], first: str, second: str, level: float) -> Mean:
    """Of two methods' hue errors at that diversity, seed by seed: they share their noise."""
    seeds = sorted({row["seed"] for row in rows})
    pairs = [[error_at(rows, m, seed, level) for m in (first, second)] for seed in seeds]
    return mean_of([a / b for a, b in pairs if a is not None and b is not None])


def gradients_of_images() -> Iterator[tuple[str, str]]:
    """Guidances of colored digits beside the exact one: gradients, and samples of f* itself."""
    found = read_json("images_exactness.json")
    of = {(row["method"], row["level"]): row for row in found["gradients"]}
    methods, levels = (list(dict.fromkeys(key[i] for key in of)) for i in (0, 1))
    cells = [
        [f"{level:g}"]
        + [f"{of[m, level]['cosine']:.2f} ({of[m, level]['steepness']:.2g})" for m in methods]
        for level in levels
    ]
    yield "images-gradients", table(["log(alpha/sigma)", *methods], cells)
    keys = {"hue_error": "hue error", "diversity": "diversity", "frechet": "Fréchet distance"}
    rows = [
        [f"f\\*, w = {row['scale']:g}", *(f"{row[key]:.3g}" for key in keys)]
        for row in found["guided"]
    ]
    yield "images-exact", table(["", *keys.values()], rows)


def more_sections(measurements: Measurements) -> dict[str, str]:
    """All tables by their names."""
    made = {
        "guidances": on_the_zoo(measurements, FAMILY, 1.0),
        "others": on_the_zoo(measurements, NAIVE, None),
        "pointmaze": pointmaze(),
        "peers": peers(),
        "latency": latency(),
        "loading": loading(),
        "playing": playing(),
        "batched-seeds": batched_seeds(),
        **dict(speed()),
        "exported": exported(),
        "exported-settings": exported_settings(),
        "one-step": one_step(),
        "online": online(),
        "offline-ranks": offline_ranks(),
        "gpu": gpu(),
        "parity": parity(),
        "demo": demo(),
        "pretrained": pretrained(),
        **dict(exactness()),
        **broad(),
        **cube(),
        **laptop(measurements),
        **{name: text for task in measured_tasks() for name, text in images(task)},
        **dict(gradients_of_images()),
    }
    made |= {f"agent {label}": of_one_agent(measurements, label) for label in AGENTS}
    return made
