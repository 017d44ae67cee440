"""The yardstick: what an exact guidance is, in closed form, and distances to it.

mixture    Gaussian mixtures with exact densities, scores and intermediate energies
empirical  the exact intermediate energy of a finite sample, where there is no closed form
distances  between samples, between samples and a mixture, between two guidances

Nothing here is learned. How a guidance is trained stands in `qgpo.guidance`.
"""

from qgpo.exact.distances import (
    GuidanceError,
    component_shares,
    guidance_error,
    sliced_wasserstein,
)
from qgpo.exact.empirical import EmpiricalTilt
from qgpo.exact.mixture import (
    GaussianMixture,
    MixtureNetwork,
    TiltedMixture,
    ring_of_gaussians,
    tilt_components,
    tilt_quadratic,
)

__all__ = [
    "EmpiricalTilt",
    "GaussianMixture",
    "GuidanceError",
    "MixtureNetwork",
    "TiltedMixture",
    "component_shares",
    "guidance_error",
    "ring_of_gaussians",
    "sliced_wasserstein",
    "tilt_components",
    "tilt_quadratic",
]
