"""The six two-dimensional problems of the CEP paper (arXiv 2304.12824, section 5.1).

Each problem draws points of q and their preference e, which is higher where p ~ q exp(beta e) has
more mass (e = -E). The constructions follow the public code of the paper, which takes them from
FFJORD (arXiv 1810.01367). Where e belongs to a hidden label (the moon, the turn of the spiral), it
is not a function of x alone.

As a Gymnasium environment, each problem is a continuous bandit: the observation is constant, the
action is a point divided by `SCALE`, and the reward is e of the nearest of 4096 fixed points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import register
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray
from torch import Tensor

from qgpo.envs.store.writing import write_minari
from qgpo.fields import check_seed

Points = tuple[Tensor, Tensor]
"""points (N, 2) and their preference e (N,)"""

SCALE = 5.0
"""actions in [-1, 1] are points divided by this"""


def _normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator)


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator)


def _pairs(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x, y], dim=-1)


def _on_circle(radius: float | Tensor, angle: Tensor) -> Tensor:
    return _pairs(radius * torch.cos(angle), radius * torch.sin(angle))


def swissroll(n: int, generator: torch.Generator) -> Points:
    """Archimedean spiral 1.5 pi (1 + 2u) with unit noise, all divided by 5; e = |x|^2 / 9."""
    angle = 1.5 * math.pi * (1.0 + 2.0 * _uniform(n, generator))
    x = (_on_circle(angle, angle) + _normal(n, generator)) / 5.0
    return x, (x**2).sum(dim=-1) / 9.0


def rings(n: int, generator: torch.Generator) -> Points:
    """Circles of radius 3 times 1, .75, .5, .25, noise .08; e by r^2.

    From 8.5 on e is 2/3, from 5 on 1/3, from 2 on 1, below 0; the edge at 5 runs through the ring
    of radius 2.25, as in the public code.
    """
    radius = 0.75 * (1.0 + torch.randint(4, (n,), generator=generator))
    angle = 2.0 * math.pi * _uniform(n, generator)
    x = _on_circle(radius, angle) + 0.08 * _normal(n, generator)
    edges = torch.tensor([2.0, 5.0, 8.5])
    levels = torch.tensor([0.0, 1.0, 1.0 / 3.0, 2.0 / 3.0])
    return x, levels[torch.bucketize((x**2).sum(dim=-1), edges, right=True)]


def moons(n: int, generator: torch.Generator) -> Points:
    """Two half circles, noise .1, times 2, shifted by (-1, -.2); e is 0 on one, 1 on the other."""
    label = torch.randint(2, (n,), generator=generator).float()
    angle = math.pi * _uniform(n, generator)
    outer = _on_circle(1.0, angle)
    inner = torch.tensor([1.0, 0.5]) - outer
    x = torch.where(label[:, None] > 0.5, inner, outer) + 0.1 * _normal(n, generator)
    return 2.0 * x + torch.tensor([-1.0, -0.2]), label


def gaussians(n: int, generator: torch.Generator) -> Points:
    """Eight Gaussians of std .5 on a circle of radius 4, divided by 1.414; e = index / 7."""
    index = torch.randint(8, (n,), generator=generator)
    angle = index * (math.pi / 4.0)
    x = _on_circle(4.0, angle) + 0.5 * _normal(n, generator)
    return x / 1.414, index / 7.0


def spirals(n: int, generator: torch.Generator) -> Points:
    """Two arms of turn r = 3 pi sqrt(u), divided by 3, noise .1; e = 1 - r / 10 in [0, 1]."""
    turn = 3.0 * math.pi * torch.sqrt(_uniform(n, generator))
    arm = _pairs(
        -torch.cos(turn) * turn + 0.5 * _uniform(n, generator),
        torch.sin(turn) * turn + 0.5 * _uniform(n, generator),
    )
    side = 2.0 * torch.randint(2, (n, 1), generator=generator) - 1.0
    x = side * arm / 3.0 + 0.1 * _normal(n, generator)
    return x, (1.0 - turn / 10.0).clamp(0.0, 1.0)


def checkerboard(n: int, generator: torch.Generator) -> Points:
    """Squares of side 2 on [-4, 4]^2; e = 1 where 0 < x <= 2 or x <= -2, else 0."""
    first = 4.0 * _uniform(n, generator) - 2.0
    second = _uniform(n, generator) - 2.0 * torch.randint(2, (n,), generator=generator)
    x = 2.0 * _pairs(first, second + torch.floor(first) % 2.0)
    horizontal = x[:, 0]
    preferred = ((horizontal > 0.0) & (horizontal <= 2.0)) | (horizontal <= -2.0)
    return x, preferred.float()


TOY_PROBLEMS: dict[str, Callable[[int, torch.Generator], Points]] = {
    "swissroll": swissroll,
    "rings": rings,
    "moons": moons,
    "8gaussians": gaussians,
    "2spirals": spirals,
    "checkerboard": checkerboard,
}


def draw_toy(problem: str, n: int, seed: int) -> Points:
    """Draw n points of q (n, 2) with their preference e (n,)."""
    if problem not in TOY_PROBLEMS:
        raise ValueError(f"problem={problem!r}, expected one of {list(TOY_PROBLEMS)}")
    return TOY_PROBLEMS[problem](n, torch.Generator().manual_seed(check_seed(seed)))


def resample_toy(points: Tensor, preference: Tensor, beta: float, n: int, seed: int) -> Tensor:
    """Draw n of the points with probability softmax(beta e): samples of p, (n, 2)."""
    weights = torch.softmax(beta * preference.double(), dim=0)
    cumulative = torch.cumsum(weights, dim=0)
    generator = torch.Generator().manual_seed(check_seed(seed))
    u = torch.rand(n, generator=generator, dtype=torch.float64) * cumulative[-1]
    return points[torch.searchsorted(cumulative, u).clamp(max=len(points) - 1)]


class ToyBandit(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One step: the action is a point, the reward its preference e, the episode terminates."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, problem: str = "8gaussians", render_mode: str | None = None) -> None:
        self.points, self.preference = draw_toy(problem, 4096, seed=0)
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """The constant observation."""
        super().reset(seed=seed)
        return np.zeros(1, dtype=np.float32), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """The reward of the point SCALE times the action."""
        point = SCALE * torch.as_tensor(np.asarray(action, dtype=np.float32))
        nearest = int(torch.argmin(((self.points - point) ** 2).sum(dim=-1)))
        return np.zeros(1, dtype=np.float32), float(self.preference[nearest]), True, False, {}


def env_id(problem: str) -> str:
    """The Gymnasium id of a problem's bandit."""
    if problem not in TOY_PROBLEMS:
        raise ValueError(f"problem={problem!r}, expected one of {list(TOY_PROBLEMS)}")
    return f"qgpo/Toy-{problem}-v0"


for _problem in TOY_PROBLEMS:
    register(env_id(_problem), entry_point="qgpo.envs.toy:ToyBandit", kwargs={"problem": _problem})


def make_toy_dataset(
    problem: str, dataset_id: str | None = None, n: int = 5_000, seed: int = 1
) -> str:
    """Write a Minari dataset of n one-step episodes of q; returns its id.

    Actions outside the action space (the far tails) are clipped. The reward of a point is its e,
    so that the agent has the task of the study: p ~ q exp(beta e).
    """
    dataset_id = dataset_id or f"toy/{problem}-v0"
    points, preference = draw_toy(problem, n, seed)
    actions = (points / SCALE).clamp(-1.0, 1.0).numpy()
    observations = np.zeros((2, 1), dtype=np.float32)
    episodes = [
        EpisodeBuffer(
            id=i,
            observations=observations,
            actions=actions[i : i + 1],
            rewards=[float(preference[i])],
            terminations=[True],
            truncations=[False],
        )
        for i in range(n)
    ]
    write_minari(
        dataset_id,
        episodes,
        env_id(problem),
        "samples of q",
        f"{n} one-step episodes of the two-dimensional problem {problem}, seed {seed}: the action "
        f"is a point divided by {SCALE:g}, the reward its preference e.",
    )
    return dataset_id
