"""Every agent by name, and the way back from a file to its agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import gymnasium as gym
import torch
from stable_baselines3.common.vec_env import VecEnv

from qgpo.agents.aepo import AEPO
from qgpo.agents.bc import BC
from qgpo.agents.best_of_n import BestOfN
from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.core.checkpoint import CheckpointError, named, read_header, source_of
from qgpo.agents.diffusion_ql import DiffusionQL
from qgpo.agents.fql import FQL
from qgpo.agents.guided.policy import GuidedPolicy
from qgpo.agents.ifql import IFQL
from qgpo.agents.iql import IQL
from qgpo.agents.one_step import OneStepPolicy
from qgpo.agents.qgpo import QGPO
from qgpo.agents.qipo import QIPO
from qgpo.agents.rebrac import ReBRAC
from qgpo.agents.sb3_baselines import BASELINES
from qgpo.agents.sir import SIR
from qgpo.agents.td3bc import TD3BC
from qgpo.envs.data.dataset import OfflineDataset

AGENTS: dict[str, type[OfflineAgent[Any]]] = {
    agent.name: agent
    for agent in (
        *(QGPO, AEPO, QIPO, SIR, BestOfN, OneStepPolicy),
        *(BC, TD3BC, ReBRAC, IQL, DiffusionQL, FQL, IFQL),
    )
}
KNOWN = {**AGENTS, **BASELINES}
"""all that a plan may name and a file may hold"""


def agent_class(name: str) -> type[OfflineAgent[Any]]:
    """The agent or baseline of that name. Raises ValueError with the choices."""
    if name not in KNOWN:
        raise ValueError(f"agent={name!r}, expected one of {sorted(KNOWN)}")
    return KNOWN[name]


def load_agent(
    path: str | Path | BinaryIO,
    env: gym.Env[Any, Any] | VecEnv | str | None = None,
    device: torch.device | str = "auto",
) -> OfflineAgent[Any]:
    """Read a checkpoint of any agent or baseline; the file names the class.

    `path` is a checkpoint, a run folder, or an open binary file. Raises CheckpointError if the file
    is damaged or names an unknown agent. If `env` is given, its spaces must match the agent's.
    """
    source = source_of(path)
    name = read_header(source)["agent"]
    if name not in KNOWN:
        raise CheckpointError(
            f"{named(source)} holds a {name!r} agent, expected one of {sorted(KNOWN)}"
        )
    return KNOWN[name].load(source, env=env, device=device)


def check_adopts(agent: type[OfflineAgent[Any]], path: Path) -> None:
    """Raise ValueError for an agent that shares no stages with others."""
    if not issubclass(agent, GuidedPolicy):
        raise ValueError(
            f"a {agent.name} agent cannot adopt from {str(path)!r}: only QGPO, AEPO, QIPO, SIR "
            "and BestOfN share stages; remove adopt"
        )


def adopt_from(path: Path, agent: OfflineAgent[Any], dataset: OfflineDataset) -> str:
    """Give the agent the first stages of one in a run folder or a file; a line that says what.

    Raises ValueError where they are not the agent's own, CheckpointError as `load_agent` does.
    """
    check_adopts(type(agent), path)
    assert isinstance(agent, GuidedPolicy)
    other = load_agent(path / "checkpoint.zip" if path.is_dir() else path, device=agent.device)
    try:
        agent.adopt(other, dataset)
    except (TypeError, RuntimeError) as error:  # the file's, here
        raise ValueError(f"{path}: {error}") from error
    shared = ", ".join(stage for stage in agent.stages[:-1] if agent.progress[stage])
    return (
        f"adopted from the {other.name} in {path}: {shared} ({agent.num_timesteps} of "
        f"{agent.total_timesteps} steps)"
    )
