"""Where images come from: what a package ships, a folder, an array, or the Hugging Face hub.

    load_images("digits")            scikit-learn's 1,797 digits of 8 x 8 pixels
    load_images("colored-digits")    the same, digit and background each in a random hue
    load_images("fashion")           Fashion-MNIST of Debian's package dataset-fashion-mnist
    load_images("photos/")           a folder; its subfolders, if any, are the classes
    load_images("images.npy")        (N, C, H, W) or (N, H, W), bytes or numbers in [0, 1], which
                                     stay in the file; labels in images.labels.npy, if it is there
    load_images("images.npz")        the same as `images`, with `labels` beside them
    load_images("hf:ylecun/mnist")   a dataset of the Hugging Face hub, by its Parquet files

Nothing that is read runs code: no pickles, no scripts of a dataset.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from qgpo.fields import check_count, check_labels
from qgpo.images.colors import rgb

INSTALL = "pip install 'qgpo[images]'"
FASHION = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    *("T-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "boot"),
)
HUB = "hf:"
PARQUET_BRANCH = "refs/convert/parquet"
"""of every public dataset on the hub: <configuration>/<split>/0000.parquet"""
UNLABELLED = -1
"""in place of the labels that a test's images have, on the hub"""
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
MODES = {1: "L", 3: "RGB"}
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
GRAY = ("1", "L", "LA", *SIXTEEN_BITS)
"""Pillow's modes without colors"""
COPIES = 20
"""colorings of each digit"""


@dataclass(frozen=True)
class Images:
    """Images, and what is in them where that is known."""

    pixels: NDArray[Any]
    """(N, C, H, W), bytes or numbers in [0, 1]; may be mapped from a file"""
    labels: NDArray[np.int64] | None = None
    """(N,)"""
    classes: tuple[str, ...] = ()
    """names of the labels"""

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4:
            raise ValueError(f"images have shape {self.pixels.shape}, expected (N, C, H, W)")
        if self.labels is None:
            return
        most = check_labels(self.labels, len(self)).max(initial=0)
        if self.classes and most >= len(self.classes):
            raise ValueError(f"labels go up to {most}, expected below {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.pixels)

    def rows(self, rows: NDArray[Any] | slice) -> Images:
        """Some of them."""
        labels = None if self.labels is None else self.labels[rows]
        return Images(self.pixels[rows], labels, self.classes)

    def split(self, held_out: float, seed: int = 0) -> tuple[Images, Images]:
        """Those to learn from, and a random part of them that is held out."""
        order = np.random.default_rng(seed).permutation(len(self))
        n = round(held_out * len(self))
        return self.rows(np.sort(order[n:])), self.rows(np.sort(order[:n]))


def load_images(
    name: str, size: int | None = None, channels: int | None = None, split: str = "train"
) -> Images:
    """Images by name or path; those of a folder or the hub are scaled to size x size.

    `size` and `channels` (1 or 3) are by default those of the first image, cut to a square.
    `split` is of a hub's dataset and of Fashion-MNIST. Raises ValueError for what is no such name
    and for options that have no effect on it, OSError where it cannot be read, ImportError where a
    library is missing.
    """
    if channels not in (None, *MODES):
        raise ValueError(f"channels={channels}, expected 1 or 3")
    size = None if size is None else check_count("size", size)
    path, of_hub = Path(name), name.startswith(HUB)
    is_array = path.suffix in (".npy", ".npz") and path.is_file()
    is_folder = path.is_dir() and not of_hub
    if name in NAMED or is_array:
        for option, value in (("size", size), ("channels", channels)):
            if value is not None:
                raise ValueError(
                    f"{option}={value} has no effect on images {name!r}: only those of a folder or "
                    f"of {HUB}<name> are scaled"
                )
    if split != "train" and (name in ("digits", "colored-digits") or is_array or is_folder):
        raise ValueError(
            f"split={split!r} has no effect on images {name!r}: only fashion and {HUB}<name> "
            "consist of several"
        )
    if name in NAMED:
        return NAMED[name](split)
    if of_hub:
        return _from_hub(name.removeprefix(HUB), split, size, channels)
    if is_folder:
        return _from_folder(path, size, channels)
    if is_array:
        return _from_array(path)
    raise ValueError(
        f"images {name!r}: no such folder or .npy or .npz file, expected one, or one of "
        f"{sorted(NAMED)}, or {HUB}<name of a dataset on the Hugging Face hub>"
    )


def _digits(split: str = "train") -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(f"the digits need scikit-learn: {INSTALL}") from error
    found = load_digits()
    pixels = np.round(found.images * (255.0 / 16.0)).astype(np.uint8)
    names = tuple(str(name) for name in found.target_names)
    return Images(pixels[:, None], found.target.astype(np.int64), names)


def _colored_digits(split: str = "train") -> Images:
    return color(_digits(), COPIES, seed=0)


def color(gray: Images, copies: int, seed: int) -> Images:
    """Each gray image in `copies` random colorings, so that every pixel has a hue.

    Pixels above one half take the digit's hue, the others the background's; the saturation of
    each is uniform in [0.6, 1]. The gray image is left in the value, between 0.4 and 1, so that a
    digit keeps its shape where both hues agree.
    """
    rng = np.random.default_rng(seed)
    level = torch.as_tensor(np.repeat(gray.pixels[:, 0], copies, axis=0)).float() / 255.0
    n = len(level)
    hues, saturations = (
        torch.as_tensor(rng.uniform(low, 1.0, (2, n, 1, 1)), dtype=torch.float32)
        for low in (0.0, 0.6)
    )
    inside = level > 0.5
    hue = torch.where(inside, hues[0], hues[1])
    saturation = torch.where(inside, saturations[0], saturations[1])
    pixels = rgb(hue, saturation, 0.4 + 0.6 * level).mul(255.0).round().to(torch.uint8).numpy()
    labels = None if gray.labels is None else np.repeat(gray.labels, copies)
    return Images(pixels, labels, gray.classes)


def _fashion(split: str = "train", folder: Path = FASHION) -> Images:
    prefix = {"train": "train", "test": "t10k"}.get(split)
    if prefix is None:
        raise ValueError(f"split={split!r}, expected train or test")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Fashion-MNIST is not in {folder}: apt-get install dataset-fashion-mnist"
        )
    pixels = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    return Images(pixels[:, None], labels.astype(np.int64), FASHION_CLASSES)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """A compressed file of MNIST's format: bytes, of as many dimensions as it says."""
    with _readable(path), gzip.open(path) as file:
        content = file.read()
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of bytes")
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if values.size != np.prod(shape):
        raise ValueError(f"{path} has {values.size} bytes, expected {shape}")
    return values.reshape(shape)


NAMED: dict[str, Callable[[str], Images]] = {
    "digits": _digits,
    "colored-digits": _colored_digits,
    "fashion": _fashion,
}


def _from_array(path: Path) -> Images:
    """An array, which stays in its file until rows of it are asked for where it is .npy."""
    if path.suffix == ".npy":
        beside = path.with_suffix(".labels.npy")
        labels = read_array(beside) if beside.is_file() else None
        return _numbered(read_array(path, mmap_mode="r"), labels)
    with _readable(path), np.load(path, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in ("images", "labels") if name in arrays}
        names = sorted(arrays)
    if "images" not in found:
        raise ValueError(f"{path} holds {names}, expected images (and labels)")
    return _numbered(found["images"], found.get("labels"))


def read_array(path: Path, mmap_mode: Literal["r"] | None = None) -> NDArray[Any]:
    """The array of a .npy file. Raises ValueError, which names it, for a damaged one."""
    with _readable(path):
        array: NDArray[Any] = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    return array


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Around what reads a file: what a damaged one raises becomes a ValueError with its name."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (EOFError, ValueError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error


def _numbered(pixels: NDArray[Any], labels: NDArray[Any] | None) -> Images:
    """Images of an array, whose classes have no names but their numbers."""
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels
    if labels is None or pixels.ndim == 0:
        return Images(pixels)
    labels = check_labels(labels, len(pixels))
    return Images(pixels, labels, tuple(map(str, range(labels.max(initial=-1) + 1))))


def _from_folder(folder: Path, size: int | None, channels: int | None) -> Images:
    """The image files below a folder, by name; the first level of subfolders are the classes."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{folder} has no images ({', '.join(SUFFIXES)})")
    above = [path.relative_to(folder).parts[:-1] for path in files]
    classes = tuple(sorted({parts[0] for parts in above if parts}))
    labels = None
    if all(above):
        labels = np.array([classes.index(parts[0]) for parts in above], np.int64)
    opened = (_opened(path) for path in files)
    return Images(_decoded(opened, size, channels), labels, classes if labels is not None else ())


def _opened(path: Path) -> Image.Image:
    try:
        image: Image.Image = Image.open(path)
        image.load()  # and closes the file
        return image
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises each for damaged files
        raise ValueError(f"{path} cannot be read as an image ({error})") from error


def _decoded(
    images: Iterator[Image.Image], size: int | None, channels: int | None
) -> NDArray[np.uint8]:
    """Images as bytes (N, C, H, W): their middle square, in the size and mode of the first."""
    decoded = []
    for image in images:
        if size is None:
            size = min(image.size)
        if channels is None:
            channels = 1 if image.mode in GRAY else 3
        image = _in_bytes(image)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.convert(MODES[channels]).crop((left, top, left + side, top + side))
        if side != size:
            square = square.resize((size, size), Image.Resampling.BICUBIC)
        decoded.append(np.asarray(square, np.uint8).reshape(size, size, channels))
    return np.stack(decoded).transpose(0, 3, 1, 2)


def _in_bytes(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel. Raises ValueError where its range is unknown."""
    if image.mode in SIXTEEN_BITS:
        levels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        name = str(getattr(image, "filename", "")) or "an image"
        raise ValueError(
            f"{name} has pixels of 32 bits (mode {image.mode}), of which black and white are "
            "unknown: expected 8 or 16 bits, or an array in a .npy file, in [0, 1]"
        )
    return image


def _from_hub(name: str, split: str, size: int | None, channels: int | None) -> Images:
    """A dataset of the hub, or a folder of the same layout.

    `name` may end in `:<configuration>`, which is the first one otherwise.
    """
    name, _, configuration = name.partition(":")
    root = Path(name)
    if not root.is_dir():
        from huggingface_hub import snapshot_download

        pattern = f"{configuration or '*'}/{split}/*.parquet"
        root = Path(
            snapshot_download(
                name, repo_type="dataset", revision=PARQUET_BRANCH, allow_patterns=pattern
            )
        )
    found = sorted(root.glob(f"{configuration or '*'}/{split}/*.parquet"))
    if not found:
        there = sorted(
            {path.parent.relative_to(root).as_posix() for path in root.rglob("*.parquet")}
        )
        raise ValueError(f"{name!r} has no {configuration or '*'}/{split}, expected one of {there}")
    files = [path for path in found if path.parent == found[0].parent]
    return _from_parquet(files, size, channels)


def _from_parquet(files: list[Path], size: int | None, channels: int | None) -> Images:
    """The first column of images, and the column of labels beside it if there is one."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"the hub's files need pyarrow: {INSTALL}") from error
    schema = parquet.read_schema(files[0])
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features: dict[str, Any] = described.get("info", {}).get("features", {})
    kinds = {key: value.get("_type") for key, value in features.items() if isinstance(value, dict)}
    image = next((key for key, kind in kinds.items() if kind == "Image"), None)
    label = next((key for key, kind in kinds.items() if kind == "ClassLabel"), None)
    if image is None or image not in schema.names:
        raise ValueError(f"{files[0]} has the columns {schema.names}, none of them of images")
    columns = [image] if label is None else [image, label]
    tables = [parquet.read_table(path, columns=columns) for path in files]
    encoded = (row["bytes"].as_py() for table in tables for row in table[image])
    pixels = _decoded((Image.open(io.BytesIO(one)) for one in encoded), size, channels)
    if label is None:
        return Images(pixels)
    labels = np.concatenate([table[label].to_numpy() for table in tables])
    if (labels == UNLABELLED).all():
        return Images(pixels)
    names = features[label].get("names")
    if names is None:
        return _numbered(pixels, labels)
    return Images(pixels, check_labels(labels, len(pixels)), tuple(map(str, names)))
