"""Training in stages: the registers, one loop and one optimizer step, for every agent and model.

Everything that training needs lives in the registers, which checkpoints write whole: `networks`,
`optimizers`, `tables` (tensors that stages hand on), `progress` (steps done per stage) and the
generator's state. So nothing can be forgotten, and resuming equals not stopping.
"""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, TypeVar

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import get_device
from torch import Tensor, nn

from qgpo.agents.core.process import Turn, seeded, usual_torch
from qgpo.agents.core.shards import add_gradients, any_process, n_processes, share
from qgpo.critic import polyak_update
from qgpo.diffusion import Metrics
from qgpo.envs.progress import progress

ONLINE, UPDATES = "online", "online_updates"
"""progress beside the stages': steps taken in an environment, and updates made on what they gave"""
LIKELY_CAUSES = (
    "Likely causes: a learning rate or beta that is too high, or rewards or observations of "
    "very different sizes in the dataset (see reward_tuning and normalize_observations)"
)

ModuleT = TypeVar("ModuleT", bound=nn.Module)

ASK_TO_STOP = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
TO_RESUME = (
    "to continue later: save(path), then load(path).learn(dataset, reset_num_timesteps=False)"
)
TO_RESUME_ONLINE = (
    "to continue later: save(path), then load(path).learn_online(env, timesteps, dataset)"
)


MATTERS = {
    "excess": "excess cross entropy",
    "mse": "squared error of the mean",
    "actor_loss": "loss of the policy",
    "loss": "loss",
    "q": "mean Q",
}
"""metrics by which a stage is judged when it ends, the most telling one first, in words"""
FEWEST_ROWS = 20
"""of metrics in a stage, however short it is, so that a picture has curves"""


class TrainingStoppedError(Exception):
    """A callback asked to stop."""


class NonFiniteError(RuntimeError):
    """A loss, a gradient or a parameter became NaN or infinite."""


class Training:
    """The registers of a training, and the steps that change them."""

    def __init__(
        self,
        stages: Sequence[str],
        seed: int,
        device: torch.device,
        likely_causes: str = LIKELY_CAUSES,
        to_resume: str = TO_RESUME,
    ) -> None:
        self.stages = tuple(stages)
        self.seed = seed
        self.device = device
        self.likely_causes, self.to_resume = likely_causes, to_resume
        self.turn = Turn()
        self.generator = torch.Generator(device)
        self.logger = self.silent = Logger(folder=None, output_formats=[])
        """the SB3 logger; `silent` until another one takes its place"""
        self.history: dict[str, list[dict[str, float]]] | None = None
        """per stage, rows of what is logged, where they are to be kept"""
        self.log_interval = 1000
        self.callback: BaseCallback | None = None
        self.progress_bar: bool | None = False
        self.verbose = False
        self.tell: Callable[[str], None] | None = None
        """gets one line when a stage ends; without it, the line goes where a bar is shown, or to
        standard output if `verbose`"""
        self.interrupted = False
        self.updating = False
        """whether updates on collected data were begun that have not all been made"""
        self.saved: str | None = None
        """the last checkpoint, for messages"""
        self.reset()
        self.start_clock()

    def reset(self) -> None:
        """Empty the registers."""
        self.networks = nn.ModuleDict()
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.tables: dict[str, Tensor] = {}
        self.built: dict[str, Tensor] = {}
        """shapes and types of the networks' tensors, as the configuration made them"""
        self.built_groups: dict[str, list[dict[str, Any]]] = {}
        """settings of the optimizers likewise"""
        self.shared = False
        """whether several processes share the networks' work"""
        self.progress = dict.fromkeys(self.stages, 0)
        self.num_timesteps = 0
        self.updating = False
        self.stage: str | None = None
        self.generator.manual_seed(self.seed)

    def end_online(self) -> None:
        """Forget steps in an environment: timesteps are the gradient steps of the stages again."""
        if self.progress.pop(ONLINE, None) is not None:
            del self.progress[UPDATES]
            counted = [n for stage, n in self.progress.items() if stage in self.optimizers]
            self.num_timesteps, self.stage = sum(counted), self.stages[-1]

    def start_clock(self) -> None:
        """Count time and timesteps per second from here."""
        self.started, self.started_at = time.monotonic(), self.num_timesteps

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the callback and the logger, which hold open files."""
        return {**self.__dict__, "callback": None, "logger": self.silent, "tell": None}

    # Networks -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def building(self, reset: Callable[[], None]) -> Iterator[None]:
        """Around what builds the networks: it draws from the seed; where it fails, `reset`.

        Half an agent could be saved, and not be loaded.
        """
        try:
            with usual_torch():
                with seeded(self.seed):
                    yield
                self.networks.to(self.device).train(False)
                self._note_built()
        except BaseException:
            reset()
            raise

    def _note_built(self) -> None:
        self.built = {k: v.to("meta") for k, v in self.networks.state_dict().items()}
        self.built_groups = {
            name: optimizer.state_dict()["param_groups"]
            for name, optimizer in self.optimizers.items()
        }

    def add(self, name: str, network: ModuleT) -> ModuleT:
        """Register a network that no optimizer changes; returns it."""
        self.networks[name] = network
        return network

    def add_trained(self, name: str, network: ModuleT, optimizer: str | None = None) -> ModuleT:
        """Register a network and, if it has parameters, their Adam; `optimize` sets its rate.

        The optimizer has the network's name unless it is given another.
        """
        parameters = list(network.parameters())
        if parameters:
            self.optimizers[optimizer or name] = torch.optim.Adam(parameters, fused=True)
        return self.add(name, network)

    def add_copy(self, name: str, network: ModuleT) -> ModuleT:
        """Register a copy that follows a network without a gradient."""
        return self.add(name, copy.deepcopy(network).requires_grad_(False))

    def share(self, network: ModuleT) -> ModuleT:
        """The network, whose batches are divided among the processes where there are several."""
        self.shared = n_processes() > 1
        return share(network)

    # The loop -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def running(self, callback: BaseCallback, model: Any, scope: dict[str, Any]) -> Iterator[None]:
        """Around the stages of a training: the callback's beginning, steps and end.

        A callback that asks to stop ends the block. Signals stop after the step under way, and
        after the last one when the callback has ended.
        """
        self.callback = callback
        callback.init_callback(model)
        try:
            with usual_torch(), on_signals(self.interrupt):
                callback.on_training_start(scope, globals())
                with contextlib.suppress(TrainingStoppedError):
                    yield
                callback.on_training_end()
            self.stop_if_interrupted("after the last step")
        finally:
            self.callback = None

    def run_stage(
        self,
        stage: str,
        total: int,
        update: Callable[[int], Metrics],
        gradient_steps: bool = True,
    ) -> None:
        """Call `update(step)` from where the stage stands up to `total`.

        Metrics are averaged over `log_interval` steps, or a twentieth of the stage where that is
        less, and logged. A gradient step counts as a
        timestep and is one to callbacks; to them, any other step is a rollout. Raises RuntimeError
        within another stage of the same agent.
        """
        with usual_torch(), self.turn.stage():
            self._run_stage(stage, total, update, gradient_steps)

    def _run_stage(
        self, stage: str, total: int, update: Callable[[int], Metrics], gradient_steps: bool
    ) -> None:
        self.stage = stage
        position = "   "  # beside the stages of a training on data
        if stage in self.stages:
            position = f"{self.stages.index(stage) + 1}/{len(self.stages)}"
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}  # not every step has every metric
        what, done = f"{position} {stage:9s}", self.progress[stage]
        began, means = time.monotonic(), dict[str, float]()
        bar = progress(total, what, self.progress_bar, initial=done, mininterval=0.5, leave=False)
        shown = not bar.disable  # a bar that is closed is disabled
        with bar:
            for step in range(done, total):
                metrics = update(step)
                self.progress[stage] = step + 1
                self.num_timesteps += int(gradient_steps)
                for name, value in metrics.items():
                    sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
                    counts[name] = counts.get(name, 0) + 1
                bar.update()
                if is_logged(step + 1, total, self.log_interval):
                    means = {k: float(v) / counts[k] for k, v in sums.items()}
                    self._log(stage, means)
                    if "loss" in means:
                        bar.set_postfix(loss=f"{means['loss']:.4g}")
                    sums, counts = {}, {}
                self._call_back(gradient_steps)
                self.stop_if_interrupted(f"after step {step + 1} of stage {stage!r}")
        if done < total:
            line = stage_line(what, total - done, time.monotonic() - began, means)
            if self.tell is not None:
                self.tell(line)
            elif shown or self.verbose:
                print(line, file=sys.stderr if shown else sys.stdout, flush=True)

    def _call_back(self, gradient_step: bool) -> None:
        """Tell the callback of a step. Raises TrainingStoppedError where it asks to stop."""
        if self.callback is None:
            return
        if not gradient_step:
            self.callback.on_rollout_end()
        elif not self.callback.on_step():
            raise TrainingStoppedError

    def minimize(
        self,
        stage: str,
        total: int,
        loss: Callable[[int], tuple[Tensor, Metrics]],
        rate: float,
        decays: bool = True,
        after: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Run a stage of optimizer steps: each on `loss(step)`, followed by `after(step)`."""

        def update(step: int) -> Metrics:
            learning_rate = half_cosine(rate, step, total, decays)
            metrics = self.descend(stage, *loss(step), learning_rate)
            after(step)
            return metrics

        self.run_stage(stage, total, update)

    def descend(self, name: str, loss: Tensor, metrics: Metrics, learning_rate: float) -> Metrics:
        """One optimizer step on a loss; its metrics and the gradient's norm."""
        return {**metrics, "grad_norm": self.optimize(name, loss, learning_rate)}

    def interrupt(self, *_: object) -> None:
        """Ask the loop to stop after the step under way: a signal's handler."""
        self.interrupted = True

    def stop_if_interrupted(self, when: str) -> None:
        """Raise the KeyboardInterrupt that a signal asked for."""
        if any_process(self.interrupted, self.device) if self.shared else self.interrupted:
            self.interrupted = False
            then = TO_RESUME_ONLINE if ONLINE in self.progress else self.to_resume
            raise KeyboardInterrupt(f"stopped {when}; {then}")

    def _log(self, stage: str, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise self.non_finite(f"{stage}/{name}", value, self.progress[stage])
        if self.history is not None:
            self.history[stage].append({"step": float(self.progress[stage]), **metrics})
        elapsed = max(time.monotonic() - self.started, 1e-9)
        for name, value in metrics.items():
            self.logger.record(f"{stage}/{name}", value)
        self.logger.record("time/stage", stage, exclude="tensorboard")
        self.logger.record("time/stage_steps", self.progress[stage])
        self.logger.record("time/fps", int((self.num_timesteps - self.started_at) / elapsed))
        self.logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps)
        self.logger.dump(self.num_timesteps)

    # The optimizer step -------------------------------------------------------------------

    def optimize(
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
        if self.shared:
            add_gradients(parameters)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not bool(torch.isfinite(loss.detach() + norm)):
            optimizer.zero_grad(set_to_none=True)
            stage, wrong = self.stage or name, ("grad_norm", norm)
            if not torch.isfinite(loss.detach()):
                wrong = ("loss", loss.detach())
            raise self.non_finite(f"{stage}/{wrong[0]}", float(wrong[1]), self.progress[stage] + 1)
        if max_norm < math.inf:
            nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        optimizer.step()
        return norm

    def non_finite(self, what: str, value: float, step: int) -> NonFiniteError:
        """The error for a value that is not finite; it names the last checkpoint."""
        good = (
            f"The last good checkpoint is {self.saved}"
            if self.saved
            else "No checkpoint was written yet"
        )
        return NonFiniteError(
            f"{what} is {value} at step {step} of stage {self.stage!r} (timestep "
            f"{self.num_timesteps}). {good}. {self.likely_causes}"
        )

    # Random numbers -----------------------------------------------------------------------

    def draw(self, n: int, *shape: int) -> Tensor:
        """Uniform row numbers below n, with replacement."""
        return torch.randint(n, shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal noise."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers of [0, 1)."""
        return torch.rand(shape, generator=self.generator, device=self.device)


def of_training(name: str) -> Any:
    """A property of an agent that reads one of its training's registers."""
    return property(attrgetter(f"training.{name}"))


def set_generator(generator: torch.Generator, state: Tensor, seed: int) -> None:
    """Continue from that state; a state of another kind of device is replaced by the seed."""
    if len(state) == len(generator.get_state()):
        generator.set_state(state)
    else:  # other numbers of the same distribution
        generator.manual_seed(seed)


def stage_line(what: str, steps: int, seconds: float, means: dict[str, float]) -> str:
    """What is said of a stage that has ended: its name, its time and the metric that matters."""
    minutes, rest = divmod(round(seconds), 60)
    took = f"{seconds:.1f} s" if seconds < 60 else f"{minutes} min {rest} s"
    line = f"{what} {steps:,} steps in {took}"
    name = next((name for name in MATTERS if name in means), None)
    return line if name is None else f"{line}, {MATTERS[name]} {means[name]:.4g}"


def is_logged(step: int, total: int, interval: int) -> bool:
    """Whether a row of metrics follows that many steps: every `interval`, and at the end.

    Rows of a stage that is too short for FEWEST_ROWS are evenly spaced, so that each is a mean of
    as many steps.
    """
    if total < FEWEST_ROWS * interval:
        return step * FEWEST_ROWS // total > (step - 1) * FEWEST_ROWS // total
    return step % interval == 0 or step == total


def half_cosine(rate: float, step: int, total: int, decays: bool = True) -> float:
    """A learning rate that falls to zero along half a cosine, or stays as it is."""
    return rate * 0.5 * (1.0 + math.cos(math.pi * step / total)) if decays else rate


def average(source: nn.Module, target: nn.Module, decay: float, step: int) -> None:
    """EMA whose first steps count less."""
    polyak_update(source, target, share_of_step(decay, step))


def share_of_step(decay: float, step: int) -> float:
    """Of an average's new value: 1 - min(decay, (1 + step) / (10 + step))."""
    return 1.0 - min(decay, (1.0 + step) / (10.0 + step))


def set_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a copy of an optimizer's state.

    Without the copy it would share its tensors with whoever gave them, and Adam writes into them.
    """
    optimizer.load_state_dict(copy.deepcopy(state))


def choose_device(device: torch.device | str) -> torch.device:
    """The device asked for; `auto` is the GPU where there is one. Raises ValueError for others."""
    if device == "auto":
        return get_device("auto")
    chosen = check_device_name(device)
    try:
        torch.Generator(chosen)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device={str(device)!r} is not available here, expected auto or cpu"
        ) from error
    return chosen


def check_device_name(device: torch.device | str) -> torch.device:
    """The device of that name, here or on another machine. Raises ValueError for other names."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r}, expected auto, cpu, cuda or cuda:N") from error


@contextlib.contextmanager
def on_signals(interrupt: Callable[..., object]) -> Iterator[None]:
    """Call `interrupt` on every signal that asks to stop, in the main thread.

    These are SIGINT (Ctrl-C), SIGTERM, SIGHUP (the terminal is gone) and Windows' SIGBREAK. A
    SIGHUP that is ignored, by nohup, stays so. Other threads get no handler. `interrupt` gets the
    number of the signal and the frame.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {}
    for name in ASK_TO_STOP:
        signum = getattr(signal, name, None)  # each system has some of them
        if signum is None or (name == "SIGHUP" and signal.getsignal(signum) is signal.SIG_IGN):
            continue
        previous[signum] = signal.signal(signum, interrupt)
    try:
        yield
    finally:
        for signum, before in previous.items():
            signal.signal(signum, signal.SIG_DFL if before is None else before)


@contextlib.contextmanager
def until_done() -> Iterator[None]:
    """Let the block end whatever signals ask to stop; KeyboardInterrupt follows where one did.

    For writing what would be lost otherwise: seconds. SIGQUIT and SIGKILL still end the process.
    """
    asked: list[object] = []
    with on_signals(lambda *_: asked.append(None)):
        yield
    if asked:
        raise KeyboardInterrupt("stopped")
