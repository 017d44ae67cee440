"""A whole benchmark: which cells are finished, what the others will take, and running them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qgpo.agents.core.checkpoint import read_header
from qgpo.agents.guided.policy import GuidedPolicy
from qgpo.experiments.cells import check_same_training, read_config, read_result
from qgpo.experiments.folder import RunFolder
from qgpo.experiments.plan import Cell
from qgpo.experiments.workers import Outcome, run_locally, run_on_ray


@dataclass(frozen=True)
class Standing:
    """Where a cell stands before the benchmark goes on."""

    cell: Cell
    result: dict[str, Any] | None
    """what was measured, where it is finished"""
    timesteps: int
    """of its last checkpoint; 0 where there is none"""
    seconds: float | None
    """what it took or, by estimate, what is left of it; None where nothing is known"""
    source: str
    """where the seconds are from"""

    @property
    def state(self) -> str:
        """For the table."""
        if self.result is not None:
            return "finished"
        return f"goes on from {self.timesteps}" if self.timesteps else "new"


@dataclass(frozen=True)
class Benchmark:
    """Cells, the folder of their run folders, and the folder of their results."""

    cells: list[Cell]
    runs: Path
    """`runs/<cell>/`: checkpoints, metrics, logs"""
    results: Path
    """`results/<cell>.json`: what was measured; a cell with a file here is finished"""

    def standings(self) -> list[Standing]:
        """Every cell. Raises CellError where a folder holds something else than the plan says."""
        results = {cell.name: self._result(cell) for cell in self.cells}
        return [self._standing(cell, results) for cell in self.cells]

    def _path(self, cell: Cell) -> Path:
        return self.results / f"{cell.name}.json"

    def _result(self, cell: Cell) -> dict[str, Any] | None:
        """Its result; None too where the plan now asks for another evaluation of the training."""
        folder = RunFolder(self.runs / cell.name)
        if folder.config.exists():
            check_same_training(cell, read_config(folder), folder.config)
        result = read_result(self._path(cell))
        if result is None:
            return None
        check_same_training(cell, result["measured"], self._path(cell))
        return result if cell.completed(result["measured"]) == cell.measured else None

    def _standing(self, cell: Cell, results: dict[str, dict[str, Any] | None]) -> Standing:
        own = results[cell.name]
        if own is not None:
            return Standing(cell, own, 0, _seconds(own), "measured")
        alike = [c for c in self.cells if c.label == cell.label and results[c.name] is not None]
        alike = [c for c in alike if c.dataset == cell.dataset] or alike
        known = [_seconds(result) for c in alike if (result := results[c.name]) is not None]
        if known:
            seconds, source = float(np.mean(known)), f"mean of {len(known)} finished"
        elif cell.estimate_minutes is not None:
            seconds, source = 60.0 * cell.estimate_minutes, "the plan's estimate"
        else:
            return Standing(cell, None, self._timesteps(cell), None, "unknown")
        timesteps = self._timesteps(cell)
        if timesteps or cell.adopt is not None:
            agent = cell.agent_class(cell.config, device="cpu")
            adopted = agent.shared_timesteps if isinstance(agent, GuidedPolicy) else 0
            seconds *= 1.0 - (timesteps or adopted) / agent.total_timesteps
        return Standing(cell, None, timesteps, seconds, source)

    def _timesteps(self, cell: Cell) -> int:
        checkpoint = RunFolder(self.runs / cell.name).checkpoint
        return int(read_header(checkpoint)["num_timesteps"]) if checkpoint.exists() else 0

    def run(
        self,
        cells: Sequence[Cell],
        report: Callable[[Outcome], None],
        workers: int = 2,
        ray_address: str | None = None,
    ) -> list[Outcome]:
        """Run the cells, keep each result as it comes, and return the failed ones.

        In `workers` processes on this machine, or on the Ray cluster at `ray_address`. Ctrl-C
        stops all with checkpoints and raises KeyboardInterrupt.
        """
        self.runs.mkdir(parents=True, exist_ok=True)
        self.results.mkdir(parents=True, exist_ok=True)
        failed = []

        def keep(outcome: Outcome) -> None:
            if outcome.result is None:
                failed.append(outcome)
            else:
                folder = RunFolder(self.results)
                folder.write_json(self._path(outcome.cell), outcome.result, indent=None)
            report(outcome)

        if ray_address is None:
            run_locally(cells, self.runs, workers, keep)
        else:
            run_on_ray(cells, self.runs, ray_address, keep)
        return failed


def _seconds(result: dict[str, Any]) -> float:
    """Of training and evaluation, as far as they were measured."""
    return float(result["training"]["wall_seconds"] + (result["evaluation_seconds"] or 0.0))
