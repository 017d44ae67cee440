"""Agents: when things happen."""

from qgpo.agents.base import OfflineAgent
from qgpo.agents.presets import PRESETS, QGPOConfig
from qgpo.agents.qgpo import QGPO
from qgpo.agents.registry import AGENTS, load_agent

__all__ = ["AGENTS", "PRESETS", "QGPO", "OfflineAgent", "QGPOConfig", "load_agent"]
