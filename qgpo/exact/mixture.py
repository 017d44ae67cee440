"""Gaussian mixtures whose diffused densities, scores and intermediate energies are closed forms.

For q(x) = sum_k w_k N(m_k, S_k) and x_t = alpha x_0 + sigma eps,

    q_t(x) = sum_k w_k N(alpha m_k, alpha^2 S_k + sigma^2 I),

and for every energy for which p ~ q exp(f_0) is a mixture too, with Z = E_q[exp(f_0)],

    f*_t(x_t) = log E_{q(x_0|x_t)} [exp(f_0(x_0))] = log p_t(x_t) - log q_t(x_t) + log Z

(Bayes' rule: p_t(x_t) = int q(x_0) e^{f_0(x_0)} q(x_t|x_0) dx_0 / Z = q_t(x_t) e^{f*_t(x_t)} / Z;
CEP paper, arXiv 2304.12824, Theorem 3.1). Two families of f_0 do that: a constant on each
component, and a quadratic function of x. Everything is in float64. B batch, K components,
D dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from qgpo.schedule import Schedule


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """sum_k w_k N(m_k, S_k) with full covariances, clean or diffused to any t."""

    weights: Tensor
    """(K,) positive; normalised on construction"""
    means: Tensor
    """(K, D)"""
    covariances: Tensor
    """(K, D, D) symmetric positive semidefinite; zero is a point mass, whose q_t has a density"""

    def __post_init__(self) -> None:
        k, dim = self.means.shape
        if self.weights.shape != (k,) or self.covariances.shape != (k, dim, dim):
            raise ValueError(
                f"weights {tuple(self.weights.shape)}, means {tuple(self.means.shape)} and "
                f"covariances {tuple(self.covariances.shape)}, expected (K,), (K, D), (K, D, D)"
            )
        if not bool((self.weights > 0).all()):
            raise ValueError(f"weights={self.weights.tolist()}, expected all of them positive")
        for name in ("weights", "means", "covariances"):
            object.__setattr__(self, name, getattr(self, name).double())
        object.__setattr__(self, "weights", self.weights / self.weights.sum())
        if float(self._eigen[0].min()) < -1e-9:
            raise ValueError("covariances must be positive semidefinite")

    @property
    def dim(self) -> int:
        """D."""
        return self.means.shape[1]

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """S_k = U_k diag(s_k) U_k^T, so that alpha^2 S_k + sigma^2 I is diagonal in U_k."""
        values, vectors = torch.linalg.eigh(self.covariances)
        return values, vectors

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw n points (n, D) and the component (n,) each came from."""
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        values, vectors = self._eigen
        noise = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        scaled = values.clamp(min=0.0).sqrt()[component] * noise
        return self.means[component] + _mul(vectors[component], scaled), component

    def affine(self, shift: Tensor, scale: Tensor) -> GaussianMixture:
        """The mixture of (x - shift) / scale, shift and scale of shape (D,)."""
        shift, scale = shift.double(), scale.double()
        covariances = self.covariances / (scale[:, None] * scale[None, :])
        return GaussianMixture(self.weights, (self.means - shift) / scale, covariances)

    # After diffusion to time t, per sample: x (B, D), alpha and sigma (B,) --------------------

    def _parts(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """log(w_k N(x; ...)) (B, K) and the components' scores -C^-1 (x - alpha m) (B, K, D)."""
        values, vectors = self._eigen
        variance = alpha[:, None, None] ** 2 * values + sigma[:, None, None] ** 2
        centered = x.double()[:, None] - alpha[:, None, None] * self.means
        rotated = torch.einsum("kij,bki->bkj", vectors, centered)
        mahalanobis = torch.sum(rotated**2 / variance, dim=-1)
        log_det = torch.sum(torch.log(variance), dim=-1)
        log_density = -0.5 * (mahalanobis + log_det + self.dim * math.log(2.0 * math.pi))
        scores = -torch.einsum("kij,bkj->bki", vectors, rotated / variance)
        return torch.log(self.weights) + log_density, scores

    def log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Log density log q_t(x), (B,); alpha = 1, sigma = 0 is log q."""
        return torch.logsumexp(self._parts(x, alpha, sigma)[0], dim=-1)

    def responsibilities(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Probability of each component given x_t = x, (B, K)."""
        return torch.softmax(self._parts(x, alpha, sigma)[0], dim=-1)

    def score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Gradient of log q_t, (B, D)."""
        log_parts, scores = self._parts(x, alpha, sigma)
        return torch.einsum("bk,bkd->bd", torch.softmax(log_parts, dim=-1), scores)


def _mul(matrices: Tensor, vectors: Tensor) -> Tensor:
    """(..., D, D) times (..., D)."""
    return torch.einsum("...ij,...j->...i", matrices, vectors)


@dataclass(frozen=True, eq=False)
class TiltedMixture:
    """q, the target p ~ q exp(f_0), and the exact f*_t between them."""

    q: GaussianMixture
    p: GaussianMixture
    log_normalizer: float
    """log Z = log E_q[exp(f_0)]"""
    schedule: Schedule

    def f(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """f*_t, constant included (f*_0 = f_0): (B, D), (B,) to (B,)."""
        alpha, sigma = self._coefficients(t)
        log_ratio = self.p.log_density(x_t, alpha, sigma) - self.q.log_density(x_t, alpha, sigma)
        return log_ratio + self.log_normalizer

    def gradient(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Gradient of f*_t in x_t: the difference of the scores, (B, D)."""
        alpha, sigma = self._coefficients(t)
        return self.p.score(x_t, alpha, sigma) - self.q.score(x_t, alpha, sigma)

    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.schedule.alpha(t.double()), self.schedule.sigma(t.double())


def tilt_components(q: GaussianMixture, f_0: Tensor, schedule: Schedule) -> TiltedMixture:
    """Target p for an f_0 = beta e that is constant on each component, f_0 of shape (K,).

    p has the weights w_k e^{f_0k} / Z and the components of q. The energy is a function of the
    component that a point was drawn from, not of x: the result is exact where components overlap.
    """
    if f_0.shape != q.weights.shape:
        raise ValueError(f"f_0 has shape {tuple(f_0.shape)}, expected {tuple(q.weights.shape)}")
    log_weights = torch.log(q.weights) + f_0.double()
    weights = torch.softmax(log_weights, dim=0)
    p = GaussianMixture(weights, q.means, q.covariances)
    return TiltedMixture(q, p, float(torch.logsumexp(log_weights, dim=0)), schedule)


def tilt_quadratic(
    q: GaussianMixture, linear: Tensor, quadratic: Tensor, schedule: Schedule
) -> TiltedMixture:
    """Target p for f_0(x) = g^T x + x^T H x / 2, g (D,), H (D, D) symmetric, S_k^-1 > H.

    Completing the square in each component, with P = S^-1 - H and b = S^-1 m + g, gives the
    covariance P^-1, the mean P^-1 b, and the factor
    sqrt(det P^-1 / det S) exp((b^T P^-1 b - m^T S^-1 m) / 2) on its weight.
    """
    g, h = linear.double(), quadratic.double()
    precision = torch.linalg.inv(q.covariances)
    tilted_precision = precision - h
    if float(torch.linalg.eigvalsh(tilted_precision).min()) <= 0.0:
        raise ValueError(
            "exp(f_0) has no finite mean under q: the quadratic term's curvature is at least the "
            f"precision of a component (eigenvalues of S^-1 - H: "
            f"{torch.linalg.eigvalsh(tilted_precision).tolist()})"
        )
    covariances = torch.linalg.inv(tilted_precision)
    b = _mul(precision, q.means) + g
    means = _mul(covariances, b)
    exponent = 0.5 * (torch.sum(b * means, -1) - torch.sum(q.means * _mul(precision, q.means), -1))
    log_det = 0.5 * (torch.logdet(covariances) - torch.logdet(q.covariances))
    log_weights = torch.log(q.weights) + log_det + exponent
    p = GaussianMixture(torch.softmax(log_weights, dim=0), means, covariances)
    return TiltedMixture(q, p, float(torch.logsumexp(log_weights, dim=0)), schedule)


class MixtureNetwork(nn.Module):
    """The exact noise network of a mixture: eps = -sigma_t score.

    `Diffusion(MixtureNetwork(q, schedule), schedule, "noise")` is the exact diffusion model of q.
    Its samples show the solver's error without a network's.
    """

    def __init__(self, mixture: GaussianMixture, schedule: Schedule) -> None:
        super().__init__()
        self.mixture = mixture
        self.schedule = schedule

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """(B, D), (B,) to (B, D)."""
        alpha, sigma = self.schedule.alpha(t.double()), self.schedule.sigma(t.double())
        return -sigma[:, None] * self.mixture.score(x_t, alpha, sigma)


def ring_of_gaussians(dim: int = 2, spread: float = 0.5, radius: float = 4.0) -> GaussianMixture:
    """Eight components on a circle, the q of the exactness benchmark.

    In two dimensions it is the 8gaussians problem. In D > 2 the circle lies in a fixed random
    plane, and every component has its own full covariance, `spread`^2 times a rotated diagonal
    between 0.5 and 1.5. Units are those of the CEP paper's 2-D study: all divided by sqrt(2).
    """
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4.0)
    circle = radius * torch.stack([torch.cos(angle), torch.sin(angle)], dim=-1)
    generator = torch.Generator().manual_seed(0)
    if dim == 2:
        means = circle
        covariances = spread**2 * torch.eye(2, dtype=torch.float64).expand(8, 2, 2)
    else:
        gaussian = torch.randn(9, dim, dim, generator=generator, dtype=torch.float64)
        rotations = torch.linalg.qr(gaussian)[0]
        means = circle @ rotations[8, :2]
        diagonal = torch.diag(torch.linspace(0.5, 1.5, dim, dtype=torch.float64))
        covariances = spread**2 * rotations[:8] @ diagonal @ rotations[:8].mT
    return GaussianMixture(torch.ones(8), means / math.sqrt(2.0), covariances / 2.0)
