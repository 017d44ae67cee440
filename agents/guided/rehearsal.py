"""A trained policy rehearses in a model of the environment before anybody plays it.

The critic may rank a state's actions rightly and guidance may still harm: where one policy made the
data, a shift of every action leads to states that the data do not have. So the policy imagines
episodes (imagination.py) at w = 1 and at w = 0, from the same starts. Where guidance clearly
returns less than imitation, all guidance is multiplied by a factor of FACTORS that clearly returns
more, or it is turned off where none does, so that w = 1 is a policy that the model does not doubt.
The rule is not from a paper; the aim is that of safe policy improvement (Laroche et al. 2019, arXiv
1712.06924).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qgpo.agents.core.acting import Acts
from qgpo.agents.core.batches import Batches
from qgpo.agents.core.config import LEAST_MODEL_STEPS
from qgpo.agents.core.training import NonFiniteError, Training
from qgpo.agents.guided.imagination import LEARNING_RATE, Episodes, Imagination
from qgpo.agents.guided.tuning import choose, clearly_more
from qgpo.diffusion import Metrics
from qgpo.dynamics import DynamicsEnsemble
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.progress import progress

FACTORS = (0.0, 0.25, 0.5, 1.0)
"""of the guidance, ascending"""
ROLLOUTS = 48
"""imagined episodes at each of them"""
SEEDS = 1_000_003
"""by which trainings of neighboring seeds differ in the seeds of their steps"""


@dataclass(frozen=True)
class Rehearsal:
    """What the rehearsal found. Returns are imagined; use them only to compare."""

    imitation: float
    """mean return at w = 0"""
    guided: float
    """at w = 1, before the factor"""
    factor: float
    """of all guidance"""

    def __str__(self) -> str:
        found = f"{self.guided:.4g}, imitation {self.imitation:.4g}"
        if self.factor == 1.0:
            return f"in a model of the environment guidance returns {found}"
        weakened = "guidance is off" if self.factor == 0.0 else f"it is weakened to {self.factor:g}"
        return f"in a model of the environment full guidance returns {found}: {weakened}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = {"imitation": self.imitation, "guided": self.guided, "factor": self.factor}
        return {**found, "text": str(self)}


NOT_YET, REHEARSED, NOTHING, GAVE_UP, FORMERLY = 0.0, 1.0, 2.0, 3.0, 4.0
"""whether there was a rehearsal: nothing to rehearse where the critic ranks nothing; given up where
the model diverged, or is of other data; formerly, with other data"""


class Caution(nn.Module):
    """The factor of all guidance, and the mean returns (2,) at w = 0 and w = 1 that gave it."""

    factor: Tensor
    returns: Tensor
    done: Tensor
    """() one of the five numbers above"""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(()))
        self.register_buffer("returns", torch.zeros(2))
        self.register_buffer("done", torch.zeros(()))

    def reset(self) -> None:
        """Forget what another training found."""
        self.factor.fill_(1.0)
        self.done.fill_(NOT_YET)

    def give_up(self) -> None:
        """Rehearse no more, and let nobody ask the model."""
        self.done.fill_(GAVE_UP if self.found is None else FORMERLY)

    def set(self, found: Rehearsal | None) -> None:
        """Keep what was found; None where there is nothing to rehearse."""
        if found is None:
            self.done.fill_(NOTHING)
            return
        self.factor.fill_(found.factor)
        self.returns.copy_(torch.tensor([found.imitation, found.guided]))
        self.done.fill_(REHEARSED)

    @property
    def found(self) -> Rehearsal | None:
        """In the rehearsal, if there was one."""
        if float(self.done) not in (REHEARSED, FORMERLY):
            return None
        imitation, guided = self.returns.tolist()
        return Rehearsal(imitation, guided, float(self.factor))


class Rehearsing:
    """The model of the environment, and what it says of the trained policy."""

    def __init__(self, observation_dim: int, action_dim: int, steps: int, training: Training):
        self.training, self.steps = training, steps
        model = DynamicsEnsemble(observation_dim, action_dim)
        self.model = training.add_trained("dynamics", model)
        for group in training.optimizers["dynamics"].param_groups:
            group["lr"] = LEARNING_RATE  # no field of the configuration says it
        self.caution = training.add("caution", Caution())

    @property
    def judges(self) -> bool:
        """Whether the model has enough steps for a rehearsal."""
        return self.steps >= LEAST_MODEL_STEPS

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to rehearse."""
        return not self.judges or bool(self.caution.done)

    @property
    def is_learned(self) -> bool:
        """Whether the model has all its steps."""
        return self.training.progress["dynamics"] >= self.steps

    @property
    def model_to_ask(self) -> DynamicsEnsemble | None:
        """The model, where it is whole and of these data."""
        ended = float(self.caution.done) in (REHEARSED, NOTHING)
        return self.model if ended and self.judges and self.is_learned else None

    def forget_data(self) -> None:
        """What the model has learned is not of the data that come now."""
        if self.training.progress["dynamics"]:
            self.caution.give_up()

    def train(self, dataset: OfflineDataset, data: Batches) -> None:
        """Learn the model. Its random numbers are its own, so that other stages have the same."""
        training, episodes = self.training, Episodes(dataset, data)
        generator = torch.Generator(training.device)
        if training.progress["dynamics"] == 0:
            self.caution.reset()
            episodes.fit_scales(self.model, generator.manual_seed(training.seed))

        def loss(step: int) -> tuple[Tensor, Metrics]:
            generator.manual_seed((training.seed * SEEDS + step) % 2**63)
            value = episodes.loss(self.model, generator)
            return value, {"loss": value}

        training.minimize("dynamics", self.steps, loss, LEARNING_RATE)

    def rehearse(
        self, policy: Callable[[float], Acts], dataset: OfflineDataset, data: Batches, scale: Any
    ) -> None:
        """Imagine episodes of the policies at some factors, and keep the factor for all guidance.

        `scale` is the agent's scale of actions. Raises NonFiniteError where the model diverges.
        """
        seed, device = self.training.seed, self.training.device
        generator = torch.Generator(device).manual_seed(seed)
        world = Imagination.of(self.model, dataset, data, generator, scale, ROLLOUTS)
        total = world.horizon * len(FACTORS)
        with progress(total, "rehearsal", self.training.progress_bar, leave=False) as bar:

            def imagine(factor: float) -> NDArray[np.float64]:
                self.training.stop_if_interrupted("during the rehearsal")
                returns, _ = world.play(policy(factor), True, bar)
                if not bool(torch.isfinite(returns).all()):
                    raise NonFiniteError(f"returns in the model of {dataset.id!r} are not finite")
                return returns.double().cpu().numpy()

            imitation, guided, factor = imagine(FACTORS[0]), imagine(FACTORS[-1]), FACTORS[-1]
            if clearly_more(1, np.stack([imitation, guided]))[0]:
                between = [imagine(factor) for factor in FACTORS[1:-1]]
                factor = FACTORS[choose(0, np.stack([imitation, *between, guided]))]
        self.caution.set(Rehearsal(float(imitation.mean()), float(guided.mean()), factor))
