"""What an agent is worth where there is no environment: fitted Q evaluation, and the model's word.

Both are estimates from the data, of an agent that may leave them. The interval says how much the
value depends on which episodes were recorded. It says nothing about errors of Q.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qgpo.agents.core.acting import Acts
from qgpo.agents.core.batches import Batches, take
from qgpo.agents.core.fitted_q import FittedQConfig, actions_of, fit_q
from qgpo.agents.core.process import usual_torch
from qgpo.agents.guided.imagination import STEPS, Imagination, fit_dynamics, horizon_of
from qgpo.critic import lambda_returns
from qgpo.envs.data.dataset import OfflineDataset, writeable
from qgpo.envs.play.intervals import bootstrap_interval
from qgpo.envs.progress import progress
from qgpo.envs.tasks.spaces import same_box
from qgpo.envs.text import readable, with_interval
from qgpo.fields import check_count, check_finite, check_flag, check_seed

GAMMA = 0.99
"""of agents that have none of their own"""
MOST_LEFT = 0.05
"""of the errors that Q begins with"""
Interval = tuple[float, float] | None


@dataclass(frozen=True, eq=False, repr=False)
class OfflineEvaluation:
    """What is expected of an agent, from data alone; values are discounted."""

    values: NDArray[np.float64]
    """(E,) expected discounted return from each recorded start"""
    data_values: NDArray[np.float64]
    """(E,) discounted return of the recorded episode from there"""
    heads_apart: float
    """mean difference of the two heads of Q there: a hint at its error, and no bound on it"""
    gamma: float
    imagined: NDArray[np.float64] | None
    """(rollouts,) undiscounted returns in the learned model; None where that was left out"""
    left_data: NDArray[np.bool_] | None
    """(rollouts,) whether those episodes left the data"""
    horizon: int
    """decisions of an imagined episode: steps, unless the agent decides chunks of actions"""
    deterministic: bool

    @property
    def value(self) -> float:
        """Mean over the starts."""
        return float(self.values.mean())

    @property
    def interval(self) -> Interval:
        """95 %, by bootstrap over episodes; None for a single one."""
        return bootstrap_interval(self.values)

    @property
    def gain(self) -> float:
        """By how much the value exceeds that of the recorded episodes, in the mean."""
        return float((self.values - self.data_values).mean())

    @property
    def gain_interval(self) -> Interval:
        """95 %, by bootstrap over episodes, each of which is compared with itself."""
        return bootstrap_interval(self.values - self.data_values)

    @property
    def imagined_return(self) -> float | None:
        """Mean over the rollouts."""
        return None if self.imagined is None else float(self.imagined.mean())

    def as_dict(self) -> dict[str, Any]:
        """Means, intervals and every value, for JSON."""
        return {
            "gamma": self.gamma,
            "deterministic": self.deterministic,
            "value": self.value,
            "interval": self.interval,
            "data_value": float(self.data_values.mean()),
            "gain": self.gain,
            "gain_interval": self.gain_interval,
            "heads_apart": self.heads_apart,
            "imagined_return": self.imagined_return,
            "imagined_horizon": self.horizon,
            "left_data": None if self.left_data is None else float(self.left_data.mean()),
            "values": self.values.tolist(),
            "data_values": self.data_values.tolist(),
            "imagined": None if self.imagined is None else self.imagined.tolist(),
        }

    def __repr__(self) -> str:
        return f"OfflineEvaluation(value {readable(self.value)} of {len(self.values)} starts)"

    def __str__(self) -> str:
        episodes = f"{len(self.values)} recorded starts, gamma {self.gamma:g}"
        lines = [
            f"expected value   {_with(self.value, self.interval)} ({episodes})",
            f"of the data      {readable(float(self.data_values.mean()))}",
            f"gain             {_with(self.gain, self.gain_interval)}",
            f"heads of Q differ by {readable(self.heads_apart)}",
        ]
        if self.imagined is not None and self.left_data is not None:
            mean = _with(float(self.imagined.mean()), bootstrap_interval(self.imagined))
            lines.append(
                f"imagined return  {mean} ({len(self.imagined)} episodes of up to {self.horizon} "
                f"steps; {self.left_data.mean():.0%} left the data)"
            )
        return "\n".join(lines)


def _with(mean: float, interval: Interval) -> str:
    return " ".join(with_interval(mean, interval)).rstrip()


@usual_torch()
def learn_model(
    agent: Acts,
    dataset: OfflineDataset,
    *,
    steps: int = STEPS,
    rollouts: int = 48,
    seed: int = 0,
    progress_bar: bool | None = None,
) -> Imagination:
    """Return the learned model in which `evaluate_offline` imagines `rollouts` episodes.

        model = learn_model(agents[0], dataset)
        for agent in agents:
            print(evaluate_offline(agent, dataset, model=model))

    `evaluate_offline` learns the same one by itself for the same `seed`, `steps` and `rollouts`.
    Several guidance scales, or several agents with the same device and action scale, need it only
    once. Raises TypeError for what is no agent or no dataset, and NonFiniteError if it diverges.
    """
    check_count("steps", steps)
    check_count("rollouts", rollouts)
    _check_dataset(dataset)
    _check_spaces(agent, dataset)
    generator = torch.Generator(agent.device).manual_seed(check_seed(seed))
    scale = agent.action_scale
    data = Batches.of(dataset, agent.device, scale)
    with progress(steps, "model of the environment", progress_bar) as bar:
        model = fit_dynamics(dataset, data, generator, steps, bar)
        return Imagination.of(model, dataset, data, generator, scale, rollouts)


@usual_torch()
def evaluate_offline(
    agent: Acts,
    dataset: OfflineDataset,
    *,
    gamma: float | None = None,
    deterministic: bool = True,
    config: FittedQConfig | None = None,
    model_steps: int = STEPS,
    rollouts: int = 48,
    model: Imagination | None = None,
    seed: int = 0,
    progress_bar: bool | None = None,
) -> OfflineEvaluation:
    """What an agent or an ensemble is worth, without an environment; it takes minutes.

    Fitted Q evaluation learns Q of the agent's deterministic or sampled actions from the dataset,
    which may be another one than it learned from, in the same spaces. The value is the mean of Q
    over the states in which recorded episodes start. `gamma` is by default the agent's own, else
    0.99. Beside it stands the undiscounted return of `rollouts` episodes in an ensemble of networks
    that learn the environment in `model_steps` gradient steps, as in `tune_guidance`; 0 leaves it
    out. `model` is one from `learn_model`, used in place of learning another: then `model_steps`
    and `rollouts` are its own. The same `seed`, and model, give the same numbers; the agent's own
    noise is not touched.

    Raises RuntimeError before training, ValueError for data in other spaces and for a gamma outside
    [0, 1), NonFiniteError where Q or the model diverges.
    """
    _check_dataset(dataset)
    config = config or FittedQConfig()
    if not isinstance(config, FittedQConfig):
        raise TypeError(f"config is a {type(config).__name__}, expected a FittedQConfig")
    deterministic = check_flag("deterministic", deterministic)
    check_count("rollouts", rollouts)
    seed = check_seed(seed)
    if model_steps:
        check_count("model_steps", model_steps)
    if gamma is None:
        own = getattr(agent, "gamma", None)
        gamma = GAMMA if own is None else own
    gamma = check_finite("gamma", gamma)
    if not 0.0 <= gamma < 1.0:
        raise ValueError(f"gamma={gamma!r}, expected a number in [0, 1)")
    _check_spaces(agent, dataset)
    if model is not None:
        _check_model(model, agent, dataset)
    left = (1.0 - (1.0 - gamma) * config.tau) ** config.steps
    if left > MOST_LEFT:
        warnings.warn(
            f"FittedQConfig(steps={config.steps}, tau={config.tau:g}) with gamma={gamma:g} leaves "
            f"about {left:.0%} of the errors that Q begins with: the value is not to be trusted. "
            "More steps, or a larger tau, leave less",
            stacklevel=2,
        )

    device = agent.device
    data = Batches.of(dataset, device, agent.action_scale)
    rewards = torch.as_tensor(writeable(dataset.rewards), device=device)
    noise = agent.prediction_generator.get_state()
    generator = torch.Generator(device).manual_seed(seed)
    steps = config.first_steps + config.steps
    if model is None and model_steps:
        more: Any = {"rollouts": rollouts, "seed": seed, "progress_bar": progress_bar}
        model = learn_model(agent, dataset, steps=model_steps, **more)
    try:
        agent.prediction_generator.manual_seed(seed)
        with progress(steps, "offline evaluation", progress_bar) as bar:
            actions = actions_of(agent, data.states, deterministic, config.samples)
            q = fit_q(data, rewards, actions, gamma, config, generator, bar)
        imagined = None
        if model is not None:
            with progress(model.horizon, "imagined episodes", progress_bar) as bar:
                imagined = model.play(agent, deterministic, bar)
    finally:
        agent.prediction_generator.set_state(noise)

    first = torch.as_tensor(dataset.episode_starts[dataset.first_readings], device=device)
    rows = take(data.state_index, first)
    heads = torch.stack(
        [q(data.observations(rows), take(actions, rows)[:, k]) for k in range(actions.shape[1])]
    ).mean(dim=0)
    ends = take(data.terminations, torch.arange(len(data))).float()
    last = take(data.last_steps, torch.arange(len(data)))
    returns = lambda_returns(rewards, ends, last, torch.zeros_like(rewards), gamma, 1.0)
    return OfflineEvaluation(
        values=heads.mean(dim=0).double().cpu().numpy(),
        data_values=returns[first].double().cpu().numpy(),
        heads_apart=float((heads[0] - heads[1]).abs().mean()),
        gamma=gamma,
        imagined=None if imagined is None else imagined[0].double().cpu().numpy(),
        left_data=None if imagined is None else imagined[1].cpu().numpy(),
        horizon=horizon_of(dataset) if model is None else model.horizon,
        deterministic=deterministic,
    )


def _check_model(model: Imagination, agent: Acts, dataset: OfflineDataset) -> None:
    """Raise TypeError for what `learn_model` did not return, ValueError for another model."""
    if not isinstance(model, Imagination):
        raise TypeError(f"model is a {type(model).__name__}, expected what learn_model returns")
    if model.fingerprint != dataset.fingerprint:
        raise ValueError(
            f"model was learned from other data than dataset {dataset.id!r}: learn it from these, "
            "learn_model(agent, dataset)"
        )
    if model.starts.device.type != agent.device.type:
        raise ValueError(f"model is on {model.starts.device}, this {agent.name} on {agent.device}")
    scales = [None if x is None else x.to_json() for x in (model.action_scale, agent.action_scale)]
    if scales[0] != scales[1]:
        raise ValueError(
            f"model was learned for an agent whose actions from -1 to 1 are {scales[0]}, those of "
            f"this {agent.name} are {scales[1]}: learn it for this one, learn_model(agent, dataset)"
        )


def _check_dataset(dataset: OfflineDataset) -> None:
    """Raise TypeError for anything else."""
    if not isinstance(dataset, OfflineDataset):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}, expected an OfflineDataset: load_dataset(id) "
            "reads one"
        )


def _check_spaces(agent: Acts, dataset: OfflineDataset) -> None:
    """Raise RuntimeError for an agent that knows no spaces, ValueError for data in others.

    TypeError for what is no agent.
    """
    if not hasattr(agent, "observation_space"):
        raise TypeError(f"agent is a {type(agent).__name__}, expected an agent or an Ensemble")
    if len(dataset) < 2:
        raise ValueError(
            f"dataset {dataset.id!r} has {len(dataset)} transition, expected 2 or more"
        )
    if agent.observation_space is None or agent.action_space is None:
        raise RuntimeError(f"this {agent.name} has not been trained: call learn(dataset)")
    if (
        agent.observation_space.shape != dataset.observation_space.shape
        or not same_box(agent.action_space, dataset.action_space)
        or agent.window != dataset.window
    ):
        raise ValueError(
            f"dataset {dataset.id!r} has observations {dataset.observation_space.shape} and "
            f"actions {dataset.action_space}, this {agent.name} was made for "
            f"{agent.observation_space.shape} and {agent.action_space}"
            + (f" ({agent.window})" if agent.window else "")
        )
