"""Hyperparameters of the family: dataclasses, and the presets as rows of them."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from qgpo.diffusion import PREDICTIONS
from qgpo.envs.data.dataset import REWARD_TUNINGS
from qgpo.guidance import GUIDANCES
from qgpo.guidance.analytic import COVARIANCES, GRADIENTS
from qgpo.networks import ACTIVATIONS
from qgpo.schedule import SCHEDULES
from qgpo.solver import SOLVERS, SPACINGS, STOCHASTIC

CHOICES: dict[str, Collection[str | int]] = {
    "schedule": SCHEDULES,
    "prediction": PREDICTIONS,
    "reward_tuning": (*REWARD_TUNINGS, "unit"),
    "q_unit": ("reward", "spread"),
    "critic_activation": ACTIVATIONS,
    "critic_value": ("softmax", "expectile"),
    "guidance": sorted(set(GUIDANCES) - {"weighted"}),
    "analytic_order": (1, 2),
    "analytic_covariance": COVARIANCES,
    "analytic_gradient": GRADIENTS,
    "deterministic_action": ("ode", "mean"),
    "solver": sorted(set(SOLVERS) - STOCHASTIC),
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
    "alpha": (0.0, 1e9),
    "eta": (0.0, 1e9),
    "expectile": (1e-6, 1.0 - 1e-6),
    "sparsity_power": (0.0, 16.0),
    "trust_power": (0.0, 1e3),
    "policy_noise": (0.0, 1e9),
    "noise_clip": (0.0, 1e9),
    "exploration_noise": (0.0, 1e9),
    "ema_start": (0, 10**12),
}
"""inclusive; numbers that are not named here must be positive"""


TRAINING_STEPS = (
    "whitening_steps",
    "behavior_steps",
    "critic_steps",
    "energy_steps",
    "policy_steps",
    "steps",
)
"""gradient steps of the stages, where a configuration has them"""
RENEWAL_PERIODS = ("target_every", "renew_every")
"""steps between renewals of the critic's targets and of QIPO's support: a longer training renews
them as many times, or it would learn something else"""

ConfigT = TypeVar("ConfigT")


def longer(config: ConfigT, factor: float) -> ConfigT:
    """The configuration with `factor` times the gradient steps in every stage.

    QGPO(longer(PRESETS["laptop"], 4))

    Stages without steps stay without; targets are renewed as many times as before.
    Raises ValueError unless the factor is positive.
    """
    if not 0.0 < factor < math.inf:
        raise ValueError(f"factor={factor}, expected a positive number")
    names = {field.name for field in fields(config)}  # type: ignore[arg-type]
    before = {name: getattr(config, name) for name in TRAINING_STEPS if name in names}
    after = {name: max(1, round(steps * factor)) for name, steps in before.items() if steps}
    periods = {n: math.ceil(getattr(config, n) * factor) for n in RENEWAL_PERIODS if n in names}
    return replace(config, **after, **periods)  # type: ignore[type-var]


def check_config(config: object) -> None:
    """Raise ValueError, naming field, value and choices, for values outside CHOICES or RANGES."""
    for field in fields(config):  # type: ignore[arg-type]
        name, value = field.name, getattr(config, field.name)
        if name in CHOICES:
            if value not in CHOICES[name]:
                raise ValueError(f"{name}={value!r}, expected one of {sorted(CHOICES[name])}")
            continue
        if isinstance(value, bool) or (value is None and field.default is None):
            continue
        low, high = RANGES.get(name, (1e-12, float("inf")))
        whole = field.type in ("int", "tuple[int, ...]")
        for number in value if isinstance(value, tuple) else (value,):
            if whole and type(number) is not int:
                raise ValueError(f"{name}={value!r}, expected an integer")
            if not isinstance(number, int | float) or not low <= number <= high:
                wanted = f"in [{low:g}, {high:g}]" if name in RANGES else "positive"
                raise ValueError(f"{name}={value!r}, expected {wanted}")


@dataclass(frozen=True)
class GuidedPolicyConfig:
    """What the agents of the family share; the defaults are the QGPO authors'."""

    # The diffusion model of the behavior
    schedule: str = "linear"
    """noise schedule: linear (variance preserving, the paper's), cosine or ot"""
    prediction: str = "noise"
    """what the behavior network's output is: noise, velocity, or flow (only on ot)"""
    behavior_hidden: tuple[int, ...] = ()
    """layers of a plain MLP; empty means the authors' residual U-Net MLP"""
    behavior_steps: int = 600_000
    """gradient steps of the behavior stage"""
    behavior_batch_size: int = 4096
    """transitions per behavior step"""
    behavior_learning_rate: float = 1e-4
    """Adam step size of the behavior stage"""
    ema_decay: float = 0.0
    """decay of the averaged weights that are sampled from; 0 samples the last weights"""
    whitening_steps: int = 0
    """gradient steps of a Gaussian policy in whose residuals the diffusion runs; 0: none"""
    sparsity_power: float = 0.0
    """the Gaussian policy sees states where data are sparse more often: those farther from the
    nearest one of another episode than the median, (distance / median, at most 4)^sparsity_power
    times as often; 0: all alike (unused without whitening_steps)"""
    normalize_observations: bool = False
    """standardise observations by the dataset's mean and standard deviation"""

    # Support actions
    support_actions: int = 16
    """M, actions drawn once per observation from the behavior model"""
    support_solver_steps: int = 15
    """solver steps for support actions"""

    # Critic: in-support Q-learning
    critic_hidden: tuple[int, ...] = (256, 256, 256)
    """layers of each Q network"""
    critic_activation: str = "relu"
    """relu, silu or tanh; a guidance of second order needs a smooth one"""
    critic_layer_norm: bool = False
    """layer normalisation in the Q networks"""
    critic_baseline: bool = False
    """split Q into a V(s) learned by itself and an advantage regressed on what it leaves"""
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
    critic_value: str = "softmax"
    """value of a state from Q of its support actions: softmax (the paper's) or expectile"""
    beta_q: float = 1.0
    """inverse temperature of the softmax value in the critic's target"""
    expectile: float = 0.7
    """of the expectile value; 0.5 is the mean, 1 the maximum"""
    critic_lambda: float = 0.0
    """lambda of the returns that the critic regresses on; 0 is the one-step target"""
    target_every: int = 1000
    """critic steps between two computations of the lambda-returns (unused at lambda 0)"""
    reward_tuning: str = "locomotion"
    """how rewards are scaled for the critic: none, locomotion, antmaze or unit (discounted
    returns of unit standard deviation)"""

    # The policy mu exp(beta Q)
    beta: float = 3.0
    """inverse temperature"""
    q_unit: str = "reward"
    """unit of Q in beta Q: reward (as tuned) or spread (the typical standard deviation of Q over
    a state's support actions)"""
    tilt_limit: float | None = None
    """largest standard deviation of beta Q over a state's support actions; beta is lowered in
    states that exceed it (by cep, mse, emse and QIPO, whose iterates share it; dps, analytic and
    aepo, which take beta Q itself, lower it in all states by the typical standard deviation)"""

    # All stages
    learning_rate_decay: bool = False
    """lower every learning rate to zero along a half cosine"""

    # Acting
    guidance_scale: float = 1.0
    """w; 1 is the policy mu exp(beta Q) (but for tilt_limit and trust_power), 0 imitation"""
    guidance_bound: float | None = None
    """largest |w sigma grad f| / |eps| while acting; none: no bound"""
    deterministic_action: str = "ode"
    """what predict(deterministic=True) returns: ode, the solver's answer to zero noise, or mean,
    the policy's mean action (one evaluation)"""
    solver: str = "dpm_solver_2m"
    """solver of the reverse process: dpm_solver_2m, dpm_solver_2s, ddim, heun, or euler (ot)"""
    solver_steps: int = 15
    """solver steps per action"""
    spacing: str = "time"
    """solver times uniform in time or in log_snr, or karras"""

    def __post_init__(self) -> None:
        check_config(self)


@dataclass(frozen=True)
class QGPOConfig(GuidedPolicyConfig):
    """Hyperparameters of QGPO; the defaults are the authors' (the `paper` preset)."""

    guidance: str = "cep"
    """how f_t is obtained: cep (the paper's), mse, emse, dps, analytic or aepo"""
    trust_power: float = 0.0
    """lower the guidance scale in states where data are sparse, farther from the nearest one than
    the median, by (median / distance)^trust_power; 0: one scale for all states"""
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
    analytic_order: int = 1
    """order of analytic and aepo: 1 or 2"""
    analytic_covariance: str = "residual"
    """their posterior covariance: moment, residual, per_dimension or jacobian"""
    analytic_gradient: str = "autograd"
    """gradient of analytic: autograd, or shift, which does not differentiate the denoiser"""
    analytic_damped: bool = True
    """limit their variance term to where one standard deviation changes f by 1"""


@dataclass(frozen=True)
class AEPOConfig(QGPOConfig):
    """Hyperparameters of AEPO: QGPO's, with the analytic energy by default."""

    guidance: str = "aepo"
    """aepo (a network learns the analytic energy) or analytic (no network)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance not in ("aepo", "analytic"):
            raise ValueError(
                f"guidance={self.guidance!r}, expected one of ['aepo', 'analytic']; QGPO has others"
            )


@dataclass(frozen=True)
class QIPOConfig(GuidedPolicyConfig):
    """Hyperparameters of QIPO; the defaults are those of published code (the `paper` preset)."""

    support_actions: int = 64
    """M, actions per observation among which the weights are shared out"""
    policy_steps: int = 98_000
    """gradient steps of the policy stage"""
    policy_batch_size: int = 256
    """states per policy step, each with all its support actions"""
    policy_learning_rate: float = 3e-4
    """Adam step size of the policy stage"""
    renew_every: int = 10_000
    """policy steps between two renewals of the support by the policy itself"""
    largest_beta: float = 30.0
    """no renewal beyond this effective beta; the l-th renewal makes it (l + 1) beta"""


LAPTOP_SHARED: dict[str, Any] = {
    "schedule": "cosine",
    "prediction": "velocity",
    "behavior_hidden": (256, 256),
    "behavior_steps": 6_000,
    "behavior_batch_size": 512,
    "behavior_learning_rate": 1e-3,
    "ema_decay": 0.999,
    "whitening_steps": 20_000,
    "normalize_observations": True,
    "support_actions": 16,
    "support_solver_steps": 6,
    "critic_hidden": (256, 256),
    "critic_layer_norm": True,
    "critic_baseline": True,
    "critic_steps": 6_000,
    "critic_learning_rate": 2e-3,
    "critic_lambda": 0.9,
    "target_every": 2_000,
    "reward_tuning": "unit",
    "beta": 10.0,
    "beta_q": 20.0,
    "tilt_limit": 1.0,
    "learning_rate_decay": True,
    "deterministic_action": "mean",
    "solver_steps": 8,
}
LAPTOP_ENERGY: dict[str, Any] = {
    "energy_hidden": (256, 256),
    "energy_time_scale": 1.0,
    "energy_preconditioned": True,
    "energy_steps": 3_000,
    "energy_batch_size": 128,
    "energy_learning_rate": 1e-3,
}
LAPTOP_TRUST: dict[str, Any] = {
    "beta": 1.0,
    "q_unit": "spread",
    "tilt_limit": 3.0,
    "trust_power": 4.0,
}
"""QGPO's own: beta is such that a typical state's actions differ by one in beta Q"""
LAPTOP_POLICY: dict[str, Any] = {
    "policy_steps": 3_000,
    "policy_batch_size": 128,
    "policy_learning_rate": 1e-3,
    "renew_every": 1_500,
    "beta": 5.0,
}
FLOW: dict[str, Any] = {"schedule": "ot", "prediction": "flow"}

PRESETS: dict[str, QGPOConfig] = {
    "paper": QGPOConfig(),
    "laptop": QGPOConfig(**{**LAPTOP_SHARED, **LAPTOP_ENERGY, **LAPTOP_TRUST}),
}
AEPO_PRESETS: dict[str, AEPOConfig] = {
    "paper": AEPOConfig(),
    "laptop": AEPOConfig(**{**LAPTOP_SHARED, **LAPTOP_ENERGY, "energy_steps": 1_000}),
}
QIPO_PRESETS: dict[str, QIPOConfig] = {
    "paper": QIPOConfig(),
    "paper-flow": QIPOConfig(**FLOW),
    "laptop": QIPOConfig(**{**LAPTOP_SHARED, **LAPTOP_POLICY}),
    "laptop-flow": QIPOConfig(**{**LAPTOP_SHARED, **LAPTOP_POLICY, **FLOW}),
}
