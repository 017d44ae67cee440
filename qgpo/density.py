"""Where data lie densely: a critic is trusted there, and elsewhere the behavior is kept.

The principle is that of safe policy improvement with baseline bootstrapping (Laroche et al. 2019,
arXiv 1712.06924), which keeps to the behavior where a state-action pair was counted too seldom;
distance to the nearest neighbor stands for the count.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

REFERENCES = 10_000
"""states among which the nearest one is searched"""
STATES_FOR_MEDIAN = 4_000
ROWS_PER_CHUNK = 4_096
FARTHEST = torch.finfo(torch.float32).max
"""a median at which every state is trusted; files hold finite numbers only"""


class Trust(nn.Module):
    """min(1, (median / distance)^power), with the distance of a state to the nearest of the data.

    `references` (REFERENCES, S) are random states of the data, `median` () the median distance of
    other states of the data to them, without those of a state's own episode: a trajectory is
    always close to itself, which says nothing of how often its states were visited. Before `fit`
    every state is trusted.
    """

    references: Tensor
    median: Tensor

    def __init__(self, dim: int, power: float) -> None:
        super().__init__()
        self.power = power
        self.register_buffer("references", torch.zeros(REFERENCES, dim))
        self.register_buffer("median", torch.tensor(FARTHEST))

    def _distances(self, states: Tensor) -> Tensor:
        # a common offset, which cancels, would cost the fast formula of cdist its digits
        center = self.references.mean(dim=0)
        return torch.cdist(states - center, self.references - center)

    @torch.no_grad()
    def fit(self, references: Tensor, states: Tensor, own: Tensor) -> None:
        """Keep the references, and find the median distance of other states (K, S) to them.

        `own` (K, REFERENCES) marks what is of the same episode. In data of a single episode
        nothing else is left, and every state is trusted.
        """
        self.references.copy_(references)
        distances = self._distances(states).masked_fill(own, FARTHEST)
        self.median.copy_(distances.min(dim=-1).values.median())

    def forward(self, states: Tensor) -> Tensor:
        """How far to trust a critic in those states, (B, S) to (B,)."""
        chunks = states.split(ROWS_PER_CHUNK)
        distances = torch.cat([self._distances(chunk).min(dim=-1).values for chunk in chunks])
        near = distances <= self.median
        ratio = self.median / distances.clamp(min=torch.finfo(distances.dtype).tiny)
        return torch.where(near, 1.0, ratio**self.power)
