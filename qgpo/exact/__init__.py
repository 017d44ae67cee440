"""The yardstick: what an exact guidance is, in closed form, and distances to it.

mixture    Gaussian mixtures with exact densities, scores and intermediate energies
drawing    problems drawn from a seed: such a mixture and an energy
empirical  the exact intermediate energy of a finite sample, where there is no closed form
distances  between samples, between samples and a mixture, between two guidances

Nothing here is learned. How a guidance is trained stands in `qgpo.guidance`.
"""

from qgpo.exact.distances import GuidanceError as GuidanceError
from qgpo.exact.distances import component_shares as component_shares
from qgpo.exact.distances import guidance_error as guidance_error
from qgpo.exact.distances import sliced_wasserstein as sliced_wasserstein
from qgpo.exact.drawing import DrawnProblem as DrawnProblem
from qgpo.exact.drawing import draw_problem as draw_problem
from qgpo.exact.empirical import EmpiricalTilt as EmpiricalTilt
from qgpo.exact.empirical import compare_with_pair as compare_with_pair
from qgpo.exact.empirical import compare_with_two as compare_with_two
from qgpo.exact.mixture import GaussianMixture as GaussianMixture
from qgpo.exact.mixture import MixtureNetwork as MixtureNetwork
from qgpo.exact.mixture import TiltedMixture as TiltedMixture
from qgpo.exact.mixture import ring_of_gaussians as ring_of_gaussians
from qgpo.exact.mixture import tilt_components as tilt_components
from qgpo.exact.mixture import tilt_quadratic as tilt_quadratic
