"""One line on whether guidance can be trusted on these data, from the data alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qgpo.agents.guided.critic import Critic
from qgpo.agents.guided.rehearsal import Rehearsal
from qgpo.agents.guided.stacked_critic import StackedCritic


class GuidanceOffWarning(UserWarning):
    """Said where an agent imitates at every guidance scale, or is guided less than w says."""


CLEAR = 4.0
"""standard errors from which the ranking counts as confirmed clearly"""


@dataclass(frozen=True)
class Verdict:
    """How the critic's advantages relate to outcomes of episodes that its heads have not seen."""

    correlation: float
    errors: float
    """standard errors of the slope by which it exceeds 0; 0 where nothing was confirmed"""
    weights: dict[str, float]
    """of each learner in Q; 0 where its own slope is not above 0"""
    rehearsal: Rehearsal | None = None
    """what the trained policy imagined, where it rehearsed"""

    @property
    def confirmed(self) -> bool:
        """Whether any learner has a weight."""
        return any(weight > 0.0 for weight in self.weights.values())

    def __str__(self) -> str:
        return f"{self._ranking}; {self.rehearsal}" if self.rehearsal else self._ranking

    @property
    def _ranking(self) -> str:
        if not self.confirmed:
            return (
                "unseen episodes do not confirm that the critic ranks actions: the agent imitates "
                "at every guidance scale. A longer training helps, or more episodes, or more "
                'varied actions; critic="implicit" guides without this check'
            )
        found = f"(correlation {self.correlation:.3f}, {self.errors:.1f} standard errors)"
        if self.errors < CLEAR:
            return (
                f"unseen episodes hardly confirm the critic's ranking of actions {found}: use a "
                "small guidance scale, or compare w = 0 with w = 1 in the environment"
            )
        return f"unseen episodes confirm the critic's ranking of actions {found}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "confirmed": self.confirmed,
            "correlation": self.correlation,
            "standard_errors": self.errors,
            "weights": self.weights,
            **({"rehearsal": self.rehearsal.as_dict()} if self.rehearsal else {}),
            "text": str(self),
        }


def verdict_of(critic: Critic) -> Verdict | None:
    """What a trained critic was found to be worth; None for one that measures nothing."""
    if not isinstance(critic, StackedCritic) or not critic.stack.measured:
        return None
    stack = critic.stack
    slope, error = float(stack.slopes[-1]), float(stack.errors[-1])
    weights = dict(zip(critic.learners, stack.weights.tolist(), strict=True))
    return Verdict(float(stack.correlations[-1]), slope / error if error > 0.0 else 0.0, weights)
