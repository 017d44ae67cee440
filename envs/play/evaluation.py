"""Episodes of an agent in an environment: raw returns, normalised scores, intervals."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.progress import progress
from qgpo.envs.rollouts.protocols import Predicts, SeedsPredictions
from qgpo.envs.tasks.families import find_family
from qgpo.envs.tasks.making import as_played, make_env, quiet_mujoco
from qgpo.envs.tasks.observations import stack
from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.envs.text import readable as readable

Playable = str | EnvSpec | OfflineDataset | gym.Env[Any, Any] | VectorEnv[Any, Any, Any]
"""what an agent can be evaluated in: an id, a spec, a dataset's environment, or a made one"""
OnStep = Callable[[list[gym.Env[Any, Any]]], None]
"""is called with the environments after each of their steps"""
FALLBACK_LIMIT = 1000
"""steps after which an episode is cut where the environment states no limit"""


def bootstrap_interval(
    values: NDArray[np.float64], confidence: float = 0.95, resamples: int = 10_000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), reproducible."""
    rng = np.random.default_rng(0)
    index = rng.integers(len(values), size=(resamples, len(values)))
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(values[index].mean(axis=1), [tail, 100.0 - tail])
    return float(low), float(high)


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Every episode's return and length; the mean with a 95 % bootstrap interval."""

    env_id: str
    returns: list[float]
    lengths: list[int]
    seeds: list[int]
    """seed of each episode's reset (a VectorEnv seeds the first of each slot only)"""
    cut: int
    """episodes stopped by our step limit because the environment did not end them"""
    mean: float
    interval: tuple[float, float]
    score: float | None
    """mean normalised score, 0 to 100 between the reference returns"""
    score_interval: tuple[float, float] | None
    reference: dict[str, Any] | None = None

    def __str__(self) -> str:
        low, high = self.interval
        text = f"{readable(self.mean)} [{readable(low)}, {readable(high)}]"
        if self.score is not None:
            text += f", normalised {self.score:.1f}"
        return text + f" over {len(self.returns)} episodes"

    def __repr__(self) -> str:
        return f"Evaluation({self.env_id}: {self})"

    def to_json(self) -> str:
        """All fields as JSON."""
        return json.dumps(asdict(self), indent=2)


def summarize(
    env_id: str,
    returns: list[float],
    lengths: list[int],
    seeds: list[int],
    cut: int,
    reference: ReferenceScores | None,
) -> Evaluation:
    """Mean, interval and normalised score of raw returns."""
    values = np.asarray(returns, dtype=np.float64)
    low, high = bootstrap_interval(values)
    score = score_interval = None
    if reference is not None:
        score = float(reference.normalize(float(values.mean())))
        score_interval = (float(reference.normalize(low)), float(reference.normalize(high)))
    return Evaluation(
        env_id=env_id,
        returns=[float(r) for r in returns],
        lengths=[int(n) for n in lengths],
        seeds=seeds,
        cut=cut,
        mean=float(values.mean()),
        interval=(low, high),
        score=score,
        score_interval=score_interval,
        reference=asdict(reference) if reference is not None else None,
    )


def scale_label(scale: float | None) -> str:
    """What was evaluated, for tables and pictures."""
    if scale is None:
        return "agent"
    return f"w = {scale:g} ({'guided' if scale else 'imitation'})"


def score_table(rows: Sequence[tuple[str, Evaluation]]) -> str:
    """Labelled evaluations, or data (`summarize`), as lines with 95 % intervals."""
    lines = [f"{'':22s}{'return':>8s}   {'95 % interval':16s}{'normalised':>10s}{'episodes':>10s}"]
    for label, e in rows:
        score = "-" if e.score is None else f"{e.score:.1f}"
        interval = f"[{readable(e.interval[0])}, {readable(e.interval[1])}]"
        returns = f"{readable(e.mean):>8s}   {interval:16s}"
        lines.append(f"{label:22s}{returns}{score:>10s}{len(e.returns):>10d}")
    cut = sum(e.cut for _, e in rows)
    if cut:
        lines.append(f"{cut} episodes did not end by themselves and were cut at the step limit")
    return "\n".join(lines)


def evaluate(
    agent: Predicts,
    env: Playable,
    n_episodes: int = 10,
    seed: int = 0,
    *,
    deterministic: bool = True,
    n_envs: int = 50,
    max_episode_steps: int | None = None,
    reference: ReferenceScores | None = None,
    warn_of_cuts: bool = True,
    progress_bar: bool | None = None,
    on_step: OnStep | None = None,
) -> Evaluation:
    """Play `n_episodes` episodes and return every episode's return and length.

    An id, spec or dataset is played in `n_envs` copies with one batched `predict` per step. An id
    is played by the rules of its family (a maze ends at the goal), a spec as it is. Episode i
    starts from `reset(seed=seed + i)`, whatever `n_envs` is. An environment instance is played
    alone. A VectorEnv is played in its own autoreset mode; only the first episode of each slot
    can be seeded there, later ones follow from the slot's generator.

    Actions are `deterministic` by default, as in SB3. Their noise is drawn from the agent's
    generator for predictions, which is seeded here, never from the one for training. Episodes
    without an end are cut after `max_episode_steps` (default: the environment's own limit, else
    1000) and counted in `cut`; `warn_of_cuts` warns of them. Scores are normalised by
    `reference`, else by the dataset's reference, else by the family's. A bar shows the time left,
    by default where stderr is a terminal.
    """
    _check_arguments(
        agent, n_episodes=n_episodes, n_envs=n_envs, max_episode_steps=max_episode_steps
    )
    if isinstance(agent, SeedsPredictions):
        agent.seed_predictions(seed)
    if isinstance(env, OfflineDataset):
        reference = reference or env.reference
        env = _spec_of(env)
    seeds = [seed + i for i in range(n_episodes)]
    predict = functools.partial(agent.predict, deterministic=deterministic)
    envs: list[Any] = [env]
    copies: list[gym.Env[Any, Any]] = []
    if not isinstance(env, gym.Env | VectorEnv):
        envs = copies = [make_env(as_played(env)) for _ in range(min(n_envs, n_episodes))]
    spec: EnvSpec | None = envs[0].spec
    episodes = _Episodes(seeds, spec, max_episode_steps)
    if isinstance(env, VectorEnv):
        _play_vector(predict, env, episodes)
    else:
        _play(predict, envs, episodes, progress_bar, on_step)
    for copy in copies:
        copy.close()
    env_id = spec.id if spec is not None else type(env).__name__
    if episodes.cut and warn_of_cuts:
        warnings.warn(
            f"{episodes.cut} of {n_episodes} episodes of {env_id} did not end by themselves and "
            "were cut at the step limit (max_episode_steps)",
            stacklevel=2,
        )
    if reference is None:
        reference = find_family(env_id=env_id).scores({}, spec)
    return summarize(env_id, episodes.returns, episodes.lengths, seeds, episodes.cut, reference)


def evaluate_scales(
    agent: Predicts, env: Playable, n_episodes: int, scales: Sequence[float | None], **settings: Any
) -> Iterator[tuple[float | None, Evaluation]]:
    """Play the episodes at one guidance scale after the other; None is the agent's own, if any.

    Each evaluation is played when it is requested, and the agent keeps its scale until the next
    one; at the end it has its own again. Settings are those of `evaluate`. Raises ValueError for
    a scale where the agent has none.
    """
    guided: Any = agent
    previous = getattr(agent, "guidance_scale", None)
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


class _Episodes:
    """The returns and lengths of episodes, step by step."""

    def __init__(
        self, seeds: list[int], spec: EnvSpec | None, max_episode_steps: int | None
    ) -> None:
        stated = spec.max_episode_steps if spec is not None else None
        self.limit = max_episode_steps or stated or FALLBACK_LIMIT
        self.seeds = seeds
        self.returns, self.lengths = [0.0] * len(seeds), [0] * len(seeds)
        self.cut = 0

    def add(self, episode: int, reward: float, ended: bool) -> bool:
        """Count one step; whether the episode is over, by itself or by the limit."""
        self.returns[episode] += float(reward)
        self.lengths[episode] += 1
        is_cut = not ended and self.lengths[episode] >= self.limit
        self.cut += is_cut
        return ended or is_cut


def _check_arguments(agent: Any, **numbers: int | None) -> None:
    if not isinstance(agent, Predicts):
        raise TypeError(f"agent is a {type(agent).__name__} without predict(), expected an agent")
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name}={number}, expected at least 1")


def _spec_of(dataset: OfflineDataset) -> EnvSpec:
    if dataset.env_spec is None:
        raise ValueError(
            f"dataset {dataset.id!r} does not name its environment; pass one: "
            "evaluate(agent, 'Hopper-v5')"
        )
    return dataset.env_spec


def _play(
    predict: Any,
    envs: list[Any],
    episodes: _Episodes,
    progress_bar: bool | None,
    on_step: OnStep | None,
) -> None:
    """Play in single environments: env k plays episodes k, k + n, k + 2n and so on."""
    seeds = episodes.seeds
    playing = {k: k for k in range(min(len(envs), len(seeds)))}
    starts = np.ones(len(envs), dtype=bool)
    with quiet_mujoco():
        observation = {k: envs[k].reset(seed=seeds[k])[0] for k in playing}
    with progress(len(seeds), "evaluate", progress_bar, leave=False) as bar:
        while playing:
            order = list(playing)
            batch = stack([observation[k] for k in order])
            actions, _ = predict(batch, episode_start=starts[order])
            starts[:] = False
            for k, action in zip(order, actions, strict=True):
                observation[k], reward, terminated, truncated, _ = envs[k].step(action)
                if not episodes.add(playing[k], float(reward), terminated or truncated):
                    continue
                bar.update()
                playing[k] += len(envs)
                if playing[k] < len(seeds):
                    observation[k] = envs[k].reset(seed=seeds[playing[k]])[0]
                    starts[k] = True
                else:
                    del playing[k]
            if on_step is not None:
                on_step(envs)


def _play_vector(predict: Any, envs: VectorEnv[Any, Any, Any], episodes: _Episodes) -> None:
    """Play in a VectorEnv; slot k plays episodes k, k + n, …, so that none is favored.

    NEXT_STEP: the step after the end ignores the action and only resets; it is not counted.
    SAME_STEP: the observation returned at the end is the next episode's first. DISABLED: the
    reset happens here. Only the first episodes can be seeded.
    """
    mode = envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
    n, seeds = envs.num_envs, episodes.seeds
    episode = np.arange(n)
    resetting = np.zeros(n, dtype=bool)
    starts = np.ones(n, dtype=bool)
    first = [seeds[k] if k < len(seeds) else seeds[0] + k for k in range(n)]
    observations, _ = envs.reset(seed=first)  # type: ignore[arg-type]
    while np.any(episode < len(seeds)):
        actions, _ = predict(observations, episode_start=starts)
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        over = np.logical_or(terminated, truncated)
        for k in np.flatnonzero(~resetting & (episode < len(seeds))):
            ended = bool(over[k])
            over[k] = episodes.add(episode[k], rewards[k], ended)
            if over[k] and not ended and mode != AutoresetMode.DISABLED:
                raise ValueError(
                    f"an episode of the vector environment exceeds {episodes.limit} steps and "
                    f"cannot be cut in autoreset mode {mode}; wrap each environment in "
                    "gymnasium.wrappers.TimeLimit, or pass the environment's id"
                )
        starts = over & ~resetting
        if mode == AutoresetMode.DISABLED and over.any():
            observations, _ = envs.reset(options={"reset_mask": over})
        episode = np.where(starts, episode + n, episode)
        resetting = starts if mode == AutoresetMode.NEXT_STEP else resetting
