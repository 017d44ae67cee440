"""Agents: when things happen."""

from qgpo.agents.base import OfflineAgent
from qgpo.agents.energy_guided import EnergyGuidedDiffusion
from qgpo.agents.energy_guided_config import EnergyGuidedConfig
from qgpo.agents.presets import PRESETS, QGPOConfig
from qgpo.agents.qgpo import QGPO
from qgpo.agents.registry import AGENTS, load_agent

__all__ = [
    "AGENTS",
    "PRESETS",
    "QGPO",
    "EnergyGuidedConfig",
    "EnergyGuidedDiffusion",
    "OfflineAgent",
    "QGPOConfig",
    "load_agent",
]
