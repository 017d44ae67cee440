"""Models of images: the contract of the general model, with images and several energies."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import change_header, rewrite

pytest.importorskip("diffusers", reason="the images extra is not installed")

from stable_baselines3.common.callbacks import CheckpointCallback

from qgpo.agents.core.checkpoint import CheckpointError
from qgpo.agents.images import (
    ClassifierConfig,
    EnergyGuidedImages,
    ImageConfig,
    Pixels,
    train_classifier,
)

TINY = ImageConfig(
    channels=(4, 4),
    norm_groups=2,
    data_steps=6,
    energy_channels=(4, 4),
    guidance_steps=5,
    contrast=6,
    groups=2,
    solver_steps=3,
)
BY_CLASS = replace(TINY, guidance_options={"labels": "exponential"})
SIZE = (3, 4, 4)


def images(n=40, seed=0):
    """Upright stripes and level stripes in turn."""
    rng = np.random.default_rng(seed)
    level = np.full((n, *SIZE), 60.0)
    level[::2, :, :, ::2] = level[1::2, :, ::2] = 200.0
    return np.clip(level + rng.normal(0.0, 12.0, (n, *SIZE)), 0, 255).astype(np.uint8)


def stripes(x):
    """Two energies: steps between rows, of which upright stripes have none, and between columns."""
    return torch.stack([x.diff(dim=d).abs().mean(dim=(1, 2, 3)) for d in (-2, -1)], dim=1)


def noise(seed=3):
    return torch.Generator().manual_seed(seed)


def fitted(config=TINY, **more):
    return EnergyGuidedImages(config, seed=1, device="cpu").fit(images(), stripes, **more)


@pytest.fixture(scope="module")
def trained():
    return fitted()


def drawn(model, n=4, **arguments):
    target = None if arguments.get("guidance_scale") == 0.0 else torch.arange(n) % 2
    return model.sample(n, target=target, generator=noise(), **arguments)


@pytest.mark.parametrize("guidance", ["cep", "mse", "dps", "classifier"])
@pytest.mark.parametrize("kind", ["function", "labels"])
def test_every_guidance_of_several_energies_guides_images(guidance, kind):
    config = replace(TINY, guidance=guidance)
    energy = stripes if kind == "function" else np.random.default_rng(0).random((40, 2))
    model = EnergyGuidedImages(config, seed=1, device="cpu").fit(images(), energy)
    unguided, guided = drawn(model, guidance_scale=0.0), drawn(model, guidance_scale=30.0)
    assert guided.shape == (4, *SIZE)
    assert guided.min() >= 0.0
    assert guided.max() <= 1.0
    assert (guided - unguided).abs().max() > 1e-6


def test_at_scale_zero_it_is_the_data_model(trained):
    alone = EnergyGuidedImages(TINY, seed=1, device="cpu").fit_data(images())
    guided = drawn(trained, guidance_scale=0.0)
    torch.testing.assert_close(drawn(alone, guidance_scale=0.0), guided, rtol=0, atol=0)
    with_target = trained.sample(4, target=1, guidance_scale=0.0, generator=noise())
    torch.testing.assert_close(with_target, guided, rtol=0, atol=0)


def test_the_same_seed_gives_the_same_images(trained):
    again = fitted()
    torch.testing.assert_close(drawn(again), drawn(trained), rtol=0, atol=0)
    torch.testing.assert_close(
        again.sample(2, target=0), fitted().sample(2, target=0), rtol=0, atol=0
    )
    assert (trained.sample(2, target=0) - trained.sample(2, target=0)).abs().max() > 0.0


@pytest.mark.parametrize("steps", [3, 8], ids=["data", "guidance"])
def test_an_interrupted_training_goes_on_as_if_never_stopped(steps, trained):
    model = fitted(callback=lambda model: model.num_timesteps < steps)
    assert model.num_timesteps == steps
    model.save("half")
    resumed = EnergyGuidedImages.load("half", device="cpu").fit(images(), stripes, resume=True)
    expected = trained.networks.state_dict()
    for name, value in resumed.networks.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)
    torch.testing.assert_close(drawn(resumed), drawn(trained), rtol=0, atol=0)


def test_a_file_gives_the_same_images(trained):
    trained.save("images")
    loaded = EnergyGuidedImages.load("images", device="cpu")
    assert loaded.config == trained.config
    torch.testing.assert_close(drawn(loaded), drawn(trained), rtol=0, atol=0)


def test_on_the_denoised_image_a_file_needs_the_energy():
    options = {"labels": "exponential", "base": "denoised"}
    model = fitted(replace(TINY, guidance_options=options))
    model.save("images")
    alone = EnergyGuidedImages.load("images", device="cpu")
    drawn(alone, guidance_scale=0.0)
    with pytest.raises(RuntimeError, match=r"load\(path, energy=...\)"):
        drawn(alone)
    loaded = EnergyGuidedImages.load("images", stripes, device="cpu")
    torch.testing.assert_close(drawn(loaded), drawn(model), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("shape",), [3, 4, 5]),
        (("shape",), ["3", 4, 4]),
        (("shape",), [48]),
        (("energies",), -1),
        (("energies",), 3),
        (("unet",), {"act_fn": "__import__('os').system('touch ran')"}),
        (("unet",), {"block_out_channels": [4096, 4096]}),
        (("unet",), "os"),
        (("levels",), 10**9),
        (("config", "channels"), [100_000, 100_000]),
        (("config", "attention"), [5]),
    ],
    ids=lambda v: str(v)[:30],
)
def test_what_a_file_says_is_checked(path, value, trained):
    trained.save("images")
    header = json.loads(zipfile.ZipFile("images.zip").read("checkpoint.json"))
    whole = value if len(path) == 1 else {**header["config"], path[1]: value}
    rewrite(Path("images.zip"), change_header(**{path[0]: whole}))
    with pytest.raises(CheckpointError, match="images"):
        EnergyGuidedImages.load("images", device="cpu")


def test_classes_by_labels_are_followed():
    """The tiniest network tells upright from level."""
    rates = {"data_learning_rate": 1e-2, "guidance_learning_rate": 1e-2}
    steps = {"data_steps": 120, "guidance_steps": 80, "solver_steps": 6}
    sizes = {"channels": (8, 8), "energy_channels": (8, 8), "energy_unit": 5.0, "contrast": 32}
    config = replace(BY_CLASS, **rates, **steps, **sizes)
    labels = 30.0 * (np.arange(40)[:, None] % 2 != np.arange(2))
    model = EnergyGuidedImages(config, seed=0, device="cpu").fit(images(), labels)
    target = torch.arange(40) % 2
    of_rows, of_columns = stripes(model.sample(40, target=target, guidance_scale=4.0)).T
    assert float(((of_rows > of_columns).long() == target).float().mean()) > 0.8


def test_callbacks_of_sb3_see_the_training(tmp_path):
    callback = CheckpointCallback(save_freq=4, save_path=str(tmp_path / "kept"))
    model = fitted(callback=callback)
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert kept == ["rl_model_4_steps.zip", "rl_model_8_steps.zip"]
    loaded = EnergyGuidedImages.load(tmp_path / "kept" / kept[1], device="cpu")
    assert loaded.num_timesteps == 8
    loaded.fit(images(), stripes, resume=True)
    torch.testing.assert_close(drawn(loaded), drawn(model), rtol=0, atol=0)


def test_bytes_floats_and_tensors_are_the_same_images(trained):
    x = images()
    for data in (x / np.float32(255.0), torch.as_tensor(x), torch.as_tensor(x) / 255.0):
        model = EnergyGuidedImages(TINY, seed=1, device="cpu").fit(data, stripes)
        torch.testing.assert_close(drawn(model), drawn(trained), rtol=0, atol=1e-4)


def test_images_stay_in_their_file_until_they_are_asked_for(tmp_path, trained):
    np.save(tmp_path / "images.npy", images())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    pixels = Pixels(mapped, torch.device("cpu"))
    assert pixels.images is mapped
    rows = torch.tensor([[1, 3], [5, 7]])
    expected = 2.0 * torch.as_tensor(images()[rows.numpy()]).flatten(2) / 255.0 - 1.0
    torch.testing.assert_close(pixels[rows], expected)
    model = EnergyGuidedImages(TINY, seed=1, device="cpu").fit(mapped, stripes)
    torch.testing.assert_close(drawn(model), drawn(trained), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("guidance", "options"),
    [
        ("mse", {}),
        ("dps", {}),
        ("cep", {"labels": "exponential"}),
        ("cep", {"labels": "exponential", "base": "denoised"}),
    ],
)
def test_a_guidance_converts_few_images_at_a_time_and_sees_every_energy(
    guidance, options, monkeypatch
):
    config = replace(TINY, guidance=guidance, guidance_options=options)
    expected = fitted(config)
    most, of_all = 0, Pixels.__getitem__

    def counted(pixels, rows):
        nonlocal most
        found = of_all(pixels, rows)
        most = max(most, found.numel() // found.shape[-1])
        return found

    monkeypatch.setattr(Pixels, "__getitem__", counted)
    monkeypatch.setattr("qgpo.agents.general.stages.ROWS_PER_CALL", 16)
    model = fitted(config)
    assert most == 16
    torch.testing.assert_close(drawn(model), drawn(expected), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (images()[:, 0], r"images have shape \(40, 4, 4\), expected"),
        (images()[:1], "there are 1 images"),
        (images().astype(np.int32), "type int32, expected uint8"),
        (images() / 100.0, "expected 0 to 1"),
        (np.full((4, *SIZE), np.nan), "expected 0 to 1"),
        ([[1, 2]], "shape list"),
    ],
)
def test_what_is_no_images_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        EnergyGuidedImages(TINY, device="cpu").fit(data, stripes)


def test_other_mistakes_are_named(trained):
    with pytest.raises(ValueError, match="has no conditions"):
        EnergyGuidedImages(TINY, device="cpu").fit(images(), stripes, np.zeros((40, 1)))
    with pytest.raises(ValueError, match="this model was made for"):
        trained.fit(images()[..., :2], stripes, resume=True)
    with pytest.raises(ValueError, match="other data"):
        trained.fit(images(seed=5), stripes, resume=True)
    with pytest.raises(ValueError, match="8 divides"):
        EnergyGuidedImages(replace(TINY, channels=(4, 4, 4, 4)), device="cpu").fit(
            images(), stripes
        )
    with pytest.raises(TypeError, match="expected ImageConfig"):
        EnergyGuidedImages("laptop")


def test_a_classifier_for_measures_learns():
    labels = np.arange(40) % 2
    config = ClassifierConfig(steps=40, batch_size=16, width=4, n_features=4)
    classifier = train_classifier(images(), labels, config, device="cpu", progress_bar=False)
    logits = classifier(torch.as_tensor(images(seed=1)) / 255.0)
    assert (logits.argmax(dim=-1).numpy() == labels).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(40) % 2 - 1, "labels go from -1 to 0, expected 0 and above"),
        (np.arange(40) / 2, "labels have type float64, expected integers"),
        (np.arange(39) % 2, r"labels have shape \(39,\), expected \(40,\)"),
        (np.eye(40, 2), r"labels have shape \(40, 2\), expected \(40,\)"),
    ],
)
def test_a_classifier_learns_whole_labels_alone(labels, message):
    with pytest.raises(ValueError, match=message):
        train_classifier(images(), labels, ClassifierConfig(steps=1), device="cpu")


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"batch_size": 0}, {"width": 2.5}])
def test_a_classifier_s_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*, expected"):
        ClassifierConfig(**wrong)


# Pipelines of diffusers -----------------------------------------------------------------------


@pytest.fixture
def pipeline(tmp_path):
    """A pipeline of diffusers as its `save_pretrained` writes it."""
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=4,
        block_out_channels=(4, 4),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=2,
    )
    whole = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    whole.save_pretrained(tmp_path / "pipeline")
    return whole


def test_a_pretrained_pipeline_denoises_as_it_does_by_itself(pipeline):
    config = replace(
        TINY, pretrained="pipeline", schedule="linear", prediction="noise", data_steps=0
    )
    model = EnergyGuidedImages(config, device="cpu").fit(images(), stripes)
    assert model.progress["data"] == 0
    x = torch.randn(5, *SIZE, generator=noise())
    steps = torch.tensor([10, 200, 400, 700, 999])
    signal = pipeline.scheduler.alphas_cumprod[steps]
    t = model.schedule.inverse_half_log_snr(0.5 * torch.log(signal / (1.0 - signal)))
    with torch.no_grad():
        eps = pipeline.unet(x, steps).sample
        denoised = model.data_model_ema.denoise(x.flatten(1), t, None)
    alpha, sigma = signal.sqrt()[:, None], (1.0 - signal).sqrt()[:, None]
    expected = (x.flatten(1) - sigma * eps.flatten(1)) / alpha
    error = alpha * (denoised - expected)
    assert error.abs().max() < 1e-3
    model.save("tuned")
    (tuned := EnergyGuidedImages.load("tuned", device="cpu"))
    torch.testing.assert_close(drawn(tuned), drawn(model), rtol=0, atol=0)
    with zipfile.ZipFile("tuned.zip") as opened:
        assert json.loads(opened.read("checkpoint.json"))["levels"] == 1000


def test_a_pipeline_that_predicts_something_else_is_refused(pipeline):
    config = replace(TINY, pretrained="pipeline")
    with pytest.raises(ValueError, match="prediction='velocity', expected 'noise'"):
        EnergyGuidedImages(config, device="cpu").fit(images(), stripes)
