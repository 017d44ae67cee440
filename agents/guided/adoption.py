"""The first stages of one agent of the family for another: only the last stage is left to train.

Whitening, behavior, support and critic do not depend on what an agent does with them. Beside the
parameters two states of the training generator are kept, at the beginning of the support stage
and of the last one: from the first the same support is drawn again, with the second the last
stage goes on as if the agent had trained the others itself.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qgpo.agents.guided.config import GuidedPolicyConfig
from qgpo.envs.data.dataset import OfflineDataset

if TYPE_CHECKING:
    from qgpo.agents.guided.critic import SupportCritic
    from qgpo.agents.guided.policy import GuidedPolicy

SHARED_NETWORKS = (
    "normalizer",
    "whitening",
    "behavior",
    "behavior_ema",
    "critic",
    "critic_target",
)
LAST_STAGE_FIELDS = frozenset(
    {
        "beta",
        "q_unit",
        "tilt_limit",
        "guidance_scale",
        "guidance_bound",
        "deterministic_action",
        "solver_steps",
    }
)
"""fields of GuidedPolicyConfig that no stage before the last one reads"""
SUPPORT_STATE, LAST_STATE = "generator/shared/support", "generator/shared/last"
"""tables with the generator's state at the beginning of those stages, kept after training"""


def different_field(
    first: GuidedPolicyConfig, second: GuidedPolicyConfig
) -> tuple[str, Any, Any] | None:
    """Name and both values of a field that makes the first stages differ, or None."""
    for field in fields(GuidedPolicyConfig):
        values = getattr(first, field.name), getattr(second, field.name)
        if field.name not in LAST_STAGE_FIELDS and values[0] != values[1]:
            return field.name, *values
    return None


def keep_states(agent: SupportCritic[Any]) -> None:
    """Between the critic and the last stage: keep the generator's states, as tables.

    A support that was put there by hand has none.
    """
    begin = agent.tables.get("generator/support")
    fresh = LAST_STATE not in agent.tables and agent.progress[agent.stages[-1]] == 0
    if fresh and begin is not None:
        agent.tables[SUPPORT_STATE] = begin.clone()
        agent.tables[LAST_STATE] = agent.generator.get_state()


def kept_states(agent: GuidedPolicy[Any]) -> dict[str, Tensor]:
    """What stays of the tables when training has ended."""
    return {k: v for k, v in agent.tables.items() if k in (SUPPORT_STATE, LAST_STATE)}


def no_states() -> dict[str, Tensor]:
    """In their place where training went on with other data: nobody can draw that support."""
    return {LAST_STATE: torch.zeros(0, dtype=torch.uint8)}


def adopt(agent: GuidedPolicy[Any], other: GuidedPolicy[Any], dataset: OfflineDataset) -> None:
    """Put `agent` where training it on the dataset would stand before its last stage.

    Shared optimizers, which nothing uses any more, come along so that a checkpoint is that of a
    training from scratch.
    """
    _check(agent, other, dataset)
    networks, optimizers, progress = other.networks, other.optimizers, dict(other.progress)
    states = {name: state.clone() for name, state in kept_states(other).items()}
    agent._reset_training()
    data = agent._prepare(dataset)
    for name in SHARED_NETWORKS:
        agent.networks[name].load_state_dict(networks[name].state_dict())
        if name in agent.optimizers:
            agent.optimizers[name].load_state_dict(optimizers[name].state_dict())
    for stage in agent.stages[:-1]:
        agent.progress[stage] = progress[stage]
    agent.stage, agent.num_timesteps = agent.stages[-2], agent.shared_timesteps
    agent.tables = {**states, "generator/support": states[SUPPORT_STATE].clone()}
    agent._restore_support(data)
    agent._set_generator(states[LAST_STATE], agent.seed + agent.num_timesteps)


def _check(agent: GuidedPolicy[Any], other: GuidedPolicy[Any], dataset: OfflineDataset) -> None:
    """Raise ValueError where the first stages of both are not the same."""
    who = f"cannot adopt from this {other.name}"
    different = different_field(agent.config, other.config)
    if different is not None:
        name, wanted, found = different
        raise ValueError(
            f"{who}: {name}={found!r}, this {agent.name} has {name}={wanted!r}, which decides the "
            "stages before the last; give both the same, or train from scratch"
        )
    if agent.seed != other.seed:
        raise ValueError(
            f"{who}: it was trained with seed={other.seed}, this {agent.name} has "
            f"seed={agent.seed}; adopt from one of the same seed, or train from scratch"
        )
    c = other.config
    done = other.progress["critic"]
    if done < c.critic_steps:
        raise ValueError(
            f"{who}: its critic has {done} of {c.critic_steps} steps; train it to the end first: "
            "learn(dataset, reset_num_timesteps=False)"
        )
    if other.dataset_fingerprint != dataset.fingerprint:
        raise ValueError(
            f"{who}: it was trained on {other.dataset_id!r} with fingerprint "
            f"{other.dataset_fingerprint}, dataset {dataset.id!r} has {dataset.fingerprint}; adopt "
            "from one that was trained on this dataset, or train from scratch"
        )
    if other.tables.get(LAST_STATE, torch.zeros(1)).numel() == 0:
        raise ValueError(
            f"{who}: its training went on with other data than it began with; adopt from one that "
            f"was trained on {dataset.id!r} alone, or train from scratch"
        )
    missing = [name for name in (SUPPORT_STATE, LAST_STATE) if name not in other.tables]
    if missing:
        raise ValueError(
            f"{who}: it has no {missing[0]!r}, the state from which its support is drawn again; "
            "files of former versions lack it, as does one whose training was stopped at the end "
            "of the critic: train that to the end first, or train from scratch"
        )
