"""Agents: when things happen."""

from qgpo.agents.base import OfflineAgent
from qgpo.agents.presets import PRESETS, QGPOConfig
from qgpo.agents.qgpo import QGPO

AGENTS: dict[str, type[OfflineAgent]] = {QGPO.name: QGPO}  # type: ignore[type-arg]

__all__ = ["AGENTS", "PRESETS", "QGPO", "OfflineAgent", "QGPOConfig"]
