from __future__ import annotations

import torch

from qgpo.diffusion import diffuse
from qgpo.exact import EmpiricalTilt, ring_of_gaussians, tilt_components
from qgpo.schedule import make_schedule

COSINE = make_schedule("cosine")


def test_empirical_tilt_approaches_the_closed_form():
    q = ring_of_gaussians()
    levels = 3.0 * torch.arange(8) / 7.0
    exact = tilt_components(q, levels, COSINE)
    x_0, component = q.sample(50_000, torch.Generator().manual_seed(0))
    empirical = EmpiricalTilt(x_0, levels[component], COSINE)
    t = torch.linspace(0.3, 0.95, 12).double()
    x_t = diffuse(x_0[:12], t, torch.zeros(12, 2).double(), COSINE)
    torch.testing.assert_close(empirical.f(x_t, t), exact.f(x_t, t), atol=0.05, rtol=0.0)
    torch.testing.assert_close(
        empirical.gradient(x_t, t), exact.gradient(x_t, t), atol=0.08, rtol=0.0
    )
    x_t = x_t.requires_grad_()
    autograd = torch.autograd.grad(empirical.f(x_t, t).sum(), x_t)[0]
    torch.testing.assert_close(empirical.gradient(x_t.detach(), t), autograd)
