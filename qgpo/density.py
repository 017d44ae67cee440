"""Where data lie densely and where they are sparse, by the distance to the nearest neighbor.

A critic is trusted where they are dense, and elsewhere the behavior is kept. The principle is that
of safe policy improvement with baseline bootstrapping (Laroche et al. 2019, arXiv 1712.06924),
which keeps to the behavior where a state-action pair was counted too seldom; the distance stands
for the count. And what is seldom seen is drawn more often while imitation is learned.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

REFERENCES = 10_000
"""states among which the nearest one is searched"""
STATES_FOR_MEDIAN = 4_000
ROWS_PER_CHUNK = 256
"""states whose distances are computed at a time: they stay in cache"""
FARTHEST = torch.finfo(torch.float32).max
"""a median at which every state is trusted; files hold finite numbers only"""
MOST_SPARSE = 4.0
"""medians; what lies still farther off is drawn no more often"""


def nearest_distance(states: Tensor, references: Tensor, own: Tensor | None = None) -> Tensor:
    """Distance of each state (B, S) to the nearest reference (K, S), shape (B,).

    References that `own` (B, K) marks do not count; FARTHEST where no other is left.
    """
    center = references.mean(dim=0)  # cancels, but would cost the fast formula of cdist its digits
    distances = torch.cdist(states - center, references - center)
    if own is not None:
        distances.masked_fill_(own, FARTHEST)
    return distances.min(dim=-1).values


def sampling_weights(distances: Tensor, power: float) -> Tensor:
    """How often to draw each state, (R,) to (R,): min(d / median, MOST_SPARSE)^power, at least 1.

    A model that can represent every mu(a|s) has the same optimum however often each s is drawn;
    what changes is where one of finite size and training errs. Ours.
    """
    median = distances.median().clamp(min=torch.finfo(distances.dtype).tiny)
    return (distances / median).clamp(1.0, MOST_SPARSE) ** power


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

    @torch.no_grad()
    def fit(self, references: Tensor, states: Tensor, own: Tensor) -> None:
        """Keep the references, and find the median distance of other states (K, S) to them.

        `own` (K, REFERENCES) marks what is of the same episode. In data of a single episode
        nothing else is left, and every state is trusted.
        """
        self.references.copy_(references)
        chunks = zip(states.split(ROWS_PER_CHUNK), own.split(ROWS_PER_CHUNK), strict=True)
        distances = [nearest_distance(part, references, mask) for part, mask in chunks]
        self.median.copy_(torch.cat(distances).median())

    def forward(self, states: Tensor) -> Tensor:
        """How far to trust a critic in those states, (B, S) to (B,)."""
        chunks = states.split(ROWS_PER_CHUNK)
        distances = torch.cat([nearest_distance(chunk, self.references) for chunk in chunks])
        near = distances <= self.median
        ratio = self.median / distances.clamp(min=torch.finfo(distances.dtype).tiny)
        return torch.where(near, 1.0, ratio**self.power)
