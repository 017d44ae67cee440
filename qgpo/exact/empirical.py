"""The exact f*_t of a finite sample: where there is no closed form, data in its place.

For q uniform over N points with f_0 = beta e, q_t is a mixture of N narrow Gaussians and the
posterior over the points is a softmax. With many points in few dimensions this is f*_t itself
wherever sigma_t exceeds their distances.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qgpo.diffusion import batch_posterior
from qgpo.schedule import Schedule

_ROWS = 256
"""rows per chunk: the posterior matrix of one chunk has this times N entries"""


@dataclass(frozen=True, eq=False)
class EmpiricalTilt:
    """F*_t and its gradient for points (N, D) with scaled energies f_0 = beta e (N,)."""

    points: Tensor
    f_0: Tensor
    schedule: Schedule

    def f(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Value of f*_t = log E[e^{f_0} | x_t], (B, D), (B,) to (B,)."""
        parts = []
        for rows in torch.arange(len(x_t)).split(_ROWS):
            log_posterior = batch_posterior(x_t[rows], t[rows], self.points, self.schedule)
            parts.append(torch.logsumexp(log_posterior + self.f_0, dim=-1))
        return torch.cat(parts)

    def gradient(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Gradient of f*_t: alpha / sigma^2 (E_p[x_0 | x_t] - E_q[x_0 | x_t]), (B, D)."""
        parts = []
        for rows in torch.arange(len(x_t)).split(_ROWS):
            posterior = batch_posterior(x_t[rows], t[rows], self.points, self.schedule)
            tilted = torch.softmax(posterior + self.f_0, dim=-1)
            alpha, sigma = self.schedule.alpha(t[rows]), self.schedule.sigma(t[rows])
            difference = (tilted - posterior.exp()) @ self.points
            parts.append((alpha / sigma**2)[:, None] * difference)
        return torch.cat(parts)
