"""Agents: when things happen."""

from qgpo.agents.aepo import AEPO
from qgpo.agents.bc import BC, BCConfig
from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.diffusion_ql import DiffusionQL, DiffusionQLConfig
from qgpo.agents.energy_guided import EnergyGuidedDiffusion
from qgpo.agents.energy_guided_config import EnergyGuidedConfig
from qgpo.agents.ensemble import Ensemble
from qgpo.agents.guided.config import PRESETS, AEPOConfig, QGPOConfig, QIPOConfig
from qgpo.agents.iql import IQL, IQLConfig
from qgpo.agents.qgpo import QGPO
from qgpo.agents.qipo import QIPO
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
    "IQLConfig",
    "OfflineAgent",
    "QGPOConfig",
    "QIPOConfig",
    "TD3BCConfig",
    "load_agent",
]
