"""Policies without training: uniform actions, and waypoints through a maze."""

from __future__ import annotations

from collections import deque
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from qgpo.envs.tasks.actions import inside, interpolate

Cell = tuple[int, int]
WALL = 1
UNREACHED = -1
"""distance of a cell without a path to the goal"""


class UniformPolicy:
    """Actions drawn uniformly from the action space."""

    def __init__(self, action_space: spaces.Box) -> None:
        self.space = action_space

    def act(
        self, observations: Any, generator: torch.Generator, deterministic: bool = False
    ) -> NDArray[Any]:
        """A batch of B observations to (B, A); `deterministic` takes the middle of the space."""
        first = next(iter(observations.values())) if isinstance(observations, dict) else None
        n = len(observations if first is None else first)
        low, high = self.space.low, self.space.high
        share = torch.full((n, len(low)), 0.5)
        if not deterministic:
            share = torch.rand(share.shape, generator=generator)
        return inside(self.space, interpolate(low, high, share.numpy()))


class WaypointPolicy:
    """Moves through a PointMaze along the shortest path, by proportional-derivative control.

    The force on the ball is `gain` times the vector to the middle of the next cell (to the goal, in
    its cell) minus `damping` times the velocity, plus Gaussian `noise` unless deterministic. The
    line from any point of a cell to the middle of a neighbor stays inside the two cells, so the
    ball touches no wall.
    """

    def __init__(
        self, env: gym.Env[Any, Any], noise: float = 0.5, gain: float = 10.0, damping: float = 1.0
    ) -> None:
        maze = getattr(env.unwrapped, "maze", None)
        parts = env.observation_space
        if maze is None or not isinstance(parts, spaces.Dict) or parts["observation"].shape != (4,):
            raise ValueError(
                f"waypoints need a PointMaze environment, not {env.spec.id if env.spec else env}"
            )
        self.noise, self.gain, self.damping = noise, gain, damping
        self.walls = np.array([[cell == WALL for cell in row] for row in maze.maze_map])
        self.size = float(maze.maze_size_scaling)
        self.distances = cache(self._distances)

    def act(
        self,
        observations: dict[str, NDArray[Any]],
        generator: torch.Generator,
        deterministic: bool = False,
    ) -> NDArray[np.float32]:
        """A batch of B Dict observations to forces (B, 2) in [-1, 1]."""
        states, goals = observations["observation"], observations["desired_goal"]
        targets = np.stack([self.waypoint(s[:2], g) for s, g in zip(states, goals, strict=True)])
        force = self.gain * (targets - states[:, :2]) - self.damping * states[:, 2:]
        if not deterministic:
            force = np.clip(force, -1.0, 1.0)
            force = force + self.noise * torch.randn(force.shape, generator=generator).numpy()
        return np.asarray(np.clip(force, -1.0, 1.0), dtype=np.float32)

    def waypoint(self, position: NDArray[Any], goal: NDArray[Any]) -> NDArray[Any]:
        """The next point on the path from a position (x, y): the middle of a cell, or the goal."""
        here, there = self.cell(position), self.cell(goal)
        distances = self.distances(there)
        if here == there or distances[here] == UNREACHED:
            return goal
        next_cell = min(
            (cell for cell in self._neighbors(here) if distances[cell] != UNREACHED),
            key=lambda cell: int(distances[cell]),
        )
        return self.middle(next_cell)

    def cell(self, position: NDArray[Any]) -> Cell:
        """(row, column) of a position; x grows along columns, y against rows."""
        rows, columns = self.walls.shape
        row = (0.5 * rows * self.size - position[1]) // self.size
        column = (position[0] + 0.5 * columns * self.size) // self.size
        return int(np.clip(row, 0, rows - 1)), int(np.clip(column, 0, columns - 1))

    def middle(self, cell: Cell) -> NDArray[Any]:
        """(x, y) of the middle of a cell."""
        rows, columns = self.walls.shape
        x = (cell[1] + 0.5 - 0.5 * columns) * self.size
        y = (0.5 * rows - cell[0] - 0.5) * self.size
        return np.array([x, y])

    def _distances(self, goal: Cell) -> NDArray[np.int64]:
        """Steps from every cell to the goal, by breadth-first search; UNREACHED without a path."""
        distances = np.full(self.walls.shape, UNREACHED)
        distances[goal] = 0
        queue = deque([goal])
        while queue:
            cell = queue.popleft()
            for neighbor in self._neighbors(cell):
                if distances[neighbor] == UNREACHED:
                    distances[neighbor] = distances[cell] + 1
                    queue.append(neighbor)
        return distances

    def _neighbors(self, cell: Cell) -> list[Cell]:
        """The cells beside a cell that are not walls."""
        row, column = cell
        around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        rows, columns = self.walls.shape
        inside = [(r, c) for r, c in around if 0 <= r < rows and 0 <= c < columns]
        return [cell for cell in inside if not self.walls[cell]]
