"""The command for images, with settings that train in seconds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from commands import run
from PIL import Image

pytest.importorskip("diffusers", reason="the images extra is not installed")

from qgpo.agents.images import EnergyGuidedImages
from qgpo.scripts import images as script

SMALL = [
    *("--config.channels", "4", "4", "--config.energy-channels", "4", "4"),
    *("--config.norm-groups", "2", "--config.data-steps", "4", "--config.guidance-steps", "4"),
    *("--config.contrast", "8", "--config.solver-steps", "3", "--device", "cpu"),
]


@pytest.fixture
def pixels(tmp_path):
    """An array of images with labels."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", images=rng.integers(0, 255, (30, 3, 4, 4), np.uint8),
             labels=np.arange(30) % 2)  # fmt: skip
    return "own.npz"


def train(tmp_path, pixels, *more, code=0):
    words = ["train", "--images", pixels, *SMALL, "--output", "runs/own.zip", *more]
    return run("images", *words, cwd=tmp_path, data=tmp_path, code=code)


def test_train_and_sample(tmp_path, pixels):
    done = train(tmp_path, pixels)
    assert "runs/own.zip: 30 images, 8 steps" in done.stdout.replace("\\", "/")
    refused = train(tmp_path, pixels, code=1)
    assert "exists: --resume it" in refused.stderr
    words = [
        "sample",
        "--model",
        "runs/own.zip",
        "--scales",
        "0",
        "3",
        "--n",
        "4",
        "--device",
        "cpu",
    ]
    run("images", *words, cwd=tmp_path, data=tmp_path)
    drawn = np.load(tmp_path / "runs" / "own.npy")
    assert drawn.shape == (2, 4, 3, 4, 4)
    assert np.abs(drawn[0] - drawn[1]).max() > 0.0
    with Image.open(tmp_path / "runs" / "own.png") as picture:
        assert picture.width > picture.height > 50


def test_a_user_s_own_energy_is_followed_and_training_resumed(tmp_path, pixels):
    (tmp_path / "mine.py").write_text("def dark(x):\n    return x.mean(dim=(1, 2, 3))\n")
    np.save(tmp_path / "values.npy", np.random.default_rng(0).random(30))
    own = ("--energy", "mine.py:dark")
    train(tmp_path, pixels, *own)
    whole = EnergyGuidedImages.load(tmp_path / "runs" / "own.zip", device="cpu")
    assert whole.layout.energies == 0
    words = ["sample", "--model", "runs/own.zip", "--n", "4", "--energy", "mine.py:dark"]
    done = run("images", *words, "--target", "1", cwd=tmp_path, data=tmp_path, code=1)
    assert "--target 1: this model has a single energy" in done.stderr
    words[-1] = "classes"
    done = run("images", *words, cwd=tmp_path, data=tmp_path, code=1)
    assert "--energy classes: expected hues or file.py:function" in done.stderr
    assert "8 steps" in train(tmp_path, pixels, *own, "--resume").stdout
    more = ("--overwrite", "--energy", "values.npy")
    assert "8 steps" in train(tmp_path, pixels, *more).stdout


def test_a_refused_training_leaves_the_file_as_it_is(tmp_path, pixels):
    (tmp_path / "mine.py").write_text("def dark(x):\n    return x.mean(dim=(1, 2, 3))\n")
    train(tmp_path, pixels)
    before = (tmp_path / "runs" / "own.zip").stat()
    refused = train(tmp_path, pixels, "--energy", "mine.py:dark", "--resume", code=1)
    assert "this model was made for" in refused.stderr
    after = (tmp_path / "runs" / "own.zip").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_ctrl_c_keeps_what_was_trained_and_no_step_is_needed(tmp_path, monkeypatch):
    np.savez(tmp_path / "own.npz", images=np.zeros((8, 3, 4, 4), np.uint8), labels=np.arange(8) % 2)
    monkeypatch.chdir(tmp_path)
    chosen = script.parse(["train", "--images", "own.npz", *SMALL, "--output", "own.zip"])

    def stop(model):
        if model.num_timesteps == 3:
            model.training.interrupt()

    monkeypatch.setattr(chosen, "keep", stop)
    with pytest.raises(KeyboardInterrupt):
        chosen.run()
    assert EnergyGuidedImages.load("own.zip", device="cpu").num_timesteps == 3
    none = {"data_steps": 0, "guidance": "dps", "guidance_options": {}}
    chosen.config = dataclasses.replace(chosen.config, **none)
    (tmp_path / "mine.py").write_text("def dark(x):\n    return x.mean(dim=(1, 2, 3))\n")
    chosen.energy, chosen.output, chosen.keep = "mine.py:dark", Path("none.zip"), lambda model: None
    chosen.run()
    assert EnergyGuidedImages.load("none.zip", device="cpu").num_timesteps == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--preset", "cifar"], "--preset cifar: expected one of"),
        (["train", "--images", "gone"], "'gone': no such folder"),
        (
            ["train", "--images", "own.npz", "--energy", "mine"],
            "--energy mine: expected classes, hues",
        ),
        (["sample", "--model", "gone.zip"], "does not exist"),
        (["sample", "--model", "gone.zip", "--output", "a.txt"], "a.txt: expected a name"),
        (["measure", "--tasks", "sizes"], "--tasks sizes: expected some of"),
    ],
)
def test_mistakes_end_in_one_line(words, message, tmp_path, pixels):
    done = run("images", *words, cwd=tmp_path, data=tmp_path, code=1)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--save-every", "0"], "--save-every=0, expected at least 1"),
        (["train", "--resume", "--overwrite"], "--resume --overwrite: expected one of them"),
        (["sample", "--model", "a.zip", "--n", "0"], "--n=0, expected at least 1"),
        (["sample", "--model", "a.zip", "--scales"], "--scales has no values"),
        (["sample", "--model", "a.zip", "--scales", "1", "1.0"], "--scales has 1 more than once"),
        (["measure", "--seeds"], "--seeds has no values"),
        (["measure", "--seeds", "1", "1"], "--seeds has 1 more than once"),
        (["measure", "--tasks"], "--tasks has no values"),
        (["measure", "--n-samples", "0"], "--n-samples=0, expected at least 1"),
    ],
)
def test_what_is_not_possible_is_refused_at_once(words, message, monkeypatch):
    monkeypatch.setattr(script, "load_images", None)
    monkeypatch.setattr(script, "study", None)
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        script.main(script.parse(words))


def test_a_training_is_resumed_with_the_seed_it_has(tmp_path, pixels, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--images", pixels, *SMALL, "--output", "own.zip"]
    script.main(script.parse([*words, "--seed", "7"]))
    script.main(script.parse([*words, "--resume"]))
    script.main(script.parse([*words, "--resume", "--seed", "7"]))
    with pytest.raises(SystemExit, match=r"--resume --seed 0: own.zip has seed 7"):
        script.main(script.parse([*words, "--resume", "--seed", "0"]))


def test_presets_decide_the_defaults():
    chosen = script.parse(["train", "--preset", "hues", "--config.groups", "3"])
    assert (chosen.images, chosen.energy, chosen.config.beta) == ("colored-digits", "hues", 50.0)
    assert chosen.config.groups == 3
    full = script.parse(["train", "--preset", "imagenet"]).config
    assert (full.guidance_steps, full.solver_steps) == (500_000, 250)


def test_the_measured_study(tmp_path):
    pytest.importorskip("sklearn", reason="the images extra is not installed")
    words = ["measure", "--tasks", "hues", "--longer", "0.002", "--n-samples", "12"]
    words += ["--output", "runs/images"]
    done = run("images", *words, "--device", "cpu", cwd=tmp_path, data=tmp_path)
    folder = tmp_path / "runs" / "images"
    found = json.loads((folder / "results.json").read_text())["tasks"]
    methods = {row["method"] for row in found["hues"]["rows"]}
    assert methods == {"exact", "unguided", "CEP", "CEP, plain", "MSE", "DPS"}
    assert all(0.0 <= row["hue_error"] <= 0.5 for row in found["hues"]["rows"])
    written = {"hues.png", "hues_curves.png", "hues-CEP-0.zip", "hues-CEP-plain-0.zip"}
    assert written <= {path.name for path in folder.iterdir()}
    assert "hue error at equal diversity" in done.stdout
    done = run("images", *words, cwd=tmp_path, data=tmp_path, code=1)
    assert "results.json exists: choose another --output" in done.stderr
    words[5:7] = ["--n-samples", "11", "--overwrite"]
    done = run("images", *words, cwd=tmp_path, data=tmp_path, code=1)
    assert "n_samples=11, expected at least 12" in done.stderr
