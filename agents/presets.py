"""QGPO's hyperparameters: the dataclass, and the presets as rows of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace

from qgpo.diffusion import PREDICTIONS
from qgpo.envs.datasets import REWARD_TUNINGS
from qgpo.schedule import SCHEDULES
from qgpo.solver import SOLVERS, SPACINGS

CHOICES: dict[str, Collection[str]] = {
    "schedule": SCHEDULES,
    "prediction": PREDICTIONS,
    "reward_tuning": (*REWARD_TUNINGS, "unit"),
    "q_unit": ("reward", "spread"),
    "solver": SOLVERS,
    "spacing": SPACINGS,
}
RANGES: dict[str, tuple[float, float]] = {
    "ema_decay": (0.0, 0.999999),
    "gamma": (0.0, 1.0),
    "tau": (1e-9, 1.0),
    "critic_lambda": (0.0, 1.0),
    "support_actions": (2, 1_000_000),
    "whitening_steps": (0, 10**12),
    "beta": (0.0, 1e9),
    "beta_q": (0.0, 1e9),
    "guidance_scale": (0.0, 1e9),
}
"""inclusive; numbers that are not named here must be positive"""


def check_config(config: object) -> None:
    """Raise ValueError, naming field, value and choices, for values outside CHOICES or RANGES."""
    for field in fields(config):  # type: ignore[arg-type]
        name, value = field.name, getattr(config, field.name)
        if name in CHOICES:
            if value not in CHOICES[name]:
                raise ValueError(f"{name}={value!r}, expected one of {sorted(CHOICES[name])}")
            continue
        if isinstance(value, bool):
            continue
        low, high = RANGES.get(name, (1e-12, float("inf")))
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int | float) or not low <= number <= high:
                wanted = f"in [{low:g}, {high:g}]" if name in RANGES else "positive"
                raise ValueError(f"{name}={value!r}, expected {wanted}")


@dataclass(frozen=True)
class QGPOConfig:
    """Hyperparameters of QGPO; the defaults are the authors' (the `paper` preset)."""

    # The diffusion model of the behavior
    schedule: str = "linear"
    """noise schedule: linear (variance preserving, the paper's), cosine or ot"""
    prediction: str = "noise"
    """what the behavior network's output is: noise or velocity"""
    behavior_hidden: tuple[int, ...] = ()
    """layers of a plain MLP; empty means the authors' residual U-Net MLP"""
    behavior_steps: int = 600_000
    """gradient steps of the behavior stage"""
    behavior_batch_size: int = 4096
    """transitions per behavior step"""
    behavior_learning_rate: float = 1e-4
    """Adam step size of the behavior stage"""
    ema_decay: float = 0.0
    """decay of the averaged behavior weights that are sampled from; 0 samples the last weights"""
    whitening_steps: int = 0
    """gradient steps of a Gaussian policy in whose residuals the diffusion runs; 0: none"""
    normalize_observations: bool = False
    """standardise observations by the dataset's mean and standard deviation"""

    # Support actions
    support_actions: int = 16
    """M, actions drawn once per observation from the behavior model"""
    support_solver_steps: int = 15
    """solver steps for support actions"""

    # Critic: in-support softmax Q-learning
    critic_hidden: tuple[int, ...] = (256, 256, 256)
    """layers of each Q network"""
    critic_layer_norm: bool = False
    """layer normalisation in the Q networks"""
    critic_steps: int = 500_000
    """gradient steps of the critic stage"""
    critic_batch_size: int = 256
    """transitions per critic step"""
    critic_learning_rate: float = 3e-4
    """Adam step size of the critic stage"""
    gamma: float = 0.99
    """discount"""
    tau: float = 0.005
    """Polyak rate of the target critic"""
    beta_q: float = 1.0
    """inverse temperature of the softmax value in the critic's target"""
    critic_lambda: float = 0.0
    """lambda of the returns that the critic regresses on; 0 is the one-step target"""
    target_every: int = 1000
    """critic steps between two computations of the lambda-returns (unused at lambda 0)"""
    reward_tuning: str = "locomotion"
    """how rewards are scaled for the critic: none, locomotion, antmaze or unit (discounted
    returns of unit standard deviation)"""

    # Energy: contrastive energy prediction
    energy_hidden: tuple[int, ...] = (256, 256, 256, 256)
    """layers of the energy network"""
    energy_time_scale: float = 30.0
    """frequency scale of the energy network's time features"""
    energy_preconditioned: bool = False
    """scale the energy network's output by alpha_t: its error is not amplified near t = 1"""
    energy_steps: int = 1_000_000
    """gradient steps of the energy stage"""
    energy_batch_size: int = 256
    """states per energy step, each with all its support actions"""
    energy_learning_rate: float = 3e-4
    """Adam step size of the energy stage"""
    beta: float = 3.0
    """inverse temperature of the policy mu exp(beta Q)"""
    q_unit: str = "reward"
    """unit of Q in beta Q and beta_q Q: reward (as tuned) or spread (the typical standard
    deviation of Q over a state's support actions)"""

    # All stages
    learning_rate_decay: bool = False
    """lower every learning rate to zero along a half cosine"""

    # Acting
    guidance_scale: float = 1.0
    """w, the factor on the energy's gradient; exact at 1, pure imitation at 0"""
    solver: str = "dpm_solver_2m"
    """ODE solver: dpm_solver_2m or ddim"""
    solver_steps: int = 15
    """solver steps per action"""
    spacing: str = "time"
    """solver times uniform in time or in log_snr"""

    def __post_init__(self) -> None:
        check_config(self)


PAPER = QGPOConfig()
LAPTOP = replace(
    PAPER,
    schedule="cosine",
    prediction="velocity",
    behavior_hidden=(256, 256),
    behavior_steps=8_000,
    behavior_batch_size=512,
    behavior_learning_rate=1e-3,
    ema_decay=0.999,
    whitening_steps=4_000,
    normalize_observations=True,
    support_solver_steps=6,
    critic_hidden=(256, 256),
    critic_layer_norm=True,
    critic_steps=8_000,
    critic_learning_rate=1e-3,
    critic_lambda=0.9,
    reward_tuning="unit",
    energy_hidden=(256, 256),
    energy_time_scale=1.0,
    energy_preconditioned=True,
    energy_steps=4_000,
    energy_batch_size=128,
    energy_learning_rate=1e-3,
    beta=30.0,
    beta_q=30.0,
    learning_rate_decay=True,
    solver_steps=8,
)

PRESETS: dict[str, QGPOConfig] = {"paper": PAPER, "laptop": LAPTOP}
