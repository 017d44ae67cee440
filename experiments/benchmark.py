"""A whole benchmark: which cells are finished, what the others will take, and running them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qgpo.agents.core.checkpoint import read_header
from qgpo.agents.guided.adoption import same_critic
from qgpo.agents.guided.policy import GuidedPolicy
from qgpo.agents.registry import agent_class
from qgpo.envs.play.scores import scale_label
from qgpo.envs.text import readable
from qgpo.experiments import documents
from qgpo.experiments.documents import Document, check_same_training, evaluations_from_json
from qgpo.experiments.folder import RunFolder
from qgpo.experiments.keeping import show_and_write
from qgpo.experiments.packing import PROVENANCE, read_what_can_be, write_document
from qgpo.experiments.plan import Cell
from qgpo.experiments.workers import Outcome, run_locally, run_on_ray
from qgpo.files import check_writable


class Standing(NamedTuple):
    """Where a cell stands before the benchmark goes on."""

    cell: Cell
    result: Document | None
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
        return f"continues from {self.timesteps}" if self.timesteps else "new"


@dataclass(frozen=True)
class Benchmark:
    """Cells, the folder of their run folders, and the folder of their results."""

    cells: list[Cell]
    runs: Path
    """`runs/<cell>/`: checkpoints, metrics, logs"""
    results: Path
    """`results/<cell>.json`, or tables of these: what was measured; such a cell is finished"""

    def standings(self) -> list[Standing]:
        """Every cell.

        Raises DocumentError where a folder holds another training than the plan, ResultError for
        a cell's result that cannot be read; other files in the folder of results do not matter.
        """
        measured, errors = read_what_can_be(self.results)
        for name in [PROVENANCE, *(cell.name for cell in self.cells)]:
            if name in errors:
                raise errors[name]
        results = {cell.name: self._result(cell, measured.get(cell.name)) for cell in self.cells}
        return [self._standing(cell, results) for cell in self.cells]

    def _result(self, cell: Cell, measured: Document | None) -> Document | None:
        """Its result; None too where the plan now asks for another evaluation of the training."""
        config = RunFolder(self.runs / cell.name).config
        if config.exists():
            check_same_training(cell, config, documents.read(config))
        if measured is None:
            return None
        path = self.results / f"{cell.name}.json"
        document = documents.upgrade(measured, path)
        check_same_training(cell, path, document)
        return document if document["measured"] == cell.measured else None

    def _standing(self, cell: Cell, results: dict[str, Document | None]) -> Standing:
        result = results[cell.name]
        if result is not None:
            return Standing(cell, result, 0, _seconds(result), "measured")
        measured = [(c, _seconds(r)) for c in self.cells if (r := results[c.name]) is not None]
        alike = [(c, s) for c, s in measured if c.label == cell.label]
        known = [s for c, s in alike if c.dataset_id == cell.dataset_id] or [s for _, s in alike]
        checkpoint = RunFolder(self.runs / cell.name).checkpoint
        timesteps = int(read_header(checkpoint)["num_timesteps"]) if checkpoint.exists() else 0
        if known:
            seconds, source = float(np.mean(known)), f"mean of {len(known)} finished"
        elif cell.estimate_minutes is not None:
            seconds, source = 60.0 * cell.estimate_minutes, "the plan's estimate"
        else:
            return Standing(cell, None, timesteps, None, "unknown")
        if timesteps or cell.donor_label is not None:
            agent = agent_class(cell.agent)(cell.config, device="cpu")
            adopted = 0
            if isinstance(agent, GuidedPolicy):
                donor = next((c for c in self.cells if c.name == cell.donor), cell)
                critic_too = cell.donor_dataset is None and same_critic(cell.config, donor.config)
                adopted = agent.shared_timesteps if critic_too else agent.behavior_timesteps
            seconds *= 1.0 - (timesteps or adopted) / agent.total_timesteps
        return Standing(cell, None, timesteps, seconds, source)

    def run(
        self,
        cells: Sequence[Cell],
        report: Callable[[Outcome], None],
        workers: int = 2,
        ray_address: str | None = None,
    ) -> list[Outcome]:
        """Run the cells, keep each result as it comes, and return the failed ones.

        In `workers` processes on this machine, or on the Ray cluster at `ray_address`. Ctrl-C
        stops all with checkpoints and raises KeyboardInterrupt. Raises OSError, before anything
        runs, where no result could be written.
        """
        self.runs.mkdir(parents=True, exist_ok=True)
        for cell in cells:
            check_writable(self.results / f"{cell.name}.json")
        failed = []

        def keep(outcome: Outcome) -> None:
            show_and_write(lambda: report(outcome), lambda: write(outcome))

        def write(outcome: Outcome) -> None:
            if outcome.result is None:
                failed.append(outcome)
                return
            try:
                write_document(self.results, outcome.cell.name, outcome.result)
            except OSError as error:
                why = f"measured, but not written to the results ({error}): run the plan again"
                failed.append(outcome._replace(error=why))

        if ray_address is None:
            run_locally(cells, self.runs, workers, keep)
        else:
            run_on_ray(cells, self.runs, ray_address, keep)
        return failed


def _seconds(result: Document) -> float:
    """Of training and evaluation, as far as they were measured."""
    return float(result["training"]["wall_seconds"] + (result["evaluation_seconds"] or 0.0))


def headline(result: Document) -> str:
    """What a cell's run found, in one line."""
    training, scale = result["training"], result["headline_scale"]
    took = f"trained in {training['wall_seconds']:.0f} s ({training['cpu_seconds']:.0f} CPU)"
    evaluations = dict(evaluations_from_json(result["evaluations"]))
    if not evaluations:
        return took
    shown = scale if scale in evaluations else list(evaluations)[-1]
    played, named = evaluations[shown], "" if shown == scale else f"{scale_label(shown)}: "
    if played.successes is not None:
        return f"{named}success {played.success_text}; {took}"
    normalised = "" if played.score is None else f", normalised {played.score:.1f}"
    return f"{named}return {readable(played.mean)}{normalised}; {took}"
