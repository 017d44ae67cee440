"""Policies of Stable-Baselines3, read as weights: nothing is unpickled."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from qgpo.envs.rollouts.vecnormalize import Normalization, read_vecnormalize
from qgpo.envs.tasks.actions import inside
from qgpo.networks import ACTIVATIONS, mlp

POLICY_FOLDER = Path(__file__).parent / "policies"
"""where the bundled policies are"""
DECIMALS = 6
"""of an action on the scale [-1, 1]; rounding differences of processors are far smaller"""


class ActorPolicy(nn.Module):
    """The actor of an SB3 SAC, TQC, TD3, DDPG, PPO or A2C policy with an MLP.

    It computes in double precision and rounds its actions, so that they do not depend on the
    processor: in a simulator, a difference in the last bit leads to another rollout.
    """

    log_std: Tensor

    def __init__(
        self,
        weights: dict[str, Tensor],
        action_space: spaces.Box,
        activation: str | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__()
        self.normalization = normalization
        self.action_space = action_space
        if "actor.mu.weight" in weights:
            self.kind, body, head = "squashed", "actor.latent_pi.", "actor.mu."
        elif "action_net.weight" in weights:
            self.kind, body, head = "gaussian", "mlp_extractor.policy_net.", "action_net."
        elif "actor.mu.0.weight" in weights:
            self.kind, body, head = "deterministic", "actor.mu.", ""
        else:
            raise ValueError(
                f"no SB3 actor among the tensors {sorted(weights)[:6]}…; expected an MLP policy "
                "of SAC, TQC, TD3, DDPG, PPO or A2C"
            )
        if weights.get("log_std", weights.get("actor.log_std", torch.zeros(1))).dim() > 1:
            raise ValueError(
                "the policy explores by its state (use_sde=True), which is not supported; expected "
                "one that was trained with use_sde=False"
            )
        default = "tanh" if self.kind == "gaussian" else "relu"
        layers = _layers(weights, body) + (_layers(weights, head) if head else [])
        sizes = [layers[0][0].shape[1], *(w.shape[0] for w, _ in layers)]
        self.net = mlp(sizes, activation or default)
        tensors = [tensor for layer in layers for tensor in layer]
        self.net.load_state_dict(dict(zip(self.net.state_dict(), tensors, strict=True)))
        if self.kind == "squashed":
            weight, bias = weights["actor.log_std.weight"], weights["actor.log_std.bias"]
            self.log_std_head = nn.Linear(weight.shape[1], weight.shape[0])
            self.log_std_head.load_state_dict({"weight": weight, "bias": bias})
        elif self.kind == "gaussian":
            self.register_buffer("log_std", weights["log_std"].clone())
        if sizes[-1] != action_space.shape[0]:
            raise ValueError(
                f"the policy has {sizes[-1]} action dimensions, the environment "
                f"{action_space.shape[0]}: is it a policy of another environment?"
            )
        self.observation_dim = sizes[0]
        if normalization is not None and len(normalization.mean) != self.observation_dim:
            raise ValueError(
                f"the policy takes {self.observation_dim} observation dimensions, the statistics "
                f"are of {len(normalization.mean)}: are they another model's?"
            )
        self.double()

    def act(
        self,
        observations: NDArray[np.floating] | dict[str, NDArray[np.floating]],
        generator: torch.Generator,
        deterministic: bool = False,
    ) -> NDArray[Any]:
        """(B, S) to (B, A) in the environment's units, sampled unless `deterministic`.

        Dict observations are joined in the order of their names, as SB3's MultiInputPolicy does.
        """
        if isinstance(observations, dict):
            parts = [observations[name] for name in sorted(observations)]
            observations = np.concatenate([p.reshape(len(p), -1) for p in parts], axis=1)
        with torch.no_grad():
            actions = self._act(observations, generator, deterministic).numpy()
        low, high = self.action_space.low, self.action_space.high
        half = 0.5 * (high - low) if self.action_space.is_bounded() else 1.0
        if self.kind == "gaussian":
            rounded = np.round(actions / half, DECIMALS) * half
            return inside(self.action_space, rounded)
        return inside(self.action_space, low + (np.round(actions, DECIMALS) + 1.0) * half)

    def _act(
        self, observations: NDArray[np.floating], generator: torch.Generator, deterministic: bool
    ) -> Tensor:
        """Actions as the network scales them: in [-1, 1], or in raw units where Gaussian."""
        hidden = torch.as_tensor(observations, dtype=torch.float64)
        if hidden.shape[-1] != self.observation_dim:
            raise ValueError(
                f"the policy takes {self.observation_dim} observation dimensions, "
                f"got {hidden.shape[-1]}: is it a policy of another environment?"
            )
        if self.normalization is not None:
            hidden = torch.as_tensor(self.normalization(hidden.numpy()))
        hidden = self.net[:-1](hidden)
        mean: Tensor = self.net[-1](hidden)
        if self.kind == "deterministic":
            return torch.tanh(mean)
        log_std = self.log_std_head(hidden) if self.kind == "squashed" else self.log_std
        noise = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        action = mean if deterministic else mean + torch.exp(log_std.clamp(-20, 2)) * noise
        return action if self.kind == "gaussian" else torch.tanh(action)


def _layers(weights: dict[str, Tensor], prefix: str) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of the linear layers under a prefix, in order."""
    suffix = ".weight"
    names = [n for n in weights if n.startswith(prefix) and n.endswith(suffix)]
    if f"{prefix}weight" in weights:
        return [(weights[f"{prefix}weight"], weights[f"{prefix}bias"])]
    names.sort(key=lambda name: int(name[len(prefix) : -len(suffix)]))
    return [(weights[n], weights[n.removesuffix(suffix) + ".bias"]) for n in names]


def load_policy(
    path: str | Path, action_space: spaces.Box, vecnormalize: str | Path | None = None
) -> ActorPolicy:
    """Read an SB3 model file (`model.zip`) or an actor snapshot (`.safetensors`).

    Only `policy.pth` (tensors, `weights_only`) and the plain JSON fields of a zip are read, and
    only the statistics of observations of the file that VecNormalize.save wrote. Raises ValueError
    for other files.
    """
    path = Path(path)
    normalization = read_vecnormalize(vecnormalize) if vecnormalize is not None else None
    if not path.is_file():
        raise ValueError(f"policy file {str(path)!r} does not exist")
    try:
        return ActorPolicy(*_read(path, action_space), normalization)
    except _UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds objects other than tensors, which are never loaded"
        raise ValueError(
            f"policy file {str(path)!r} is not an SB3 model with an MLP actor ({reason}); expected "
            "the zip that model.save() writes, or a .safetensors snapshot"
        ) from error


_UNREADABLE = (
    zipfile.BadZipFile,
    LookupError,
    RuntimeError,
    UnicodeDecodeError,
    json.JSONDecodeError,
    pickle.UnpicklingError,
    SafetensorError,
)


def _read(path: Path, action_space: spaces.Box) -> tuple[dict[str, Tensor], spaces.Box, str | None]:
    """ActorPolicy's arguments; the activation is None where the file does not state it."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as opened:
            activation = (opened.metadata() or {}).get("activation")
        return load_file(path), action_space, activation
    with zipfile.ZipFile(path) as archive:
        weights = torch.load(
            io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True
        )
        data = json.loads(archive.read("data")) if "data" in archive.namelist() else {}
    if not isinstance(weights, dict):
        raise KeyError("policy.pth holds no table of tensors")
    name = str(data.get("policy_kwargs", {}).get("activation_fn", ""))
    return weights, action_space, _activation(name)


def _activation(written: str) -> str | None:
    """The name in ACTIVATIONS of "<class 'torch.nn.modules.activation.ELU'>"; None for nothing."""
    if not written:
        return None
    name = written.strip("<>'\"").rpartition(".")[2].lower()
    if name not in ACTIVATIONS:
        raise ValueError(
            f"the policy's activation is {written}, expected one of {sorted(ACTIVATIONS)}"
        )
    return name
