"""The first stages of one agent of the family for another: the other stages are left to train.

Whitening, behavior, support and critic do not depend on what an agent does with them. Beside the
parameters two states of the training generator are kept, at the beginning of the support stage
and of the last one: from the first the same support is drawn again, with the second the last
stage continues as if the agent had trained the others itself.

Whitening and behavior depend on states and actions alone, not on rewards. Where both agents learn
from the same trajectories with the rewards of other tasks, or have another support or critic, these
two are adopted, the support is drawn, and the critic is trained.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeAlias

import torch
from torch import Tensor

from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.core.training import Training, set_state
from qgpo.agents.guided.config import AFTER_BEHAVIOR, LAST_STAGE, GuidedPolicyConfig
from qgpo.agents.guided.support import STATE
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.fields import marked

Agent: TypeAlias = OfflineAgent[Any]
OF_BEHAVIOR = ("normalizer", "whitening", "behavior", "behavior_ema")
SUPPORT_STATE, LAST_STATE = "generator/shared/support", "generator/shared/last"
"""tables with the generator's state at the beginning of those stages, kept after training"""


def different_field(
    first: GuidedPolicyConfig, second: GuidedPolicyConfig
) -> tuple[str, Any, Any] | None:
    """Name and both values of a field that makes whitening or behavior differ, or None."""
    return _different(first, second, free=(LAST_STAGE, AFTER_BEHAVIOR))


def same_critic(first: GuidedPolicyConfig, second: GuidedPolicyConfig) -> bool:
    """Whether support and critic are the same, too, where the rewards are."""
    return _different(first, second, free=(LAST_STAGE,)) is None


def _different(
    first: GuidedPolicyConfig, second: GuidedPolicyConfig, free: tuple[str, ...]
) -> tuple[str, Any, Any] | None:
    """The same of fields beside which none of the marks `free` is said."""
    names = {name for mark in free for name in marked(GuidedPolicyConfig, mark)}
    for field in fields(GuidedPolicyConfig):
        values = getattr(first, field.name), getattr(second, field.name)
        if field.name not in names and values[0] != values[1]:
            return field.name, *values
    return None


def keep_states(training: Training) -> None:
    """Between the critic and the last stage: keep the generator's states, as tables.

    A support table that was set by hand has no state.
    """
    tables = training.tables
    fresh = LAST_STATE not in tables and training.progress[training.stages[-1]] == 0
    if fresh and STATE in tables:
        tables[SUPPORT_STATE] = tables[STATE].clone()
        tables[LAST_STATE] = training.generator.get_state()


def drop_tables(training: Training) -> None:
    """Of the tables, keep the generator's states alone: training has ended."""
    kept = kept_states(training)
    training.tables.clear()
    training.tables.update(kept)


def kept_states(training: Training) -> dict[str, Tensor]:
    """What remains of the tables when training has ended."""
    return {k: v for k, v in training.tables.items() if k in (SUPPORT_STATE, LAST_STATE)}


def no_states() -> dict[str, Tensor]:
    """In their place where training continued on other data: that support cannot be drawn."""
    return {LAST_STATE: torch.zeros(0, dtype=torch.uint8)}


def check_donor(agent: Agent, donor: Agent, dataset: OfflineDataset) -> bool:
    """Whether the critics of both would be the same, too, not the stages before it alone.

    Raises ValueError where neither would be.
    """
    who = f"cannot adopt from this {donor.name}"
    different = different_field(agent.config, donor.config)
    if different is not None:
        name, wanted, found = different
        raise ValueError(
            f"{who}: {name}={found!r}, this {agent.name} has {name}={wanted!r}, which "
            "determines the behavior; use the same value for both, or train from scratch"
        )
    check_seed(who, agent, donor, "adopt from an agent with the same seed, or train from scratch")
    done, steps = donor.training.progress["critic"], donor.config.critic_steps
    if done < steps:
        raise ValueError(
            f"{who}: its critic has {done} of {steps} steps; finish its training first: "
            "learn(dataset, reset_num_timesteps=False)"
        )
    same_rewards = donor.dataset_fingerprint == dataset.fingerprint
    if not same_rewards and donor.trajectory_fingerprint != dataset.trajectory_fingerprint:
        unknown = (
            ""
            if donor.trajectory_fingerprint
            else " (its file is of an earlier version and does not say whether states and "
            "actions are the same)"
        )
        raise ValueError(
            f"{who}: {other_data(donor, dataset)}{unknown}; adopt from an agent that was trained "
            "on this dataset, or train from scratch"
        )
    check_scale(who, donor, dataset, "train from scratch")
    tables = donor.training.tables
    if tables.get(LAST_STATE, torch.zeros(1)).numel() == 0:
        raise ValueError(
            f"{who}: its training continued on other data than it began with; adopt from an "
            f"agent that was trained on {dataset.id!r} alone, or train from scratch"
        )
    missing = [name for name in (SUPPORT_STATE, LAST_STATE) if name not in tables]
    if missing:
        raise ValueError(
            f"{who}: it has no {missing[0]!r}, the state from which its support is drawn again; "
            "files of earlier versions lack it, and so do files of trainings that stopped at "
            "the end of the critic stage: finish that training first, or train from scratch"
        )
    return same_rewards and same_critic(agent.config, donor.config)


def check_seed(who: str, agent: Agent, donor: Agent, advice: str) -> None:
    """Raise ValueError for a donor of another seed."""
    ours, theirs = agent.training.seed, donor.training.seed
    if ours != theirs:
        raise ValueError(
            f"{who}: it was trained with seed={theirs}, this {agent.name} has seed={ours}; {advice}"
        )


def other_data(donor: Agent, dataset: OfflineDataset) -> str:
    """What is said of a donor that was trained on other data."""
    return (
        f"it was trained on {donor.dataset_id!r} with fingerprint {donor.dataset_fingerprint}, "
        f"dataset {dataset.id!r} has {dataset.fingerprint}"
    )


def check_scale(who: str, donor: Agent, dataset: OfflineDataset, advice: str) -> None:
    """Raise ValueError for a donor that scales actions otherwise than the data say."""
    if not dataset.action_scale.agrees_with(donor.action_scale):
        raise ValueError(
            f"{who}: it scales actions by the bounds of their space, which are far wider than the "
            f"data, as earlier versions did; {advice}"
        )


def copy_networks(training: Training, donor: Training, critic: tuple[str, ...] | None) -> None:
    """The shared networks and optimizers: a checkpoint is then that of such a training.

    `critic` has the names of the critic's networks; None leaves the critic to be trained.
    """
    for name in OF_BEHAVIOR + (critic or ()):
        training.networks[name].load_state_dict(donor.networks[name].state_dict())
        if name in training.optimizers:
            set_state(training.optimizers[name], donor.optimizers[name].state_dict())
    last_done = "behavior" if critic is None else "critic"
    done = training.stages[: training.stages.index(last_done) + 1]
    training.progress.update({stage: donor.progress[stage] for stage in done})
