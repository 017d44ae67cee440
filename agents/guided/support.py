"""The support part: M actions of the behavior for every observation of the dataset.

They are the only actions that values are taken over, so that Q is never asked about actions that
the data do not have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from qgpo.agents.core.batches import Batches
from qgpo.agents.core.collected import collected_rows
from qgpo.agents.core.training import Training, set_generator
from qgpo.agents.guided.behavior import Behavior
from qgpo.diffusion import Diffusion, Metrics

ROWS_PER_CHUNK = 2048
"""rows per network call where tables over all states are filled: few enough to stay in cache"""
STATE = "generator/support"
"""table with the generator's state from which the support is drawn"""


class Support:
    """`tables["support"]` (R, M, A), in the behavior's coordinates, with guidance off.

    The next state of transition i is row state_index[i] + 1, so current and next states share the
    table. The same generator state makes the same actions, so the table need not be saved.
    """

    def __init__(
        self, behavior: Behavior, training: Training, source: Callable[[], Diffusion]
    ) -> None:
        self.config = behavior.config
        self.behavior = behavior
        self.training = training
        self.source = source
        """the model from which actions are drawn"""

    @property
    def states_per_chunk(self) -> int:
        """States whose actions are drawn in one call."""
        return max(1, ROWS_PER_CHUNK // self.config.support_actions)

    def check_space(self, data: Batches) -> None:
        """Raise DiskFullError where the table, and the critic's of the same rows, do not fit."""
        if "support" not in self.training.tables:
            shape = (len(data.states), self.config.support_actions)
            data.check_tables((*shape, data.actions.shape[-1]), shape)

    def chunks(self, data: Batches) -> int:
        """Steps of the stage."""
        return math.ceil(len(data.states) / self.states_per_chunk)

    def check_tables(self, data: Batches) -> None:
        """Raise ValueError for tables, from a file, that are not of as many rows as the data.

        What was collected online has rows after those of the dataset, once it was learned from.
        """
        tables, done = self.training.tables, self.training.progress["support"]
        later = collected_rows(self.training)
        rows = {"support": len(data.states), "returns": len(data)}
        wrong = [
            name
            for (name, fewest), more in zip(rows.items(), later, strict=True)
            if name in tables and not fewest <= len(tables[name]) <= fewest + more
        ]
        if wrong or (STATE in tables and done > self.chunks(data)):
            raise ValueError(
                f"this agent's tables {wrong or ['support']} do not fit the dataset that its "
                "file names: the file is damaged; use an earlier copy"
            )

    def generate(self, data: Batches) -> None:
        """Draw the actions of all states."""
        self.restore(data)
        draw = partial(self._draw, data)
        self.training.run_stage("support", self.chunks(data), draw, gradient_steps=False)

    def regenerate(self, data: Batches) -> None:
        """Draw all actions again, from today's source.

        After Ctrl-C the generator has its previous state: a resumed training begins here again.
        """
        training = self.training
        before = training.generator.get_state()
        training.tables[STATE] = before
        for chunk in range(training.progress["support"]):
            self._draw(data, chunk)
            if training.interrupted:
                training.generator.set_state(before)
                training.stop_if_interrupted("while the support was being regenerated")

    def extend(self, data: Batches, state: Tensor | None = None) -> None:
        """Draw the actions of the states for which there are none yet, after those that have.

        With the `state` of the generator from which the others were drawn, draw all again.
        """
        training = self.training
        tables, now = training.tables, training.generator.get_state()
        shape = (len(data.states), self.config.support_actions, data.actions.shape[-1])
        table, known = data.table(shape), tables.get("support", torch.zeros(0, *shape[1:]))
        table[: len(known)] = known
        tables["support"] = table
        if state is not None:
            set_generator(training.generator, state, training.seed)
        for first in range(len(known), len(table), self.states_per_chunk):
            self._fill(data, slice(first, first + self.states_per_chunk), first)
        if state is not None:
            training.generator.set_state(now)

    def _draw(self, data: Batches, step: int) -> Metrics:
        """Fill the step-th chunk of the table. It has no metrics."""
        chosen = slice(step * self.states_per_chunk, (step + 1) * self.states_per_chunk)
        self._fill(data, chosen, step + 1)
        return {}

    @torch.no_grad()
    def _fill(self, data: Batches, chosen: slice, step: int) -> None:
        """Fill those rows of the table; `step` is for the error."""
        c = self.config
        condition = self.behavior.normalizer(data.states[chosen].to(data.device))[:, None]
        shape = (len(condition), c.support_actions, data.actions.shape[-1])
        noise = self.training.normal(*shape)
        z = self.source().sample(
            noise.flatten(0, 1),
            condition.expand(-1, c.support_actions, -1).flatten(0, 1),
            solver=c.solver,
            steps=c.support_solver_steps,
            spacing=c.spacing,
        )
        actions = self.behavior.within_bounds(condition, z.reshape(shape))
        if not bool(torch.isfinite(actions).all()):
            raise self.training.non_finite("support/actions", math.nan, step)
        encoded = self.behavior.whitening.encode(condition, actions)
        self.training.tables["support"][chosen] = encoded

    def restore(self, data: Batches) -> None:
        """Allocate the table; fill it as far as the stage had come where it was not saved."""
        training = self.training
        tables, done = training.tables, training.progress["support"]
        if "support" in tables:
            return
        if done == 0:
            tables[STATE] = training.generator.get_state()
        elif STATE not in tables:
            return  # trained to the end: no stage needs the table
        shape = (len(data.states), self.config.support_actions, data.actions.shape[-1])
        tables["support"] = data.table(shape)
        now = training.generator.get_state()
        set_generator(training.generator, tables[STATE], training.seed)
        for step in range(done):
            self._draw(data, step)
        training.generator.set_state(now)
