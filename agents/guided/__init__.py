"""What the guided family (QGPO, AEPO, QIPO) shares: behavior, support, critic, tuning, adoption.

The last stage, and how an agent acts, belong in the agent's own file.
"""

from qgpo.agents.guided.tuning import GuidanceTuning, Guided, is_guided

__all__ = ["GuidanceTuning", "Guided", "is_guided"]
