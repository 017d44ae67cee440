"""Stable-Baselines3's SAC and TD3 as baselines: naive offline ones, and SAC online.

Offline: their own `train()`, fed with a dataset instead of a replay buffer that an environment
fills; nothing keeps their Q functions from actions that the data do not have, which is the
failure that offline methods are made against (Fujimoto et al. 2019, arXiv 1812.02900). Online:
SAC (Haarnoja et al. 2018, arXiv 1812.05905) in the dataset's environment, whose steps it spends;
the data are not used. All else, files and resume bit for bit included, is OfflineAgent's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium as gym
import torch
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn

from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.core.batches import Batches
from qgpo.agents.core.config import Fraction, Rate, Steps
from qgpo.agents.core.process import seeded
from qgpo.agents.core.registers import Kinds, Table
from qgpo.diffusion import Metrics
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.tasks.making import make_env
from qgpo.envs.tasks.observations import flat
from qgpo.fields import check_fields

METRICS = ("actor_loss", "critic_loss", "ent_coef")


@dataclass(frozen=True)
class SB3Config:
    """Hyperparameters of SAC and TD3; what is not here is Stable-Baselines3's default."""

    steps: Steps = 1_000_000
    """gradient steps; for online agents, environment steps"""
    hidden: tuple[int, ...] = (256, 256)
    """hidden layer sizes of actor and critics"""
    batch_size: int = 256
    """transitions per gradient step"""
    learning_rate: float = 3e-4
    """Adam step size of all optimizers"""
    gamma: Fraction = 0.99
    """discount factor"""
    tau: Rate = 0.005
    """Polyak rate of the target networks"""
    learning_starts: int = 10_000
    """random environment steps before learning; only for online agents"""

    def __post_init__(self) -> None:
        check_fields(self)


SAC_PRESETS = {"laptop": SB3Config(steps=10_000), "paper": SB3Config()}
TD3_NETWORKS: dict[str, Any] = {"hidden": (400, 300), "learning_rate": 1e-3}
TD3_PRESETS = {
    "laptop": SB3Config(steps=10_000, **TD3_NETWORKS),
    "paper": SB3Config(**TD3_NETWORKS),
}
ONLINE_PRESETS = {"laptop": SB3Config(steps=100_000), "paper": SB3Config()}


class SB3Agent(OfflineAgent[SB3Config]):
    """An SB3 off-policy algorithm whose registers are an OfflineAgent's."""

    config_class: ClassVar[type[SB3Config]] = SB3Config
    presets: ClassVar[dict[str, SB3Config]] = SAC_PRESETS
    algorithm: ClassVar[type[SAC | TD3]] = SAC
    model: SAC | TD3

    @property
    def total_timesteps(self) -> int:
        """Steps of a whole training."""
        return self.config.steps

    @property
    def gamma(self) -> float:
        """The discount."""
        return self.config.gamma

    def _build(self, observation_dim: int, action_dim: int) -> None:
        c = self.config
        self._dims = observation_dim, action_dim
        model = self.algorithm(
            "MlpPolicy",
            None,  # type: ignore[arg-type]
            learning_rate=c.learning_rate,
            buffer_size=1,  # the data are ours
            tau=c.tau,
            gamma=c.gamma,
            policy_kwargs={"net_arch": list(c.hidden)},
            device=self.device,
            _init_setup_model=False,
        )
        assert self.observation_space is not None
        assert self.action_space is not None
        model.observation_space, model.action_space = self.observation_space, self.action_space
        if isinstance(model, SAC):  # "auto" would ask an environment
            model.target_entropy = -float(action_dim)
        model.n_envs = 1
        model._setup_model()
        model.set_logger(Logger(folder=None, output_formats=[]))
        self.model = model
        self.networks["policy"] = model.policy
        self.optimizers["actor"] = model.policy.actor.optimizer
        self.optimizers["critic"] = model.policy.critic.optimizer
        if isinstance(model, SAC):  # its entropy coefficient, as a parameter that is registered
            model.log_ent_coef = nn.Parameter(torch.zeros(1, device=self.device))
            model.ent_coef_optimizer = torch.optim.Adam([model.log_ent_coef])
            self.networks["entropy"] = nn.ParameterDict({"log_coefficient": model.log_ent_coef})
            self.optimizers["entropy"] = model.ent_coef_optimizer

    def _update(self, step: int, drawn: ReplayBufferSamples) -> Metrics:
        """One step of SB3's own `train()` on those transitions."""
        self.model.replay_buffer = SimpleNamespace(sample=lambda *_, **__: drawn)  # type: ignore[assignment]
        self.model._n_updates = step  # TD3 delays its actor by it
        with self._randomness(self.training.generator):
            self.model.train(gradient_steps=1, batch_size=len(drawn.rewards))
        self.networks.train(False)
        found = self.model.logger.name_to_value
        return {
            name: torch.tensor(float(found[f"train/{name}"]))
            for name in METRICS
            if f"train/{name}" in found
        }

    def act(self, observations: Tensor, deterministic: bool) -> Tensor:
        """(B, S) to actions (B, A) in [-1, 1]."""
        with torch.no_grad():
            if isinstance(self.model, SAC):  # its squashed Gaussian, by noise that may be given
                mean, log_std, _ = self.model.actor.get_action_dist_params(observations)
                if not deterministic:
                    mean = mean + log_std.exp() * self._prediction_normal(*mean.shape)
                return torch.tanh(mean)
            with self._randomness(self.prediction_generator):
                return self.model.policy._predict(observations, deterministic)

    @contextlib.contextmanager
    def _randomness(self, generator: torch.Generator) -> Iterator[None]:
        """Seed torch's global generator, from which SB3 draws, by this one; it is restored."""
        seed = torch.randint(2**62, (), generator=generator, device=self.device)
        devices = [self.device] if self.device.type == "cuda" else []
        with seeded(int(seed), devices):
            yield


class _Offline(SB3Agent):
    """Trains on the dataset as if it were a replay buffer that no longer grows."""

    stages: ClassVar[tuple[str, ...]] = ("offline",)

    def _train(self, dataset: OfflineDataset) -> None:
        """SB3's update on transitions drawn uniformly from the dataset."""
        batches = self.prepare(dataset)

        def update(step: int) -> Metrics:
            index = self.training.draw(len(batches), self.config.batch_size)
            return self._update(step, transitions(batches, index))

        self.training.run_stage("offline", self.config.steps, update)


def transitions(batches: Batches, index: Tensor) -> ReplayBufferSamples:
    """Those transitions (B,) as a replay buffer of SB3's returns them.

    Actions are scaled to [-1, 1]; a truncated episode does not cut the bootstrap.
    """
    b = batches.transitions(index)
    dones, rewards = b.terminations[:, None], b.rewards[:, None]
    return ReplayBufferSamples(b.observations, b.actions, b.next_observations, dones, rewards)


class OfflineSAC(_Offline):
    """Naive offline SAC."""

    name: ClassVar[str] = "sb3:offline-sac"


class OfflineTD3(_Offline):
    """Naive offline TD3 (Fujimoto et al. 2018, arXiv 1802.09477)."""

    name: ClassVar[str] = "sb3:offline-td3"
    presets: ClassVar[dict[str, SB3Config]] = TD3_PRESETS
    algorithm: ClassVar[type[SAC | TD3]] = TD3


class OnlineSAC(SB3Agent):
    """SAC in the dataset's environment: one gradient step per environment step.

    A checkpoint holds all transitions; on resume the episode under way is played again from its
    seed with its stored actions, so that resuming equals not stopping where the environment is
    deterministic, as MuJoCo's are.
    """

    name: ClassVar[str] = "sb3:online-sac"
    presets: ClassVar[dict[str, SB3Config]] = ONLINE_PRESETS
    stages: ClassVar[tuple[str, ...]] = ("online",)
    even_steps: ClassVar[bool] = False  # up to `learning_starts` they only play

    @property
    def environment_steps(self) -> int:
        """Steps taken in the environment."""
        return self.progress["online"]

    def _train(self, dataset: OfflineDataset) -> None:
        """Act, store the transition, learn."""
        if dataset.env_spec is None:
            raise ValueError(
                f"dataset {dataset.id!r} names no environment for online SAC to act in: choose "
                "another dataset"
            )
        if self.window is not None:
            raise ValueError(
                f"dataset {dataset.id!r} has {self.window}: online SAC sees one observation, and "
                "decides one action, at a time"
            )
        env = flat(make_env(dataset.env_spec), self.adapter)
        if not self.tables:
            self._make_tables()
        observation = self._return_to_episode(env)

        def update(step: int) -> Metrics:
            nonlocal observation
            action = self._explore(observation, step)
            observation = self._step(env, observation, action, step)
            if step < self.config.learning_starts:
                return {}
            return self._update(step, self._remembered(step + 1))

        try:
            self.training.run_stage("online", self.config.steps, update)
        finally:
            env.close()

    def table_kinds(self, found: Collection[str]) -> Kinds:
        """Every transition of the training, in rows that are made before the first."""
        needed = self.environment_steps > 0
        bounds = {"actions": (-1.0, 1.0), "terminations": (0.0, 1.0), "ends": (0.0, 1.0)}
        return {
            name: Table(shape, *bounds.get(name, (-math.inf, math.inf)), needed)
            for name, shape in self._shapes().items()
        }

    def _shapes(self) -> dict[str, tuple[int, int]]:
        n, (s, a) = self.config.steps, self._dims
        shapes = {"observations": (n, s), "next_observations": (n, s), "actions": (n, a)}
        return {**shapes, "rewards": (n, 1), "terminations": (n, 1), "ends": (n, 1)}

    def _make_tables(self) -> None:
        """Room for every transition of the training."""
        for name, shape in self._shapes().items():
            self.tables[name] = torch.zeros(shape, device=self.device)

    def _begin_episode(self, env: gym.Env[Any, Any], steps: int) -> Tensor:
        """A new episode, whose seed follows from how many there were within `steps`."""
        episode = int(self.tables["ends"][:steps].sum())
        return self._tensor(env.reset(seed=10**6 * (1 + self.training.seed) + episode)[0])

    def _return_to_episode(self, env: gym.Env[Any, Any]) -> Tensor:
        """The observation (S,) at which training stands, its episode played again up to there."""
        steps = self.progress["online"]
        ends = torch.nonzero(self.tables["ends"][:steps, 0])
        start = int(ends[-1]) + 1 if len(ends) else 0
        observation = self._begin_episode(env, start)
        for action in self.tables["actions"][start:steps]:
            observation = self._tensor(env.step(self._in_space(action))[0])
        return observation

    def _explore(self, observation: Tensor, step: int) -> Tensor:
        """A uniform action (A,) in the beginning, then the policy's own."""
        if step < self.config.learning_starts:
            shape = self.tables["actions"].shape[1:]
            uniform = torch.rand(shape, generator=self.training.generator, device=self.device)
            return 2.0 * uniform - 1.0
        with torch.no_grad(), self._randomness(self.training.generator):
            return self.model.policy._predict(observation[None])[0]

    def _step(
        self, env: gym.Env[Any, Any], observation: Tensor, action: Tensor, step: int
    ) -> Tensor:
        """Store transition number `step`; returns the observation to act on next, (S,)."""
        result = env.step(self._in_space(action))
        next_observation, reward, terminated, truncated = result[:4]
        row = {
            "observations": observation,
            "next_observations": self._tensor(next_observation),
            "actions": action,
            "rewards": self._tensor(reward),
            "terminations": self._tensor(terminated),
            "ends": self._tensor(terminated or truncated),
        }
        for name, value in row.items():
            self.tables[name][step] = value
        if terminated or truncated:
            return self._begin_episode(env, step + 1)
        return row["next_observations"]

    def _remembered(self, steps: int) -> ReplayBufferSamples:
        """A batch of the first `steps` transitions."""
        index = self.training.draw(steps, self.config.batch_size)
        names = ("observations", "actions", "next_observations", "terminations", "rewards")
        return ReplayBufferSamples(*(self.tables[name][index] for name in names))

    def _in_space(self, action: Tensor) -> Any:
        """An action (A,) in [-1, 1] as the environment takes it."""
        assert self.action_scale is not None
        return self.action_scale.to_space(action.cpu().numpy())

    def _tensor(self, value: Any) -> Tensor:
        """A copy: an environment may use its arrays again."""
        return torch.tensor(value, dtype=torch.float32, device=self.device)


BASELINES: dict[str, type[OfflineAgent[Any]]] = {
    agent.name: agent for agent in (OfflineSAC, OfflineTD3, OnlineSAC)
}
