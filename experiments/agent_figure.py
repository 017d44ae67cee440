"""A picture of a trained agent: return over w, what its critic says, and an episode of its own.

Nothing here needs more than the data and one episode. How well a critic ranks actions is known
only from playing them: benchmarks/ranking.py.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from qgpo.agents.core.batches import Batches
from qgpo.agents.core.process import usual_torch
from qgpo.agents.guided import GuidanceTuning
from qgpo.agents.guided.behavior import fit_trust
from qgpo.agents.guided.policy import GuidedPolicy
from qgpo.density import Trust, nearest_distance
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.data.figure import BLUE, GRAY, GREEN, ORANGE, STYLE, save
from qgpo.envs.play.scores import Evaluation
from qgpo.envs.tasks.making import as_played, make_env
from qgpo.envs.text import readable, wrap
from qgpo.normalization import ObservationNormalizer

STATES = 300
"""of the data, in which the critic is asked about actions"""
ACTIONS = 16
"""of the behavior, in each of them"""
LONGEST_EPISODE = 1_000
"""steps that are drawn"""

Array = NDArray[np.float64]
Agent = GuidedPolicy[Any]


@dataclass(frozen=True)
class Beliefs:
    """What the critic says in states of the data, in units of the environment's rewards."""

    support: Array
    """(S, M) Q of actions of the behavior"""
    guided: Array
    """(S,) Q of the guided mean action"""
    distances: Array
    """(S,) to the nearest of 10,000 states of the data, in medians; 0 where it is one of them"""


@dataclass(frozen=True)
class Course:
    """An episode of the agent's own, T steps."""

    expected: Array
    """(T,) Q of the action that was taken"""
    followed: Array
    """(T,) discounted return from there to the end of the episode"""
    distances: Array
    """(T,) of the state to the nearest one of the data, in medians"""


def check_drawable(agent: object) -> None:
    """Raise ValueError for an agent of which there is no picture."""
    if not isinstance(agent, GuidedPolicy) or agent.fixed_scale:
        raise ValueError(
            f"no picture can be drawn of {type(agent).__name__}: expected one run of QGPO, "
            "AEPO, QIPO, SIR or BestOfN"
        )
    if agent.window is not None:
        raise ValueError(
            f"no picture can be drawn of this {agent.name}: it has {agent.window}, expected one "
            "observation and one action at a time"
        )
    if agent.acts_only:
        raise ValueError(
            f"no picture can be drawn of this {agent.name}: it came with the package, without its "
            "critic; train one with learn(dataset)"
        )


class Critic:
    """The critic of an agent and its unit: what it is asked about, and how it is read."""

    def __init__(self, agent: Agent, dataset: OfflineDataset) -> None:
        self.agent, self.data = agent, agent.prepare(dataset)
        raw = np.asarray(dataset.rewards, np.float64)
        tuned = self.data.rewards.double().cpu().numpy()
        away = raw - raw.mean()
        self.scale = float(away @ tuned / (away @ away)) if away.any() else 1.0
        self.shift = float(tuned.mean() - self.scale * raw.mean())
        is_shifted = abs(self.shift) > 1e-6 * float(np.abs(tuned).max())
        self.own_unit = is_shifted and bool(dataset.terminations.any())
        """whether Q stays in the critic's unit: episodes that end get the shift in fewer steps"""
        width = self.data.states.shape[1]
        self.normalizer, self.trust = ObservationNormalizer(width), Trust(width, 1.0)
        self.normalizer.fit(self.data.states)
        rows = torch.randperm(len(self.data.states), generator=torch.Generator().manual_seed(0))
        fit_trust(self.trust, self.data, self.normalizer, rows)

    @torch.no_grad()
    def q(self, observations: Tensor, actions: Tensor) -> Array:
        """Q of scaled actions (S, K, A) in states (S, obs), in the unit of `reward`, (S, K)."""
        behavior = self.agent.behavior
        condition = behavior.normalizer(observations)[:, None]
        z = behavior.whitening.encode(condition, actions)
        values: Array = self.agent.critic.target(condition, z).double().cpu().numpy()
        if self.own_unit:
            return values
        return (values - self.shift / (1.0 - self.agent.gamma)) / self.scale

    def reward(self, played: float) -> float:
        """A reward that was played, in the environment's unit, or in the critic's."""
        return self.scale * played + self.shift if self.own_unit else played

    def distances(self, observations: Tensor) -> Array:
        """To the nearest state of the data, relative to the median there, (S, obs) to (S,)."""
        found = nearest_distance(self.normalizer(observations), self.trust.references)
        relative: Array = (found / self.trust.median).double().cpu().numpy()
        return relative


def some_states(data: Batches, n: int) -> Tensor:
    """States of random transitions, (n, obs): always the same ones."""
    rows = torch.randperm(len(data.state_index), generator=torch.Generator().manual_seed(1))[:n]
    observations: Tensor = data.transitions(rows.to(data.device)).observations
    return observations


def ask(critic: Critic) -> Beliefs:
    """Ask about actions of the behavior, and about the guided action, in states of the data."""
    agent, observations = critic.agent, some_states(critic.data, STATES)
    imitator = copy.copy(agent)
    imitator.guidance_scale = 0.0
    with usual_torch(), torch.no_grad():
        repeated = observations.repeat_interleave(ACTIONS, dim=0)
        drawn = imitator.act(repeated, False).reshape(len(observations), ACTIONS, -1)
        guided = agent.act(observations, True)[:, None]
    distances = critic.distances(observations)
    return Beliefs(critic.q(observations, drawn), critic.q(observations, guided)[:, 0], distances)


def follow(critic: Critic, env: str | EnvSpec, seed: int) -> Course:
    """Play one episode with deterministic actions."""
    agent, observed, acted, rewards = critic.agent, [], [], []
    with make_env(as_played(env)) as made:
        observation, _ = made.reset(seed=seed)
        for _ in range(LONGEST_EPISODE):
            flat = observation if agent.adapter is None else agent.adapter.flatten(observation)
            observed.append(np.asarray(flat, np.float32))
            action, _ = agent.predict(observation, deterministic=True)
            state = torch.as_tensor(observed[-1][None], device=agent.device)
            with usual_torch(), torch.no_grad():
                acted.append(agent.act(state, True))
            observation, reward, terminated, truncated, _ = made.step(action)
            rewards.append(critic.reward(float(reward)))
            if terminated or truncated:
                break
    followed = np.zeros(len(rewards))
    after = 0.0
    for t in reversed(range(len(rewards))):
        after = followed[t] = rewards[t] + agent.gamma * after
    states = torch.as_tensor(np.stack(observed), device=agent.device)
    expected = critic.q(states, torch.cat(acted)[:, None])[:, 0]
    return Course(expected, followed, critic.distances(states))


def draw_agent(
    path: Path,
    agent: Agent,
    dataset: OfflineDataset,
    env: str | EnvSpec,
    seed: int,
    evaluations: Sequence[tuple[float | None, Evaluation]],
    tuning: GuidanceTuning | None = None,
) -> None:
    """Draw what is known of a trained agent, in four panels, at its guidance scale.

    Raises ValueError where `check_drawable` does.
    """
    check_drawable(agent)
    noise = agent.prediction_generator.get_state()
    try:
        critic = Critic(agent, dataset)
        beliefs, course = ask(critic), follow(critic, env, seed)
    finally:
        agent.prediction_generator.set_state(noise)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 8), layout="constrained")
        axes = figure.subplots(2, 2)
        _draw_returns(axes[0, 0], agent, dataset, evaluations, tuning)
        _draw_ranking(axes[0, 1], beliefs)
        _draw_trust(axes[1, 0], agent, beliefs, course)
        _draw_course(axes[1, 1], course)
        title = f"{agent.name} on {dataset.id}, w = {agent.guidance_scale:g}"
        if critic.own_unit:
            title += f"; Q is of {critic.scale:.3g} r {critic.shift:+.3g}"
        if agent.guidance_is_off:
            title += "; guidance is off: every w imitates"
        figure.suptitle(wrap(title, 80), fontsize=13, weight="bold")
        save(figure, path)


def _draw_returns(
    axis: Any,
    agent: Agent,
    dataset: OfflineDataset,
    evaluations: Sequence[tuple[float | None, Evaluation]],
    tuning: GuidanceTuning | None,
) -> None:
    """Played and imagined returns by guidance scale."""
    played = sorted(
        (agent.guidance_scale if w is None else w, e.mean, e.interval or (e.mean, e.mean))
        for w, e in evaluations
    )
    scales, means, intervals = zip(*played, strict=True)
    errors = np.abs(np.transpose(intervals) - np.asarray(means))
    axis.errorbar(scales, means, errors, color=BLUE, marker="o", label="environment")
    if tuning is not None:
        imagined = tuning.returns.mean(axis=1)
        axis.plot(tuning.scales, imagined, color=ORANGE, ls="--", marker=".", label="simulated")
        best = tuning.scales.index(tuning.best)
        style: dict[str, Any] = {"ms": 12, "mfc": "none", "color": ORANGE, "mew": 2}
        axis.plot(tuning.best, imagined[best], "o", label="chosen", **style)
    mean = float(dataset.recorded_returns.mean())
    axis.axhline(mean, color="black", ls=":", label="mean of the data")
    axis.set(title="Return over the guidance scale", xlabel="w", ylabel="return of an episode")
    axis.legend()


def _draw_ranking(axis: Any, beliefs: Beliefs) -> None:
    """How much Q differs among the actions of a state, and where the guided action stands."""
    spreads = beliefs.support.std(axis=1)
    between = float(beliefs.support.mean(axis=1).std())
    beaten = float((beliefs.guided[:, None] > beliefs.support).mean())
    axis.hist(spreads, bins=40, color=BLUE, alpha=0.85)
    axis.axvline(spreads.mean(), color=ORANGE, lw=2, label=f"mean {readable(spreads.mean())}")
    text = (
        f"between states: {readable(between)}\n"
        f"the guided action is above {100 * beaten:.0f} %\nof the behavior's actions, by Q"
    )
    place: dict[str, Any] = {"transform": axis.transAxes, "ha": "right", "va": "center"}
    axis.text(0.98, 0.6, text, fontsize=9, **place)
    axis.set(
        title="How much the critic distinguishes the actions of a state",
        xlabel="standard deviation of Q among 16 actions of the behavior",
        ylabel="states in the data",
    )
    axis.legend()


def _draw_trust(axis: Any, agent: Agent, beliefs: Beliefs, course: Course) -> None:
    """How far states are from the data, and how far guidance is lowered there."""
    low, high = 0.05, 20.0
    bins = np.geomspace(low, high, 41)
    others = beliefs.distances[beliefs.distances > low / 100.0]  # without the references themselves
    both = ((others, GRAY, "states of the data"), (course.distances, GREEN, "played"))
    for distances, color, label in both:
        weights = np.full(len(distances), 1.0 / max(1, len(distances)))
        style: dict[str, Any] = {"color": color, "alpha": 0.5, "label": label}
        axis.hist(distances.clip(low, high), bins=bins, weights=weights, **style)
    axis.set_xscale("log")
    axis.set(
        title="Where it plays, and how far guidance is lowered there",
        xlabel="distance to the nearest state in the data, in medians",
        ylabel="share of states",
    )
    power = getattr(agent.config, "trust_power", 0.0)
    if power:
        other = axis.twinx()
        x = np.geomspace(low, high, 200)
        other.plot(x, np.minimum(1.0, x**-power), color=ORANGE, lw=2)
        other.set_ylabel("factor on the guidance scale", color=ORANGE, fontsize=9)
        other.set_ylim(0.0, 1.05)
        other.grid(visible=False)
    axis.legend(loc="center left")


def _draw_course(axis: Any, course: Course) -> None:
    """What the critic expected at each step of an episode, and what followed."""
    axis.plot(course.expected, color=BLUE, lw=1.2, label="Q of the action")
    axis.plot(course.followed, color=ORANGE, lw=1.2, label="discounted return that followed")
    axis.set(
        title=f"One episode, {len(course.followed)} steps",
        xlabel="step",
        ylabel="discounted return from here",
    )
    axis.legend()
