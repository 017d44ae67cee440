"""The behavior part: a diffusion model of mu(a|s), in whitened coordinates if configured.

Whitening is a Gaussian policy. The diffusion model learns its residuals, so that little is left to
learn. Every later stage sees states and actions in the coordinates of this part.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from qgpo.agents.core.batches import Batches, take
from qgpo.agents.core.training import Training, average
from qgpo.agents.guided.config import GuidedPolicyConfig
from qgpo.density import (
    REFERENCES,
    ROWS_PER_CHUNK,
    STATES_FOR_MEDIAN,
    Trust,
    nearest_distance,
    sampling_weights,
)
from qgpo.diffusion import Diffusion, Metrics
from qgpo.networks import MLPNoiseNetwork, UNetMLP
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

    # Stages -------------------------------------------------------------------------------

    def train_whitening(self, data: Batches) -> None:
        """Fit the Gaussian policy, if there is one."""
        c, whitening = self.config, self.whitening
        if not isinstance(whitening, Whitening):
            return
        cumulative: Tensor | None = None
        if c.sparsity_power and self.training.progress["whitening"] < c.whitening_steps:
            cumulative = self._sparsity_weights(data).cumsum(0)

        def loss(step: int) -> tuple[Tensor, Metrics]:
            if cumulative is None:
                index = self.training.draw(len(data), WHITENING_BATCH_SIZE)
            else:
                index = self._draw_by(cumulative, WHITENING_BATCH_SIZE)
            condition = self.condition(data, take(data.state_index, index))
            return whitening.loss(condition, data.scaled_actions(index))

        rate, decays = WHITENING_LEARNING_RATE, c.learning_rate_decay
        self.training.minimize("whitening", c.whitening_steps, loss, rate, decays)

    def train(self, data: Batches) -> None:
        """Learn mu(a|s) by denoising."""
        c = self.config
        after = partial(average, self.model, self.average, c.ema_decay)
        rate, decays = c.behavior_learning_rate, c.learning_rate_decay
        self.training.minimize(
            "behavior", c.behavior_steps, lambda _: self.loss(data), rate, decays, after
        )

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
        training = self.training
        index = data.draw(training, self.config.behavior_batch_size)
        with torch.no_grad():
            condition = self.condition(data, take(data.state_index, index))
            z = self.whitening.encode(condition, data.scaled_actions(index))
        return self.model.loss(z, condition, training.generator)

    # Sparse states ------------------------------------------------------------------------

    @torch.no_grad()
    def _sparsity_weights(self, data: Batches) -> Tensor:
        """How often to draw each transition, by the distance of its state to others, (N,)."""
        episodes = data.episodes()
        rows = self.shuffled_rows(data)[:REFERENCES]
        references, own = self.condition(data, rows), episodes[rows]
        distances = []
        for part in torch.arange(len(data.states), device=data.device).split(ROWS_PER_CHUNK):
            states = self.condition(data, part)
            distances.append(nearest_distance(states, references, episodes[part][:, None] == own))
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
    episodes = data.episodes()
    trust.fit(
        normalizer(data.observations(kept)),
        normalizer(data.observations(others)),
        episodes[others][:, None] == episodes[kept],
    )
