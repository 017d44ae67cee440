"""What the general model learns, against known answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qgpo import EnergyGuidedConfig, EnergyGuidedDiffusion
from qgpo.exact.distances import component_shares, guidance_error, sliced_wasserstein
from qgpo.exact.mixture import ring_of_gaussians, tilt_components

SMALL = EnergyGuidedConfig(
    beta=1.0,
    hidden=(64, 64),
    data_steps=200,
    energy_hidden=(64, 64),
    guidance_steps=200,
    contrast=128,
    groups=2,
    components=2,
    solver_steps=15,
)


def data(n=64, dim=2, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def noise():
    return torch.Generator().manual_seed(3)


def energy(x):
    return x[:, 0] + 0.25 * (x**2).sum(dim=-1)


def fitted(config, x, e=energy, *condition):
    return EnergyGuidedDiffusion(config, seed=1, device="cpu").fit(x, e, *condition)


@pytest.mark.parametrize(
    ("guidance", "targets"), [("cep", "sample"), ("weighted", "sample"), ("weighted", "posterior")]
)
def test_learned_guidance_at_beta_zero_reproduces_q(guidance, targets):
    config = replace(
        SMALL,
        beta=0.0,
        guidance=guidance,
        targets=targets,
        energy_hidden=(32, 32),
        contrast=64,
        sharpness=3.0,
    )
    model = fitted(config, data(4000))
    guided, plain = (model.sample(2000, guidance_scale=w, generator=noise()) for w in (1.0, 0.0))
    assert sliced_wasserstein(guided, plain) < 0.1
    assert sliced_wasserstein(guided, data(2000, seed=5)) < 0.15


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance": "cep", "components": 8},
        {"guidance": "cep", "components": 0, "targets": "sample"},
        {"guidance": "cep", "components": 0, "targets": "posterior"},
        {"guidance": "cep", "components": 0, "guidance_options": {"labels": "exponential"}},
        {"guidance": "cep", "components": 0, "guidance_options": {"base": "denoised"}},
        {"guidance": "emse", "components": 0},
        {"guidance": "weighted"},
        {"guidance": "weighted", "schedule": "ot", "prediction": "flow", "solver": "euler"},
    ],
    ids=str,
)
def test_exact_methods_find_the_weights_of_a_known_mixture(changes):
    q = ring_of_gaussians()
    x, component = q.sample(8_000, torch.Generator().manual_seed(0))
    config = replace(
        SMALL,
        beta=2.0,
        solver_steps=30,
        sharpness=8.0,
    )
    model = fitted(replace(config, **changes), x.float(), -component.float() / 7.0)
    p = tilt_components(q, 2.0 * torch.arange(8) / 7.0, model.schedule).p
    shares = component_shares(model.sample(2000), p)
    assert float(0.5 * (shares - p.weights).abs().sum()) < 0.07
    if changes["guidance"] == "cep":
        exact = tilt_components(
            q.affine(model.normalizer.mean, model.normalizer.std),
            2.0 * torch.arange(8) / 7.0,
            model.schedule,
        )
        error = guidance_error(model.guidance, exact, 20, 500).relative
        assert error < (0.1 if model.config.components else 0.6)


@pytest.mark.parametrize("guidance", ["cep", "weighted"])
def test_mixtures_are_in_the_file_and_corrected_from_zero(guidance, tmp_path):
    unchanged = {"guidance_learning_rate": 0.0, "data_learning_rate": 0.0}
    config = replace(SMALL, guidance=guidance, data_steps=6, guidance_steps=5, **unchanged)
    x = data(2000)
    model = fitted(config, x, lambda x: -x[:, 0])
    # q = N(0, I) and E = -x_0: p = N((1, 0), I), from the mixtures alone
    assert model.sample(2000, generator=noise(), steps=20).mean(dim=0) == pytest.approx(
        [1.0, 0.0], abs=0.15
    )
    model.save(tmp_path / "model")
    loaded = EnergyGuidedDiffusion.load(tmp_path / "model.zip", device="cpu")
    assert torch.equal(loaded.sample(9, generator=noise()), model.sample(9, generator=noise()))


def test_a_conditional_model_follows_its_condition():
    # q(x|c) = N(c, 1), E = -x c, beta = 1: p(x|c) = N(c + c, 1)
    generator = torch.Generator().manual_seed(0)
    c = 2.0 * torch.randint(2, (20_000, 1), generator=generator) - 1.0
    x = c + torch.randn(20_000, 1, generator=generator)
    config = replace(SMALL, data_steps=300, guidance_steps=400, contrast=256, sharpness=3.0)
    model = fitted(config, x, lambda x, c: -(x * c).squeeze(-1), c)
    for side in (-1.0, 1.0):
        condition = torch.full((2000, 1), side)
        assert float(model.sample(2000, condition).mean()) == pytest.approx(2 * side, abs=0.2)
        unguided = model.sample(2000, condition, guidance_scale=0.0)
        assert float(unguided.mean()) == pytest.approx(side, abs=0.15)
