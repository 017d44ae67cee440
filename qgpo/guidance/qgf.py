"""QGF: no training; Q's gradient at the one-step denoised action, taken as it is (Q-guided flow).

Zhou et al. 2026 (arXiv 2606.11087): a flow of the behavior, dx/dt = v from noise (t = 0) to action
(t = 1), is sampled by v + w grad Q(a), a = clip(x + (1 - t) v) the action that one Euler step
reaches. Neither the step nor the clipping is differentiated; `dps` differentiates both. The
weight is the same at all t, in the paper's code (zhouzypaul/qgf, agents/qgf.py) and here.

Units (ours). On the straight path v is the difference of x_0 and the noise, so that w grad f_0 on v
moves the denoised sample by w sigma grad f_0. Another schedule is the same path in other units: at
the same alpha / sigma, x / (alpha + sigma) is on the straight one. There the shift is
w sigma / (alpha + sigma) grad f_0, and what is added to the score

    w alpha / (sigma (alpha + sigma)) grad f_0(clip(E[x_0 | x_t]))

The same samples follow on every schedule. beta is in f_0: the paper's weight is w beta.

For a Gaussian q = N(m, s^2) and a linear energy f_0 = g x the exact gradient is that of `dps`,
g dm/dx_t = g alpha s^2 / (alpha^2 s^2 + sigma^2), and moves the samples by g s^2. This one moves
them by g s (asinh(s) + asinh(1/s)) / sqrt(1 + s^2): 1.25 times as far where s = 1, 7 times where
s = 0.3. In standardised or whitened coordinates s is about 1, and a step in them is one of
the data's covariance times the gradient, as with exact guidance; the paper has neither.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qgpo.guidance.base import ClampOptions, Guidance, GuidanceParts


class QGF(Guidance):
    """The gradient of f_0 at the denoised sample, inside the data's bounds where they are known."""

    Options = ClampOptions
    needs_energy = True
    options: ClampOptions

    def __init__(self, parts: GuidanceParts) -> None:
        super().__init__(parts)
        self.energy = parts.unbounded_energy_for("qgf")
        self.nearest = parts.nearest

    def gradient(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """What is added to the score, (B, D), (B,), (B, C) to (B, D); no gradient of any f."""
        with torch.no_grad():
            x_0 = self.options.clamped(self.denoise(x_t, t, condition))
            if self.nearest is not None:
                x_0 = self.nearest(x_0, condition)
        with torch.enable_grad():
            x_0 = x_0.detach().requires_grad_()
            slope = torch.autograd.grad(self.energy(x_0, condition).sum(), x_0)[0]
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        return alpha / (sigma * (alpha + sigma)) * slope
