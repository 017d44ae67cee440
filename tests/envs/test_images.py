"""Where images come from: packages, folders, arrays, and the layouts of other projects."""

from __future__ import annotations

import gzip
import io
import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from qgpo.envs.images import Images, _fashion, color, load_images, read_idx
from qgpo.images.colors import hue_distance, hue_saturation

RGB = np.random.default_rng(0).integers(0, 255, (6, 5, 5, 3)).astype(np.uint8)


def gray(n=12):
    rng = np.random.default_rng(0)
    return Images(
        rng.integers(0, 256, (n, 1, 8, 8)).astype(np.uint8), np.arange(n) % 3, ("a", "b", "c")
    )


def png(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


def test_the_digits_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets", reason="the images extra is not installed")
    images, given = load_images("digits"), datasets.load_digits()
    assert images.pixels.shape == (1797, 1, 8, 8)
    levels = np.round(images.pixels[:, 0].astype(float) * 16 / 255)
    np.testing.assert_array_equal(levels, given.images)
    np.testing.assert_array_equal(images.labels, given.target)
    assert images.classes == tuple("0123456789")


def test_every_colored_pixel_has_a_hue_of_two():
    images = color(gray(), copies=10, seed=0)
    assert images.pixels.shape == (120, 3, 8, 8)
    np.testing.assert_array_equal(images.labels, np.repeat(gray().labels, 10))
    hue, saturation = hue_saturation(torch.as_tensor(images.pixels) / 255.0)
    assert saturation.min() > 0.3
    inside = torch.as_tensor(np.repeat(gray().pixels[:, 0], 10, axis=0)) > 127
    first, mask = hue[0], inside[0]
    for part in (first[mask], first[~mask]):
        assert hue_distance(part, part[0]).max() < 0.02  # rounding to bytes
    assert hue_distance(first[mask][0], first[~mask][0]) > 0.02
    # hues are spread evenly
    counts = torch.histc(hue[:, 0, 0], 4, 0.0, 1.0)
    assert counts.min() > 15
    again = color(gray(), copies=10, seed=0)
    np.testing.assert_array_equal(images.pixels, again.pixels)
    assert (images.pixels != color(gray(), copies=10, seed=1).pixels).any()


def test_a_split_keeps_every_image_once():
    images = gray()
    known, held_out = images.split(0.25, seed=1)
    assert (len(known), len(held_out)) == (9, 3)
    both = np.concatenate([known.pixels, held_out.pixels])
    assert {row.tobytes() for row in both} == {row.tobytes() for row in images.pixels}
    row = next(i for i in range(12) if (images.pixels[i] == held_out.pixels[0]).all())
    assert held_out.labels[0] == images.labels[row]


@pytest.mark.parametrize("name", ["images.npy", "images.npz"])
def test_arrays_keep_their_pixels(name, tmp_path):
    if name.endswith("npy"):
        np.save(tmp_path / name, RGB.transpose(0, 3, 1, 2))
    else:
        np.savez(tmp_path / name, images=RGB.transpose(0, 3, 1, 2), labels=np.arange(6))
    images = load_images(str(tmp_path / name))
    np.testing.assert_array_equal(images.pixels, RGB.transpose(0, 3, 1, 2))
    if name.endswith("npy"):
        assert isinstance(images.pixels, np.memmap)
        assert images.labels is None
        np.save(tmp_path / "images.labels.npy", np.arange(6))
        images = load_images(str(tmp_path / name))
    assert images.classes == tuple("012345")
    np.testing.assert_array_equal(images.labels, np.arange(6))


@pytest.mark.parametrize("name", ["images.npy", "images.npz"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(6) / 2, "labels have type float64, expected integers"),
        (np.arange(6) - 1, "labels go from -1 to 4, expected 0 and above"),
        (np.arange(5), r"labels have shape \(5,\), expected \(6,\)"),
        (np.array(0), r"labels have shape \(\), expected \(6,\)"),
    ],
)
def test_labels_of_arrays_are_checked(name, labels, message, tmp_path):
    if name.endswith("npy"):
        np.save(tmp_path / name, RGB)
        np.save(tmp_path / "images.labels.npy", labels)
    else:
        np.savez(tmp_path / name, images=RGB, labels=labels)
    with pytest.raises(ValueError, match=message):
        load_images(str(tmp_path / name))


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_gray_images_of_16_bits_keep_their_levels(channels, suffix, tmp_path):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 257).save(tmp_path / f"a.{suffix}")
    images = load_images(str(tmp_path), channels=channels)
    assert images.pixels.shape == (1, channels or 1, 16, 16)
    assert (images.pixels == levels).all()


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_images_of_32_bits_are_refused(kind, tmp_path):
    Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif has pixels of 32 bits \(mode [IF]\)"):
        load_images(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *(
            (name, option)
            for name in ("digits", "colored-digits", "fashion", "a.npy", "a.npz")
            for option in ({"size": 4}, {"channels": 1})
        ),
        *(
            (name, {"split": "test"})
            for name in ("digits", "colored-digits", "a.npy", "a.npz", "folder")
        ),
    ],
)
def test_options_without_an_effect_are_refused(name, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", RGB)
    np.savez("a.npz", images=RGB)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(png(RGB[0]))
    (key, value), *_ = option.items()
    with pytest.raises(ValueError, match=f"{key}={value!r} has no effect on images '{name}'"):
        load_images(name, **option)


def test_arrays_run_no_code(tmp_path):
    np.save(tmp_path / "pickle.npy", np.array([print], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "pickle.npz", images=np.array([print], dtype=object))
    for name in ("pickle.npy", "pickle.npz"):
        with pytest.raises(ValueError, match=r"allow_pickle|Python objects"):
            load_images(str(tmp_path / name))


@pytest.mark.parametrize("name", ["images.npy", "images.npz", "images-idx3-ubyte.gz"])
@pytest.mark.parametrize("part", [0.0, 0.5])
def test_a_damaged_file_is_named(name, part, tmp_path):
    path = tmp_path / name
    idx = b"\0\0\x08\1" + struct.pack(">I", 99) + RGB.tobytes()[:99]
    if name.endswith("gz"):
        path.write_bytes(gzip.compress(idx))
    elif name.endswith("npz"):
        np.savez(path, images=RGB)
    else:
        np.save(path, RGB)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=rf"{name} (cannot be read|is no IDX file)"):
        read_idx(path) if name.endswith("gz") else load_images(str(path))


def test_a_folder_has_a_class_per_subfolder(tmp_path):
    for i, name in enumerate(["cats/a.png", "cats/b.png", "dogs/deep/c.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(RGB[i]))
    (tmp_path / "notes.txt").write_text("no image")
    images = load_images(str(tmp_path))
    np.testing.assert_array_equal(images.pixels, RGB[:3].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(images.labels, [0, 0, 1])
    assert images.classes == ("cats", "dogs")
    (tmp_path / "loose.png").write_bytes(png(RGB[3]))
    assert load_images(str(tmp_path)).labels is None


def test_images_of_several_sizes_become_squares_of_one(tmp_path):
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200  # the middle square
    (tmp_path / "a.png").write_bytes(png(wide))
    (tmp_path / "b.png").write_bytes(png(np.full((16, 16, 3), 90, np.uint8)))
    images = load_images(str(tmp_path), size=4, channels=1)
    assert images.pixels.shape == (2, 1, 4, 4)
    assert (images.pixels[0] == 200).all()
    assert (images.pixels[1] == 90).all()


def parquet(path, labels=range(6), feature="Image"):
    """A file as the hub converts datasets of images."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as written

    columns = {"image": [{"bytes": png(one), "path": None} for one in RGB]}
    features = {"image": {"_type": feature}}
    if labels is not None:
        columns["label"] = list(labels)
        features["label"] = {"_type": "ClassLabel", "names": list("uvwxyz")}
    table = pa.table(columns)
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    path.parent.mkdir(parents=True)
    written.write_table(table.replace_schema_metadata(metadata), path)


def test_a_dataset_of_the_hub_is_read_from_its_parquet_files(tmp_path):
    parquet(tmp_path / "default" / "train" / "0000.parquet")
    parquet(tmp_path / "default" / "test" / "0000.parquet", labels=None)
    parquet(tmp_path / "default" / "hidden" / "0000.parquet", labels=[-1] * 6)
    parquet(tmp_path / "default" / "wrong" / "0000.parquet", labels=[6] * 6)
    images = load_images(f"hf:{tmp_path}")
    np.testing.assert_array_equal(images.pixels, RGB.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(images.labels, np.arange(6))
    assert images.classes == tuple("uvwxyz")
    assert load_images(f"hf:{tmp_path}:default", split="test").labels is None
    assert load_images(f"hf:{tmp_path}", split="hidden").labels is None
    with pytest.raises(ValueError, match="labels go up to 6, expected below 6 classes"):
        load_images(f"hf:{tmp_path}", split="wrong")
    with pytest.raises(ValueError, match=r"has no \*/validation, expected one of.*default/train"):
        load_images(f"hf:{tmp_path}", split="validation")


def test_a_dataset_by_name_is_asked_for_by_its_parquet_branch(tmp_path, monkeypatch):
    parquet(tmp_path / "default" / "train" / "0000.parquet")
    asked = {}

    def snapshot_download(name, **arguments):
        asked.update(arguments, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert len(load_images("hf:someone/pictures")) == 6
    assert asked == {
        "name": "someone/pictures",
        "repo_type": "dataset",
        "revision": "refs/convert/parquet",
        "allow_patterns": "*/train/*.parquet",
    }


def idx(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes())


def test_fashion_mnist_is_read_as_debian_lays_it_out(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 28, 28)).astype(np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(idx(pixels))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.array([9, 0, 3, 3], np.uint8)))
    images = _fashion("test", tmp_path)
    np.testing.assert_array_equal(images.pixels[:, 0], pixels)
    assert [images.classes[i] for i in images.labels] == ["boot", "T-shirt", "dress", "dress"]


def test_a_damaged_idx_file_is_refused(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"none"))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x05ab"))
    for name in "ab":
        with pytest.raises(ValueError, match=f"{name}.gz"):
            read_idx(tmp_path / f"{name}.gz")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: load_images("gone"), ValueError, "'gone': no such folder.*digits"),
        (lambda: load_images("digits", channels=2), ValueError, "channels=2, expected 1 or 3"),
        (lambda: load_images(".", size=0), ValueError, "size=0, expected at least 1"),
        (lambda: load_images("gone", split="test"), ValueError, "'gone': no such folder"),
        (lambda: Images(RGB, np.arange(6), tuple("ab")), ValueError, "up to 5, expected below 2"),
        (lambda: Images(RGB, np.arange(6.0)), ValueError, "type float64, expected integers"),
        (lambda: load_images("."), FileNotFoundError, "has no images"),
        (lambda: Images(RGB[0]), ValueError, r"shape \(5, 5, 3\)"),
        (lambda: Images(RGB, np.arange(2)), ValueError, r"labels have shape \(2,\), expected"),
    ],
)
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"a\.png cannot be read"):
        load_images(str(tmp_path))
