"""Several energies at once: losses by hand, and the samples of a mixture's components."""

from __future__ import annotations

import math

import pytest
import torch
from guidance_parts import guidance_parts

from qgpo import EnergyGuidedConfig, EnergyGuidedDiffusion
from qgpo.guidance import Samples, cep_loss, make_guidance
from qgpo.guidance.classifier import classifier_loss
from qgpo.schedule import make_schedule

FAR = 30.0


def class_scores(labels, n):
    """-E of labels, (N, C)."""
    return -FAR * (1.0 - torch.nn.functional.one_hot(labels, n).float())


def test_contrast_within_a_class_by_hand():
    """-[f_y - logsumexp over the batch], each sample weighted by 1 / the share of its class."""
    labels = torch.tensor([0, 0, 1, 0])
    f = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0))
    shares = torch.tensor([0.75, 0.25])
    loss, _ = cep_loss(f, class_scores(labels, 2).T[None], shares.log())
    log_prediction = torch.log_softmax(f, dim=-1)[0]
    each = [-log_prediction[y, k] / shares[y] for k, y in enumerate(labels)]
    assert float(loss) == pytest.approx(float(sum(each)) / (4 * 2), rel=1e-5)


def test_an_absent_class_has_no_label():
    labels = torch.tensor([0, 0, 0])
    f = torch.randn(1, 2, 3, requires_grad=True)
    loss, _ = cep_loss(f, class_scores(labels, 2).T[None], torch.tensor([0.5, 0.5]).log())
    (gradient,) = torch.autograd.grad(loss, f)
    assert gradient[0, 0].abs().sum() > 0.0
    assert gradient[0, 1].abs().sum() < 1e-9


def test_the_normaliser_is_the_log_of_each_class_s_share():
    parts = guidance_parts(make_schedule("cosine"), options={"labels": "exponential"})
    guidance = make_guidance("cep", parts)
    labels = torch.tensor([0, 1, 1, 1])
    samples = Samples(torch.zeros(4, 2), class_scores(labels, 2))
    guidance.prepare(samples, torch.Generator())
    expected = torch.tensor([math.log(0.25), math.log(0.75)])
    torch.testing.assert_close(guidance.log_normalizer, expected)


def test_cross_entropy_over_the_classes_by_hand():
    f = torch.tensor([[[0.0, 1.0], [0.0, 3.0]]])  # two classes, two samples
    label = torch.tensor([[[1.0, 0.25], [0.0, 0.75]]])
    loss, metrics = classifier_loss(f, label)
    second = math.log(1.0 + math.exp(2.0)) - 0.75 * 2.0
    assert float(loss) == pytest.approx((math.log(2.0) + second) / 2.0)
    assert float(metrics["accuracy"]) == 1.0


TINY = EnergyGuidedConfig(
    hidden=(48, 48),
    data_steps=300,
    energy_hidden=(32, 32),
    guidance_steps=250,
    contrast=128,
    groups=2,
    sharpness=3.0,
    solver_steps=12,
)
BY_CLASS = {"guidance": "cep", "guidance_options": {"labels": "exponential"}}


@pytest.fixture(scope="module")
def mixture():
    """Components at -2 and 2 in one dimension, of which the second is a tenth of the data."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(4000, generator=generator) < 0.1).long()
    x = 4.0 * labels[:, None] - 2.0 + 0.5 * torch.randn(4000, 1, generator=generator)
    return x, labels, EnergyGuidedDiffusion(TINY, seed=0, device="cpu").fit_data(x)


@pytest.mark.parametrize(
    "changes",
    [BY_CLASS, {"guidance": "classifier"}, {"guidance": "classifier", "targets": "posterior"}],
    ids=["cep", "classifier", "posterior"],
)
def test_samples_follow_their_own_class(changes, mixture):
    x, labels, data_model = mixture
    config = EnergyGuidedConfig(**{**vars(TINY), **changes})
    model = data_model.with_guidance(config, energies=2)
    model.fit(x, -class_scores(labels, 2), resume=True)
    target = torch.arange(400) % 2
    samples = model.sample(400, target=target).squeeze(-1)
    assert float(((samples > 0.0).long() == target).float().mean()) > 0.97
    assert float(samples[target == 1].mean()) == pytest.approx(2.0, abs=0.3)
    unguided = model.sample(400, guidance_scale=0.0, generator=torch.Generator().manual_seed(1))
    again = data_model.sample(400, guidance_scale=0.0, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(unguided, again, rtol=0, atol=0)


def test_one_of_several_functions_is_followed(mixture):
    """A Gaussian tilted by a linear energy is moved by its variance times the slope."""
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(3))
    config = EnergyGuidedConfig(**{**vars(TINY), "guidance": "dps"})
    model = EnergyGuidedDiffusion(config, device="cpu").fit(
        x, lambda x: x @ torch.tensor([[1.0, -1.0]])
    )
    lower, higher = (model.sample(300, target=i).mean() for i in range(2))
    assert float(lower) == pytest.approx(-1.0, abs=0.3)
    assert float(higher) == pytest.approx(1.0, abs=0.3)


SMALL = {**vars(TINY), "data_steps": 2, "guidance_steps": 2, "contrast": 8}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.sample(3), "target=None, expected a number of 0 to 1"),
        (lambda m: m.sample(3, target=2), "target=2, expected"),
        (lambda m: m.sample(3, target=[0, 1]), r"target=\[0, 1\], expected"),
        (lambda m: m.sample(3, target=0.5), "target=0.5"),
        (lambda m: m.sample(3, target="first"), "target='first', expected a number of 0 to 1"),
        (lambda m: m.sample(2, target=[[0], [0, 1]]), r"target=\[\[0\], \[0, 1\]\], expected"),
        (lambda m: m.sample(3, target=1j), "target=1j, expected"),
        (lambda m: m.sample(3, target=True), "target=True, expected"),
        (lambda m: m.sample(3, target=torch.ones(3, dtype=torch.bool)), r"target=.*, expected"),
        (lambda m: m.sample(3, target=2**70), "target=1180591620717411303424, expected"),
        (lambda m: m.sample(3, target={"a": 1}), "target={'a': 1}, expected"),
        (lambda m: m.fit(torch.zeros(9, 1), torch.zeros(9, 3), resume=True), "has 3 values"),
        (lambda m: m.fit(torch.zeros(9, 1), torch.zeros(9), resume=True), "has 1 values"),
    ],
)
def test_mistakes_with_targets_are_named(call, message):
    config = EnergyGuidedConfig(**SMALL)
    x = torch.randn(9, 1)
    model = EnergyGuidedDiffusion(config, device="cpu").fit(x, torch.cat([x, -x], dim=1))
    with pytest.raises(ValueError, match=message):
        call(model)


@pytest.mark.parametrize(("guidance", "shape"), [("classifier", (9,)), ("weighted", (9, 2))])
def test_a_guidance_for_another_number_of_energies_is_refused_before_training(guidance, shape):
    model = EnergyGuidedDiffusion(
        EnergyGuidedConfig(**{**SMALL, "guidance": guidance}), device="cpu"
    )
    with pytest.raises(ValueError, match=f"guidance='{guidance}' is not for"):
        model.fit(torch.randn(9, 1), torch.zeros(shape))
    assert model.num_timesteps == 0
    with pytest.raises(ValueError, match="single energy"):
        EnergyGuidedDiffusion(EnergyGuidedConfig(**SMALL), device="cpu").fit(
            torch.randn(9, 1), torch.zeros(9)
        ).sample(2, target=0)
