"""QGPO: offline reinforcement learning with exact energy guidance of diffusion policies."""

from qgpo import _moved as _moved
from qgpo.agents import (
    AEPO,
    BC,
    IQL,
    PRESETS,
    QGPO,
    QIPO,
    TD3BC,
    AEPOConfig,
    BCConfig,
    DiffusionQL,
    DiffusionQLConfig,
    EnergyGuidedConfig,
    EnergyGuidedDiffusion,
    Ensemble,
    IQLConfig,
    QGPOConfig,
    QIPOConfig,
    TD3BCConfig,
    load_agent,
)
from qgpo.envs import Evaluation, OfflineDataset, evaluate, load_dataset

__version__ = "0.1.0"
__all__ = [
    "AEPO",
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
    "Evaluation",
    "IQLConfig",
    "OfflineDataset",
    "QGPOConfig",
    "QIPOConfig",
    "TD3BCConfig",
    "evaluate",
    "load_agent",
    "load_dataset",
]
