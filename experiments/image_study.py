"""Guidances of images compared: one data model, every guidance at several scales, measures.

What is measured of N samples, each with a target of its own:

accuracy     part in which an independent classifier sees the target (classes)
hue_error    mean distance of pixels from the target hue, around the circle of length 1 (hues)
diversity    mean distance of two samples of one target in the classifier's features, in parts of
             that of two images of the data; of hues, the classifier sees the brightness (HSV's
             value) alone, which a hue should not change
frechet      mean over the targets of the Fréchet distance to the target's data (classes), or the
             distance of all samples to all data (hues), in these features
seconds      per sample
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qgpo.agents.images import (
    IMAGE_PRESETS,
    UNNORMALISED,
    ClassifierConfig,
    EnergyGuidedImages,
    ImageConfig,
    in_unit_range,
    train_classifier,
)
from qgpo.envs.images import Images, load_images
from qgpo.fields import check_labels
from qgpo.images.colors import HUE_NAMES, hue_energies, hue_errors
from qgpo.images.measures import diversity, frechet_distance, frechet_per_class

FAR = 30.0
"""-log of a class's probability that is taken for zero"""
REAL = 4_000
"""images of the data with which samples are compared, at most"""
ALPHA = 0.05
UNGUIDED, EXACT = "unguided", "exact"
"""rows beside the methods: samples of q, and data drawn by exp(-beta E)"""


def class_energies(labels: NDArray[np.integer[Any]], n_classes: int) -> NDArray[np.float32]:
    """E_c = -log p(c|x) of labeled images, (N,) to (N, C): 0 for their own class, FAR elsewhere.

    Raises ValueError for labels that are not among the classes.
    """
    checked = check_labels(labels, np.size(labels))
    if checked.max(initial=-1) >= n_classes:
        raise ValueError(f"labels go up to {checked.max()}, expected below {n_classes} classes")
    own = np.arange(n_classes) == checked[:, None]
    return np.where(own, 0.0, FAR).astype(np.float32)


@dataclass(frozen=True)
class Task:
    """What is guided towards what, by which guidances."""

    name: str
    images: str
    config: ImageConfig
    """of the first method"""
    methods: dict[str, dict[str, Any]]
    """label: what it changes in the configuration"""
    scales: tuple[float, ...]
    shown: tuple[tuple[str, float], ...]
    """methods and scales whose samples are drawn"""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)

    def energy(self, images: Images) -> Any:
        """What `fit` gets: labels' energies, or a function."""
        if self.name == "hues":
            return hue_energies
        if images.labels is None:
            raise ValueError(f"images {self.images!r} have no labels, which classes need")
        return class_energies(images.labels, len(images.classes))

    def seen(self, images: Any) -> Any:
        """What the classifier sees of images (N, C, H, W), tensors or arrays."""
        if self.name != "hues":
            return images
        if isinstance(images, np.ndarray):
            return images.max(axis=1, keepdims=True)
        return images.amax(dim=1, keepdim=True)

    def targets(self, images: Images) -> tuple[str, ...]:
        """Names of the energies."""
        return HUE_NAMES if self.name == "hues" else images.classes


TASKS = {
    "classes": Task(
        name="classes",
        images="digits",
        config=IMAGE_PRESETS["classes"].config,
        methods={
            "CEP": {},
            "classifier": {"guidance": "classifier", "guidance_options": {}},
        },
        scales=(0.5, 1.0, 2.0, 4.0, 8.0),
        shown=((UNGUIDED, 0.0), ("CEP", 1.0), ("CEP", 4.0), ("classifier", 4.0)),
    ),
    "hues": Task(
        name="hues",
        images="colored-digits",
        config=IMAGE_PRESETS["hues"].config,
        methods={
            "CEP": {},
            "CEP, plain": UNNORMALISED,
            "MSE": {"guidance": "mse", "guidance_options": {}},
            "DPS": {"guidance": "dps", "guidance_options": {}},
        },
        scales=(0.1, 0.3, 0.5, 1.0, 2.0, 4.0, 8.0),
        shown=(
            (UNGUIDED, 0.0),
            ("CEP", 1.0),
            ("CEP", 2.0),
            ("CEP", 4.0),
            ("MSE", 4.0),
            ("DPS", 0.5),
            ("DPS", 1.0),
        ),
    ),
}


class Judge(NamedTuple):
    """What samples are compared with."""

    classifier: Any
    features: Tensor
    """(M, F) of data"""
    labels: Tensor
    """(M,)"""
    accuracy: float
    """of the classifier on images that it was not trained on"""

    def measure(self, task: Task, samples: Tensor, targets: Tensor, seconds: float) -> Measured:
        """Samples (N, C, H, W) with the number of their target (N,)."""
        with torch.no_grad():
            features = self.classifier.features(task.seen(samples))
            logits = self.classifier.head(features)
        row = {
            "diversity": diversity(features, targets, self.features),
            "seconds": seconds / len(samples),
        }
        if task.name == "hues":
            row["hue_error"] = float(hue_errors(samples, targets).mean())
            row["frechet"] = frechet_distance(features, self.features)
        else:
            each = frechet_per_class(features, targets, self.features, self.labels)
            row["frechet"] = float(np.mean(list(each.values())))
            row["accuracy"] = float((logits.argmax(dim=-1) == targets).float().mean())
        return row


Measured = dict[str, float]


class Outcome(NamedTuple):
    """One task, trained with one seed."""

    rows: list[dict[str, Any]]
    """method, scale, seed and what was measured"""
    samples: dict[tuple[str, float], Tensor]
    """by method and scale, (N, C, H, W); sample i has target i modulo the number of targets"""
    targets: tuple[str, ...]
    notes: dict[str, float]
    """seconds of each training, and the classifier's accuracy"""


def make_judge(task: Task, images: Images, seed: int, device: str) -> Judge:
    """Train the classifier on four fifths of the images, and take the data's features."""
    if images.labels is None:
        raise ValueError(f"images {task.images!r} have no labels, which the classifier needs")
    known, held_out = images.split(0.2, seed)
    classifier = train_classifier(
        task.seen(np.asarray(known.pixels)),
        np.asarray(known.labels),
        task.classifier,
        seed=seed,
        device=device,
        progress_bar=None,
    )
    some = np.random.default_rng(seed).permutation(len(images))[:REAL]
    where = next(classifier.parameters()).device
    with torch.no_grad():
        test, real = (in_unit_range(p, where) for p in (held_out.pixels, images.pixels[some]))
        hits = classifier(task.seen(test)).argmax(dim=-1).cpu().numpy()
        features = classifier.features(task.seen(real))
    accuracy = float(np.mean(hits == held_out.labels))
    labels = torch.as_tensor(images.labels[some], device=where)
    return Judge(classifier, features, labels, accuracy)


def exact_rows(
    task: Task, images: Images, targets: NDArray[np.integer[Any]], seed: int
) -> NDArray[np.integer[Any]]:
    """Row numbers of data drawn for each target by exp(-beta E), without replacement, (N,).

    They are samples of p as far as the data are samples of q. Raises ValueError where more images
    of a target are asked for than its weights leave (Kish's effective sample size).
    """
    energy = task.energy(images)
    if callable(energy):
        parts = np.array_split(np.arange(len(images)), -(-len(images) // REAL))
        cpu = torch.device("cpu")
        energy = torch.cat([energy(in_unit_range(images.pixels[p], cpu)) for p in parts]).numpy()
    rng = np.random.default_rng(seed)
    rows = np.zeros(len(targets), np.int64)
    for target in np.unique(targets):
        log_weight = -task.config.beta * energy[:, target].astype(np.float64)
        weight = np.exp(log_weight - log_weight.max())
        mine = targets == target
        p = weight / weight.sum()
        there = 1.0 / float(np.square(p).sum())
        if mine.sum() > there:
            raise ValueError(
                f"n_samples={len(targets)}: {mine.sum()} images of target {target}, of which the "
                f"data have {there:.0f}"
            )
        rows[mine] = rng.choice(len(images), mine.sum(), replace=False, p=p)
    return rows


def study(
    task: Task,
    seed: int,
    n_samples: int,
    device: str = "auto",
    data_model: EnergyGuidedImages | None = None,
    tell: Callable[[str], None] = lambda line: None,
    save: Callable[[str, EnergyGuidedImages], None] = lambda method, model: None,
) -> tuple[Outcome, EnergyGuidedImages]:
    """Train and measure; a data model that is given is shared. Returns it, too."""
    images = load_images(task.images)
    names = task.targets(images)
    if n_samples < 2 * len(names):
        raise ValueError(
            f"n_samples={n_samples}, expected at least {2 * len(names)}: two of each of the "
            f"{len(names)} targets"
        )
    exact = images.pixels[exact_rows(task, images, np.arange(n_samples) % len(names), seed)]
    clock = Clock()
    judge = make_judge(task, images, seed, device)
    notes = {"judge_accuracy": judge.accuracy, "judge_seconds": clock.lap()}
    if data_model is None:
        data_model = EnergyGuidedImages(task.config, seed=seed, device=device)
        data_model.fit_data(images.pixels)
        notes["data_seconds"] = clock.lap()
        tell(f"{task.name}, seed {seed}: data model after {notes['data_seconds']:.0f} s")
    targets = torch.arange(n_samples, device=data_model.device) % len(names)
    rows, samples = [], {}

    def draw(method: str, model: EnergyGuidedImages, scale: float) -> None:
        generator = torch.Generator(model.device).manual_seed(seed)
        clock.lap()
        target = targets if scale else None
        drawn = model.sample(n_samples, target=target, guidance_scale=scale, generator=generator)
        keep(method, scale, drawn, clock.lap())

    def keep(method: str, scale: float, drawn: Tensor, seconds: float) -> None:
        measured = judge.measure(task, drawn, targets, seconds)
        rows.append({"method": method, "scale": scale, "seed": seed, **measured})
        samples[method, scale] = drawn.cpu()
        shown = ", ".join(f"{key} {value:.3g}" for key, value in measured.items())
        tell(f"{task.name}, seed {seed}: {method} at {scale:g}: {shown}")

    keep(EXACT, 1.0, in_unit_range(exact, data_model.device), 0.0)
    draw(UNGUIDED, data_model, 0.0)
    for method, changes in task.methods.items():
        clock.lap()
        config = replace(task.config, **changes)
        model = data_model.with_guidance(config, len(names), seed)
        model.fit(images.pixels, task.energy(images), resume=True)
        notes[f"{method}_seconds"] = clock.lap()
        save(method, model)
        for scale in task.scales:
            draw(method, model, scale)
    return Outcome(rows, samples, names, notes), data_model


class Clock:
    """CPU seconds of this process from lap to lap: other processes do not count."""

    def __init__(self) -> None:
        self.last = time.process_time()

    def lap(self) -> float:
        """Seconds since the last one."""
        before, self.last = self.last, time.process_time()
        return self.last - before


# Over seeds ---------------------------------------------------------------------------------


class Mean(NamedTuple):
    """Over seeds, with a 95 % interval of Student's t; without one for a single seed."""

    mean: float
    low: float | None
    high: float | None

    @property
    def half(self) -> float:
        """Half the interval's width; 0 without one."""
        return 0.0 if self.low is None else self.mean - self.low

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and interval of one value per seed."""
    array = np.asarray(values, float)
    if len(array) < 2:
        return Mean(float(array.mean()), None, None)
    from scipy import stats  # takes half a second to import

    half = stats.t.ppf(1.0 - ALPHA / 2.0, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5
    return Mean(float(array.mean()), float(array.mean() - half), float(array.mean() + half))


def mean_at(rows: Sequence[dict[str, Any]], key: str, method: str, scale: float) -> Mean:
    """One measure of one method at one scale."""
    return mean_of([r[key] for r in rows if (r["method"], r["scale"]) == (method, scale)])


def error_at(rows: Sequence[dict[str, Any]], method: str, seed: int, level: float) -> float | None:
    """The hue error at which a method's samples have that diversity, or None if they never have.

    The curve runs from the unguided samples (scale 0) through its scales, straight in between, in
    the logarithm of the error. Where it has the diversity several times, the least error counts.
    """
    curve = [
        (row["diversity"], row["hue_error"])
        for row in sorted(rows, key=lambda row: row["scale"])
        if row["seed"] == seed and row["method"] in (UNGUIDED, method)
    ]
    found = []
    for (d0, e0), (d1, e1) in itertools.pairwise(curve):
        if min(d0, d1) <= level <= max(d0, d1) and d0 != d1:
            part = (level - d0) / (d1 - d0)
            found.append(float(np.exp((1.0 - part) * np.log(e0) + part * np.log(e1))))
    return min(found, default=None)
