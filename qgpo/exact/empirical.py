"""The exact f*_t of a finite sample, for data without a closed form.

For q uniform over N points with f_0 = beta e, q_t is a mixture of N Gaussians and the posterior
over the points is a softmax. With many points in few dimensions it approximates f*_t of the
underlying distribution wherever sigma_t exceeds the distance between points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qgpo.diffusion import batch_posterior
from qgpo.schedule import Schedule

_ROWS = 256
"""rows per chunk: the posterior matrix of one chunk has this times N entries"""


def compare_with_two(
    gradient: Tensor, first: EmpiricalTilt, second: EmpiricalTilt, x_t: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Squared error of a gradient (B, D) at x_t (B, D), t (B,), and squared size of the exact one.

    Both are sigma_t^2 times what the sampler uses, (B,). The exact gradient is that of two
    independent finite samples: products of their errors have the mean 0, where the square of one
    sample's error would count as error of the gradient. Single values may be negative.
    """
    pair = first.gradient(x_t, t), second.gradient(x_t, t)
    return compare_with_pair(gradient, *pair, first.schedule.sigma(t))


def compare_with_pair(
    gradient: Tensor, first: Tensor, second: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """The same where both samples' gradients are known: (B, D) three times and (B,)."""
    errors = torch.sum((gradient - first) * (gradient - second), dim=-1)
    return sigma**2 * errors, sigma**2 * torch.sum(first * second, dim=-1)


@dataclass(frozen=True, eq=False)
class EmpiricalTilt:
    """The exact f*_t and its gradient for points (N, D) with scaled energies f_0 = beta e (N,)."""

    points: Tensor
    f_0: Tensor
    schedule: Schedule

    def f(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Intermediate energy f*_t = log E[e^{f_0} | x_t]: (B, D), (B,) to (B,)."""
        posteriors = self._log_posteriors(x_t, t)
        return torch.cat([torch.logsumexp(p + self.f_0, dim=-1) for p in posteriors])

    def gradient(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Gradient of f*_t: alpha / sigma^2 (E_p[x_0 | x_t] - E_q[x_0 | x_t]), (B, D)."""
        differences = []
        for log_posterior in self._log_posteriors(x_t, t):
            tilted = torch.softmax(log_posterior + self.f_0, dim=-1)
            differences.append((tilted - log_posterior.exp()) @ self.points)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return (alpha / sigma**2)[:, None] * torch.cat(differences)

    def _log_posteriors(self, x_t: Tensor, t: Tensor) -> Iterator[Tensor]:
        """Log posterior over the points under q, chunk by chunk: (_ROWS, N) each."""
        for x, times in zip(x_t.split(_ROWS), t.split(_ROWS), strict=True):
            yield batch_posterior(x, times, self.points, self.schedule)
