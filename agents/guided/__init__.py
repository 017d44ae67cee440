"""What the guided family (QGPO, AEPO, QIPO, SIR, BestOfN) shares.

Behavior, support, critic, rehearsal, tuning, adoption; of SIR and BestOfN also how they choose
among actions.

The last stage, and how an agent acts, belong in the agent's own file.
"""

from qgpo.agents.guided.policy import GuidedPolicy
from qgpo.agents.guided.rehearsal import Rehearsal
from qgpo.agents.guided.tuning import GuidanceTuning, Guided, is_guided
from qgpo.agents.guided.verdict import GuidanceOffWarning, Verdict

__all__ = [
    "GuidanceOffWarning",
    "GuidanceTuning",
    "Guided",
    "GuidedPolicy",
    "Rehearsal",
    "Verdict",
    "is_guided",
]
