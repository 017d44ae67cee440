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
import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from qgpo.agents import adoption
from qgpo.agents.base import OfflineAgent
from qgpo.agents.presets import GuidedPolicyConfig
from qgpo.agents.training import Batches, average, half_cosine, take, tuned_rewards
from qgpo.agents.tuning import tune_guidance
from qgpo.critic import (
    critic_loss,
    in_support_expectile,
    in_support_value,
    lambda_returns,
    polyak_update,
    td_target,
)
from qgpo.diffusion import Diffusion, GuidanceGradient, Metrics
from qgpo.envs.datasets import OfflineDataset
from qgpo.networks import MLPNoiseNetwork, TwinQ, UNetMLP
from qgpo.normalization import Identity, ObservationNormalizer, Whitening
from qgpo.schedule import make_schedule
from qgpo.solver import get_solver, time_grid

ROWS_PER_CHUNK = 2048
"""rows per network call where tables over all states are filled: few enough to stay in cache"""

GuidedConfigT = TypeVar("GuidedConfigT", bound=GuidedPolicyConfig)


class InverseTemperature(nn.Module):
    """The factor on Q, kept with the agent where acting differentiates Q itself."""

    beta: Tensor

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.register_buffer("beta", torch.tensor(beta))


class GuidedPolicy(OfflineAgent[GuidedConfigT], Generic[GuidedConfigT]):
    """Behavior, support and critic; a subclass adds the stage that uses the critic.

    `guidance_scale`, `solver` and `solver_steps` are attributes that may be set at any time; the
    latter two do not touch deterministic actions where `deterministic_action` is mean.
    """

    normalizer: ObservationNormalizer
    whitening: Whitening | Identity
    behavior: Diffusion
    behavior_ema: Diffusion
    critic: TwinQ
    critic_target: TwinQ

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
        self.guidance_scale = c.guidance_scale
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

    def configure_guidance(self, scale: float) -> None:
        """Set the guidance scale so that files keep it."""
        self.config = replace(self.config, guidance_scale=scale)
        self.guidance_scale = scale

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

        def update(step: int) -> Metrics:
            index = self._draw(len(data), 256)
            condition = self._condition(data, index)
            loss, metrics = whitening.loss(condition, data.scaled_actions(index))
            rate = self._rate(1e-3, step, c.whitening_steps)
            metrics["grad_norm"] = self._optimize("whitening", loss, rate)
            return metrics

        self._run_stage("whitening", c.whitening_steps, update)

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

    @property
    def _states_per_chunk(self) -> int:
        return max(1, ROWS_PER_CHUNK // self.config.support_actions)

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

    def train_critic(self, dataset: OfflineDataset) -> None:
        """Stage 3: Q by regression on in-support targets.

        Q sees actions in the coordinates of the diffusion: whitened, the actions that a state's
        behavior takes differ by about one, however narrow that behavior is.
        """
        data = self._prepare(dataset)
        self._needs("support", "generate_support")
        c, tables = self.config, self.tables

        def update(step: int) -> Metrics:
            if c.critic_lambda > 0.0 and (step % c.target_every == 0 or "returns" not in tables):
                tables["returns"] = self._lambda_targets(data, c.critic_lambda if step else 1.0)
            index = self._draw(len(data), c.critic_batch_size)
            rows = take(data.state_index, index)
            if c.critic_lambda > 0.0:
                targets = tables["returns"][index]
            else:
                q = self._support_q(data, rows + 1)
                targets = td_target(
                    data.rewards[index],
                    take(data.terminations, index).float(),
                    self._value(q, c.beta_q),
                    c.gamma,
                )
            condition = self.normalizer(data.observations(rows))
            with torch.no_grad():
                z = self.whitening.encode(condition, data.scaled_actions(index))
            loss, metrics = critic_loss(self.critic, condition, z, targets)
            rate = self._rate(c.critic_learning_rate, step, c.critic_steps)
            metrics["grad_norm"] = self._optimize("critic", loss, rate)
            polyak_update(self.critic, self.critic_target, c.tau)
            return metrics

        self._run_stage("critic", c.critic_steps, update)
        adoption.keep_states(self)

    # Parts of the stages ------------------------------------------------------------------

    def _draw(self, n: int, batch_size: int) -> Tensor:
        return torch.randint(n, (batch_size,), generator=self.generator, device=self.device)

    def _rate(self, base: float, step: int, total: int) -> float:
        return half_cosine(base, step, total) if self.config.learning_rate_decay else base

    def _needs(self, table: str, stage: str) -> None:
        if table not in self.tables:
            raise RuntimeError(f"no {table} actions yet: call {stage}(dataset) first")

    def _q_scale(self, q: Tensor) -> Tensor:
        """The unit of Q in beta Q: typical standard deviation over support actions, or 1."""
        if self.config.q_unit == "reward":
            return torch.ones((), device=q.device)
        return q.std(dim=-1).mean().clamp(min=1e-6)

    def _value(self, q: Tensor, beta_q: float) -> Tensor:
        """V(s) from Q of the support actions, (..., M) to (...)."""
        if self.config.critic_value == "expectile":
            return in_support_expectile(q, self.config.expectile)
        return in_support_value(q, beta_q)

    def _condition(self, data: Batches, index: Tensor) -> Tensor:
        """Normalised observations in which those transitions start, (B, S)."""
        condition: Tensor = self.normalizer(data.observations(take(data.state_index, index)))
        return condition

    @torch.no_grad()
    def _support_q(self, data: Batches, rows: Tensor) -> Tensor:
        """Target Q of the support actions of those states, (B,) to (B, M)."""
        z = take(self.tables["support"], rows)
        condition = self.normalizer(data.observations(rows))[:, None]
        q: Tensor = self.critic_target(condition, z)
        return q

    def _table_of_q(self, data: Batches) -> Tensor:
        """Target Q of every support action, (R, M)."""
        table = data.table((len(data.states), self.config.support_actions))
        for begin in range(0, len(table), self._states_per_chunk):
            end = min(begin + self._states_per_chunk, len(table))
            rows = torch.arange(begin, end, device=self.device)
            table[begin:end] = self._support_q(data, rows)
        return table

    def _scaled_energies(self, q: Tensor, beta: Tensor, iterates: int = 1) -> Tensor:
        """Energies beta (Q - its mean over the state's actions), in place of q (R, M).

        Where the standard deviation of beta Q over a state's actions exceeds `tilt_limit`, beta is
        lowered until it does not: KL(pi || mu) stays at about limit^2 / 2. Iterates that tilt one
        after the other share the limit.
        """
        beta = beta.to(q.device)
        limit = None if self.config.tilt_limit is None else self.config.tilt_limit / iterates
        for chunk in q.split(ROWS_PER_CHUNK):
            chunk -= chunk.mean(dim=-1, keepdim=True)
            chunk *= beta
            if limit is not None:
                spread = chunk.std(dim=-1, keepdim=True)
                chunk *= torch.clamp(limit / spread.clamp(min=1e-9), max=1.0)
        return q

    def _lambda_targets(self, data: Batches, lambda_: float) -> Tensor:
        """lambda-returns of every transition with today's in-support values, (N,)."""
        c = self.config
        q = self._table_of_q(data)
        chunks = q.split(ROWS_PER_CHUNK)
        values = torch.cat([self._value(chunk, c.beta_q) for chunk in chunks]).to(self.device)
        return lambda_returns(
            data.rewards,
            data.terminations,
            data.last_steps,
            values[1:][data.state_index],
            c.gamma,
            lambda_,
        )

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
            z = model.sample(
                noise,
                condition,
                solver=self.solver,
                steps=self.solver_steps,
                spacing=self.config.spacing,
                **guided,
            )
        return self.whitening.decode(condition, z).clamp(-1.0, 1.0)
