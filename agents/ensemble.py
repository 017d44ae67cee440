"""Several trained agents that act as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from gymnasium.envs.registration import EnvSpec
from torch import Tensor

from qgpo.agents.acting import Actor
from qgpo.agents.base import OfflineAgent
from qgpo.agents.registry import load_agent
from qgpo.agents.training import Batches
from qgpo.agents.tuning import tune_guidance
from qgpo.envs.datasets import OfflineDataset
from qgpo.envs.reference import ReferenceScores


class Ensemble(Actor):
    """Trained agents of any kind that act together.

        together = Ensemble([QGPO("laptop", seed=seed).learn(dataset) for seed in range(3)])
        print(together.tune_guidance(dataset))
        print(evaluate(together, dataset))

    Their policies are mixed in equal parts: a deterministic action is the mean of the members', a
    sampled one that of a member drawn anew for every observation. What the data say all members
    have learned; what chance has left in each of them differs, and the mean has less of it. The
    members are saved one by one (`load` reads several files); from now on they share their noise.

    Raises ValueError without members, for members that are not trained, on different devices, or
    with different spaces.
    """

    name: ClassVar[str] = "Ensemble"

    def __init__(self, members: Sequence[OfflineAgent[Any]]) -> None:
        if not members:
            raise ValueError("members is empty, expected at least one agent")
        self.members = tuple(members)
        first = self.members[0]
        for i, member in enumerate(self.members):
            if member.observation_space is None or member.action_space is None:
                raise ValueError(f"member {i} has not been trained: call learn(dataset) first")
            if member.device != first.device:
                raise ValueError(
                    f"member {i} is on {member.device}, member 0 on {first.device}: load all with "
                    "the same device"
                )
            first.set_spaces(member.observation_space, member.action_space, f"member {i}")
        self.device = first.device
        self.seed = first.seed
        self.observation_space, self.action_space = first.observation_space, first.action_space
        self.adapter = first.adapter
        self.prediction_generator = first.prediction_generator
        for member in self.members:
            member.prediction_generator = self.prediction_generator

    @classmethod
    def load(cls, paths: Sequence[str | Path], device: torch.device | str = "auto") -> Self:
        """The agents of these files together; raises what `load_agent` does, too."""
        return cls([load_agent(path, device=device) for path in paths])

    @property
    def dataset_id(self) -> str | None:
        """What the first member learned from."""
        return self.members[0].dataset_id

    @property
    def env_spec(self) -> EnvSpec | None:
        """The environment of that dataset."""
        return self.members[0].env_spec

    @property
    def reference(self) -> ReferenceScores | None:
        """The reference scores of that dataset."""
        return self.members[0].reference

    @property
    def is_trained(self) -> bool:
        """Whether every member is, to the end."""
        return all(member.num_timesteps == member.total_timesteps for member in self.members)

    # The guidance scale, where members have one -------------------------------------------

    @property
    def guidance_scale(self) -> float | tuple[float, ...]:
        """The members' scale, or all of them where they differ; set it likewise."""
        scales = tuple(self._guided(member).guidance_scale for member in self.members)
        return scales if len(set(scales)) > 1 else scales[0]

    @guidance_scale.setter
    def guidance_scale(self, scale: float | tuple[float, ...]) -> None:
        scales = scale if isinstance(scale, tuple) else (scale,) * len(self.members)
        for member, own in zip(self.members, scales, strict=True):
            self._guided(member).guidance_scale = own

    def configure_guidance(self, scale: float) -> None:
        """Set everyone's scale so that their files keep it."""
        for member in self.members:
            self._guided(member).configure_guidance(scale)

    @staticmethod
    def _guided(member: OfflineAgent[Any]) -> Any:
        if not hasattr(member, "guidance_scale"):
            raise AttributeError(f"a {member.name} agent has no guidance_scale")
        return member

    tune_guidance = tune_guidance

    # Acting -------------------------------------------------------------------------------

    def _prepare(self, dataset: OfflineDataset) -> Batches:
        """The data on the device; ValueError where a member has learned from others."""
        first, *_ = [member._prepare(dataset) for member in self.members]
        return first

    @torch.no_grad()
    def _act(self, observations: Tensor, deterministic: bool) -> Tensor:
        actions = torch.stack([m._act(observations, deterministic) for m in self.members])
        if deterministic:
            return actions.mean(dim=0)
        shape = (len(observations),)
        chosen = torch.randint(
            len(self.members), shape, generator=self.prediction_generator, device=self.device
        )
        return actions[chosen, torch.arange(len(observations), device=self.device)]
