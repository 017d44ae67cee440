"""OfflineAgent: Stable-Baselines3's contract for agents that learn from a dataset.

Subclasses build their modules in `_build`, train in public stages that call `_run_stage`, and
act in `_act`. Everything that training needs lives in four registers, which checkpoints write
whole: `networks`, `optimizers`, `tables` (tensors that stages hand on) and `progress` (steps
done per stage); so nothing can be forgotten and resuming equals not stopping.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import platform
import signal
import threading
import time
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger, get_device
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor, nn
from tqdm import tqdm

from qgpo.agents.checkpoint import (
    Checkpoint,
    CheckpointError,
    pack_optimizer,
    read_checkpoint,
    unpack_optimizer,
    write_checkpoint,
)
from qgpo.diffusion import Metrics
from qgpo.envs.datasets import OfflineDataset, check_spaces, load_dataset
from qgpo.envs.making import spec_from_json, spec_to_json
from qgpo.envs.reference import ReferenceScores

ConfigT = TypeVar("ConfigT")


class TrainingStoppedError(Exception):
    """Raised inside learn() when a callback asks to stop; learn() itself returns normally."""


class NonFiniteError(RuntimeError):
    """A loss became NaN or infinite."""


@dataclass
class Batches:
    """The dataset on the training device: N transitions over R states (see OfflineDataset)."""

    states: Tensor
    """(R, S)"""
    state_index: Tensor
    """(N,) row of `states` where each transition starts; it ends in the row after"""
    actions: Tensor
    """(N, A) scaled to [-1, 1]"""
    rewards: Tensor
    """(N,) raw"""
    terminations: Tensor
    """(N,) 1.0 where the bootstrap is cut"""
    last_steps: Tensor
    """(N,) 1.0 at the end of each episode"""

    def __len__(self) -> int:
        return len(self.rewards)


class OfflineAgent(ABC, Generic[ConfigT]):
    """An agent that learns from an OfflineDataset and acts like an SB3 algorithm."""

    name: ClassVar[str]
    config_class: ClassVar[type[Any]]
    presets: ClassVar[dict[str, Any]]
    stages: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        config: ConfigT | str = "laptop",
        env: gym.Env[Any, Any] | VecEnv | str | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "auto",
        verbose: int = 0,
        tensorboard_log: str | None = None,
    ) -> None:
        if isinstance(config, str):
            if config not in self.presets:
                raise ValueError(
                    f"preset={config!r}, expected one of {sorted(self.presets)} or a "
                    f"{self.config_class.__name__}"
                )
            config = self.presets[config]
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"config is a {type(config).__name__}, expected a preset's name "
                f"{sorted(self.presets)} or a {self.config_class.__name__}"
            )
        self.config: ConfigT = config  # type: ignore[assignment]
        self.seed = seed
        self.device = get_device(device)
        self.verbose = verbose
        self.tensorboard_log = tensorboard_log
        self.observation_space: spaces.Box | None = None
        self.action_space: spaces.Box | None = None
        self.networks = nn.ModuleDict()
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.tables: dict[str, Tensor] = {}
        self.progress: dict[str, int] = dict.fromkeys(self.stages, 0)
        self.num_timesteps = 0
        self.stage: str | None = None
        self.dataset_id: str | None = None
        self.dataset_fingerprint: str | None = None
        self.env_spec: EnvSpec | None = None
        self.reference: ReferenceScores | None = None
        self.generator = torch.Generator(self.device)
        self.prediction_generator = torch.Generator(self.device)
        self._env: VecEnv | None = None
        self._logger: Logger | None = None
        self._batches: Batches | None = None
        self._callback: BaseCallback | None = None
        self._log_interval = 1000
        self._progress_bar = False
        self._interrupted = False
        self._started = time.monotonic()
        self.set_random_seed(seed)
        if env is not None:
            self.set_env(env)

    # What a subclass says -----------------------------------------------------------------

    @abstractmethod
    def _build(self, observation_dim: int, action_dim: int) -> None:
        """Fill `networks` and `optimizers`."""

    @abstractmethod
    def _train(self, dataset: OfflineDataset) -> None:
        """Call the stages in the paper's order."""

    @abstractmethod
    def _act(self, observations: Tensor, deterministic: bool) -> Tensor:
        """(B, S) to actions (B, A) in [-1, 1]."""

    # Training -----------------------------------------------------------------------------

    def learn(
        self,
        dataset: OfflineDataset | str,
        callback: MaybeCallback = None,
        log_interval: int = 1000,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train on the dataset through all stages.

        Timesteps are gradient steps over all stages. `callback` is any SB3 callback; returning
        False from its `_on_step` ends training early. With `reset_num_timesteps=False` training
        goes on where the agent (or the checkpoint it was loaded from) stands. Ctrl-C and SIGTERM
        finish the step under way and raise KeyboardInterrupt, with the agent fit to be saved.
        """
        if isinstance(dataset, str):
            dataset = load_dataset(dataset)
        if reset_num_timesteps:
            self._reset_training()
        self._prepare(dataset)
        if self._logger is None:
            self.set_logger(
                configure_logger(
                    self.verbose,
                    self.tensorboard_log,
                    tb_log_name or self.name,
                    reset_num_timesteps,
                )
            )
        self._log_interval = log_interval
        self._progress_bar = progress_bar
        self._started = time.monotonic()
        self._callback = self._init_callback(callback)
        with self._finish_step_on_signals():
            self._callback.on_training_start(locals(), globals())
            with contextlib.suppress(TrainingStoppedError):
                self._train(dataset)
            self._callback.on_training_end()
        self._callback = None
        return self

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
        count = 0
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
                count += 1
                bar.update()
                last = step + 1 == total
                if (step + 1) % self._log_interval == 0 or last:
                    self._log(stage, {k: float(v) / count for k, v in sums.items()})
                    sums, count = {}, 0
                if self._callback is not None and not self._callback.on_step():
                    raise TrainingStoppedError
                if self._interrupted:
                    raise KeyboardInterrupt

    def _log(self, stage: str, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"{stage}/{name} is {value} at step {self.progress[stage]} of stage {stage!r} "
                    f"(timestep {self.num_timesteps}); load the last checkpoint and lower the "
                    "learning rate or beta, or check the dataset's rewards for outliers"
                )
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

    def _optimize(self, name: str, loss: Tensor, learning_rate: float) -> Tensor:
        """One optimizer step at the given rate; returns the gradient's norm."""
        optimizer = self.optimizers[name]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        optimizer.step()
        return norm

    def _prepare(self, dataset: OfflineDataset) -> Batches:
        """Build modules for the dataset's spaces once; one copy of the data on the device."""
        if self._batches is not None and self.dataset_fingerprint == dataset.fingerprint:
            return self._batches
        if self.dataset_fingerprint not in (None, dataset.fingerprint):
            raise ValueError(
                f"training stands at timestep {self.num_timesteps} on dataset "
                f"{self.dataset_id!r}; {dataset.id!r} holds other data. Resume with the former "
                "dataset, or start anew with reset_num_timesteps=True"
            )
        self._set_spaces(dataset.observation_space, dataset.action_space, dataset.id)
        self.dataset_id, self.dataset_fingerprint = dataset.id, dataset.fingerprint
        self.env_spec, self.reference = dataset.env_spec, dataset.reference

        def tensor(array: NDArray[Any], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.as_tensor(array, dtype=dtype, device=self.device)

        self._batches = Batches(
            states=tensor(dataset.states),
            state_index=tensor(dataset.state_index, torch.int64),
            actions=tensor(self._scale_actions(dataset.actions)),
            rewards=tensor(dataset.rewards),
            terminations=tensor(dataset.terminations),
            last_steps=tensor(dataset.last_steps),
        )
        self._on_new_data(dataset, self._batches)
        return self._batches

    def _on_new_data(self, dataset: OfflineDataset, batches: Batches) -> None:
        """Hook: constants that follow from the data (normalisers, tuned rewards)."""

    def _reset_training(self) -> None:
        self.networks = nn.ModuleDict()
        self.optimizers, self.tables = {}, {}
        self.progress = dict.fromkeys(self.stages, 0)
        self.num_timesteps, self.stage = 0, None
        self.dataset_id = self.dataset_fingerprint = None
        self.env_spec = self.reference = None
        self.observation_space = self.action_space = None
        self._batches = None
        self.set_random_seed(self.seed)

    def _set_spaces(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], of: str
    ) -> None:
        observation_box, action_box = check_spaces(observation_space, action_space, of)
        if self.observation_space is not None and self.action_space is not None:
            if (observation_box.shape, action_box) != (
                self.observation_space.shape,
                self.action_space,
            ):
                raise ValueError(
                    f"{of} has observations {observation_box.shape} and actions {action_box}; "
                    f"this agent was made for {self.observation_space.shape} and "
                    f"{self.action_space}"
                )
            if len(self.networks) > 0:
                return
        self.observation_space, self.action_space = observation_box, action_box
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._build(observation_box.shape[0], action_box.shape[0])
        self.networks.to(self.device)
        self.networks.train(False)

    @contextlib.contextmanager
    def _finish_step_on_signals(self) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into a flag that is read between steps."""
        self._interrupted = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(signum: int, frame: types.FrameType | None) -> None:
            self._interrupted = True

        former = {s: signal.signal(s, interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in former.items():
                signal.signal(signum, handler)

    def _init_callback(self, callback: MaybeCallback) -> BaseCallback:
        if isinstance(callback, list):
            callback = CallbackList(callback)
        if callback is None:
            callback = CallbackList([])
        if not isinstance(callback, BaseCallback):
            callback = ConvertCallback(callback)
        callback.init_callback(self)  # type: ignore[arg-type]
        return callback

    # Acting -------------------------------------------------------------------------------

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], tuple[NDArray[Any], ...] | None]:
        """Actions (A,) for an observation (S,), or (B, A) for (B, S), in the action space.

        `state` is returned as given and `episode_start` ignored (no memory). `deterministic`
        makes the action a function of the observation alone; otherwise it is sampled.
        """
        if self.observation_space is None or self.action_space is None:
            raise RuntimeError(
                f"this {self.name} has not been trained: call learn(dataset), or load a file"
            )
        if isinstance(observation, tuple):
            raise ValueError(
                "predict() was given a tuple: `env.reset()` returns (observation, info), pass "
                "only the observation"
            )
        array = np.asarray(observation, dtype=np.float32)
        shape = self.observation_space.shape
        if array.ndim not in (1, 2) or array.shape[-1:] != shape:
            raise ValueError(
                f"observation has shape {array.shape}, expected {shape} or (n, {shape[0]})"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"observation has NaN or infinite values: {array}")
        batch = torch.as_tensor(np.atleast_2d(array), device=self.device)
        if len(batch) == 0:
            return np.zeros((0, *self.action_space.shape), dtype=np.float32), state
        actions = self._unscale_actions(self._act(batch, deterministic).cpu().numpy())
        return actions[0] if array.ndim == 1 else actions, state

    def seed_predictions(self, seed: int) -> None:
        """Seed the noise of `predict`; training is not touched."""
        self.prediction_generator.manual_seed(seed)

    def _scale_actions(self, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """From the action space to [-1, 1]."""
        assert self.action_space is not None
        low, high = self.action_space.low, self.action_space.high
        scaled = 2.0 * (actions - low) / (high - low) - 1.0
        return np.clip(scaled, -1.0, 1.0).astype(np.float32)

    def _unscale_actions(self, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """From [-1, 1] to the action space, never outside."""
        assert self.action_space is not None
        low, high = self.action_space.low, self.action_space.high
        unscaled = low + 0.5 * (actions + 1.0) * (high - low)
        return np.clip(unscaled, low, high).astype(np.float32)

    # SB3's other names --------------------------------------------------------------------

    @property
    def logger(self) -> Logger:
        """The SB3 logger (a silent one until `learn` or `set_logger`)."""
        if self._logger is None:
            self._logger = Logger(folder=None, output_formats=[])
        return self._logger

    def set_logger(self, logger: Logger) -> None:
        """Use this logger."""
        self._logger = logger

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed training and prediction noise."""
        seed = self.seed if seed is None else seed
        self.generator.manual_seed(seed)
        self.prediction_generator.manual_seed(seed)

    def get_env(self) -> VecEnv | None:
        """The environment for callbacks that evaluate, if one was given."""
        return self._env

    def set_env(self, env: gym.Env[Any, Any] | VecEnv | str) -> None:
        """Give callbacks an environment; learning itself never uses one."""
        from qgpo.envs.making import make_env

        made = make_env(env) if isinstance(env, str) else env
        if isinstance(made, VecEnv):
            vec_env = made
        else:
            single = made
            vec_env = DummyVecEnv([lambda: Monitor(single)])
        check_spaces(vec_env.observation_space, vec_env.action_space, "the environment")
        if self.observation_space is not None:
            self._set_spaces(vec_env.observation_space, vec_env.action_space, "the environment")
        self._env = vec_env

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """State dictionaries of all modules and optimizers, by name."""
        modules = {name: module.state_dict() for name, module in self.networks.items()}
        optimizers = {f"{n}.optimizer": o.state_dict() for n, o in self.optimizers.items()}
        return {**modules, **optimizers}

    def set_parameters(
        self, parameters: dict[str, dict[str, Any]], exact_match: bool = True
    ) -> None:
        """Load what `get_parameters` returned; `exact_match` wants every name."""
        known: dict[str, nn.Module | torch.optim.Optimizer] = {
            **dict(self.networks.items()),
            **{f"{n}.optimizer": o for n, o in self.optimizers.items()},
        }
        wrong = set(parameters) - set(known)
        missing = set(known) - set(parameters) if exact_match else set()
        if wrong or missing:
            raise ValueError(
                f"parameters: unknown {sorted(wrong)}, missing {sorted(missing)}, expected "
                f"{sorted(known)}"
            )
        for name, state in parameters.items():
            known[name].load_state_dict(state)

    # Files --------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write everything that acting and further training need, atomically."""
        if self.observation_space is None or self.action_space is None:
            raise RuntimeError("nothing to save: this agent has not seen a dataset yet")
        optimizer_tensors: dict[str, Tensor] = {}
        groups = {}
        for name, optimizer in self.optimizers.items():
            tensors, groups[name] = pack_optimizer(name, optimizer.state_dict())
            optimizer_tensors.update(tensors)
        header = {
            "agent": self.name,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            "config": dataclasses.asdict(self.config),  # type: ignore[call-overload]
            "seed": self.seed,
            "observation_space": _space_to_json(self.observation_space),
            "action_space": _space_to_json(self.action_space),
            "stage": self.stage,
            "progress": self.progress,
            "num_timesteps": self.num_timesteps,
            "dataset": {
                "id": self.dataset_id,
                "fingerprint": self.dataset_fingerprint,
                "env_spec": spec_to_json(self.env_spec) if self.env_spec else None,
                "reference": dataclasses.asdict(self.reference) if self.reference else None,
            },
            "optimizers": groups,
        }
        generators = {
            "generator/training": self.generator.get_state(),
            "generator/prediction": self.prediction_generator.get_state(),
        }
        write_checkpoint(
            _with_suffix(path),
            Checkpoint(
                header,
                self.networks.state_dict(),
                optimizer_tensors,
                {**self.tables, **generators},
            ),
        )

    @classmethod
    def config_from_json(cls, data: dict[str, Any]) -> ConfigT:
        """The configuration that `dataclasses.asdict` and JSON made of it."""
        names = {field.name for field in dataclasses.fields(cls.config_class)}
        if set(data) != names:
            raise CheckpointError(
                f"configuration fields differ: unknown {sorted(set(data) - names)}, missing "
                f"{sorted(names - set(data))}"
            )
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        config: ConfigT = cls.config_class(**values)
        return config

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: gym.Env[Any, Any] | VecEnv | str | None = None,
        device: torch.device | str = "auto",
    ) -> Self:
        """Read a checkpoint. Raises CheckpointError when it is damaged or another agent's.

        With `env`, its spaces are checked against the agent's.
        """
        path = _with_suffix(path)
        checkpoint = read_checkpoint(path)
        header = checkpoint.header
        if header.get("agent") != cls.name:
            raise CheckpointError(
                f"{str(path)!r} holds a {header.get('agent')!r} agent, load it with that class "
                f"(this is {cls.name!r})"
            )
        try:
            agent = cls(cls.config_from_json(header["config"]), seed=header["seed"], device=device)
            agent._set_spaces(
                _space_from_json(header["observation_space"]),
                _space_from_json(header["action_space"]),
                f"checkpoint {str(path)!r}",
            )
            agent._restore(checkpoint)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise CheckpointError(f"checkpoint {str(path)!r} cannot be used: {reason}") from error
        if env is not None:
            agent.set_env(env)
        return agent

    def _restore(self, checkpoint: Checkpoint) -> None:
        header = checkpoint.header
        expected = self.networks.state_dict()
        missing = sorted(set(expected) - set(checkpoint.modules))
        surplus = sorted(set(checkpoint.modules) - set(expected))
        wrong = [
            f"{name} {tuple(checkpoint.modules[name].shape)} instead of {tuple(value.shape)}"
            for name, value in expected.items()
            if name in checkpoint.modules and checkpoint.modules[name].shape != value.shape
        ]
        if missing or surplus or wrong:
            raise CheckpointError(
                f"it does not fit its configuration: missing tensors {missing}, unknown "
                f"{surplus}, of wrong shape {wrong}"
            )
        self.networks.load_state_dict(checkpoint.modules)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(
                unpack_optimizer(name, checkpoint.optimizers, header["optimizers"][name])
            )
        if set(header["progress"]) != set(self.stages):
            raise CheckpointError(f"its stages are {header['progress']}, not {self.stages}")
        self.progress = header["progress"]
        self.stage, self.num_timesteps = header["stage"], header["num_timesteps"]
        tables = dict(checkpoint.tables)
        self._restore_generator(self.generator, tables.pop("generator/training"))
        self._restore_generator(self.prediction_generator, tables.pop("generator/prediction"))
        self.tables = {k: v.to(self.device) for k, v in tables.items()}
        data = header["dataset"]
        self.dataset_id, self.dataset_fingerprint = data["id"], data["fingerprint"]
        self.env_spec = spec_from_json(data["env_spec"]) if data["env_spec"] else None
        self.reference = ReferenceScores(**data["reference"]) if data["reference"] else None

    def _restore_generator(self, generator: torch.Generator, state: Tensor) -> None:
        """Go on with the saved randomness; on another kind of device, with a new seed."""
        if len(state) == len(generator.get_state()):
            generator.set_state(state)
        else:
            generator.manual_seed(self.seed + self.num_timesteps)


def _with_suffix(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".zip" else path.with_name(path.name + ".zip")


def _space_to_json(space: spaces.Box) -> dict[str, Any]:
    return {
        "low": [float(x) for x in space.low],
        "high": [float(x) for x in space.high],
        "dtype": str(space.dtype),
    }


def _space_from_json(data: dict[str, Any]) -> spaces.Box:
    dtype = np.dtype(data["dtype"]).type
    return spaces.Box(np.array(data["low"], dtype), np.array(data["high"], dtype), dtype=dtype)
