"""The guidance scale from data alone: imagined episodes in a model learned from the dataset.

For every scale the policy acts in the same model (imagination.py): the one of the agent's own
training, where there is one. The exact guidance (w = 1) is chosen unless another scale returns
clearly more. Models overrate policies that leave the data, so of a larger scale every member of the
model must say so. A scale's score is the mean return at it and its neighbors. A scale with a lower
score than w = 1 is not chosen, and of scales with nearly equal scores the smallest is. The rule is
not from a paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

from qgpo.agents.core.acting import Acts
from qgpo.agents.core.batches import Batches
from qgpo.agents.core.config import NOT_NEGATIVE
from qgpo.agents.core.process import usual_torch
from qgpo.agents.core.training import NonFiniteError
from qgpo.agents.guided.imagination import STEPS, Imagination, fit_dynamics, horizon_of
from qgpo.dynamics import MEMBERS, DynamicsEnsemble
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.progress import progress
from qgpo.fields import check_count, check_finite

SCALES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
"""up to 2: where 4 returns more it is by a little, and models overrate it where it returns less
(docs/notes/log.md)"""
NEARLY_EQUAL = 0.005
"""of a return's size: the model cannot tell such scales apart"""
HARM = 2.0
"""standard errors by which less guidance must return more, here and in the rehearsal"""
GAIN = 3.0
"""the same for more guidance, which models overrate"""


@dataclass(frozen=True, eq=False, repr=False)
class GuidanceTuning:
    """Result of `tune_guidance`. Returns are simulated; use them only to compare scales."""

    scales: tuple[float, ...]
    """ascending"""
    returns: NDArray[np.float64]
    """(scales, rollouts) undiscounted"""
    left_data: NDArray[np.bool_]
    """(scales, rollouts) whether the episode left the data"""
    guidance_is_off: bool = False
    """whether the agent acts alike at every scale, so that the first one was played for all"""

    @property
    def best(self) -> float:
        """The chosen scale."""
        return self.scales[choose(nearest_to_exact(self.scales), self.returns)]

    def as_dict(self) -> dict[str, Any]:
        """Means per scale and the choice, for JSON."""
        return {
            "scales": list(self.scales),
            "returns": self.returns.mean(axis=1).tolist(),
            "left_data": self.left_data.mean(axis=1).tolist(),
            "best": self.best,
        }

    def __repr__(self) -> str:
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        rollouts = self.returns.shape[1]
        return f"GuidanceTuning(best {self.best:g} of {scales}, by {rollouts} episodes each)"

    def __str__(self) -> str:
        lines = [
            f"{'w':>6s}{'predicted return':>18s}{'s.e.':>9s}{'with neighbors':>16s}"
            f"{'left the data':>15s}"
        ]
        errors = self.returns.std(axis=1) / np.sqrt(self.returns.shape[1])
        means, left_data = self.returns.mean(axis=1), self.left_data.mean(axis=1)
        columns = (self.scales, means, errors, with_neighbors(means), left_data)
        for w, mean, error, score, left in zip(*columns, strict=True):
            mark = "  <" if w == self.best else ""
            lines.append(f"{w:6g}{mean:18.1f}{error:9.1f}{score:16.1f}{left:15.0%}{mark}")
        if self.guidance_is_off:
            lines.append(
                "guidance is off (agent.verdict, .rehearsal): the agent imitates at every scale"
            )
        elif len(self.scales) > 1 and not self.is_distinct:
            lines.append(f"no other scale is clearly better than w = {self.best:g}")
        return "\n".join(lines)

    @property
    def is_distinct(self) -> bool:
        """Whether another scale is clearly better than w = 1, or the scale nearest to it."""
        return self.best != self.scales[nearest_to_exact(self.scales)]


class Guided(Acts, Protocol):
    """An agent with a guidance scale, or an ensemble of such: what tuning and scripts ask of it."""

    seed: int
    guidance_scale: Any
    """w: one number, or one per member"""

    @property
    def guidance_is_off(self) -> bool:
        """Whether it acts alike at every guidance scale."""

    @property
    def is_trained(self) -> bool:
        """Whether training has come to its end."""

    def configure_guidance(self, scale: float) -> None:
        """Set the scale so that files keep it."""

    @property
    def own_model(self) -> DynamicsEnsemble | None:
        """The model of the environment from its training, if it has learned enough to judge."""

    def prepare(self, dataset: OfflineDataset) -> Batches:
        """The data on the device. Raises ValueError for other data than those of the training."""

    @property
    def tune_guidance(self) -> Callable[..., GuidanceTuning]:
        """Choose the scale from the data alone: the function of that name, as a method."""


def is_guided(agent: object) -> TypeGuard[Guided]:
    """Whether it has a guidance scale to choose; of an ensemble, whether every member has."""
    return hasattr(agent, "guidance_scale") and not getattr(agent, "fixed_scale", False)


def with_neighbors(returns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each scale's return and those of the next scales on both sides, (W,) to (W,).

    The first and the last are repeated in place of the missing neighbor. Returns drop at scales
    where a gait begins to fall, and the model misplaces these scales: an isolated peak is not
    reliable. Not from a paper.
    """
    return np.convolve(np.pad(returns, 1, mode="edge"), np.full(3, 1.0 / 3.0), mode="valid")


def nearest_to_exact(scales: Sequence[float]) -> int:
    """Where w = 1 is among the ascending scales, or the one with the nearest ratio to it."""
    with np.errstate(divide="ignore"):
        return int(np.argmin(np.abs(np.log(np.asarray(scales, np.float64)))))


def clearly_more(reference: int, returns: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(W,) scales whose returns (W, R) clearly exceed those at the one of that number.

    Scales ascend, and each has the same R episodes. Of a scale above the reference every member of
    the model must say so, each by its episodes: where members are of two minds the model has
    learned nothing that decides it. One episode says nothing.
    """
    if returns.shape[1] < 2:
        return np.zeros(len(returns), np.bool_)
    differences = returns - returns[reference]
    errors = differences.std(axis=1, ddof=1) / np.sqrt(differences.shape[1])
    members = [differences[:, member::MEMBERS] for member in range(MEMBERS)]
    agree = np.all([part.mean(axis=1) > 0.0 for part in members if part.shape[1]], axis=0)
    larger = np.arange(len(returns)) > reference
    least = np.where(larger, GAIN, HARM) * errors
    least = np.maximum(least, NEARLY_EQUAL * np.abs(returns.mean(axis=1)))
    clear: NDArray[np.bool_] = (differences.mean(axis=1) > least) & (agree | ~larger)
    return clear


def choose(reference: int, returns: NDArray[np.float64]) -> int:
    """The number of the chosen one of ascending scales, from returns (W, R).

    Of those that return clearly more than the reference and have no lower score, the smallest whose
    score is nearly the best. Where there is none, the reference.
    """
    scores = with_neighbors(returns.mean(axis=1))
    chosen = clearly_more(reference, returns) & (scores >= scores[reference])
    if not chosen.any():
        return reference
    best = scores[chosen].max()
    return int(np.argmax(chosen & (scores >= best - NEARLY_EQUAL * abs(best))))


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """At least one, each within the configuration's range; ascending and without repetition."""
    low, high = NOT_NEGATIVE
    try:
        numbers = tuple(check_finite("scale", float(w)) for w in scales)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(low <= w <= high for w in numbers):
        raise ValueError(f"scales={scales!r}, expected numbers in [{low:g}, {high:g}]")
    return tuple(sorted(set(numbers)))


@usual_torch()
def tune_guidance(
    agent: Guided,
    dataset: OfflineDataset,
    scales: Sequence[float] = SCALES,
    rollouts: int = 48,
    steps: int | None = None,
    deterministic: bool = True,
    progress_bar: bool | None = None,
) -> GuidanceTuning:
    """Choose `guidance_scale` from the dataset alone, and return the comparison of the scales.

    It is a method of guided agents and of `Ensemble`. At each of the `scales` the agent plays
    `rollouts` simulated episodes in a model of the environment, with `deterministic` or sampled
    actions. They are as long as the longest episode in the data (at most the environment's limit).
    w = 1 (or the nearest of the scales) is chosen, unless another scale returns clearly more there;
    few rollouts tell little. The model is the one of the agent's training (`dynamics_steps`; in an
    ensemble the first that a member has). Where there is none, and where `steps` are given, a new
    one is learned from the dataset in `steps` gradient steps (default 16,000), which takes minutes.
    The chosen scale is set on the agent and in its configuration, so files keep it. A progress bar
    is shown by default if stderr is a terminal.

    Raises RuntimeError before training has finished, and AttributeError for an ensemble with
    members without a guidance scale. Raises ValueError for scales outside [0, 1e9], for data other
    than the training data, and for fewer than 2 rollouts. Raises NonFiniteError if the model
    diverges.
    """
    if not isinstance(dataset, OfflineDataset):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}, expected the OfflineDataset that the agent "
            "learned from: load_dataset(id) reads one"
        )
    if len(dataset) < 2:
        raise ValueError(
            f"dataset {dataset.id!r} has {len(dataset)} transition, expected 2 or more"
        )
    chosen = check_scales(scales)
    rollouts = check_count("rollouts", rollouts, 2)
    if steps is not None:
        steps = check_count("steps", steps)
    if not agent.is_trained:
        raise RuntimeError(f"this {agent.name} has not finished training: call learn(dataset)")
    before: Any = agent.guidance_scale
    data = agent.prepare(dataset)
    played = chosen[:1] if agent.guidance_is_off else chosen  # which then stands for all
    generator = torch.Generator(agent.device).manual_seed(agent.seed)
    horizon = horizon_of(dataset)
    own = agent.own_model if steps is None else None
    steps = 0 if own is not None else steps or STEPS
    noise = agent.prediction_generator.get_state()
    with progress(steps + horizon * len(played), "guidance scale", progress_bar) as bar:
        model = own or fit_dynamics(dataset, data, generator, steps, bar)
        world = Imagination.of(model, dataset, data, generator, agent.action_scale, rollouts)
        results = []
        try:
            for w in played:
                agent.guidance_scale = w
                agent.prediction_generator.set_state(noise)  # the same for every scale
                results.append(world.play(agent, deterministic, bar))
        finally:
            agent.guidance_scale = before
            agent.prediction_generator.set_state(noise)
    copies = len(chosen) // len(played)
    returns = np.stack([r.double().cpu().numpy() for r, _ in results * copies])
    left = np.stack([x.cpu().numpy() for _, x in results * copies])
    if not np.isfinite(returns).all():
        raise NonFiniteError(f"returns in the model of {dataset.id!r} are not finite")
    tuning = GuidanceTuning(chosen, returns, left, agent.guidance_is_off)
    agent.configure_guidance(tuning.best)
    return tuning
