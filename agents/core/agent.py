"""OfflineAgent: Stable-Baselines3's contract for agents that learn from a dataset.

Subclasses build their modules in `_build`, train in public stages that run in `training`, and act
in `act`.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Generic, Self

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from torch import Tensor, nn

from qgpo.agents.core import checkpoint, collected, header, pretrained, sb3
from qgpo.agents.core.acting import Acts, Normal
from qgpo.agents.core.batches import Batches
from qgpo.agents.core.checkpoint import CheckpointError
from qgpo.agents.core.configured import ConfigT, Configured
from qgpo.agents.core.export.policy import export_onnx
from qgpo.agents.core.online import OnlineConfig, learn_online
from qgpo.agents.core.parameters import load_parameters, parts_of
from qgpo.agents.core.process import usual_torch
from qgpo.agents.core.registers import Kinds, check_modules
from qgpo.agents.core.training import ONLINE, Training, choose_device, of_training, on_signals
from qgpo.diffusion import Metrics
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.store.loading import load_dataset
from qgpo.envs.tasks.actions import ActionScale
from qgpo.envs.tasks.observations import ObservationAdapter
from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.envs.tasks.spaces import check_action_space, check_spaces, same_box
from qgpo.envs.tasks.window import Window
from qgpo.fields import check_seed


class OfflineAgent(Configured[ConfigT], ABC, Generic[ConfigT]):
    """An agent that learns from an OfflineDataset and acts like an SB3 algorithm.

        QGPO("laptop", critic="implicit", beta=2.0)

    `Configured` says what `config` and the named `settings` may be. With a preset's name, `learn`
    applies what the dataset's family changes of that preset.
    """

    stages: ClassVar[tuple[str, ...]]
    fixed_scale: ClassVar[bool] = False
    """whether a guidance scale in the configuration cannot be changed after training"""
    learns_online: ClassVar[bool] = False
    """whether it can go on in an environment, by `_begin_online`, `_extend_online` and `_follow`"""
    even_steps: ClassVar[bool] = True
    """whether the gradient steps of a stage take the same time from the first to the last"""

    env: VecEnv | None
    """for callbacks; learning uses none"""
    observation_space: spaces.Box | None
    action_space: spaces.Box | None
    action_scale: ActionScale | None
    """what -1 and 1 mean there: its bounds, or the range of the data where those are far wider"""
    adapter: ObservationAdapter | None
    """makes vectors of an environment's Dict observations"""
    window: Window | None
    """how many observations it sees, and actions it decides, at once; None for one of each"""
    dataset_id: str | None
    dataset_fingerprint: str | None
    trajectory_fingerprint: str | None
    """of the states and actions, which tasks may share; None in files of earlier versions"""
    env_spec: EnvSpec | None
    """the environment that the dataset's agents play in"""
    reference: ReferenceScores | None
    """for normalised scores there"""
    online_config: OnlineConfig | None
    """how it goes on in an environment; None where it does not"""
    acts_only: bool
    """whether it lacks what only training needs, as agents that come with the package do"""
    _batches: Batches | None
    _policy: sb3.Policy | None
    _built_for_env: bool
    """whether the modules are those of an environment, and data may still decide otherwise"""

    def __init__(
        self,
        config: ConfigT | str = "laptop",
        env: gym.Env[Any, Any] | VecEnv | str | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "auto",
        verbose: int = 0,
        tensorboard_log: str | Path | None = None,
        **settings: Any,
    ) -> None:
        self._seed = check_seed(seed)
        super().__init__(config, settings)
        self.device = choose_device(device)
        self.verbose = verbose
        self.tensorboard_log = tensorboard_log
        self.prediction_generator = torch.Generator(self.device)
        self.training = Training(self.stages, self._seed, self.device)
        self._own_logger = False  # one of `set_logger`
        self.env = None
        self._reset()
        if env is not None:
            self.set_env(env)

    def __repr__(self) -> str:
        data = "no data" if self.dataset_id is None else repr(self.dataset_id)
        of = "steps online" if ONLINE in self.progress else f"of {self.total_timesteps} steps"
        steps = f"{self.num_timesteps} {of}"
        return f"{self.name}(seed {self.training.seed}, {steps} on {data}, {self.device})"

    @property
    def seed(self) -> int:
        """What the next training from its beginning starts from; at least 0 and below 2**63.

        Setting it changes no training under way, and no file of it.
        """
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._seed = check_seed(seed)
        if not self.networks:
            self.training.seed = self._seed
            self.set_random_seed()

    @property
    def verbose(self) -> int:
        """1 or more: `learn` prints what it logs, as in SB3."""
        return self._verbose

    @verbose.setter
    def verbose(self, verbose: int) -> None:
        self._verbose = header.check_verbose(verbose)

    @property
    def tensorboard_log(self) -> str | None:
        """The folder of TensorBoard's events; None for none."""
        return self._tensorboard_log

    @tensorboard_log.setter
    def tensorboard_log(self, folder: str | Path | None) -> None:
        self._tensorboard_log = header.check_log_folder(folder)

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
    def stage_steps(self) -> dict[str, int]:
        """Gradient steps of each stage in a whole training. An agent of several says which."""
        if len(self.stages) > 1:
            raise NotImplementedError(f"{self.name} has several stages, and no stage_steps")
        return {self.stages[0]: self.total_timesteps}

    @property
    def is_trained(self) -> bool:
        """Whether training has come to its end."""
        return self.num_timesteps == self.total_timesteps

    def _forget_data(self) -> None:
        """Hook: drop what was computed for the states of a dataset that is replaced."""

    def _on_new_data(self, dataset: OfflineDataset, batches: Batches) -> None:
        """Hook: constants that follow from the data (normalizers, tuned rewards)."""

    @property
    def guidance_scale(self) -> float:
        """Guidance scale w, of agents that are guided. AttributeError for others."""
        raise AttributeError(f"{self.name} agents have no guidance_scale")

    @guidance_scale.setter
    def guidance_scale(self, scale: float) -> None:
        raise AttributeError(
            f"guidance_scale={scale!r}: {self.name} agents have no guidance_scale, so that every "
            "value would act the same"
        )

    @property
    def tries_scales(self) -> bool:
        """Whether another guidance scale, tried online, would act otherwise."""
        return False

    def _tuned(
        self, dataset: OfflineDataset, batches: Batches, rewards: NDArray[np.float32]
    ) -> Tensor:
        """Hook: rewards that were collected (N,), as those of the dataset were tuned."""
        return torch.as_tensor(rewards, device=self.device)

    def _begin_online(self, recorded: Batches) -> None:
        """Hook: bring back what the end of training dropped and updates need."""

    def _extend_online(self, data: Batches) -> None:
        """Hook: make what the agent keeps of every state for those that were collected."""

    def _follow(self, data: Batches, step: int, factor: float) -> Metrics:
        """Hook: an update on the dataset and what was collected, at that part of each rate."""
        raise NotImplementedError(f"{self.name} does not learn online")

    def tables_to_save(self) -> dict[str, Tensor]:
        """The tables that a checkpoint holds: all, unless the agent can make some again."""
        return self.tables

    def table_kinds(self, found: Collection[str]) -> Kinds:
        """Hook: the tables that a checkpoint may hold where training stands, given their names."""
        return {}

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
        """Use this SB3 logger. Raises TypeError for other objects."""
        if not isinstance(logger, Logger):
            kind = "class" if isinstance(logger, type) else type(logger).__name__
            raise TypeError(
                f"logger is a {kind}, expected a logger from stable_baselines3's configure()"
            )
        self.training.logger, self._own_logger = logger, True

    def dump_logs(self) -> None:
        """Write what the logger holds (SB3's LogEveryNTimesteps asks)."""
        self.logger.dump(self.num_timesteps)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed training, prediction noise and the environment, if there is one.

        Before `learn` it is the same as `seed` of the constructor. Later, it is the seed of the
        noise from here on, and of the next training that begins anew.
        """
        if seed is not None:
            self.seed = seed
        seed = self.seed
        self.training.generator.manual_seed(seed)
        self.prediction_generator.manual_seed(seed)
        if self.env is not None:
            self.env.seed(seed)

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
        """Train all stages on a dataset, or on the dataset with that Minari id.

        Timesteps are gradient steps over all stages. `callback` is any SB3 callback, or a function
        of (locals, globals). Training ends early if it returns False (or, as in SB3, nothing).
        TensorBoard events are written to `tensorboard_log/tb_log_name_1`, and those of the next
        training to `_2`. With `reset_num_timesteps=False` training continues from the current
        state of the agent (for example from a loaded checkpoint), and appends to the last folder
        of events. Continuing on different data needs `allow_other_dataset`.
        Ctrl-C and SIGTERM finish the current step and raise KeyboardInterrupt. The agent can then
        be saved. Raises ValueError for an unsuitable dataset or different data than before,
        NonFiniteError if a loss or gradient is not finite, and RuntimeError if this agent is
        already being trained.
        """
        if not isinstance(dataset, OfflineDataset):
            dataset = load_dataset(dataset)
        sb3.check_reports(log_interval, tb_log_name)
        callback = sb3.as_callback(callback)
        training = self.training
        with training.turn.training():
            self._begin(dataset, reset_num_timesteps, allow_other_dataset)
            self._report(log_interval, tb_log_name, progress_bar, reset_num_timesteps)
            total_timesteps = self.total_timesteps  # for callbacks, which read our locals
            with training.running(callback, self, locals()):
                self._train(dataset)
        return self

    learn_online = learn_online

    @property
    def online(self) -> dict[str, Any] | None:
        """How it goes on in an environment, for JSON; None where it does not."""
        return None if self.online_config is None else dataclasses.asdict(self.online_config)

    def _report(
        self, log_interval: int, tb_log_name: str | None, progress_bar: bool, anew: bool
    ) -> None:
        """Log a training from here on; where it begins `anew`, in a new folder of events."""
        training = self.training
        if not self._own_logger:
            training.logger.close()
            log, name = self.tensorboard_log, tb_log_name or self.name
            training.logger = sb3.make_logger(self.verbose, log, name, anew)
        training.log_interval, training.progress_bar = int(log_interval), progress_bar
        training.verbose = self.verbose > 0
        training.start_clock()

    def _begin(
        self, dataset: OfflineDataset, reset_num_timesteps: bool, allow_other_dataset: bool
    ) -> None:
        """Bring agent and data to where training begins or goes on."""
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

    @usual_torch()
    def prepare(self, dataset: OfflineDataset) -> Batches:
        """Build modules for the dataset's spaces once; bring the data to the device.

        Raises ValueError for another dataset than the training stands on.
        """
        if self._batches is not None and self.dataset_fingerprint == dataset.fingerprint:
            return self._batches
        if self.dataset_fingerprint not in (None, dataset.fingerprint):
            raise ValueError(
                f"training has reached timestep {self.num_timesteps} on dataset "
                f"{self.dataset_id!r}; {dataset.id!r} holds other data. Resume with the "
                "previous dataset, continue on this one with allow_other_dataset=True, or "
                "start again with reset_num_timesteps=True"
            )
        if self._built_for_env:
            self._reset()
        self._settle(dataset)
        if len(self.networks) > 0 and dataset.window != self.window:
            raise ValueError(
                f"dataset {dataset.id!r} has {dataset.window or Window()}, this agent was made for "
                f"{self.window or Window()}: load it with the same history and chunk"
            )
        spaces_of_data = dataset.observation_space, dataset.action_space
        self.set_spaces(*spaces_of_data, dataset.id, dataset.adapter, dataset.window)
        if (env := self.env) is not None:
            of_env = env.observation_space, env.action_space
            self.set_spaces(*of_env, "the environment", of_one_step=True)
        if self.dataset_fingerprint is None and self.num_timesteps == 0:
            self.action_scale = dataset.action_scale
        elif self.dataset_fingerprint is None and self.action_scale is not None:
            self.action_scale.check(dataset.actions, f"dataset {dataset.id!r}")
        self.dataset_id, self.dataset_fingerprint = dataset.id, dataset.fingerprint
        self.trajectory_fingerprint = dataset.trajectory_fingerprint
        self.env_spec, self.reference = dataset.env_spec, dataset.reference
        batches = Batches.of(dataset, self.device, self.action_scale)
        self._on_new_data(dataset, batches)
        self._batches = batches  # only now: what was interrupted is done again
        return batches

    def _settle(self, dataset: OfflineDataset) -> None:
        """Before there are networks, apply what the dataset's family changes."""
        if not self.networks:
            super()._settle(dataset)

    def _reset(self) -> None:
        """Forget everything that was learned, and the data."""
        self.training.seed = self._seed
        self.training.reset()
        self.observation_space = self.action_space = self.action_scale = self.adapter = None
        self.window = None
        self.dataset_id = self.dataset_fingerprint = self.trajectory_fingerprint = None
        self.env_spec = self.reference = self._batches = self._policy = None
        self._built_for_env = self.acts_only = False
        self.online_config = None
        self.set_random_seed()

    def set_spaces(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        of: str,
        adapter: ObservationAdapter | None = None,
        window: Window | None = None,
        *,
        of_one_step: bool = False,
    ) -> None:
        """Build the modules for these spaces, or refuse others than those they were built for.

        `adapter` turns an environment's Dict observations into the vectors of that space, through
        `window` several observations are seen and several actions decided at once. Spaces
        `of_one_step`, as an environment has them, are those of single ones.
        """
        if isinstance(observation_space, spaces.Dict) and self.adapter is not None:
            observation_space = self.adapter.box(observation_space, of)
        observation_box, action_box = check_spaces(observation_space, action_space, of)
        if of_one_step and self.window is not None:
            observation_box = self.window.seen(observation_box)
            action_box = self.window.decided(action_box)
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
        for box in (observation_box, action_box):
            header.check_storable(box)  # before hours are spent
        self.observation_space, self.action_space = observation_box, action_box
        self.action_scale, self.adapter = ActionScale.of(action_box), adapter
        self.window = window
        with self.training.building(self._reset):
            self._build(observation_box.shape[0], action_box.shape[0])

    # Acting -------------------------------------------------------------------------------

    def acting_on(self, noise: Normal | None, guidance_scale: Tensor | None = None) -> Self:
        """A copy that acts on that noise; it shares everything else."""
        actor = copy.copy(self)
        actor._noise = noise
        return actor

    def _fixed_normal(self, *shape: int) -> Tensor:
        """Standard normal noise of the agent's seed, drawn on the CPU: the same at every call."""
        generator = torch.Generator().manual_seed(self.training.seed)
        return torch.randn(shape, generator=generator).to(self.device)

    _noise: Normal | None = None
    _prediction_normal = Acts._prediction_normal
    predict = Acts.predict
    seed_predictions = Acts.seed_predictions

    export_onnx = export_onnx

    def describe_policy(self) -> dict[str, Any]:
        """Name, configuration and seed, for JSON."""
        about = {"agent": self.name, "seed": self.training.seed}
        return {**about, "config": dataclasses.asdict(self.config)}  # type: ignore[call-overload]

    # SB3's other names --------------------------------------------------------------------

    @property
    def policy(self) -> sb3.Policy | None:
        """All networks as one module that predicts; None until spaces are known."""
        if self._policy is None and self.observation_space is not None:
            self._policy = sb3.Policy(self, self.networks)
        return self._policy

    @property
    def gamma(self) -> float | None:
        """The discount; None where an agent uses no rewards."""
        return None

    def get_env(self) -> VecEnv | None:
        """The environment for callbacks that evaluate, if one was given."""
        return self.env

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """The environment's own normalisation, if it has one (SB3's callbacks ask)."""
        return None if self.env is None else unwrap_vec_normalize(self.env)

    def set_env(self, env: gym.Env[Any, Any] | VecEnv | str, force_reset: bool = True) -> None:
        """Give callbacks an environment, seeded; learning itself never uses one.

        Before data, an agent for its spaces is built, which acts and can be saved. `learn` makes
        it anew. Every evaluation resets the environment: `force_reset` changes nothing.
        """
        if self._built_for_env:
            self._reset()
        vec_env, adapter = sb3.as_vec_env(env, self.adapter)
        if self.observation_space is None and isinstance(vec_env.observation_space, spaces.Dict):
            check_action_space(vec_env.action_space, "the environment")  # the data say how to read
        else:
            known = self.observation_space is not None
            of_env = vec_env.observation_space, vec_env.action_space
            adapter = self.adapter if known else adapter
            self.set_spaces(*of_env, "the environment", adapter, of_one_step=True)
            self._built_for_env = not known
        vec_env.seed(self.seed)
        self.env = vec_env

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """State dictionaries of all modules and optimizers, by name."""
        return {name: part.state_dict() for name, part in parts_of(self).items()}

    @usual_torch()
    def set_parameters(
        self, parameters: dict[str, dict[str, Any]], exact_match: bool = True
    ) -> None:
        """Load the result of `get_parameters`; `exact_match` requires all names and tensors.

        Raises ParameterError (a ValueError and a RuntimeError) before anything is changed.
        """
        load_parameters(self, parameters, exact_match)
        self._built_for_env = False

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without environment, data on the device, logger and callback."""
        left_out = dict.fromkeys(("env", "_batches", "_policy"))
        return {**self.__dict__, **left_out, "_own_logger": False}

    # Files --------------------------------------------------------------------------------

    def save(
        self,
        path: str | Path | BinaryIO,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Write everything that acting and further training need, atomically.

        `path` may be an open binary file. `exclude` may contain `verbose` and `tensorboard_log`,
        which are then not saved; `include` removes names from `exclude`.

        Raises NonFiniteError if parameters are not finite, CheckpointError if `load` would refuse
        the file (because networks or optimizers were replaced), and CheckpointWriteError if it
        cannot be written. In all cases the previous file is unchanged.
        """
        target = checkpoint.with_suffix(path)
        self.check_whole("cannot be saved")
        about = header.describe(self, exclude, include)
        generators = {"prediction": self.prediction_generator}
        checkpoint.write_checkpoint(
            target,
            self.training,
            self.config,
            generators,
            self._all_kinds,
            self.tables_to_save(),
            **about,
        )
        self.training.saved = f"{checkpoint.named(target)} (timestep {self.num_timesteps})"

    @classmethod
    def load(
        cls,
        path: str | Path | BinaryIO,
        env: gym.Env[Any, Any] | VecEnv | str | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        verbose: int | None = None,
        tensorboard_log: str | Path | None = None,
    ) -> Self:
        """Read a checkpoint, or that of a run folder.

        Raises CheckpointError if it is damaged or of another agent class.

        If `env` is given, its spaces must match the agent's. `custom_objects` replaces values in
        the file: fields of the configuration, `learning_rate`, `verbose` and `tensorboard_log`.
        The arguments `verbose` and `tensorboard_log` do the same.
        """
        source = checkpoint.source_of(path)
        device = choose_device(device)  # not the file's fault
        read = checkpoint.read_checkpoint(source)
        about = read.header
        if about["agent"] != getattr(cls, "name", None):
            if not hasattr(cls, "name"):
                raise TypeError(
                    f"{cls.__name__} is an abstract class: load_agent(path) finds the class "
                    f"that wrote a file, {about['agent']!r} here"
                )
            raise CheckpointError(
                f"{checkpoint.named(source)} holds a {about['agent']!r} agent, load it with that "
                f"class (this is {cls.name!r})"
            )
        if print_system_info:
            header.print_system_info(about)
        given = {"verbose": verbose, "tensorboard_log": tensorboard_log}
        if not isinstance(custom_objects, dict | None):
            raise TypeError(
                f"custom_objects is a {type(custom_objects).__name__}, expected a dict of names "
                "and values"
            )
        replaced = {**(custom_objects or {}), **{k: v for k, v in given.items() if v is not None}}
        with checkpoint.using(source, read):
            config = checkpoint.config_from_json(cls.config_class, about["config"])
            optional = header.optional_arguments(about)
        config, optional = header.replaced(cls, config, optional, replaced)
        with checkpoint.using(source, read):
            agent = cls(config, seed=about["seed"], device=device, **optional)
            agent._build_as(about, f"checkpoint {checkpoint.named(source)}")
            generators = {"prediction": agent.prediction_generator}
            if (online := about.get("online")) is not None:
                agent.online_config = checkpoint.config_from_json(OnlineConfig, online)
            checkpoint.restore(agent.training, read, generators, agent._all_kinds)
            header.set_data(agent, about["dataset"])
        agent.training.saved = f"{checkpoint.named(source)} (timestep {agent.num_timesteps})"
        if env is not None:
            agent.set_env(env, force_reset)
        return agent

    @classmethod
    def pretrained(
        cls,
        name: str,
        env: gym.Env[Any, Any] | VecEnv | str | None = None,
        device: torch.device | str = "auto",
    ) -> Self:
        """A trained agent that comes with the package, such as `halfcheetah/mixed`.

            agent = QGPO.pretrained("halfcheetah/mixed")
            print(evaluate(agent, "HalfCheetah-v5"))

        Its weights are rounded to 8 bits, and it has what acting needs alone: no critic, and so
        nothing that could be saved, adopted, or trained further. `learn` begins anew. Raises
        ValueError, with the choices, for other names.
        """
        path = pretrained.path_of(cls.name, name)
        device = choose_device(device)
        stored = pretrained.read(path)
        about = stored.header
        read = checkpoint.Checkpoint(about, {}, {}, {})
        with checkpoint.using(path, dataclasses.replace(read, modules=stored.tensors)):
            config = checkpoint.config_from_json(cls.config_class, about["config"])
            agent = cls(config, seed=about["seed"], device=device)
            agent._build_as(about, f"trained agent {name!r}")
            read.modules = stored.fill(agent.training.built)
            check_modules(agent.training.built, read.modules)
            agent.networks.load_state_dict(read.modules)
            agent.progress.update(about["progress"])
            agent.training.stage = about["stage"]
            agent.training.num_timesteps = about["num_timesteps"]
            header.set_data(agent, about["dataset"])
        agent.acts_only = True
        if env is not None:
            agent.set_env(env)
        return agent

    def _all_kinds(self, found: Collection[str]) -> Kinds:
        """The tables of its stages, and of what it collects in an environment."""
        if self.online_config is None:
            return self.table_kinds(found)
        assert self.observation_space is not None
        assert self.action_space is not None
        dims = self.observation_space.shape[0], self.action_space.shape[0]
        return {**self.table_kinds(found), **collected.kinds(*dims, needed=True)}

    def check_whole(self, what: str) -> None:
        """Raise RuntimeError for an agent that `pretrained` gave, which lacks its critic."""
        if self.acts_only:
            raise RuntimeError(
                f"this {self.name} {what}: it came with the package and has what acting needs "
                "alone. learn(dataset) trains one that is whole"
            )

    def _build_as(self, about: dict[str, Any], of: str) -> None:
        """Build the modules for the spaces that a header describes."""
        adapter, window = about.get("observation_adapter"), about.get("window")
        self.set_spaces(
            header.space_from_json(about["observation_space"]),
            header.space_from_json(about["action_space"]),
            of,
            ObservationAdapter.from_json(adapter) if adapter else None,
            Window.from_json(window) if window is not None else None,
        )
        assert self.action_space is not None
        self.action_scale = ActionScale.from_json(self.action_space, about.get("action_scale"))
