"""Mixtures drawn from a seed, with an energy whose target is known in closed form.

A yardstick that somebody chose may be one on which a method was tuned. These problems are drawn:
number, places, shapes and weights of the components, and the energy. The preference e = -E is

constant    a number on each component, of the component that a point was drawn from
linear      g . x
quadratic   g . x + x . H x / 2, H with eigenvalues of both signs

and in units in which its standard deviation under q is SPREAD, that of a uniform number of [0, 1],
or less where an E_q[exp(BETA_MAX e)] would otherwise hardly exist. Everything is in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qgpo.exact.mixture import GaussianMixture, TiltedMixture, tilt_components, tilt_quadratic
from qgpo.fields import check_count, check_seed
from qgpo.schedule import Schedule

ENERGIES = ("constant", "linear", "quadratic")
SPREAD = 0.29
"""largest standard deviation of e under q"""
BETA_MAX = 10.0
"""largest beta for which a quadratic e is drawn to be integrable"""
CURVATURE = 0.5
"""largest eigenvalue of BETA_MAX times H in units of a component's precision"""
COMPONENTS = (3, 8)
"""fewest and most"""
RADIUS = 2.0
"""scale of the components' means"""
AXES = (0.12, 0.62)
"""smallest and largest standard deviation of a component along one of its axes"""


@dataclass(frozen=True, eq=False)
class DrawnProblem:
    """q, and a preference e of its points, higher is better."""

    q: GaussianMixture
    energy: str
    """one of ENERGIES"""
    levels: Tensor
    """(K,) e of the components; zero unless the energy is constant"""
    linear: Tensor
    """(D,) g"""
    quadratic: Tensor
    """(D, D) H"""

    def preference(self, x: Tensor, component: Tensor) -> Tensor:
        """Values of e at points (N, D) that were drawn from the components (N,), (N,)."""
        x = x.double()
        curved = 0.5 * torch.sum(x * (x @ self.quadratic), dim=-1)
        return self.levels[component] + x @ self.linear + curved

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw n points of q (n, D), and their preferences (n,)."""
        x, component = self.q.sample(n, generator)
        return x, self.preference(x, component)

    def standardised(self, shift: Tensor, scale: Tensor) -> DrawnProblem:
        """The same problem of z = (x - shift) / scale, e up to a constant; (D,) each."""
        shift, scale = shift.double(), scale.double()
        return replace(
            self,
            q=self.q.affine(shift, scale),
            linear=scale * (self.linear + self.quadratic @ shift),
            quadratic=scale[:, None] * self.quadratic * scale,
        )

    def tilted(self, beta: float, schedule: Schedule) -> TiltedMixture:
        """The target p ~ q exp(beta e). Raises ValueError where it does not exist."""
        if self.energy == "constant":
            return tilt_components(self.q, beta * self.levels, schedule)
        return tilt_quadratic(self.q, beta * self.linear, beta * self.quadratic, schedule)


def draw_problem(seed: int, dim: int = 2, energy: str = "constant") -> DrawnProblem:
    """The problem of that seed, dimension and kind of energy.

    Components: 3 to 8, with axes between AXES whose ratio is anything from 1 (isotropic) up, each
    in its own rotation, and weights from equal to uneven. Raises ValueError for another kind.
    """
    if energy not in ENERGIES:
        raise ValueError(f"energy={energy!r}, expected one of {list(ENERGIES)}")
    dim = check_count("dim", dim)
    generator = torch.Generator().manual_seed(check_seed(seed))
    q = _draw_mixture(dim, generator)
    k = len(q.weights)
    levels = torch.rand(k, generator=generator, dtype=torch.float64)
    direction = torch.randn(dim, generator=generator, dtype=torch.float64)
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    nothing = DrawnProblem(
        q,
        energy,
        torch.zeros(k).double(),
        torch.zeros(dim).double(),
        torch.zeros(dim, dim).double(),
    )
    if energy == "constant":
        return replace(nothing, levels=levels)
    quadratic = 0.5 * (root + root.mT) if energy == "quadratic" else nothing.quadratic
    problem = replace(nothing, linear=direction, quadratic=quadratic)
    return _in_units(problem, generator)


def _draw_mixture(dim: int, generator: torch.Generator) -> GaussianMixture:
    """Places, shapes and weights; the draws are in a fixed order."""
    low, high = COMPONENTS
    k = int(torch.randint(low, high + 1, (), generator=generator))
    means = RADIUS * torch.randn(k, dim, generator=generator, dtype=torch.float64)
    unevenness = 1.2 * torch.rand((), generator=generator, dtype=torch.float64)
    logits = unevenness * torch.randn(k, generator=generator, dtype=torch.float64)
    # from isotropic components to the whole range of axes
    width = torch.rand((), generator=generator, dtype=torch.float64)
    center = torch.rand(k, 1, generator=generator, dtype=torch.float64)
    place = torch.rand(k, dim, generator=generator, dtype=torch.float64)
    position = (1.0 - width) * center + width * place
    axes = AXES[0] * (AXES[1] / AXES[0]) ** position
    rotations = torch.linalg.qr(torch.randn(k, dim, dim, generator=generator).double())[0]
    covariances = rotations @ torch.diag_embed(axes**2) @ rotations.mT
    return GaussianMixture(torch.exp(logits), means, 0.5 * (covariances + covariances.mT))


def _in_units(problem: DrawnProblem, generator: torch.Generator) -> DrawnProblem:
    """The problem with e divided by what makes it as large as the module's docstring says."""
    _, e = problem.draw(100_000, generator)
    scale = SPREAD / e.std()
    # S^(1/2) H S^(1/2): H in units of the components' precisions
    roots = torch.linalg.cholesky(problem.q.covariances)
    curvature = float(torch.linalg.eigvalsh(roots.mT @ problem.quadratic @ roots).max())
    if curvature > 0.0:
        scale = torch.minimum(scale, torch.tensor(CURVATURE / (BETA_MAX * curvature)).double())
    return replace(problem, linear=scale * problem.linear, quadratic=scale * problem.quadratic)
