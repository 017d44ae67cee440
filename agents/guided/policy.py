"""What the agents of the family have in common: their stages in order, and acting.

1. whitening  a Gaussian policy whose residuals the diffusion models (optional)    behavior.py
2. behavior   a diffusion model of mu(a|s), by denoising                           behavior.py
3. support    M actions from it for every observation                              support.py
4. critic     Q, which ranks those actions                                         critic.py
5. ...        an agent's own stage, which tilts the behavior by exp(beta Q)        the agent's file
act           solve the reverse process from noise

QGPO, AEPO and QIPO differ in the fifth stage and in what the solver sees while acting; SIR and
BestOfN choose among actions of the behavior (candidates.py).
"""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar, Generic, Self, TypedDict, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qgpo.agents.core.acting import Normal
from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.core.batches import Batches, tuned_rewards
from qgpo.agents.core.config import NOT_NEGATIVE
from qgpo.agents.core.process import usual_torch
from qgpo.agents.core.registers import GeneratorState, Kinds, Table
from qgpo.agents.core.training import Training, set_generator
from qgpo.agents.guided import adoption
from qgpo.agents.guided.behavior import Behavior
from qgpo.agents.guided.config import GuidedPolicyConfig
from qgpo.agents.guided.critics import make_critic
from qgpo.agents.guided.folds import FOLDS
from qgpo.agents.guided.rehearsal import Rehearsal
from qgpo.agents.guided.support import STATE, Support
from qgpo.agents.guided.tuning import tune_guidance
from qgpo.agents.guided.verdict import GuidanceOffWarning, Verdict, verdict_of
from qgpo.density import mode_of_samples
from qgpo.diffusion import Diffusion, GuidanceGradient, Metrics
from qgpo.dynamics import DynamicsEnsemble
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.fields import check_finite
from qgpo.schedule import make_schedule
from qgpo.solver import get_solver, time_grid

STATES_FOR_UNIT = 4096
"""whose support actions give the unit of Q while learning online"""
SAMPLES_OF_MODE = 16
"""noises whose answers the deterministic action `mode` is taken from"""
GuidedConfigT = TypeVar("GuidedConfigT", bound=GuidedPolicyConfig)


class Guiding(TypedDict):
    """How `Diffusion.sample` and `Diffusion.mean` are guided."""

    guidance: GuidanceGradient | None
    guidance_scale: float | Tensor
    guidance_bound: float | Tensor | None


class InverseTemperature(nn.Module):
    """The factor on Q, kept with the agent where acting differentiates Q itself."""

    beta: Tensor

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.register_buffer("beta", torch.tensor(beta))


class GuidedPolicy(OfflineAgent[GuidedConfigT], Generic[GuidedConfigT]):
    """Behavior, support and critic; a subclass adds the stage that uses the critic.

    `guidance_scale` may be set at any time, `solver` and `solver_steps` once the agent has seen
    data; the latter two do not change deterministic actions where `deterministic_action` is mean.
    Files have the configuration's of all three (`configure_guidance` changes it).
    """

    rate_field: ClassVar[str] = "behavior_learning_rate"
    learns_online: ClassVar[bool] = True
    _scale: Any = None
    """a number that was set, or the tensor that stands for any number while acting is recorded"""

    # What a subclass says -----------------------------------------------------------------

    @abstractmethod
    def _build_last(self) -> None:
        """Add the modules of the last stage to `networks`."""

    @abstractmethod
    def _train_last(self, dataset: OfflineDataset) -> None:
        """Stage 5, which uses the critic."""

    @abstractmethod
    def _guided(
        self, scale: float | Tensor, condition: Tensor
    ) -> tuple[Diffusion, GuidanceGradient | None]:
        """The model that acts at a guidance scale in normalised states (B, S); what guides it."""

    @property
    @abstractmethod
    def last_timesteps(self) -> int:
        """Gradient steps of the last stage."""

    def _conclude(self, dataset: OfflineDataset) -> None:
        """What follows the last stage."""

    def _warn_of_guidance(self) -> None:
        """Say where guidance is off, or weaker than w says."""
        found = self.verdict or self.rehearsal
        if self.guidance_is_off:
            warnings.warn(f"guidance is off: {found}", GuidanceOffWarning, stacklevel=4)
        elif self.rehearsal is not None and self.rehearsal.factor < 1.0:
            warnings.warn(f"guidance is weakened: {found}", GuidanceOffWarning, stacklevel=4)

    def _support_source(self) -> Diffusion:
        """The model from which support actions are drawn."""
        return self.behavior.average

    def _build(self, observation_dim: int, action_dim: int) -> None:
        c = self.config
        self.solver, self.solver_steps = c.solver, c.solver_steps
        schedule = make_schedule(c.schedule)
        get_solver(c.solver, schedule, stochastic=False)
        time_grid(schedule, c.solver_steps, c.spacing)
        self.behavior = Behavior(c, self.training, observation_dim, action_dim)
        self.support = Support(self.behavior, self.training, self._support_source)
        self.critic = make_critic(self.behavior, self.support, self.training)
        self._build_last()

    # Training: the stages that all share -----------------------------------------------------

    def _train(self, dataset: OfflineDataset) -> None:
        if not self.is_trained:
            data = self.prepare(dataset)
            if not self.stages_are_done:
                self.support.check_space(data)  # before the hours of two stages
                self.train_whitening(dataset)
                self.train_behavior(dataset)
                self.generate_support(dataset)
                self.train_critic(dataset)
                self._train_last(dataset)
            self._conclude(dataset)
            if self.is_trained:
                self._warn_of_guidance()
        if self.online_config is None:
            adoption.drop_tables(self.training)

    def train_whitening(self, dataset: OfflineDataset) -> None:
        """Stage 1: the Gaussian policy, where `whitening_steps` asks for one."""
        data = self.prepare(dataset)  # makes the parts
        self.behavior.train_whitening(data)

    def train_behavior(self, dataset: OfflineDataset) -> None:
        """Stage 2: the diffusion model of mu(a|s), in whitened coordinates if configured.

        Whitening is trained first where that has not been done.
        """
        data = self.prepare(dataset)
        if self.progress["whitening"] < self.config.whitening_steps:
            self.train_whitening(dataset)
        self.behavior.train(data)

    def generate_support(self, dataset: OfflineDataset) -> None:
        """Stage 3: M actions for every observation of the dataset, guidance off."""
        data = self.prepare(dataset)
        self.support.generate(data)

    def train_critic(self, dataset: OfflineDataset) -> None:
        """Stage 4: Q, by the configured critic."""
        data = self._with_support(dataset)
        self.critic.train(data)
        adoption.keep_states(self.training)

    def _with_support(self, dataset: OfflineDataset) -> Batches:
        """The data of a stage that reads the support. Raises RuntimeError before it is there."""
        data = self.prepare(dataset)
        if "support" not in self.tables:
            raise RuntimeError("no support actions yet: call generate_support(dataset) first")
        return data

    @property
    def gamma(self) -> float:
        """The discount."""
        return self.config.gamma

    @property
    def shared_timesteps(self) -> int:
        """Gradient steps of the stages that other agents of the family adopt."""
        return self.behavior_timesteps + self.config.critic_steps

    @property
    def behavior_timesteps(self) -> int:
        """Gradient steps of the stages that need no rewards."""
        return self.config.whitening_steps + self.config.behavior_steps

    @property
    def last_steps(self) -> int:
        """Steps of the last stage; one without gradient steps has one, which evaluates it."""
        return max(1, self.last_timesteps)

    @property
    def total_timesteps(self) -> int:
        """Gradient steps of a whole training."""
        return self.shared_timesteps + self.last_timesteps

    @property
    def stage_steps(self) -> dict[str, int]:
        """Gradient steps of each stage; drawing the support has none."""
        c = self.config
        return {
            "whitening": c.whitening_steps,
            "behavior": c.behavior_steps,
            "support": 0,
            "critic": c.critic_steps,
            self.stages[-1]: self.last_timesteps,
        }

    @property
    def stages_are_done(self) -> bool:
        """Whether the last stage has ended."""
        return self.progress[self.stages[-1]] >= self.last_steps

    @property
    def is_trained(self) -> bool:
        """Whether the last stage has ended, and what follows it."""
        return self.stages_are_done

    # Online: the same parts go on ---------------------------------------------------------

    @property
    def tries_scales(self) -> bool:
        """Whether another guidance scale, tried online, would act otherwise."""
        return self.critic.ranks and self.guidance_scale > 0.0

    def _tuned(
        self, dataset: OfflineDataset, batches: Batches, rewards: NDArray[np.float32]
    ) -> Tensor:
        c = self.config
        return tuned_rewards(dataset, batches, c.reward_tuning, c.gamma, rewards)

    def _begin_online(self, recorded: Batches) -> None:
        """Draw the support of the dataset again, and note that it is not the only data any more."""
        self.support.extend(recorded, self.tables.pop(adoption.SUPPORT_STATE, None))
        self.tables.update(adoption.no_states())

    def _extend_online(self, data: Batches) -> None:
        """Support actions of the states that were collected."""
        self.support.extend(data)

    def _some_q(self, data: Batches) -> Tensor:
        """Q of the support actions of random states, always the same of the same data, (B, M)."""
        rows = self.behavior.shuffled_rows(data)[:STATES_FOR_UNIT]
        parts = rows.split(self.critic.states_per_chunk)
        return torch.cat([self.critic.q_of_support(data, part) for part in parts])

    def _follow(self, data: Batches, step: int, factor: float) -> Metrics:
        """A step of the behavior, of the critic and of the last stage.

        The critic counts on from its stage, so that its first step is none of a training.
        """
        c, metrics = self.config, dict[str, Tensor]()
        critic_rate, counted = factor * c.critic_learning_rate, c.critic_steps + step
        parts = {
            "behavior": self.behavior.follow(data, factor),
            "critic": self.critic.update(data, counted, critic_rate),
            self.stages[-1]: self._follow_last(data, factor),
        }
        for part, found in parts.items():
            metrics |= {f"{part}_{name}": value for name, value in found.items()}
        return metrics

    def _follow_last(self, data: Batches, factor: float) -> Metrics:
        """A step of the last stage; none where it is constants."""
        return {}

    def _forget_data(self) -> None:
        self.tables.clear()
        self.training.end_online()
        self.online_config = None
        if self.num_timesteps:
            self.tables.update(adoption.no_states())
        if not self.stages_are_done:
            self.progress["support"] = 0

    def tables_to_save(self) -> dict[str, Tensor]:
        """All tables; the support of memory-mapped data is drawn again from its random state."""
        if self._batches is None or self._batches.scratch is None:
            return self.tables
        return {name: table for name, table in self.tables.items() if name != "support"}

    def table_kinds(self, found: Collection[str]) -> Kinds:
        """Support, returns, and the states from which the support is drawn again."""
        c, progress = self.config, self.progress
        drawn = progress["support"] > 0 and not self.stages_are_done
        in_critic = c.critic != "implicit" and 0 < progress["critic"] < c.critic_steps
        by_returns = (c.critic_lambda > 0.0 or c.critic == "stacked") and in_critic
        shape = (None, FOLDS) if c.critic == "stacked" else (None,)
        before = self.behavior.table_kinds() if progress["support"] == 0 else {}
        return {
            **before,
            "support": Table((None, c.support_actions, self.behavior.action_dim)),
            "returns": Table(shape, needed=by_returns),
            STATE: GeneratorState(needed=drawn and "support" not in found),
            adoption.SUPPORT_STATE: GeneratorState(),
            adoption.LAST_STATE: GeneratorState(may_be_empty=True),
        }

    def _on_new_data(self, dataset: OfflineDataset, batches: Batches) -> None:
        c = self.config
        self.support.check_tables(batches)
        if c.normalize_observations and self.num_timesteps == 0:
            self.behavior.normalizer.fit(batches.states)
        batches.rewards = tuned_rewards(dataset, batches, c.reward_tuning, c.gamma)

    # Adoption and guidance ----------------------------------------------------------------

    def adopt(self, other: OfflineAgent[Any], dataset: OfflineDataset) -> Self:
        """Take whitening, behavior, support and critic from another trained agent of the family.

            QGPO(guidance="mse").adopt(agent, dataset).learn(dataset, reset_num_timesteps=False)

        trains the last stage only. The result equals a training from scratch, bit for bit on the
        CPU. If the other agent has a different support or critic, or was trained on another task
        with the same states and actions, the support is drawn and the critic trained, too. Raises
        ValueError if configuration, seed or data imply a different behavior.
        """
        if not isinstance(other, GuidedPolicy):
            name = other.name if isinstance(other, OfflineAgent) else type(other).__name__
            raise TypeError(
                f"cannot adopt from a {name}, expected a QGPO, AEPO, QIPO, SIR or BestOfN agent"
            )
        other.check_whole("cannot be adopted from")
        with usual_torch(), self.training.turn.training():
            self._settle(dataset)
            with_critic = adoption.check_donor(self, other, dataset)
            self._adopt(other.training, dataset, with_critic)
        return self

    def _adopt(self, other: Training, dataset: OfflineDataset, with_critic: bool) -> None:
        donor = copy.copy(other)  # keeps the registers, should this agent have them
        states = {name: state.clone() for name, state in adoption.kept_states(donor).items()}
        self._reset()
        data = self.prepare(dataset)
        training = self.training
        adoption.copy_networks(training, donor, self.critic.networks if with_critic else None)
        if not with_critic:
            training.stage, training.num_timesteps = "behavior", self.behavior_timesteps
            seed = training.seed + training.num_timesteps
            set_generator(training.generator, states[adoption.SUPPORT_STATE], seed)
            return
        training.stage, training.num_timesteps = "critic", self.shared_timesteps
        training.tables.update(states)
        training.tables[STATE] = states[adoption.SUPPORT_STATE].clone()
        self.support.restore(data)
        seed = self.training.seed + self.num_timesteps
        set_generator(training.generator, states[adoption.LAST_STATE], seed)

    tune_guidance = tune_guidance

    @property
    def verdict(self) -> Verdict | None:
        """Whether the data say that guidance can be trusted; None where the critic cannot know."""
        return verdict_of(self.critic) if self.is_trained else None

    @property
    def rehearsal(self) -> Rehearsal | None:
        """What the trained policy imagined; None where there was no rehearsal."""
        return None

    @property
    def own_model(self) -> DynamicsEnsemble | None:
        """The model of the environment from its training, if it has learned enough to judge."""
        return None

    @property
    def guidance_is_off(self) -> bool:
        """Whether the critic ranks no actions, so that every guidance scale imitates."""
        return self.verdict is not None and not self.verdict.confirmed

    @property
    def guidance_scale(self) -> float:
        """Guidance scale w, initially the configuration's. ValueError if set to NaN or below 0."""
        return self.config.guidance_scale if self._scale is None else self._scale

    @guidance_scale.setter
    def guidance_scale(self, scale: float) -> None:
        self._scale = check_finite("guidance_scale", scale, NOT_NEGATIVE)

    def configure_guidance(self, scale: float) -> None:
        """Set the guidance scale so that files keep it."""
        self._change(guidance_scale=scale)
        self._scale = None

    # Acting -------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, observations: Tensor, deterministic: bool) -> Tensor:
        """Solve the reverse process with guidance, (B, S) to actions (B, A) in [-1, 1]."""
        condition = self.behavior.normalizer(observations)
        z = self._deterministic(condition) if deterministic else self._sample(condition)
        return self.behavior.within_bounds(condition, z)

    def _deterministic(self, condition: Tensor) -> Tensor:
        """The configured deterministic action in normalised states, (B, S) to (B, A)."""
        b, a = len(condition), self.behavior.action_dim
        choice = self.config.deterministic_action
        if choice == "mean":
            model, guided = self._acting(condition)
            return model.mean(condition, a, **guided)
        if choice == "ode":
            return self._solve(torch.zeros(b, a, device=self.device), condition)
        noise = self._fixed_normal(SAMPLES_OF_MODE, a)
        repeated = condition.repeat_interleave(SAMPLES_OF_MODE, dim=0)
        z = self._solve(noise.repeat(b, 1), repeated)
        return mode_of_samples(z.reshape(b, SAMPLES_OF_MODE, a))

    def _sample(self, condition: Tensor) -> Tensor:
        """A sample of the policy in each normalised state, (B, S) to (B, A)."""
        noise = self._prediction_normal(len(condition), self.behavior.action_dim)
        return self._solve(noise, condition)

    def _solve(self, noise: Tensor, condition: Tensor) -> Tensor:
        """The solver's answers to noise (B, A) in normalised states (B, S), (B, A)."""
        model, guided = self._acting(condition)
        get_solver(self.solver, stochastic=False)
        return model.sample(
            noise,
            condition,
            solver=self.solver,
            steps=self.solver_steps,
            spacing=self.config.spacing,
            **guided,
        )

    def _acting(self, condition: Tensor) -> tuple[Diffusion, Guiding]:
        """The model that acts in those states, and how it is guided."""
        scale = self.guidance_scale
        model, gradient = self._guided(scale, condition)
        return model, {
            "guidance": gradient,
            "guidance_scale": scale,
            "guidance_bound": self._bound(scale),
        }

    def _bound(self, scale: float | Tensor) -> float | Tensor | None:
        """The largest guidance at that scale, beside |eps|; None for no bound."""
        return self.config.guidance_bound

    def acting_on(self, noise: Normal | None, guidance_scale: Tensor | None = None) -> Self:
        """A copy that acts on that noise and, where one is given, at that scale."""
        actor = super().acting_on(noise)
        if guidance_scale is not None:
            actor._scale = guidance_scale
        return actor
