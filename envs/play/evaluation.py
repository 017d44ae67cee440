"""Episodes of an agent in an environment, played in copies, alone, or in a VectorEnv."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.play.scores import Evaluation, EvaluationError, scale_label, summarize
from qgpo.envs.progress import progress
from qgpo.envs.rollouts.playing import Player
from qgpo.envs.rollouts.protocols import MadeForSpaces, Predicts, SeedsPredictions
from qgpo.envs.rollouts.vecnormalize import warn_of_normalized
from qgpo.envs.tasks.families import find_family
from qgpo.envs.tasks.making import (
    as_played,
    check_played,
    limit_doubts,
    make_env,
    quiet_mujoco,
)
from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.envs.tasks.spaces import check_spaces, same_box
from qgpo.fields import check_count, check_flag, check_seed

Playable = str | EnvSpec | OfflineDataset | gym.Env[Any, Any] | VectorEnv[Any, Any, Any]
"""what an agent can be evaluated in: an id, a spec, a dataset's environment, or a made one"""
OnStep = Callable[[list[gym.Env[Any, Any]]], None]
"""is called with the environments after each of their steps"""
FIRST_SEED = 10_000
"""of evaluations: recorded episodes often have the seeds from 0 on, and their starts with these"""
FALLBACK_LIMIT = 1000
"""steps after which an episode is cut where the environment states no limit"""


def evaluate(
    agent: Predicts,
    env: Playable,
    n_episodes: int = 10,
    seed: int = FIRST_SEED,
    *,
    deterministic: bool = True,
    n_envs: int | None = None,
    max_episode_steps: int | None = None,
    reference: ReferenceScores | None = None,
    warn_of_cuts: bool = True,
    progress_bar: bool | None = None,
    on_step: OnStep | None = None,
) -> Evaluation:
    """Play `n_episodes` episodes and return every episode's return, length and success.

    For an id, spec or dataset, at most `n_envs` copies of the environment run in parallel (default
    50, or fewer if a copy takes long to make), with one batched `predict` per step. An id is played
    by the rules of its family (a maze ends at the goal), and a spec unchanged. Episode i starts
    with `reset(seed=seed + i)` for any `n_envs`. An environment instance is played alone. A
    VectorEnv is played in its own autoreset mode; only the first episode of each of its
    environments can be seeded there.

    Actions are `deterministic` by default, as in SB3. Noise comes from the agent's prediction
    generator, which is seeded here, and never from its training generator. Episodes are truncated
    after `max_episode_steps` (default: the environment's limit, else 1000) and counted in `cut`;
    `warn_of_cuts` warns of them. Scores are normalised by `reference`, else by the dataset's
    reference, else by the family's. If success is the score (OGBench), it is the percentage of
    episodes whose last step has `info["success"]`. A progress bar is shown by default if stderr is
    a terminal.

    A recurrent agent receives its state and the episode starts, as in SB3's evaluate_policy.
    Raises EvaluationError, which holds the finished episodes, if the environment raises an
    exception, returns NaN or does not report success, or if the agent raises an exception after the
    first finished episode. Raises ValueError for environments whose goal changes in every episode,
    and for one of other spaces than an agent of this package was made for.
    Warns if an agent of this package would see normalised observations.
    """
    if not isinstance(reference, ReferenceScores | None):
        raise TypeError(
            f"reference is a {type(reference).__name__}, expected ReferenceScores(minimum, maximum)"
        )
    _check_agent(agent)
    n_episodes = check_count("n_episodes", n_episodes)
    if n_envs is not None:
        n_envs = check_count("n_envs", n_envs)
    if max_episode_steps is not None:
        max_episode_steps = check_count("max_episode_steps", max_episode_steps)
    seed, deterministic = check_seed(seed), check_flag("deterministic", deterministic)
    if isinstance(agent, SeedsPredictions):
        agent.seed_predictions(seed)
        warn_of_normalized(env)
    if isinstance(env, EnvSpec):  # of a dataset's, `load_dataset` says it
        for said in limit_doubts(env):
            warnings.warn(f"{env.id}: {said}", stacklevel=2)
    if isinstance(env, OfflineDataset):
        reference = reference or reference_within(env.reference, env.env_spec, max_episode_steps)
        env = _spec_of(env)
    spec = spec_of(env) if isinstance(env, gym.Env | VectorEnv) else None
    check_played(env if isinstance(env, str | EnvSpec) else spec)
    with _made(env, n_envs, n_episodes) as envs:
        seeds = [seed + i for i in range(n_episodes)]
        spec = envs[0].spec if isinstance(env, str | EnvSpec) else spec
        env_id = type(envs[0]).__name__ if spec is None else spec.id
        if isinstance(agent, MadeForSpaces):
            _check_fits(agent, envs[0], env_id)
        episodes = _Episodes(seeds, env_id, spec, max_episode_steps, reference)
        n_slots = env.num_envs if isinstance(env, VectorEnv) else len(envs)
        player = Player(agent, n_slots, deterministic)
        with episodes.kept(), episodes.bar(_scale_of(agent), progress_bar):
            if isinstance(env, VectorEnv):
                _play_vector(player, env, episodes)
            else:
                _play(player, envs, episodes, on_step)
    if episodes.cut and warn_of_cuts:
        warnings.warn(
            f"{episodes.cut} of {n_episodes} episodes of {episodes.env_id} did not terminate "
            "and were truncated at the step limit (max_episode_steps)",
            stacklevel=2,
        )
    return episodes.evaluation()


def evaluate_scales(
    agent: Predicts, env: Playable, n_episodes: int, scales: Sequence[float | None], **settings: Any
) -> Iterator[tuple[float | None, Evaluation]]:
    """Play the episodes at one guidance scale after the other; None is the agent's own, if any.

    Each evaluation is played when it is requested, and the agent keeps its scale until the next
    one; at the end it has its own again. Settings are those of `evaluate`. Raises ValueError for
    a scale where the agent has none.
    """
    guided: Any = agent
    previous = _scale_of(agent)
    if previous is None and any(scale is not None for scale in scales):
        raise ValueError(f"scales={list(scales)}: a {type(agent).__name__} has no guidance_scale")
    try:
        for scale in scales:
            if previous is not None:
                guided.guidance_scale = previous if scale is None else scale
            yield scale, evaluate(agent, env, n_episodes, **settings)
    finally:
        if previous is not None:
            guided.guidance_scale = previous


@contextlib.contextmanager
def _made(
    env: str | EnvSpec | gym.Env[Any, Any] | VectorEnv[Any, Any, Any],
    n_envs: int | None,
    n_episodes: int,
) -> Iterator[list[Any]]:
    """The environment that was given, or copies of it, which are closed at the end."""
    if isinstance(env, gym.Env | VectorEnv):
        yield [env]
        return
    with contextlib.ExitStack() as copies:
        first: Any = copies.enter_context(make_env(as_played(env)))
        n = min(n_envs or find_family(env_id=first.spec.id).n_envs, n_episodes)
        more = [copies.enter_context(make_env(as_played(env))) for _ in range(1, n)]
        yield [first, *more]


def spec_of(env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> EnvSpec | None:
    """The spec of an environment; of a VectorEnv, that of the first environment in it."""
    vector: Any = env.unwrapped
    if isinstance(vector, SyncVectorEnv):
        return vector.envs[0].spec
    if isinstance(vector, AsyncVectorEnv):  # in another process, whose spec may not be sent
        with vector.env_fns[0]() as made:
            return made.spec
    return env.spec


class _FailedError(Exception):
    """An episode that cannot go on; `kept` makes the EvaluationError of it."""

    def __init__(self, reason: str, episode: int | None = None) -> None:
        super().__init__(reason)
        self.episode = episode


def _scale_of(agent: Any) -> Any:
    """The guidance scale of an agent that has one (several, of an ensemble), else None."""
    return getattr(agent, "guidance_scale", None)


class _Episodes:
    """What episodes gave, step by step, and what is known when one fails."""

    def __init__(
        self,
        seeds: list[int],
        env_id: str,
        spec: EnvSpec | None,
        max_episode_steps: int | None,
        reference: ReferenceScores | None,
    ) -> None:
        stated = spec.max_episode_steps if spec is not None else None
        self.limit = max_episode_steps or stated or FALLBACK_LIMIT
        if spec is not None:  # as it is played
            spec = dataclasses.replace(
                spec, max_episode_steps=min(self.limit, stated or self.limit)
            )
        self.env_id = env_id
        family = find_family(env_id=env_id)
        if family.success and reference is not None:
            raise ValueError(
                f"reference={reference}: episodes of {self.env_id} are scored by success, not "
                "by returns; remove it"
            )
        self.compares = not family.success or (spec is not None and family.other_task(spec) is None)
        self.reference = reference or family.scores({}, spec)
        for said in () if reference else family.without_scores({}, spec):
            warnings.warn(f"{self.env_id}: {said}", stacklevel=3)
        self.seeds = seeds
        self.returns, self.lengths = [0.0] * len(seeds), [0] * len(seeds)
        self.successes = [False] * len(seeds) if family.success else None
        self.over = [False] * len(seeds)
        self.cut = 0
        self._bar: Any = None

    def evaluation(self) -> Evaluation:
        """The episodes that are over, at least one."""
        done = [e for e, over in enumerate(self.over) if over]
        return summarize(
            self.env_id,
            [self.returns[e] for e in done],
            [self.lengths[e] for e in done],
            [self.seeds[e] for e in done],
            self.cut,
            self.reference,
            None if self.successes is None else [self.successes[e] for e in done],
            self.compares,
        )

    def add(self, episode: int, reward: Any, ended: bool, success: Any) -> bool:
        """Count one step; whether the episode is over, by itself or by the limit.

        `success` is what the step's info says of it, None where it says nothing.
        """
        value = float(reward)
        if not math.isfinite(value):
            raise _FailedError(f"its reward is {value}", episode)
        is_cut = self.cuts(episode, ended)
        if self.successes is not None and (ended or is_cut):
            self.successes[episode] = self._succeeded(success, episode)
        self.returns[episode] += value
        self.lengths[episode] += 1
        self.cut += is_cut
        self.over[episode] = ended or is_cut
        self._count(episode)
        return self.over[episode]

    def _succeeded(self, success: Any, episode: int) -> bool:
        """The last step's success as a flag."""
        if success is None:
            raise _FailedError(
                "its last step's info has no 'success', by which episodes of "
                f"{self.env_id} are scored",
                episode,
            )
        flag = np.asarray(success)
        if flag.size != 1 or flag.dtype.kind not in "biuf" or flag.item() not in (0, 1):
            raise _FailedError(
                f"its last step's info has success={success!r}, expected True or False", episode
            )
        return bool(flag.item())

    def cuts(self, episode: int, ended: bool) -> bool:
        """Whether the step under way is the last that the limit allows, and no end by itself."""
        return not ended and self.lengths[episode] + 1 >= self.limit

    def reset(self, episode: int, env: gym.Env[Any, Any]) -> Any:
        """A copy of the episode's first observation."""
        try:
            observation = env.reset(seed=self.seeds[episode])[0]
        except Exception as error:  # an environment may raise anything
            raise _FailedError(f"{type(error).__name__}: {error}", episode) from error
        self.check(episode, observation)
        return copy.deepcopy(observation)

    def step(self, episode: int, env: gym.Env[Any, Any], action: Any) -> tuple[Any, bool]:
        """Take a step: a copy of the observation, and whether the episode is over."""
        try:
            observation, reward, terminated, truncated, info = env.step(action)
            reward, ended = float(reward), bool(terminated or truncated)
            success = info.get("success")
        except Exception as error:  # an environment may raise anything
            raise _FailedError(f"{type(error).__name__}: {error}", episode) from error
        over = self.add(episode, reward, ended, success)
        if not over:
            self.check(episode, observation)
        return copy.deepcopy(observation), over

    def check(self, episode: int, observation: Any) -> None:
        """Refuse an observation to act on that has NaN."""
        name = _first_nan(observation)
        if name is not None:
            raise _FailedError(f"its observation{name} has NaN: {observation}", episode)

    def failure(self, reason: str, episode: int | None = None) -> EvaluationError:
        """The error to raise, which holds the episodes that are over."""
        n = sum(self.over)
        where = ""
        if episode is not None:
            where = f" in episode {episode} (seed {self.seeds[episode]}), "
            where += f"step {self.lengths[episode]}" if self.lengths[episode] else "at its start"
        evaluation = self.evaluation() if n else None
        kept = f"kept are the {n} that ended: {evaluation}" if n else "no episode had ended"
        return EvaluationError(
            f"evaluation in {self.env_id} failed{where}: {reason}; of {len(self.seeds)} episodes, "
            f"{kept}",
            evaluation,
        )

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Inside the block no exception loses the episodes that are over."""
        try:
            yield
        except _FailedError as failed:
            raise self.failure(str(failed), failed.episode) from failed.__cause__
        except Exception as error:  # of an agent, or of who draws
            if not any(self.over):
                raise
            raise self.failure(f"{type(error).__name__}: {error}") from error

    @contextlib.contextmanager
    def bar(self, scale: Any, shown: bool | None) -> Iterator[None]:
        """Show the environment's steps, of as many as there may be at most, and the scale."""
        name = "evaluate" if scale is None else f"evaluate {scale_label(scale)}"
        total = self.limit * len(self.seeds)
        with progress(total, name, shown, unit="step", leave=False) as self._bar:
            yield

    def _count(self, episode: int) -> None:
        """One step more on the bar, and fewer to come where an episode ends early."""
        if self._bar is None or self._bar.disable:
            return
        if self.over[episode]:
            self._bar.total -= self.limit - self.lengths[episode]
            done = f"{sum(self.over)}/{len(self.seeds)} episodes"
            self._bar.set_postfix_str(done, refresh=False)
        self._bar.update()


def _first_nan(observation: Any) -> str | None:
    """Where NaN are in an observation (" part" of a Dict, "" of an array); None without any."""
    if isinstance(observation, Mapping):
        for key, part in observation.items():
            inner = _first_nan(part)
            if inner is not None:
                return f" {key}{inner.replace(' ', '/')}"
        return None
    array = np.asarray(observation)
    return "" if array.dtype.kind == "f" and np.isnan(array).any() else None


def _check_fits(agent: MadeForSpaces, env: Any, env_id: str) -> None:
    """Raise ValueError for an environment of other spaces than those the agent was made for."""
    if agent.observation_space is None or agent.action_space is None:
        return
    is_vector = isinstance(env, VectorEnv)
    names = ("observation_space", "action_space")
    seen, acted = (getattr(env, f"single_{name}" if is_vector else name, None) for name in names)
    if seen is None or acted is None:  # an environment that states none fails in its own way
        return
    try:
        if isinstance(seen, gym.spaces.Dict) and agent.adapter is not None:
            seen = agent.adapter.box(seen, "it")
        observations, actions = check_spaces(seen, acted, "it")
    except ValueError as error:
        raise ValueError(f"environment {env_id!r} does not fit the agent: {error}") from error
    if agent.window is not None:
        observations, actions = agent.window.seen(observations), agent.window.decided(actions)
    same = observations.shape == agent.observation_space.shape
    if not same or not same_box(actions, agent.action_space):
        raise ValueError(
            f"environment {env_id!r} does not fit the agent: it has observations "
            f"{observations.shape} and actions {actions}; the agent was made for "
            f"{agent.observation_space.shape} and {agent.action_space}"
        )


def _check_agent(agent: Any) -> None:
    if not isinstance(agent, Predicts):
        raise TypeError(f"agent is a {type(agent).__name__} without predict(), expected an agent")


def reference_within(
    reference: ReferenceScores | None, env: Any, max_episode_steps: int | None
) -> ReferenceScores | None:
    """The reference returns, if any, where episodes are played to the environment's own limit.

    Warns where shorter ones cannot be compared with them.
    """
    limit = env.max_episode_steps if isinstance(env, EnvSpec) else None
    if reference is None or max_episode_steps is None or max_episode_steps >= (limit or math.inf):
        return reference
    warnings.warn(
        f"{env.id}: no normalised scores, because the reference returns are for episodes of "
        f"{limit} steps, and max_episode_steps={max_episode_steps}",
        stacklevel=3,
    )
    return None


def _spec_of(dataset: OfflineDataset) -> EnvSpec:
    if dataset.env_spec is None:
        raise ValueError(
            f"dataset {dataset.id!r} does not name its environment; pass the one of these data "
            f"(observations {dataset.observation_space.shape}, actions "
            f"{dataset.action_space.shape}): evaluate(agent, env_id)"
        )
    return dataset.env_spec


def _play(player: Player, envs: list[Any], episodes: _Episodes, on_step: OnStep | None) -> None:
    """Play in single environments: env k plays episodes k, k + n, k + 2n and so on.

    Where an episode fails, those under way are played to their end, and no other one begins.
    """
    n = len(episodes.seeds)
    playing = {k: k for k in range(min(len(envs), n))}
    failed: _FailedError | None = None
    with quiet_mujoco():
        observation = {k: episodes.reset(k, envs[k]) for k in playing}
    while playing:
        actions = player.act(observation, playing)
        for k in list(playing):
            try:
                following, over = episodes.step(playing[k], envs[k], actions[k])
                if over:
                    playing[k] += len(envs)
                    if playing[k] >= n or failed is not None:
                        del playing[k]
                        continue
                    following = episodes.reset(playing[k], envs[k])
                    player.starts[k] = True
                observation[k] = following
            except _FailedError as error:
                failed = failed or error
                del playing[k]
        if on_step is not None:
            on_step(envs)
    if failed is not None:
        raise failed


def _play_vector(player: Player, envs: VectorEnv[Any, Any, Any], episodes: _Episodes) -> None:
    """Play in a VectorEnv; slot k plays episodes k, k + n, …, so that none is favored.

    NEXT_STEP: the step after the end ignores the action and only resets; it is not counted.
    SAME_STEP: the observation returned at the end is the next episode's first. DISABLED: the
    reset happens here. Only the first episodes can be seeded.
    """
    mode = envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
    n, seeds = envs.num_envs, episodes.seeds
    episode = np.arange(n)
    resetting = np.zeros(n, dtype=bool)
    first = [seeds[k] if k < len(seeds) else seeds[0] + k for k in range(n)]
    observations = _of_all(lambda: envs.reset(seed=first))[0]  # type: ignore[arg-type]
    while np.any(episode < len(seeds)):
        for k in np.flatnonzero(~resetting & (episode < len(seeds))):
            episodes.check(episode[k], _of_slot(observations, k))
        seen = copy.deepcopy(observations)
        _without_nan(seen, resetting | (episode >= len(seeds)))
        actions = player.batch(seen)
        observations, rewards, terminated, truncated, infos = _of_all(
            functools.partial(envs.step, actions)
        )
        over = np.logical_or(terminated, truncated)
        counted = np.flatnonzero(~resetting & (episode < len(seeds)))
        for k in sorted(counted, key=lambda k: not math.isfinite(rewards[k])):  # failures last
            ended = bool(over[k])
            if mode != AutoresetMode.DISABLED and episodes.cuts(episode[k], ended):
                raise ValueError(
                    f"an episode of the vector environment exceeds {episodes.limit} steps and "
                    f"cannot be cut in autoreset mode {mode}; wrap each environment in "
                    "gymnasium.wrappers.TimeLimit, or pass the environment's id"
                )
            over[k] = episodes.add(episode[k], rewards[k], ended, _success_in(infos, k))
        ended_now = over & ~resetting
        if mode == AutoresetMode.DISABLED and over.any():
            reset = functools.partial(envs.reset, options={"reset_mask": over})
            observations = _of_all(reset)[0]
        episode = np.where(ended_now, episode + n, episode)
        player.starts = resetting if mode == AutoresetMode.NEXT_STEP else ended_now
        resetting = ended_now if mode == AutoresetMode.NEXT_STEP else resetting


def _of_all(call: Callable[[], Any]) -> Any:
    """What a VectorEnv returns; where it raises, one slot fails for all."""
    try:
        return call()
    except Exception as error:  # an environment may raise anything
        raise _FailedError(f"{type(error).__name__}: {error}") from error


def _success_in(infos: Mapping[str, Any], k: Any) -> Any:
    """What a VectorEnv's infos say of the success of slot k in this step, None for nothing.

    In SAME_STEP the infos of an episode's last step are in `final_info`.
    """
    if "final_info" in infos and infos["_final_info"][k]:
        infos = infos["final_info"]
    if "success" not in infos or not infos.get("_success", {k: True})[k]:
        return None
    return infos["success"][k]


def _without_nan(observations: Any, unused: NDArray[np.bool_]) -> None:
    """Put zeros in place of NaN where no action is used, in place: a policy may refuse NaN."""
    if isinstance(observations, Mapping):
        for part in observations.values():
            _without_nan(part, unused)
    elif isinstance(observations, np.ndarray) and observations.dtype.kind == "f":
        rows = observations[unused]
        observations[unused] = np.where(np.isnan(rows), 0, rows)


def _of_slot(observations: Any, k: Any) -> Any:
    """The observation of one slot in a batch: a row of an array, or of each part of a Dict."""
    if isinstance(observations, Mapping):
        return {key: _of_slot(part, k) for key, part in observations.items()}
    return observations[k]
