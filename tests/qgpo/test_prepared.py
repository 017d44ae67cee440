from __future__ import annotations

import pytest
import torch
from torch import nn

from qgpo.diffusion import Diffusion
from qgpo.guidance import EnergyGuide, GuidanceParts, make_guidance
from qgpo.networks import EnergyNetwork, FlowNetwork, MLPNoiseNetwork, UNetMLP
from qgpo.prepared import FEW, plainly, prepared_gradient, prepared_output
from qgpo.schedule import make_schedule

DIM, STATES = 3, 4


def network_of(kind):
    torch.manual_seed(0)
    if kind == "unet":
        return UNetMLP(DIM, STATES)
    network = MLPNoiseNetwork(DIM, STATES, (32, 16))
    nn.init.normal_(network.net[-1].weight, std=0.2)
    return network


def guided(kind="mlp", schedule="cosine", prediction="velocity", guidance="cep", factor=None):
    schedule = make_schedule(schedule)
    model = Diffusion(network_of(kind), schedule, prediction).requires_grad_(False)
    parts = GuidanceParts(
        dim=DIM,
        schedule=schedule,
        denoise=model.denoise,
        make_energy_network=lambda: EnergyNetwork(DIM, STATES, (24, 16, 8), 1.0),
        make_diffusion=lambda: model,
        energy=lambda x, c: torch.tanh(x).sum(dim=-1),
    )
    return model, EnergyGuide(make_guidance(guidance, parts), factor)


def inputs(rows=5):
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(rows, n, generator=generator) for n in (DIM, STATES))


def assert_as_plainly(act, atol=1e-6):
    with torch.no_grad():
        fast = act()
        with plainly():
            slow = act()
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=atol)
    return fast


@pytest.mark.parametrize("kind", ["mlp", "unet"])
@pytest.mark.parametrize("rows", [1, 5])
@torch.no_grad()
def test_outputs_are_the_networks(kind, rows):
    network = network_of(kind)
    x, condition = inputs(rows)
    times = torch.tensor([0.9, 0.5, 0.1])
    at_step = prepared_output(network, times, condition)
    for k, t in enumerate(times):
        expected = network(x, t.expand(rows), condition)
        torch.testing.assert_close(at_step(k, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hidden", [(16,), (16, 8), (16, 8, 12, 4)])
def test_gradients_are_autograds(hidden):
    torch.manual_seed(0)
    network = EnergyNetwork(DIM, STATES, hidden, 1.0)
    x, condition = inputs()
    times = torch.tensor([0.8, 0.2])
    with torch.no_grad():
        at_step = prepared_gradient(network, times, condition)
        found = [at_step(k, x) for k in range(2)]
    for t, gradient in zip(times, found, strict=True):
        given = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(network(given, t.expand(len(x)), condition).sum(), given)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("solver", ["dpm_solver_2m", "dpm_solver_2s", "ddim", "heun"])
@pytest.mark.parametrize("bound", [None, 0.2])
def test_samples_of_every_solver(solver, bound):
    model, guide = guided(factor=torch.linspace(0.5, 1.5, 5))
    x, condition = inputs()
    arguments = {"guidance_scale": 50.0, "guidance_bound": bound, "solver": solver, "steps": 4}
    unguided = model.sample(x, condition, solver=solver, steps=4)
    found = assert_as_plainly(lambda: model.sample(x, condition, guidance=guide, **arguments))
    assert (found - unguided).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("schedule", "prediction"), [("linear", "noise"), ("ot", "flow"), ("cosine", "velocity")]
)
@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_samples_of_every_prediction(schedule, prediction, kind):
    model, guide = guided(kind, schedule, prediction)
    x, condition = inputs()
    arguments = {"guidance": guide, "guidance_scale": 20.0, "steps": 6, "spacing": "log_snr"}
    assert_as_plainly(lambda: model.sample(x, condition, **arguments), atol=2e-5)


@pytest.mark.parametrize("guidance", ["cep", "mse", "dps"])
def test_means(guidance):
    model, guide = guided(guidance=guidance)
    _, condition = inputs()
    arguments = {"guidance": guide, "guidance_scale": 15.0}
    assert_as_plainly(lambda: model.mean(condition, DIM, **arguments))


@torch.no_grad()
def test_what_is_not_prepared():
    _, condition = inputs()
    times = torch.tensor([0.5])
    network, energy = network_of("mlp"), EnergyNetwork(DIM, STATES, (8,), 1.0)
    assert prepared_output(network, times, condition) is not None
    assert prepared_output(FlowNetwork(DIM, STATES, (8,)), times, condition) is None
    assert prepared_output(network, times, None) is None
    assert prepared_output(network, times, torch.zeros(FEW + 1, STATES)) is None
    assert prepared_output(energy, times, condition) is None
    assert prepared_gradient(energy, times, condition) is not None
    assert prepared_gradient(EnergyNetwork(DIM, STATES, (), 1.0), times, condition) is None
    with plainly():
        assert prepared_gradient(energy, times, condition) is None
    with torch.enable_grad():
        assert prepared_output(network, times, condition) is None
    tanh = MLPNoiseNetwork(DIM, STATES, (8,), activation="tanh")
    assert prepared_output(tanh, times, condition) is None
    handle = network.register_forward_hook(lambda *_: None)
    assert prepared_output(network, times, condition) is None
    handle.remove()
