"""EnergyGuidedImages: sample images from p(x) ~ q(x) exp(-beta E(x)).

Stages, losses, solvers and files are those of `general/tilted.py`; here are the networks of images
and how images are read. Color guidance and class guidance are several energies (N, E) or (B, E):

    model = EnergyGuidedImages(ImageConfig(beta=50.0)).fit(images, hue_energies)
    blue = model.sample(16, target=4)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qgpo.agents.core.config import NotNegative, OptionalSteps
from qgpo.agents.core.training import Training, choose_device
from qgpo.agents.general.config import Factories, Layout, TiltedConfig
from qgpo.agents.general.data import Array, in_units
from qgpo.agents.general.pipelines import Pipeline, read_pipeline
from qgpo.agents.general.tilted import TiltedDiffusion
from qgpo.diffusion import Metrics
from qgpo.fields import Range, check_fields, check_labels
from qgpo.images.networks import (
    CleanImageEnergy,
    ImageClassifier,
    ImageEnergy,
    ImageNetwork,
    unet_settings,
)

Levels = Annotated[tuple[int, ...], Range(0, 100)]
ROWS_HASHED = 1024
"""images by which data are recognised"""


@dataclass(frozen=True)
class ImageConfig(TiltedConfig):
    """What an EnergyGuidedImages is made of."""

    channels: tuple[int, ...] = (32, 64)
    """channels of the data model's U-Net, level by level; each halves the size"""
    layers: int = 1
    """residual blocks in each level"""
    attention: Levels = ()
    """levels with attention, from 0"""
    norm_groups: int = 8
    """groups in which channels are normalised"""
    pretrained: str | None = None
    """folder or name of a pipeline of diffusers whose U-Net the data model starts from, instead of
    the four above; data_steps=0 leaves it as it is"""
    data_steps: OptionalSteps = 1_500
    """gradient steps of the data model"""
    data_learning_rate: NotNegative = 2e-3
    """its first Adam step size"""
    energy_channels: tuple[int, ...] = (32, 64)
    """channels of f, level by level"""
    energy_layers: int = 1
    """its residual blocks in each level"""
    energy_attention: Levels = ()
    """its levels with attention"""
    energy_unit: Annotated[float, Range(1e-6, 1e6)] = 1.0
    """f is its network times this, which should be about the spread of beta E: it is learned sooner
    when the network need not grow"""
    guidance_steps: OptionalSteps = 800
    """gradient steps of f, or of the weighted model"""
    guidance_learning_rate: NotNegative = 2e-3
    """its first Adam step size"""
    contrast: int = 128
    """K, images compared with each other at one noise level"""
    groups: int = 1
    """such groups in one gradient step, each with its own noise level"""
    ema_decay: Annotated[float, Range(0.0, 1.0)] = 0.995
    """decay of the averaged weights that are sampled from"""


class ImagePreset(NamedTuple):
    """A configuration, and what it is for."""

    images: str
    """as `qgpo.envs.images.load_images` names them"""
    energy: str
    """classes or hues"""
    config: ImageConfig


DIGITS = ImageConfig(
    channels=(16, 32),
    data_steps=500,
    energy_channels=(16, 32),
    energy_unit=5.0,
    guidance_steps=400,
    guidance_learning_rate=4e-3,
    solver_steps=15,
)
"""for two CPU cores and a few minutes"""
UNNORMALISED: dict[str, Any] = {"guidance": "cep", "guidance_options": {"labels": "exponential"}}
"""Labels e^(-beta E) over their mean (Eq. 12).

Of a class they are 1 over its share for its own images and 0 for others. Of a hue they are exact
for any K, where a softmax over K levels the few images that are right.
"""
ON_DENOISED: dict[str, Any] = {
    **UNNORMALISED,
    "guidance_options": {**UNNORMALISED["guidance_options"], "base": "denoised"},
}
"""The same, and the network corrects beta e at the denoised image.

For energies that can be differentiated.
"""
IMAGE_PRESETS: dict[str, ImagePreset] = {
    "classes": ImagePreset(
        "digits", "classes", replace(DIGITS, **UNNORMALISED, contrast=64, groups=2)
    ),
    "classifier": ImagePreset(
        "digits", "classes", replace(DIGITS, guidance="classifier", contrast=64, groups=2)
    ),
    "hues": ImagePreset(
        "colored-digits",
        "hues",
        replace(
            DIGITS,
            **ON_DENOISED,
            beta=50.0,
            data_steps=2_400,
            energy_unit=10.0,
            guidance_steps=1_200,
        ),
    ),
    "imagenet": ImagePreset(
        "imagenet.npy",
        "classes",
        ImageConfig(
            **UNNORMALISED,
            schedule="linear",
            prediction="noise",
            channels=(256, 256, 512, 512, 1024, 1024),
            layers=2,
            attention=(3, 4, 5),
            norm_groups=32,
            data_steps=2_000_000,
            data_learning_rate=1e-4,
            energy_channels=(128, 128, 256, 256, 512, 512),
            energy_layers=2,
            energy_attention=(3, 4, 5),
            guidance_steps=500_000,
            guidance_learning_rate=3e-4,
            contrast=256,
            preconditioned=False,
            ema_decay=0.9999,
            solver="ddim",
            solver_steps=250,
            spacing="time",
        ),
    ),
}
"""imagenet: the sizes of ADM at 256 x 256 (arXiv 2105.05233), which the CEP paper's images have"""


class Pixels:
    """Images (N, C, H, W) as rows of numbers in [-1, 1]; only what is asked for is converted."""

    def __init__(self, images: NDArray[Any], device: torch.device) -> None:
        self.images, self.device = images, device

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """(..., D)."""
        chosen = self.images[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        return 2.0 * in_unit_range(chosen, self.device).flatten(-3) - 1.0


def in_unit_range(images: NDArray[Any], device: torch.device) -> Tensor:
    """Bytes or floats as float32 pixels in [0, 1]."""
    pixels = torch.from_numpy(np.array(images)).to(device)  # of a file's map, a copy
    return pixels.float() / 255.0 if pixels.dtype == torch.uint8 else pixels.float()


class EnergyGuidedImages(TiltedDiffusion[ImageConfig]):
    """A model of images from p(x) ~ q(x) exp(-beta E(x)).

    Images are (N, C, H, W), bytes or numbers in [0, 1]; an energy gets, and `sample` returns,
    tensors in [0, 1]. There are no conditions: classes are energies.
    """

    name: ClassVar[str] = "EnergyGuidedImages"
    config_class: ClassVar[type[ImageConfig]] = ImageConfig
    conditional: ClassVar[bool] = False
    data_model_fields = (
        *TiltedDiffusion.data_model_fields,
        *("channels", "layers", "attention", "norm_groups", "pretrained"),
    )

    unet: dict[str, Any] | None = None
    """settings of the data model's U-Net where it was trained elsewhere"""
    levels: int = 0
    """its noise levels"""
    _pipeline: Pipeline | None = None

    def _prepare_build(self, header: dict[str, Any]) -> None:
        """The U-Net's settings: of a file, or of the pipeline that the configuration names."""
        self.unet, self.levels = header.get("unet"), header.get("levels", 0)
        if not isinstance(self.unet, dict | None) or type(self.levels) is not int:
            raise ValueError(f"unet={self.unet!r:.200} or levels={self.levels!r:.200} is none")
        if not header and self.config.pretrained is not None:
            self._pipeline = read_pipeline(self.config.pretrained, self.config.prediction)
            self.unet, self.levels = self._pipeline.unet, len(self._pipeline.half_log_snr)

    def _take_from(self, other: Self) -> None:
        self.unet, self.levels = other.unet, other.levels

    def _more(self) -> dict[str, Any]:
        return {"unet": self.unet, "levels": self.levels}

    def _factories(self, layout: Layout) -> Factories:
        c, shape = self.config, layout.shape
        if len(shape) != 3 or layout.condition_dim:
            raise ValueError(f"{layout}, expected images (C, H, W) without conditions")
        own = unet_settings(shape, c.channels, c.layers, c.attention, c.norm_groups)
        of_energy = (c.energy_channels, c.energy_layers, c.energy_attention, c.norm_groups)
        network = partial(ImageNetwork, shape, self.unet or own, self.schedule, self.levels)
        energy = unet_settings(shape, *of_energy)
        outputs = layout.energies
        share: Any = self.training.share
        return Factories(
            network=lambda: share(network()),
            energy_network=lambda: share(ImageEnergy(shape, energy, outputs, c.energy_unit)),
            clean_energy=lambda: share(CleanImageEnergy(shape, energy, max(1, outputs))),
        )

    def _build(self, layout: Layout, labelled: bool) -> None:
        super()._build(layout, labelled)
        if self._pipeline is not None:
            for model in (self.data_model, self.data_model_ema):
                network: Any = model.network
                network.unet.load_state_dict(self._pipeline.weights)
                network.half_log_snr.copy_(self._pipeline.half_log_snr)
            self._pipeline = None

    def _read(self, data: Array) -> Array:
        images = data.detach().cpu().numpy() if isinstance(data, Tensor) else data
        if not isinstance(images, np.ndarray) or images.ndim != 4 or 0 in images.shape:
            found = getattr(images, "shape", type(images).__name__)
            raise ValueError(f"images have shape {found}, expected (N, channels, height, width)")
        if len(images) < 2:
            raise ValueError(f"there are {len(images)} images, expected at least 2")
        if images.dtype != np.uint8:
            if images.dtype.kind != "f":
                raise ValueError(f"images have type {images.dtype}, expected uint8 or floats")
            low, high = float(images.min()), float(images.max())
            if not (0.0 <= low <= high <= 1.0):  # not of NaN, either
                raise ValueError(f"images have pixels of {low:g} to {high:g}, expected 0 to 1")
        return images

    def _rows(self, data: Array) -> Pixels:
        self.normalizer.mean.fill_(0.5)
        self.normalizer.std.fill_(0.5)
        return Pixels(np.asanyarray(data), self.device)

    def _units(self, x: Array) -> Tensor:
        return in_unit_range(np.asanyarray(x), self.device)

    def _content(self, x: Array) -> bytes:
        """Of images spread over the data, and their number: there may be too many for all."""
        images = np.asanyarray(x)
        some = images[:: max(1, len(images) // ROWS_HASHED)]
        digest = hashlib.sha256(f"{images.shape} {images.dtype}".encode())
        digest.update(np.ascontiguousarray(some).tobytes())
        return digest.digest()

    def encode(self, x: Tensor) -> Tensor:
        """Images (..., C, H, W) in [0, 1] to the coordinates of the diffusion, (..., D)."""
        return super().encode(x.flatten(-3))

    def decode(self, z: Tensor) -> Tensor:
        """Back to images, whose pixels are taken into [0, 1]."""
        shape = () if self.layout is None else self.layout.shape
        images: Tensor = in_units(self.normalizer, z).clamp(0.0, 1.0).unflatten(-1, shape)
        return images


@dataclass(frozen=True)
class ClassifierConfig:
    """How the classifier is trained that measures samples."""

    steps: OptionalSteps = 600
    """gradient steps"""
    learning_rate: NotNegative = 2e-3
    """first Adam step size"""
    batch_size: int = 128
    """images in a step"""
    width: int = 32
    """channels of its first layer"""
    n_features: int = 16
    """numbers before its last layer, in which images are compared"""

    def __post_init__(self) -> None:
        check_fields(self)


def train_classifier(
    images: NDArray[Any],
    labels: NDArray[np.integer[Any]],
    config: ClassifierConfig | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "auto",
    progress_bar: bool | None = None,
) -> ImageClassifier:
    """A classifier of images (N, C, H, W) by their labels (N,), for measures of samples.

    Raises ValueError for labels that are no whole numbers from 0, one per image.
    """
    config = ClassifierConfig() if config is None else config
    pixels = Pixels(images, choose_device(device))
    targets = torch.as_tensor(check_labels(labels, len(images)), device=pixels.device)
    training = Training(("classifier",), seed, pixels.device, "Lower its learning rate")
    training.progress_bar = progress_bar
    with training.building(training.reset):
        classes = int(targets.max()) + 1
        shape: Any = images.shape[1:]
        network = ImageClassifier(shape, classes, config.width, config.n_features)
        training.add_trained("classifier", network)

    def loss(step: int) -> tuple[Tensor, Metrics]:
        rows = training.draw(len(pixels), config.batch_size)
        logits = network((pixels[rows].unflatten(-1, shape) + 1.0) / 2.0)
        value = nn.functional.cross_entropy(logits, targets[rows])
        hits = logits.argmax(dim=-1) == targets[rows]
        return value, {"loss": value, "accuracy": hits.float().mean()}

    training.minimize("classifier", config.steps, loss, config.learning_rate)
    return network
