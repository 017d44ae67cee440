"""OfflineAgent: Stable-Baselines3's contract for agents that learn from a dataset.

Subclasses build their modules in `_build`, train in public stages that run in `training`, and act
in `act`.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from torch import Tensor, nn

from qgpo.agents.core import checkpoint, sb3
from qgpo.agents.core.acting import Acts
from qgpo.agents.core.batches import Batches
from qgpo.agents.core.checkpoint import CheckpointError
from qgpo.agents.core.training import Training, choose_device, of_training, on_signals
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.store.loading import load_dataset
from qgpo.envs.store.opening import recorded_in
from qgpo.envs.tasks.families import family_settings, find_family
from qgpo.envs.tasks.making import spec_from_json, spec_to_json
from qgpo.envs.tasks.observations import ObservationAdapter
from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.envs.tasks.spaces import check_action_space, check_spaces, same_box

ConfigT = TypeVar("ConfigT")


class OfflineAgent(ABC, Generic[ConfigT]):
    """An agent that learns from an OfflineDataset and acts like an SB3 algorithm.

    With a preset's name as `config`, `learn` applies what the dataset's family changes of that
    preset (`settings_for`); a configuration is taken as it is.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[Any]]
    presets: ClassVar[dict[str, Any]]
    stages: ClassVar[tuple[str, ...]]

    observation_space: spaces.Box | None
    action_space: spaces.Box | None
    adapter: ObservationAdapter | None
    """makes vectors of an environment's Dict observations"""
    dataset_id: str | None
    dataset_fingerprint: str | None
    env_spec: EnvSpec | None
    """the environment that the dataset's agents play in"""
    reference: ReferenceScores | None
    """for normalised scores there"""
    _batches: Batches | None

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
        self._preset = config if isinstance(config, str) else None
        self._row = self.config
        self._changes: dict[str, Any] = {}
        self.seed = int(seed)
        self.device = choose_device(device)
        self.verbose = verbose
        self.tensorboard_log = tensorboard_log
        self.prediction_generator = torch.Generator(self.device)
        self.training = Training(self.stages, self.seed, self.device)
        self._env: VecEnv | None = None
        self._reset()
        if env is not None:
            self.set_env(env)

    def __repr__(self) -> str:
        data = "no data" if self.dataset_id is None else repr(self.dataset_id)
        steps = f"{self.num_timesteps} of {self.total_timesteps} steps"
        return f"{self.name}(seed {self.seed}, {steps} on {data}, {self.device})"

    # Configuration ------------------------------------------------------------------------

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

    @classmethod
    def settings_for(cls, dataset: OfflineDataset | str, preset: str = "laptop") -> ConfigT:
        """The preset with what the dataset's family changes of it.

        Python, the command line and plans take their configurations from here. Of an id, the
        family follows from the id and the environment that the local dataset names.
        """
        row = cls.choose_config(preset)
        if isinstance(dataset, OfflineDataset):
            family = find_family(dataset.id, dataset.env_spec.id if dataset.env_spec else None)
        else:
            family = find_family(dataset, recorded_in(dataset))
        names = {field.name for field in dataclasses.fields(cls.config_class)}
        return dataclasses.replace(row, **family_settings(family, preset, names))  # type: ignore[type-var]

    def _change(self, **values: Any) -> None:
        """Set fields of the configuration whatever the dataset's family says."""
        self._changes |= values
        self.config = self._row = dataclasses.replace(self.config, **values)  # type: ignore[type-var]

    def _settle(self, dataset: OfflineDataset) -> None:
        """Apply the family's settings, if the configuration is still that of a preset's name."""
        if self._preset is not None and self.config is self._row and not self.networks:
            settings = self.settings_for(dataset, self._preset)
            self.config = self._row = dataclasses.replace(settings, **self._changes)  # type: ignore[type-var]

    # What a subclass says -----------------------------------------------------------------

    @abstractmethod
    def _build(self, observation_dim: int, action_dim: int) -> None:
        """Fill `networks` and `optimizers`."""

    @abstractmethod
    def _train(self, dataset: OfflineDataset) -> None:
        """Call the stages in the paper's order."""

    @abstractmethod
    def act(self, observations: Tensor, deterministic: bool) -> Tensor:
        """(B, S) to actions (B, A) in [-1, 1]."""

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

    def _on_new_data(self, dataset: OfflineDataset, batches: Batches) -> None:
        """Hook: constants that follow from the data (normalizers, tuned rewards)."""

    def tables_to_save(self) -> dict[str, Tensor]:
        """The tables that a checkpoint holds: all, unless the agent can make some again."""
        return self.tables

    # The registers of its training --------------------------------------------------------

    networks: nn.ModuleDict = of_training("networks")
    """every network, target, average and normalizer, by name"""
    optimizers: dict[str, torch.optim.Optimizer] = of_training("optimizers")
    tables: dict[str, Tensor] = of_training("tables")
    """what stages hand on"""
    progress: dict[str, int] = of_training("progress")
    """steps done, per stage"""
    generator: torch.Generator = of_training("generator")
    """noise of training"""
    stage: str | None = of_training("stage")
    """the stage that runs, or ran last"""
    num_timesteps: int = of_training("num_timesteps")
    """gradient steps done, over all stages"""
    logger: Logger = of_training("logger")
    """the SB3 logger (a silent one until `learn` or `set_logger`)"""

    def set_logger(self, logger: Logger) -> None:
        """Use this logger."""
        self.training.logger = logger

    def dump_logs(self) -> None:
        """Write what the logger holds (SB3's LogEveryNTimesteps asks)."""
        self.logger.dump(self.num_timesteps)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed training and prediction noise."""
        seed = self.seed if seed is None else seed
        self.training.generator.manual_seed(seed)
        self.prediction_generator.manual_seed(seed)

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
        `reset_num_timesteps=False` training continues where the agent (or the checkpoint it was
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
        training = self.training
        training.interrupted = False
        with on_signals(training.interrupt):  # an agent with half its modules cannot be saved
            known = self.dataset_fingerprint in (None, dataset.fingerprint)
            if reset_num_timesteps:
                self._reset()
            elif allow_other_dataset and not known:
                self._forget_data()
                self.dataset_fingerprint = None
            self.prepare(dataset)
        training.stop_if_interrupted("before the first step")
        if training.logger is training.silent:
            name = tb_log_name or self.name
            training.logger = configure_logger(
                self.verbose, self.tensorboard_log, name, reset_num_timesteps
            )
        training.log_interval, training.progress_bar = log_interval, progress_bar
        training.started = time.monotonic()
        total_timesteps = self.total_timesteps  # for callbacks, which read our locals
        with training.running(callback, self, locals()):
            self._train(dataset)
        return self

    def prepare(self, dataset: OfflineDataset) -> Batches:
        """Build modules for the dataset's spaces once; bring the data to the device.

        Raises ValueError for another dataset than the training stands on.
        """
        if self._batches is not None and self.dataset_fingerprint == dataset.fingerprint:
            return self._batches
        if self.dataset_fingerprint not in (None, dataset.fingerprint):
            raise ValueError(
                f"training stands at timestep {self.num_timesteps} on dataset "
                f"{self.dataset_id!r}; {dataset.id!r} holds other data. Resume with the previous "
                "dataset, go on with this one by allow_other_dataset=True, or start again with "
                "reset_num_timesteps=True"
            )
        self._settle(dataset)
        spaces_of_data = dataset.observation_space, dataset.action_space
        self.set_spaces(*spaces_of_data, dataset.id, dataset.adapter)
        if (env := self._env) is not None:
            self.set_spaces(env.observation_space, env.action_space, "the environment")
        self.dataset_id, self.dataset_fingerprint = dataset.id, dataset.fingerprint
        self.env_spec, self.reference = dataset.env_spec, dataset.reference
        batches = Batches.of(dataset, self.device)
        self._on_new_data(dataset, batches)
        self._batches = batches  # only now: what was interrupted is done again
        return batches

    def _reset(self) -> None:
        """Forget everything that was learned, and the data."""
        self.training.reset()
        self.observation_space = self.action_space = self.adapter = None
        self.dataset_id = self.dataset_fingerprint = None
        self.env_spec = self.reference = self._batches = None
        self.set_random_seed()

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
        with self.training.building(self._reset):
            self._build(observation_box.shape[0], action_box.shape[0])

    # Acting -------------------------------------------------------------------------------

    def _prediction_normal(self, *shape: int) -> Tensor:
        """Standard normal noise of `predict`."""
        return torch.randn(shape, generator=self.prediction_generator, device=self.device)

    predict = Acts.predict
    seed_predictions = Acts.seed_predictions

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
        return {name: part.state_dict() for name, part in self._parts().items()}

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What has parameters, by the names of SB3."""
        optimizers = {f"{name}.optimizer": part for name, part in self.optimizers.items()}
        return {**dict(self.networks.items()), **optimizers}

    def set_parameters(
        self, parameters: dict[str, dict[str, Any]], exact_match: bool = True
    ) -> None:
        """Load what `get_parameters` returned; `exact_match` wants every name."""
        if not isinstance(parameters, dict):
            raise TypeError(
                f"parameters is a {type(parameters).__name__}, expected what get_parameters() "
                "returns; files are read by load(path)"
            )
        known = self._parts()
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

        Raises NonFiniteError where parameters are not finite, CheckpointWriteError where the file
        cannot be written; the previous file is then unchanged.
        """
        if self.observation_space is None or self.action_space is None:
            raise RuntimeError("nothing to save: this agent has not seen a dataset yet")
        path = checkpoint.with_suffix(path)
        more: dict[str, Any] = {
            "agent": self.name,
            "observation_space": sb3.space_to_json(self.observation_space),
            "action_space": sb3.space_to_json(self.action_space),
            "dataset": {
                "id": self.dataset_id,
                "fingerprint": self.dataset_fingerprint,
                "env_spec": spec_to_json(self.env_spec) if self.env_spec else None,
                "reference": dataclasses.asdict(self.reference) if self.reference else None,
            },
        }
        if self.adapter is not None:
            more["observation_adapter"] = self.adapter.to_json()
        generators = {"prediction": self.prediction_generator}
        packed = checkpoint.pack(
            self.training, self.config, generators, self.tables_to_save(), **more
        )
        checkpoint.write_checkpoint(path, packed)
        self.training.saved = f"{str(path)!r} (timestep {self.num_timesteps})"

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
        path = checkpoint.with_suffix(path)
        device = choose_device(device)  # not the file's fault
        read = checkpoint.read_checkpoint(path)
        header = read.header
        if header.get("agent") != cls.name:
            raise CheckpointError(
                f"{str(path)!r} holds a {header.get('agent')!r} agent, load it with that class "
                f"(this is {cls.name!r})"
            )
        with checkpoint.using(path):
            config = checkpoint.config_from_json(cls.config_class, header["config"])
            agent = cls(config, seed=header["seed"], device=device)
            adapter = header.get("observation_adapter")
            agent.set_spaces(
                sb3.space_from_json(header["observation_space"]),
                sb3.space_from_json(header["action_space"]),
                f"checkpoint {str(path)!r}",
                ObservationAdapter.from_json(adapter) if adapter else None,
            )
            checkpoint.restore(agent.training, read, {"prediction": agent.prediction_generator})
            data = header["dataset"]
            agent.dataset_id, agent.dataset_fingerprint = data["id"], data["fingerprint"]
            agent.env_spec = spec_from_json(data["env_spec"]) if data["env_spec"] else None
            reference = data["reference"]
            agent.reference = ReferenceScores(**reference) if reference else None
        agent.training.saved = f"{str(path)!r} (timestep {agent.num_timesteps})"
        if env is not None:
            agent.set_env(env)
        return agent
