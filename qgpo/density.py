"""How densely points lie: states of the data around a state, samples around each other.

A state's density is measured by the distance to its nearest neighbor in the data, which has two
uses. `Trust` weakens the critic where the data are sparse, so that the policy stays close to the
behavior there. `sampling_weights` draws sparse states more often while the behavior is learned.
The first use follows safe policy improvement with baseline bootstrapping (Laroche et al. 2019,
arXiv 1712.06924), which keeps the behavior where the count of a state-action pair is low; the
distance replaces the count.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qgpo.prepared import is_plain

REFERENCES = 10_000
"""states of the dataset among which the nearest neighbor is searched"""
STATES_FOR_MEDIAN = 4_000
"""states of the dataset whose distances give the median"""
DIRECTLY = 4
"""fewer states are compared with the references faster one by one than by a matrix product"""
ROWS_PER_CHUNK = 256
"""states whose distances are computed at a time, so that they stay in the cache"""
FARTHEST = torch.finfo(torch.float32).max
"""a median at which every state is trusted; finite, because checkpoints hold finite numbers only"""
MOST_SPARSE = 4.0
"""distance, in medians, beyond which a state is not drawn more often"""


def nearest_distance(states: Tensor, references: Tensor, excluded: Tensor | None = None) -> Tensor:
    """Distance of each state (B, S) to the nearest reference (K, S), shape (B,).

    References that the mask `excluded` (B, K) marks are ignored; FARTHEST where none is left. The
    product by which many states find their nearest reference rounds. The distance does not: it is
    0 where a state is a reference.
    """
    if excluded is None and len(states) < DIRECTLY and not is_plain():
        mode = "donot_use_mm_for_euclid_dist"
        nearest = torch.cdist(states, references, compute_mode=mode).argmin(dim=-1)
    else:
        center = references.mean(dim=0)  # cancels; without it the fast formula loses more digits
        distances = torch.cdist(states - center, references - center)
        if excluded is not None:
            distances.masked_fill_(excluded, FARTHEST)
        nearest = distances.argmin(dim=-1)
    exact: Tensor = torch.linalg.vector_norm(states - references.index_select(0, nearest), dim=-1)
    return exact if excluded is None else exact.masked_fill(excluded.all(dim=-1), FARTHEST)


def typical(distances: Tensor) -> Tensor:
    """The median of distances (K,); where it is 0, because states recur, that of the others."""
    median = distances.median()
    if median > 0.0 or not (distances > 0.0).any():
        return median
    return distances[distances > 0.0].median()


def sampling_weights(distances: Tensor, power: float) -> Tensor:
    """Relative frequency of each state, (R,) to (R,): min(d / median, MOST_SPARSE)^power, >= 1.

    The weights do not move the optimum of a model that can represent every mu(a|s). They decide
    in which states a model of finite size and training time makes its errors. Ours.
    """
    median = typical(distances).clamp(min=torch.finfo(distances.dtype).tiny)
    return (distances / median).clamp(1.0, MOST_SPARSE) ** power


def first_quartile(numbers: Tensor) -> Tensor:
    """Of the last axis, linear between neighbors: (..., N) to (...)."""
    place = 0.25 * (numbers.shape[-1] - 1)
    below = int(place)
    in_order = numbers.sort(dim=-1).values
    return in_order[..., below].lerp(in_order[..., below + 1], place - below)


def mode_of_samples(samples: Tensor) -> Tensor:
    """The mean of the samples around the densest of them, (B, K, D) to (B, D).

    The weights are those of a Gaussian kernel at the sample with the largest kernel density: one
    step of mean shift (Fukunaga & Hostetler 1975) from there. Its width is the first quartile of
    the distances between samples, which lies within a mode wherever the largest has more than half
    of the samples. Of one mode it is nearly the mean, of two the mean of the larger one.
    """
    k = samples.shape[1]
    if k < 3:
        return samples[:, 0]
    squared = (samples[:, :, None] - samples[:, None]).square().sum(dim=-1)
    pairs = torch.triu_indices(k, k, 1, device=samples.device)
    width = first_quartile(squared.flatten(1).index_select(1, k * pairs[0] + pairs[1]))
    tiny = torch.finfo(samples.dtype).tiny
    kernel = torch.exp(-0.5 * squared / width.clamp(min=tiny)[:, None, None])
    densest = kernel.sum(dim=-1).argmax(dim=-1)
    weights = torch.take_along_dim(kernel, densest[:, None, None], dim=1).squeeze(1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return torch.sum(weights[..., None] * samples, dim=1)


class Trust(nn.Module):
    """min(1, (median / distance)^power), with a state's distance to the nearest reference.

    `references` (REFERENCES, S) are random states of the dataset. `median` () is the median
    distance of other states of the dataset to them. References of a state's own recorded episode
    are excluded from the median: consecutive states are always close, however rarely a region was
    visited. So are states that recur, where more than half do. Before `fit` every state is trusted.
    """

    references: Tensor
    median: Tensor

    def __init__(self, dim: int, power: float) -> None:
        super().__init__()
        self.power = power
        self.register_buffer("references", torch.zeros(REFERENCES, dim))
        self.register_buffer("median", torch.tensor(FARTHEST))

    @torch.no_grad()
    def fit(self, references: Tensor, states: Tensor, same_episode: Tensor) -> None:
        """Store the references and the median distance of other states (K, S) to them.

        The mask `same_episode` (K, REFERENCES) marks references of a state's own episode. In a
        dataset of a single episode no reference is left, and every state is trusted.
        """
        self.references.copy_(references)
        chunks = zip(states.split(ROWS_PER_CHUNK), same_episode.split(ROWS_PER_CHUNK), strict=True)
        distances = [nearest_distance(part, references, mask) for part, mask in chunks]
        self.median.copy_(typical(torch.cat(distances)))

    def forward(self, states: Tensor) -> Tensor:
        """Weight of the critic in each state, (B, S) to (B,)."""
        chunks = states.split(ROWS_PER_CHUNK)
        distances = torch.cat([nearest_distance(chunk, self.references) for chunk in chunks])
        near = distances <= self.median
        ratio = self.median / distances.clamp(min=torch.finfo(distances.dtype).tiny)
        return torch.where(near, 1.0, ratio**self.power)
