"""OfflineAgent: Stable-Baselines3's contract for agents that learn from a dataset.

Subclasses build their modules in `_build`, train in public stages that call `_run_stage`, and
act in `_act`. Everything that training needs lives in four registers, which checkpoints write
whole: `networks`, `optimizers`, `tables` (tensors that stages hand on) and `progress` (steps
done per stage); so nothing can be forgotten and resuming equals not stopping.
"""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from torch import Tensor, nn

from qgpo.agents.core import files, sb3
from qgpo.agents.core.acting import Acting
from qgpo.agents.core.batches import (
    LIKELY_CAUSES,
    Batches,
    NonFiniteError,
    TrainingStoppedError,
    choose_device,
    on_signals,
)
from qgpo.agents.core.checkpoint import write_checkpoint
from qgpo.agents.core.training import StagedTraining
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.store.loading import load_dataset
from qgpo.envs.tasks.observations import ObservationAdapter
from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.envs.tasks.spaces import check_action_space, check_spaces, same_box

ConfigT = TypeVar("ConfigT")


class OfflineAgent(StagedTraining, Acting, Generic[ConfigT]):
    """An agent that learns from an OfflineDataset and acts like an SB3 algorithm."""

    config_class: ClassVar[type[Any]]
    presets: ClassVar[dict[str, Any]]
    younger_fields: ClassVar[frozenset[str]] = frozenset()
    """fields of the configuration that files of the first format version may lack"""

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
        whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
        if not whole or not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed!r}, expected an integer of at least 0 and below 2**63")
        self.config: ConfigT = self.choose_config(config)
        super().__init__(int(seed), choose_device(device))
        self.verbose = verbose
        self.tensorboard_log = tensorboard_log
        self.observation_space: spaces.Box | None = None
        self.action_space: spaces.Box | None = None
        self.adapter: ObservationAdapter | None = None
        self.dataset_id: str | None = None
        self.dataset_fingerprint: str | None = None
        self.env_spec: EnvSpec | None = None
        self.reference: ReferenceScores | None = None
        self._env: VecEnv | None = None
        self._batches: Batches | None = None
        if env is not None:
            self.set_env(env)

    @classmethod
    def choose_config(cls, config: ConfigT | str) -> ConfigT:
        """The configuration, or the preset of that name."""
        if isinstance(config, str):
            if config not in cls.presets:
                raise ValueError(
                    f"preset={config!r}, expected one of {sorted(cls.presets)} or a "
                    f"{cls.config_class.__name__}"
                )
            config = cast(ConfigT, cls.presets[config])
        if not isinstance(config, cls.config_class):
            raise TypeError(
                f"config is a {type(config).__name__}, expected a preset's name "
                f"{sorted(cls.presets)} or a {cls.config_class.__name__}"
            )
        return cast(ConfigT, config)

    # What a subclass says -----------------------------------------------------------------

    @abstractmethod
    def _build(self, observation_dim: int, action_dim: int) -> None:
        """Fill `networks` and `optimizers`."""

    @abstractmethod
    def _train(self, dataset: OfflineDataset) -> None:
        """Call the stages in the paper's order."""

    @property
    @abstractmethod
    def total_timesteps(self) -> int:
        """Gradient steps of a whole training."""

    @property
    def is_trained(self) -> bool:
        """Whether training has come to its end."""
        return self.num_timesteps == self.total_timesteps

    def _forget_data(self) -> None:
        """Hook: drop what was computed for the states of a dataset that is replaced."""

    def tables_to_save(self) -> dict[str, Tensor]:
        """The tables that a checkpoint holds: all, unless the agent can make some anew."""
        return self.tables

    # Training -----------------------------------------------------------------------------

    def learn(
        self,
        dataset: OfflineDataset | str,
        callback: MaybeCallback = None,
        log_interval: int = 1000,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        allow_other_dataset: bool = False,
    ) -> Self:
        """Train on the dataset (or the one of that Minari id) through all stages.

        Timesteps are gradient steps over all stages. `callback` is any SB3 callback, or a function
        of (locals, globals); returning False (or, as in SB3, nothing) ends training early. With
        `reset_num_timesteps=False` training goes on where the agent (or the checkpoint it was
        loaded from) stands; on other data than it began with only if `allow_other_dataset`.
        Ctrl-C and SIGTERM finish the step under way and raise KeyboardInterrupt, with the agent
        fit to be saved. Raises ValueError for a dataset that does not fit, or another one than
        training began with, NonFiniteError where a loss or gradient is not finite.
        """
        if not isinstance(dataset, OfflineDataset):
            dataset = load_dataset(dataset)
        if not isinstance(log_interval, int) or log_interval < 1:
            raise ValueError(f"log_interval={log_interval}, expected an integer of at least 1")
        callback = sb3.as_callback(callback)
        self._interrupted = False
        with on_signals(self._interrupt):  # an agent whose modules are half built cannot be saved
            known = self.dataset_fingerprint in (None, dataset.fingerprint)
            if reset_num_timesteps:
                self._reset_training()
            elif allow_other_dataset and not known:
                self._forget_data()
                self.dataset_fingerprint = None
            self._prepare(dataset)
        self._stop_if_interrupted("before the first step")
        if self._logger is None:
            name = tb_log_name or self.name
            self.set_logger(
                configure_logger(self.verbose, self.tensorboard_log, name, reset_num_timesteps)
            )
        self._log_interval = log_interval
        self._progress_bar = progress_bar
        self._started = time.monotonic()
        total_timesteps = self.total_timesteps  # for callbacks, which read our locals
        self._callback = callback
        self._callback.init_callback(self)  # type: ignore[arg-type]
        try:
            with on_signals(self._interrupt):
                self._callback.on_training_start(locals(), globals())
                with contextlib.suppress(TrainingStoppedError):
                    self._train(dataset)
                self._callback.on_training_end()
        finally:
            self._callback = None
        return self

    def _interrupt(self) -> None:
        self._interrupted = True

    def _prepare(self, dataset: OfflineDataset) -> Batches:
        """Build modules for the dataset's spaces once; bring the data to the device."""
        if self._batches is not None and self.dataset_fingerprint == dataset.fingerprint:
            return self._batches
        if self.dataset_fingerprint not in (None, dataset.fingerprint):
            raise ValueError(
                f"training stands at timestep {self.num_timesteps} on dataset "
                f"{self.dataset_id!r}; {dataset.id!r} holds other data. Resume with the former "
                "dataset, go on with this one by allow_other_dataset=True, or start anew with "
                "reset_num_timesteps=True"
            )
        spaces_of_data = dataset.observation_space, dataset.action_space
        self.set_spaces(*spaces_of_data, dataset.id, dataset.adapter)
        if self._env is not None:
            spaces_of_env = self._env.observation_space, self._env.action_space
            self.set_spaces(*spaces_of_env, "the environment")
        self.dataset_id, self.dataset_fingerprint = dataset.id, dataset.fingerprint
        self.env_spec, self.reference = dataset.env_spec, dataset.reference
        batches = Batches.of(dataset, self.device)
        self._on_new_data(dataset, batches)
        self._batches = batches  # only now: what was interrupted is done again
        return batches

    def _on_new_data(self, dataset: OfflineDataset, batches: Batches) -> None:
        """Hook: constants that follow from the data (normalisers, tuned rewards)."""

    def _reset_training(self) -> None:
        self.networks = nn.ModuleDict()
        self.optimizers, self.tables = {}, {}
        self.progress = dict.fromkeys(self.stages, 0)
        self.num_timesteps, self.stage = 0, None
        self.dataset_id = self.dataset_fingerprint = None
        self.env_spec = self.reference = None
        self.observation_space = self.action_space = self.adapter = None
        self._batches = None
        self.set_random_seed(self.seed)

    def set_spaces(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        of: str,
        adapter: ObservationAdapter | None = None,
    ) -> None:
        """Build the modules for these spaces, or refuse others than those they were built for.

        `adapter` turns an environment's Dict observations into the vectors of that space.
        """
        if isinstance(observation_space, spaces.Dict) and self.adapter is not None:
            observation_space = self.adapter.box(observation_space, of)
        observation_box, action_box = check_spaces(observation_space, action_space, of)
        if self.observation_space is not None and self.action_space is not None:
            same_actions = same_box(action_box, self.action_space)
            if observation_box.shape != self.observation_space.shape or not same_actions:
                raise ValueError(
                    f"{of} has observations {observation_box.shape} and actions {action_box}; "
                    f"this agent was made for {self.observation_space.shape} and "
                    f"{self.action_space}"
                )
            if len(self.networks) > 0:
                return
        self.observation_space, self.action_space = observation_box, action_box
        self.adapter = adapter
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self._build(observation_box.shape[0], action_box.shape[0])
            self.networks.to(self.device)
        except BaseException:  # half an agent could be saved, and not be loaded
            self._reset_training()
            raise
        self.networks.train(False)

    # SB3's other names --------------------------------------------------------------------

    def get_env(self) -> VecEnv | None:
        """The environment for callbacks that evaluate, if one was given."""
        return self._env

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """The environment's own normalisation, if it has one (SB3's callbacks ask)."""
        return None if self._env is None else unwrap_vec_normalize(self._env)

    def set_env(self, env: gym.Env[Any, Any] | VecEnv | str) -> None:
        """Give callbacks an environment; learning itself never uses one."""
        vec_env = sb3.as_vec_env(env, self.adapter)
        if self.observation_space is not None:
            self.set_spaces(vec_env.observation_space, vec_env.action_space, "the environment")
        elif isinstance(vec_env.observation_space, spaces.Dict):  # read as the data will say
            check_action_space(vec_env.action_space, "the environment")
        else:
            check_spaces(vec_env.observation_space, vec_env.action_space, "the environment")
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
        if not isinstance(parameters, dict):
            raise TypeError(
                f"parameters is a {type(parameters).__name__}, expected what get_parameters() "
                "returns; files are read by load(path)"
            )
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
            module = known[name]
            if isinstance(module, nn.Module):
                sb3.check_state(name, state, module.state_dict())
            else:
                sb3.check_optimizer_state(name, state, module)
        for name, state in parameters.items():
            known[name].load_state_dict(state)

    # Files --------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write everything that acting and further training need, atomically.

        Raises NonFiniteError where parameters are not finite: a good file is never replaced by
        one that is of no use.
        """
        path = files.with_suffix(path)
        checkpoint = files.pack(self)
        for name, value in checkpoint.modules.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise NonFiniteError(
                    f"not saved: {name} has NaN or infinite values at timestep "
                    f"{self.num_timesteps}; {str(path)!r} is as it was. {LIKELY_CAUSES}"
                )
        write_checkpoint(path, checkpoint)
        self._saved = f"{str(path)!r} (timestep {self.num_timesteps})"

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
        path = files.with_suffix(path)
        agent = cast(Self, files.unpack(cls, path, device))
        agent._saved = f"{str(path)!r} (timestep {agent.num_timesteps})"
        if env is not None:
            agent.set_env(env)
        return agent
