"""Implicit Q-learning's critic (Kostrikov, Nair & Levine 2021, arXiv 2110.06169).

V is an expectile of Q, Q follows r + gamma V(s'). The expectile is over the dataset's own actions,
so that no other action is ever asked about, or, with `implicit_actions`, over support actions that
are drawn anew in every step: then V is the in-support expectile, as a network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qgpo.agents.core.batches import Batches, take
from qgpo.agents.core.training import Training
from qgpo.agents.guided.behavior import Behavior
from qgpo.agents.guided.critic import TwinCritic
from qgpo.agents.guided.support import Support
from qgpo.critic import critic_loss, expectile_loss, polyak_update, td_target
from qgpo.diffusion import Metrics
from qgpo.networks import mlp


class ImplicitCritic(TwinCritic):
    """Q with V beside it."""

    def __init__(
        self, behavior: Behavior, support: Support, training: Training, name: str = "critic"
    ) -> None:
        super().__init__(behavior, support, training, name)
        c = self.config
        sizes = [behavior.observation_dim, *c.critic_hidden, 1]
        value = mlp(sizes, c.critic_activation, c.critic_layer_norm)
        self.value = training.add_trained(f"{name}_value", value)

    @property
    def networks(self) -> tuple[str, ...]:
        """Q, the slowly moving Q, and V."""
        return *super().networks, f"{self.name}_value"

    def update(self, data: Batches, step: int, rate: float) -> Metrics:
        """One step of V, then of Q towards the new V, as the authors' code does."""
        c, training = self.config, self.training
        index = data.draw(training, c.critic_batch_size)
        rows = take(data.state_index, index)
        condition = self.behavior.normalizer(data.observations(rows))
        z = self._encoded_actions(data, index, condition)

        # V: the expectile of min Q' over the actions (Eq. 5)
        differences = self._q_for_value(rows, condition, z) - self._values(condition)[:, None]
        value_loss = expectile_loss(differences, c.expectile)
        value_norm = training.optimize(f"{self.name}_value", value_loss, rate)

        # Q: r + gamma V(s'), cut on termination only (Eq. 6)
        with torch.no_grad():
            next_values = self._values(self.behavior.normalizer(data.observations(rows + 1)))
            terminations = take(data.terminations, index).float()
            targets = td_target(data.rewards[index], terminations, next_values, c.gamma)
        loss, metrics = critic_loss(self.network, condition, z, targets)
        metrics["grad_norm"] = training.optimize(self.name, loss, rate)
        polyak_update(self.network, self.target, c.tau)
        return {
            **metrics,
            "expectile_loss": value_loss,
            "advantage": differences.mean(),
            "value_grad_norm": value_norm,
        }

    @torch.no_grad()
    def _q_for_value(self, rows: Tensor, condition: Tensor, z: Tensor) -> Tensor:
        """Target Q of the actions over which V is taken, (B, 1) or (B, implicit_actions)."""
        drawn = self.config.implicit_actions
        actions = z[:, None]
        if drawn:
            columns = self.training.draw(self.config.support_actions, len(rows), drawn)
            support = take(self.training.tables["support"], rows)
            actions = support.gather(1, columns[..., None].expand(-1, -1, z.shape[-1]))
        q: Tensor = self.target(condition[:, None], actions)
        return q

    def _values(self, condition: Tensor) -> Tensor:
        """V, (B, S) to (B,)."""
        values: Tensor = self.value(condition)
        return values.squeeze(-1)
