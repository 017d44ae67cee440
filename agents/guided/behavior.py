"""The behavior part: a diffusion model of mu(a|s), in whitened coordinates if configured.

Whitening is a Gaussian policy. The diffusion model learns its residuals, so that little is left to
learn. Every later stage sees states and actions in the coordinates of this part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qgpo.agents.core.batches import Batches, take
from qgpo.agents.core.registers import Kinds
from qgpo.agents.core.training import Training, average
from qgpo.agents.guided.config import GuidedPolicyConfig
from qgpo.agents.guided.held_out import EarlyStopping, kinds_of
from qgpo.density import (
    REFERENCES,
    ROWS_PER_CHUNK,
    STATES_FOR_MEDIAN,
    Trust,
    nearest_distance,
    sampling_weights,
)
from qgpo.diffusion import Diffusion, Metrics
from qgpo.networks import MLPNoiseNetwork, UNetMLP, gaussian_log_prob
from qgpo.normalization import Identity, ObservationNormalizer, Whitening
from qgpo.schedule import make_schedule

WHITENING_HIDDEN = (256, 256)
WHITENING_BATCH_SIZE = 256
WHITENING_LEARNING_RATE = 1e-3


class Behavior:
    """Coordinates, the diffusion model and its average, and how both are learned."""

    def __init__(
        self, config: GuidedPolicyConfig, training: Training, observation_dim: int, action_dim: int
    ) -> None:
        self.config = config
        self.training = training
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.normalizer = training.add("normalizer", ObservationNormalizer(observation_dim))
        whitening: Whitening | Identity = (
            Whitening(observation_dim, action_dim, WHITENING_HIDDEN)
            if config.whitening_steps
            else Identity()
        )
        self.whitening = training.add_trained("whitening", whitening)
        self.model = training.add_trained("behavior", self.make_diffusion())
        self.average = training.add_copy("behavior_ema", self.model)

    def make_diffusion(self) -> Diffusion:
        """A fresh diffusion model of the configured kind."""
        c = self.config
        network = (
            MLPNoiseNetwork(self.action_dim, self.observation_dim, c.behavior_hidden)
            if c.behavior_hidden
            else UNetMLP(self.action_dim, self.observation_dim)
        )
        return Diffusion(network, make_schedule(c.schedule), c.prediction)

    # Coordinates --------------------------------------------------------------------------

    def condition(self, data: Batches, rows: Tensor) -> Tensor:
        """Normalised states of those rows, (B, S)."""
        normalised: Tensor = self.normalizer(data.observations(rows))
        return normalised

    def within_bounds(self, condition: Tensor, z: Tensor) -> Tensor:
        """The nearest actions inside the bounds to z (..., A), in [-1, 1]."""
        return self.whitening.decode(condition, z).clamp(-1.0, 1.0)

    def inside(self, condition: Tensor, z: Tensor) -> Tensor:
        """The same actions in the coordinates of z."""
        return self.whitening.encode(condition, self.within_bounds(condition, z))

    def table_kinds(self) -> Kinds:
        """The tables that a checkpoint within these stages may hold."""
        return kinds_of("whitening", self.whitening) | kinds_of("behavior", self.model)

    # Stages -------------------------------------------------------------------------------

    def train_whitening(self, data: Batches) -> None:
        """Fit the Gaussian policy, if there is one."""
        c, whitening, size = self.config, self.whitening, WHITENING_BATCH_SIZE
        if not isinstance(whitening, Whitening):
            return

        def judge(policy: Whitening, index: Tensor) -> Tensor:
            mean, std = policy.policy.moments(self.condition(data, take(data.state_index, index)))
            return -gaussian_log_prob(mean, std, data.scaled_actions(index))

        steps, training = c.whitening_steps, self.training
        early = EarlyStopping(training, "whitening", whitening, judge, data, steps, size)
        cumulative: Tensor | None = None
        if c.sparsity_power and training.progress["whitening"] < steps:
            cumulative = self._sparsity_weights(data)[early.learned].cumsum(0)

        def loss(step: int) -> tuple[Tensor, Metrics]:
            if cumulative is None:
                drawn = training.draw(len(early.learned), size)
            else:
                drawn = self._draw_by(cumulative, size)
            index = early.learned[drawn]
            condition = self.condition(data, take(data.state_index, index))
            return whitening.loss(condition, data.scaled_actions(index))

        rate, decays = WHITENING_LEARNING_RATE, c.learning_rate_decay
        training.minimize("whitening", steps, loss, rate, decays, early.after)
        early.finish()

    def train(self, data: Batches) -> None:
        """Learn mu(a|s) by denoising."""
        c, training = self.config, self.training
        steps, size = c.behavior_steps, c.behavior_batch_size

        def judge(model: Diffusion, index: Tensor) -> Tensor:
            noise = torch.Generator(data.device).manual_seed(training.seed)
            return model.squared_errors(*self._whitened(data, index), noise).mean(-1)

        averages = c.ema_decay > 0.0
        early = EarlyStopping(training, "behavior", self.model, judge, data, steps, size, averages)

        def loss(step: int) -> tuple[Tensor, Metrics]:
            index = early.learned[training.draw(len(early.learned), size)]
            return self.model.loss(*self._whitened(data, index), training.generator)

        def after(step: int) -> None:
            average(self.model, self.average, c.ema_decay, step)
            early.after(step)

        rate, decays = c.behavior_learning_rate, c.learning_rate_decay
        training.minimize("behavior", steps, loss, rate, decays, after)
        if early.finish():
            self.average.load_state_dict(self.model.state_dict())

    def follow(self, data: Batches, factor: float) -> Metrics:
        """One more step after the stage, at that part of its learning rate.

        Coordinates stay as they are: every later part sees actions in them.
        """
        c = self.config
        rate = factor * c.behavior_learning_rate
        metrics = self.training.descend("behavior", *self.loss(data), rate)
        average(self.model, self.average, c.ema_decay, c.behavior_steps)
        return metrics

    def loss(self, data: Batches) -> tuple[Tensor, Metrics]:
        """Denoising of the actions of a batch."""
        index = data.draw(self.training, self.config.behavior_batch_size)
        return self.model.loss(*self._whitened(data, index), self.training.generator)

    @torch.no_grad()
    def _whitened(self, data: Batches, index: Tensor) -> tuple[Tensor, Tensor]:
        """Actions of those transitions in these coordinates, and their normalised states."""
        condition = self.condition(data, take(data.state_index, index))
        return self.whitening.encode(condition, data.scaled_actions(index)), condition

    # Sparse states ------------------------------------------------------------------------

    @torch.no_grad()
    def _sparsity_weights(self, data: Batches) -> Tensor:
        """How often to draw each transition, by the distance of its state to others, (N,)."""
        recordings = data.recordings()
        rows = self.shuffled_rows(data)[:REFERENCES]
        references, own = self.condition(data, rows), recordings[rows]
        distances = []
        for part in torch.arange(len(data.states), device=data.device).split(ROWS_PER_CHUNK):
            states = self.condition(data, part)
            distances.append(nearest_distance(states, references, recordings[part][:, None] == own))
            self.training.stop_if_interrupted("while states were compared with each other")
        weights = sampling_weights(torch.cat(distances), self.config.sparsity_power)
        return take(weights, data.state_index.to(data.device)).double()

    def fit_trust(self, trust: Trust, data: Batches) -> None:
        """Show it random states of the data, and others for the typical distance."""
        fit_trust(trust, data, self.normalizer, self.shuffled_rows(data))

    def shuffled_rows(self, data: Batches) -> Tensor:
        """All rows of the data's states, shuffled, (R,): always in the same order."""
        generator = torch.Generator(data.device).manual_seed(self.training.seed)
        return torch.randperm(len(data.states), generator=generator, device=data.device)

    def _draw_by(self, cumulative: Tensor, batch_size: int) -> Tensor:
        """Rows in proportion to weights of which `cumulative` (N,) are the partial sums.

        (torch.multinomial would add them again in every step, and takes no more than 2^24.)
        """
        u = cumulative.new_empty(batch_size).uniform_(generator=self.training.generator)
        return torch.searchsorted(cumulative, u * cumulative[-1])


def fit_trust(
    trust: Trust, data: Batches, normalizer: ObservationNormalizer, shuffled: Tensor
) -> None:
    """Show a trust states of the data: the first of the shuffled rows, and the last ones.

    The first are those that others are compared with; the last give the typical distance.
    """
    kept = shuffled[torch.arange(REFERENCES, device=shuffled.device) % len(shuffled)]
    others = shuffled[-STATES_FOR_MEDIAN:]
    recordings = data.recordings()
    trust.fit(
        normalizer(data.observations(kept)),
        normalizer(data.observations(others)),
        recordings[others][:, None] == recordings[kept],
    )
