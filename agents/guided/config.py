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
    """noise schedule: linear (variance-preserving, the paper's), cosine, or ot (straight path of
    flow matching)"""
    prediction: Annotated[str, OneOf(PREDICTIONS)] = "noise"
    """output of the behavior network: noise, velocity, or flow (only with schedule ot)"""
    behavior_hidden: tuple[int, ...] = ()
    """hidden layer sizes of an MLP as behavior network; empty for the authors' residual U-Net
    MLP"""
    behavior_steps: Steps = 600_000
    """gradient steps of the behavior stage"""
    behavior_batch_size: int = 4096
    """transitions per behavior step"""
    behavior_learning_rate: float = 1e-4
    """Adam step size of the behavior stage"""
    ema_decay: Decay = 0.0
    """decay of the averaged weights of the behavior model, from which actions are sampled: larger
    averages over more steps, 0 uses the last weights"""
    whitening_steps: OptionalSteps = 0
    """gradient steps of a Gaussian policy whose residuals the diffusion models; 0: the diffusion
    models the actions themselves"""
    sparsity_power: Annotated[float, Range(0.0, 16.0)] = 0.0
    """larger values train the Gaussian policy more often on states where data are sparse. A state
    whose distance to the nearest state of another episode exceeds the median is drawn (distance /
    median, at most 4)^sparsity_power times as often; 0: all states equally often (no effect without
    whitening_steps)"""
    normalize_observations: bool = False
    """standardise observations with the dataset's mean and standard deviation"""

    # Support actions
    support_actions: Annotated[int, Range(2, 1_000_000), AFTER_BEHAVIOR] = 16
    """M, number of actions drawn once per observation from the behavior model: more are slower, and
    represent the behavior better"""
    support_solver_steps: Annotated[int, AFTER_BEHAVIOR] = 15
    """solver steps per support action: more are slower and more exact"""

    # Critic
    critic: Annotated[str, OneOf(CRITICS), AFTER_BEHAVIOR] = "support"
    """how Q is learned: support (in-support Q-learning, the paper's), implicit (implicit
    Q-learning) or stacked (both, weighted by how well they predict held-out episodes)"""
    critic_heads: Annotated[int, Range(1, 1000), AFTER_BEHAVIOR] = 1
    """with critic stacked: K heads of each learner learn from each half of the episodes, and their
    mean is used. A head has critic_hidden and critic_batch_size divided by sqrt(K)"""
    critic_hidden: Annotated[tuple[int, ...], AFTER_BEHAVIOR] = (256, 256, 256)
    """hidden layer sizes of each Q network"""
    critic_activation: Annotated[str, OneOf(ACTIVATIONS), AFTER_BEHAVIOR] = "relu"
    """activation of the Q networks: relu, silu or tanh. Guidance of order 2 needs a smooth one
    (silu or tanh), or critic_layer_norm"""
    critic_layer_norm: Annotated[bool, AFTER_BEHAVIOR] = False
    """layer normalisation in the Q networks"""
    critic_baseline: Annotated[bool, AFTER_BEHAVIOR] = False
    """split Q into V(s), learned separately, and an advantage that is trained on the remaining
    error"""
    critic_steps: Annotated[Steps, AFTER_BEHAVIOR] = 500_000
    """gradient steps of the critic stage"""
    critic_batch_size: Annotated[int, AFTER_BEHAVIOR] = 256
    """transitions per critic step"""
    critic_learning_rate: Annotated[float, AFTER_BEHAVIOR] = 3e-4
    """Adam step size of the critic stage"""
    gamma: Annotated[Fraction, AFTER_BEHAVIOR] = 0.99
    """discount factor; larger values weight later rewards more"""
    tau: Annotated[Rate, AFTER_BEHAVIOR] = 0.005
    """Polyak rate of the target critic; larger values make it follow the critic faster"""
    critic_value: Annotated[str, OneOf(("softmax", "expectile")), AFTER_BEHAVIOR] = "softmax"
    """value of a state, from Q of its support actions: softmax (the paper's) or expectile"""
    beta_q: Annotated[NotNegative, AFTER_BEHAVIOR] = 1.0
    """inverse temperature of the softmax value in the critic's target, per unit of Q: 0 is the mean
    of Q over the support actions, larger values approach the maximum"""
    expectile: Annotated[Expectile, AFTER_BEHAVIOR] = 0.7
    """expectile for critic_value expectile and for implicit Q-learning: 0.5 is the mean, larger
    values approach the maximum"""
    implicit_actions: Annotated[int, Range(0, 1_000_000), AFTER_BEHAVIOR] = 0
    """with critic implicit: number of support actions per state, drawn again in every step, over
    which V is the expectile; 0: V is the expectile over the actions in the dataset"""
    critic_lambda: Annotated[Fraction, AFTER_BEHAVIOR] = 0.0
    """lambda of the lambda-returns that are the critic's targets: 0 is the one-step target, larger
    values use longer returns"""
    target_every: Annotated[Period, AFTER_BEHAVIOR] = 1000
    """critic steps between two computations of the lambda-returns (no effect with critic_lambda
    0)"""
    reward_tuning: Annotated[RewardTuning, AFTER_BEHAVIOR] = "locomotion"
    """scaling of rewards for the critic: none, locomotion, antmaze, or unit (discounted returns
    have unit standard deviation)"""

    # The policy mu exp(beta Q)
    beta: Annotated[NotNegative, LAST_STAGE] = 3.0
    """inverse temperature of the policy mu exp(beta Q), in the unit of q_unit: larger values rely
    more on Q"""
    q_unit: Annotated[str, OneOf(("reward", "spread")), LAST_STAGE] = "reward"
    """unit of Q in beta Q: reward (after reward_tuning), or spread (typical standard deviation of Q
    over the support actions of a state)"""
    tilt_limit: Annotated[float | None, LAST_STAGE] = None
    """largest standard deviation of beta Q over the support actions of a state; beta is lowered in
    states that exceed it. QIPO divides the limit among its iterates; SIR applies it to its
    candidates; dps, qgf, analytic and aepo lower beta equally in all states, by the typical
    standard deviation. none: no limit"""

    # All stages
    learning_rate_decay: bool = False
    """lower every learning rate to zero along half a cosine"""

    # Acting
    guidance_scale: Annotated[NotNegative, LAST_STAGE] = 1.0
    """guidance scale w: 0 is imitation, 1 is the policy mu exp(beta Q) (except for tilt_limit and
    trust_power), larger values rely more on Q"""
    guidance_bound: Annotated[float | None, LAST_STAGE] = None
    """largest |w sigma grad f| / |eps| while acting: smaller values limit the guidance more. none:
    no bound"""
    deterministic_action: Annotated[str, OneOf(("ode", "mean", "mode")), LAST_STAGE] = "ode"
    """what predict(deterministic=True) returns: ode (the solution of the ODE from zero noise), mean
    (the mean action of the policy, one network evaluation) or mode (the mean of the samples in the
    densest mode, from 16 fixed noises)"""
    solver: Annotated[str, OneOf(sorted(set(SOLVERS) - STOCHASTIC)), AFTER_BEHAVIOR] = (
        "dpm_solver_2m"
    )
    """ODE solver of the reverse process: dpm_solver_2m, dpm_solver_2s, ddim, heun, or euler (only
    for the schedule ot)"""
    solver_steps: Annotated[int, LAST_STAGE] = 15
    """solver steps per action: more are slower and more exact"""
    spacing: Annotated[str, OneOf(SPACINGS), AFTER_BEHAVIOR] = "time"
    """times of the solver steps: uniform in time, uniform in log_snr, or karras"""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.critic == "implicit" and self.implicit_actions > self.support_actions:
            raise ValueError(
                f"implicit_actions={self.implicit_actions}, expected at most "
                f"support_actions={self.support_actions}: each state has only that many"
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
    "critic_heads": 4,
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
    "critic_heads": GuidedPolicyConfig.critic_heads,
    "critic_baseline": True,
    "critic_steps": 6_000,
    "critic_learning_rate": 2e-3,
    "tau": GuidedPolicyConfig.tau,
    "expectile": GuidedPolicyConfig.expectile,
}
"""of every laptop-support preset: what laptop was before it had the stacked critic"""
