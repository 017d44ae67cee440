"""The exact f*_t of colored digits, and what every guidance makes of its gradient.

python scripts/images.py measure --tasks hues --share-data-model --seeds 0 1 2 --output runs/hues
python benchmarks/images_exactness.py --models runs/hues --scales 1 2

A colored digit is one of the digits, with a hue and a saturation of its own for the strokes and
for the background. Pixels are linear in their color, so the posterior of x_t is a sum over digits
and an integral over two colors, and f*_t = log E[e^(-beta E) | x_t] is the ratio of two such sums.
Integrals are sums over a grid of hues and saturations.

Cosine and steepness (<g, g*> / |g*|^2) are those of noisy samples of p, at levels of noise between
which the sampler steps. With `--scales`, f* itself guides the data model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from qgpo.agents.images import EnergyGuidedImages, in_unit_range
from qgpo.envs.images import Images, load_images
from qgpo.experiments.image_study import TASKS, exact_rows, make_judge
from qgpo.files import write_whole
from qgpo.images.colors import HUES, hue_distance, hue_energies, rgb
from qgpo.schedule import Schedule

ROOT = Path(__file__).parent
LEVELS = (-2.5, -1.5, -0.75, 0.0, 0.75, 1.5)
"""log(alpha / sigma): from much noise to little"""
AT_ONCE = 6
"""images whose sums are computed together: more need more memory, and are no faster"""


@dataclass
class Args:
    """Gradients of models that `images.py measure` has written, beside the exact one."""

    models: Path = Path("runs/hues")
    """its folder"""
    seed: int = 0
    """whose models, which data and noise"""
    n: int = 60
    """noisy images at each level"""
    hues: int = 48
    """of the grid"""
    saturations: int = 3
    """of the grid"""
    scales: tuple[float, ...] = ()
    """guidance scales at which f* itself guides the data model"""
    n_samples: int = 120
    """images drawn at each of them"""
    output: Path = ROOT / "images_exactness.json"
    """what was measured"""


class ColoredDigits:
    """All colorings of gray images as `qgpo.envs.images.color` makes them, in [-1, 1]."""

    def __init__(
        self, gray: Tensor, schedule: Schedule, beta: float, hues: int, saturations: int
    ) -> None:
        """`gray` is (G, P) in [0, 1]."""
        self.schedule, self.beta = schedule, beta
        self.value = 0.4 + 0.6 * gray
        strokes = (gray > 0.5).float()
        self.regions = (strokes, 1.0 - strokes)
        hue = (torch.arange(hues) + 0.5) / hues
        saturation = 0.6 + 0.4 * (torch.arange(saturations) + 0.5) / saturations
        hue, saturation = (x.flatten() for x in torch.meshgrid(hue, saturation, indexing="ij"))
        self.color = rgb(*(x[:, None, None] for x in (hue, saturation, torch.ones_like(hue))))
        self.color = self.color.flatten(1)  # (M, 3): a pixel of value v is v times this
        self.distance = hue_distance(hue, torch.arange(HUES)[:, None] / HUES)  # (HUES, M)

    def log_likelihood(self, x_t: Tensor, t: Tensor, region: Tensor) -> Tensor:
        """Log p(x_t | digit, color) in one region (G, P), up to a constant of x_t: (B, G, M)."""
        alpha, sigma = self.schedule.alpha(t)[:, None, None], self.schedule.sigma(t)[:, None, None]
        pixels = x_t.unflatten(-1, (3, -1))
        valued = region * self.value
        # of x_0 = 2 v c - 1: <x_t, x_0> and |x_0|^2 over the region
        of_color = torch.einsum("bcp,gp->bgc", pixels, valued) @ self.color.T
        product = 2.0 * of_color - torch.einsum("bcp,gp->bg", pixels, region)[..., None]
        square = (
            4.0 * (valued * self.value).sum(dim=1)[:, None] * self.color.square().sum(dim=1)
            - 4.0 * valued.sum(dim=1)[:, None] * self.color.sum(dim=1)
            + 3.0 * region.sum(dim=1)[:, None]
        )
        return alpha / sigma**2 * product - 0.5 * (alpha / sigma) ** 2 * square

    def f(self, x_t: Tensor, t: Tensor, target: Tensor) -> Tensor:
        """f*_t of hue number `target` of each image, (B, D), (B,), (B,) to (B,)."""
        plain, tilted = torch.zeros(()), torch.zeros(())
        distance = self.distance[target][:, None]
        for region in self.regions:
            likelihood = self.log_likelihood(x_t, t, region)
            share = region.mean(dim=1)[:, None]  # E is a mean over all pixels
            plain = plain + torch.logsumexp(likelihood, dim=-1)
            tilt = likelihood - self.beta * share * distance
            tilted = tilted + torch.logsumexp(tilt, dim=-1)
        return torch.logsumexp(tilted, dim=-1) - torch.logsumexp(plain, dim=-1)

    def gradient(self, x_t: Tensor, t: Tensor, target: Tensor) -> Tensor:
        """Gradient of f*_t in x_t, (B, D)."""
        parts = []
        for x, s, e in zip(*(given.split(AT_ONCE) for given in (x_t, t, target)), strict=True):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                parts.append(torch.autograd.grad(self.f(x, s, e).sum(), x)[0])
        return torch.cat(parts)


def compare(
    exact: ColoredDigits, models: dict[str, EnergyGuidedImages], images: Images, args: Args
) -> Iterator[dict[str, Any]]:
    """A row per level and method."""
    generator = torch.Generator().manual_seed(args.seed)
    target = torch.arange(args.n) % HUES
    rows = exact_rows(TASKS["hues"], images, target.numpy(), args.seed)
    x_0 = 2.0 * in_unit_range(images.pixels[rows], torch.device("cpu")).flatten(1) - 1.0
    for level in LEVELS:
        t = exact.schedule.inverse_half_log_snr(torch.full((args.n,), level))
        alpha, sigma = exact.schedule.alpha(t)[:, None], exact.schedule.sigma(t)[:, None]
        x_t = alpha * x_0 + sigma * torch.randn(x_0.shape, generator=generator)
        true = exact.gradient(x_t, t, target)
        for method, model in models.items():
            found = model.guidance_ema.towards(target)(x_t, t, None)
            cosine = torch.cosine_similarity(found, true, dim=1).mean()
            steepness = (found * true).sum() / true.square().sum()
            yield {
                "method": method,
                "level": level,
                "cosine": float(cosine),
                "steepness": float(steepness),
            }


def guided(
    exact: ColoredDigits, model: EnergyGuidedImages, images: Images, args: Args
) -> Iterator[dict[str, Any]]:
    """What was measured of samples that f* itself guides, a row per scale."""
    task = TASKS["hues"]
    judge = make_judge(task, images, args.seed, "cpu")
    target = torch.arange(args.n_samples) % HUES

    def gradient(x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return exact.gradient(x_t, t, target)

    for scale in args.scales:
        generator = torch.Generator().manual_seed(args.seed)
        noise = torch.randn(args.n_samples, 3 * exact.value.shape[1], generator=generator)
        began, config = time.process_time(), model.config
        z = model.data_model_ema.sample(
            noise,
            None,
            guidance=gradient,
            guidance_scale=scale,
            solver=config.solver,
            steps=config.solver_steps,
            spacing=config.spacing,
            generator=generator,
        )
        seconds = time.process_time() - began
        yield {"scale": scale, **judge.measure(task, model.decode(z), target, seconds)}


def main(args: Args) -> None:
    """Write both, row by row as they come."""
    torch.set_num_threads(1)
    task = TASKS["hues"]
    names = {method: method.replace(", ", "-") for method in task.methods}
    models = {
        method: EnergyGuidedImages.load(
            args.models / f"hues-{name}-{args.seed}.zip", hue_energies, "cpu"
        )
        for method, name in names.items()
    }
    gray = in_unit_range(load_images("digits").pixels, torch.device("cpu")).flatten(1)
    images, first = load_images(task.images), next(iter(models.values()))
    grid = (args.hues, args.saturations)
    exact = ColoredDigits(gray, first.schedule, task.config.beta, *grid)
    found: dict[str, list[dict[str, Any]]] = {"gradients": [], "guided": []}
    for part, rows in (
        ("gradients", compare(exact, models, images, args)),
        ("guided", guided(exact, first, images, args)),
    ):
        for row in rows:
            found[part].append(row)
            print(", ".join(f"{k} {v:.3g}" if k != "method" else v for k, v in row.items()))
            write_whole(args.output, f"{json.dumps(found, indent=1)}\n".encode())


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
