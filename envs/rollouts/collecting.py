"""Episodes that policies play, in Gymnasium environments and in SB3's vector environments."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize
from tqdm import tqdm

from qgpo.envs.rollouts.playing import Player
from qgpo.envs.rollouts.protocols import Policy, Predicts, SeedsPredictions
from qgpo.envs.rollouts.vecnormalize import warn_of_normalized
from qgpo.envs.tasks.making import as_played, make_env
from qgpo.envs.tasks.observations import stack
from qgpo.envs.tasks.spaces import check_action_space, check_spaces
from qgpo.fields import check_count, check_flag, check_seed

N_ENVS = 10


class CollectionError(RuntimeError, ValueError):
    """An environment or a policy that failed while episodes were collected.

    `episodes` are those that had ended by then.
    """

    def __init__(self, message: str, episodes: list[EpisodeBuffer]) -> None:
        super().__init__(message)
        self.episodes = episodes


class _FailedError(Exception):
    """What an environment did that no episode can hold; `_kept` makes the CollectionError of it."""


def collect(
    env_id: str | EnvSpec,
    make_policies: Callable[[gym.spaces.Box], Sequence[Policy | Predicts]],
    n_steps: int,
    seed: int,
    *,
    switch_every: int | None = None,
    deterministic: bool = False,
    max_episode_steps: int | None = None,
    progress_bar: bool = True,
) -> list[EpisodeBuffer]:
    """Record at least `n_steps` steps of complete episodes; each draws one policy at random.

    With `switch_every`, the policy is drawn again about every `switch_every` steps (at random in
    each step), so that all policies visit the same states. Objects with SB3's `predict` are
    accepted as policies. An id is played by the rules of its family (a maze ends at the goal), and
    a spec unchanged. Episodes that are unfinished after `n_steps` are played to their end, because
    dropping them would favor short ones.

    The result is reproducible from the seed on one machine. It uses one torch thread, because
    several threads round sums differently, and a simulator amplifies such differences. Policies
    that round their actions, such as an ActorPolicy, give the same episodes on all machines with
    the same MuJoCo and the same C math library. Raises ValueError for numbers below 1 and
    unsupported action spaces, and TypeError for objects that are not policies. Raises
    CollectionError, which holds the finished episodes, if the environment or a policy raises an
    exception, or if the environment returns values that are not finite in float32.
    """
    n_steps, seed = check_count("n_steps", n_steps), check_seed(seed)
    deterministic = check_flag("deterministic", deterministic)
    if switch_every is not None:
        switch_every = check_count("switch_every", switch_every)
    if max_episode_steps is not None:
        max_episode_steps = check_count("max_episode_steps", max_episode_steps)
    envs = [make_env(as_played(env_id)) for _ in range(N_ENVS)]
    name = env_id if isinstance(env_id, str) else env_id.id
    policies = _Policies(make_policies(_action_box(envs[0], name)), seed, deterministic)
    spec = envs[0].spec
    limit = max_episode_steps or (spec.max_episode_steps if spec else None) or 1000
    rng = np.random.default_rng(seed)
    finished: list[EpisodeBuffer] = []
    taken = 0
    bar = tqdm(total=n_steps, desc=f"collect {name}", disable=not progress_bar)
    with _kept(name, finished), one_thread(), torch.random.fork_rng(devices=[]), bar:
        playing = {i: _reset(env, rng) for i, env in enumerate(envs)}
        active = rng.integers(len(policies), size=N_ENVS)
        torch.manual_seed(seed)
        while playing:
            slots = list(playing)
            if switch_every is not None:
                switch = rng.random(N_ENVS) < 1.0 / switch_every
                active = np.where(switch, rng.integers(len(policies), size=N_ENVS), active)
            proposals = policies.act({i: playing[i].observations[-1] for i in slots})
            taken += len(slots)
            bar.update(len(slots))
            for i in slots:
                if not _step(playing[i], envs[i], proposals[active[i]][i], limit):
                    continue
                finished.append(_finish(playing.pop(i)))
                if taken < n_steps:
                    playing[i] = _reset(envs[i], rng)
                    policies.begin(i)
                    active[i] = rng.integers(len(policies))
    for env in envs:
        env.close()
    return finished


class _Policies:
    """All policies in all slots: what each would do there."""

    def __init__(
        self, policies: Sequence[Policy | Predicts], seed: int, deterministic: bool
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.deterministic = deterministic
        self.seen: dict[int, Any] = {}
        self.policies: list[Policy | Player] = []
        if not isinstance(policies, Sequence):
            raise TypeError(f"make_policies returned {policies!r}, expected a list of policies")
        if not policies:
            raise ValueError("make_policies returned no policies, expected at least one")
        for policy in policies:
            if not isinstance(policy, Predicts | Policy):
                raise TypeError(
                    f"{policy!r} is not a policy, expected an object with predict() or act()"
                )
            if isinstance(policy, SeedsPredictions):
                policy.seed_predictions(seed)
            if isinstance(policy, Predicts):
                self.policies.append(Player(policy, N_ENVS, deterministic))
            else:
                self.policies.append(policy)

    def __len__(self) -> int:
        return len(self.policies)

    def begin(self, slot: int) -> None:
        """A new episode begins in that slot."""
        for policy in self.policies:
            if isinstance(policy, Player):
                policy.starts[slot] = True

    def act(self, observation: dict[int, Any]) -> list[dict[int, Any]]:
        """The action of each policy in each slot that plays."""
        self.seen.update(observation)
        slots = list(observation)
        proposals = []
        for policy in self.policies:
            if isinstance(policy, Player):
                proposals.append(policy.act(self.seen, slots))
                continue
            batch = stack(list(observation.values()))  # its own: it may change them
            actions = policy.act(batch, self.generator, self.deterministic)
            proposals.append(dict(zip(slots, actions, strict=True)))
        return proposals


def collect_vec_env(
    agent: Predicts,
    vec_env: VecEnv,
    n_steps: int,
    seed: int,
    *,
    deterministic: bool = False,
    progress_bar: bool = True,
) -> list[EpisodeBuffer]:
    """Record at least `n_steps` steps of complete episodes of an SB3 agent, for `write_minari`.

    A recurrent agent receives its state and the episode starts, as in SB3's evaluate_policy.
    A VecNormalize must be the outermost wrapper. The agent then sees normalised observations, as
    in its training. Unnormalised observations and rewards are recorded, and the statistics do not
    change. The last observation of an episode is the one before the automatic reset. An episode
    that ends at a time limit is truncated, not terminated. Episodes that are unfinished after
    `n_steps` are played to their end. Raises ValueError for unsupported spaces, for other wrappers
    around a VecNormalize, and for environments without a step limit. Raises CollectionError as
    `collect` does. Warns if an agent of this package would see normalised observations.
    """
    n_steps, seed = check_count("n_steps", n_steps), check_seed(seed)
    deterministic = check_flag("deterministic", deterministic)
    if isinstance(agent, SeedsPredictions):  # SB3's own learned with such statistics
        warn_of_normalized(vec_env)
    raw, normalize = _unwrap(vec_env)
    raw.seed(seed)
    finished: list[EpisodeBuffer] = []
    ends: list[bool] = []
    player = Player(agent, raw.num_envs, deterministic)
    taken = 0
    bar = tqdm(total=n_steps, desc="collect", disable=not progress_bar)
    kept = _kept(f"the {type(raw).__name__}", finished)
    with kept, torch.random.fork_rng(devices=[]), _copied_observations(raw), bar:
        torch.manual_seed(seed)
        if isinstance(agent, SeedsPredictions):
            agent.seed_predictions(seed)
        observations = np.array(raw.reset())
        playing = {i: _begin(observation) for i, observation in enumerate(observations)}
        while playing:
            seen = observations if normalize is None else normalize.normalize_obs(observations)
            actions = player.batch(np.array(seen))
            # Copies are needed because vector environments may use their arrays again, or change
            # the actions.
            observations, rewards, dones, infos = _stepped(raw, np.array(actions))
            observations = np.array(observations)
            player.starts = np.array(dones, dtype=np.bool_)
            taken += len(playing)
            bar.update(len(playing))
            for i in list(playing):
                cut = bool(dones[i] and infos[i].get("TimeLimit.truncated", False))
                last = infos[i]["terminal_observation"] if dones[i] else observations[i]
                if not _add(playing[i], actions[i], rewards[i], dones[i] and not cut, cut, last):
                    continue
                ends.append(_is_own(raw, playing[i], observations[i]))
                finished.append(_finish(playing.pop(i)))
                if taken < n_steps:
                    playing[i] = _begin(observations[i])
    if not any(ends):
        warnings.warn(
            f"in all {len(ends)} episodes of {type(raw.unwrapped).__name__} the last "
            "observation equals the first one of the next episode: the environment reuses its "
            "observation array, so its last observation is lost and the recorded one is wrong. "
            "Return copies from the environment, or use a DummyVecEnv",
            stacklevel=2,
        )
    return finished


def describe(
    policies: Sequence[str],
    env_id: str,
    seed: int,
    switch_every: int | None = None,
    deterministic: bool = False,
) -> str:
    """How `collect` made the data, in one sentence, for `write_minari`."""
    actions = "mean" if deterministic else "sampled"
    turns = f"changing about every {switch_every} steps" if switch_every else "one per episode"
    names = ", ".join(policies)
    return f"Rollouts with {actions} actions of {names}, {turns}, in {env_id}, seed {seed}."


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Use one torch thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Copies(gym.ObservationWrapper[Any, Any, Any]):
    def observation(self, observation: Any) -> Any:
        return copy.deepcopy(observation)


@contextlib.contextmanager
def _copied_observations(vec_env: VecEnv) -> Iterator[None]:
    """Inside the block the environments of a DummyVecEnv return copies.

    It keeps the last observation of an episode while it resets the environment, which may use the
    array again. Environments in other processes are out of reach: `_is_own` looks at what they
    return.
    """
    inner = vec_env.unwrapped
    if not isinstance(inner, DummyVecEnv):
        yield
        return
    envs = inner.envs
    inner.envs = [_Copies(env) for env in envs]
    try:
        yield
    finally:
        inner.envs = envs


def _is_own(vec_env: VecEnv, episode: EpisodeBuffer, following: Any) -> bool:
    """Whether the episode's last observation may be its own, not the next episode's first.

    An environment that always shows the same may well end as it begins. Of stacked observations
    the newest is compared.
    """
    inner = vec_env.unwrapped
    if isinstance(inner, DummyVecEnv):
        return True
    size = int(np.prod(inner.observation_space.shape or (1,)))
    before, last = (np.ravel(one)[-size:] for one in episode.observations[-2:])
    first = np.ravel(following)[-size:]
    return not np.array_equal(last, first) or np.array_equal(last, before)


@contextlib.contextmanager
def _kept(name: str, finished: list[EpisodeBuffer]) -> Iterator[None]:
    """Inside the block no exception loses the episodes that have ended."""
    try:
        yield
    except Exception as error:  # of an environment, or of a policy
        known = isinstance(error, _FailedError)
        if not known and not finished:
            raise
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        kept = f"{len(finished)} episodes had ended" if finished else "no episode had ended"
        raise CollectionError(f"collecting in {name} failed: {reason}; {kept}", finished) from error


def _stepped(vec_env: VecEnv, actions: Any) -> Any:
    """What a vector environment's step returns. Raises _FailedError whatever it raises."""
    try:
        return vec_env.step(actions)
    except Exception as error:  # an environment may raise anything
        raise _FailedError(f"{type(error).__name__}: {error}") from error


def _unwrap(vec_env: VecEnv) -> tuple[VecEnv, VecNormalize | None]:
    """The environment to record, and what normalises its observations for the agent."""
    normalize = vec_env if isinstance(vec_env, VecNormalize) else None
    raw = vec_env if normalize is None else normalize.venv
    if unwrap_vec_normalize(raw) is not None:
        raise ValueError(
            f"a VecNormalize is inside {type(vec_env).__name__}: it must be the outermost "
            "wrapper, so that unnormalised observations and rewards can be recorded"
        )
    check_spaces(raw.observation_space, raw.action_space, "the vector environment")
    for spec in raw.get_attr("spec"):
        if spec is not None and spec.max_episode_steps is None:
            raise ValueError(
                f"environment {spec.id!r} has no step limit, so episodes may never end; set "
                "one: gymnasium.make(id, max_episode_steps=1000)"
            )
    return raw, normalize


def _action_box(env: gym.Env[Any, Any], name: str) -> gym.spaces.Box:
    if not isinstance(env.action_space, gym.spaces.Box):
        raise ValueError(f"{name} has action space {env.action_space}, expected a Box")
    return check_action_space(env.action_space, name)


def _begin(observation: Any, seed: int | None = None) -> EpisodeBuffer:
    """A new episode; its arrays are copies, as environments may use theirs again."""
    episode = EpisodeBuffer(seed=seed, observations=[copy.deepcopy(observation)], actions=[])
    _check(episode, "observation", observation)
    return episode


def _reset(env: gym.Env[Any, Any], rng: np.random.Generator) -> EpisodeBuffer:
    """A new episode, from a seed of its own."""
    seed = int(rng.integers(2**31))
    try:
        observation = env.reset(seed=seed)[0]
    except Exception as error:  # an environment may raise anything
        raise _FailedError(f"reset(seed={seed}): {type(error).__name__}: {error}") from error
    return _begin(observation, seed)


def _step(episode: EpisodeBuffer, env: gym.Env[Any, Any], action: Any, limit: int) -> bool:
    """Take and record one step, which is the last one at the limit; whether the episode is over."""
    try:
        observation, reward, terminated, truncated, _ = env.step(copy.deepcopy(action))
        terminated, truncated = bool(terminated), bool(truncated)
    except Exception as error:  # an environment may raise anything
        raise _FailedError(f"{_place(episode)}: {type(error).__name__}: {error}") from error
    truncated = truncated or (not terminated and len(episode.rewards) + 1 >= limit)
    return _add(episode, action, reward, terminated, truncated, observation)


def _add(
    episode: Any, action: Any, reward: Any, terminated: Any, truncated: Any, next_observation: Any
) -> bool:
    """Record copies of one step; whether the episode is over.

    Raises _FailedError for values that no dataset may have.
    """
    _check(episode, "reward", reward)
    _check(episode, "action", action)
    _check(episode, "observation", next_observation)
    episode.actions.append(copy.deepcopy(action))
    episode.rewards.append(float(reward))
    episode.terminations.append(bool(terminated))
    episode.truncations.append(bool(truncated))
    episode.observations.append(copy.deepcopy(next_observation))
    return bool(terminated or truncated)


def _check(episode: EpisodeBuffer, name: str, value: Any) -> None:
    """Raise _FailedError for numbers that are not finite in float32, and for no numbers."""
    for key, part in value.items() if isinstance(value, Mapping) else ():
        _check(episode, f"{name}/{key}", part)
    if isinstance(value, Mapping):
        return
    try:
        array = np.asarray(float(value) if name == "reward" else value)
        with np.errstate(over="ignore"):
            finite = array.dtype.kind != "f" or np.isfinite(array.astype(np.float32)).all()
    except (TypeError, ValueError) as error:
        raise _FailedError(f"{_place(episode)}: its {name} is {value!r} ({error})") from error
    if not finite:
        raise _FailedError(
            f"{_place(episode)}: its {name} is {value!r}, expected finite numbers that float32 "
            "holds"
        )


def _place(episode: EpisodeBuffer) -> str:
    seed = "" if episode.seed is None else f"seed {episode.seed}, "
    return f"{seed}step {len(episode.rewards)}"


def _finish(episode: Any) -> EpisodeBuffer:
    """The episode with T + 1 observations and T actions as arrays."""
    arrays = {"observations": stack(episode.observations), "actions": np.stack(episode.actions)}
    return replace(episode, **arrays)
