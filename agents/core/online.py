"""Offline to online: an agent that has learned from data goes on in its environment.

1. play    an episode, by sampled actions where it is none of a pair that compares two guidance
           scales (scale_trial.py); nothing is learned while it lasts
2. store   the episode joins the data (collected.py)
3. learn   every `learn_every` steps, but not between the episodes of a pair: the agent's own
           losses, on batches of old and new transitions

An agent says in `_follow` what one update is; it uses the parts of its stages, so that there is no
second copy of a loss. Playing draws no number of the training's generator: the start of an episode
and its noise follow from the agent's seed and from how many episodes there were. So an episode that
is interrupted is played again from its start, and resuming equals not stopping where the
environment does the same for the same seed. An environment that does not (a robot) begins a new
episode, and nothing of what was learned is lost.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Protocol, Self, TypeVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from qgpo.agents.core import collected, sb3
from qgpo.agents.core.acting import Acts, Normal, normal_of
from qgpo.agents.core.batches import Batches
from qgpo.agents.core.collected import Episode
from qgpo.agents.core.config import Fraction, NotNegative, Period, Rate
from qgpo.agents.core.scale_trial import Next, Played, next_episode
from qgpo.agents.core.training import ONLINE, UPDATES, Training, on_signals
from qgpo.diffusion import Metrics
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.rollouts.vecnormalize import normalizer_of
from qgpo.envs.store.loading import load_dataset
from qgpo.envs.tasks.making import make_env
from qgpo.fields import Range, check_count, check_fields

LEARN_ONLINE = ("QGPO", "AEPO", "SIR", "BestOfN")
"""agents that go on in an environment"""
ABSURD = 1e6
"""times the largest number of its column in the data, or 1, from which on a number is refused"""
EPISODES_OF_MEAN = 100
"""that rollout/ep_rew_mean is the mean of, as in SB3"""


@dataclass(frozen=True)
class OnlineConfig:
    """How an agent goes on in an environment."""

    play_first: Annotated[int, Range(0, 10**12)] = 1_000
    """environment steps before the first update"""
    learn_every: Period = 1_000
    """environment steps between two times of learning, which wait for the end of an episode"""
    updates_per_step: Annotated[float, Range(0.0, 100.0)] = 0.25
    """updates per environment step; more use what was collected more often, and are slower"""
    learning_rate_factor: Rate = 0.3
    """part of each stage's learning rate that updates have"""
    try_scales: bool = True
    """play some episodes of guided agents in pairs, the second at a neighboring guidance scale, and
    take that one where it returns more"""
    most_collected: Fraction = 0.5
    """share of a batch that is of collected transitions, at most"""
    collected_weight: NotNegative = 5.0
    """how many times as often a collected transition is drawn as one of the dataset, up to that
    share"""

    def __post_init__(self) -> None:
        check_fields(self)

    def share(self, recorded: int, collected: int) -> float:
        """The share of a batch that is of collected transitions."""
        weighted = self.collected_weight * collected
        return min(self.most_collected, weighted / max(1.0, weighted + recorded))


class Online(Acts, Protocol):
    """What of an agent goes on: its training, its data, and how it learns."""

    learns_online: ClassVar[bool]
    training: Training
    env: VecEnv | None
    env_spec: EnvSpec | None
    dataset_id: str | None
    dataset_fingerprint: str | None
    online_config: OnlineConfig | None

    @property
    def is_trained(self) -> bool:
        """Whether training on data has come to its end."""

    @property
    def tries_scales(self) -> bool:
        """Whether another guidance scale, tried online, would act otherwise."""

    def check_whole(self, what: str) -> None:
        """Raise RuntimeError for an agent that can only act."""

    def prepare(self, dataset: OfflineDataset) -> Batches:
        """The dataset as training reads it."""

    def set_env(self, env: gym.Env[Any, Any] | VecEnv | str, force_reset: bool = True) -> None:
        """Take an environment. Raises ValueError for other spaces."""

    def acting_on(self, noise: Normal | None, guidance_scale: Tensor | None = None) -> Self:
        """A copy that acts on that noise."""

    def _report(
        self, log_interval: int, tb_log_name: str | None, progress_bar: bool, anew: bool
    ) -> None: ...

    def _tuned(
        self, dataset: OfflineDataset, batches: Batches, rewards: NDArray[np.float32]
    ) -> Tensor: ...

    def _begin_online(self, recorded: Batches) -> None: ...

    def _extend_online(self, data: Batches) -> None: ...

    def _follow(self, data: Batches, step: int, factor: float) -> Metrics: ...


AgentT = TypeVar("AgentT", bound=Online)


def learn_online(
    agent: AgentT,
    env: gym.Env[Any, Any] | VecEnv | EnvSpec | str | None = None,
    timesteps: int = 50_000,
    dataset: OfflineDataset | str | None = None,
    callback: MaybeCallback = None,
    log_interval: int = 1000,
    tb_log_name: str | None = None,
    progress_bar: bool = False,
    config: OnlineConfig | None = None,
) -> AgentT:
    """Go on in an environment, on the dataset and on what is collected there.

    `timesteps` are the environment steps of the whole online training, counted from its first one:
    an agent that is loaded or was interrupted goes on by the same call. `env` is an environment, an
    id, a spec or an SB3 VecEnv of one environment; by default that of the agent, or of the data.
    `dataset` is what the agent was trained on, again, or its id; by default what the agent's file
    names. Callbacks, the logger and `num_timesteps` count environment steps. `config` says how
    (default: OnlineConfig, or what the training that is continued had).

    Ctrl-C and SIGTERM finish the step under way, and the learning after an episode, and raise
    KeyboardInterrupt. The agent can then be saved. The episode under way is not kept: it is played
    again from its start. An episode under way when the `timesteps` are reached is cut there.

    Raises TypeError for agents that only learn from data, RuntimeError for one that is not trained
    to the end, and ValueError for other spaces, other data, another `config` than the training
    that is continued, rewards or observations that are not finite or a million times larger than
    the data's, and wrappers that normalize observations or rewards.
    """
    timesteps = check_count("timesteps", timesteps)
    sb3.check_reports(log_interval, tb_log_name)
    callback = sb3.as_callback(callback)
    check_learns_online(agent)
    if config is not None and not isinstance(config, OnlineConfig):
        raise TypeError(f"config is a {type(config).__name__}, expected an OnlineConfig")
    dataset = _dataset_of(agent, dataset)
    training = agent.training
    with training.turn.training():
        with on_signals(training.interrupt):
            config = _config_of(agent, config)
            recorded = agent.prepare(dataset)
            vec_env = _env_of(agent, env)
            loop = OnlineLoop(agent, vec_env, dataset, recorded, config)
            done = loop.begin(timesteps)
        training.stop_if_interrupted("before the first step")
        agent._report(log_interval, tb_log_name, progress_bar, anew=done == 0)
        total_timesteps = timesteps  # for callbacks, which read our locals
        with training.running(callback, agent, locals()):
            training.run_stage(ONLINE, timesteps, loop.step)
    return agent


def check_learns_online(agent: Online) -> None:
    """Raise TypeError or RuntimeError for an agent that cannot go on in an environment."""
    if not agent.learns_online:
        raise TypeError(
            f"a {agent.name} agent learns from data alone, expected one of {sorted(LEARN_ONLINE)}"
        )
    agent.check_whole("cannot learn online")
    if not agent.training.networks or not agent.is_trained:
        raise RuntimeError(f"this {agent.name} is not trained to the end: call learn(dataset)")
    if agent.window is not None:
        raise ValueError(
            f"this {agent.name} has {agent.window}, expected one observation and one action at a "
            "time: learning online has no history and no chunks"
        )


def _dataset_of(agent: Online, dataset: OfflineDataset | str | None) -> OfflineDataset:
    """The data of the agent's training. Raises ValueError for others."""
    if not isinstance(dataset, OfflineDataset):
        dataset = load_dataset(str(agent.dataset_id) if dataset is None else dataset)
    if agent.dataset_fingerprint != dataset.fingerprint:
        raise ValueError(
            f"this {agent.name} was trained on {agent.dataset_id!r}, {dataset.id!r} holds other "
            "data: pass the data of its training"
        )
    if dataset.folder is not None:
        raise ValueError(
            f"dataset {dataset.id!r} is memory-mapped, and episodes cannot join it: load it with "
            "storage='memory'"
        )
    return dataset


def _config_of(agent: Online, config: OnlineConfig | None) -> OnlineConfig:
    """The configuration given, or that of the training that is continued, which it must equal."""
    known = agent.online_config
    if known is None:
        return config or OnlineConfig()
    for field in dataclasses.fields(OnlineConfig):
        ours = getattr(known, field.name)
        if config is not None and getattr(config, field.name) != ours:
            raise ValueError(
                f"{field.name}={getattr(config, field.name)!r}, but this online training began "
                f"with {field.name}={ours!r}: continue it without config, or with the same one"
            )
    return known


def _env_of(agent: Online, env: Any) -> VecEnv:
    """The environment, which becomes the agent's. Raises ValueError for other spaces."""
    if env is None and agent.env is None and agent.env_spec is None:
        raise ValueError(
            f"dataset {agent.dataset_id!r} names no environment: pass one, as env, with "
            f"observations {agent.observation_space} and actions {agent.action_space}"
        )
    if env is None and agent.env is None:
        env = agent.env_spec
    if env is not None:
        agent.set_env(make_env(env) if isinstance(env, EnvSpec) else env)
    assert agent.env is not None
    normalizer = normalizer_of(agent.env, of_rewards=True)
    if normalizer is not None:
        raise ValueError(
            f"env normalizes what it gives ({normalizer}), and the data of the training are as "
            "they were recorded: pass the environment without that wrapper"
        )
    if agent.env.num_envs != 1:
        raise ValueError(f"env has {agent.env.num_envs} environments, expected a VecEnv of one")
    return agent.env


def _only(observations: Any) -> Any:
    """The observation of the only environment."""
    if isinstance(observations, dict):
        return {key: part[0] for key, part in observations.items()}
    return observations[0]


class OnlineLoop:
    """Episodes in an environment, and what is learned between them."""

    def __init__(
        self,
        agent: Online,
        env: VecEnv,
        dataset: OfflineDataset,
        recorded: Batches,
        config: OnlineConfig,
    ) -> None:
        self.agent, self.env, self.dataset = agent, env, dataset
        self.recorded, self.config = recorded, config
        self.training = agent.training
        low, high = torch.aminmax(recorded.states, dim=0)
        largest = torch.maximum(-low, high).clamp(min=1.0)
        self.largest_states = ABSURD * largest.double().cpu().numpy()
        self.largest_reward = ABSURD * max(1.0, float(np.abs(dataset.rewards).max(initial=0.0)))
        self.episode: Episode | None = None
        """under way"""
        self.observation: Any = None
        """to act on, as the environment gave it"""
        self.actor: Any = None
        """the agent with the noise and the scale of the episode"""
        self.timesteps = 0

    def begin(self, timesteps: int) -> int:
        """Bring the agent to the start of its next episode; the environment steps done.

        Raises ValueError for fewer timesteps than those.
        """
        agent, training = self.agent, self.training
        assert agent.observation_space is not None
        assert agent.action_space is not None
        done = collected.collected_rows(training)[1]
        if timesteps < done:
            raise ValueError(
                f"timesteps={timesteps}, but this agent has learned online from {done} already, "
                "and timesteps count these, too"
            )
        dims = agent.observation_space.shape[0], agent.action_space.shape[0]
        collected.begin(training, *dims)
        collected.check(training)
        if agent.online_config is None:
            agent._begin_online(self.recorded)
            agent.online_config = self.config
        training.progress[ONLINE] = training.num_timesteps = done
        training.progress.setdefault(UPDATES, 0)
        self.finished = collected.returns_and_lengths(training)
        self.scales = training.tables[collected.SCALES].tolist()
        self.paired = training.tables[collected.PAIRED].bool().tolist()
        if self._next().scale != self._own_scale:  # it was set by hand: trials begin anew
            training.tables[collected.PAIRED].zero_()
            self.paired = [False] * len(self.paired)
        self.timesteps = timesteps
        return done

    def step(self, step: int) -> Metrics:
        """One step in the environment; at the end of an episode, what is learned then."""
        if self.episode is None:
            self._reset()
        episode = self.episode
        assert episode is not None
        actions, _ = self.actor.predict(self.observation, deterministic=episode.paired)
        following, rewards, dones, infos = self.env.step(actions)
        ended, reward = bool(dones[0]), float(np.float32(rewards[0]))  # as tables hold it
        if not np.isfinite(reward):
            raise ValueError(f"the environment's reward is {reward} at step {step + 1}")
        if abs(reward) > self.largest_reward:
            raise ValueError(
                f"the environment's reward is {reward:g} at step {step + 1}, and no reward in the "
                f"data exceeds {self.largest_reward / ABSURD:g}: is it broken? Its episode is left "
                "out"
            )
        self.observation = following
        last = infos[0]["terminal_observation"] if ended else _only(following)
        episode.states.append(self._vector(last))
        episode.actions.append(np.array(actions[0], np.float32))
        episode.rewards.append(reward)
        episode.terminated = ended and not infos[0].get("TimeLimit.truncated", False)
        if self.training.callback is not None:
            seen = {"rewards": rewards, "dones": dones, "infos": infos, "actions": actions}
            self.training.callback.update_locals(seen)
        is_last = step + 1 == self.timesteps
        if not (ended or is_last):
            return {}
        episode.paired &= ended  # one that is cut is compared with none
        self._finish(episode)
        if self._next().repeats and not is_last:
            return {}  # what is learned now would be a part of the difference
        return self._learn(is_last)

    # Episodes -----------------------------------------------------------------------------

    def _reset(self) -> None:
        """Begin an episode, whose start and noise follow from how many there were."""
        number, following = len(self.finished), self._next()
        of_env, of_noise = self._words(number - following.repeats)[0], self._words(number)[1]
        generator = torch.Generator().manual_seed(of_noise)
        actor: Any = self.agent.acting_on(partial(normal_of, generator, self.agent.device))
        if self.agent.tries_scales:
            actor.guidance_scale = following.played
        self.actor = actor
        self.env.seed(of_env)
        self.observation = self.env.reset()
        first = self._vector(_only(self.observation))
        self.episode = Episode([first], scale=following.played, paired=following.paired)

    def _next(self) -> Next:
        """What the next episode is: a trial of another scale, or as the agent acts today."""
        own = self._own_scale
        if not (self.config.try_scales and self.agent.tries_scales):
            return Next(own, own)
        totals = [total for total, _ in self.finished]
        return next_episode(own, list(map(Played, self.scales, self.paired, totals)))

    @property
    def _own_scale(self) -> float:
        """The agent's, as tables hold it."""
        guided: Any = self.agent
        return float(np.float32(getattr(guided, "guidance_scale", 0.0)))

    def _words(self, episode: int) -> list[int]:
        """Seeds of that episode, of the environment and of the noise."""
        entropy = np.random.SeedSequence((self.training.seed, episode))
        return [int(word) for word in entropy.generate_state(2)]

    def _vector(self, observation: Any) -> NDArray[np.float32]:
        """An observation as the agent sees it, (S,)."""
        if self.agent.adapter is not None and isinstance(observation, dict):
            observation = self.agent.adapter.flatten(observation)
        vector = np.array(observation, np.float32).reshape(-1)
        if not np.isfinite(vector).all():
            raise ValueError(f"the environment's observation is not finite: {vector}")
        if (wrong := np.abs(vector) > self.largest_states).any():
            k = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"the environment's observation has {vector[k]:g} in column {k}, where nothing in "
                f"the data exceeds {self.largest_states[k] / ABSURD:g}: is it broken? Its episode "
                "is left out"
            )
        return vector

    def _finish(self, episode: Episode) -> None:
        """Store an episode, and log what SB3 logs of it."""
        episode.store(self.training)
        self.finished.append((float(np.sum(episode.rewards)), len(episode)))
        self.scales.append(episode.scale)
        self.paired.append(episode.paired)
        if (scale := self._next().scale) != self._own_scale:
            guided: Any = self.agent
            guided.configure_guidance(scale)
        self.episode = None
        returns, lengths = zip(*self.finished[-EPISODES_OF_MEAN:], strict=True)
        logger = self.training.logger
        logger.record("rollout/ep_rew_mean", float(np.mean(returns)))
        logger.record("rollout/ep_len_mean", float(np.mean(lengths)))
        logger.record("time/episodes", len(self.finished), exclude="tensorboard")

    # Learning -----------------------------------------------------------------------------

    def _learn(self, is_last: bool) -> Metrics:
        """The updates that are due; their mean metrics."""
        c, training = self.config, self.training
        done = training.progress[UPDATES]
        played = collected.collected_rows(training)[1]
        owed = int(c.updates_per_step * max(0, played - c.play_first)) - done
        if owed <= 0 or (owed < c.updates_per_step * c.learn_every and not is_last):
            return {}
        data = self.data()
        self.agent._extend_online(data)
        sums: Metrics = {}
        training.updating = True
        for update in range(done, done + owed):
            metrics = self.agent._follow(data, update, c.learning_rate_factor)
            for name, value in metrics.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
        training.progress[UPDATES] = done + owed
        training.updating = False
        training.logger.record("train/n_updates", done + owed, exclude="tensorboard")
        return {name: value / owed for name, value in sums.items()}

    def data(self) -> Batches:
        """The dataset and everything that was collected."""
        rewards = self.training.tables[collected.REWARDS].cpu().numpy()
        tuned = self.agent._tuned(self.dataset, self.recorded, rewards)
        share = self.config.share(len(self.recorded), len(rewards))
        return collected.joined(self.training, self.recorded, tuned, share)
