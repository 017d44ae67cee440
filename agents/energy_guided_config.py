"""The hyperparameters of EnergyGuidedDiffusion."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EnergyGuidedConfig:
    """What an EnergyGuidedDiffusion is made of."""

    beta: float = 1.0
    """inverse temperature of p ~ q exp(-beta E)"""
    guidance: str = "cep"
    """how f_t is obtained: cep, mse, emse, dps, analytic, aepo or weighted"""
    schedule: str = "cosine"
    """noise schedule: cosine, linear (both variance preserving) or ot"""
    prediction: str = "velocity"
    """what the data model's network predicts: velocity, noise, or flow (only on ot)"""
    hidden: tuple[int, ...] = (192, 192, 192)
    """layers of the data model"""
    data_steps: int = 4_000
    """gradient steps of the data model"""
    data_learning_rate: float = 3e-3
    """its first Adam step size"""
    energy_hidden: tuple[int, ...] = (128, 128, 128)
    """layers of f, and of the clean energy where one is learned"""
    guidance_steps: int = 3_000
    """gradient steps of f, or of the weighted model"""
    guidance_learning_rate: float = 5e-3
    """its first Adam step size"""
    contrast: int = 512
    """K, samples compared with each other at one noise level"""
    groups: int = 4
    """such groups in one gradient step, each with its own noise level"""
    targets: str = "sample"
    """sample, or posterior: targets averaged over the group's posterior, which takes most of their
    variance away (unconditional models in few dimensions)"""
    cep_labels: str = "normalized"
    """labels of cep: normalized (Eq. 13) or exponential (Eq. 12)"""
    preconditioned: bool = True
    """f = alpha_t times its network"""
    sharpness: float = 12.0
    """scale of the networks' inputs: how fine the features are that they learn first"""
    ema_decay: float = 0.999
    """decay of the averaged weights that are sampled from"""
    clamp: float | None = None
    """bound on standardised coordinates of the posterior mean in dps and analytic"""
    analytic_order: int = 1
    """order of analytic: 1 or 2"""
    analytic_covariance: str = "residual"
    """posterior covariance of analytic: moment, residual, per_dimension or jacobian"""
    analytic_gradient: str = "autograd"
    """gradient of analytic: autograd or shift"""
    analytic_damped: bool = True
    """limit the variance term of analytic"""
    guidance_bound: float | None = None
    """largest |w sigma grad f| / |eps| while sampling; none: no bound"""
    solver: str = "dpm_solver_2m"
    """solver unless `sample` is told another"""
    solver_steps: int = 25
    """its steps"""
    spacing: str = "log_snr"
    """its time grid: time, log_snr or karras"""
