"""A Gaussian mixture fitted to data: what of q_t and p_t needs no network.

With q = sum_j w_j N(m_j, S_j), fitted by expectation maximisation (Dempster, Laird & Rubin 1977),
everything that the diffusion of q needs is in closed form at every noise level. So is the target
p ~ q exp(f_0), whose components have the weights, means and covariances of the points weighed by
e^{f_0} (`FittedTilt`). Both are coarse where data are no mixture of few Gaussians.
Networks learn what is missing. J components, D dimensions, N points, B batch.

The expectation maximisation is our own, although libraries have one. p needs the moments of the
same components under the weights e^{f_0}, and `pairs` those of points that share a posterior over
others; libraries fit unweighted points. The components are buffers of a module: they follow its
device, and files keep them, so that a training that goes on has the same ones. A prior keeps
components of few points wide. Tests compare the likelihood with scikit-learn's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qgpo.diffusion import output_for
from qgpo.schedule import Schedule

STEPS = ((10_000, 30), (50_000, 10), (1_000_000, 4))
"""points, and iterations of expectation maximisation on so many of them"""
VALUES_PER_ITERATION = 2**24
"""largest number of points times J times D in one iteration"""
ROWS_PER_CHUNK = 16_384
PRIOR = 2.0
"""points, times D + 1, of which a component has half of its shape from the prior; with ten times
as many it has a hundredth"""
NEGLIGIBLE = 1e-4
"""smallest share of a point in a component that counts in least squares"""
STEEPEST = 0.9
"""largest curvature of f_0 in units of a component's precision; at 1 there is no p"""
TINY = 1e-300
FLOOR = 1e-5
"""smallest variance along an axis"""


KINDS = ("points", "pairs", "curved")
"""how a tilt is fitted"""


class Moments(NamedTuple):
    """Of weighted points, per component."""

    mass: Tensor
    """(J,) sum of weights"""
    share: Tensor
    """(J,) of the moments in an estimate that has a prior, too: 1 for many points"""
    mean: Tensor
    """(J, D)"""
    covariance: Tensor
    """(J, D, D)"""


class FittedMixture(nn.Module):
    """Weights, means and covariances, in standardised coordinates; N(0, I) until it is fitted."""

    log_weights: Tensor
    """(J,)"""
    means: Tensor
    """(J, D)"""
    variances: Tensor
    """(J, D) along the axes"""
    axes: Tensor
    """(J, D, D), axes in columns"""

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        self.dim, self.components = dim, components
        self.register_buffer("log_weights", torch.full((components,), -math.log(components)))
        self.register_buffer("means", torch.zeros(components, dim))
        self.register_buffer("variances", torch.ones(components, dim))
        self.register_buffer("axes", torch.eye(dim).repeat(components, 1, 1))

    # After diffusion to time t, per sample: x (B, D), alpha and sigma (B,) ------------------------

    def _parts(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log of w_j N(x; ...) without a constant (B, J); x - alpha m and variances (B, J, D)."""
        flat = self.axes.permute(1, 0, 2).reshape(self.dim, -1)
        rotated = (x @ flat).unflatten(-1, (self.components, self.dim))
        places = torch.einsum("jd,jde->je", self.means, self.axes)
        centered = rotated - alpha[:, None, None] * places
        variances = alpha[:, None, None] ** 2 * self.variances + sigma[:, None, None] ** 2
        distances = torch.sum(centered**2 / variances + torch.log(variances), dim=-1)
        return self.log_weights - 0.5 * distances, centered, variances

    def log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Log density of the diffused mixture up to a constant, (B,)."""
        return torch.logsumexp(self._parts(x, alpha, sigma)[0], dim=-1)

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Posterior mean E[x_0 | x_t = x], (B, D)."""
        logits, centered, variances = self._parts(x, alpha, sigma)
        shift = alpha[:, None, None] * self.variances / variances * centered
        flat = self.axes.permute(0, 2, 1).reshape(-1, self.dim)
        posterior = torch.softmax(logits, dim=-1)
        return posterior @ self.means + (posterior[..., None] * shift).flatten(1) @ flat

    # Fitting -------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(self, x: Tensor, generator: torch.Generator) -> None:
        """Expectation maximisation on x (N, D)."""
        order = torch.randperm(len(x), generator=generator, device=x.device)
        self._start(x[order[: STEPS[0][0]]], generator)
        for n, iterations in STEPS:
            rows = x[order[: min(n, self.most_rows)]]
            for _ in range(iterations):
                self.set(self.moments(rows))

    @property
    def most_rows(self) -> int:
        """Points that are used at once."""
        return max(1, VALUES_PER_ITERATION // (self.components * self.dim))

    def _start(self, x: Tensor, generator: torch.Generator) -> None:
        """Means at random points, each far from the former ones (k-means++), one wide shape."""
        x = x[:4_000].double()
        chosen = [x[0]]
        nearest = torch.sum((x - x[0]) ** 2, dim=-1)
        for _ in range(self.components - 1):
            odds = nearest if bool(nearest.sum() > 0.0) else torch.ones_like(nearest)
            row = int(torch.multinomial(odds, 1, generator=generator))
            chosen.append(x[row])
            nearest = torch.minimum(nearest, torch.sum((x - x[row]) ** 2, dim=-1))
        self.log_weights.fill_(-math.log(self.components))
        self.means.copy_(torch.stack(chosen))
        self.variances.fill_(self._width())
        self.axes.copy_(torch.eye(self.dim))

    def _width(self) -> float:
        """Variance of a component that is one of J side by side in standardised data."""
        return float(self.components ** (-2.0 / self.dim))

    def moments(
        self, x: Tensor, points: Tensor | None = None, weights: Tensor | None = None
    ) -> Moments:
        """Sums over `points`, or x itself, each shared by the components' posteriors at x.

        x (N, D), points (N, any), weights (N,).
        """
        points = x if points is None else points
        j, d = self.components, points.shape[1]
        empty = torch.zeros(j, dtype=torch.float64, device=x.device)
        mass, squares = empty, empty.clone()
        first, second = empty.new_zeros(j, d), empty.new_zeros(j, d * d)
        for rows, posterior in self._posteriors(x):
            if weights is not None:
                posterior = posterior * weights[rows, None]
            place = points[rows].double()
            mass += posterior.sum(dim=0)
            squares += torch.sum(posterior**2, dim=0)
            first += posterior.T @ place
            second += posterior.T @ (place[:, :, None] * place[:, None, :]).flatten(1)
        whole = mass.clamp(min=TINY)
        mean = first / whole[:, None]
        covariance = (second / whole[:, None]).unflatten(-1, (d, d)) - outer(mean, mean)
        effective = mass**2 / squares.clamp(min=TINY)
        share = effective**2 / (effective**2 + (PRIOR * (d + 1.0)) ** 2)
        return Moments(mass, share, mean, covariance)

    def _posteriors(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows and the posterior over components at clean points, (rows, J) in float64."""
        widths = self.variances.sqrt()
        flat = (self.axes / widths[:, None]).permute(1, 0, 2).reshape(self.dim, -1)
        places = torch.einsum("jd,jde->je", self.means, self.axes) / widths
        level = self.log_weights - torch.log(widths).sum(dim=-1)
        for begin in range(0, len(x), ROWS_PER_CHUNK):
            rows = slice(begin, begin + ROWS_PER_CHUNK)
            scaled = (x[rows] @ flat).unflatten(-1, (self.components, self.dim)) - places
            logits = level - 0.5 * torch.sum(scaled**2, dim=-1)
            yield rows, torch.softmax(logits, dim=-1).double()

    def set(self, of: Moments) -> None:
        """The mixture of those moments; a component with few points is one of J side by side."""
        share = of.share[:, None]
        mean = share * of.mean + (1.0 - share) * self.means
        shift = of.mean - mean
        wide = self._width() * torch.eye(self.dim).to(mean)
        covariance = of.covariance + outer(shift, shift)
        covariance = share[..., None] * covariance + (1.0 - share[..., None]) * wide
        self._put(of.mass, mean, covariance)

    def tilt(self, q: FittedMixture, plain: Moments, weighted: Moments) -> None:
        """Set q changed by what weights change in its moments, less where few points carry them."""
        share = weighted.share[:, None]
        mean = q.means.double() + share * (weighted.mean - plain.mean)
        axes, variances = q.axes.double(), q.variances.double()
        covariance = axes @ torch.diag_embed(variances) @ axes.mT
        covariance = covariance + share[..., None] * (weighted.covariance - plain.covariance)
        ratio = weighted.mass.clamp(min=TINY) / plain.mass.clamp(min=TINY)
        self._put(q.log_weights.double().exp() * ratio, mean, covariance)

    def take(self, other: FittedMixture) -> None:
        """Become a mixture of no more components; those that are left over weigh nothing."""
        n = other.components
        self.log_weights.fill_(math.log(TINY))
        self.means.zero_()
        self.variances.fill_(1.0)
        self.axes.copy_(torch.eye(self.dim))
        self.log_weights[:n], self.means[:n] = other.log_weights, other.means
        self.variances[:n], self.axes[:n] = other.variances, other.axes

    @torch.no_grad()
    def tilt_by(self, x: Tensor, f_0: Tensor) -> None:
        """Become the mixture of p ~ q exp(f_0), from points of q (N, D) and their f_0 (N,)."""
        x, weights = x[: self.most_rows], exponentials(f_0[: self.most_rows])
        self.tilt(self, self.moments(x), self.moments(x, weights=weights))

    def tilt_by_squares(self, q: FittedMixture, x: Tensor, f_0: Tensor) -> None:
        """Set q times exp of a quadratic function in each component, from x (N, D), f_0 (N,)."""
        d, level = self.dim, float(f_0.double().mean())
        widths = q.variances.sqrt()
        upper = torch.triu_indices(d, d, device=x.device)
        n = 1 + d + upper.shape[1]
        ridge = PRIOR * (d + 1.0) * torch.eye(n, dtype=torch.float64, device=x.device)
        ridge[0, 0] = FLOOR
        gram = ridge.repeat(self.components, 1, 1)
        right = gram.new_zeros(self.components, n)
        for rows, posterior in q._posteriors(x):
            for j in range(self.components):
                chosen = posterior[:, j] > NEGLIGIBLE
                u = ((x[rows][chosen] - q.means[j]) @ q.axes[j] / widths[j]).double()
                squares = u[:, upper[0]] * u[:, upper[1]]
                features = torch.cat([torch.ones_like(u[:, :1]), u, squares], dim=-1)
                weighted = posterior[chosen, j, None] * features
                gram[j] += weighted.T @ features
                right[j] += weighted.T @ (f_0[rows][chosen].double() - level)
        found = torch.linalg.solve(gram, right[..., None]).squeeze(-1)
        hessian = gram.new_zeros(self.components, d, d)
        hessian[:, upper[0], upper[1]] = found[:, 1 + d :]
        hessian = hessian + hessian.mT
        values, vectors = torch.linalg.eigh(hessian)
        tilted = 1.0 / (1.0 - values.clamp(max=STEEPEST))
        slope = torch.einsum("jde,jd->je", vectors, found[:, 1 : 1 + d])
        log_mass = found[:, 0] + 0.5 * torch.sum(slope**2 * tilted + torch.log(tilted), dim=-1)
        to_x = q.axes.double() * widths.double()[:, None]
        place = torch.einsum("jde,je->jd", vectors, tilted * slope)
        root = to_x @ vectors * tilted.sqrt()[:, None]
        log_mass = log_mass + q.log_weights.double()
        mean = q.means.double() + torch.einsum("jde,je->jd", to_x, place)
        self._put(torch.softmax(log_mass, dim=0), mean, root @ root.mT)

    def _put(self, mass: Tensor, means: Tensor, covariances: Tensor) -> None:
        values, axes = torch.linalg.eigh(0.5 * (covariances + covariances.mT))
        self.log_weights.copy_(torch.log(mass.clamp(min=TINY) / mass.sum()))
        self.means.copy_(means)
        self.variances.copy_(values.clamp(min=FLOOR))
        self.axes.copy_(axes)


class FittedTilt(nn.Module):
    """q and the target p ~ q exp(f_0) as mixtures of J components in pairs, and f_t between them.

    Component by component, p has the weight, mean and covariance of q's points weighed by e^{f_0}.
    """

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        self.q = FittedMixture(dim, components)
        self.p = FittedMixture(dim, components)

    @torch.no_grad()
    def fit(
        self,
        x: Tensor,
        f_0: Tensor,
        generator: torch.Generator,
        kind: str,
        components: int | None = None,
        points: FittedMixture | None = None,
    ) -> None:
        """From points of q (N, D) and their f_0 (N,), in one of three ways (KINDS).

        points   components of the points; p's have the moments of points weighed by e^{f_0}
        pairs    likewise, of pairs of a point and its f_0: a component has one energy then, or
                 one that is linear in x, wherever components that overlap differ in it
        curved   components of the points; f_0 is a quadratic function in each, by least squares,
                 which needs fewer points where few have a high f_0

        With fewer `components` than J, each of them is known from more points. `points` is the
        mixture of the points where it is fitted already.
        """
        n = self.q.components if components is None else components
        seen = x
        if kind == "pairs":
            centered = f_0.double() - f_0.double().mean()
            scaled = centered / centered.square().mean().sqrt().clamp(min=1e-12)
            seen = torch.cat([x, scaled[:, None].to(x)], dim=-1)
        fitted = None if kind == "pairs" else points
        if fitted is None:
            fitted = FittedMixture(seen.shape[1], n).to(x.device)
            fitted.fit(seen, generator)
        rows, weights = slice(fitted.most_rows), exponentials(f_0[: fitted.most_rows])
        q, p = fitted, FittedMixture(self.q.dim, n).to(x.device)
        if kind == "curved":
            p.tilt_by_squares(q, x[rows], f_0[rows])
        else:
            plain = fitted.moments(seen[rows], x[rows])
            if kind == "pairs":
                q = FittedMixture(self.q.dim, n).to(x.device)
                q.set(plain)
            p.tilt(q, plain, fitted.moments(seen[rows], x[rows], weights))
        self.q.take(q)
        self.p.take(p)

    def f(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The intermediate energy between the mixtures, zero at pure noise: (B, D) to (B,)."""
        return self.p.log_density(x, alpha, sigma) - self.q.log_density(x, alpha, sigma)


class CorrectedNetwork(nn.Module):
    """A diffusion model's network that adds to what a fitted mixture predicts.

    The mixture's share of an output is its denoiser in the units of `prediction`.
    """

    def __init__(
        self, network: nn.Module, mixture: FittedMixture, schedule: Schedule, prediction: str
    ) -> None:
        super().__init__()
        self.network = network
        self.mixture = mixture
        self.schedule = schedule
        self.prediction = prediction

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """(B, D), (B,) to (B, D)."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        x_0 = self.mixture.denoise(x_t, alpha, sigma)
        known = output_for(self.prediction, x_0, x_t, alpha[:, None], sigma[:, None])
        correction: Tensor = self.network(x_t, t, condition)
        return known + correction


def exponentials(f_0: Tensor) -> Tensor:
    """Of f_0 (N,), relative to the largest, in float64."""
    return torch.exp(f_0.double() - f_0.double().max())


def outer(a: Tensor, b: Tensor) -> Tensor:
    """Products of all pairs of coordinates, (J, D), (J, D) to (J, D, D)."""
    return a[:, :, None] * b[:, None, :]
