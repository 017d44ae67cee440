"""The critics by the name that a configuration has."""

from __future__ import annotations

from qgpo.agents.core.training import Training
from qgpo.agents.guided.behavior import Behavior
from qgpo.agents.guided.critic import Critic
from qgpo.agents.guided.implicit_critic import ImplicitCritic
from qgpo.agents.guided.stacked_critic import StackedCritic
from qgpo.agents.guided.support import Support
from qgpo.agents.guided.support_critic import SupportCritic

BY_NAME: dict[str, type[Critic]] = {
    "support": SupportCritic,
    "implicit": ImplicitCritic,
    "stacked": StackedCritic,
}


def make_critic(behavior: Behavior, support: Support, training: Training) -> Critic:
    """The configured critic; its networks are registered with the training."""
    return BY_NAME[behavior.config.critic](behavior, support, training)
