"""The answers to "what is the intermediate energy f_t?", one file each.

All take the sign "higher is better": p_t ~ q_t exp(f_t), f_0 = beta Q (or -beta E).

cep        exact: contrastive energy prediction              trained network
mse        regression on beta e: too weak                    trained network
emse       regression on e^{beta e}: exact, badly scaled     trained network
dps        beta e at the posterior mean                      no training
qgf        gradient of beta e at the posterior mean          no training
analytic   Gaussian posterior, Taylor series of the energy   no training
aepo       the same, learned by a network                    trained network
weighted   exact: weighted regression of p's own model       trained diffusion model
classifier exact for classes: log p(class|x_t)               trained network; several energies
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qgpo.guidance.aepo import AnalyticNetwork as AnalyticNetwork
from qgpo.guidance.analytic import Analytic as Analytic
from qgpo.guidance.analytic import AnalyticOptions as AnalyticOptions
from qgpo.guidance.base import EnergyGuide as EnergyGuide
from qgpo.guidance.base import Guidance as Guidance
from qgpo.guidance.base import GuidanceParts as GuidanceParts
from qgpo.guidance.base import LearnedEnergy as LearnedEnergy
from qgpo.guidance.base import Samples as Samples
from qgpo.guidance.base import ScaledEnergy as ScaledEnergy
from qgpo.guidance.base import read_options
from qgpo.guidance.cep import CEP as CEP
from qgpo.guidance.cep import cep_loss as cep_loss
from qgpo.guidance.classifier import Classifier as Classifier
from qgpo.guidance.dps import DPS as DPS
from qgpo.guidance.emse import EMSE as EMSE
from qgpo.guidance.mse import MSE as MSE
from qgpo.guidance.qgf import QGF as QGF
from qgpo.guidance.weighted import Weighted as Weighted
from qgpo.guidance.weighted import weighted_gradient as weighted_gradient
from qgpo.guidance.weighted import weighted_loss as weighted_loss

GUIDANCES: dict[str, type[Guidance]] = {
    "cep": CEP,
    "mse": MSE,
    "emse": EMSE,
    "dps": DPS,
    "qgf": QGF,
    "analytic": Analytic,
    "aepo": AnalyticNetwork,
    "weighted": Weighted,
    "classifier": Classifier,
}


def guidance_class(name: str) -> type[Guidance]:
    """The guidance of that name. Raises ValueError with the choices."""
    if name not in GUIDANCES:
        raise ValueError(f"guidance={name!r}, expected one of {sorted(GUIDANCES)}")
    return GUIDANCES[name]


def check_guidance(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an unknown guidance, option, or value of an option."""
    read_options(guidance_class(name).Options, options)


def make_guidance(name: str, parts: GuidanceParts) -> Guidance:
    """The guidance of that name, one of `GUIDANCES`, from what it needs."""
    return guidance_class(name)(parts)
