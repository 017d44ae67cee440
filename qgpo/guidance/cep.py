"""Contrastive energy prediction: the exact intermediate energy, learned (CEP paper, Eq. 12-20).

Diffuse q and p ~ q exp(beta e) with the same kernel. Then p_t ~ q_t exp(f*_t) with

    f*_t(x_t) = log E_{q(x_0 | x_t)} [exp(beta e(x_0))]                          (Eq. 9)

A softmax over K noisy samples at one noise level, trained towards the softmax of their clean
energies, has f*_t + c(t) as its minimiser as K grows (Eq. 13, the self-normalised label).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qgpo.diffusion import Metrics, diffuse, uniform_times
from qgpo.schedule import Schedule


def cep_loss(f: Tensor, scaled_energy: Tensor) -> tuple[Tensor, Metrics]:
    """Cross entropy from softmax(beta e) to softmax(f) over the last dimension, (B, K) each."""
    log_prediction = torch.log_softmax(f, dim=-1)
    log_label = torch.log_softmax(scaled_energy, dim=-1)
    label = log_label.exp()
    cross_entropy = -torch.sum(label * log_prediction, dim=-1).mean()
    entropy = -torch.sum(label * log_label, dim=-1).mean()
    effective = torch.mean(1.0 / torch.sum(label**2, dim=-1))
    return cross_entropy, {
        "loss": cross_entropy,
        "excess": cross_entropy - entropy,
        "effective_samples": effective,
    }


class CEP(nn.Module):
    """The energy network f_phi and how it is trained and used.

    With `preconditioned`, f_phi = alpha_t times the network. The exact f*_t depends on x_t only
    through what x_t still tells about x_0, so its gradient vanishes like alpha_t towards t = 1,
    while the sampler divides it by alpha_t: an unscaled network's error is multiplied there by
    a hundred (cosine schedule at its t_max), a scaled one's by one. Ours, not the paper's.
    """

    def __init__(
        self, network: nn.Module, schedule: Schedule, preconditioned: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.preconditioned = preconditioned

    def f(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The intermediate energy up to a constant c(t, condition): (B, D), (B,), (B, C) to (B,)."""
        f: Tensor = self.network(x_t, t, condition)
        return self.schedule.alpha(t) * f if self.preconditioned else f

    def loss(
        self,
        x_0: Tensor,
        scaled_energy: Tensor,
        condition: Tensor | None,
        generator: torch.Generator,
    ) -> tuple[Tensor, Metrics]:
        """Eq. 20: one time per condition shared by its K samples, independent noise.

        x_0 (B, K, D), scaled_energy = beta e(x_0) (B, K), condition (B, C) or None.
        """
        n, k, dim = x_0.shape
        t = uniform_times(n, self.schedule, generator)[:, None].expand(n, k)
        noise = torch.randn(x_0.shape, generator=generator, device=x_0.device)
        x_t = diffuse(x_0, t, noise, self.schedule)
        if condition is not None:
            condition = condition[:, None].expand(n, k, condition.shape[-1]).flatten(0, 1)
        f = self.f(x_t.reshape(n * k, dim), t.reshape(n * k), condition)
        return cep_loss(f.reshape(n, k), scaled_energy)

    def gradient(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Gradient of f_phi in x_t, shape (B, D): the energy guidance of Eq. 11."""
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            f = self.f(x_t, t, condition)
            return torch.autograd.grad(f.sum(), x_t)[0]
