"""QGPO: offline reinforcement learning with exact energy guidance of diffusion policies."""

from qgpo.agents import (
    AEPO,
    PRESETS,
    QGPO,
    QIPO,
    AEPOConfig,
    EnergyGuidedConfig,
    EnergyGuidedDiffusion,
    QGPOConfig,
    QIPOConfig,
    load_agent,
)
from qgpo.envs import Evaluation, OfflineDataset, evaluate, load_dataset

__version__ = "0.1.0"
__all__ = [
    "AEPO",
    "PRESETS",
    "QGPO",
    "QIPO",
    "AEPOConfig",
    "EnergyGuidedConfig",
    "EnergyGuidedDiffusion",
    "Evaluation",
    "OfflineDataset",
    "QGPOConfig",
    "QIPOConfig",
    "evaluate",
    "load_agent",
    "load_dataset",
]
