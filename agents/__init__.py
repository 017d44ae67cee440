"""Agents: when things happen."""

from qgpo.agents.aepo import AEPO
from qgpo.agents.base import OfflineAgent
from qgpo.agents.energy_guided import EnergyGuidedDiffusion
from qgpo.agents.energy_guided_config import EnergyGuidedConfig
from qgpo.agents.presets import PRESETS, AEPOConfig, QGPOConfig, QIPOConfig
from qgpo.agents.qgpo import QGPO
from qgpo.agents.qipo import QIPO
from qgpo.agents.registry import AGENTS, load_agent

__all__ = [
    "AEPO",
    "AGENTS",
    "PRESETS",
    "QGPO",
    "QIPO",
    "AEPOConfig",
    "EnergyGuidedConfig",
    "EnergyGuidedDiffusion",
    "OfflineAgent",
    "QGPOConfig",
    "QIPOConfig",
    "load_agent",
]
