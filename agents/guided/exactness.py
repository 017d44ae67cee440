"""How exact a trained agent's guidance is in its own states, against its own behavior and Q.

In a state, thousands of actions of the behavior model with their scaled Q are a finite sample of
mu(a|s), whose f*_t and whose target mu exp(f_0) are known (`qgpo.exact.EmpiricalTilt`). f_0 is what
w = 1 is defined by: beta Q, beta lowered where its spread over the state's actions exceeds
`tilt_limit`. `trust_power`, which lowers w itself, is left out.

With `support`, the same error is also measured of the f that M actions of a state give by
themselves: `EmpiricalTilt` of M actions in place of thousands. It tells what a guidance can know
that shares nothing between states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qgpo.agents.core.batches import Batches
from qgpo.agents.core.process import usual_torch
from qgpo.agents.guided.behavior import Behavior
from qgpo.agents.guided.config import GuidedPolicyConfig
from qgpo.agents.guided.critic import Critic
from qgpo.diffusion import diffuse
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.progress import progress
from qgpo.exact import EmpiricalTilt, compare_with_pair, sliced_wasserstein
from qgpo.fields import check_count
from qgpo.guidance import Guidance

TIMES = tuple(np.linspace(0.15, 0.95, 9).tolist())
"""below the first one, a few thousand actions are too few around a noisy action"""
ROWS_PER_TIME = 16
"""noisy actions in a state and at a time"""
STATES_FOR_UNIT = 512
"""whose support actions give the typical spread of Q"""
MOST_ROWS = 2**16
"""actions drawn in one call"""
RESAMPLES = 2_000
"""of states, for the intervals"""
SETS_OF_SUPPORT = 8
"""independent sets of M actions in a state, at most"""


class Guided(Protocol):
    """What is asked of an agent."""

    behavior: Behavior
    critic: Critic
    energy: Guidance
    solver: str
    solver_steps: int
    device: torch.device

    @property
    def config(self) -> GuidedPolicyConfig:
        """Its configuration."""

    @property
    def is_trained(self) -> bool:
        """Whether training has come to its end."""

    def prepare(self, dataset: OfflineDataset) -> Batches:
        """The data on the device. Raises ValueError for other data than those of the training."""

    def inverse_temperature(self, q: Tensor) -> Tensor:
        """The factor on Q, from Q of support actions (R, M)."""


class Interval(NamedTuple):
    """An estimate over states, and its 95 % interval by resampling states."""

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """As text, in percent."""
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def times(self) -> str:
        """As text, as a factor."""
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True, eq=False, repr=False)
class Exactness:
    """What `QGPO.exactness` found; arrays have a row per state."""

    times: tuple[float, ...]
    """noise levels"""
    errors: NDArray[np.float64]
    """(S, T) mean of |sigma (grad f - grad f*)|^2 at noisy actions of the target, at w = 1"""
    sizes: NDArray[np.float64]
    """(S, T) mean of |sigma grad f*|^2 there"""
    distances: NDArray[np.float64]
    """(S,) sliced Wasserstein-2 of guided actions to resampled ones"""
    floors: NDArray[np.float64]
    """(S,) the same between two resampled sets"""
    effective: NDArray[np.float64]
    """(S,) effective share of the behavior's actions under e^{f_0}"""
    by_support: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)
    """by M, `errors` (S, T) of the exact f of M of the behavior's actions"""

    @property
    def guidance_error(self) -> Interval:
        """Relative error of the guidance: root of summed errors over summed sizes."""
        return bootstrap(relative, self.errors.sum(axis=1), self.sizes.sum(axis=1))

    @property
    def distance(self) -> Interval:
        """Distance of guided actions over that of two resampled sets."""
        return bootstrap(ratio, self.distances, self.floors)

    def support_error(self, m: int) -> Interval:
        """The guidance error of M actions by themselves. Raises KeyError where not measured."""
        return bootstrap(relative, self.by_support[m].sum(axis=1), self.sizes.sum(axis=1))

    @property
    def effective_share(self) -> Interval:
        """Mean effective share of the behavior's actions."""
        return bootstrap(ratio, self.effective, np.ones_like(self.effective))

    def error_at(self, time: int) -> float:
        """Relative error at the time of that index."""
        return relative(self.errors[:, time].sum(), self.sizes[:, time].sum())

    def as_dict(self) -> dict[str, Any]:
        """Estimates, intervals and what they were made of, for JSON."""
        return {
            "guidance_error": list(self.guidance_error),
            "distance": list(self.distance),
            "effective_share": list(self.effective_share),
            "times": list(self.times),
            **({"by_support": self._supports()} if self.by_support else {}),
            **{
                name: np.round(getattr(self, name), 6).tolist()
                for name in ("errors", "sizes", "distances", "floors", "effective")
            },
        }

    def _supports(self) -> dict[str, Any]:
        """By M, for JSON."""
        return {
            str(m): {
                "guidance_error": list(self.support_error(m)),
                "errors": np.round(errors, 6).tolist(),
            }
            for m, errors in self.by_support.items()
        }

    def __repr__(self) -> str:
        return f"Exactness(guidance error {self.guidance_error.percent()})"

    def __str__(self) -> str:
        supports = "".join(
            f"\nerror of {m} actions {self.support_error(m).percent()}" for m in self.by_support
        )
        return (
            f"exactness of w = 1 in {len(self.effective)} states\n"
            f"guidance error      {self.guidance_error.percent()}\n"
            f"distance of samples {self.distance.times()} times that of two resampled sets\n"
            f"effective share     {self.effective_share.percent()}{supports}"
        )


def relative(error: float, size: float) -> float:
    """Root of a ratio; 0 where the exact guidance, or by chance the error, is not above 0."""
    return float(np.sqrt(max(error, 0.0) / size)) if size > 0.0 else 0.0


def ratio(over: float, under: float) -> float:
    """Their ratio; 1 where the second is 0."""
    return float(over / under) if under > 0.0 else 1.0


def bootstrap(
    statistic: Callable[[float, float], float],
    over: NDArray[np.float64],
    under: NDArray[np.float64],
) -> Interval:
    """A statistic of two sums over states (S,) each, with its percentile interval."""
    rows = np.random.default_rng(0).integers(len(over), size=(RESAMPLES, len(over)))
    sums = zip(over[rows].sum(axis=1), under[rows].sum(axis=1), strict=True)
    low, high = np.quantile([statistic(a, b) for a, b in sums], [0.025, 0.975])
    return Interval(statistic(over.sum(), under.sum()), float(low), float(high))


@usual_torch()
@torch.no_grad()
def exactness(
    agent: Guided,
    dataset: OfflineDataset,
    states: int = 64,
    *,
    samples: int = 4096,
    support: Sequence[int] = (),
    seed: int = 0,
    progress_bar: bool | None = None,
) -> Exactness:
    """Measure the guidance of a trained agent in random states of its dataset.

    `samples` actions of the behavior are drawn in every state; with `support`, as many more as its
    largest number, for the f of so few actions. The agent stays as it is. Raises RuntimeError
    before the training's end, and where nothing is guided.
    """
    states, samples = check_count("states", states, 2), check_count("samples", samples, 64)
    support = [check_count("support", m, 2) for m in support]
    if not agent.is_trained:
        raise RuntimeError("the agent is not trained to the end: call learn(dataset)")
    if not agent.critic.ranks:
        raise RuntimeError("the critic ranks no actions on these data: nothing is guided")
    data = agent.prepare(dataset)
    generator = torch.Generator(agent.device).manual_seed(seed)
    rows = torch.randperm(len(data.states), generator=generator, device=data.device)
    beta = _inverse_temperature(agent, data, rows[-STATES_FOR_UNIT:], generator)
    rows, found = rows[:states], []
    with progress(len(rows), "exactness", progress_bar, leave=False) as bar:
        for row in rows:
            condition = agent.behavior.condition(data, row[None])
            found.append(_in_state(agent, condition, beta, samples, support, generator))
            bar.update()
    of_all = [np.array(column, dtype=np.float64) for column in zip(*found, strict=True)]
    errors, sizes, distances, floors, effective, few = of_all
    by_support = {m: few[:, number] for number, m in enumerate(support)}
    return Exactness(TIMES, errors, sizes, distances, floors, effective, by_support)


def _inverse_temperature(
    agent: Guided, data: Batches, rows: Tensor, generator: torch.Generator
) -> Tensor:
    """Beta in the unit of Q, which files do not keep, from some states' support actions."""
    condition = agent.behavior.condition(data, rows.to(data.device))
    z = _draw(agent, condition, agent.config.support_actions, None, generator)
    return agent.inverse_temperature(agent.critic.target(condition[:, None], z))


def _draw(
    agent: Guided,
    condition: Tensor,
    n: int,
    guidance: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None,
    generator: torch.Generator,
) -> Tensor:
    """N actions in every state (B, S), in the behavior's coordinates and bounds, (B, n, A)."""
    behavior = agent.behavior
    repeated = condition.repeat_interleave(n, dim=0)
    shape = (len(repeated), behavior.action_dim)
    noise = torch.randn(shape, generator=generator, device=agent.device)
    parts = [
        behavior.average.sample(
            some,
            of,
            guidance=guidance,
            guidance_scale=0.0 if guidance is None else 1.0,
            guidance_bound=agent.config.guidance_bound,
            solver=agent.solver,
            steps=agent.solver_steps,
            spacing=agent.config.spacing,
        )
        for some, of in zip(noise.split(MOST_ROWS), repeated.split(MOST_ROWS), strict=True)
    ]
    z = torch.cat(parts).unflatten(0, (len(condition), n))
    return behavior.inside(condition[:, None], z)


def _scaled(agent: Guided, condition: Tensor, z: Tensor, beta: Tensor) -> Tensor:
    """f_0 of actions (1, N, A) in a state (1, S), (N,)."""
    q: Tensor = agent.critic.target(condition[:, None], z)
    if agent.energy.needs_energy:
        return torch.squeeze(beta * (q - q.mean()), dim=0)
    return torch.squeeze(agent.critic.scaled_energies(q.clone(), beta), dim=0)


def _in_state(
    agent: Guided,
    condition: Tensor,
    beta: Tensor,
    samples: int,
    support: Sequence[int],
    generator: torch.Generator,
) -> tuple[list[float], list[float], float, float, float, list[list[float]]]:
    """Errors and sizes per time, distance, floor, effective share, and errors of `support`.

    All of them in one state (1, S).
    """
    half, few = samples // 2, samples // 8
    n = 2 * half + few
    z = _draw(agent, condition, n + max(support, default=0), None, generator)
    f_0, z = _scaled(agent, condition, z, beta), z[0]
    effective = float(1.0 / torch.sum(torch.softmax(f_0[:n], dim=0) ** 2)) / n
    schedule = agent.behavior.average.schedule
    parts = [slice(0, half), slice(half, 2 * half), slice(2 * half, n)]
    first, second = (EmpiricalTilt(z[part], f_0[part], schedule) for part in parts[:2])
    sets = [_resampled(z[part], f_0[part], few, generator) for part in parts]
    t = torch.tensor(TIMES, device=agent.device).repeat_interleave(ROWS_PER_TIME)
    chosen = torch.randint(few, (len(t),), generator=generator, device=agent.device)
    noise = torch.randn(len(t), z.shape[1], generator=generator, device=agent.device)
    x_t = diffuse(sets[2][chosen], t, noise, schedule)

    exact, sigma = (first.gradient(x_t, t), second.gradient(x_t, t)), schedule.sigma(t)
    gradient = agent.energy.gradient(x_t, t, condition.expand(len(t), -1))
    errors, sizes = map(_by_time, compare_with_pair(gradient, *exact, sigma))
    by_support = []
    for m in support:
        own = slice(n, n + min(SETS_OF_SUPPORT, max(support) // m) * m)
        tilts = [
            EmpiricalTilt(*both, schedule)
            for both in zip(z[own].split(m), f_0[own].split(m), strict=True)
        ]
        found = [compare_with_pair(tilt.gradient(x_t, t), *exact, sigma)[0] for tilt in tilts]
        by_support.append(_by_time(torch.stack(found).mean(dim=0)))
    guided = _draw(agent, condition, few, agent.energy.gradient, generator)[0]
    floor = sliced_wasserstein(sets[0], sets[1])
    distance = _mean([sliced_wasserstein(guided, s) for s in sets[:2]])
    return errors, sizes, distance, floor, effective, by_support


def _by_time(values: Tensor) -> list[float]:
    """Means of the noisy actions (T * ROWS_PER_TIME,) of each time, (T,)."""
    means: list[float] = values.unflatten(0, (len(TIMES), -1)).mean(dim=1).tolist()
    return means


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _resampled(z: Tensor, f_0: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """N of the actions (N, A), each as often as e^{f_0} says, (n, A)."""
    chosen = torch.multinomial(torch.softmax(f_0, dim=0), n, replacement=True, generator=generator)
    return z[chosen]
