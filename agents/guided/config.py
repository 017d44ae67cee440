"""The configuration that the guided family shares, and what its laptop presets have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from qgpo.agents.core.config import (
    Decay,
    Expectile,
    Fraction,
    NotNegative,
    OptionalSteps,
    Period,
    Rate,
    RewardTuning,
    Steps,
)
from qgpo.diffusion import PREDICTIONS
from qgpo.fields import OneOf, Range, check_fields
from qgpo.networks import ACTIVATIONS
from qgpo.schedule import SCHEDULES
from qgpo.solver import SOLVERS, SPACINGS, STOCHASTIC

TrustPower = Annotated[float, Range(0.0, 1e3)]
CRITICS = ("support", "implicit", "stacked")
LAST_STAGE = "no stage before the last one reads it"
AFTER_BEHAVIOR = "no stage before the support reads it"


@dataclass(frozen=True)
class GuidedPolicyConfig:
    """What the agents of the family share; the defaults are the QGPO authors'."""

    # The diffusion model of the behavior
    schedule: Annotated[str, OneOf(SCHEDULES)] = "linear"
    """noise schedule: linear (variance preserving, the paper's), cosine or ot"""
    prediction: Annotated[str, OneOf(PREDICTIONS)] = "noise"
    """what the behavior network's output is: noise, velocity, or flow (only on ot)"""
    behavior_hidden: tuple[int, ...] = ()
    """layers of a plain MLP; empty means the authors' residual U-Net MLP"""
    behavior_steps: Steps = 600_000
    """gradient steps of the behavior stage"""
    behavior_batch_size: int = 4096
    """transitions per behavior step"""
    behavior_learning_rate: float = 1e-4
    """Adam step size of the behavior stage"""
    ema_decay: Decay = 0.0
    """decay of the averaged weights that are sampled from; 0 samples the last weights"""
    whitening_steps: OptionalSteps = 0
    """gradient steps of a Gaussian policy in whose residuals the diffusion runs; 0: none"""
    sparsity_power: Annotated[float, Range(0.0, 16.0)] = 0.0
    """the Gaussian policy sees states where data are sparse more often: those farther from the
    nearest one of another episode than the median, (distance / median, at most 4)^sparsity_power
    times as often; 0: all alike (unused without whitening_steps)"""
    normalize_observations: bool = False
    """standardise observations by the dataset's mean and standard deviation"""

    # Support actions
    support_actions: Annotated[int, Range(2, 1_000_000), AFTER_BEHAVIOR] = 16
    """M, actions drawn once per observation from the behavior model"""
    support_solver_steps: Annotated[int, AFTER_BEHAVIOR] = 15
    """solver steps for support actions"""

    # Critic
    critic: Annotated[str, OneOf(CRITICS), AFTER_BEHAVIOR] = "support"
    """how actions are ranked: support (in-support Q-learning, the paper's), implicit (implicit
    Q-learning) or stacked (both kinds, weighted by what they say of episodes that they have not
    seen)"""
    critic_hidden: Annotated[tuple[int, ...], AFTER_BEHAVIOR] = (256, 256, 256)
    """layers of each Q network"""
    critic_activation: Annotated[str, OneOf(ACTIVATIONS), AFTER_BEHAVIOR] = "relu"
    """relu, silu or tanh; a guidance of second order needs a smooth one"""
    critic_layer_norm: Annotated[bool, AFTER_BEHAVIOR] = False
    """layer normalisation in the Q networks"""
    critic_baseline: Annotated[bool, AFTER_BEHAVIOR] = False
    """split Q into a V(s) learned by itself and an advantage regressed on what it leaves"""
    critic_steps: Annotated[Steps, AFTER_BEHAVIOR] = 500_000
    """gradient steps of the critic stage"""
    critic_batch_size: Annotated[int, AFTER_BEHAVIOR] = 256
    """transitions per critic step"""
    critic_learning_rate: Annotated[float, AFTER_BEHAVIOR] = 3e-4
    """Adam step size of the critic stage"""
    gamma: Annotated[Fraction, AFTER_BEHAVIOR] = 0.99
    """discount"""
    tau: Annotated[Rate, AFTER_BEHAVIOR] = 0.005
    """Polyak rate of the target critic"""
    critic_value: Annotated[str, OneOf(("softmax", "expectile")), AFTER_BEHAVIOR] = "softmax"
    """value of a state from Q of its support actions: softmax (the paper's) or expectile"""
    beta_q: Annotated[NotNegative, AFTER_BEHAVIOR] = 1.0
    """inverse temperature of the softmax value in the critic's target"""
    expectile: Annotated[Expectile, AFTER_BEHAVIOR] = 0.7
    """of the expectile value and of implicit Q-learning's; 0.5 is the mean, 1 the maximum"""
    implicit_actions: Annotated[int, Range(0, 1_000_000), AFTER_BEHAVIOR] = 0
    """support actions per state and step over which implicit Q-learning takes V; 0: the dataset's
    own action"""
    critic_lambda: Annotated[Fraction, AFTER_BEHAVIOR] = 0.0
    """lambda of the returns that the critic regresses on; 0 is the one-step target"""
    target_every: Annotated[Period, AFTER_BEHAVIOR] = 1000
    """critic steps between two computations of the lambda-returns (unused at lambda 0)"""
    reward_tuning: Annotated[RewardTuning, AFTER_BEHAVIOR] = "locomotion"
    """how rewards are scaled for the critic: none, locomotion, antmaze or unit (discounted
    returns of unit standard deviation)"""

    # The policy mu exp(beta Q)
    beta: Annotated[NotNegative, LAST_STAGE] = 3.0
    """inverse temperature"""
    q_unit: Annotated[str, OneOf(("reward", "spread")), LAST_STAGE] = "reward"
    """unit of Q in beta Q: reward (as tuned) or spread (the typical standard deviation of Q over
    a state's support actions)"""
    tilt_limit: Annotated[float | None, LAST_STAGE] = None
    """largest standard deviation of beta Q over a state's support actions; beta is lowered in
    states that exceed it (by cep, mse, emse and QIPO, whose iterates share it; by SIR, over its
    candidates; dps, qgf, analytic and aepo, which take beta Q itself, lower it in all states by
    the typical standard deviation)"""

    # All stages
    learning_rate_decay: bool = False
    """lower every learning rate to zero along a half cosine"""

    # Acting
    guidance_scale: Annotated[NotNegative, LAST_STAGE] = 1.0
    """w; 1 is the policy mu exp(beta Q) (but for tilt_limit and trust_power), 0 imitation"""
    guidance_bound: Annotated[float | None, LAST_STAGE] = None
    """largest |w sigma grad f| / |eps| while acting; none: no bound"""
    deterministic_action: Annotated[str, OneOf(("ode", "mean", "mode")), LAST_STAGE] = "ode"
    """what predict(deterministic=True) returns: ode, the solver's answer to zero noise; mean, the
    policy's mean action (one evaluation); or mode, the mean of its samples where they are densest
    (the solver's answers to 16 noises, always the same)"""
    solver: Annotated[str, OneOf(sorted(set(SOLVERS) - STOCHASTIC)), AFTER_BEHAVIOR] = (
        "dpm_solver_2m"
    )
    """solver of the reverse process: dpm_solver_2m, dpm_solver_2s, ddim, heun, or euler (ot)"""
    solver_steps: Annotated[int, LAST_STAGE] = 15
    """solver steps per action"""
    spacing: Annotated[str, OneOf(SPACINGS), AFTER_BEHAVIOR] = "time"
    """solver times uniform in time or in log_snr, or karras"""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.critic == "implicit" and self.implicit_actions > self.support_actions:
            raise ValueError(
                f"implicit_actions={self.implicit_actions}, expected at most "
                f"support_actions={self.support_actions}: there are no more"
            )


LAPTOP: dict[str, Any] = {
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
    "critic": "stacked",
    "critic_hidden": (256, 256),
    "critic_layer_norm": True,
    "critic_steps": 12_000,
    "critic_learning_rate": 1e-3,
    "tau": 0.01,
    "expectile": 0.9,
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
"""of every laptop preset of the family"""
LAPTOP_SUPPORT: dict[str, Any] = {
    **LAPTOP,
    "critic": "support",
    "critic_baseline": True,
    "critic_steps": 6_000,
    "critic_learning_rate": 2e-3,
    "tau": GuidedPolicyConfig.tau,
    "expectile": GuidedPolicyConfig.expectile,
}
"""of every laptop-support preset: what laptop was before it had the stacked critic"""
