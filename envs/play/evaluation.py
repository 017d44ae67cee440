"""Episodes of an agent in an environment: raw returns, normalised scores, intervals."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from tqdm import tqdm

from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.tasks.families import find_family
from qgpo.envs.tasks.making import as_played, make_env, quiet_mujoco
from qgpo.envs.tasks.observations import stack
from qgpo.envs.tasks.reference import ReferenceScores

Playable = str | EnvSpec | OfflineDataset | gym.Env[Any, Any] | VectorEnv[Any, Any, Any]
"""what an agent can be evaluated in: an id, a spec, a dataset's environment, or a made one"""
FALLBACK_LIMIT = 1000
"""steps after which an episode is cut where the environment states no limit"""


class Predicts(Protocol):
    """What evaluation needs of an agent: SB3's predict."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], Any]:
        """Batched observations to batched actions."""
        ...


def bootstrap_interval(
    values: NDArray[np.float64], confidence: float = 0.95, resamples: int = 10_000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), reproducible."""
    rng = np.random.default_rng(0)
    index = rng.integers(len(values), size=(resamples, len(values)))
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(values[index].mean(axis=1), [tail, 100.0 - tail])
    return float(low), float(high)


def readable(value: float) -> str:
    """A return as text: decimals where it is small, as a success rate is."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.4g}"


@dataclass(frozen=True)
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
    reference: dict[str, Any] | None = field(default=None)

    def __str__(self) -> str:
        low, high = self.interval
        text = f"{readable(self.mean)} [{readable(low)}, {readable(high)}]"
        if self.score is not None:
            text += f", normalised {self.score:.1f}"
        return text + f" over {len(self.returns)} episodes"

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
    progress_bar: bool = False,
    on_step: Callable[[list[gym.Env[Any, Any]]], None] | None = None,
) -> Evaluation:
    """Play `n_episodes` episodes and return every episode's return and length.

    An id, spec or dataset is played in `n_envs` copies with one batched `predict` per step (an
    id as its family is played, where a maze ends at the goal; a spec as it is); episode i starts
    from `reset(seed=seed + i)` whatever `n_envs` is, and copies whose episodes are over no longer
    step. As in SB3, actions are `deterministic` unless told otherwise. An environment instance is
    played alone; a VectorEnv in whichever autoreset mode it has, which seeds the first episode of
    each slot only: later ones follow from the slot's own generator. Episodes without an end are cut
    after `max_episode_steps` (default: the environment's own limit, else 1000) and counted in
    `cut`, which `warn_of_cuts` warns of. Action noise is drawn from the agent's generator for
    predictions, seeded here, never from the one for training. Scores: by `reference`, else the
    dataset's, else the family's.
    """
    if not callable(getattr(agent, "predict", None)):
        raise TypeError(f"agent is a {type(agent).__name__} without predict(), expected an agent")
    if n_episodes < 1:
        raise ValueError(f"n_episodes={n_episodes}, expected at least 1")
    seeds = [seed + i for i in range(n_episodes)]
    if hasattr(agent, "seed_predictions"):
        agent.seed_predictions(seed)
    if isinstance(env, OfflineDataset):
        reference = reference or env.reference
        if env.env_spec is None:
            raise ValueError(
                f"dataset {env.id!r} does not name its environment; pass one: "
                "evaluate(agent, 'Hopper-v5')"
            )
        env = env.env_spec
    if isinstance(env, VectorEnv):
        played = _play_vector(agent, env, seeds, max_episode_steps, deterministic)
        spec = env.spec
    else:
        envs = [env] if isinstance(env, gym.Env) else _copies(env, min(n_envs, n_episodes))
        spec = envs[0].spec
        played = _play(agent, envs, seeds, max_episode_steps, deterministic, progress_bar, on_step)
        if not isinstance(env, gym.Env):
            for made in envs:
                made.close()
    env_id = spec.id if spec is not None else type(env).__name__
    returns, lengths, cut = played
    if cut and warn_of_cuts:
        warnings.warn(
            f"{cut} of {n_episodes} episodes of {env_id} did not end by themselves and were cut "
            "at the step limit (max_episode_steps)",
            stacklevel=2,
        )
    if reference is None:
        reference = find_family(env_id=env_id).scores({}, spec)
    return summarize(env_id, returns, lengths, seeds, cut, reference)


def evaluate_scales(
    agent: Predicts,
    env: Playable,
    n_episodes: int,
    scales: Sequence[float | None],
    **settings: Any,
) -> Iterator[tuple[float | None, Evaluation]]:
    """Play the episodes at one guidance scale after the other; None is the agent's own, if any.

    Each evaluation is played when it is asked for, and the agent keeps its scale until the next;
    in the end it has its own again. Settings are those of `evaluate`. Raises ValueError for a
    scale where the agent has none.
    """
    guided: Any = agent
    own = getattr(agent, "guidance_scale", None)
    if own is None and any(scale is not None for scale in scales):
        raise ValueError(f"scales={list(scales)}: a {type(agent).__name__} has no guidance_scale")
    try:
        for scale in scales:
            if own is not None:
                guided.guidance_scale = own if scale is None else scale
            yield scale, evaluate(agent, env, n_episodes, **settings)
    finally:
        if own is not None:
            guided.guidance_scale = own


def _copies(env: str | EnvSpec, n: int) -> list[gym.Env[Any, Any]]:
    if n < 1:
        raise ValueError(f"n_envs={n}, expected at least 1")
    return [make_env(as_played(env) if isinstance(env, str) else env) for _ in range(n)]


def _limit(spec: EnvSpec | None, asked: int | None) -> int:
    if asked is not None and asked < 1:
        raise ValueError(f"max_episode_steps={asked}, expected at least 1")
    return asked or (spec.max_episode_steps if spec is not None else None) or FALLBACK_LIMIT


def _play(
    agent: Predicts,
    envs: list[gym.Env[Any, Any]],
    seeds: list[int],
    max_episode_steps: int | None,
    deterministic: bool,
    progress_bar: bool,
    on_step: Callable[[list[gym.Env[Any, Any]]], None] | None,
) -> tuple[list[float], list[int], int]:
    """Episodes in single environments: env k plays episodes k, k + n, k + 2n and so on."""
    limit = _limit(envs[0].spec, max_episode_steps)
    returns, lengths, cut = [0.0] * len(seeds), [0] * len(seeds), 0
    playing = {k: k for k in range(min(len(envs), len(seeds)))}
    starts = np.ones(len(envs), dtype=bool)
    with quiet_mujoco():
        observation = {k: envs[k].reset(seed=seeds[e])[0] for k, e in playing.items()}
    with tqdm(total=len(seeds), desc="evaluate", disable=not progress_bar, leave=False) as bar:
        while playing:
            order = list(playing)
            batch = stack([observation[k] for k in order])
            actions, _ = agent.predict(
                batch, episode_start=starts[order], deterministic=deterministic
            )
            for k, action in zip(order, actions, strict=True):
                episode = playing[k]
                obs, reward, terminated, truncated, _ = envs[k].step(action)
                observation[k] = obs
                starts[k] = False
                returns[episode] += float(reward)
                lengths[episode] += 1
                over = terminated or truncated
                if not over and lengths[episode] >= limit:
                    over, cut = True, cut + 1
                if over:
                    bar.update()
                    following = episode + len(envs)
                    if following < len(seeds):
                        playing[k], starts[k] = following, True
                        observation[k] = envs[k].reset(seed=seeds[following])[0]
                    else:
                        del playing[k]
            if on_step is not None:
                on_step(envs)
    return returns, lengths, cut


def _play_vector(
    agent: Predicts,
    envs: VectorEnv[Any, Any, Any],
    seeds: list[int],
    max_episode_steps: int | None,
    deterministic: bool,
) -> tuple[list[float], list[int], int]:
    """Episodes in a VectorEnv; slot k plays episodes k, k + n, … so that none is favoured.

    NEXT_STEP: the step after the end ignores the action and only resets, so it is not counted.
    SAME_STEP: the observation returned at the end already is the next episode's. DISABLED: we
    reset. Only the first episodes can be seeded; later ones follow from the slot's generator.
    """
    mode = envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
    n = envs.num_envs
    limit = _limit(envs.spec, max_episode_steps)
    returns, lengths, cut = [0.0] * len(seeds), [0] * len(seeds), 0
    episode = np.arange(n)
    resetting = np.zeros(n, dtype=bool)
    starts = np.ones(n, dtype=bool)
    first = [seeds[k] if k < len(seeds) else seeds[0] + k for k in range(n)]
    observations, _ = envs.reset(seed=first)  # type: ignore[arg-type]
    while np.any(episode < len(seeds)):
        actions, _ = agent.predict(observations, episode_start=starts, deterministic=deterministic)
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        over = np.logical_or(terminated, truncated)
        for k in range(n):
            if resetting[k] or episode[k] >= len(seeds):
                continue
            returns[episode[k]] += float(rewards[k])
            lengths[episode[k]] += 1
            if not over[k] and lengths[episode[k]] >= limit:
                if mode != AutoresetMode.DISABLED:
                    raise ValueError(
                        f"an episode of the vector environment exceeds {limit} steps and cannot "
                        f"be cut in autoreset mode {mode}; wrap each environment in "
                        "gymnasium.wrappers.TimeLimit, or pass the environment's id"
                    )
                over[k], cut = True, cut + 1
        starts = over & ~resetting
        if mode == AutoresetMode.DISABLED and over.any():
            observations, _ = envs.reset(options={"reset_mask": over})
        episode = np.where(over & ~resetting, episode + n, episode)
        resetting = over & ~resetting if mode == AutoresetMode.NEXT_STEP else resetting
    return returns, lengths, cut
