"""Several trained agents that act as one."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from qgpo.agents.core.acting import Acts, Normal
from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.core.batches import Batches
from qgpo.agents.core.config import NOT_NEGATIVE
from qgpo.agents.core.export.policy import export_onnx
from qgpo.agents.guided.tuning import is_guided, tune_guidance
from qgpo.agents.registry import load_agent
from qgpo.dynamics import DynamicsEnsemble
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.fields import check_finite


class Ensemble:
    """Several trained agents of any class that act as one.

        together = Ensemble([QGPO("laptop", seed=seed).learn(dataset) for seed in range(3)])
        print(together.tune_guidance(dataset))
        print(evaluate(together, dataset))

    A deterministic action is the mean of the members' deterministic actions. A sampled action
    comes from one member, drawn at random for every observation. Save the members one by one;
    `load` reads several files.

    Raises TypeError for objects that are not agents. Raises ValueError without members, and for
    members that are not trained, are on different devices, or have different spaces or parts of a
    Dict observation.
    """

    name: ClassVar[str] = "Ensemble"

    def __init__(self, members: Iterable[OfflineAgent[Any]]) -> None:
        if not isinstance(members, Iterable):
            raise TypeError(f"members is a {type(members).__name__}, expected a list of agents")
        self.members = tuple(members)
        if not self.members:
            raise ValueError("members is empty, expected at least one agent")
        first = self.members[0]
        for i, member in enumerate(self.members):
            if not isinstance(member, OfflineAgent):
                raise TypeError(f"member {i} is a {type(member).__name__}, expected an agent")
            if (
                member.observation_space is None
                or member.action_space is None
                or member.action_scale is None
            ):
                raise ValueError(f"member {i} has not been trained: call learn(dataset) first")
            if not _same(member.device, first.device):
                raise ValueError(
                    f"member {i} is on {member.device}, member 0 on {first.device}: load all with "
                    "the same device"
                )
            first.set_spaces(member.observation_space, member.action_space, f"member {i}")
            if member.window != first.window:
                raise ValueError(f"member {i} has another history or chunk than member 0")
            if member.adapter != first.adapter:
                raise ValueError(f"member {i} reads Dict observations differently from member 0")
            if not member.action_scale.agrees_with(first.action_scale):
                raise ValueError(f"member {i} scales actions by another range than member 0")
        self.device = first.device
        self.seed = first.seed
        self.observation_space, self.action_space = first.observation_space, first.action_space
        self.action_scale, self.adapter = first.action_scale, first.adapter
        self.dataset_id, self.env_spec = first.dataset_id, first.env_spec
        self.window = first.window
        self.prediction_generator = torch.Generator(self.device)
        self.seed_predictions(self.seed)

    def __repr__(self) -> str:
        return f"{self.name}([{', '.join(map(repr, self.members))}])"

    @classmethod
    def load(cls, paths: Iterable[str | Path], device: torch.device | str = "auto") -> Self:
        """Read one agent from each file; also raises the errors of `load_agent`."""
        if isinstance(paths, str | Path):
            raise TypeError(f"paths={str(paths)!r} is one file, expected a list of files")
        return cls([load_agent(path, device=device) for path in paths])

    # What tune_guidance asks --------------------------------------------------------------

    tune_guidance = tune_guidance

    @property
    def is_trained(self) -> bool:
        """Whether every member is, to the end."""
        return all(member.is_trained for member in self.members)

    @property
    def guidance_is_off(self) -> bool:
        """Whether the critics of all members rank no actions, so that every scale imitates."""
        return all(member.guidance_is_off for member in self._guided())

    @property
    def own_model(self) -> DynamicsEnsemble | None:
        """The first member's model of the environment, of those that have one."""
        models = (member.own_model for member in self._guided())
        return next((model for model in models if model is not None), None)

    @property
    def gamma(self) -> float | None:
        """The discount of all members that have one. Raises ValueError where they differ."""
        found = {member.gamma for member in self.members if member.gamma is not None}
        if len(found) > 1:
            raise ValueError(f"members have the discounts {sorted(found)}: say which one counts")
        return found.pop() if found else None

    @property
    def guidance_scale(self) -> float | tuple[float, ...]:
        """The members' scale, or all of them where they differ; set it likewise."""
        scales = tuple(member.guidance_scale for member in self._guided())
        return scales if len(set(scales)) > 1 else scales[0]

    @guidance_scale.setter
    def guidance_scale(self, scale: float | Sequence[float]) -> None:
        given: Any = [scale] * len(self.members) if np.isscalar(scale) else scale
        try:
            scales = [check_finite("guidance_scale", own, NOT_NEGATIVE) for own in given]
        except (TypeError, ValueError):
            scales = []
        if len(scales) != len(self.members):
            raise ValueError(
                f"guidance_scale={scale!r}, expected a finite number of at least 0, or one for "
                f"each of the {len(self.members)} members"
            )
        for member, own in zip(self._guided(), scales, strict=True):
            member.guidance_scale = own

    def configure_guidance(self, scale: float) -> None:
        """Set the scale of all members so that their files keep it."""
        for member in self._guided():
            member.configure_guidance(scale)

    def _guided(self) -> list[Any]:
        """The members, if all of them have a guidance scale; AttributeError otherwise."""
        for i, member in enumerate(self.members):
            if not is_guided(member):
                raise AttributeError(f"member {i}, a {member.name} agent, has no guidance_scale")
        return list(self.members)

    def prepare(self, dataset: OfflineDataset) -> Batches:
        """The data on the device; ValueError where a member has learned from others."""
        for i, member in enumerate(self.members):
            if member.dataset_fingerprint != dataset.fingerprint:
                raise ValueError(
                    f"member {i} has learned from {member.dataset_id!r}; {dataset.id!r} holds "
                    "other data"
                )
        return self.members[0].prepare(dataset)

    # Acting -------------------------------------------------------------------------------

    _noise: Normal | None = None
    _prediction_normal = Acts._prediction_normal
    predict = Acts.predict
    seed_predictions = Acts.seed_predictions

    export_onnx = export_onnx

    def describe_policy(self) -> dict[str, Any]:
        """Those of the members, for JSON."""
        return {"members": [member.describe_policy() for member in self.members]}

    def acting_on(self, noise: Normal | None, guidance_scale: Tensor | None = None) -> Self:
        """A copy whose members act on that noise and, where it is given, at that scale.

        The scale is one number, or one for each member.
        """
        actor = copy.copy(self)
        actor._noise = noise
        scales = [guidance_scale] * len(self.members)
        if guidance_scale is not None and guidance_scale.dim():
            scales = [guidance_scale[i] for i in range(len(self.members))]
        pairs = zip(self.members, scales, strict=True)
        actor.members = tuple(member.acting_on(noise, scale) for member, scale in pairs)
        return actor

    @torch.no_grad()
    def act(self, observations: Tensor, deterministic: bool) -> Tensor:
        """The mean of the members' actions, or a sampled member's, (B, S) to (B, A)."""
        assert self.observation_space is not None
        for i, member in enumerate(self.members):
            own, scale = member.observation_space, member.action_scale
            fits = own is not None and own.shape == self.observation_space.shape
            if not (fits and scale is not None and scale.agrees_with(self.action_scale)):
                raise RuntimeError(
                    f"member {i} was trained again, in other spaces: make a new Ensemble"
                )
        actors = [_with_noise_of(member, self.prediction_generator) for member in self.members]
        actions = torch.stack([actor.act(observations, deterministic) for actor in actors])
        if deterministic:
            return actions.mean(dim=0)
        share = 0.5 * (1.0 + torch.erf(math.sqrt(0.5) * self._prediction_normal(len(observations))))
        chosen = (len(self.members) * share).long().clamp(max=len(self.members) - 1)
        return torch.take_along_dim(actions, chosen[None, :, None], dim=0).squeeze(0)


def _with_noise_of(member: OfflineAgent[Any], generator: torch.Generator) -> OfflineAgent[Any]:
    """The member, acting by that generator: one that shares everything else with it.

    Members and their own noise stay as they are, whatever other threads do with them.
    """
    actor = copy.copy(member)
    actor.prediction_generator = generator
    return actor


def _same(one: torch.device, other: torch.device) -> bool:
    """Whether both are the same device; "cuda" is its first."""
    return (one.type, one.index or 0) == (other.type, other.index or 0)
