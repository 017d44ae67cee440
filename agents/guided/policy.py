"""The skeleton of the family: a diffusion model of the behavior and a critic that improves on it.

1. whitening  a Gaussian policy whose residuals the diffusion models (optional)
2. behavior   a diffusion model of mu(a|s), by denoising
3. support    M actions from it for every observation
4. critic     in-support Q-learning over those actions
5. ...        an agent's own stage, which tilts the behavior by exp(beta Q)
act           solve the reverse process from noise

QGPO, AEPO and QIPO differ in the fifth stage and in what the solver sees while acting.
"""

from __future__ import annotations

import copy
import functools
import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Generic, Self

import numpy as np
import torch
from torch import Tensor, nn

from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.core.batches import Batches, average, take, tuned_rewards
from qgpo.agents.guided import adoption
from qgpo.agents.guided.critic import GuidedConfigT, SupportCritic
from qgpo.agents.guided.tuning import tune_guidance
from qgpo.density import REFERENCES, ROWS_PER_CHUNK, nearest_distance, sampling_weights
from qgpo.diffusion import Diffusion, GuidanceGradient, Metrics
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.networks import MLPNoiseNetwork, TwinQ, UNetMLP
from qgpo.normalization import Identity, ObservationNormalizer, Whitening
from qgpo.schedule import make_schedule
from qgpo.solver import get_solver, time_grid


class InverseTemperature(nn.Module):
    """The factor on Q, kept with the agent where acting differentiates Q itself."""

    beta: Tensor

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.register_buffer("beta", torch.tensor(beta))


class GuidedPolicy(SupportCritic[GuidedConfigT], Generic[GuidedConfigT]):
    """Behavior, support and critic; a subclass adds the stage that uses the critic.

    `guidance_scale` may be set at any time, `solver` and `solver_steps` once the agent has seen
    data; the latter two do not touch deterministic actions where `deterministic_action` is mean.
    Files have the configuration's of all three (`configure_guidance` changes it).
    """

    younger_fields: ClassVar[frozenset[str]] = frozenset({"sparsity_power"})

    behavior: Diffusion
    behavior_ema: Diffusion
    _scale: float | None = None

    # What a subclass says -----------------------------------------------------------------

    @abstractmethod
    def _build_last(self, observation_dim: int, action_dim: int) -> None:
        """Add the modules of the last stage to `networks`."""

    @abstractmethod
    def _guided(self, scale: float, condition: Tensor) -> tuple[Diffusion, GuidanceGradient | None]:
        """The model that acts at a guidance scale in normalised states (B, S); what guides it."""

    @property
    @abstractmethod
    def last_steps(self) -> int:
        """Steps of the last stage."""

    def _support_source(self) -> Diffusion:
        """The model from which support actions are drawn."""
        return self.behavior_ema

    def _build(self, observation_dim: int, action_dim: int) -> None:
        c = self.config
        self.solver = c.solver
        self.solver_steps = c.solver_steps
        schedule = make_schedule(c.schedule)
        get_solver(c.solver, schedule, stochastic=False)
        time_grid(schedule, c.solver_steps, c.spacing)
        self.normalizer = ObservationNormalizer(observation_dim)
        self.whitening = (
            Whitening(observation_dim, action_dim, (256, 256)) if c.whitening_steps else Identity()
        )
        self.behavior = self._make_diffusion(observation_dim, action_dim)
        self.behavior_ema = copy.deepcopy(self.behavior).requires_grad_(False)
        self.critic = TwinQ(
            observation_dim,
            action_dim,
            c.critic_hidden,
            c.critic_layer_norm,
            c.critic_activation,
            c.critic_baseline,
        )
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.networks.update(
            {
                "normalizer": self.normalizer,
                "whitening": self.whitening,
                "behavior": self.behavior,
                "behavior_ema": self.behavior_ema,
                "critic": self.critic,
                "critic_target": self.critic_target,
            }
        )
        self._build_last(observation_dim, action_dim)
        for name in self.stages:
            parameters = list(self.networks[name].parameters()) if name in self.networks else []
            if parameters:
                self.optimizers[name] = torch.optim.Adam(parameters, lr=1e-4, fused=True)

    def _make_diffusion(self, observation_dim: int, action_dim: int) -> Diffusion:
        c = self.config
        network = (
            MLPNoiseNetwork(action_dim, observation_dim, c.behavior_hidden)
            if c.behavior_hidden
            else UNetMLP(action_dim, observation_dim)
        )
        return Diffusion(network, make_schedule(c.schedule), c.prediction)

    @property
    def shared_timesteps(self) -> int:
        """Gradient steps before the last stage."""
        c = self.config
        return c.whitening_steps + c.behavior_steps + c.critic_steps

    @property
    def is_trained(self) -> bool:
        """Whether the last stage has ended."""
        return self.progress[self.stages[-1]] >= self.last_steps

    def _forget_data(self) -> None:
        self.tables = adoption.no_states() if self.num_timesteps else {}
        if not self.is_trained:
            self.progress["support"] = 0

    def tables_to_save(self) -> dict[str, Tensor]:
        """All tables; the support of memory-mapped data is made anew from its random state."""
        if self._batches is None or self._batches.scratch is None:
            return self.tables
        return {name: table for name, table in self.tables.items() if name != "support"}

    def _on_new_data(self, dataset: OfflineDataset, batches: Batches) -> None:
        c = self.config
        if c.normalize_observations and self.num_timesteps == 0:
            self.normalizer.fit(batches.states)
        batches.rewards = tuned_rewards(dataset, batches, c.reward_tuning, c.gamma)

    def adopt(self, other: OfflineAgent[Any], dataset: OfflineDataset) -> Self:
        """Start from the first stages of another trained agent of the family.

            QGPO(guidance="mse").adopt(agent, dataset).learn(dataset, reset_num_timesteps=False)

        trains the last stage only and equals a training from scratch, bit for bit on the CPU.
        Raises ValueError where configuration, seed or data make the first stages differ.
        """
        if not isinstance(other, GuidedPolicy):
            name = getattr(other, "name", type(other).__name__)
            raise TypeError(f"cannot adopt from a {name}, expected a QGPO, AEPO or QIPO agent")
        adoption.adopt(self, other, dataset)
        return self

    tune_guidance = tune_guidance

    @property
    def guidance_scale(self) -> float:
        """w: the configuration's until another one is set. Setting raises ValueError for NaN."""
        return self.config.guidance_scale if self._scale is None else self._scale

    @guidance_scale.setter
    def guidance_scale(self, scale: float) -> None:
        if not isinstance(scale, int | float | np.number) or not math.isfinite(scale):
            raise ValueError(f"guidance_scale={scale!r}, expected a finite number")
        self._scale = float(scale)

    def configure_guidance(self, scale: float) -> None:
        """Set the guidance scale so that files keep it."""
        self.config = replace(self.config, guidance_scale=scale)
        self._scale = None

    # Training: the stages that all share -----------------------------------------------------

    def train_behavior(self, dataset: OfflineDataset) -> None:
        """Stage 1: the diffusion model of mu(a|s), in whitened coordinates if configured."""
        data = self._prepare(dataset)
        c = self.config
        if isinstance(self.whitening, Whitening):
            self._train_whitening(data)

        def update(step: int) -> Metrics:
            index = self._draw(len(data), c.behavior_batch_size)
            with torch.no_grad():
                condition = self._condition(data, index)
                z = self.whitening.encode(condition, data.scaled_actions(index))
            loss, metrics = self.behavior.loss(z, condition, self.generator)
            rate = self._rate(c.behavior_learning_rate, step, c.behavior_steps)
            metrics["grad_norm"] = self._optimize("behavior", loss, rate)
            average(self.behavior, self.behavior_ema, c.ema_decay, step)
            return metrics

        self._run_stage("behavior", c.behavior_steps, update)

    def _train_whitening(self, data: Batches) -> None:
        c = self.config
        whitening = self.whitening
        assert isinstance(whitening, Whitening)
        draw = functools.partial(self._draw, len(data))
        if c.sparsity_power and self.progress["whitening"] < c.whitening_steps:
            draw = functools.partial(self._draw_by, self._sparsity_weights(data).cumsum(0))

        def update(step: int) -> Metrics:
            index = draw(256)
            condition = self._condition(data, index)
            loss, metrics = whitening.loss(condition, data.scaled_actions(index))
            rate = self._rate(1e-3, step, c.whitening_steps)
            metrics["grad_norm"] = self._optimize("whitening", loss, rate)
            return metrics

        self._run_stage("whitening", c.whitening_steps, update)

    @torch.no_grad()
    def _sparsity_weights(self, data: Batches) -> Tensor:
        """How often to draw each transition, by the distance of its state to others, (N,)."""
        episodes = data.episodes()
        rows = self._random_rows(data)[:REFERENCES]
        references, own = self.normalizer(data.observations(rows)), episodes[rows]
        distances = []
        for part in torch.arange(len(data.states), device=self.device).split(ROWS_PER_CHUNK):
            states = self.normalizer(data.observations(part))
            distances.append(nearest_distance(states, references, episodes[part][:, None] == own))
            self._stop_if_interrupted("while states were compared with each other")
        weights = sampling_weights(torch.cat(distances), self.config.sparsity_power)
        return take(weights, data.state_index.to(self.device)).double()

    def generate_support(self, dataset: OfflineDataset) -> None:
        """Stage 2: M actions for every observation of the dataset, guidance off.

        `tables["support"]` has shape (R, M, A), in whitened coordinates. The next state of
        transition i is row state_index[i] + 1, so current and next states share the table.
        """
        data = self._prepare(dataset)
        self._restore_support(data)

        def update(step: int) -> Metrics:
            self._draw_support(data, step)
            return {}

        chunks = math.ceil(len(data.states) / self._states_per_chunk)
        with torch.no_grad():
            self._run_stage("support", chunks, update, gradient_steps=False)

    @torch.no_grad()
    def _draw_support(self, data: Batches, step: int) -> None:
        """Fill the step-th chunk of the support table."""
        chosen = slice(step * self._states_per_chunk, (step + 1) * self._states_per_chunk)
        condition = self.normalizer(data.states[chosen].to(self.device))[:, None]
        shape = (len(condition), self.config.support_actions, data.actions.shape[-1])
        noise = torch.randn(shape, generator=self.generator, device=self.device)
        repeated = condition.expand(-1, shape[1], -1).flatten(0, 1)
        steps = self.config.support_solver_steps
        z = self._support_source().sample(
            noise.flatten(0, 1),
            repeated,
            solver=self.config.solver,
            steps=steps,
            spacing=self.config.spacing,
        )
        actions = self.whitening.decode(condition, z.reshape(shape)).clamp(-1.0, 1.0)
        if not bool(torch.isfinite(actions).all()):
            raise self._non_finite("support/actions", math.nan, step + 1)
        self.tables["support"][chosen] = self.whitening.encode(condition, actions)

    def _restore_support(self, data: Batches) -> None:
        """Allocate the support table; fill it as far as the stage had come where it was not saved.

        The behavior model no longer changes, so the same random state makes the same actions.
        """
        if "support" in self.tables:
            return
        shape = (len(data.states), self.config.support_actions, data.actions.shape[-1])
        done = self.progress["support"]
        if done == 0:
            self.tables["generator/support"] = self.generator.get_state()
        elif "generator/support" not in self.tables:
            return  # trained to the end: nobody needs the table
        self.tables["support"] = data.table(shape)
        now = self.generator.get_state()
        self._set_generator(self.tables["generator/support"], self.seed)
        for step in range(done):
            self._draw_support(data, step)
        self.generator.set_state(now)

    # Acting -------------------------------------------------------------------------------

    @torch.no_grad()
    def _act(self, observations: Tensor, deterministic: bool) -> Tensor:
        assert self.action_space is not None
        condition = self.normalizer(observations)
        shape = (len(observations), self.action_space.shape[0])
        model, gradient = self._guided(self.guidance_scale, condition)
        guided: Any = {
            "guidance": gradient,
            "guidance_scale": self.guidance_scale,
            "guidance_bound": self.config.guidance_bound,
        }
        if deterministic and self.config.deterministic_action == "mean":
            z = model.mean(condition, shape[1], **guided)
        else:
            if deterministic:
                noise = torch.zeros(shape, device=self.device)
            else:
                noise = torch.randn(shape, generator=self.prediction_generator, device=self.device)
            get_solver(self.solver, stochastic=False)
            z = model.sample(
                noise,
                condition,
                solver=self.solver,
                steps=self.solver_steps,
                spacing=self.config.spacing,
                **guided,
            )
        return self.whitening.decode(condition, z).clamp(-1.0, 1.0)
