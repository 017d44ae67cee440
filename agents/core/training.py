"""Training in stages: one loop, one optimizer step, one log, for every agent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import ClassVar

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import Tensor, nn
from tqdm import tqdm

from qgpo.agents.core.batches import LIKELY_CAUSES, NonFiniteError, TrainingStoppedError
from qgpo.diffusion import Metrics


class StagedTraining:
    """The registers of a training, and the steps that change them."""

    stages: ClassVar[tuple[str, ...]]

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.device = device
        self.networks = nn.ModuleDict()
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.tables: dict[str, Tensor] = {}
        self.progress: dict[str, int] = dict.fromkeys(self.stages, 0)
        self.num_timesteps = 0
        self.stage: str | None = None
        self.generator = torch.Generator(device)
        self.prediction_generator = torch.Generator(device)
        self._logger: Logger | None = None
        self._callback: BaseCallback | None = None
        self._log_interval = 1000
        self._progress_bar = False
        self._interrupted = False
        self._saved: str | None = None
        self._started = time.monotonic()
        self.set_random_seed(seed)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed training and prediction noise."""
        seed = self.seed if seed is None else seed
        self.generator.manual_seed(seed)
        self.prediction_generator.manual_seed(seed)

    def _set_generator(self, state: Tensor, seed: int) -> None:
        """Go on from that state; one of another kind of device gives way to the seed."""
        if len(state) == len(self.generator.get_state()):
            self.generator.set_state(state)
        else:  # other numbers of the same distribution
            self.generator.manual_seed(seed)

    @property
    def logger(self) -> Logger:
        """The SB3 logger (a silent one until `learn` or `set_logger`)."""
        if self._logger is None:
            self._logger = Logger(folder=None, output_formats=[])
        return self._logger

    def set_logger(self, logger: Logger) -> None:
        """Use this logger."""
        self._logger = logger

    def dump_logs(self) -> None:
        """Write what the logger holds (SB3's LogEveryNTimesteps asks)."""
        self.logger.dump(self.num_timesteps)

    def _run_stage(
        self,
        stage: str,
        total: int,
        update: Callable[[int], Metrics],
        gradient_steps: bool = True,
    ) -> None:
        """Call `update(step)` from where the stage stands up to `total`, with all the trimmings.

        One step is one call; it counts as a timestep when it is a gradient step.
        """
        self.stage = stage
        position = f"{self.stages.index(stage) + 1}/{len(self.stages)}"
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}  # not every step has every metric
        with tqdm(
            total=total,
            initial=self.progress[stage],
            desc=f"{position} {stage:9s}",
            disable=not self._progress_bar,
            mininterval=0.5,
        ) as bar:
            for step in range(self.progress[stage], total):
                metrics = update(step)
                self.progress[stage] = step + 1
                self.num_timesteps += int(gradient_steps)
                for name, value in metrics.items():
                    sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
                    counts[name] = counts.get(name, 0) + 1
                bar.update()
                last = step + 1 == total
                if (step + 1) % self._log_interval == 0 or last:
                    self._log(stage, {k: float(v) / counts[k] for k, v in sums.items()})
                    sums, counts = {}, {}
                if self._callback is not None and not self._callback.on_step():
                    raise TrainingStoppedError
                self._stop_if_interrupted(f"after step {step + 1} of stage {stage!r}")

    def _stop_if_interrupted(self, when: str) -> None:
        """Raise the KeyboardInterrupt that a signal asked for."""
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt(
                f"stopped {when}; save(path), and later "
                "load(path).learn(dataset, reset_num_timesteps=False) to go on"
            )

    def _log(self, stage: str, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise self._non_finite(f"{stage}/{name}", value, self.progress[stage])
        if self._logger is None:
            return
        elapsed = max(time.monotonic() - self._started, 1e-9)
        for name, value in metrics.items():
            self._logger.record(f"{stage}/{name}", value)
        self._logger.record("time/stage", stage, exclude="tensorboard")
        self._logger.record("time/stage_steps", self.progress[stage])
        self._logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        self._logger.record("time/total_timesteps", self.num_timesteps)
        self._logger.dump(self.num_timesteps)

    def _optimize(
        self, name: str, loss: Tensor, learning_rate: float, max_norm: float = math.inf
    ) -> Tensor:
        """One optimizer step at the given rate; returns the gradient's norm before clipping.

        Raises NonFiniteError before these parameters are updated. (The check waits for a GPU to
        finish the step; on a CPU it costs nothing.)
        """
        optimizer = self.optimizers[name]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not bool(torch.isfinite(loss.detach() + norm)):
            optimizer.zero_grad(set_to_none=True)
            stage, wrong = self.stage or name, ("grad_norm", norm)
            if not torch.isfinite(loss.detach()):
                wrong = ("loss", loss.detach())
            raise self._non_finite(f"{stage}/{wrong[0]}", float(wrong[1]), self.progress[stage] + 1)
        if max_norm < math.inf:
            nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        optimizer.step()
        return norm

    def _non_finite(self, what: str, value: float, step: int) -> NonFiniteError:
        """The error for a value that is not finite."""
        good = (
            f"The last good checkpoint is {self._saved}"
            if self._saved
            else "No checkpoint was written yet"
        )
        return NonFiniteError(
            f"{what} is {value} at step {step} of stage {self.stage!r} (timestep "
            f"{self.num_timesteps}). {good}. {LIKELY_CAUSES}"
        )
