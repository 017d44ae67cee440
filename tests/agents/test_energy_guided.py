"""The general model: properties that hold for every guidance, files, mistakes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from checkpoint_files import change_header, rewrite

from qgpo import QGPO, EnergyGuidedConfig, EnergyGuidedDiffusion, load_agent
from qgpo.agents.core.checkpoint import CheckpointError
from qgpo.agents.general.config import Layout
from qgpo.guidance import GUIDANCES

TINY = EnergyGuidedConfig(
    beta=1.0,
    hidden=(16,),
    data_steps=6,
    energy_hidden=(16,),
    guidance_steps=5,
    contrast=8,
    groups=2,
    components=4,
    solver_steps=4,
)
OF_ONE = sorted(name for name, guidance in GUIDANCES.items() if guidance.single)
TRAINED = [name for name in OF_ONE if GUIDANCES[name].trainable]


def data(n=64, dim=2, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def energy(x):
    return x[:, 0] + 0.25 * (x**2).sum(dim=-1)


def noise():
    return torch.Generator().manual_seed(3)


@pytest.fixture(scope="module", autouse=True)
def _quick_mixtures() -> Iterator[None]:
    """No test here depends on how well the mixtures fit, which takes most of a tiny training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qgpo.gaussians.STEPS", ((1_000, 2),))
        patch.setattr("qgpo.guidance.cep.PARTS", (2, 1))
        patch.setattr("qgpo.guidance.cep.OF_MIXTURES", (2, 2, 32))
        patch.setattr("qgpo.guidance.cep.OF_SHARES", (2, 1, 32))
        yield


def test_a_half_built_model_is_none(monkeypatch):
    model = EnergyGuidedDiffusion(TINY)
    with monkeypatch.context() as patch:
        patch.setattr("qgpo.agents.general.tilted.make_guidance", lambda *_: [][0])
        with pytest.raises(IndexError):
            model.fit(data(), energy)
    with pytest.raises(RuntimeError, match="nothing to save"):
        model.save("half")
    whole = EnergyGuidedDiffusion(TINY).fit(data(), energy)
    expected = whole.sample(4)
    torch.testing.assert_close(model.fit(data(), energy).sample(4), expected, rtol=0, atol=0)


def fitted(config, x=None, e=energy, condition=None, **more):
    x = data() if x is None else x
    return EnergyGuidedDiffusion(config, seed=1, device="cpu").fit(x, e, condition, **more)


@pytest.fixture(scope="module")
def trained():
    return fitted(TINY)


every_guidance = pytest.mark.parametrize("guidance", OF_ONE)


@every_guidance
@pytest.mark.parametrize("kind", ["callable", "labels"])
@pytest.mark.parametrize("conditional", [False, True])
def test_every_guidance_fits_samples_and_answers(guidance, kind, conditional):
    x, condition = data(), data(dim=1, seed=1) if conditional else None
    e = energy if kind == "callable" else energy(x)
    if conditional and kind == "callable":

        def e(x, c):
            return x[:, 0] * c[:, 0]

    model = fitted(replace(TINY, guidance=guidance), x, e, condition)
    c = condition[:7] if conditional else None
    samples = model.sample(7, c)
    assert samples.shape == (7, 2)
    assert torch.isfinite(samples).all()
    gradient = model.guidance(samples, torch.full((7,), 0.5), c)
    assert gradient.shape == (7, 2)
    assert not gradient.requires_grad
    again = [model.sample(7, c, generator=noise()) for _ in range(2)]
    assert torch.equal(again[0], again[1])


@every_guidance
def test_the_seed_decides_everything(guidance):
    models = [fitted(replace(TINY, guidance=guidance)) for _ in range(2)]
    assert torch.equal(models[0].sample(5), models[1].sample(5))
    assert not torch.equal(models[0].sample(5), models[0].sample(5))


@every_guidance
def test_scale_zero_is_the_data_model(guidance):
    model = fitted(replace(TINY, guidance=guidance))
    expected = model.decode(
        model.data_model_ema.sample(
            torch.randn(9, 2, generator=noise()), None, steps=4, spacing="log_snr"
        )
    )
    found = model.sample(9, guidance_scale=0.0, generator=noise())
    torch.testing.assert_close(found, expected, atol=0.0, rtol=0.0)


@pytest.mark.parametrize("guidance", sorted(set(OF_ONE) - {"cep", "mse", "emse", "aepo"}))
def test_beta_zero_is_the_data_model(guidance):
    config = replace(TINY, beta=0.0, guidance=guidance, guidance_learning_rate=0.0)
    model = fitted(config)
    guided, plain = (model.sample(9, guidance_scale=w, generator=noise()) for w in (1.0, 0.0))
    torch.testing.assert_close(guided, plain, atol=1e-5, rtol=0.0)


@every_guidance
@pytest.mark.parametrize("kind", ["callable", "labels"])
def test_a_constant_added_to_the_energy_changes_nothing(guidance, kind):
    x = data()
    config = replace(TINY, guidance=guidance)
    samples = []
    for constant in (0.0, 64.0):
        e = (lambda x, c=constant: energy(x) + c) if kind == "callable" else energy(x) + constant
        samples.append(fitted(config, x, e).sample(9))
    torch.testing.assert_close(samples[0], samples[1], atol=1e-3, rtol=0.0)


@every_guidance
def test_scaling_and_shifting_the_data_scales_and_shifts_the_samples(guidance):
    x, config = data(), replace(TINY, guidance=guidance)
    shift = torch.tensor([3.0, -1.0])
    plain = fitted(config, x, energy).sample(9)
    moved = fitted(config, 4.0 * x + shift, lambda y: energy((y - shift) / 4.0)).sample(9)
    torch.testing.assert_close(moved, 4.0 * plain + shift, atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("guidance", "stop"),
    [
        *((guidance, stop) for guidance in ("cep", "analytic", "weighted") for stop in (1, 6, 8)),
        *((guidance, 11) for guidance in ("aepo", "cep", "analytic", "weighted")),
        ("cep", 5),
        ("aepo", 13),
    ],
)
def test_stopped_saved_and_resumed_equals_uninterrupted(guidance, stop, tmp_path):
    x, config = data(), replace(TINY, guidance=guidance)
    labels = energy(x)
    expected = fitted(config, x, labels)
    left = iter(range(stop - 1, -1, -1))
    stopped = fitted(config, x, labels, callback=lambda model: next(left) > 0)
    assert sum(stopped.progress.values()) == stop
    stopped.save(tmp_path / "model")
    resumed = EnergyGuidedDiffusion.load(tmp_path / "model", device="cpu")
    resumed.fit(x, labels, resume=True)
    assert resumed.progress == expected.progress
    for name, value in expected.networks.state_dict().items():
        assert torch.equal(value, resumed.networks.state_dict()[name]), name
    assert torch.equal(resumed.sample(5), expected.sample(5))


@every_guidance
def test_samples_survive_the_file_and_nothing_is_unpickled(guidance, tmp_path, monkeypatch):
    model = fitted(replace(TINY, guidance=guidance), e=energy(data()))
    model.sample(3)
    model.save(tmp_path / "model")

    def forbidden(*_args, **_kwargs):
        raise AssertionError("something was unpickled")

    for owner, name in ((pickle, "Unpickler"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(owner, name, forbidden)
    loaded = EnergyGuidedDiffusion.load(tmp_path / "model.zip", device="cpu")
    assert loaded.config == model.config
    assert loaded.history == model.history
    assert torch.equal(loaded.sample(5), model.sample(5))


@pytest.mark.parametrize("guidance", ["dps", "qgf", "analytic"])
def test_a_differentiated_function_must_be_given_again(guidance, tmp_path):
    model = fitted(replace(TINY, guidance=guidance))
    model.save(tmp_path / "model")
    with pytest.raises(RuntimeError, match="energy="):
        EnergyGuidedDiffusion.load(tmp_path / "model", device="cpu").sample(3)
    loaded = EnergyGuidedDiffusion.load(tmp_path / "model", energy=energy, device="cpu")
    assert torch.equal(loaded.sample(5), model.sample(5))


def test_files_of_other_kinds_are_refused(tmp_path):
    fitted(TINY).save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="EnergyGuidedDiffusion"):
        load_agent(tmp_path / "model")
    with pytest.raises(CheckpointError):
        QGPO.load(tmp_path / "model")
    content = (tmp_path / "model.zip").read_bytes()
    (tmp_path / "model.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        EnergyGuidedDiffusion.load(tmp_path / "model", device="cpu")


def test_guidances_share_one_data_model():
    first = EnergyGuidedDiffusion(TINY, device="cpu").fit_data(data())
    for guidance in ("cep", "dps"):
        with pytest.raises(RuntimeError, match="guidance_scale=0"):
            first.with_guidance(replace(TINY, guidance=guidance)).sample(3)
    second = first.with_guidance(replace(TINY, guidance="mse", beta=2.0))
    second.fit(data(), energy, resume=True)
    plain = [m.sample(5, guidance_scale=0.0, generator=noise()) for m in (first, second)]
    assert torch.equal(plain[0], plain[1])
    with pytest.raises(ValueError, match=r"hidden=.*expected"):
        first.with_guidance(replace(TINY, hidden=(8,)))
    with pytest.raises(RuntimeError, match="fit_data"):
        EnergyGuidedDiffusion(TINY, device="cpu").with_guidance(TINY)


def test_numpy_is_welcome():
    model = fitted(TINY, data().numpy(), energy(data()).numpy().astype(np.float64))
    assert model.sample(3).shape == (3, 2)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_tensors_that_require_a_gradient_are_data_too(kind):
    x, c = (data(seed=seed).to(kind) for seed in range(2))
    e = energy(x)
    expected = fitted(TINY, x, e, c).sample(condition=c[:5])
    x, e, c = (tensor.requires_grad_() for tensor in (x, e, c))
    found = fitted(TINY, x, e, c).sample(condition=c[:5])
    assert torch.equal(found, expected)
    assert not found.requires_grad


@pytest.mark.parametrize("solver", ["heun", "ddim", "dpm_solver_2s", "sde_dpm_solver_2m"])
@pytest.mark.parametrize("spacing", ["time", "log_snr", "karras"])
def test_solvers_and_grids_are_chosen_per_call(solver, spacing):
    samples = fitted(TINY).sample(4, solver=solver, steps=3, spacing=spacing)
    assert torch.isfinite(samples).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EnergyGuidedDiffusion(replace(TINY, solver="euler")), r"'euler'.*'ot'"),
        (lambda: EnergyGuidedDiffusion(replace(TINY, spacing="x")), "spacing='x'"),
        (lambda: EnergyGuidedDiffusion(TINY, device="meta:99"), "device='meta:99'"),
        (lambda: EnergyGuidedDiffusion.load("gone", device="tpu"), "device='tpu'"),
        (lambda: EnergyGuidedDiffusion(replace(TINY, schedule="x")), "schedule='x'"),
        (lambda: fitted(replace(TINY, guidance="x")), "guidance='x'"),
        (lambda: fitted(replace(TINY, prediction="flow")), "prediction='flow'"),
        (lambda: fitted(TINY, data()[:, 0]), "data has shape"),
        (lambda: fitted(TINY, data() * torch.nan), "NaN"),
        (lambda: fitted(TINY, e=torch.zeros(5)), "energy has shape"),
        (lambda: fitted(TINY, e=torch.full((64,), torch.inf)), "energy has NaN"),
        (lambda: fitted(TINY, e=lambda x: x.sum()), "one value"),
        (lambda: fitted(TINY, condition=data(3)), "condition has 3 rows"),
        (lambda: fitted(TINY).sample(3, data(3)), "condition has shape"),
        (
            lambda: fitted(TINY, e=energy(data()), condition=data()).sample(
                condition=data(3) * torch.nan
            ),
            "condition has NaN or infinite values",
        ),
        (lambda: fitted(TINY).sample(), "n=None"),
        (lambda: fitted(TINY).sample(3, solver="rk4"), "solver='rk4'"),
        (lambda: fitted(TINY).fit(data(seed=4), energy, resume=True), "other data"),
        (lambda: fitted(TINY).fit(data(dim=3), energy, resume=True), "was made for"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


NO_TRAINING = {
    "text": (data(), "high"),
    "too few": (data(), torch.zeros(5)),
    "another shape": (data(), lambda x: x.T),
    "infinite": (data(), lambda x: x[:, 0] / 0.0),
}
NOT_RESUMED = {
    "other data": (data(seed=4), energy),
    "other dimensions": (data(dim=3), torch.zeros(64)),
    "another energy": (data(), lambda x: x[:, 1]),
}


def contents(path):
    """What an archive holds, whenever it was written."""
    with ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize(
    ("wrong", "resume"),
    [
        *((name, resume) for name in NO_TRAINING for resume in (False, True)),
        *((name, True) for name in NOT_RESUMED),
    ],
)
def test_a_refused_training_leaves_the_model_as_it_is(wrong, resume, tmp_path):
    model = fitted(TINY, e=energy(data()))
    model.sample(3)
    model.save(tmp_path / "before")
    with pytest.raises(ValueError, match=r"energy|samples have shape|other data"):
        model.fit(*{**NO_TRAINING, **NOT_RESUMED}[wrong], resume=resume)
    model.save(tmp_path / "after")
    assert contents(tmp_path / "after.zip") == contents(tmp_path / "before.zip")
    expected = EnergyGuidedDiffusion.load(tmp_path / "before", device="cpu")
    assert torch.equal(model.sample(5), expected.sample(5))


def test_an_energy_that_differs_in_its_last_digits_goes_on(tmp_path):
    """As one that another number of threads computes."""
    fitted(TINY).save(tmp_path / "model")

    def rounded(x):
        return energy(x) * (1 + 1e-6) + 3.0

    def slightly_other(x):
        return energy(x) + 0.01 * x[:, 1]

    model = EnergyGuidedDiffusion.load(tmp_path / "model", device="cpu")
    with pytest.raises(ValueError, match="another energy"):
        model.fit(data(), slightly_other, resume=True)
    model.fit(data(), rounded, resume=True)


@pytest.mark.parametrize("how", ["in memory", "from a file", "with_guidance"])
@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("other", ["data", "condition"])
def test_a_data_model_goes_on_with_its_own_data_and_conditions(other, steps, how, tmp_path):
    same = {"data": data(), "condition": data(seed=1)}
    if how == "with_guidance":
        model = EnergyGuidedDiffusion(TINY, seed=1, device="cpu").fit_data(**same)
        model = model.with_guidance(replace(TINY, guidance="mse"))
    else:
        left = iter(range(steps - 1, -1, -1))
        model = EnergyGuidedDiffusion(TINY, seed=1, device="cpu")
        model.fit(**same, energy=energy(data()), callback=lambda model: next(left) > 0)
    if how == "from a file":
        model.save(tmp_path / "model")
        model = EnergyGuidedDiffusion.load(tmp_path / "model", device="cpu")
    message = "training began with other data or other conditions: call fit without resume"
    with pytest.raises(ValueError, match=message):
        model.fit(**{**same, other: data(seed=2)}, energy=energy(data()), resume=True)
    model.fit(**same, energy=energy(data()), resume=True)
    assert model.progress["guidance"] == TINY.guidance_steps


def test_files_without_a_digest_of_the_data_go_on(tmp_path):
    left = iter(range(6))
    stopped = fitted(TINY, e=energy(data()), callback=lambda model: next(left) < 5)
    stopped.save(tmp_path / "model")
    path = tmp_path / "model.zip"
    rewrite(path, change_header(data_fingerprint=None))
    model = EnergyGuidedDiffusion.load(path, device="cpu").fit(data(), energy(data()), resume=True)
    assert torch.equal(model.sample(5), fitted(TINY, e=energy(data())).sample(5))
    rewrite(path, change_header(data_fingerprint=1))
    with pytest.raises(CheckpointError, match="data_fingerprint=1"):
        EnergyGuidedDiffusion.load(path, device="cpu")


def test_nothing_to_sample_or_save_before_training(tmp_path):
    with pytest.raises(RuntimeError, match="not been trained"):
        EnergyGuidedDiffusion(TINY).sample(3)
    with pytest.raises(RuntimeError, match="nothing to save"):
        EnergyGuidedDiffusion(TINY).save(tmp_path / "model")


def test_steps_and_targets_are_left_to_the_model():
    left = replace(TINY, data_steps=None, guidance_steps=None)
    wide = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    cases = [
        (data(), None, left, {"data": 500, "guidance": 300}, "posterior"),
        (data(), data(dim=1), left, {"data": 4000, "guidance": 3000}, "sample"),
        (wide, None, left, {"data": 4000, "guidance": 3000}, "sample"),
        (data(), None, replace(left, components=0), {"data": 4000, "guidance": 3000}, "posterior"),
        (data(), None, TINY, {"data": 6, "guidance": 5}, "posterior"),
    ]
    for x, condition, config, steps, targets in cases:
        model = EnergyGuidedDiffusion(config, device="cpu")
        model._build(Layout((x.shape[1],), 0 if condition is None else condition.shape[1]), True)
        assert model.steps == steps
        assert model.targets == targets


NOTHING = [
    (None, "energy=None, expected a callable, or an array of one value per sample; use fit_data"),
    ("high", "energy is a str, which is not an array of numbers"),
    ([None] * 64, "energy is a list, which is not an array of numbers"),
    ([], r"energy has shape \(0,\)"),
    (1.0, r"energy has shape \(\)"),
    (lambda x: None, "energy returned NoneType"),
    (lambda x: x.numpy()[:, 0], "energy returned ndarray"),
    (lambda x: x.T, r"energy returned \(2, 64\)"),
]


@pytest.mark.parametrize(("nothing", "message"), NOTHING)
def test_nothing_is_trained_on_what_is_no_energy(nothing, message):
    model = EnergyGuidedDiffusion(TINY, device="cpu")
    with pytest.raises(ValueError, match=message):
        model.fit(data(), nothing)
    assert model.num_timesteps == 0


@pytest.mark.parametrize(
    ("guidance", "options"),
    [
        *((name, {}) for name in ("aepo", "analytic", "dps", "qgf")),
        ("cep", {"base": "denoised"}),
    ],
)
@pytest.mark.parametrize("conditional", [False, True])
def test_an_energy_without_a_gradient_is_refused_before_the_training(
    guidance, options, conditional, tmp_path
):
    config = replace(TINY, guidance=guidance, guidance_options=options)
    condition = data(dim=1, seed=1) if conditional else None
    weight = torch.ones((), requires_grad=True)
    without = {
        "detached": lambda x, *c: x.detach()[:, 0],
        "constant": lambda x, *c: torch.ones(len(x)),
        "of numpy": lambda x, *c: torch.as_tensor(x.numpy()[:, 0]),
        "of numpy, detached": lambda x, *c: torch.as_tensor(x.detach().numpy()[:, 0]),
        "of a parameter alone": lambda x, *c: weight.expand(len(x)),
        "of the condition alone": lambda x, *c: c[0][:, 0] if c else x[:, 0].round().detach(),
    }
    model = EnergyGuidedDiffusion(config, device="cpu")
    message = f"guidance='{guidance}' differentiates the energy, but torch has no gradient of it"
    for e in without.values():
        with pytest.raises(ValueError, match=message):
            model.fit(data(), e, condition)
        assert model.num_timesteps == 0
    model.fit(data(), lambda x, *c: x[:, 0].clamp(min=100.0), condition)  # it may be zero
    if guidance == "aepo":  # whose network has learned it
        return
    model.save(tmp_path / "model")
    loaded = EnergyGuidedDiffusion.load(tmp_path / "model", without["detached"], device="cpu")
    with pytest.raises(ValueError, match=message):
        loaded.sample(None if conditional else 3, condition)


@pytest.mark.parametrize("resume", [False, True])
def test_a_data_model_is_not_resumed_on_no_energy(resume):
    model = EnergyGuidedDiffusion(TINY, device="cpu").fit_data(data())
    with pytest.raises(ValueError, match="energy=None"):
        model.fit(data(), None, resume=resume)
    assert model.num_timesteps == TINY.data_steps
    for wrong in ("data", [[None, 1.0]] * 4):
        with pytest.raises(ValueError, match=r"data is a .*, which is not an array of numbers"):
            model.fit(wrong, energy)


@pytest.mark.parametrize("guidance", OF_ONE)
@pytest.mark.parametrize("kind", ["callable", "labels"])
def test_a_scaled_energy_that_float32_does_not_hold_is_refused(guidance, kind):
    model = EnergyGuidedDiffusion(replace(TINY, beta=1e9, guidance=guidance), device="cpu")
    e = (lambda x: 1e30 * x[:, 0]) if kind == "callable" else 1e30 * data()[:, 0]
    message = r"beta=1000000000.0 times the energy reaches .*e\+39, which is larger than float32"
    with pytest.raises(ValueError, match=message):
        model.fit(data(), e)
    assert model.num_timesteps == 0


@pytest.mark.parametrize("kind", ["array", "tensor", "integers", "callable", "bigger"])
def test_only_differences_of_energies_count(kind):
    x = data()
    labels = (energy(x) * 64).round().double()
    offset = 1e12 if kind == "bigger" else 1e8
    expected = fitted(TINY, x, labels.float()).sample(8, generator=noise())
    shifted = {
        "array": labels.numpy() + offset,
        "bigger": labels.numpy() + offset,
        "tensor": labels + offset,
        "integers": labels.long().numpy() + 2**60,
        "callable": lambda v: (energy(v) * 64).round().double() + offset,
    }[kind]
    found = fitted(TINY, x, shifted).sample(8, generator=noise())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unit", [1e-30, 1e-10, 1e-6, 1e20])
def test_samples_are_in_the_unit_of_the_data(unit):
    e = data()[:, 0]
    samples = fitted(TINY, data() * unit, e).sample(8, generator=noise())
    expected = fitted(TINY, data(), e).sample(8, generator=noise())
    torch.testing.assert_close(samples / unit, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["data", "condition"])
def test_data_that_lose_digits_draw_a_warning(name):
    given = {"data": data(), "condition": data(seed=1)}
    given[name] = given[name].double().numpy() + 1e8
    with pytest.warns(UserWarning, match=f"{name} column 0 .* loses digits in float32"):
        EnergyGuidedDiffusion(TINY, device="cpu").fit_data(**given)


@pytest.mark.parametrize(
    "wrong",
    [
        np.ma.array(np.ones((64, 2)), mask=np.eye(64, 2) > 0),
        np.ones((64, 2)) * 1j,
        torch.ones(64, 2, dtype=torch.complex64),
        np.full((64, 2), "1"),
        np.zeros((64, 2), "M8[s]"),
        np.full((64, 2), 1e300),
    ],
    ids=["masked", "complex", "complex tensor", "text", "dates", "too large"],
)
def test_what_is_no_real_number_is_refused(wrong):
    model = EnergyGuidedDiffusion(TINY, device="cpu")
    with pytest.raises(ValueError, match=r"data is a .*, which is not an array of numbers"):
        model.fit(wrong, energy)
    with pytest.raises(ValueError, match=r"energy is a .*, which is not an array of numbers"):
        model.fit(data(), wrong[:, 0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"guidance_scale": float("nan")}, "guidance_scale=nan, expected a finite number"),
        ({"guidance_scale": "x"}, "guidance_scale='x', expected a finite number"),
        ({"guidance_scale": 1e300}, r"guidance_scale=1e\+300 gives samples that are not finite"),
        ({"steps": 0}, "solver steps=0, expected at least 1"),
        ({"steps": 2.5}, "solver steps=2.5, expected an integer of at least 1"),
        ({"solver": ""}, "solver='', expected one of"),
        ({"spacing": ""}, "spacing='', expected one of"),
        ({"n": 2.5}, "n=2.5, expected an integer of at least 0"),
        ({"n": "3"}, "n='3', expected an integer of at least 0"),
        ({"n": -1}, "n=-1, expected at least 0"),
    ],
)
def test_arguments_of_sample_are_checked(wrong, message, trained):
    with pytest.raises(ValueError, match=message):
        trained.sample(**{"n": 4, **wrong})


def test_data_without_columns_and_options_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"data has shape \(64, 0\), expected"):
        EnergyGuidedDiffusion(TINY, device="cpu").fit(torch.zeros(64, 0), torch.zeros(64))
    for options in (None, [1], "x"):
        with pytest.raises(ValueError, match=r"guidance_options=.*, expected a dict"):
            EnergyGuidedConfig(guidance_options=options)
