"""Acting by choosing among actions of the behavior: what `BestOfN` and `SIR` share.

N actions of the behavior are drawn with guidance off, at the same solver and steps as those of a
QGPO agent, and one of them (or a mean of some) is taken by its Q. No energy f_t and no gradient is
needed.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, TypeVar

import torch
from torch import Tensor

from qgpo.agents.core.acting import Normal, normal_of
from qgpo.agents.core.batches import Batches, take
from qgpo.agents.guided.config import GuidedPolicyConfig
from qgpo.agents.guided.policy import GuidedPolicy
from qgpo.diffusion import Diffusion, GuidanceGradient, Metrics, is_known
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.fields import Range, count_property

STATES_TO_MEASURE = 512
"""random states of the data whose support actions give the metrics of the last stage"""


@dataclass(frozen=True)
class CandidatesConfig(GuidedPolicyConfig):
    """What both have beside the family's; N is IDQL's, as in IFQL. `guidance_bound` has no use."""

    num_samples: Annotated[int, Range(1, 100_000)] = 32
    """N, number of candidate actions per observation when acting: more are slower and rely more on
    Q, 1 is imitation"""


CandidatesConfigT = TypeVar("CandidatesConfigT", bound=CandidatesConfig)


def gain(q: Tensor, weights: Tensor) -> Tensor:
    """How far weights (B, N) raise Q (B, N) above its mean, in its typical standard deviation."""
    raised = (weights * (q - q.mean(dim=-1, keepdim=True))).sum(dim=-1)
    return raised.mean() / q.std(dim=-1).mean().clamp(min=1e-9)


class Candidates(GuidedPolicy[CandidatesConfigT]):
    """Chooses among `num_samples` actions of the behavior; a subclass says how.

    `num_samples` may be set once the agent has seen data; files have the configuration's.
    """

    stages: ClassVar[tuple[str, ...]] = ("whitening", "behavior", "support", "critic", "choice")
    num_samples = count_property("num_samples", "Actions drawn per observation.")

    # What a subclass says -----------------------------------------------------------------

    @abstractmethod
    def _choose(
        self,
        z: Tensor,
        q: Tensor,
        condition: Tensor,
        deterministic: bool,
        normal: Normal,
    ) -> Tensor:
        """The action (B, A) from candidates (B, N, A), their Q (B, N) and the states (B, S).

        States are normalised, actions in the behavior's coordinates. Further noise is `normal`'s.
        """

    @abstractmethod
    def _measure(self, q: Tensor) -> Metrics:
        """What is worth logging, from Q of the support actions of a few states, (B, M)."""

    def _fit_choice(self, data: Batches, q: Tensor) -> None:
        """Constants of the choice, from the table of Q (R, M)."""

    def _build_last(self) -> None:
        self.num_samples = self.config.num_samples

    # Training -----------------------------------------------------------------------------

    @property
    def last_timesteps(self) -> int:
        """None: nothing is learned beside behavior and critic."""
        return 0

    def _train_last(self, dataset: OfflineDataset) -> None:
        self.train_choice(dataset)

    def train_choice(self, dataset: OfflineDataset) -> None:
        """Stage 5: constants and metrics of the choice; one step without a gradient."""
        data = self._with_support(dataset)
        q = self.critic.table_of_q(data)
        self._fit_choice(data, q)

        def measure(step: int) -> Metrics:
            rows = take(data.state_index, self.training.draw(len(data), STATES_TO_MEASURE))
            return self._measure(take(q, rows))

        self.training.run_stage("choice", 1, measure, gradient_steps=False)

    def _extend_online(self, data: Batches) -> None:
        """Also fit the constants of the choice to today's Q."""
        super()._extend_online(data)
        self._fit_choice(data, self._some_q(data))

    # Acting -------------------------------------------------------------------------------

    def _guided(
        self, scale: float | Tensor, condition: Tensor
    ) -> tuple[Diffusion, GuidanceGradient | None]:
        return self.behavior.average, None

    @torch.no_grad()
    def act(self, observations: Tensor, deterministic: bool) -> Tensor:
        """Candidates of the behavior and their choice, (B, S) to actions (B, A) in [-1, 1].

        When `deterministic`, candidates and choice come from noise of the agent's seed, drawn on
        the CPU: the same for every observation. At guidance scale 0, and where the critic does not
        rank actions, the behavior acts by itself, as that of every agent of the family.
        """
        scale = self.guidance_scale
        if is_known(scale, 0.0) or not self.critic.ranks:
            return super().act(observations, deterministic)
        normal: Normal = self._prediction_normal
        if deterministic:
            generator = torch.Generator().manual_seed(self.training.seed)
            normal = partial(normal_of, generator, self.device)
        condition = self.behavior.normalizer(observations)
        z = self._candidates(condition, deterministic, normal)
        if self.num_samples > 1:
            q: Tensor = self.critic.target(condition[:, None], z)
            z = self._choose(z, q, condition, deterministic, normal)
        actions = self.behavior.within_bounds(condition, z.reshape(len(observations), -1))
        if isinstance(scale, Tensor):
            return torch.where(scale == 0.0, super().act(observations, deterministic), actions)
        return actions

    def _candidates(self, condition: Tensor, same: bool, normal: Normal) -> Tensor:
        """N actions inside the bounds in normalised states, (B, S) to (B, N, A).

        Where all states have the `same` noise, it is followed by its negative: by chance its mean
        would lean to one side, in every state to the same.
        """
        b, n, a = len(condition), self.num_samples, self.behavior.action_dim
        if same:
            drawn = normal((n + 1) // 2, a)
            noise = torch.cat([drawn, -drawn])[:n].repeat(b, 1)
        else:
            noise = normal(b * n, a)
        z = self._solve(noise, condition.repeat_interleave(n, dim=0))
        return self.behavior.inside(condition[:, None], z.reshape(b, n, a))
