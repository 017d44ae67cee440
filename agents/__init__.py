"""One file per agent: its configuration, presets, update and act, read from top to bottom.

The contract of all agents is in `core`, what the guided family shares in `guided`. Losses and
networks belong in `qgpo`, runs in `experiments`.
"""

from qgpo.agents.aepo import AEPO, AEPOConfig
from qgpo.agents.bc import BC, BCConfig
from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.core.callbacks import EvaluationCallback
from qgpo.agents.diffusion_ql import DiffusionQL, DiffusionQLConfig
from qgpo.agents.energy_guided import EnergyGuidedConfig, EnergyGuidedDiffusion
from qgpo.agents.ensemble import Ensemble
from qgpo.agents.iql import IQL, IQLConfig
from qgpo.agents.qgpo import PRESETS, QGPO, QGPOConfig
from qgpo.agents.qipo import QIPO, QIPOConfig
from qgpo.agents.registry import AGENTS, load_agent
from qgpo.agents.td3bc import TD3BC, TD3BCConfig

__all__ = [
    "AEPO",
    "AGENTS",
    "BC",
    "IQL",
    "PRESETS",
    "QGPO",
    "QIPO",
    "TD3BC",
    "AEPOConfig",
    "BCConfig",
    "DiffusionQL",
    "DiffusionQLConfig",
    "EnergyGuidedConfig",
    "EnergyGuidedDiffusion",
    "Ensemble",
    "EvaluationCallback",
    "IQLConfig",
    "OfflineAgent",
    "QGPOConfig",
    "QIPOConfig",
    "TD3BCConfig",
    "load_agent",
]
