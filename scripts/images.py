"""Images from p(x) ~ q(x) exp(-beta E(x)): train a model, sample from it, measure guidances.

python scripts/images.py train --preset hues --output runs/hues.zip
python scripts/images.py sample --model runs/hues.zip --energy hues --target 4 --scales 0 1 2
python scripts/images.py measure --output runs/images

`--preset` chooses the defaults of the training: classes (scikit-learn's digits, their classes),
classifier (the same by classifier guidance), hues (the digits in colors, six hues) or imagenet
(256 x 256 pixels, for GPUs). Under torchrun or `accelerate launch` all processes share each batch.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from qgpo.agents.core.checkpoint import with_suffix
from qgpo.agents.core.shards import is_first, joined
from qgpo.agents.images import IMAGE_PRESETS, EnergyGuidedImages, ImageConfig
from qgpo.commands import command
from qgpo.envs.data.figure import save
from qgpo.envs.images import Images, load_images, read_array
from qgpo.experiments.image_study import TASKS, Outcome, Task, class_energies, study
from qgpo.fields import check_count
from qgpo.files import write_whole
from qgpo.images.colors import hue_energies
from qgpo.scripts._refusals import check_several, one_line
from qgpo.scripts._terminal import any_terminal, description, refuse_repeated

ENERGIES = ("classes", "hues")


@dataclasses.dataclass
class Train:
    """Learn a data model and a guidance."""

    preset: str = "classes"
    """defaults of what follows: classes, classifier, hues or imagenet"""
    images: str = "digits"
    """digits, colored-digits, fashion, a folder, a .npy or .npz file, or hf:<name of a dataset>"""
    size: int | None = None
    """pixels along an edge, of images that come as files; default those of the first"""
    channels: int | None = None
    """1 or 3, of images that come as files; default those of the first"""
    split: str = "train"
    """part of a dataset that has several"""
    energy: str = "classes"
    """classes (of the labels), hues, a .npy file of (N,) or (N, E) values, or file.py:function, a
    function of torch tensors (B, C, H, W) in [0, 1] to (B,) or (B, E)"""
    config: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    """the model and its training"""
    seed: int | None = None
    """seed of networks, batches and samples; default 0, or with --resume the model's"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; under torchrun each process has its own"""
    output: Path = Path("runs/images.zip")
    """the model's file"""
    save_every: int = 1_000
    """gradient steps between two checkpoints, which --resume goes on from"""
    resume: bool = False
    """continue the training of the model in --output"""
    overwrite: bool = False
    """replace the file in --output"""

    def run(self) -> None:
        """Train, write the model, and say how to sample."""
        check_count("--save-every", self.save_every)
        if self.resume and self.overwrite:
            raise ValueError("--resume --overwrite: expected one of them, or none")
        images = load_images(self.images, self.size, self.channels, self.split)
        energy = read_energy(self.energy, images)
        with joined() as device:
            path = with_suffix(self.output)
            chosen = self.device if device == "auto" else device
            if self.resume:
                model = EnergyGuidedImages.load(path, device=chosen)
                if model.config != self.config:
                    raise ValueError(f"--resume: {path} has another configuration, {model.config}")
                if self.seed not in (None, model.seed):
                    raise ValueError(f"--resume --seed {self.seed}: {path} has seed {model.seed}")
            elif path.exists() and not self.overwrite:
                raise ValueError(f"{path} exists: --resume it, --overwrite it, or choose another")
            else:
                model = EnergyGuidedImages(self.config, seed=self.seed or 0, device=chosen)
            begun = model.num_timesteps
            try:
                model.fit(
                    images.pixels,
                    energy,
                    resume=self.resume,
                    callback=self.keep,
                    progress_bar=None if is_first() else False,
                )
            except BaseException:  # Ctrl-C, too
                if model.num_timesteps > begun and is_first():
                    model.save(path)
                raise
            if is_first():
                model.save(path)
                print(f"{path}: {len(images)} images, {model.num_timesteps} steps")
                needed = callable(energy) and model.guidance_model.needs_energy
                more = ("--energy", self.energy) if needed else ()
                print(f"sample from it: {command('images', 'sample', '--model', path, *more)}")

    def keep(self, model: EnergyGuidedImages) -> None:
        """Write a checkpoint every so many steps."""
        if model.num_timesteps % self.save_every == 0 and is_first():
            model.save(self.output)


@dataclasses.dataclass
class Sample:
    """Draw images from a model into a picture, a row per guidance scale."""

    model: Path
    """a file that `train` has written"""
    scales: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)
    """guidance scales: 0 is the data's distribution, 1 is exact"""
    target: int | None = None
    """number of the energy that all follow, from 0; default one after the other"""
    n: int = 20
    """images in a row"""
    energy: str | None = None
    """hues or file.py:function, where the guidance differentiates it (dps, or cep on the denoised
    sample)"""
    steps: int | None = None
    """solver steps; default the model's"""
    seed: int = 0
    """seed of the noise: every row starts from the same"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    output: Path | None = None
    """the picture (.png, .pdf, .svg), with the images as .npy beside it; default as the model"""

    def run(self) -> None:
        """Write the picture and an array (scales, n, C, H, W) in [0, 1]."""
        from qgpo.experiments.image_figure import draw_rows  # matplotlib takes half a second

        check_count("--n", self.n)
        check_several("--scales", [f"{scale:g}" for scale in self.scales])
        output = self.output or self.model.with_suffix(".png")
        if output.suffix not in (".png", ".pdf", ".svg"):
            raise ValueError(f"--output {output}: expected a name that ends in .png, .pdf or .svg")
        energy = None if self.energy is None else read_function(self.energy, ("hues",))
        with joined() as device:
            model = EnergyGuidedImages.load(
                self.model, energy, self.device if device == "auto" else device
            )
            energies = 0 if model.layout is None else model.layout.energies
            if self.target is not None and not energies:
                raise ValueError(
                    f"--target {self.target}: this model has a single energy, leave --target away"
                )
            rows = {}
            for scale in self.scales:
                target: Any = self.target
                if target is None and energies and scale:
                    target = torch.arange(self.n) % energies
                generator = torch.Generator(model.device).manual_seed(self.seed)
                rows[f"w = {scale:g}"] = model.sample(
                    self.n,
                    target=target if energies and scale else None,
                    guidance_scale=scale,
                    steps=self.steps,
                    generator=generator,
                ).cpu()
            if is_first():
                output.parent.mkdir(parents=True, exist_ok=True)
                save(draw_rows(rows), output)
                content = np.stack([images.numpy() for images in rows.values()])
                np.save(output.with_suffix(".npy"), content, allow_pickle=False)
                print(f"picture: {output}; images: {output.with_suffix('.npy')}")


@dataclasses.dataclass
class Measure:
    """Train the guidances of both tasks beside each other, and measure and draw their samples."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """classes (CEP, classifier guidance) and hues (CEP with and without a base, MSE, DPS)"""
    seeds: tuple[int, ...] = (0,)
    """each trains everything anew"""
    share_data_model: bool = False
    """all seeds guide the first one's data model: only guidance, classifier and noise differ"""
    n_samples: int = 120
    """images per guidance and scale"""
    longer: float = 1.0
    """times the steps of every training"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    output: Path = Path("runs/images")
    """folder of results.json, and of two pictures per task"""
    overwrite: bool = False
    """replace the results of an earlier measurement there"""

    def run(self) -> None:
        """Write results after every task and seed."""
        earlier = self.output / "results.json"
        if earlier.exists() and not self.overwrite:
            raise ValueError(
                f"{earlier} exists: choose another --output, or replace it with --overwrite"
            )
        check_count("--n-samples", self.n_samples)
        check_several("--seeds", self.seeds)
        check_several("--tasks", self.tasks)
        for name in self.tasks:
            if name not in TASKS:
                raise ValueError(f"--tasks {name}: expected some of {list(TASKS)}")
        torch.set_num_threads(1)  # small images gain nothing from more
        results: dict[str, Any] = {"args": dataclasses.asdict(self), "tasks": {}}
        for name in self.tasks:
            task = lengthened(TASKS[name], self.longer)
            rows, notes = [], []
            shared = None
            for seed in self.seeds:
                outcome, model = study(
                    task, seed, self.n_samples, self.device, shared, tell, partial(self.save, task)
                )
                shared = model if self.share_data_model else None
                rows += outcome.rows
                notes.append({"seed": seed, **outcome.notes})
                results["tasks"][name] = {"rows": rows, "notes": notes}
                self.output.mkdir(parents=True, exist_ok=True)
                content = json.dumps(results, indent=1, default=str)
                write_whole(self.output / "results.json", f"{content}\n".encode())
                if seed == self.seeds[0]:
                    draw(self.output, task, outcome)
            draw_over_seeds(self.output, task, rows)
        print(f"results, pictures and models: {self.output}")

    def save(self, task: Task, method: str, model: EnergyGuidedImages) -> None:
        """Write a model that was measured, for `sample`."""
        name = method.replace(", ", "-")
        model.save(self.output / f"{task.name}-{name}-{model.seed}.zip")


def tell(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


def lengthened(task: Task, factor: float) -> Task:
    """The task with `factor` times the steps of every training."""
    from qgpo.agents.core.config import longer

    if factor == 1.0:
        return task
    config, classifier = longer(task.config, factor), longer(task.classifier, factor)
    return dataclasses.replace(task, config=config, classifier=classifier)


def draw(folder: Path, task: Task, outcome: Outcome) -> None:
    """The samples of one seed."""
    from qgpo.experiments.image_figure import draw_samples

    save(draw_samples(task, outcome, task.shown), folder / f"{task.name}.png")


def draw_over_seeds(folder: Path, task: Task, rows: list[dict[str, Any]]) -> None:
    """Curves over the scales and, of hues, the errors at equal diversity."""
    from qgpo.experiments.image_figure import LEVELS, draw_curves, equal_diversity

    save(draw_curves(task, rows), folder / f"{task.name}_curves.png")
    if task.name == "hues":
        print(f"hue error at equal diversity: diversity, {', '.join(task.methods)}")
        for cells in equal_diversity(task, rows, LEVELS):
            print("  " + "  ".join(cells))


# Energies -----------------------------------------------------------------------------------


def read_energy(name: str, images: Images) -> Any:
    """What `fit` gets. Raises ValueError for what is no energy of these images."""
    if name == "classes":
        if images.labels is None:
            raise ValueError("--energy classes: these images have no labels")
        return class_energies(images.labels, len(images.classes))
    if Path(name).suffix == ".npy":
        return read_array(Path(name))
    return read_function(name, (*ENERGIES, "a .npy file"))


def read_function(name: str, others: Sequence[str]) -> Callable[..., Any]:
    """hues, or the function of a Python file that the user names: file.py:function.

    `others` is what an error names beside that.
    """
    if name == "hues":
        return hue_energies
    path, _, function = name.rpartition(":")
    if not path.endswith(".py") or not Path(path).is_file():
        raise ValueError(f"--energy {name}: expected {', '.join(others)} or file.py:function")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--energy {name}: {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise ValueError(f"--energy {name}: {path} has no function {function!r}")
    return found  # type: ignore[no-any-return]


# The command line ---------------------------------------------------------------------------


@dataclasses.dataclass
class Choice:
    """The flag that decides the other flags' defaults."""

    preset: str = Train.preset


@one_line()
def parse(argv: list[str]) -> Train | Sample | Measure:
    """The command that the arguments name; the preset chooses the defaults of `train`."""
    without_help = [arg for arg in argv if arg not in ("-h", "--help")]
    choice, _ = tyro.cli(Choice, args=without_help, return_unknown_args=True, add_help=False)
    if choice.preset not in IMAGE_PRESETS:
        raise ValueError(f"--preset {choice.preset}: expected one of {list(IMAGE_PRESETS)}")
    preset = IMAGE_PRESETS[choice.preset]
    default = Train(choice.preset, preset.images, energy=preset.energy, config=preset.config)
    kinds = (
        Annotated[Train, tyro.conf.subcommand("train", default=default)],
        Annotated[Sample, tyro.conf.subcommand("sample")],
        Annotated[Measure, tyro.conf.subcommand("measure")],
    )
    commands: Any = kinds[0] | kinds[1] | kinds[2]  # type: ignore[operator]
    chosen: Any = tyro.cli(
        commands,
        args=argv,
        prog=command("images"),
        description=description(__doc__),
    )
    refuse_repeated(type(chosen), argv)
    return chosen  # type: ignore[no-any-return]


@one_line(ImportError, RuntimeError)
def main(chosen: Train | Sample | Measure) -> None:
    """Run it."""
    chosen.run()


@any_terminal()
def cli() -> None:
    """Entry point."""
    main(parse(sys.argv[1:]))


if __name__ == "__main__":
    cli()
