from __future__ import annotations

import math

import pytest
import torch
from guidance_parts import guidance_parts
from torch import nn

from qgpo.guidance import CEP, Samples, cep_loss
from qgpo.schedule import make_schedule


def test_loss_and_gradient_by_hand():
    # softmax(f) = (1/4, 3/4); softmax(beta e) = (2/3, 1/3); d loss / d f = prediction - label
    f = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64, requires_grad=True)
    scaled_energy = torch.tensor([[math.log(2.0), 0.0]], dtype=torch.float64)
    loss, metrics = cep_loss(f, scaled_energy)
    loss.backward()
    assert loss.item() == pytest.approx(-2 / 3 * math.log(1 / 4) - 1 / 3 * math.log(3 / 4))
    assert f.grad.tolist()[0] == pytest.approx([1 / 4 - 2 / 3, 3 / 4 - 1 / 3])
    kl = 2 / 3 * math.log(8 / 3) + 1 / 3 * math.log(4 / 9)
    assert metrics["excess"].item() == pytest.approx(kl)
    assert metrics["effective_samples"].item() == pytest.approx(9 / 5)


def test_loss_is_the_mean_over_the_batch():
    f, energy = torch.randn(3, 4), torch.randn(3, 4)
    each = [cep_loss(f[i : i + 1], energy[i : i + 1])[0] for i in range(3)]
    torch.testing.assert_close(cep_loss(f, energy)[0], torch.stack(each).mean())


def test_the_best_prediction_is_the_energy_up_to_a_constant_per_state():
    energy = torch.randn(3, 4)
    constants = torch.tensor([[5.0], [-70.0], [0.1]])
    _, metrics = cep_loss(energy + constants, energy)
    assert float(metrics["excess"]) == pytest.approx(0.0, abs=1e-5)


def test_constants_per_state_do_not_matter():
    f, energy = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    constants = torch.tensor([[5.0], [-70.0], [0.1]]).double()
    expected, _ = cep_loss(f, energy)
    torch.testing.assert_close(cep_loss(f + constants, energy)[0], expected)
    torch.testing.assert_close(cep_loss(f, energy + constants)[0], expected)


def test_large_energies_stay_finite():
    loss, metrics = cep_loss(torch.zeros(1, 3), torch.tensor([[1e4, -1e4, 0.0]]))
    assert float(loss) == pytest.approx(math.log(3))
    assert all(math.isfinite(float(v)) for v in metrics.values())


class Recorder(nn.Module):
    def forward(self, x_t, t, condition):
        self.seen = (x_t, t, condition)
        return x_t.sum(dim=-1)


def test_one_time_per_state_and_independent_noise():
    network = Recorder()
    x_0 = torch.zeros(5, 7, 2)
    condition = torch.arange(5.0)[:, None]
    groups = Samples(x_0, torch.zeros(5, 7), condition)
    parts = guidance_parts(make_schedule("linear"), network)
    CEP(parts).loss(groups, torch.Generator().manual_seed(0))
    x_t, t, repeated = network.seen
    assert x_t.shape == (35, 2)
    t = t.reshape(5, 7)
    assert (t == t[:, :1]).all()
    assert t[:, 0].unique().numel() == 5
    assert x_t.unique().numel() == 70
    assert torch.equal(repeated.reshape(5, 7), condition.expand(5, 7))


def test_preconditioning_multiplies_by_alpha():
    schedule = make_schedule("ot")  # alpha = 1 - t
    x, t = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.25, 0.5])
    plain = CEP(guidance_parts(schedule, Recorder()))
    scaled = CEP(guidance_parts(schedule, Recorder(), preconditioned=True))
    assert plain.f(x, t, None).tolist() == [3.0, 7.0]
    assert scaled.f(x, t, None).tolist() == [2.25, 3.5]
    assert scaled.gradient(x, t, None).tolist() == [[0.75, 0.75], [0.5, 0.5]]


def test_gradient_is_per_sample_and_works_without_grad_mode():
    class Quadratic(nn.Module):
        def forward(self, x_t, t, condition):
            return t * (x_t**2).sum(dim=-1)

    x, t = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, 0.5])
    guidance = CEP(guidance_parts(make_schedule("linear"), Quadratic()))
    with torch.no_grad():
        gradient = guidance.gradient(x, t, None)
    assert gradient.tolist() == [[2.0, 4.0], [3.0, 4.0]]
    assert not gradient.requires_grad


class Silent(nn.Module):
    """A network that says nothing, for one energy or two."""

    def __init__(self, outputs=0):
        super().__init__()
        self.outputs = outputs

    def forward(self, x_t, t, condition):
        return x_t.new_zeros((len(x_t), self.outputs) if self.outputs else len(x_t))


STEEP = torch.tensor([1.5, -0.5])
"""beta e(x) = x . STEEP of q = N(0, I): f*_t(x_t) = alpha_t x_t . STEEP, exactly"""


def on_denoised(energy=lambda x, condition: x @ STEEP, outputs=0):
    """CEP whose network is silent, on the denoised sample of N(0, I)."""
    schedule = make_schedule("cosine")
    parts = guidance_parts(
        schedule,
        Silent(outputs),
        energy=energy,
        denoise=lambda x_t, t, condition: schedule.alpha(t)[:, None] * x_t,
        options={"base": "denoised", "labels": "exponential"},
    )
    return CEP(parts)


def test_the_base_is_a_share_of_the_energy_at_the_denoised_sample():
    guidance = on_denoised()
    assert guidance.needs_energy
    assert not CEP(guidance_parts(make_schedule("cosine"))).needs_energy
    x, t = torch.randn(4, 2), torch.tensor([0.1, 0.5, 0.5, 0.9])
    exact = guidance.schedule.alpha(t)[:, None] * STEEP
    with torch.no_grad():
        guidance.base.share.copy_(torch.tensor([50.0, 0.0]))
        torch.testing.assert_close(guidance.gradient(x, t, None), exact)
        guidance.base.share.copy_(torch.tensor([0.0, 1.0]))
    # sigmoid(log(alpha / sigma)) = alpha / (alpha + sigma)
    alpha, sigma = guidance.schedule.alpha(t), guidance.schedule.sigma(t)
    share = (alpha / (alpha + sigma))[:, None]
    torch.testing.assert_close(guidance.gradient(x, t, None), share * exact)


def test_each_energy_has_its_own_base():
    guidance = on_denoised(lambda x, condition: torch.stack([x @ STEEP, -x[:, 0]], dim=1), 2)
    x, t = torch.randn(3, 2), torch.full((3,), 0.5)
    of_second = guidance.towards(torch.tensor([0, 1, 1]))(x, t, None)
    half = 0.5 * math.sqrt(0.5)
    expected = half * torch.tensor([[1.5, -0.5], [-1.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(of_second, expected)


def test_the_share_is_learned():
    """Where the base is exact, contrast takes all of it at every noise level that matters."""
    guidance, generator = on_denoised(), torch.Generator().manual_seed(0)
    x_0 = torch.randn(4096, 2, generator=generator)
    energies = x_0 @ STEEP
    guidance.prepare(Samples(x_0, energies), generator)
    optimizer = torch.optim.Adam(guidance.parameters(), 0.1)
    for _ in range(150):
        rows = torch.randint(4096, (8, 128), generator=generator)
        loss, _ = guidance.loss(Samples(x_0[rows], energies[rows]), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    level = torch.tensor([-0.5, 0.0, 1.0])
    share = torch.sigmoid(guidance.base.share[0] + guidance.base.share[1] * level)
    assert share.min() > 0.85


def test_a_base_needs_an_energy_and_a_name():
    with pytest.raises(ValueError, match="'cep' differentiates the energy"):
        CEP(guidance_parts(make_schedule("cosine"), options={"base": "denoised"}))
    with pytest.raises(ValueError, match=r"base='dps', expected one of"):
        CEP(guidance_parts(make_schedule("cosine"), options={"base": "dps"}))
