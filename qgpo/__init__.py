"""QGPO: offline reinforcement learning with exact energy guidance of diffusion policies."""

from qgpo.agents import (
    PRESETS,
    QGPO,
    EnergyGuidedConfig,
    EnergyGuidedDiffusion,
    QGPOConfig,
    load_agent,
)
from qgpo.envs import Evaluation, OfflineDataset, evaluate, load_dataset

__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "QGPO",
    "EnergyGuidedConfig",
    "EnergyGuidedDiffusion",
    "Evaluation",
    "OfflineDataset",
    "QGPOConfig",
    "evaluate",
    "load_agent",
    "load_dataset",
]
